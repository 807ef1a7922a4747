"""Molecules with turned bonds."""

from itertools import pairwise

import numpy as np
import pytest

from mlff_student.structures.smiles import embed
from mlff_student.structures.torsions import relaxed_torsion, rotatable_bonds, turned


@pytest.mark.parametrize(
    ("smiles", "bonds"),
    [
        ("CC=CC", {(0, 1), (1, 2), (2, 3)}),  # a double bond counts
        ("CC(=O)NC", {(0, 1), (1, 3), (3, 4)}),
        ("CSSC", {(0, 1), (1, 2), (2, 3)}),
        ("C1CCCCC1", set()),  # bonds of a ring do not
        ("Cc1ccccc1", {(0, 1)}),
        ("CC#N", set()),  # nitrogen is in line
        ("O", set()),
    ],
)
def test_bonds_that_divide_a_molecule_can_be_turned(smiles: str, bonds: set[tuple[int, int]]):
    atoms, all_bonds = embed(smiles)
    torsions = rotatable_bonds(atoms, all_bonds)
    assert {tuple(sorted(torsion[1:3])) for torsion in torsions} == bonds
    for torsion in torsions:
        assert set(map(frozenset, pairwise(torsion))) <= set(map(frozenset, all_bonds))


@pytest.mark.parametrize("angle", [-77.0, 5.0, 90.0, 180.0])
def test_a_turned_bond_changes_one_torsion_and_no_length_or_angle(angle: float):
    smiles = "CC(=O)NC(C)C(=O)NC"
    atoms, bonds = embed(smiles)
    for torsion in rotatable_bonds(atoms, bonds):
        moved = turned(atoms, bonds, torsion, angle)
        change = moved.get_dihedral(*torsion) - atoms.get_dihedral(*torsion)
        assert np.cos(np.radians(change - angle)) == pytest.approx(1.0, abs=1e-9)
        for i, j in bonds:
            assert moved.get_distance(i, j) == pytest.approx(atoms.get_distance(i, j), abs=1e-9)
        near = [bond for bond in bonds if set(bond) & set(torsion[1:3])]
        for i, j in near:
            for k, end in near:
                if j == k and i != end:
                    expected = atoms.get_angle(i, j, end)
                    assert moved.get_angle(i, j, end) == pytest.approx(expected, abs=1e-6)


def test_relaxation_keeps_the_torsion_and_lowers_the_strain():
    """Butane turned to the eclipsed form: hydrogen atoms make room."""
    atoms, bonds = embed("CCCC")
    (torsion,) = [t for t in rotatable_bonds(atoms, bonds) if set(t[1:3]) == {1, 2}]
    torsion = (0, *torsion[1:3], 3) if torsion[1] == 1 else (3, *torsion[1:3], 0)
    moved = turned(atoms, bonds, torsion, 180.0)
    relaxed = relaxed_torsion("CCCC", moved, torsion)
    assert relaxed is not None
    change = relaxed.get_dihedral(*torsion) - moved.get_dihedral(*torsion)
    assert np.cos(np.radians(change)) == pytest.approx(1.0, abs=1e-4)
    heavy = relaxed.get_distance(0, 3), moved.get_distance(0, 3)
    assert heavy[0] > heavy[1] + 0.02
    assert relaxed_torsion("CC[Se]C", embed("CC[Se]C")[0], (0, 1, 2, 3)) is None
