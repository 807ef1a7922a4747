"""The density of a small box of liquid at constant pressure, from a box packed at random."""

import json
import subprocess
import sys
from pathlib import Path

import mdtraj
import numpy as np
import pytest

from mlff_student.core.errors import InputError
from mlff_student.core.figures import load_thresholds
from mlff_student.reporting.verdict import judge
from mlff_student.validation.liquid import LiquidSettings, known_liquids, run_liquid

SHORT = LiquidSettings("methanol", "ultra_tiny", molecules=6, equilibrate_ps=1.0, ps=1.5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("liquid") / "methanol"
    return folder, run_liquid(SHORT, folder, quiet=True)


def test_figures_are_of_the_run(finished):
    """The density is the mean over the frames after equilibration, and the barostat works."""
    folder, record = finished
    run = mdtraj.load(folder / "run.dcd", top=folder / "run.pdb")
    assert (run.n_frames, run.n_residues, run.n_atoms) == (25, 6, 36)
    density = 6 * 32.042 / 6.02214e23 / (run.unitcell_volumes[10:] * 1e-21)
    # The trajectory keeps single precision.
    assert record["density_g_per_cm3"] == pytest.approx(density.mean(), rel=1e-5)
    assert np.ptp(density) > 0.0
    experiment = known_liquids()["methanol"]["density_g_per_cm3"]
    assert record["density_deviation_percent"] == pytest.approx(
        100.0 * (density.mean() / experiment - 1.0), abs=1e-2
    )
    assert (folder / "density.png").is_file()


def test_a_finished_run_is_not_run_again_and_another_is_refused(finished):
    folder, record = finished
    before = (folder / "run.dcd").stat().st_mtime_ns
    assert run_liquid(SHORT, folder, quiet=True) == record
    assert (folder / "run.dcd").stat().st_mtime_ns == before
    for other in ({"seed": 2}, {"molecules": 8}, {"liquid": "water"}):
        with pytest.raises(InputError, match="of another liquid, number or seed"):
            run_liquid(LiquidSettings(**vars(SHORT) | other), folder, quiet=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"molecules": 1}, "two molecules or more, got 1"),
        ({"ps": 0.5}, "ps must be 1 or more, got 0.5"),
        ({"equilibrate_ps": -1.0}, "must not be negative"),
        ({"temperature_K": 0.0}, "temperature_K must be positive"),
        ({"liquid": "C[SiH3]"}, "does not know Si"),
        ({"engine": "ase"}, "npt runs in openmm and lammps"),
    ],
)
def test_what_cannot_be_run_is_refused(options, words, tmp_path):
    with pytest.raises(InputError, match=words):
        run_liquid(LiquidSettings(**vars(SHORT) | options), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_command(finished, tmp_path):
    """A finished folder, judged: the exit status says whether the density passed."""
    folder, record = finished
    command = [
        sys.executable, "-m", "mlff_student", "liquid", "methanol", "--model", "ultra_tiny",
        "--molecules", "6", "--equilibrate-ps", "1", "--ps", "1.5", "-o", str(folder),
        "--json", str(tmp_path / "liquid.json"),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    limits = load_thresholds()
    figures = ("density_deviation_percent", "bond_deviation_angstrom", "hydrogens_lost")
    checks = {check.name: check for check in judge(record, limits)}
    failed = [name for name in figures if not checks[name].passed]
    assert result.returncode == int(bool(failed)), result.stderr
    for name in figures:
        word = "FAIL" if checks[name].resolved else "NOT RESOLVED"
        assert (f"{word} {name}" in result.stdout) == (name in failed)
    (found,) = json.loads((tmp_path / "liquid.json").read_text())["results"]
    assert found["density_g_per_cm3"] == record["density_g_per_cm3"]


@pytest.mark.slow
def test_barostats_of_both_engines_give_one_density(tmp_path):
    """Monte Carlo in OpenMM, Martyna, Tobias and Klein in LAMMPS: 16 methanols at 5 kbar,
    which keeps them a liquid whatever the student makes of their cohesion.
    """
    found = []
    for engine in ("openmm", "lammps"):
        settings = LiquidSettings(
            "methanol", "ultra_tiny", engine, molecules=16, equilibrate_ps=15.0, ps=40.0,
            pressure_bar=5000.0,
        )  # fmt: skip
        record = run_liquid(settings, tmp_path / engine, quiet=True)
        assert (
            record["bond_deviation_angstrom"] < load_thresholds()["bond_deviation_angstrom"].value
        )
        found.append((record["density_g_per_cm3"], record["density_stderr_g_per_cm3"]))
    (one, error), (other, other_error) = found
    assert max(error, other_error) < 0.02 * one
    assert abs(one - other) < 4.0 * np.hypot(error, other_error), found
