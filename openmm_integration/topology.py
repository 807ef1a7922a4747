"""Structures for OpenMM: topology and positions with units from any file a chemist has."""

from openmm import Vec3, unit
from openmm.app import Element, Topology

from mlff_student.structures.checks import check_structure
from mlff_student.structures.reading import Structure, in_engine_orientation, read_structure


def load_structure(source: str) -> tuple[Topology, unit.Quantity]:
    """Topology and positions (nm) of a PDB, PDBx/mmCIF, SDF, MOL, XYZ or extended XYZ file, or of
    a SMILES string; a periodic one turned so that OpenMM can take its box.

    Raises
    ------
    InputError : unreadable, or a structure that no student may be given (unknown elements, missing
        hydrogens, overlapping atoms).
    """
    structure = read_structure(source)
    check_structure(structure.atoms)
    structure = in_engine_orientation(structure)
    return openmm_topology(structure), structure.atoms.positions * unit.angstrom


def openmm_topology(structure: Structure) -> Topology:
    """OpenMM topology with the structure's atoms, bonds and box (see `in_engine_orientation`)."""
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
