"""Neutral singlets as the default of teachers that read charge and spin from `atoms.info`."""

from typing import Any

from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

DEFAULTS = {"charge": 0, "spin": 1}  # total charge and spin multiplicity


def neutral_by_default(calculator: Calculator) -> Calculator:
    """Make a calculator treat structures without charge and spin as neutral singlets.

    Orb v3 OMol needs the two values. AIMNet2 uses those of the structure before if there are none.
    ASE does not look at `info`, so that a change of the two alone would give the old results.

    Parameters
    ----------
    calculator : Calculator
        Calculator that reads "charge" and "spin" from `atoms.info`.
    """
    base: Any = type(calculator)

    class NeutralByDefault(base):
        def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
            atoms = _with_defaults(atoms)
            changes = super().check_state(atoms, tol)
            if self.atoms is not None and any(
                atoms.info[key] != self.atoms.info.get(key) for key in DEFAULTS
            ):
                changes.append("initial_charges")
            return changes

        def calculate(
            self,
            atoms: Atoms | None = None,
            properties: list[str] | None = None,
            system_changes: list[str] = all_changes,
        ) -> None:
            atoms = self.atoms if atoms is None else _with_defaults(atoms)
            super().calculate(atoms, properties, system_changes)

    calculator.__class__ = NeutralByDefault
    return calculator


def _with_defaults(atoms: Atoms) -> Atoms:
    copy = atoms.copy()
    copy.info = DEFAULTS | copy.info
    return copy
