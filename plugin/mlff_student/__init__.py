"""Small, fast force fields, distilled from large and slow ones, for OpenMM, LAMMPS and ASE."""

from typing import TYPE_CHECKING, Any

from mlff_student.core.version import __version__

if TYPE_CHECKING:
    from mlff_student.engines.ase.calculator import StudentForceFieldCalculator

__all__ = ["StudentForceFieldCalculator", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the calculator, and torch with it, only when the calculator is used."""
    if name == "StudentForceFieldCalculator":
        from mlff_student.engines.ase.calculator import StudentForceFieldCalculator

        return StudentForceFieldCalculator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
