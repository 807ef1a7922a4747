"""Reads structures for OpenMM: a topology, and positions with units."""

from openmm import Vec3, unit
from openmm.app import Element, Topology

from mlff_student.structures.checks import check_structure
from mlff_student.structures.reading import Structure, in_engine_orientation, read_structure


def load_structure(source: str) -> tuple[Topology, unit.Quantity]:
    """Read a structure for OpenMM.

    A periodic structure is rotated so that its box has the orientation that OpenMM requires.

    Parameters
    ----------
    source : str
        PDB, PDBx/mmCIF, SDF, MOL, XYZ or extended XYZ file, or a SMILES string.

    Returns
    -------
    topology : Topology
        OpenMM topology with elements, bonds and box.
    positions : unit.Quantity
        Positions (N, 3) with their unit.

    Raises
    ------
    InputError
        The source cannot be read, or the structure is unusable (unknown elements, missing
        hydrogens, overlapping atoms).
    """
    structure = read_structure(source)
    check_structure(structure.atoms)
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
                element = Element.getByAtomicNumber(atom.element.atomic_number)
                members.append(topology.addAtom(atom.name, element, new_residue))
    for first, second in structure.topology.bonds:
        topology.addBond(members[first.index], members[second.index])
    if structure.atoms.pbc.all():
        box = [Vec3(*row) for row in structure.atoms.cell.array]
        topology.setPeriodicBoxVectors(box * unit.angstrom)
    return topology
