"""Exceptions of this project; a message says what was found, what was expected and what to do."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Any


class StudentError(Exception):
    """Base class of all errors that this package raises on purpose.

    The command line prints the message and exits with `exit_status`.
    """

    exit_status = 2


class InputError(StudentError, ValueError):
    """Raised for a structure, option or file that cannot be used."""


class ArchiveError(StudentError):
    """Raised for a model archive or checkpoint that is missing, damaged or not of this format."""


class MissingDependencyError(StudentError, ImportError):
    """Raised for an engine, plug-in or library that is not installed or does not load."""

    exit_status = 3


class InterruptedRunError(StudentError):
    """Raised for a run that a signal, a full disk or too little memory ended.

    Such an end says nothing about the model, and the same command resumes the run.
    """


class RunStoppedError(StudentError):
    """Raised for a run that a monitor stopped because a figure went beyond its threshold."""

    exit_status = 1


def check_key(names: Iterable[Any], known: Collection[str], where: str) -> None:
    """Raise an error for the first name that is not known.

    Parameters
    ----------
    names : Iterable[Any]
        Names to check, such as the keys of a mapping.
    known : Collection[str]
        Names that are allowed.
    where : str
        File, option or mapping that the names belong to; the message begins with it.

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
