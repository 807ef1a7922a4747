"""The teachers `orb-v2` and `orb-v3`, ASE calculators of pretrained Orb models."""

from typing import Any

from ase.calculators.calculator import Calculator

from mlff_student.teachers.neutral import neutral_by_default


def orb_calculator(loaded: Any) -> Calculator:
    """Make an ASE calculator of a pretrained Orb model; see `neutral_by_default`.

    Parameters
    ----------
    loaded : Any
        Return value of a loader of orb-models: the model, or since orb-models 0.6 the model and its
        atoms adapter.
    """
    try:
        from orb_models.forcefield.inference.calculator import ORBCalculator
    except ModuleNotFoundError:  # orb-models 0.5, the last for Python 3.11
        from orb_models.forcefield.calculator import ORBCalculator

    return neutral_by_default(ORBCalculator(*(loaded if isinstance(loaded, tuple) else (loaded,))))
