"""`mlff-student validate` end to end in the real engines, killed and resumed; MD in ASE; NPT."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jsonschema
import mdtraj
import numpy as np
import pytest

from mlff_student.analysis.thermo import read_thermo
from mlff_student.cli import main
from mlff_student.core.errors import InputError
from mlff_student.engines.protocol import MDSettings
from mlff_student.engines.run import run_md
from mlff_student.validation.campaign import Campaign
from mlff_student.validation.protocol import load_protocol
from mlff_student.validation.report import load_schema, run_command
from mlff_student.validation.tasks import CampaignTarget, RunTask

COMMAND = str(Path(sys.executable).with_name("mlff-student"))
# What a nanosecond campaign does, in a minute: each kind of step, with the largest student in the
# place of the teacher, whose liquid would take hours.
TEACHER = "python:mlff_student.engines.ase.calculator:StudentForceFieldCalculator"
MINIATURE = """
about: A miniature of the campaign.
boxes:
  water_box: {smiles: O, count: 4}
steps:
  - {step: nve, structures: [ethanol], ps: 1, thermalise_ps: 0.3, frames: 200, teacher_frames: 5}
  - step: temperature_ladder
    structures: [water]
    ps: 0.5
    temperatures_K: [200, 2000]
    thermalise_ps: 0.3
    frames: 100
    judged_to_K: 300
  - step: timestep_ladder
    structures: [water]
    ps: 0.5
    timesteps_fs: [0.25, 0.5]
    thermalise_ps: 0.3
    frames: 100
  - step: liquid
    box: water_box
    nvt_ps: 0.4
    npt_ps: 0.4
    replicas: 1
    teacher_ps: 0.8
    teacher_npt_ps: 0.8
    gas_ps: 0.8
    proposal_model: ultra_tiny
    thermalise_ps: 0.2
"""


def words_of(engines: str) -> list[str]:
    options = ["--engine", engines, "--teacher", TEACHER, "--workers", "2"]
    options += ["--protocol", "miniature.yaml", "-o", "campaign"]
    return [COMMAND, "validate", "tiny", *options]


@pytest.fixture(
    scope="module", params=["openmm", pytest.param("openmm,lammps", marks=pytest.mark.slow)]
)
def engines(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def finished(engines, tmp_path_factory) -> Path:
    """Folder of a campaign that was killed once and resumed."""
    folder = tmp_path_factory.mktemp("validate")
    (folder / "miniature.yaml").write_text(MINIATURE)
    words = [*words_of(engines), "--quiet", "--json", "all.json"]
    process = subprocess.Popen(words, cwd=folder, start_new_session=True)
    results = folder / "campaign" / "results"
    deadline = time.monotonic() + 180.0
    while len(list(results.rglob("*.json"))) < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in results.rglob("*.json")}
    run = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode in (0, 1), run.stderr  # half a picosecond tells no drift
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    return folder / "campaign"


def records_of(folder: Path) -> dict[str, dict]:
    results = json.loads((folder.parent / "all.json").read_text())["results"]
    return {one["case"]: one for one in results}


def test_campaign_has_every_result(finished, engines):
    """For each engine: ethanol, two temperatures, two timesteps with their convergence, a box at
    constant volume and pressure with its g(r), its density and its vaporisation, for which there is
    a run of the gas; and three runs of the teacher for all.
    """
    records = records_of(finished)
    names = engines.split(",")
    assert len(records) == 12 * len(names) + 3
    assert all(one["failed_runs"] == 0 for one in records.values())
    for engine in names:
        head = f"tiny/{engine}"
        ethanol = records[f"{head}/nve/ethanol-1ps-300K-0.5fs"]
        assert 0.0 < ethanol["force_rmse_ev_per_angstrom"] < 0.3
        assert ethanol["exchange_ratio"] < 0.1
        assert 0.3 < records[f"{head}/liquid/water_box-npt-1"]["density_g_per_cm3"] < 2.0
        liquid = records[f"{head}/liquid/water_box-rdf"]
        assert 0.0 < liquid["rdf_error_percent"]
        assert 0.0 < liquid["teacher_acceptance"] <= 1.0
        assert abs(liquid["pressure_error_gpa"]) < 5.0, "eV/angstrom^3 would be 160 GPa"
        density = records[f"{head}/liquid/water_box-density"]
        packed = records[f"{head}/liquid/water_box-npt-1"]["density_g_per_cm3"]
        ratio = packed / density["density_teacher_g_per_cm3"]
        assert density["density_error_percent"] == pytest.approx(100 * (ratio - 1), abs=0.01)
        assert "rdf_error_percent" not in density, "it is compared at constant volume"
        gas = records[f"{head}/liquid/water_box-vaporisation"]
        change = gas["vaporisation_kj_per_mol"] - gas["vaporisation_teacher_kj_per_mol"]
        assert gas["vaporisation_error_kj_per_mol"] == pytest.approx(change)
        assert records[f"{head}/liquid/water_box-gas-1"]["atoms"] == 3
        ladder = records[f"{head}/timestep_ladder/water-0.5ps-300K-convergence"]
        assert ladder["convergence_deviation"] < 0.25
        assert not records[f"{head}/temperature_ladder/water-0.5ps-2000K-0.5fs"]["judged"]
    references = [one for one in records.values() if one["engine"] == "ase"]
    assert sorted(one["ensemble"] for one in references) == ["npt", "nvt", "nvt"]
    why = "a move of hybrid Monte Carlo is no stretch of MD"
    assert all("diffusion_cm2_per_s" not in one for one in references), why


def test_campaign_leaves_files_to_commit(finished, engines):
    content = json.loads((finished / "report-tiny.json").read_text())
    jsonschema.validate(content, load_schema())
    jsonschema.validate(json.loads((finished.parent / "all.json").read_text()), load_schema())
    assert (finished / "comparison.html").stat().st_size > 10_000
    with open(finished / "tables" / "nve.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["engine"] for row in rows} == set(engines.split(","))
    assert (finished / "runs" / ".gitignore").read_text() == "*\n"
    kept = [path for path in finished.rglob("*") if "runs" not in path.parts]
    assert not [path for path in kept if path.suffix in (".dcd", ".pt")]
    assert sum(path.stat().st_size for path in kept if path.is_file()) < 2_000_000


@pytest.fixture
def call(monkeypatch, capsys):
    """Call the program in this process: exit status, standard output, standard error."""

    def call(folder: Path, *words: str) -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["mlff-student", *words])
        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code or 0
        return status, *capsys.readouterr()

    return call


def test_finished_campaign_runs_nothing_again(finished, engines, call):
    runs = {path: path.stat().st_mtime_ns for path in (finished / "runs").rglob("run.*")}
    status, output, _ = call(finished.parent, *words_of(engines)[1:])
    passed = json.loads((finished / "report-tiny.json").read_text())["passed"]
    assert status == (0 if passed else 1)
    assert ("PASS" if passed else "FAIL") in output
    assert runs and all(path.stat().st_mtime_ns == when for path, when in runs.items())


def test_other_model_is_refused(finished, engines, monkeypatch):
    """Results of two models must not end in one report."""
    monkeypatch.chdir(finished.parent)
    target = CampaignTarget(("ultra_tiny",), tuple(engines.split(",")), TEACHER)
    with pytest.raises(InputError, match="models differ"):
        Campaign(load_protocol("miniature.yaml"), target, Path("campaign"))


def test_compare_command(finished, call, tmp_path):
    """A report is not worse than itself; with a larger force error it is."""
    report = finished / "report-tiny.json"
    words = ["validate", "compare", str(report)]
    assert call(tmp_path, *words, str(report))[0] == 0
    content = json.loads(report.read_text())
    for one in content["results"]:
        if "force_rmse_ev_per_angstrom" in one:
            one["force_rmse_ev_per_angstrom"] = 0.5
    worse = tmp_path / "worse.json"
    worse.write_text(json.dumps(content))
    status, output, _ = call(tmp_path, *words, str(worse), "--json", "worse-in.json")
    assert status == 1
    assert "force_rmse" in output
    found = json.loads((tmp_path / "worse-in.json").read_text())["results"]
    assert {one["figure"] for one in found} == {"force_rmse_ev_per_angstrom"}


BAD = {
    "unknown protocol": (["tiny", "--protocol", "quik"], "quick"),
    "unknown model": (["tinny"], "tinny"),
    "unknown engine": (["tiny", "--engine", "gromacs"], "gromacs"),
    "calculator in OpenMM": (["gfn2-xtb"], "--engine ase"),
    "unknown teacher": (["tiny", "--teacher", "gfn2"], "gfn2-xtb"),
    "no model": (["--protocol", "quick"], "no model"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_anything_runs(name, call, tmp_path):
    words, message = BAD[name]
    status, _, errors = call(tmp_path, "validate", *words)
    assert status == 2
    assert message in " ".join(errors.split())
    assert not list(tmp_path.rglob("*.json"))


def ase_run(**changes) -> MDSettings:
    settings = MDSettings(
        engine="ase", model="tiny", structure="CCO", steps=120, timestep_fs=0.5,
        temperature_K=300.0, ensemble="nvt", every=2, thermalise_steps=40, friction_per_ps=10.0,
        seed=1, threads=1,
    )  # fmt: skip
    return replace(settings, **changes)


class Killed(BaseException):
    """Ends a run as Ctrl-C does."""


def test_ase_run_goes_on_as_if_never_stopped(tmp_path, monkeypatch):
    """The thermostat's random numbers go on too."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_md(ase_run(), whole, quiet=True)
    from mlff_student.engines.ase import run as engine

    calls = []
    write = engine.write_segment

    def killing(*arguments):
        calls.append(arguments)
        if len(calls) == 20:
            raise Killed
        write(*arguments)

    monkeypatch.setattr(engine, "write_segment", killing)
    with pytest.raises(Killed):
        run_md(ase_run(), broken, quiet=True)
    monkeypatch.undo()
    run_md(ase_run(), broken, quiet=True)
    paths = (broken, whole)
    found, expected = (read_thermo(path / "run.csv") for path in paths)
    np.testing.assert_allclose(found.time_ps, expected.time_ps)
    # A restart makes the neighbour list anew: other rounding in float32, which grows slowly.
    np.testing.assert_allclose(found.potential_ev, expected.potential_ev, atol=1e-4)
    frames = [
        mdtraj.load(str(path / "run.dcd"), top=str(path / "run.pdb")) for path in (broken, whole)
    ]
    np.testing.assert_allclose(frames[0].xyz, frames[1].xyz, atol=1e-4)


def test_teacher_runs_by_the_same_protocol(tmp_path):
    """GFN2-xTB conserves energy through it, at a tenth of the usual timestep."""
    settings = ase_run(
        model="gfn2-xtb", structure="O", ensemble="nve", timestep_fs=0.2, steps=200, every=10
    )
    record = run_md(settings, tmp_path / "run", quiet=True)
    thermo = read_thermo(tmp_path / "run" / "run.csv")
    assert record["atoms"] == 3
    assert thermo.total_ev.std() < 0.02 * thermo.kinetic_ev.std()


def test_command_of_a_rung_makes_that_run_again(tmp_path, call):
    """From the state that all rungs start from, thermalised at the shortest timestep."""
    rung = ase_run(ensemble="nve", timestep_fs=1.0, thermalise_timestep_fs=0.25, structure="O")
    run_md(rung, tmp_path / "rung", quiet=True)
    task = RunTask("tiny/ase/ladder/water", "ladder", "water", rung)
    words = shlex.split(run_command(task, str(tmp_path / "again"), ""))
    assert call(tmp_path, *words[1:], "--quiet")[0] == 0
    found, expected = (read_thermo(tmp_path / name / "run.csv") for name in ("again", "rung"))
    # Float32 sums in another order are some 1e-6 eV off.
    assert found.total_ev[0] == pytest.approx(expected.total_ev[0], abs=1e-5)
    other = replace(rung, thermalise_timestep_fs=1.0, thermalise_steps=10)
    run_md(other, tmp_path / "other", quiet=True)
    start = read_thermo(tmp_path / "other" / "run.csv").total_ev[0]
    assert abs(start - expected.total_ev[0]) > 1e-3


def test_ase_has_no_barostat(tmp_path):
    with pytest.raises(InputError, match="npt runs in openmm and lammps"):
        run_md(ase_run(ensemble="npt"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("engine", ["openmm", "lammps"])
def test_constant_pressure_needs_a_box(engine, tmp_path):
    with pytest.raises(InputError, match="periodic box"):
        run_md(ase_run(engine=engine, ensemble="npt"), tmp_path / "run", quiet=True)


@pytest.mark.parametrize("engine", ["openmm", "lammps"])
def test_pressure_compresses(engine, tmp_path, structures):
    """A stretched box of water shrinks under 20 kbar, and the thermostat holds."""
    from ase.io import write

    box = structures["water_box"]
    box.set_cell(1.12 * box.cell.array, scale_atoms=False)
    write(tmp_path / "box.extxyz", box)
    settings = ase_run(
        engine=engine, structure=str(tmp_path / "box.extxyz"), ensemble="npt", steps=2000, every=20,
        thermalise_steps=400, pressure_bar=20_000.0,
    )  # fmt: skip
    run_md(settings, tmp_path / "run", quiet=True)
    run = mdtraj.load(str(tmp_path / "run" / "run.dcd"), top=str(tmp_path / "run" / "run.pdb"))
    volume = run.unitcell_volumes
    assert volume[-20:].mean() < 0.85 * 1e-3 * box.get_volume()
    thermo = read_thermo(tmp_path / "run" / "run.csv")
    # 69 degrees of freedom fluctuate by 17 %; a mean over correlated rows by some 5 %.
    assert 240.0 < thermo.temperature_k[20:].mean() < 380.0
