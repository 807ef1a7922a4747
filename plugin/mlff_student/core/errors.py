"""The project's exceptions. A message says what was found, what was expected and what to do."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Any


class StudentError(Exception):
    """Base of all errors this package raises on purpose; the command line prints it and exits."""

    exit_status = 2


class InputError(StudentError, ValueError):
    """A structure, option or file that cannot be used."""


class ArchiveError(StudentError):
    """A model archive or checkpoint that is missing, damaged, foreign or of another version."""


class MissingDependencyError(StudentError, ImportError):
    """An engine, plug-in or library that is not installed or does not load."""

    exit_status = 3


class InterruptedRunError(StudentError):
    """A run that was ended from outside: by a signal, a full disk or too little memory.

    It says nothing about the model, and the same command resumes it.
    """


class RunStoppedError(StudentError):
    """A run that a monitor stopped because a figure left its threshold."""

    exit_status = 1


def check_key(names: Iterable[Any], known: Collection[str], where: str) -> None:
    """Refuse names that are not known.

    Parameters
    ----------
    names : Iterable[Any]
        Names to check, such as the keys of a mapping.
    known : Collection[str]
        Names that are allowed.
    where : str
        What the names belong to, for the message.

    Raises
    ------
    InputError
        A name is unknown; the message gives the nearest known name.
    """
    for key in names:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise InputError(f"{where}: unknown key {key!r}; {hint}")
