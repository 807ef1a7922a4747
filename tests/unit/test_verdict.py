"""Figures and the one verdict: keys, outcomes, and that every command gives the same outcome."""

import io
import json
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import pytest
from ase.build import molecule
from rich.console import Console

from mlff_student.analysis import analyze
from mlff_student.analysis.thermo import Thermo
from mlff_student.core.errors import InputError
from mlff_student.core.figures import (
    SUFFIXES,
    Figure,
    Threshold,
    figures_of,
    known_figures,
    load_thresholds,
    record_of,
)
from mlff_student.core.units import KB
from mlff_student.distill.check import load_gate
from mlff_student.engines.protocol import THERMO_COLUMNS, MDSettings, RunFolder
from mlff_student.reporting.analyze import judge_run, run_analysis
from mlff_student.reporting.verdict import Outcome, judge, judge_figure, overall
from mlff_student.structures.checks import perceive_bonds
from mlff_student.structures.reading import Structure, make_topology, write_topology
from mlff_student.validation.harness import judge_nve
from mlff_student.validation.measure import measure_run
from mlff_student.validation.summary import summarise
from mlff_student.validation.tasks import RunTask

ETHANOL = molecule("CH3CH2OH")
DRIFT = "drift_mev_per_atom_ps"
LIMIT = load_thresholds()[DRIFT].value
DT_PS = 0.01


# --- figures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("figure", "keys"),
    [
        (
            Figure("drift", 1.0, "meV/atom/ps", 0.1),
            ["drift_mev_per_atom_ps", "drift_stderr_mev_per_atom_ps"],
        ),
        (
            Figure("rdf_error", 1.0, "%", 0.1, 0.2),
            ["rdf_error_percent", "rdf_error_stderr_percent", "rdf_noise_percent"],
        ),
        (
            Figure("pressure_error", 1.0, "GPa", 0.1),
            ["pressure_error_gpa", "pressure_error_stderr_gpa"],
        ),
        (
            Figure("spectrum_overlap", 90.0, "%", noise=95.0),
            ["spectrum_overlap_percent", "spectrum_overlap_noise_percent"],
        ),
        (Figure("equipartition", 1.0, "standard errors"), ["equipartition_sigma"]),
        (Figure("exchange_ratio", 0.1), ["exchange_ratio"]),
    ],
)
def test_keys_that_users_script_against(figure: Figure, keys: list[str]) -> None:
    assert list(figure.as_record()) == keys


def test_figures_come_back_from_json() -> None:
    """With the standard error that is none, the one that is not known, and the noise."""
    figures = [
        Figure("drift", 0.1, "meV/atom/ps", 0.01),
        Figure("heating", 1.0, "% of T", np.nan),
        Figure("rdf_error", 4.0, "%", 1.0, 2.0),
        Figure("bonds", 8),
    ]
    text = json.dumps(record_of(figures) | {"failure": ""}).replace("NaN", "null")
    found = {one.key: one for one in figures_of(json.loads(text))}
    assert found.pop("rdf_noise_percent").value == 2.0
    assert found["bonds"].standard_error is None
    np.testing.assert_equal(list(found.values()), figures)


def test_every_threshold_and_criterion_bounds_a_known_figure() -> None:
    known = known_figures()
    assert set(load_thresholds()) | set(load_gate()) <= set(known)
    assert all(figure.unit in SUFFIXES and figure.title for figure in known.values())


# --- the verdict ----------------------------------------------------------------------------------

PASSED, FAILED, OPEN = Outcome.PASSED, Outcome.FAILED, Outcome.NOT_RESOLVED


@pytest.mark.parametrize(
    ("value", "error", "noise", "outcome"),
    [
        (0.9, None, None, PASSED),
        (-1.0, None, None, PASSED),
        (1.1, None, None, FAILED),
        (0.5, 0.4, None, PASSED),
        (0.5, 0.6, None, OPEN),
        (0.5, np.nan, None, OPEN),
        (1.5, 0.6, None, OPEN),
        (-1.5, 0.4, None, FAILED),
        (1.5, np.nan, None, FAILED),
        (1.5, 0.1, 0.6, OPEN),
        (1.5, np.nan, 0.6, OPEN),
        (0.5, 0.1, 9.0, PASSED),
        (np.nan, None, None, FAILED),
        (np.inf, 0.1, 9.0, FAILED),
    ],
)
def test_figure_passes_fails_or_is_not_resolved(value, error, noise, outcome) -> None:
    check = judge_figure(Figure("rdf_error", value, "%", error, noise), Threshold(1.0, "%", ""))
    assert check.outcome is outcome
    assert (check.passed, check.resolved) == (outcome is PASSED, outcome is not OPEN)


@pytest.mark.parametrize(
    ("bound", "within", "beyond"),
    [("absolute", -1.0, -1.1), ("most", -5.0, 1.1), ("least", 1.0, -1.1)],
)
def test_side_that_a_threshold_bounds(bound: str, within: float, beyond: float) -> None:
    threshold = Threshold(1.0, "", "", bound)
    assert judge_figure(Figure("bonds", within), threshold).outcome is PASSED
    assert judge_figure(Figure("bonds", beyond), threshold).outcome is FAILED


def test_unknown_side_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "table.yaml"
    table.write_text("bonds: {value: 1, unit: '', source: none, bound: above}\n")
    with pytest.raises(InputError, match="bound is 'above'"):
        load_thresholds(table)


def test_threshold_fails_only_beyond_its_own_number_of_errors() -> None:
    threshold = Threshold(1.0, "", "", errors_to_fail=3.0)
    outcomes = [judge_figure(Figure("bonds", 2.0, "", e), threshold).outcome for e in (0.3, 0.4)]
    assert outcomes == [FAILED, OPEN]


def test_threshold_of_other_ensembles_is_left_out() -> None:
    thresholds = load_thresholds()
    figures = [Figure("equipartition", 9.0, "standard errors"), Figure("nonfinite_rows", 0)]
    assert overall(judge(figures, thresholds, "nvt")) is FAILED
    assert overall(judge(figures, thresholds, "nve")) is PASSED
    assert overall(judge(figures, thresholds)) is FAILED


# --- one run, every command -----------------------------------------------------------------------


def write_run(folder: Path, drift_mev: float, noise_mev: float) -> RunFolder:
    """A run of ethanol whose log has a drift (meV/atom/ps) with white noise (meV/atom)."""
    rng = np.random.default_rng(7)
    rows, atoms = 400, len(ETHANOL)
    time = DT_PS * np.arange(rows)
    temperature = 300.0 + 50.0 * rng.normal(size=rows)
    kinetic = 0.5 * (3 * atoms - 3) * KB * temperature
    noise = noise_mev * rng.normal(size=rows)
    noise -= noise.mean() + np.polyfit(time, noise, 1)[0] * (time - time.mean())
    total = -100.0 + 1e-3 * atoms * (drift_mev * time + noise)
    thermo = Thermo(time, total - kinetic, kinetic, total, temperature)
    run = RunFolder(folder)
    folder.mkdir()
    columns = np.column_stack([getattr(thermo, name) for name in THERMO_COLUMNS])
    np.savetxt(
        run.thermo,
        columns,
        delimiter=",",
        header=",".join(THERMO_COLUMNS),
        comments="",
        fmt="%.12g",
    )
    topology = make_topology(ETHANOL, perceive_bonds(ETHANOL))
    write_topology(Structure(ETHANOL, topology), run.topology)
    frames = ETHANOL.positions + 0.02 * rng.normal(size=(rows, atoms, 3))
    mdtraj.Trajectory(0.1 * frames, topology).save_dcd(str(run.trajectory))
    return run


def test_record_of_a_run_gives_its_figures_back(tmp_path: Path) -> None:
    """A table or a page needs the record alone."""
    run = write_run(tmp_path / "run", 0.0, 0.1)
    analysis = analyze(run.trajectory, run.topology, run.thermo)
    assert {one.key: one for one in figures_of(analysis.as_record())} == {
        one.key: one for one in analysis.figures()
    }


def by_harness(run: RunFolder) -> dict[str, Outcome]:
    return {check.key: check.outcome for check in judge_nve(run).checks}


def by_demo(run: RunFolder) -> dict[str, Outcome]:
    """What examples/demo.py does with each engine's files."""
    analysis = analyze(run.trajectory, run.topology, run.thermo)
    return {check.key: check.outcome for check in judge_run(analysis)}


def by_analyze(run: RunFolder) -> dict[str, Outcome]:
    file = run.path / "analysis.json"
    run_analysis(
        run.trajectory,
        run.topology,
        run.thermo,
        console=Console(file=io.StringIO()),
        json=file,
    )
    (record,) = json.loads(file.read_text())["results"]
    return {
        key: PASSED
        if record[f"{key}_passed"]
        else FAILED
        if record.get(f"{key}_resolved", True)
        else OPEN
        for key in load_thresholds()
        if f"{key}_passed" in record
    }


def by_campaign(run: RunFolder) -> dict[str, Outcome]:
    """By the record that a campaign keeps, as it comes back from its file."""
    settings = MDSettings(
        engine="ase", model="python:ase.calculators.emt:EMT", structure="CCO", steps=400,
        timestep_fs=10.0, temperature_K=300.0, ensemble="nve", every=1, thermalise_steps=2,
        friction_per_ps=10.0, seed=1, threads=1,
    )  # fmt: skip
    task = RunTask("emt/ase/nve/ethanol", "nve", "ethanol", settings, atoms=9)
    measured, _ = measure_run(task, run)
    head: dict[str, Any] = {
        "case": task.name, "model": "emt", "engine": "ase", "judged": True, "step": "nve",
        "structure": "ethanol", "molecules": 1, "failed_runs": 0, "failure": "", "kind": "run",
        "timestep_fs": 10.0, "target_temperature_k": 300.0,
    }  # fmt: skip
    record = json.loads(json.dumps(head | measured))
    summary = summarise([record], load_thresholds())
    assert (summary.verdict is PASSED) == summary.passed
    return {one.check.key: one.check.outcome for one in summary.checks}


@pytest.mark.parametrize(
    ("drift_mev", "noise_mev", "outcome"),
    [(0.4 * LIMIT, 0.05, PASSED), (20.0 * LIMIT, 0.05, FAILED), (0.8 * LIMIT, 2.0, OPEN)],
    ids=["passed", "failed", "not resolved"],
)
def test_one_run_has_one_verdict(
    tmp_path: Path, drift_mev: float, noise_mev: float, outcome: Outcome
) -> None:
    run = write_run(tmp_path / "run", drift_mev, noise_mev)
    expected = by_harness(run)
    assert expected[DRIFT] is outcome
    assert by_demo(run) == expected
    assert by_analyze(run) == expected
    campaign = by_campaign(run)
    assert campaign.pop("failed_runs") is PASSED  # of the campaign alone
    assert {key: campaign[key] for key in expected} == expected
