"""Functions and options that the commands share: `--json`, `--quiet`, errors and Ctrl-C."""

import errno
import hashlib
import io
import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import get_console
from rich.console import Console
from rich.text import Text

from mlff_student.core.errors import InputError, MissingDependencyError, StudentError
from mlff_student.core.files import CANNOT_WRITE, require_writable

console = Console()

BUG = 70  # exit status of a program with an error that nobody expected, as in sysexits.h
INTERRUPTED = 130  # exit status of a program ended by Ctrl-C
# Errors of the operating system that a user can understand and fix.
OF_THE_MACHINE = (
    *CANNOT_WRITE, errno.EISDIR, errno.ELOOP, errno.EMFILE, errno.ENAMETOOLONG, errno.ENFILE,
    errno.ENOMEM, errno.ENOTDIR, errno.ESTALE,
)  # fmt: skip
LONGEST_LABEL = 100  # bytes of a structure's name in the name of a folder


def json_option(help_text: str) -> Any:
    """Make the option `--json FILE`; the command does not start if the file cannot be written.

    Parameters
    ----------
    help_text : str
        Help text of the option.
    """

    def writable(path: Path | None) -> Path | None:
        if path:
            require_writable(path)
        return path

    return typer.Option("--json", help=help_text, callback=writable)


Json = Annotated[Path | None, json_option("Also write the results to this JSON file.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress bar and no table.")]


class Backend(StrEnum):
    """Compute backend of a student."""

    auto = "auto"
    native = "native"
    portable = "portable"


def run(program: Callable[[], Any]) -> None:
    """Run a program; turn an error into a message and an exit status.

    An error of this project is printed as it is. An error that nobody expected is a bug: its
    traceback goes into a file, and the message says where that file is.

    Parameters
    ----------
    program : callable
        Function without arguments, such as the Typer application.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may lack characters
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            program()
        finally:
            if sys.stdout:
                sys.stdout.flush()
    except StudentError as error:
        _fail(str(error), error.exit_status)
    except KeyboardInterrupt:
        _fail("stopped", INTERRUPTED)
    except MemoryError:
        _fail("there is not enough memory", InputError.exit_status)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
            name = error.filename or "a file"
            _fail(f"cannot read or write {name}: {error.strerror}", InputError.exit_status)
        if isinstance(error, ModuleNotFoundError) and error.name == "torch":
            from mlff_student.core.installation import install_command

            reason = f"this command needs torch, which is not installed: {install_command('torch')}"
            _fail(reason, MissingDependencyError.exit_status)
        _fail(_bug_report(error), BUG)


def _fail(message: str, status: int) -> None:
    """Print a message in one line on standard error, and exit."""
    if sys.stdout:
        try:
            sys.stdout.flush()
        except OSError:  # Python would try again, and end with a status of its own
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    text = Text.assemble(("error:", "bold red"), f" {message}")
    with suppress(OSError):
        Console(stderr=True).print(text, soft_wrap=True)
    sys.exit(status)


def _bug_report(error: Exception) -> str:
    """Write a file with what the developers need to find a bug; return the message for the user."""
    from mlff_student.core.results import machine_facts, package_versions
    from mlff_student.core.version import __version__

    facts = {"mlff-student": __version__, **machine_facts(), **package_versions()}
    content = "\n".join(
        [
            f"command: {shlex.join(sys.argv)}",
            *(f"{key}: {value}" for key, value in facts.items()),
            "",
            *traceback.format_exception(error),
        ]
    )
    summary = traceback.format_exception_only(error)[-1].strip()
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="mlff-student-bug-", suffix=".txt", delete=False,
            encoding="utf-8", errors="backslashreplace",
        ) as file:  # fmt: skip
            file.write(content)
    except OSError:
        return f"this is a bug in mlff-student; please send this to its developers:\n{content}"
    return (
        f"this is a bug in mlff-student: {summary}\nPlease send the file {file.name} to its "
        "developers. It contains the command, the versions and the traceback"
    )


def show(text: str) -> None:
    """Print a text as it is, such as a command with paths: no line is broken, no word coloured."""
    console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)


def shell_path(path: Path) -> str:
    """Return a path as a shell reads it, for a command that a user copies."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def default_folder(structure: str, ending: str) -> Path:
    """Return the folder of a command's files: in runs/, with the name of a structure.

    Parameters
    ----------
    structure : str
        File or SMILES string.
    ending : str
        End of the folder's name.
    """
    is_file = os.path.exists(structure)
    name = Path(structure).stem if is_file else structure.replace("/", "_")
    if len(os.fsencode(name)) > LONGEST_LABEL:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()
        name = f"{name[: LONGEST_LABEL // 4]}-{digest[:8]}"  # four bytes are one character
    return Path("runs") / f"{name or 'molecule'}-{ending}"


def quieten(quiet: bool) -> None:
    """Print only errors, and show no progress bar, if `quiet`; otherwise undo this."""
    for output in (console, get_console()):  # progress bars use the second
        output.quiet = quiet


@contextmanager
def resumable() -> Iterator[None]:
    """End a long command on Ctrl-C with a message that says how to resume."""
    try:
        yield
    except KeyboardInterrupt:
        console.print("\nstopped; nothing is lost: run the same command again to resume")
        raise typer.Exit(INTERRUPTED) from None


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """Read whole numbers that are separated by commas.

    Parameters
    ----------
    option : str
        Name of the option, for the message.
    text : str
        Value of the option, such as "1,2".

    Raises
    ------
    InputError
        A part of the text is not a whole number.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"{option} takes whole numbers separated by commas, got {text!r}"
        ) from None
