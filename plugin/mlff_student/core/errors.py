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
    """A run that was ended from outside, by a signal or for want of disk or memory: it says nothing
    of the model, and the same command goes on with it.
    """


class RunStoppedError(StudentError):
    """A run that a monitor stopped because a figure left its threshold."""

    exit_status = 1


def check_key(names: Iterable[Any], known: Collection[str], where: str) -> None:
    """Refuse a name (of a mapping's key, say) that is not known, with the nearest one that is.

    Raises
    ------
    InputError : see above.
    """
    for key in names:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise InputError(f"{where}: unknown key {key!r}; {hint}")
