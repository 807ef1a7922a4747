"""Check a running OpenMM simulation: energy drift, temperature, bonds and the student's domain."""

import logging
import math
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openmm
from ase import Atoms
from ase.calculators.calculator import Calculator
from numpy.typing import NDArray
from openmm import unit
from openmm.app import Simulation, Topology

from mlff_student.analysis.bonds import bond_lengths
from mlff_student.analysis.drift import slope_with_error
from mlff_student.analysis.thermo import FEWEST_ROWS
from mlff_student.archive.archive import Archive
from mlff_student.archive.backends import evaluator
from mlff_student.archive.graph import edges_of
from mlff_student.archive.registry import archive_of
from mlff_student.core.errors import InputError, RunStoppedError
from mlff_student.core.figures import Figure, Threshold, load_thresholds, record_of
from mlff_student.core.files import atomic_write, require_writable
from mlff_student.engines.protocol import THERMO_COLUMNS
from mlff_student.model.neighbourhoods import REACH, neighbour_counts, neighbourhood_excess
from mlff_student.reporting.verdict import Check, Outcome, judge
from mlff_student.structures.checks import perceive_bonds
from mlff_student.teachers.registry import make_teacher

from .force import FORCE_NAME, student_atoms
from .thermo import cause, degrees_of_freedom, moving_particles, thermo_row

logger = logging.getLogger(__name__)

ACTIONS = ("warn", "stop")
COLUMNS = (
    "step",
    *THERMO_COLUMNS,
    "drift_mev_per_atom_ps",
    "drift_stderr_mev_per_atom_ps",
    "temperature_sigma",
    "bond_deviation_angstrom",
    "bond_deviation_atoms",
    "largest_force_ev_per_angstrom",
    "largest_force_atom",
    "network_depth_ev",
    "network_depth_atom",
    "neighbourhood_excess",
    "neighbourhood_excess_atom",
    "teacher_force_rmse_ev_per_angstrom",
    "teacher_force_rmse_ratio",
    "failed",
)
DRIFT_ROWS = 1000  # newest reports from which the drift is computed
# Column that names the atoms of a figure, by the figure's key.
PLACES = {
    "bond_deviation_angstrom": "bond_deviation_atoms",
    "largest_force_ev_per_angstrom": "largest_force_atom",
    "network_depth_ev": "network_depth_atom",
    "neighbourhood_excess": "neighbourhood_excess_atom",
}
CHANGE_TEMPERATURE_OR_VOLUME = (
    openmm.AndersenThermostat,
    openmm.MonteCarloBarostat,
    openmm.MonteCarloAnisotropicBarostat,
    openmm.MonteCarloFlexibleBarostat,
    openmm.MonteCarloMembraneBarostat,
)


class Located(NamedTuple):
    """A figure of a frame, and the atoms where it was measured.

    Attributes
    ----------
    figure : Figure
        The measured number.
    atoms : str
        Names of the atoms. Empty for a figure of the whole system.
    """

    figure: Figure
    atoms: str = ""


class Monitor:
    """Reporter for `Simulation.reporters` that compares a run with the project's thresholds.

    The monitor acts if a figure fails (`mlff_student.reporting.verdict.judge`), and waits if a
    figure is not resolved yet. Every report costs two evaluations of the student: that of OpenMM
    for the energies, and that of the monitor. The limits are those of
    `mlff_student/core/thresholds.yaml` and of the domain in the archive's metadata. Judged are:

    - the drift of the total energy over the newest 1000 reports, if the run is at constant energy.
      It starts again after a jump of time or steps (a restored State) and after an energy that is
      NaN;
    - the temperature, in standard deviations of the canonical ensemble;
    - the bonds among the student's atoms, compared with their lengths in `positions`;
    - the largest force of the student, compared with the largest in its training data;
    - the network's energy of an atom. If it is below a bound that no atom in the training data
      passes, the student does not know the atom's neighbourhood;
    - the neighbours of each atom by element and distance, compared with those of atoms in the
      training data (`mlff_student.model.neighbourhoods`);
    - the student's forces compared with a teacher's, every `teacher_every` reports;
    - energies and positions that are NaN or infinite (`nonfinite_rows`).

    If a report finds a NaN, its row is written and `action` is done. The student refuses such
    positions, so with "warn" the next step ends in an OpenMMException. If the NaN arises between
    two reports, or another reporter asks for energies at the same step, that exception comes first
    and the monitor is not called. The last good state is then that of an earlier report.

    Parameters
    ----------
    topology : Topology
        Topology of the system.
    positions : unit.Quantity
        Positions of the start, (N, 3), such as a minimised structure. They are the reference for
        the lengths of bonds.
    model : str | Path
        Model of the student that runs: a shipped name, or the path of a checkpoint or an archive.
    every : int
        Number of steps between reports.
    atoms : Iterable[int] | None
        Indices of the atoms that the student acts on, link atoms included. None: all atoms.
    action : str
        What to do if a figure fails: "warn" writes to the Python log when a figure begins to fail,
        "stop" raises `RunStoppedError`.
    csv : str | Path | None
        File that receives a row of `COLUMNS` for each report. `mlff-student analyze` reads it.
    append : bool
        Whether to append to an existing `csv` file. If not, the file is overwritten, as the
        reporters of OpenMM do.
    last_good : str | Path | None
        File that receives the State of each report in which nothing failed. It is written
        atomically. `Simulation.loadState` reads it to resume the run.
    periodic : bool | None
        Whether the student is periodic. None: as the student's force in the System is, or as the
        System is if the student's force is inside another force (interpolation of openmm-ml).
    temperature_K : float | None
        Temperature of the thermostat, K. None: only temperatures above the highest of the training
        data are judged.
    constant_energy : bool | None
        Whether drift is judged. None: if the integrator is a Verlet integrator of OpenMM, and no
        thermostat and no barostat is among the forces.
    teacher : str | Calculator | None
        Name of a teacher for `make_teacher`, or an ASE calculator. None: no comparison.
    teacher_every : int
        Number of reports between comparisons with the teacher.
    thresholds : dict[str, Threshold] | None
        Thresholds in place of the project's. They also replace the limits of the archive that have
        the same keys.
    backend, device : str
        Backend and device of the student, as in `student_force`.

    Attributes
    ----------
    checks : list[Check]
        Checks of the newest report (`mlff_student.reporting.verdict`).

    Raises
    ------
    InputError
        If an option or the structure cannot be used.
    ArchiveError, MissingDependencyError
        If there is no such model, or a backend or teacher is not installed.
    RunStoppedError
        From `Simulation.step`, if `action` is "stop" and a figure fails.
    """

    def __init__(
        self,
        topology: Topology,
        positions: unit.Quantity,
        model: str | Path = "original",
        *,
        every: int = 1000,
        atoms: Iterable[int] | None = None,
        action: str = "warn",
        csv: str | Path | None = None,
        append: bool = False,
        last_good: str | Path | None = None,
        periodic: bool | None = None,
        temperature_K: float | None = None,
        constant_energy: bool | None = None,
        teacher: str | Calculator | None = None,
        teacher_every: int = 10,
        thresholds: dict[str, Threshold] | None = None,
        backend: str = "auto",
        device: str = "cpu",
    ) -> None:
        if action not in ACTIONS:
            raise InputError(f"unknown action {action!r}; expected {' or '.join(ACTIONS)}")
        if every < 1 or teacher_every < 1:
            raise InputError(
                f"every and teacher_every must be at least 1, got {every} and {teacher_every}"
            )
        self._archive = archive = archive_of(model)
        self._student = evaluator(archive, backend, device)
        self._every, self._action = every, action
        self._constant_energy, self._temperature = constant_energy, temperature_K
        trained_at = (archive.metadata["domain"] or {}).get("temperatures_K", [])
        self._hottest = max(trained_at, default=math.inf)
        self._teacher = make_teacher(teacher) if isinstance(teacher, str) else teacher
        self._teacher_every = teacher_every
        members = student_atoms(topology, atoms, archive.metadata["elements"])
        self._indices = [atom.index for atom in members]
        self._names = [f"{atom.residue.name}{atom.residue.id}-{atom.name}" for atom in members]
        self._symbols = [atom.element.symbol for atom in members]
        self._periodic = periodic
        self._start = positions.value_in_unit(unit.angstrom), topology.getPeriodicBoxVectors()
        known = archive.metadata["elements"]
        self._species = np.array([known.index(symbol) for symbol in self._symbols])
        self._references = archive.weights()["references"][self._species]
        place = {index: k for k, index in enumerate(self._indices)}
        self._bonded = [
            (place[a.index], place[b.index])
            for a, b in topology.bonds()
            if a.index in place and b.index in place
        ]
        self._pairs: NDArray[np.int_] | None = None  # (B, 2), known at the first report
        table = load_thresholds() if thresholds is None else thresholds
        self._thresholds = domain_limits(archive) | table
        self._energies: deque[tuple[float, float]] = deque(maxlen=DRIFT_ROWS)  # ps, meV/atom
        self._newest = (-math.inf, 0)  # time in ps and step of the newest energy
        self.checks: list[Check] = []
        self._failing: set[str] = set()
        self._reports, self._good_step = 0, None
        self._last_good = Path(last_good) if last_good else None
        if self._last_good:
            require_writable(self._last_good)
        try:
            self._csv = open(csv, "a" if append else "w") if csv else None
        except OSError as error:
            raise InputError(f"cannot write {csv}: {error.strerror}") from error
        if self._csv and not self._csv.tell():
            print(",".join(COLUMNS), file=self._csv, flush=True)

    def describeNextReport(self, simulation: Simulation) -> dict[str, Any]:  # noqa: N802
        """Ask OpenMM for positions and velocities at the next report.

        Energies are not asked for, because no reporter is called if OpenMM cannot compute them.

        Parameters
        ----------
        simulation : Simulation
            The running simulation.

        Returns
        -------
        dict[str, Any]
            Number of steps to the next report, and what it needs.
        """
        steps = self._every - simulation.currentStep % self._every
        return {"steps": steps, "periodic": False, "include": ["positions", "velocities"]}

    def report(self, simulation: Simulation, state: openmm.State) -> None:
        """Judge a State. OpenMM calls this method.

        Parameters
        ----------
        simulation : Simulation
            The running simulation.
        state : openmm.State
            State with positions and velocities.

        Raises
        ------
        RunStoppedError
            If the action is "stop" and a figure fails.
        """
        if self._pairs is None:
            self._begin(simulation.system)
        degrees = degrees_of_freedom(simulation.system, state)
        atoms = self._atoms(
            state.getPositions(asNumpy=True).value_in_unit(unit.angstrom),
            state.getPeriodicBoxVectors(),
        )
        thermo = self._thermo(simulation, state, atoms, degrees)
        located = [
            *self._drift(simulation, thermo),
            *self._heat(thermo["temperature_k"], degrees),
            *self._bonds(atoms),
            *self._domain(atoms),
        ]
        self._reports += 1
        figures = [item.figure for item in located]
        finite = all(math.isfinite(thermo[key]) for key in THERMO_COLUMNS)
        figures.append(Figure("nonfinite_rows", int(not finite)))
        self.checks = judge(figures, self._thresholds)
        failed = {check.key for check in self.checks if check.outcome is Outcome.FAILED}
        places = {item.figure.key: item.atoms for item in located if item.atoms}
        if self._csv:
            row = {"step": simulation.currentStep} | thermo | record_of(figures)
            row |= {PLACES[key]: place for key, place in places.items()}
            row["failed"] = " ".join(sorted(failed))
            print(",".join(_text(row.get(key, "")) for key in COLUMNS), file=self._csv, flush=True)
        if not failed and self._last_good:
            with atomic_write(self._last_good) as temporary:
                simulation.saveState(str(temporary))
        if not failed:
            self._good_step = simulation.currentStep
        message = "; ".join(
            f"{check.key} {check.figure.value:.4g} (limit {check.threshold.value:g} "
            + ", ".join(filter(None, (check.threshold.unit, places.get(check.key, ""))))
            + ")"
            for check in self.checks
            if check.key in failed - (self._failing if self._action == "warn" else set())
        )
        self._failing = failed
        if failed and self._action == "stop":
            raise RunStoppedError(
                f"stopped at step {simulation.currentStep}: {message}. {self._good()}"
            )
        if message:
            logger.warning("step %d: %s", simulation.currentStep, message)

    def _begin(self, system: openmm.System) -> None:
        """Set what depends on whether the student is periodic: bonds and their lengths."""
        if self._periodic is None:
            student = [
                force for force in system.getForces() if force.getName().startswith(FORCE_NAME)
            ]
            self._periodic = (student[0] if student else system).usesPeriodicBoundaryConditions()
        positions, box = self._start
        if self._periodic and box is None:
            box = system.getDefaultPeriodicBoxVectors()
        start = self._atoms(positions, box)
        self._pairs = np.array(self._bonded or perceive_bonds(start), int).reshape(-1, 2)
        self._lengths = bond_lengths(start.positions[None], _cells(start), self._pairs)[0]

    @staticmethod
    def _thermo(
        simulation: Simulation, state: openmm.State, atoms: Atoms, degrees: int
    ) -> dict[str, float]:
        """Return a row of the run's log, with NaN for values that OpenMM cannot compute."""
        unknown = dict.fromkeys(THERMO_COLUMNS, math.nan)
        unknown["time_ps"] = state.getTime().value_in_unit(unit.picosecond)
        if not np.isfinite(atoms.positions).all():
            return unknown
        try:
            if not state.getDataTypes() & openmm.State.Energy:
                state = simulation.context.getState(energy=True)
            return thermo_row(state, degrees)
        except openmm.OpenMMException as error:
            logger.warning("step %d: no energy: %s", simulation.currentStep, cause(error))
            return unknown

    def _good(self) -> str:
        if self._good_step is None:
            return "No earlier report was good"
        kept = f"; its state is in {self._last_good}" if self._last_good else ""
        return f"The last good report was at step {self._good_step}{kept}"

    def _atoms(self, positions: Any, box: Any) -> Atoms:
        """Return the student's atoms, from all positions (N, 3) in angstrom and the box."""
        atoms = Atoms(self._symbols, positions=np.asarray(positions)[self._indices])
        if self._periodic:
            atoms.set_cell(np.array(box.value_in_unit(unit.angstrom)))
            atoms.pbc = True
        return atoms

    def _drift(self, simulation: Simulation, thermo: dict[str, float]) -> list[Located]:
        constant = self._constant_energy
        if constant is None:
            constant = isinstance(
                simulation.integrator, openmm.VerletIntegrator | openmm.VariableVerletIntegrator
            ) and not any(
                isinstance(force, CHANGE_TEMPERATURE_OR_VOLUME)
                for force in simulation.system.getForces()
            )
        if not constant:
            return []
        time, step = self._newest
        self._newest = thermo["time_ps"], simulation.currentStep
        finite = math.isfinite(thermo["total_ev"])
        follows = thermo["time_ps"] > time and simulation.currentStep == step + self._every
        if not (finite and follows):
            self._energies.clear()
        if not finite:
            return []
        per_atom = 1e3 * thermo["total_ev"] / moving_particles(simulation.system)
        self._energies.append((thermo["time_ps"], per_atom))
        if len(self._energies) < FEWEST_ROWS:
            return []
        slope, error = slope_with_error(*np.array(self._energies).T)
        return [Located(Figure("drift", slope, "meV/atom/ps", error))]

    def _heat(self, kelvin: float, degrees: int) -> list[Located]:
        middle = self._temperature or self._hottest
        if math.isinf(middle):
            return []
        sigma = (kelvin - middle) / (middle * math.sqrt(2.0 / degrees))
        if not self._temperature:
            sigma = max(sigma, 0.0)
        return [Located(Figure("temperature", sigma, "standard deviations"))]

    def _bonds(self, atoms: Atoms) -> list[Located]:
        pairs = self._pairs
        if pairs is None or not len(pairs):
            return []
        longest = float(self._lengths.max())
        lengths = bond_lengths(atoms.positions[None], _cells(atoms), pairs, longest)[0]
        deviation = np.abs(lengths - self._lengths)
        worst = int(deviation.argmax())
        first, second = pairs[worst]
        figure = Figure("bond_deviation", float(deviation[worst]), "angstrom")
        return [Located(figure, f"{self._names[first]} {self._names[second]}")]

    def _domain(self, atoms: Atoms) -> list[Located]:
        finite = np.isfinite(atoms.positions).all(1)
        if not finite.all():
            name = self._names[int(finite.argmin())]
            return [
                Located(Figure("largest_force", math.nan, "eV/angstrom"), name),
                Located(Figure("network_depth", math.nan, "eV"), name),
            ]
        results = self._student.evaluate(
            atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc
        )
        forces = results.forces
        sizes = np.linalg.norm(forces, axis=1)
        depths = np.maximum(self._references - results.energies, 0.0)  # repulsion is positive
        strongest, deepest = int(sizes.argmax()), int(depths.argmax())
        force = Figure("largest_force", float(sizes[strongest]), "eV/angstrom")
        depth = Figure("network_depth", float(depths[deepest]), "eV")
        located = [
            Located(force, self._names[strongest]),
            Located(depth, self._names[deepest]),
            *self._neighbourhoods(atoms),
        ]
        if self._teacher and self._reports % self._teacher_every == 0:
            error = _force_rmse(self._teacher, atoms, forces)
            located.append(Located(Figure("teacher_force_rmse", error, "eV/angstrom")))
            held_out = (self._archive.metadata["accuracy"] or {}).get("held_out_molecules", {})
            if expected := held_out.get("force_rmse_ev_per_angstrom"):
                located.append(Located(Figure("teacher_force_rmse_ratio", error / expected)))
        return located

    def _neighbourhoods(self, atoms: Atoms) -> list[Located]:
        """Return the atom whose neighbours differ most from those in the training data."""
        limits = (self._archive.metadata["domain"] or {}).get("neighbours")
        if not limits:
            return []
        elements = self._archive.metadata["elements"]
        edges, vectors = edges_of(atoms, REACH)
        distances = np.linalg.norm(vectors, axis=1)
        counts = neighbour_counts(distances, edges, self._species, len(elements))
        excess = neighbourhood_excess(counts, self._species, elements, limits)
        largest = int(excess.argmax())
        figure = Figure("neighbourhood_excess", float(excess[largest]))
        return [Located(figure, self._names[largest])]


def domain_limits(archive: Archive) -> dict[str, Threshold]:
    """Return the thresholds that the archive sets by the limits of its training data.

    Parameters
    ----------
    archive : Archive
        Archive of a student.

    Returns
    -------
    dict[str, Threshold]
        Thresholds by the keys of the figures.
    """
    limits = {
        "network_depth_ev": Threshold(
            -archive.metadata["lowest"],
            "eV",
            "The student compresses lower network energies; no atom in the training data has them.",
        )
    }
    if largest := (archive.metadata["domain"] or {}).get("largest_force_ev_per_angstrom"):
        source = "The largest force on an atom in the training data."
        limits["largest_force_ev_per_angstrom"] = Threshold(largest, "eV/angstrom", source)
    return limits


def _cells(atoms: Atoms) -> NDArray[np.float64] | None:
    """Return the cell (1, 3, 3) of periodic atoms, angstrom, or None."""
    return atoms.cell.array[None] if atoms.pbc.all() else None


def _text(value: float | str) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _force_rmse(teacher: Calculator, atoms: Atoms, forces: NDArray[np.float64]) -> float:
    """Return the RMSE of the student's forces, eV/angstrom; NaN if the teacher fails."""
    try:
        expected = teacher.get_property("forces", atoms)
    except Exception as error:  # a teacher may be any program
        logger.warning("the teacher failed: %s", error)
        return math.nan
    return float(np.sqrt(np.mean((forces - expected) ** 2)))
