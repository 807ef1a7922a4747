"""The project's exceptions. A message says what was found, what was expected and what to do."""


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
