"""The teachers `gfn2-xtb` and `gfn1-xtb`, which read charge and spin from a structure."""

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_changes
from tblite.ase import TBLite

from mlff_student.structures.checks import charge_and_multiplicity


class XTB(TBLite):
    """ASE calculator of tblite that reads the total charge and the spin multiplicity from `info`.

    tblite itself only knows initial charges and magnetic moments of atoms, so that it computes a
    structure with `atoms.info["charge"] = 1` as neutral. See
    `mlff_student.structures.checks.charge_and_multiplicity` for what is read, and TBLite for the
    options.
    """

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """Return the changes since the last call, also those of charge and spin, unlike ASE."""
        return super().check_state(_with_totals(atoms), tol)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Compute all properties of a structure; ASE calls this.

        Raises
        ------
        InputError
            The charge or the spin that the structure states is not a number.
        """
        atoms = self.atoms if atoms is None else _with_totals(atoms)
        super().calculate(atoms, properties, system_changes)


def _with_totals(atoms: Atoms) -> Atoms:
    """Return a copy whose initial charges and magnetic moments sum to what the structure states."""
    charge, multiplicity = charge_and_multiplicity(atoms)
    copy = atoms.copy()
    first = np.arange(len(atoms)) == 0
    copy.set_initial_charges(charge * first)
    copy.set_initial_magnetic_moments((multiplicity - 1.0) * first)
    return copy
