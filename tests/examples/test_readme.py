"""What README shows runs as it stands: its Python, its LAMMPS lines, and the options it names."""

import re
import shlex
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest
import typer
from ase.io import read

from mlff_student.checkpoints import checkpoint_path
from mlff_student.cli import app
from mlff_student.export import export
from mlff_student.lammps_run import lammps_environment, lammps_executable, write_data

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
    lines = blocks("LAMMPS")[1]
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


def test_table_is_what_was_measured():
    """Accuracy of the cards, times of the kernels' records."""
    import json

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
