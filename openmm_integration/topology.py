"""Reads structures for OpenMM: a topology, and positions with units."""

from collections.abc import Collection

import numpy as np
from openmm import Vec3, unit
from openmm.app import Element, Topology

from mlff_student.structures.checks import (
    check_charge,
    check_masses,
    check_parity,
    check_structure,
    uncancelled_charge,
)
from mlff_student.structures.reading import Structure, in_engine_orientation, read_structure


def load_structure(source: str) -> tuple[Topology, unit.Quantity]:
    """Read a structure for OpenMM.

    A periodic structure is rotated so that its box has the orientation that OpenMM requires.

    Parameters
    ----------
    source : str
        File that `mlff_student.structures.reading.read_structure` reads, or a SMILES string.

    Returns
    -------
    topology : Topology
        OpenMM topology with elements, bonds and box.
    positions : unit.Quantity
        Positions (N, 3) with their unit.

    Raises
    ------
    InputError
        The source cannot be read, or the structure is unusable (unknown elements, an ion or a
        radical, missing hydrogens, overlapping atoms, isotopes other than deuterium).
    """
    structure = read_structure(source)
    check_structure(structure.atoms)
    check_masses(structure.atoms)
    structure = in_engine_orientation(structure)
    return openmm_topology(structure), structure.atoms.positions * unit.angstrom


def openmm_topology(structure: Structure) -> Topology:
    """Return an OpenMM topology with the atoms, bonds and box of a structure.

    A periodic structure must come from `in_engine_orientation`.
    """
    topology = Topology()
    members = []
    for chain in structure.topology.chains:
        new_chain = topology.addChain()
        for residue in chain.residues:
            new_residue = topology.addResidue(residue.name, new_chain, str(residue.resSeq))
            for atom in residue.atoms:
                element = Element.getBySymbol(atom.element.symbol)  # D is deuterium
                members.append(topology.addAtom(atom.name, element, new_residue))
    for first, second in structure.topology.bonds:
        topology.addBond(members[first.index], members[second.index])
    if structure.atoms.pbc.all():
        box = [Vec3(*row) for row in structure.atoms.cell.array]
        topology.setPeriodicBoxVectors(box * unit.angstrom)
    return topology


def check_electrons(
    topology: Topology,
    atoms: Collection[int] | None = None,
    *,
    charged: bool = False,
    charge: float = 0.0,
) -> None:
    """Refuse radicals, and ions unless they are allowed.

    Parameters
    ----------
    topology : Topology
        OpenMM topology.
    atoms : Collection[int], optional
        Indices of the student's atoms; None means all. Electrons are not counted if a bond leads to
        another atom.
    charged : bool
        Whether ions are allowed; see `mlff_student.structures.checks.allows_charges`.
    charge : float
        Total charge if the topology has no formal charges, elementary charges.

    Raises
    ------
    InputError
        The number of electrons is odd. Unless ions are allowed, also if the formal charges of the
        atoms do not sum to 0, or an atom has a formal charge that no bonded atom cancels.
    """
    chosen = None if atoms is None else set(atoms)
    members = [a for a in topology.atoms() if a.element and (chosen is None or a.index in chosen)]
    charges = {atom.index: getattr(atom, "formalCharge", None) or 0 for atom in members}
    check_charge(sum(charges.values()), charged=charged)
    bonds = [(first.index, second.index) for first, second in topology.bonds()]
    inside = [pair for pair in bonds if charges.keys() >= set(pair)]
    cancelled = {k for i, j in inside if charges[i] * charges[j] < 0 for k in (i, j)}
    separated = [k for k, formal in charges.items() if formal and k not in cancelled]
    if separated and not charged:
        raise uncancelled_charge(
            f"{separated[0]} ({members[list(charges).index(separated[0])].name})",
            charges[separated[0]],
        )
    if chosen and any((i in chosen) != (j in chosen) for i, j in bonds):
        return
    numbers = np.array([atom.element.atomic_number for atom in members])
    check_parity(numbers, sum(charges.values()) or charge, charged=charged)
