"""What README shows runs as it stands: its Python, its LAMMPS lines, and the options it names."""

import csv
import json
import re
import shlex
import subprocess
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from ase.io import read

from mlff_student.archive.export import export
from mlff_student.archive.registry import checkpoint_path
from mlff_student.cli import app
from mlff_student.engines.lammps.plugin import lammps_environment, lammps_executable
from mlff_student.engines.lammps.run import write_data

ROOT = Path(__file__).parents[2]
READMES = [ROOT / "README.md", ROOT / "plugin" / "mlff_student" / "distill" / "README.md"]
TEXT = READMES[0].read_text()
ETHANOL_EV = -310.0  # about


def blocks(section: str) -> list[str]:
    """Indented blocks under a heading of the README at the top."""
    text = TEXT.split(f"\n## {section}\n")[1].split("\n## ")[0]
    found = re.findall(r"(?:^    .*\n|^\n)+", text, re.MULTILINE)
    return [textwrap.dedent(one).strip() for one in found if one.strip()]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("examples").symlink_to(ROOT / "examples")
    return tmp_path


def test_ase(folder, capsys):
    exec(blocks("ASE")[0], names := {})
    assert names["atoms"].get_forces().shape == (9, 3)
    energy = float(capsys.readouterr().out.split()[0])
    assert energy == pytest.approx(ETHANOL_EV, abs=0.2)


def test_openmm(folder):
    names: dict[str, Any] = {}
    code = blocks("OpenMM")[0].replace("step(1000)", "step(10)")
    exec(code, names)
    assert names["simulation"].currentStep == 10


def test_lammps(folder):
    """Its two lines in a script, with the elements of the example's order of types."""
    atoms = read("examples/ethanol.xyz")
    write_data(atoms, Path("molecule.data"))
    export(checkpoint_path("original"), Path("original.pt"), verify=False)
    commands, lines = blocks("LAMMPS")[:2]
    assert commands.startswith("python export.py --model original ")  # what the lines need
    assert "pair_coeff * * original.pt C H O" in lines
    head = "units metal\natom_style atomic\nboundary m m m\nread_data molecule.data\n"
    Path("in.mine").write_text(f"{head}{lines}\nrun 0\n")
    command = [lammps_executable(), "-in", "in.mine"]
    result = subprocess.run(
        command, env=lammps_environment(), capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stdout[-2000:]
    (energy,) = re.findall(r"^ +0 +\S+ +(-\d+\.\d+)", result.stdout, re.MULTILINE)
    assert float(energy) == pytest.approx(ETHANOL_EV, abs=0.2)


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.parent.name)
def test_commands_have_the_options_shown(path):
    lines = re.findall(
        r"^ +((?:mlff-student|python export\.py) .*?)(?: +#.*)?$", path.read_text(), re.M
    )
    assert len(lines) > 4
    for line in lines:
        words = shlex.split(line.replace("python export.py", "mlff-student export"))[1:]
        command: Any = typer.main.get_command(app)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        command.make_context("mlff-student", words)  # parses, and runs nothing


def test_figures_in_the_text():
    """Of cards and nve.csv, for all models; the message says what README.md must say."""
    facts, drifts, molecules = set(), [], set()
    for path in sorted((ROOT / "checkpoints").glob("*/card.json")):
        card = json.loads(path.read_text())["accuracy"]["held_out_molecules"]
        temperatures = " and ".join(card["by_temperature_K"])
        facts.add((card["frames"], temperatures, card["molecules"]))
        rows = list(csv.DictReader(path.with_name("nve.csv").open(newline="")))
        assert all(row["passed"] == "True" for row in rows), f"README says none failed: {path}"
        drifts += [abs(float(row["drift_mev_per_atom_ps"])) for row in rows]
        molecules.add((len(rows), round(float(rows[0]["ps"]))))
    assert len(facts) == len(molecules) == 1, "the models were measured on different data"
    ((frames, temperatures, count),) = facts
    ((runs, ps),) = molecules
    for expected in (
        f"on {frames:,} frames of its MD ({temperatures} K) of {count} molecules that no student",
        f"{runs} of the molecules ran {ps} ps at constant energy with each student: none came",
        f"the largest drift was {max(drifts):.3f} meV/atom/ps",
    ):
        assert expected in " ".join(TEXT.split()), f"README.md must say: {expected}"


def test_extras_exist():
    """What README installs is in pyproject.toml."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (shown,) = re.findall(r"pip install '\.\[(\w+)\]' +# and OpenMM; likewise (.*)", TEXT)
    assert {shown[0], *shown[1].split(", ")} <= set(extras["optional-dependencies"])


def test_table_is_what_was_measured():
    """Accuracy of the cards, times of the kernels' records."""
    kernels = json.loads((ROOT / "plugin" / "csrc" / "kernels.json").read_text())["results"]
    for name in ("original", "tiny", "ultra_tiny"):
        card = json.loads((ROOT / "checkpoints" / name / "card.json").read_text())
        accuracy = card["accuracy"]["held_out_molecules"]
        (row,) = re.findall(rf"^\| {name} \| (.*) \|$", TEXT, re.MULTILINE)
        cells = row.split(" | ")
        assert cells[:4] == [
            f"{card['parameters']:,}",
            f"{accuracy['force_rmse_ev_per_angstrom']:.3f}",
            f"{accuracy['force_r2']:.4f}",
            f"{accuracy['force_angle_deg']:.1f}",
        ]
        for cell, atoms in zip(cells[4:], (22, 1000), strict=True):
            (measured,) = [
                one["ms"]
                for one in kernels
                if (one["measurement"], one["model"], one["backend"]) == ("kernels", name, "native")
                and (one["atoms"], one["threads"]) == (atoms, 1)
            ]
            # To the digits shown.
            assert float(cell.removesuffix(" ms")) == pytest.approx(measured, rel=0.06)
