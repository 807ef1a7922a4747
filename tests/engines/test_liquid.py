"""The density of a small box of liquid at constant pressure, from a box packed at random."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from openmm.app import PDBFile

from mlff_student.errors import InputError
from mlff_student.verdict import load_thresholds
from openmm_integration.liquid import LiquidSettings, known_liquids, read_rows, run_liquid

SHORT = LiquidSettings("methanol", "ultra_tiny", molecules=6, equilibrate_ps=1.0, ps=1.5)
FILES = {"settings.json", "density.csv", "density.png", "end.pdb", "liquid.json", "checkpoint.bin"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("liquid") / "methanol"
    return folder, run_liquid(SHORT, folder)


def test_files_and_figures(finished):
    """The rows are those asked for; the last one's density is that of the box in end.pdb."""
    folder, record = finished
    assert {path.name for path in folder.iterdir()} == FILES
    rows = read_rows(folder / "density.csv")
    np.testing.assert_allclose([row["time_ps"] for row in rows], 0.1 * np.arange(1, 26))
    pdb = PDBFile(str(folder / "end.pdb"))
    volume = np.prod([pdb.topology.getPeriodicBoxVectors()[k][k]._value for k in range(3)])  # nm^3
    assert pdb.topology.getNumResidues() == 6 and pdb.topology.getNumAtoms() == 36
    grams = 6 * 32.042 / 6.02214e23
    # CRYST1 keeps thousandths of an angstrom of an edge of 7.
    assert rows[-1]["density_g_per_cm3"] == pytest.approx(grams / (volume * 1e-21), rel=1e-3)
    measured = [row["density_g_per_cm3"] for row in rows[10:]]
    assert record["density_g_per_cm3"] == pytest.approx(np.mean(measured))
    assert record["density_deviation_percent"] == pytest.approx(
        100.0 * (np.mean(measured) / known_liquids()["methanol"]["density_g_per_cm3"] - 1.0)
    )
    assert np.ptp(measured) > 0.0  # the barostat works
    assert record["bond_deviation_angstrom"] < 0.5


def test_killed_run_goes_on(tmp_path):
    """From the newest checkpoint; rows before it stay, and what came after is run anew."""

    def stop(row: int, rows: int) -> None:
        if row == 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_liquid(SHORT, tmp_path, stop)
    before = read_rows(tmp_path / "density.csv")
    assert len(before) == 10
    done: list[int] = []
    run_liquid(SHORT, tmp_path, lambda row, rows: done.append(row))
    assert done == list(range(10, 26))
    rows = read_rows(tmp_path / "density.csv")
    assert rows[:10] == before
    np.testing.assert_allclose([row["time_ps"] for row in rows], 0.1 * np.arange(1, 26))


def test_folder_of_another_run(finished, tmp_path):
    """A finished run is not run again, and another is refused."""
    folder, record = finished
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert run_liquid(SHORT, copy, lambda row, rows: pytest.fail("it ran")) == record
    with pytest.raises(InputError, match=r"holds another run \(seed differ\)"):
        run_liquid(LiquidSettings(**vars(SHORT) | {"seed": 2}), folder)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"molecules": 0}, "molecules must be positive, got 0"),
        ({"ps": 0.5}, "ps must be 1 or more, got 0.5"),
        ({"equilibrate_ps": -1.0}, "must not be negative"),
        ({"liquid": "C[SiH3]"}, "does not know Si"),
        ({"platform": "Quantum"}, "no platform 'Quantum'"),
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
    failed = abs(record["density_deviation_percent"]) > 10.0
    assert result.returncode == int(failed), result.stderr
    assert ("FAIL density_deviation_percent" in result.stdout) == failed
    (found,) = json.loads((tmp_path / "liquid.json").read_text())["results"]
    assert found["density_g_per_cm3"] == record["density_g_per_cm3"]


@pytest.mark.slow
def test_density_of_water(tmp_path):
    """50 ps at 298 K and 1 bar, 60 molecules packed at random, after 20 ps of equilibration: within
    the threshold of the experiment, steady, and the box breathes.
    """
    record = run_liquid(LiquidSettings("water", "tiny"), tmp_path)
    limit = load_thresholds()["density_deviation_percent"].value
    assert abs(record["density_deviation_percent"]) < limit
    assert record["bond_deviation_angstrom"] < 0.5
    # No more than 5 % in all, or three standard errors.
    error = 3 * record["density_trend_stderr_g_per_cm3_ps"]
    assert abs(record["density_trend_g_per_cm3_ps"]) < max(error, 0.05 / 50)
    rows = read_rows(tmp_path / "density.csv")
    fluctuation = np.std([row["density_g_per_cm3"] for row in rows[200:]])
    assert 0.005 < fluctuation < 0.1  # 3 % by the compressibility of water
    assert record["mean_temperature_k"] == pytest.approx(298.15, abs=5.0)
