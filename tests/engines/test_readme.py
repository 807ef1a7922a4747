"""What README and documentation show runs: Python, LAMMPS lines, options of commands."""

import re
import shlex
import subprocess
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
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs" / "pages").rglob("*.md"))
FOLDERS = [
    ROOT / folder / "README.md"
    for folder in ("benchmarks", "examples", "lammps", "openmm_integration", "plugin/csrc")
]
TOP = ("benchmarks", "checkpoints", "docs", "examples", "lammps", "openmm_integration", "plugin")
TEXT = README.read_text()
ETHANOL_EV = -310.0  # about


def blocks(section: str) -> list[str]:
    """Code blocks under a heading of the README; before the first heading if it is empty."""
    text = TEXT.split(f"\n## {section}\n")[1] if section else TEXT
    return re.findall(r"^```\w+\n(.*?)\n```$", text.split("\n## ")[0], re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("examples").symlink_to(ROOT / "examples")
    return tmp_path


def test_ase(folder):
    exec(blocks("")[0], names := {})
    assert names["atoms"].get_forces().shape == (9, 3)
    assert names["atoms"].get_potential_energy() == pytest.approx(ETHANOL_EV, abs=0.2)


def test_openmm(folder):
    names: dict[str, Any] = {}
    code = blocks("OpenMM")[0].replace("step(1000)", "step(10)")
    exec(code, names)
    assert names["simulation"].currentStep == 10


def test_lammps(folder):
    """Its lines for a pair style in a script for ethanol, with the archive that they name."""
    atoms = read("examples/ethanol.xyz")
    write_data(atoms, Path("molecule.data"))
    (lines,) = [block for block in blocks("LAMMPS") if "pair_coeff" in block]
    ((archive, elements),) = re.findall(
        r"^pair_coeff +\* +\* +(\S+) +([A-Z][\w ]*\w)", lines, re.MULTILINE
    )
    assert elements.split() == sorted(set(atoms.symbols))
    export(checkpoint_path(Path(archive).stem), Path(archive), verify=False)
    head = "units metal\natom_style atomic\nboundary m m m\nread_data molecule.data\n"
    Path("in.mine").write_text(f"{head}{lines}\nrun 0\n")
    command = [lammps_executable(), "-in", "in.mine"]
    result = subprocess.run(
        command, env=lammps_environment(), capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stdout[-2000:]
    (energy,) = re.findall(r"^ +0 +\S+ +(-\d+\.\d+)", result.stdout, re.MULTILINE)
    assert float(energy) == pytest.approx(ETHANOL_EV, abs=0.2)


@pytest.mark.parametrize("path", [README, *PAGES], ids=lambda path: path.stem)
def test_commands_have_the_options_shown(path):
    text = path.read_text().replace("\\\n", " ")
    lines = re.findall(r"^ *((?:mlff-student|python export\.py) .*?)(?: +#.*)?$", text, re.M)
    for line in lines:
        words = shlex.split(line.replace("python export.py", "mlff-student export"))[1:]
        command: Any = typer.main.get_command(app)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        command.make_context("mlff-student", words)  # parses, and runs nothing


def test_extras_exist():
    """The extras that the page on installation lists are those of pyproject.toml."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs" / "pages" / "install.md").read_text()
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", page, re.M)
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert listed == set(extras["optional-dependencies"])


@pytest.mark.parametrize("path", [README, *PAGES, *FOLDERS], ids=lambda path: path.stem)
def test_files_that_are_named_exist(path):
    """Files below the top folders, in code; `NAME` stands for any."""
    code = " ".join(re.findall(r"`[^`\n]+`|^    .*$", path.read_text(), re.MULTILINE))
    for name in re.findall(rf"(?<![\w/.-])(?:{'|'.join(TOP)})/[\w./-]+\.\w+", code):
        assert "NAME" in name or (ROOT / name).exists(), name


@pytest.mark.parametrize("path", [README, *FOLDERS], ids=lambda path: path.parent.name)
def test_links_lead_somewhere(path):
    """Relative ones; `make docs` follows those of the pages."""
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / link).exists(), link
