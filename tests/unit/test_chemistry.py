"""Lists of the chemistry tests, and the figures that are made of energies."""

import re
from itertools import pairwise

import numpy as np
import pytest
from ase.data.s22 import s22

from mlff_student.core.figures import known_figures
from mlff_student.distill.chemistry import (
    Place,
    barrier_threshold,
    barriers,
    conformers,
    count_isomerisations,
    falls,
    load_chemistry,
    preset_of,
    slope,
    stretched,
)
from mlff_student.distill.molecules import LIBRARY, read_library
from mlff_student.model.student import PRESETS
from mlff_student.structures.smiles import embed, identity
from mlff_student.structures.torsions import rotatable_bonds

CHEMISTRY = load_chemistry()
ELEMENTS = {"H", "C", "N", "O", "F", "P", "S", "Cl"}
BONDS = CHEMISTRY.torsions | CHEMISTRY.bonds


@pytest.mark.parametrize("name", BONDS)
def test_bonds_are_what_their_names_say(name: str):
    place = BONDS[name]
    atoms, bonds = embed(place.smiles)
    assert set(atoms.symbols) <= ELEMENTS
    assert set(place.atoms) in map(set, bonds)
    left, right = re.search(r"(?:^|_)([A-Z][a-z]?)[-=#]([A-Z][a-z]?)(?:_|$)", name).groups()
    assert sorted(atoms.symbols[list(place.atoms)]) == sorted([left, right])
    if name in CHEMISTRY.torsions:
        turning = rotatable_bonds(atoms, bonds)
        assert [set(torsion[1:3]) for torsion in turning].count(set(place.atoms)) == 1


def test_there_are_sixteen_rotations_and_all_dimers_of_s22():
    assert len(CHEMISTRY.torsions) == 16
    dimers = [name for names in CHEMISTRY.dimers.values() for name in names]
    assert sorted(dimers) == sorted(s22)
    assert set(CHEMISTRY.dimer_curves) <= set(dimers)


def test_conformers_are_of_drug_sized_molecules_that_no_student_is_trained_on():
    library = [*read_library(), *read_library(LIBRARY.with_name("condensed.smi"))]
    known = {identity(molecule.smiles) for molecule in library}
    assert len(CHEMISTRY.conformers) == 15
    for smiles in CHEMISTRY.conformers.values():
        assert identity(smiles) not in known
        atoms, bonds = embed(smiles)
        assert 25 <= len(atoms) <= 50 and set(atoms.symbols) <= ELEMENTS
        assert len(rotatable_bonds(atoms, bonds)) >= 3


@pytest.mark.parametrize("name", CHEMISTRY.isomers)
def test_isomers_begin_as_one_of_two(name: str):
    place = CHEMISTRY.isomers[name]
    atoms, bonds = embed(place.smiles)
    assert all(set(pair) in map(set, bonds) for pair in pairwise(place.atoms))
    cosine = np.cos(np.radians(atoms.get_dihedral(*place.atoms)))
    expected = {"Z": 1.0, "E": -1.0}.get(name[0])
    assert abs(cosine) > 0.9
    assert expected is None or np.sign(cosine) == expected


def test_every_limit_is_of_a_known_figure_and_all_presets():
    assert set(CHEMISTRY.limits) <= set(known_figures())
    for limit in CHEMISTRY.limits.values():
        assert set(limit.values) == set(PRESETS)
        strict, _, loose = (limit.threshold(preset).value for preset in PRESETS)
        assert (loose - strict) * (-1 if limit.bound == "least" else 1) >= 0


def test_all_barriers_of_a_rotation_are_compared_at_the_teachers_angles():
    """A disulfide, whose trans barrier is the student's minimum."""
    angle = np.radians(np.arange(0.0, 360.0, 15.0))
    teacher = 3.0 * np.cos(angle) + 4.0 * np.cos(2.0 * angle)
    student = 3.0 * np.cos(angle)
    lowest = teacher.min()
    low = student[teacher.argmin()]
    expected = [[7.0 - lowest, 3.0 - low], [1.0 - lowest, -3.0 - low]]
    np.testing.assert_allclose(barriers(teacher, student), expected)
    assert barriers(teacher, student)[1, 1] < 0.0
    np.testing.assert_allclose(barriers(teacher, teacher + 5.0)[:, 1], np.array(expected)[:, 0])


@pytest.mark.parametrize(("barrier", "limit"), [(90.0, 13.5), (3.0, 0.5)])
def test_limit_of_a_barrier_is_relative_or_absolute(barrier: float, limit: float):
    thresholds = {key: each.threshold("tiny") for key, each in CHEMISTRY.limits.items()}
    assert barrier_threshold(thresholds, barrier).value == pytest.approx(limit)


RATIO = np.linspace(0.7, 2.5, 37)
MORSE = 100.0 * (1.0 - np.exp(-4.0 * (RATIO - 1.0))) ** 2


@pytest.mark.parametrize(
    ("energy", "steps", "turnover"),
    [
        (MORSE, 0, None),
        (np.where(RATIO > 2.01, 50.0, MORSE), 1, 2.0),
        (np.where(RATIO < 0.79, 10.0, MORSE), 1, None),  # a hole at short distances
        (-MORSE, 34, 1.0),  # its lowest energy near r0 is at 0.9
        (100.0 * (1.0 - np.exp(-4.0 * (RATIO - 1.08))) ** 2, 0, None),  # a longer bond
    ],
)
def test_falls_of_a_bond_curve(energy: np.ndarray, steps: int, turnover: float | None):
    count, where = falls(RATIO, energy)
    assert count == steps
    assert where == pytest.approx(turnover) if turnover else np.isnan(where)


def test_isomerisations_need_a_change_from_one_side_to_the_other():
    series = [0.9, 0.6, 0.1, -0.2, 0.3, 0.9, 0.2, -0.8, -0.9, -0.1, 0.1, -0.7, 0.95]
    assert count_isomerisations(np.array(series)) == 2
    assert count_isomerisations(np.array([1.0, 0.8, 0.4, -0.3, 0.6])) == 0


def test_slope_of_binding():
    teacher = np.array([-1.0, -5.0, -20.0])
    assert slope(teacher, 0.6 * teacher) == pytest.approx(0.6)
    assert slope(teacher, np.array([-1.0, -5.0, -18.0])) == pytest.approx(1.0 - 40.0 / 426.0)


@pytest.mark.parametrize("place", [Place("CSSC", (1, 2)), Place("SC", (0, 2))])
def test_a_stretched_bond_changes_no_other_length_on_its_sides(place: Place):
    atoms, bonds = embed(place.smiles)
    moved = stretched(atoms, bonds, place.atoms, 1.7)
    for bond in bonds:
        factor = 1.7 if set(bond) == set(place.atoms) else 1.0
        assert moved.get_distance(*bond) == pytest.approx(factor * atoms.get_distance(*bond))


def test_conformers_differ():
    frames = conformers("COCCNC(C)=O", 6)
    assert len(frames) == 6
    for first, second in pairwise(frames):
        change = first.get_all_distances() - second.get_all_distances()
        assert np.abs(change).max() > 0.1
    assert len(conformers("C", 6)) == 1


@pytest.mark.parametrize(
    ("channels", "preset"),
    [(16, "ultra_tiny"), (32, "ultra_tiny"), (96, "tiny"), (128, "original")],
)
def test_limits_follow_the_width(channels: int, preset: str):
    assert preset_of(channels) == preset
