"""Structures for OpenMM: topology and positions with units from any file a chemist has."""

from mlff_student.structure import Structure, check_structure, read_structure
from openmm import Vec3, unit
from openmm.app import Topology


def load_structure(source: str) -> tuple[Topology, unit.Quantity]:
    """Topology and positions (nm) of a PDB, PDBx/mmCIF, SDF, MOL, XYZ or extended XYZ file, or of
    a SMILES string.

    Raises
    ------
    InputError : unreadable, or a structure that no student may be given (unknown elements, missing
        hydrogens, overlapping atoms).
    """
    structure = read_structure(source)
    check_structure(structure.atoms)
    return openmm_topology(structure), structure.atoms.positions * unit.angstrom


def openmm_topology(structure: Structure) -> Topology:
    """OpenMM topology with the structure's atoms, bonds and box."""
    topology = structure.topology.to_openmm()
    if structure.atoms.pbc.all():
        cell = structure.atoms.cell.standard_form()[0].array
        topology.setPeriodicBoxVectors([Vec3(*row) for row in cell] * unit.angstrom)
    return topology
