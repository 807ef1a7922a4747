"""What the settings of all benchmarks have in common: lists of words, and the checks of numbers."""

from mlff_student.archive.registry import available_models
from mlff_student.core.errors import InputError
from mlff_student.core.results import machine_facts


def words_of(text: str) -> tuple[str, ...]:
    """Words of a list with commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def models_of(text: str) -> tuple[str, ...]:
    """Models of a list with commas, or `all` shipped ones."""
    return tuple(available_models()) if text == "all" else words_of(text)


def check_models(models: tuple[str, ...]) -> None:
    """Raise InputError where no model is to be measured."""
    if not models:
        raise InputError("no models to measure")


def check_atoms(atoms: tuple[int, ...]) -> None:
    """Raise InputError for a structure of fewer than two atoms."""
    if atoms and min(atoms) < 2:
        raise InputError(f"atoms must be 2 or more, got {min(atoms)}")


def check_cores(name: str, counts: tuple[int, ...]) -> None:
    """Raise InputError for a number of threads or ranks that the cores here cannot take."""
    cores = machine_facts()["cores"]
    if bad := [count for count in counts if not 1 <= count <= cores]:
        raise InputError(f"{name} must be 1 to {cores}, the cores here; got {bad[0]}")


def check_positive(name: str, value: float) -> None:
    """Raise InputError for a number that is not positive and finite."""
    if not 0.0 < value < float("inf"):
        raise InputError(f"{name} must be positive, got {value}")
