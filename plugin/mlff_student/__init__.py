"""Small, fast force fields distilled from big slow ones, for OpenMM, LAMMPS and ASE."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlff_student.engines.ase.calculator import StudentForceFieldCalculator

__all__ = ["StudentForceFieldCalculator", "__version__"]

try:
    __version__ = version("mlff-student")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    """Import the calculator, and torch with it, when it is asked for."""
    if name == "StudentForceFieldCalculator":
        from mlff_student.engines.ase.calculator import StudentForceFieldCalculator

        return StudentForceFieldCalculator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
