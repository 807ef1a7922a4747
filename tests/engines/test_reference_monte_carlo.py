"""Hybrid Monte Carlo samples the target's ensemble, whatever proposes its moves."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.harmonic import SpringCalculator
from ase.calculators.lj import LennardJones

from mlff_student.analysis.thermo import read_thermo
from mlff_student.core.errors import InputError
from mlff_student.core.units import KB
from mlff_student.engines.ase import run as ase_engine
from mlff_student.engines.protocol import MDSettings
from mlff_student.engines.run import run_md
from mlff_student.validation.reference_monte_carlo import (
    HybridMonteCarlo,
    run_reference_monte_carlo,
)

TARGET, PROPOSAL = 2.0, 3.0  # eV/angstrom^2, springs of the atoms to their places
PLACES = 3.0 * np.arange(24.0).reshape(8, 3)
T = 300.0


def springs(constant: float) -> SpringCalculator:
    return SpringCalculator(PLACES, constant)


def moves(count: int, proposal: float) -> tuple[list[bool], np.ndarray, np.ndarray]:
    """What was accepted, displacements from the centre's (count, 8, 3), and kinetic energies."""
    atoms = Atoms("Ar8", PLACES)
    atoms.calc = springs(TARGET)
    dynamics = HybridMonteCarlo(
        atoms,
        springs(proposal),
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
    """Equipartition: k <x^2> = kT in the target's springs; in the proposal's it would be 2/3 of it.
    The centre of mass stays at rest, and so do 3 of the 24 degrees of freedom.
    """
    accepted, displacements, kinetic = moves(1500, PROPOSAL)
    assert 0.2 < np.mean(accepted) < 0.9
    potential = 0.5 * TARGET * (displacements[100:] ** 2).sum((1, 2))
    for energies in (potential, kinetic[100:]):
        mean, error = mean_and_error(energies / (0.5 * 21 * KB * T))
        assert error < 0.05
        assert mean == pytest.approx(1.0, abs=4 * error)


def test_a_perfect_proposal_is_nearly_always_accepted():
    assert np.mean(moves(200, TARGET)[0]) > 0.9
    assert np.mean(moves(200, 4 * TARGET)[0]) < 0.5


def test_the_targets_stress_is_kept_and_not_the_proposals():
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
    proposal = Fragile(PLACES, TARGET)
    rng = np.random.default_rng(3)
    dynamics = HybridMonteCarlo(atoms, proposal, 20.0 * units.fs, temperature_K=T, rng=rng)
    accepted, places = [], []
    for _ in range(200):
        accepted.append(dynamics.run(8))
        places.append(atoms.positions[0, 0])
    assert 0.2 < np.mean(accepted) < 0.9 and max(places) <= 0.12


def test_a_rejected_move_leaves_the_atoms_where_they_were():
    accepted, displacements, _ = moves(50, 4 * TARGET)
    stayed = [np.array_equal(a, b) for a, b in pairwise(displacements)]
    assert stayed == [not moved for moved in accepted[1:]]


MOVES = MDSettings(
    engine="ase", model="tiny", structure="O", steps=96, timestep_fs=0.5, temperature_K=T,
    ensemble="nvt", every=8, thermalise_steps=20, friction_per_ps=10.0, seed=1, threads=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of twelve moves of a water molecule by one student on another's trajectories."""
    folder = tmp_path_factory.mktemp("moves") / "run"
    run_reference_monte_carlo(MOVES, "ultra_tiny", folder, quiet=True)
    return folder


def test_run_says_what_proposed_it(finished):
    record = json.loads((finished / "run.json").read_text())
    assert (record["model"], record["proposal_model"]) == ("tiny", "ultra_tiny")
    potential = read_thermo(finished / "run.csv").potential_ev
    assert len(potential) == 12
    assert len(np.unique(potential)) > 2, "accepted moves change the energy"


def test_finished_run_is_another_with_another_proposal_or_as_md(finished):
    assert run_reference_monte_carlo(MOVES, "ultra_tiny", finished)["steps"] == MOVES.steps
    with pytest.raises(InputError, match=r"another run .*proposal_model"):
        run_reference_monte_carlo(MOVES, "tiny", finished)
    with pytest.raises(InputError, match=r"another run .*proposal_model"):
        run_md(MOVES, finished, quiet=True)


class Killed(BaseException):
    """Ends a run as Ctrl-C does."""


def test_killed_run_resumes_with_the_same_random_numbers(finished, tmp_path, monkeypatch):
    write, segments = ase_engine.write_segment, []

    def killing(*arguments):
        segments.append(arguments)
        if len(segments) == 5:
            raise Killed
        write(*arguments)

    monkeypatch.setattr(ase_engine, "write_segment", killing)
    with pytest.raises(Killed):
        run_reference_monte_carlo(MOVES, "ultra_tiny", tmp_path / "run", quiet=True)
    run_reference_monte_carlo(MOVES, "ultra_tiny", tmp_path / "run", quiet=True)
    assert len(segments) == 13
    resumed, whole = (read_thermo(path / "run.csv") for path in (tmp_path / "run", finished))
    np.testing.assert_allclose(resumed.time_ps, whole.time_ps)
    # A restart makes the neighbour list anew: other rounding in float32.
    np.testing.assert_allclose(resumed.potential_ev, whole.potential_ev, atol=1e-4)


@pytest.mark.parametrize("other", [{"engine": "openmm"}, {"ensemble": "nve"}])
def test_other_engines_and_ensembles_are_refused(other, tmp_path):
    with pytest.raises(InputError, match="needs ensemble nvt and engine ase"):
        run_reference_monte_carlo(replace(MOVES, **other), "ultra_tiny", tmp_path / "run")
    assert not (tmp_path / "run").exists()
