"""OpenMM, which lives in the package `openmm_integration` and is reached by name only."""

from importlib import import_module
from types import ModuleType

from mlff_student.core.errors import MissingDependencyError


def openmm_module(name: str = "") -> ModuleType:
    """Module of `openmm_integration`, or that package itself.

    Raises
    ------
    MissingDependencyError
        OpenMM is not installed or does not load.
    """
    try:
        return import_module(".".join(filter(None, ("openmm_integration", name))))
    except ImportError as error:
        raise MissingDependencyError(
            f"OpenMM does not load ({error}); pip install 'mlff-student[openmm]'"
        ) from error
