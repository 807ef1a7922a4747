"""Functions that read and check the settings of all benchmarks."""

from mlff_student.archive.registry import available_models
from mlff_student.core.errors import InputError
from mlff_student.core.results import machine_facts


def words_of(text: str) -> tuple[str, ...]:
    """Return the words of a text that are separated by commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def models_of(text: str) -> tuple[str, ...]:
    """Return the models of a text, separated by commas; `all` means all shipped models."""
    return tuple(available_models()) if text == "all" else words_of(text)


def check_models(models: tuple[str, ...]) -> None:
    """Check that there is a model to measure.

    Raises
    ------
    InputError
        There is none.
    """
    if not models:
        raise InputError("no models to measure; give names or paths, or all")


def check_atoms(atoms: tuple[int, ...]) -> None:
    """Check the sizes of random structures.

    Raises
    ------
    InputError
        A structure has fewer than two atoms.
    """
    if atoms and min(atoms) < 2:
        raise InputError(f"atoms must be 2 or more, got {min(atoms)}")


def check_cores(name: str, counts: tuple[int, ...]) -> None:
    """Check that this machine has enough cores.

    Parameters
    ----------
    name : str
        "threads" or "ranks", for the message.
    counts : tuple of int
        Numbers of threads or ranks.

    Raises
    ------
    InputError
        A number is less than 1 or larger than the number of cores.
    """
    cores = machine_facts()["cores"]
    if bad := [count for count in counts if not 1 <= count <= cores]:
        raise InputError(
            f"{name} must be 1 to {cores}, the number of cores of this machine; got {bad[0]}"
        )


def check_positive(name: str, value: float) -> None:
    """Check that a number is positive and finite.

    Raises
    ------
    InputError
        It is not.
    """
    if not 0.0 < value < float("inf"):
        raise InputError(f"{name} must be positive, got {value}")
