"""The teachers `orb-v2` and `orb-v3`, ASE calculators of pretrained Orb models."""

from typing import Any

from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes


def orb_calculator(loaded: Any) -> Calculator:
    """Make an ASE calculator of a pretrained Orb model that treats structures as neutral singlets.

    Orb v3 OMol needs a charge and a spin multiplicity. The calculator sets them to 0 and 1 unless
    `atoms.info` has "charge" and "spin".

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
