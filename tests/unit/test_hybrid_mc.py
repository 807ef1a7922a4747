"""Hybrid Monte Carlo samples the target's ensemble, whatever guides it."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.harmonic import SpringCalculator
from ase.constraints import FixAtoms
from ase.io import read

from mlff_student.errors import InputError
from mlff_student.units import KB
from mlff_student.validation.hybrid_mc import sample_canonical

TARGET, GUIDE = 2.0, 3.0  # eV/angstrom^2, springs of the atoms to their places
PLACES = 3.0 * np.arange(24.0).reshape(8, 3)
T = 300.0


def springs(constant: float) -> SpringCalculator:
    return SpringCalculator(PLACES, constant)


def run(file: Path, moves: int, guide: float = GUIDE, **more: float):
    atoms = Atoms("Ar8", PLACES)
    return sample_canonical(
        atoms,
        springs(TARGET),
        springs(guide),
        file,
        temperature_K=T,
        moves=moves,
        steps=8,
        timestep_fs=20.0,
        seed=3,
        **more,
    )


def test_ensemble_is_the_targets(tmp_path: Path):
    """Equipartition: k <x^2> = kT in the target's springs; in the guide's it would be 2/3 of it."""
    done = run(tmp_path / "a.traj", 1500)
    assert done.moves == 1500
    assert 0.2 < done.acceptance < 0.9
    assert done.path_ps == pytest.approx(done.acceptance * 1500 * 8 * 0.020)
    displacements = np.array([a.positions for a in read(tmp_path / "a.traj", "100:")]) - PLACES
    samples = TARGET * (displacements**2).mean((1, 2)) / (KB * T)
    blocks = samples[: 14 * 100].reshape(14, 100).mean(1)
    error = blocks.std(ddof=1) / np.sqrt(14)
    assert error < 0.08
    assert samples.mean() == pytest.approx(1.0, abs=4 * error)


def test_a_perfect_guide_is_nearly_always_right(tmp_path: Path):
    assert run(tmp_path / "a.traj", 200, guide=TARGET).acceptance > 0.9
    assert run(tmp_path / "b.traj", 200, guide=4 * TARGET).acceptance < 0.5


def test_a_run_that_was_killed_comes_out_the_same(tmp_path: Path):
    whole = run(tmp_path / "a.traj", 30)

    def kill(move: int) -> None:
        if move == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b.traj", 30, after=kill)
    assert len(read(tmp_path / "b.traj", ":")) == 11
    assert run(tmp_path / "b.traj", 30) == whole
    for one, other in zip(
        read(tmp_path / "a.traj", ":"), read(tmp_path / "b.traj", ":"), strict=True
    ):
        np.testing.assert_array_equal(one.positions, other.positions)
        assert one.get_potential_energy() == other.get_potential_energy()
    assert run(tmp_path / "b.traj", 30) == whole  # nothing left to do
    with pytest.raises(InputError, match="has 30 moves of Ar8, not up to 20"):
        run(tmp_path / "b.traj", 20)


def test_bad_input_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="must be positive"):
        run(tmp_path / "a.traj", 0)
    held = Atoms("Ar8", PLACES, constraint=FixAtoms([0]))
    with pytest.raises(InputError, match="constraints"):
        sample_canonical(
            held, springs(1), springs(1), tmp_path / "a.traj", temperature_K=T, moves=1
        )
    assert not (tmp_path / "a.traj").exists()
