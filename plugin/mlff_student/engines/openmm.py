"""Imports the package `openmm_integration`, which contains everything that uses OpenMM."""

from importlib import import_module
from types import ModuleType

from mlff_student.core.errors import MissingDependencyError


def openmm_module(name: str = "") -> ModuleType:
    """Import a module of `openmm_integration`.

    Parameters
    ----------
    name : str
        Name of the module; the package itself if empty.

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
