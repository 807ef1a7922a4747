"""What a user sees of an error, and the names that the command line prints."""

import errno
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mlff_student import __version__
from mlff_student.cli.common import default_folder, run, shell_path, show
from mlff_student.core.errors import (
    ArchiveError,
    InputError,
    MissingDependencyError,
    RunStoppedError,
)

COMMAND = str(Path(sys.executable).with_name("mlff-student"))


def end_of(error: BaseException, capsys: pytest.CaptureFixture) -> tuple[object, str]:
    """Exit status and standard error of a program that raises an error."""

    def program() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        run(program)
    output, errors = capsys.readouterr()
    assert output == ""
    return end.value.code, errors


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (InputError("no file [red]a[/].xyz :car:"), 2, "error: no file [red]a[/].xyz :car:\n"),
        (ArchiveError("damaged"), 2, "error: damaged\n"),
        (MissingDependencyError("no lmp"), 3, "error: no lmp\n"),
        (RunStoppedError("too hot"), 1, "error: too hot\n"),
        (KeyboardInterrupt(), 130, "error: stopped\n"),
        (MemoryError(), 2, "error: there is not enough memory\n"),
        (
            PermissionError(errno.EACCES, "Permission denied", "secret.xyz"),
            2,
            "error: cannot read or write secret.xyz: Permission denied\n",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            2,
            "error: cannot read or write a file: No space left on device\n",
        ),
    ],
)
def test_expected_errors(error, status, message, capsys):
    assert end_of(error, capsys) == (status, message)


@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), OSError("no number")])
def test_bug_report(error, capsys, tmp_path, monkeypatch):
    """A status of its own; the file has the command, the version and the traceback."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["mlff-student", "md", "two words.xyz"])
    status, message = end_of(error, capsys)
    (report,) = tmp_path.iterdir()
    assert status == 70
    assert f"{type(error).__name__}: {error}" in message and str(report) in message
    assert "Traceback" not in message
    text = report.read_text()
    assert "command: mlff-student md 'two words.xyz'" in text
    assert f"mlff-student: {__version__}" in text and "raise error" in text


def test_bug_report_without_a_place_for_its_file(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    status, message = end_of(ZeroDivisionError("by zero"), capsys)
    assert status == 70
    assert "Traceback" in message and f"mlff-student: {__version__}" in message


@pytest.mark.parametrize(
    "variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}]
)
def test_terminal_without_accents(variables):
    """A text and an error that have accents."""
    script = (
        "from mlff_student.cli.common import run, show\n"
        "from mlff_student.core.errors import InputError\n"
        "def program():\n"
        "    show('R\\u00b2')\n"
        "    raise InputError('no file \\u00e9t\\u00e9.xyz')\n"
        "run(program)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONCOERCECLOCALE": "0"} | variables,
        capture_output=True,
        timeout=120,
    )
    assert result.returncode == 2
    assert result.stdout == rb"R\xb2" + b"\n"
    assert result.stderr == rb"error: no file \xe9t\xe9.xyz" + b"\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_output_that_cannot_be_written():
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [COMMAND, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120
        )
    assert result.returncode == 2
    assert result.stderr == "error: cannot read or write a file: No space left on device\n"


def test_printed_paths_are_those_of_a_shell(capsys):
    for name in ("two words", "it's", "$HOME", "-rf", "#1", "new\nline", ":car: [red]", "x" * 200):
        show(f"printf %s {shell_path(Path(name))}")
        line = capsys.readouterr().out
        assert Path(shlex.split(line)[-1]) == Path(name)
        printed = subprocess.run(["sh", "-c", line], capture_output=True, text=True).stdout
        assert Path(printed) == Path(name)


def test_default_folder(tmp_path, monkeypatch):
    """One folder for each structure, whose name a file system accepts."""
    monkeypatch.chdir(tmp_path)
    Path("été 1.xyz").touch()
    assert default_folder("été 1.xyz", "ase") == Path("runs/été 1-ase")
    assert default_folder("CCO", "ase") == Path("runs/CCO-ase")
    smiles = ("CC.O", "CC.C", "C/C=C/C", "C/C=C\\C", "C" * 300, "C" * 299 + "O", "ü" * 300)
    folders = {default_folder(text, "ase") for text in smiles}
    assert len(folders) == len(smiles)
    for folder in folders:
        assert folder.parent == Path("runs")
        folder.mkdir(parents=True)
