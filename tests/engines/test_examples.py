"""Every example runs, in its short mode, and prints and writes what is expected."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from ase.io import read

EXAMPLES = Path(__file__).parents[2] / "examples"
NUMBER = r"-?\d+\.\d+"


class Expected(NamedTuple):
    """What a run of an example must have done."""

    printed: str  # regular expression, one group for each number that `sound` takes
    sound: object  # whether these numbers are right
    files: tuple[str, ...] = ()
    short: bool = True
    options: tuple[str, ...] = ()


CASES = {
    "single_point": Expected(rf"energy +({NUMBER}) eV", lambda e: -311 < e < -309, short=False),
    "optimize_water": Expected(
        rf"after : O-H ({NUMBER}) and ({NUMBER}) .* H-O-H ({NUMBER})",
        lambda a, b, angle: abs(a - b) < 0.01 and 0.94 < a < 0.98 and 103 < angle < 112,
        short=False,
    ),
    "nve_ase": Expected(
        rf"total energy ({NUMBER})[^$]*kinetic energy ({NUMBER})",
        # Velocity Verlet at 0.5 fs: two orders below what flows to and fro.
        lambda total, kinetic: total < 0.05 * kinetic,
        files=("nve_ase.png",),
    ),
    "batch": Expected(
        rf"CO2 +3 +({NUMBER}) +{NUMBER} +(\S+) eV",
        lambda energy, difference: -282 < energy < -279 and difference < 1e-5,
        short=False,
    ),
    "student_and_teacher": Expected(
        rf"original +({NUMBER}).*\n.*\nultra_tiny +({NUMBER})",
        lambda best, smallest: 0.0 < best < smallest < 0.2,
        files=("student_and_teacher.png",),
    ),
    "openmm_vacuum": Expected(
        rf"\n +0\.05 +({NUMBER}) +(\d+) +({NUMBER})",
        lambda energy, temperature, bond: -898 < energy < -894 and temperature < 500 and bond < 0.3,
        files=("openmm_vacuum.dcd",),
    ),
    "openmm_mixed": Expected(
        rf"22 atoms by original, (\d+) by TIP3P[^$]*\n +20 +({NUMBER})",
        lambda water, energy: 1000 < water < 1500 and energy < -9e4,
    ),
    "drift_of_a_dcd": Expected(r"atoms +│ +│ +(\d+)", lambda n: n == 22, files=("run.dcd",)),
    "distil_molecule": Expected(
        rf"held-out trajectories: ({NUMBER})[^$]*energy ({NUMBER}) eV",
        # Methanol by GFN2-xTB: -223.8 eV; ethanol, which is the default: -310 eV.
        lambda rmse, energy: rmse < 0.3 and -226 < energy < -222,
        files=("ultra_tiny.pt", "card.json"),
        options=("--molecule", "CO"),
    ),
    "screen_conformers": Expected(
        r"(\d+) conformers of (\d+) atoms in \d",
        lambda count, atoms: (count, atoms) == (50, 22),
        files=("screen_conformers.png", "best.xyz"),
    ),
}


def run(*words: str | Path, folder: Path) -> str:
    """What a script prints."""
    result = subprocess.run(
        words,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ
        | {"COLUMNS": "120", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Warning" not in result.stderr
    return result.stdout


@pytest.mark.parametrize("name", CASES)
def test_example(name, tmp_path):
    case = CASES[name]
    words = [sys.executable, EXAMPLES / f"{name}.py", *case.options]
    words += ["--short"] if case.short else []
    if case.files:
        words += ["--output", tmp_path / "out"]
    printed = run(*words, folder=tmp_path)
    found = re.search(case.printed, printed)
    assert found, printed
    assert case.sound(*map(float, found.groups())), found.group()
    for file in case.files:
        assert (tmp_path / "out" / file).stat().st_size > 0
        if file.endswith(".png"):
            assert (tmp_path / "out" / file).read_bytes().startswith(b"\x89PNG")


def test_conformers_kept_differ(tmp_path):
    """No two of the same shape, the lowest first, and fewer where there are no more."""
    script = EXAMPLES / "screen_conformers.py"
    butane = ("--smiles", "CCCC", "--short", "--output", tmp_path)
    printed = run(sys.executable, script, *butane, folder=tmp_path)
    found = read(tmp_path / "best.xyz", ":")
    assert f"{len(found)} different conformers" in printed
    # Anti and gauche; the two gauche forms are mirror images.
    angles = [abs((one.get_dihedral(0, 1, 2, 3) + 180.0) % 360.0 - 180.0) for one in found]
    assert angles[0] == pytest.approx(180.0, abs=10.0)
    assert angles[1:] == pytest.approx([65.0] * (len(found) - 1), abs=15.0)
    assert 2 <= len(found) <= 3


def test_lammps_nvt(tmp_path):
    """On two ranks; 20 steps from a liquid at rest keep it near 300 K."""
    script = EXAMPLES / "lammps_nvt" / "run.sh"
    printed = run("bash", script, tmp_path / "run", "20", "tiny", folder=tmp_path)
    assert "on 2 procs for 20 steps with 192 atoms" in printed
    (temperature,) = re.findall(rf"^ +20 +{NUMBER} +({NUMBER})", printed, re.MULTILINE)
    assert 150 < float(temperature) < 350
    assert (tmp_path / "run" / "nvt.xyz").stat().st_size > 0


def test_all_examples_are_here():
    """`demo.py` has a test of its own; `show.py` writes a page from what the others print."""
    assert {one.stem for one in EXAMPLES.glob("*.py")} == {*CASES, "demo", "show"}
    shown = (EXAMPLES / "README.md").read_text()
    assert "bash examples/lammps_nvt/run.sh" in shown
    for name in CASES:
        assert f"python examples/{name}.py" in shown
