"""Sample the canonical ensemble of a slow potential with trajectories of a fast potential.

The method is hybrid Monte Carlo (Duane, Kennedy, Pendleton & Roweth 1987,
doi:10.1016/0370-2693(87)91197-X), whose moves are trajectories of another potential, the proposal,
as in Iftimie, Salahub, Wei & Schofield 2000 (doi:10.1063/1.1289534). Velocity Verlet is reversible
and conserves volume in phase space for any forces. A move is accepted with the probability
min(1, exp(-dH / kT)), where dH is the change of the target's total energy. This samples the
target's ensemble. With a poor proposal, few moves are accepted: the run is then too short, but not
wrong. In this case shorten the moves, or train a student on labels of the same box and propose with
it, as in self-learning hybrid Monte Carlo (Nagai, Okumura, Kobayashi & Shiga 2020,
doi:10.1103/PhysRevB.102.041124).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet

from mlff_student.archive.registry import model_file
from mlff_student.core.errors import InputError
from mlff_student.core.files import sha256
from mlff_student.core.units import KB
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.engines.ase.run import calculator_of, produce, start
from mlff_student.engines.protocol import MDSettings, RunFolder
from mlff_student.engines.run import run_md
from mlff_student.structures.reading import Structure

# Errors that calculators raise for a geometry. ASE's CalculatorError and torch's errors are
# RuntimeError; LinAlgError and InputError (positions that a student refuses) are ValueError.
CALCULATOR_ERRORS = (RuntimeError, ValueError, FloatingPointError)
KEPT = ("energy", "forces", "stress")  # results of the target that the atoms keep


def run_reference_monte_carlo(
    settings: MDSettings, proposal_model: str, output: Path, quiet: bool = False
) -> dict[str, Any]:
    """Sample the canonical ensemble of a model by hybrid Monte Carlo, with a frame after each move.

    If the folder has an unfinished run with the same settings, that run is resumed.

    Parameters
    ----------
    settings : MDSettings
        Settings with the engine "ase" and the ensemble "nvt". `model` is the target, usually a
        teacher. The timestep is that of the proposal's trajectories, and `every` is their mean
        length in steps.
    proposal_model : str
        Student that thermalises and proposes moves: shipped name, checkpoint or archive.
    output : Path
        Folder of the run, as in `mlff_student.engines.run.run_md`.
    quiet : bool
        Whether to show no progress bar.

    Returns
    -------
    dict[str, Any]
        Summary as from `mlff_student.engines.run.run_md`, with the proposal model and its SHA-256.

    Raises
    ------
    InputError
        If the engine or the ensemble is another, or `run_md` refuses the settings.
    ArchiveError
        If there is no such proposal model.
    """
    if (settings.engine, settings.ensemble) != ("ase", "nvt"):
        raise InputError(
            "hybrid Monte Carlo needs ensemble nvt and engine ase, "
            f"got {settings.ensemble} and {settings.engine}"
        )
    identity = {
        "proposal_model": proposal_model,
        "proposal_model_sha256": sha256(model_file(proposal_model)),
    }

    def run(
        settings: MDSettings,
        structure: Structure,
        folder: RunFolder,
        progress: Callable[[int], None],
    ) -> float:
        atoms = structure.atoms.copy()
        atoms.calc = proposal = StudentForceFieldCalculator(
            proposal_model, backend=settings.backend
        )
        step, rng = start(settings, atoms, folder)
        atoms.calc = calculator_of(settings, folder)
        dynamics = HybridMonteCarlo(
            atoms,
            proposal,
            settings.timestep_fs * units.fs,
            temperature_K=settings.temperature_K,
            rng=rng,
        )
        return produce(settings, dynamics, step, rng, folder, progress)

    return run_md(settings, output, quiet, engine=run, identity=identity)


class HybridMonteCarlo:
    """Hybrid Monte Carlo moves of atoms, with the interface of ASE's dynamics.

    Parameters
    ----------
    atoms : Atoms
        Atoms with the target as their calculator. The target is called once for each move. After a
        move the atoms have its energy, forces and, if it computes one, its stress.
    proposal : Calculator
        Calculator of the trajectories, which is called at every step of a move.
    timestep : float
        Timestep of the trajectories, in ASE's unit of time.
    temperature_K : float
        Temperature of the ensemble, K.
    rng : np.random.Generator
        Random numbers for momenta (the centre of mass is at rest), lengths of moves and acceptance.
    """

    def __init__(
        self,
        atoms: Atoms,
        proposal: Calculator,
        timestep: float,
        *,
        temperature_K: float,
        rng: np.random.Generator,
    ) -> None:
        self.atoms = atoms
        self.target = atoms.calc
        self.proposal = proposal
        self.timestep = timestep
        self.temperature_K = temperature_K
        self.rng = rng

    def run(self, steps: int) -> bool:
        """Make a move.

        The length is drawn between half and one and a half times `steps`. With a fixed length, a
        vibration whose half period divides it would never mix (Mackenzie 1989, Phys. Lett. B 226,
        369). A move is rejected if a calculator fails.

        Parameters
        ----------
        steps : int
            Mean length of a move in steps.

        Returns
        -------
        bool
            Whether the move was accepted.
        """
        thermalize_momenta(self.atoms, temperature_K=self.temperature_K, rng=self.rng)
        Stationary(self.atoms, preserve_temperature=False)
        before = self.atoms.get_total_energy()
        length = self.rng.integers((steps + 1) // 2, steps + steps // 2 + 1)
        trial = self.atoms.copy()
        trial.calc = self.proposal
        try:
            VelocityVerlet(trial, self.timestep).run(length)
            trial.calc = self.target
            change = trial.get_total_energy() - before
        except CALCULATOR_ERRORS:
            change = np.inf
        accepted = self.rng.random() < np.exp(-max(change, 0.0) / (KB * self.temperature_K))
        state = trial if accepted else self.atoms
        state.get_forces()  # if they were not computed with the energy
        results = {key: state.calc.results[key] for key in KEPT if key in state.calc.results}
        self.atoms.positions = state.positions
        self.atoms.set_momenta(state.get_momenta())
        self.atoms.calc = SinglePointCalculator(self.atoms, **results)
        return bool(accepted)
