"""Run protocols of simulations with a model, and judge whether it can be trusted in MD."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlff_student.validation.harness import NVEResult, nve

__all__ = ["NVEResult", "nve"]


def __getattr__(name: str) -> Any:
    """Import the harness only if it is used, because the command line must not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mlff_student.validation import harness

    return getattr(harness, name)
