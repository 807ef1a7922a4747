"""Turn the rotatable bonds of a molecule, rigidly or with all other coordinates relaxed."""

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from mlff_student.structures.checks import connected_fragments
from mlff_student.structures.smiles import rdkit_chem

CONSTRAINT = 1000.0  # kcal/mol/degree^2, force constant that holds the torsion angle in MMFF94
RELAXATION_STEPS = 200
LINEAR = 170.0  # degree, angle beyond which three atoms define no torsion

Bonds = list[tuple[int, int]]


def rotatable_bonds(atoms: Atoms, bonds: Bonds) -> list[tuple[int, int, int, int]]:
    """Return a torsion i-j-k-l for each bond j-k that divides the molecule when it is cut.

    Single and double bonds, amides, esters and disulfides count; bonds in rings, bonds to an atom
    that has no other neighbour, and bonds whose other neighbours are in line with them do not.

    Parameters
    ----------
    atoms : Atoms
        Molecule.
    bonds : list of tuple of int
        Pairs of bonded atoms.
    """
    neighbours: list[list[int]] = [[] for _ in atoms]
    for first, second in bonds:
        neighbours[first].append(second)
        neighbours[second].append(first)
    torsions = []
    for j, k in bonds:
        outer = [
            [a for a in neighbours[near] if a != far and atoms.get_angle(a, near, far) < LINEAR]
            for near, far in ((j, k), (k, j))
        ]
        fragment = connected_fragments(len(atoms), [bond for bond in bonds if bond != (j, k)])
        if all(outer) and fragment[j] != fragment[k]:
            torsions.append((outer[0][0], j, k, outer[1][0]))
    return torsions


def side_of_bond(atoms: int, bonds: Bonds, bond: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which atoms move with the second atom of a bond; in a ring, that atom alone.

    Parameters
    ----------
    atoms : int
        Number of atoms.
    bonds : list of tuple of int
        Pairs of bonded atoms.
    bond : tuple of int
        One of these pairs, in any order.

    Returns
    -------
    NDArray[np.bool_]
        (atoms,).
    """
    near, far = bond
    fragment = connected_fragments(atoms, [pair for pair in bonds if set(pair) != {near, far}])
    if fragment[near] == fragment[far]:
        return np.arange(atoms) == far
    return fragment == fragment[far]


def turned(atoms: Atoms, bonds: Bonds, torsion: tuple[int, int, int, int], angle: float) -> Atoms:
    """Return a copy in which one side of a bond is turned about it as a rigid body.

    Parameters
    ----------
    atoms : Atoms
        Molecule.
    bonds : list of tuple of int
        Pairs of bonded atoms.
    torsion : tuple of int
        Torsion i-j-k-l; the side of k is turned about the bond j-k.
    angle : float
        Angle of the rotation, degree.
    """
    _, j, k, _ = torsion
    side = side_of_bond(len(atoms), bonds, (j, k))
    moved = atoms[side]
    moved.rotate(angle, atoms.positions[k] - atoms.positions[j], center=atoms.positions[k])
    copy = atoms.copy()
    copy.positions[side] = moved.positions
    return copy


def relaxed_torsion(smiles: str, atoms: Atoms, torsion: tuple[int, int, int, int]) -> Atoms | None:
    """Relax all coordinates but one torsion angle with MMFF94 (Halgren 1996).

    See doi:10.1002/(SICI)1096-987X(199604)17:5/6<490::AID-JCC1>3.0.CO;2-P.

    Parameters
    ----------
    smiles : str
        SMILES of the molecule; its atoms have the order that `embed` gives them.
    atoms : Atoms
        Molecule with the torsion angle to keep.
    torsion : tuple of int
        Torsion i-j-k-l.

    Returns
    -------
    Atoms or None
        The relaxed molecule; None if MMFF94 has no parameters for it.
    """
    from rdkit.Chem import AllChem, rdForceFieldHelpers
    from rdkit.Chem.rdMolTransforms import GetDihedralDeg

    chem = rdkit_chem()
    molecule = chem.AddHs(chem.MolFromSmiles(smiles))
    properties = AllChem.MMFFGetMoleculeProperties(molecule)
    if properties is None:
        return None
    conformer = chem.Conformer(len(atoms))
    conformer.SetPositions(np.ascontiguousarray(atoms.positions))
    molecule.AddConformer(conformer)
    field = rdForceFieldHelpers.MMFFGetMoleculeForceField(molecule, properties)
    field.Initialize()
    angle = GetDihedralDeg(conformer, *torsion)
    field.MMFFAddTorsionConstraint(*torsion, False, angle, angle, CONSTRAINT)
    field.Minimize(maxIts=RELAXATION_STEPS)
    relaxed = atoms.copy()
    relaxed.positions = molecule.GetConformer().GetPositions()
    return relaxed
