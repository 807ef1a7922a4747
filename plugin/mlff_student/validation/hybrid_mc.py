"""The canonical ensemble of a slow potential, reached on the trajectories of a fast one.

Hybrid Monte Carlo (Duane, Kennedy, Pendleton & Roweth 1987, doi:10.1016/0370-2693(87)91197-X) with
the Hamiltonian of another potential as guide, as in Iftimie, Salahub, Wei & Schofield 2000
(doi:10.1063/1.1289534): velocity Verlet with the guide's forces is reversible and keeps volume in
phase space, whatever the forces, so that accepting its end with min(1, exp(-dH/kT)), H being the
target's, leaves the target's ensemble as it is. A poor guide costs acceptance, never correctness.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.io.trajectory import Trajectory
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet

from ..errors import InputError
from ..units import KB


class Sampled(NamedTuple):
    """What a run of hybrid Monte Carlo did."""

    moves: int
    acceptance: float  # fraction of moves
    path_ps: float  # of the accepted trajectories, all in all


def sample_canonical(
    atoms: Atoms,
    target: Calculator,
    guide: Calculator,
    trajectory: Path,
    *,
    temperature_K: float,
    moves: int,
    steps: int = 100,
    timestep_fs: float = 0.5,
    seed: int = 1,
    after: Callable[[int], None] = lambda move: None,
) -> Sampled:
    """States of the target's canonical ensemble, one a move, rejected moves repeating the last.

    Parameters
    ----------
    atoms : starting state; its momenta are not used.
    target : asked once a move.
    guide : asked at every step of every move.
    trajectory : ASE trajectory file. One that is there is gone on with, and comes out as if it had
        not been interrupted: each move draws from a generator of its own.
    moves : of the whole run.
    steps : of velocity Verlet in a move.
    after : called with the number of each move that is done.

    Raises
    ------
    InputError : no moves or steps, constraints, or a trajectory of other atoms, of another target
        or of more moves.
    """
    if min(moves, steps) < 1:
        raise InputError(f"moves and steps must be positive, got {moves} and {steps}")
    if atoms.constraints:
        raise InputError("hybrid Monte Carlo moves all atoms: remove the constraints")
    state = atoms.copy()
    state.calc = target
    energy, done, accepted = state.get_potential_energy(), 0, 0
    if trajectory.exists():
        state, energy, done, accepted = _resume(trajectory, state, moves)
    with Trajectory(trajectory, "a" if done else "w") as file:
        for move in range(done, moves):
            trial, guided_kinetic = _propose(
                state, guide, temperature_K, steps, timestep_fs, seed, move
            )
            trial.calc = target
            change = trial.get_potential_energy() - energy + guided_kinetic
            luck = np.random.default_rng([seed, move, 1]).random()
            if luck < np.exp(-max(change, 0.0) / (KB * temperature_K)):
                state, energy, accepted = trial, trial.get_potential_energy(), accepted + 1
            state.info["accepted"] = accepted
            file.write(state, energy=energy)
            after(move + 1)
    return Sampled(moves, accepted / moves, accepted * steps * timestep_fs * 1e-3)


def _propose(
    state: Atoms,
    guide: Calculator,
    temperature_K: float,
    steps: int,
    timestep_fs: float,
    seed: int,
    move: int,
) -> tuple[Atoms, float]:
    """End of a trajectory with fresh momenta, and what it gained in kinetic energy (eV)."""
    trial = state.copy()
    trial.calc = guide
    rng = np.random.default_rng([seed, move, 0])
    thermalize_momenta(trial, temperature_K=temperature_K, rng=rng)
    before = trial.get_kinetic_energy()
    VelocityVerlet(trial, timestep_fs * units.fs).run(steps)
    return trial, trial.get_kinetic_energy() - before


def _resume(trajectory: Path, start: Atoms, moves: int) -> tuple[Atoms, float, int, int]:
    """Last state of an earlier run, its energy, and its numbers of moves and accepted moves."""
    with Trajectory(trajectory) as file:
        done = len(file)
        if not done:
            return start, start.get_potential_energy(), 0, 0
        last = file[-1]
    if done > moves or not np.array_equal(last.numbers, start.numbers):
        raise InputError(
            f"{trajectory} has {done} moves of {last.symbols}, not up to {moves} of "
            f"{start.symbols}: remove it, or name another file"
        )
    state = Atoms(last.numbers, last.positions, cell=last.cell, pbc=last.pbc)
    return state, last.get_potential_energy(), done, last.info["accepted"]
