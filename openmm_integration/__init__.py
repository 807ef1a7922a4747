"""Students in OpenMM: forces, systems, a monitor for runs, and structures.

Example: `from openmm_integration import create_system, student_force`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .force import student_force
    from .monitor import Monitor
    from .system import create_system
    from .topology import load_structure

__all__ = ["Monitor", "create_system", "load_structure", "student_force"]

_MODULES = {
    "Monitor": "monitor",
    "create_system": "system",
    "load_structure": "topology",
    "student_force": "force",
}


def __getattr__(name: str) -> Any:
    """Import a name on first use, because openmm-ml imports this package for every potential."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
