"""Hybrid Monte Carlo samples the target's ensemble, whatever guides it."""

from itertools import pairwise

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.harmonic import SpringCalculator
from ase.calculators.lj import LennardJones

from mlff_student.core.errors import InputError
from mlff_student.core.units import KB
from mlff_student.validation.reference_monte_carlo import HybridMonteCarlo

TARGET, GUIDE = 2.0, 3.0  # eV/angstrom^2, springs of the atoms to their places
PLACES = 3.0 * np.arange(24.0).reshape(8, 3)
T = 300.0


def springs(constant: float) -> SpringCalculator:
    return SpringCalculator(PLACES, constant)


def moves(count: int, guide: float) -> tuple[list[bool], np.ndarray, np.ndarray]:
    """What was accepted, displacements from the centre's (count, 8, 3), and kinetic energies."""
    atoms = Atoms("Ar8", PLACES)
    atoms.calc = springs(TARGET)
    dynamics = HybridMonteCarlo(
        atoms,
        springs(guide),
        20.0 * units.fs,
        temperature_K=T,
        rng=np.random.default_rng(3),
    )
    accepted, displacements, kinetic = [], [], []
    for _ in range(count):
        accepted.append(dynamics.run(8))
        displacements.append(atoms.positions - PLACES)
        kinetic.append(atoms.get_kinetic_energy())
        assert atoms.get_potential_energy() == pytest.approx(
            0.5 * TARGET * (displacements[-1] ** 2).sum()
        )
    return accepted, np.array(displacements), np.array(kinetic)


def mean_and_error(samples: np.ndarray) -> tuple[float, float]:
    blocks = samples[: len(samples) // 14 * 14].reshape(14, -1).mean(1)
    return float(blocks.mean()), float(blocks.std(ddof=1) / np.sqrt(14))


def test_ensemble_is_the_targets():
    """Equipartition: k <x^2> = kT in the target's springs; in the guide's it would be 2/3 of it.
    The centre of mass stays at rest, and so do 3 of the 24 degrees of freedom.
    """
    accepted, displacements, kinetic = moves(1500, GUIDE)
    assert 0.2 < np.mean(accepted) < 0.9
    potential = 0.5 * TARGET * (displacements[100:] ** 2).sum((1, 2))
    for energies in (potential, kinetic[100:]):
        mean, error = mean_and_error(energies / (0.5 * 21 * KB * T))
        assert error < 0.05
        assert mean == pytest.approx(1.0, abs=4 * error)


def test_a_perfect_guide_is_nearly_always_right():
    assert np.mean(moves(200, TARGET)[0]) > 0.9
    assert np.mean(moves(200, 4 * TARGET)[0]) < 0.5


def test_the_targets_stress_is_kept_and_not_the_guides():
    box = Atoms("Ar8", 3.8 * np.indices((2, 2, 2)).reshape(3, 8).T)
    box.set_cell(3 * [7.6])
    box.pbc = True
    box.calc = LennardJones(sigma=3.4, epsilon=0.01, rc=7.0)
    dynamics = HybridMonteCarlo(
        box,
        LennardJones(sigma=3.4, epsilon=0.02, rc=7.0),
        10.0 * units.fs,
        temperature_K=T,
        rng=np.random.default_rng(3),
    )
    for _ in range(5):
        dynamics.run(8)
        again = box.copy()
        again.calc = LennardJones(sigma=3.4, epsilon=0.01, rc=7.0)
        assert box.get_stress() == pytest.approx(again.get_stress(), rel=1e-6)


class Fragile(SpringCalculator):
    """Springs that refuse what a student would refuse: here, an atom too far to one side."""

    def calculate(self, *arguments, **options) -> None:
        super().calculate(*arguments, **options)
        if self.atoms.positions[0, 0] > 0.12:
            raise InputError("too far")


def test_a_move_to_where_a_calculator_fails_is_rejected():
    """In 200 moves of springs, half of which pass 0.12 angstrom somewhere on their way."""
    atoms = Atoms("Ar8", PLACES)
    atoms.calc = springs(TARGET)
    guide = Fragile(PLACES, TARGET)
    rng = np.random.default_rng(3)
    dynamics = HybridMonteCarlo(atoms, guide, 20.0 * units.fs, temperature_K=T, rng=rng)
    accepted, places = [], []
    for _ in range(200):
        accepted.append(dynamics.run(8))
        places.append(atoms.positions[0, 0])
    assert 0.2 < np.mean(accepted) < 0.9 and max(places) <= 0.12


def test_a_rejected_move_leaves_the_atoms_where_they_were():
    accepted, displacements, _ = moves(50, 4 * TARGET)
    stayed = [np.array_equal(a, b) for a, b in pairwise(displacements)]
    assert stayed == [not one for one in accepted[1:]]
