"""The teachers `orb-v2` and `orb-v3`: an ASE calculator of a pretrained Orb model."""

from typing import Any

from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes


def orb_calculator(loaded: Any) -> Calculator:
    """Calculator of neutral singlets by a pretrained Orb model.

    Orb v3 OMol needs a charge and a spin multiplicity, which are given here.

    Parameters
    ----------
    loaded : Any
        What the loader of orb-models returns: the model, or the model and its atoms adapter since
        orb-models 0.6.
    """
    try:
        from orb_models.forcefield.inference.calculator import ORBCalculator
    except ModuleNotFoundError:  # orb-models 0.5, the last for Python 3.11
        from orb_models.forcefield.calculator import ORBCalculator

    class NeutralSinglet(ORBCalculator):
        def calculate(
            self,
            atoms: Atoms,
            properties: list[str] | None = None,
            system_changes: list[str] = all_changes,
        ) -> None:
            atoms = atoms.copy()
            atoms.info = {"charge": 0, "spin": 1} | atoms.info
            super().calculate(atoms, properties, system_changes)

    return NeutralSinglet(*(loaded if isinstance(loaded, tuple) else (loaded,)))
