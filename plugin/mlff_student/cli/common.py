"""Functions and options that the commands share: `--json`, `--quiet`, errors and Ctrl-C."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import get_console
from rich.console import Console
from rich.markup import escape

from mlff_student.core.errors import InputError, StudentError
from mlff_student.core.files import require_writable

console = Console()

INTERRUPTED = 130  # exit status of a program ended by Ctrl-C


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
    """Run a program; print an error of this project in one line, and exit with its status.

    Parameters
    ----------
    program : callable
        Function without arguments, such as the Typer application.
    """
    try:
        program()
    except StudentError as error:
        Console(stderr=True).print(
            f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True
        )
        sys.exit(error.exit_status)


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
