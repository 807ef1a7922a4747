"""What the commands share: options, errors as one line and an exit status, Ctrl-C."""

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
    """`--json FILE`, refused before the command begins where the file cannot be written."""

    def writable(path: Path | None) -> Path | None:
        if path:
            require_writable(path)
        return path

    return typer.Option("--json", help=help_text, callback=writable)


Json = Annotated[Path | None, json_option("Also write the results to this file.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar and no table.")]


class Backend(StrEnum):
    """Kernels of the network."""

    auto = "auto"
    native = "native"
    portable = "portable"


def run(program: Callable[[], Any]) -> None:
    """Run a command; an error of the project's own becomes one line and its exit status."""
    try:
        program()
    except StudentError as error:
        Console(stderr=True).print(
            f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True
        )
        sys.exit(error.exit_status)


def quieten(quiet: bool) -> None:
    """Print nothing but errors, and no progress bar; what `--quiet` means to a command."""
    for one in (console, get_console()):  # the second is that of progress bars
        one.quiet = quiet


@contextmanager
def resumable() -> Iterator[None]:
    """Ctrl-C ends a long command with a word on how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        console.print("\nstopped; nothing is lost: the same command goes on from here")
        raise typer.Exit(INTERRUPTED) from None


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """Numbers of a list with commas."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} takes whole numbers with commas, got {text!r}") from None
