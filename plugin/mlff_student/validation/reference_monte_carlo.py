"""Sample the ensemble of a slow potential with trajectories of a fast potential.

The method is hybrid Monte Carlo (Duane, Kennedy, Pendleton & Roweth 1987,
doi:10.1016/0370-2693(87)91197-X), whose moves are trajectories of another potential, the proposal,
as in Iftimie, Salahub, Wei & Schofield 2000 (doi:10.1063/1.1289534). Velocity Verlet is reversible
and conserves volume in phase space for any forces. A move is accepted with the probability
min(1, exp(-dH / kT)), where dH is the change of the target's total energy. This samples the
target's ensemble. With a poor proposal, few moves are accepted: the run is then too short, but not
wrong. In this case shorten the moves, or train a student on labels of the same box and propose with
it, as in self-learning hybrid Monte Carlo (Nagai, Okumura, Kobayashi & Shiga 2020,
doi:10.1103/PhysRevB.102.041124).

At constant pressure P, the distribution of the volume V and of N rigidly displaced molecules is
V^N exp(-(U + P V) / kT). A volume step is uniform in ln V and scales the centres of mass with the
cell. It is accepted with min(1, exp(-(dU + P dV - (N + 1) kT d ln V) / kT)) (Frenkel & Smit,
Understanding Molecular Simulation, 2nd edition 2002, section 5.4.2). Such steps are made with the
energy of the proposal, as many before a trajectory as after it, and cost no call of the target.
They alone would sample the proposal's ensemble and have detailed balance in it, that is,
k(x -> y) / k(y -> x) = exp(-(dU_p + P dV - (N + 1) kT d ln V) / kT) for the proposal's energy U_p.
A whole move (steps, trajectory, steps) is therefore accepted with min(1, exp(-(dH - dU_p) / kT)),
where dU_p is the sum over the accepted volume steps; P and V cancel. This is the correction by
which Gelb 2003 (doi:10.1063/1.1563597) samples an ensemble with chains of an approximate potential.
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
from numpy.typing import NDArray

from mlff_student.analysis.bonds import bond_pairs
from mlff_student.analysis.transport import G_PER_CM3
from mlff_student.archive.registry import model_file
from mlff_student.core.errors import InputError
from mlff_student.core.files import sha256
from mlff_student.core.units import KB
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.engines.ase.run import calculator_of, produce, start
from mlff_student.engines.protocol import MDSettings, RunFolder
from mlff_student.engines.run import run_md
from mlff_student.structures.checks import connected_fragments
from mlff_student.structures.reading import Structure, in_engine_orientation, read_structure
from mlff_student.structures.trajectories import make_whole, nearest_image
from mlff_student.teachers.registry import is_teacher, make_teacher

# Errors that calculators raise for a geometry. ASE's CalculatorError and torch's errors are
# RuntimeError; LinAlgError and InputError (positions that a student refuses) are ValueError.
CALCULATOR_ERRORS = (RuntimeError, ValueError, FloatingPointError)
KEPT = ("energy", "forces", "stress")  # results of the target that the atoms keep
VOLUME_STEPS = 3  # volume steps before and after each trajectory
# Largest volume step, of ln V. By its compressibility (0.5 to 1.5 per GPa), the volume of a liquid
# fluctuates by 1 % in a box of 500 waters and by 6 % in a box of 16, but rigid molecules resist up
# to ten times more. The width of each step is therefore drawn from a range of 30 (log-uniform): no
# width has to be adapted, so that all moves of a run are those of one Markov chain.
VOLUME_STEP, VOLUME_STEP_DECADES = 0.2, 1.5
FAR = 100.0  # angstrom, see `HybridMonteCarlo._renew`


def run_reference_monte_carlo(
    settings: MDSettings, proposal_model: str, output: Path, quiet: bool = False
) -> dict[str, Any]:
    """Sample the ensemble of a model by hybrid Monte Carlo, with a frame after each move.

    If the folder has an unfinished run with the same settings, that run is resumed. At constant
    pressure the log also has volume, density, whether the move was accepted, and the share of
    volume steps that the proposal accepted.

    Parameters
    ----------
    settings : MDSettings
        Settings with the engine "ase" and the ensemble "nvt" or "npt". `model` is the target,
        usually a teacher. The timestep is that of the proposal's trajectories, and `every` is their
        mean length in steps.
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
        If the engine or the ensemble is another; the pressure is not positive; a structure at
        constant pressure is not periodic or is bonded to its own image; the target cannot compute
        the structure; or `run_md` refuses the settings.
    ArchiveError
        If there is no such proposal model.
    """
    if settings.engine != "ase" or settings.ensemble not in ("nvt", "npt"):
        raise InputError(
            "hybrid Monte Carlo needs ensemble nvt or npt and engine ase, "
            f"got {settings.ensemble} and {settings.engine}"
        )
    constant_pressure = settings.ensemble == "npt"
    if constant_pressure and not settings.pressure_bar > 0:
        raise InputError(
            "hybrid Monte Carlo at constant pressure needs a positive pressure, got "
            f"{settings.pressure_bar:g} bar, at which the volume has no distribution; give 1 bar"
        )
    identity = {
        "proposal_model": proposal_model,
        "proposal_model_sha256": sha256(model_file(proposal_model)),
    }
    if not RunFolder(output).settings.exists():
        _check_target(settings)

    def run(
        settings: MDSettings,
        structure: Structure,
        folder: RunFolder,
        progress: Callable[[int], None],
    ) -> float:
        molecules = None
        if constant_pressure:
            structure, molecules = whole_molecules(structure)
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
            pressure=settings.pressure_bar * units.bar if constant_pressure else None,
            molecules=molecules,
            reference=structure.atoms,
        )
        return produce(settings, dynamics, step, rng, folder, progress)

    return run_md(settings, output, quiet, engine=run, identity=identity)


def _check_target(settings: MDSettings) -> None:
    """Raise an InputError if the target cannot compute the structure of a new run."""
    structure = in_engine_orientation(read_structure(settings.structure))
    if settings.ensemble == "npt":
        whole_molecules(structure)
    if not is_teacher(settings.model):
        return  # `run_md` checks students
    atoms = structure.atoms.copy()
    atoms.calc = make_teacher(settings.model)
    try:
        atoms.get_potential_energy()
    except InputError:
        raise
    except CALCULATOR_ERRORS:
        pass  # a calculator may fail for packed molecules, but not after thermalisation


def whole_molecules(structure: Structure) -> tuple[Structure, NDArray[np.int_]]:
    """Return a periodic structure in which no molecule is cut by a face of the cell.

    Parameters
    ----------
    structure : Structure
        Structure with bonds.

    Returns
    -------
    structure : Structure
        Structure with the atoms of each molecule next to each other.
    molecules : NDArray[np.int_]
        (N,), index of the molecule of each atom.

    Raises
    ------
    InputError
        If the structure is not periodic in all directions, or a molecule is bonded to its own
        image, as in a covalent crystal, so that it has no centre of mass.
    """
    atoms = structure.atoms.copy()
    if not atoms.pbc.all():
        raise InputError(
            "npt needs a periodic box; the structure is periodic along "
            f"{atoms.pbc.tolist()}. Give a structure with a cell, or use nvt"
        )
    bonds = bond_pairs(structure.topology)
    cells = atoms.cell.array[None]
    atoms.positions = make_whole(atoms.positions[None], cells, bonds)[0]
    vectors = atoms.positions[bonds[:, 1]] - atoms.positions[bonds[:, 0]]
    through = np.abs(vectors - nearest_image(vectors[None], cells, atoms.pbc)[0]).max(1) > 1e-6
    if through.any():
        i, j = bonds[through.argmax()]
        raise InputError(
            f"the molecule of atoms {i} ({atoms.symbols[i]}) and {j} ({atoms.symbols[j]}) is "
            "bonded to its own periodic image; npt moves whole molecules. Use nvt, or a larger cell"
        )
    return Structure(atoms, structure.topology), connected_fragments(len(atoms), bonds.tolist())


def scale_molecules(atoms: Atoms, molecules: NDArray[np.int_], factor: float) -> None:
    """Scale the cell and the centres of mass of the molecules, which stay rigid.

    Parameters
    ----------
    atoms : Atoms
        Periodic structure, as from `whole_molecules`; positions and cell are changed.
    molecules : NDArray[np.int_]
        (N,), index of the molecule of each atom.
    factor : float
        Factor of all lengths.
    """
    masses = atoms.get_masses()
    moments = masses[:, None] * atoms.positions
    centres = np.array([np.bincount(molecules, moments[:, axis]) for axis in range(3)]).T
    centres /= np.bincount(molecules, masses)[:, None]
    atoms.set_cell(factor * atoms.cell.array)
    atoms.positions += (factor - 1.0) * centres[molecules]


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
        Random numbers for momenta (the centre of mass is at rest), lengths of moves, volume steps
        and acceptance.
    pressure : float, optional
        Pressure, eV/angstrom^3. None: the volume is constant.
    molecules : NDArray[np.int_], optional
        (N,), index of the molecule of each atom, from `whole_molecules`. Constant pressure needs
        it.
    volume_step : float
        Largest volume step, of ln V.
    reference : Atoms, optional
        The same atoms in a structure that a student accepts as a new structure. None: as they are.

    Attributes
    ----------
    record : dict[str, float]
        What the last move left, at constant pressure only: "volume_angstrom3", "density_g_per_cm3",
        "accepted" (0 or 1), and "volume_steps_accepted", the share of volume steps that the
        proposal accepted.
    """

    def __init__(
        self,
        atoms: Atoms,
        proposal: Calculator,
        timestep: float,
        *,
        temperature_K: float,
        rng: np.random.Generator,
        pressure: float | None = None,
        molecules: NDArray[np.int_] | None = None,
        volume_step: float = VOLUME_STEP,
        reference: Atoms | None = None,
    ) -> None:
        self.atoms = atoms
        self.target = atoms.calc
        self.proposal = proposal
        self.timestep = timestep
        self.temperature_K = temperature_K
        self.rng = rng
        self.pressure = pressure
        self.molecules = molecules
        self.volume_step = volume_step
        self.record: dict[str, float] = {}
        self._reference = (reference or atoms).copy()
        self._trial = atoms.copy()
        if pressure is not None:
            self._record(False, 0)

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
        trial = self._trial
        trial.set_cell(self.atoms.cell)
        trial.positions = self.atoms.positions
        trial.set_momenta(self.atoms.get_momenta())
        volume_steps = 0
        try:
            self._renew(self.proposal)
            work, count = self._change_volume()
            volume_steps += count
            VelocityVerlet(trial, self.timestep).run(length)
            more_work, count = self._change_volume()
            volume_steps += count
            self._renew(self.target)
            change = trial.get_total_energy() - before - work - more_work
        except CALCULATOR_ERRORS:
            change = np.inf
        accepted = self._accepts(change)
        state = trial if accepted else self.atoms
        state.get_forces()  # if they were not computed with the energy
        results = {key: state.calc.results[key] for key in KEPT if key in state.calc.results}
        self.atoms.set_cell(state.cell)
        self.atoms.positions = state.positions
        self.atoms.set_momenta(state.get_momenta())
        self.atoms.calc = SinglePointCalculator(self.atoms, **results)
        if self.pressure is not None:
            self._record(accepted, volume_steps)
        return accepted

    def _accepts(self, change: float) -> bool:
        """Return whether a change of energy (eV; NaN and infinity: never) is accepted."""
        kt = KB * self.temperature_K
        return bool(self.rng.random() < np.exp(-max(change, 0.0) / kt))

    def _change_volume(self) -> tuple[float, int]:
        """Make volume steps of the trial in the proposal's ensemble.

        Returns
        -------
        change : float
            Change of the proposal's energy, eV.
        count : int
            Number of accepted steps.
        """
        if self.pressure is None:
            return 0.0, 0
        assert self.molecules is not None
        trial, kt = self._trial, KB * self.temperature_K
        degrees = self.molecules.max() + 2  # number of molecules + 1
        first = energy = trial.get_potential_energy()
        count = 0
        for _ in range(VOLUME_STEPS):
            positions, cell, volume = trial.positions.copy(), trial.cell.copy(), trial.get_volume()
            width = self.volume_step * 10.0 ** self.rng.uniform(-VOLUME_STEP_DECADES, 0.0)
            step = self.rng.uniform(-width, width)
            scale_molecules(trial, self.molecules, np.exp(step / 3.0))
            try:
                new_energy = trial.get_potential_energy()
                work = self.pressure * (trial.get_volume() - volume) - degrees * kt * step
                change = new_energy - energy + work
            except CALCULATOR_ERRORS:
                change = np.inf
            if self._accepts(change):
                energy = new_energy
                count += 1
                continue
            trial.set_cell(cell)
            trial.positions = positions
            if change == np.inf:
                self._renew(self.proposal)
        return energy - first, count

    def _renew(self, calculator: Calculator) -> None:
        """Set the calculator of the trial. A student forgets what it knows of earlier moves.

        The neighbour list of a student, and with it the rounding of its energies, would otherwise
        depend on when it was made, and a resumed run would differ from one without interruption. It
        also checks new structures more strictly than those of a run, which may be hot.
        """
        trial = self._trial
        trial.calc = calculator
        if isinstance(calculator, StudentForceFieldCalculator):
            positions, cell = trial.positions.copy(), trial.cell.copy()
            trial.set_cell(self._reference.cell)
            trial.positions = self._reference.positions + FAR  # farther than the list's skin
            trial.get_potential_energy()
            trial.set_cell(cell)
            trial.positions = positions

    def _record(self, accepted: bool, volume_steps: int) -> None:
        volume = self.atoms.get_volume()
        self.record.update(
            volume_angstrom3=volume,
            density_g_per_cm3=self.atoms.get_masses().sum() * G_PER_CM3 / volume,
            accepted=float(accepted),
            volume_steps_accepted=volume_steps / (2 * VOLUME_STEPS),
        )
