"""A reporter that watches a run: energy drift, temperature, bonds, the student's domain."""

import logging
import math
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openmm
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator
from numpy.typing import NDArray
from openmm import unit
from openmm.app import Simulation, Topology

from mlff_student.analysis.bonds import bond_lengths
from mlff_student.analysis.drift import slope_with_error
from mlff_student.analysis.thermo import FEWEST_ROWS
from mlff_student.archive.archive import Archive
from mlff_student.archive.native import with_backend
from mlff_student.archive.registry import archive_of
from mlff_student.core.errors import InputError, RunStoppedError
from mlff_student.core.figures import Figure, Threshold, load_thresholds, record_of
from mlff_student.core.files import atomic_write
from mlff_student.engines.ase.calculator import evaluate
from mlff_student.engines.protocol import THERMO_COLUMNS
from mlff_student.model.neighbourhoods import REACH, neighbour_counts, neighbourhood_excess
from mlff_student.model.neighbours import neighbour_edges
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
DRIFT_ROWS = 1000  # newest rows that the drift is of
# Columns that say where in the molecule a figure is, by the figure's key.
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
    """A figure of one frame, and the atoms that have it."""

    figure: Figure
    atoms: str = ""


class Monitor:
    """Reporter for `Simulation.reporters` that judges a run by the project's thresholds.

    Every report costs two evaluations of the student: OpenMM's for the energies, and the monitor's
    own. It acts where a figure fails (`mlff_student.reporting.verdict.judge`), and waits where one
    is not resolved yet. What is judged, by `mlff_student/core/thresholds.yaml` and the domain in
    the archive's metadata:

    - drift of the total energy over the newest 1000 reports, where energy is constant; it begins
      anew where time or steps go back or leap (a restored State), and after an energy that is NaN;
    - temperature, in standard deviations of the canonical ensemble;
    - bonds among the student's atoms, against their lengths in `positions`;
    - the student's largest force, against the largest in its training data;
    - the network's energy of an atom, which in the training data stays above the bound where the
      student squeezes it: below, the neighbourhood is like nothing the student has seen;
    - the neighbours of each atom, by element and distance, against those of atoms in the training
      data (`mlff_student.model.neighbourhoods`);
    - the student's forces against a teacher's, now and then;
    - energies and positions that are NaN or infinite (`nonfinite_rows`).

    A report that finds NaN writes its row and does what `action` says. But the student refuses such
    positions, so the next step ends in an OpenMMException with "warn" too. That exception comes
    first, and no reporter is called, where NaN arises between two reports (`every` above 1) or
    another reporter asks for energies at the same step. The last good state is then the newest one
    before.

    Parameters
    ----------
    topology, positions : of the start, a minimised structure, say.
    model : of the student that runs; shipped name, or path of a checkpoint or archive.
    every : steps between reports.
    atoms : indices that the student acts on (link atoms included); all if None.
    action : "warn" (in the log, when a figure begins to fail) or "stop" (raise).
    csv : file that receives a row of `COLUMNS` for each report; `mlff-student analyze` reads it.
    append : to a csv that is there; else it is written over, as OpenMM's reporters do.
    last_good : file that receives the State of each report in which nothing failed, whole or not
        at all; `Simulation.loadState` goes on from it.
    periodic : whether the student is; None: what the System does, by its student's force or, where
        that is inside another one (openmm-ml's interpolation), by the System as a whole.
    temperature_K : of the thermostat; None: at most the highest temperature of the training data.
    constant_energy : whether drift is judged; None: with the Verlet integrators of OpenMM where no
        thermostat and no barostat is among the forces.
    teacher : name that `make_teacher` takes, or an ASE calculator.
    teacher_every : reports between comparisons with the teacher.
    thresholds : table in place of the project's; its limits of the training data, too, go before
        those of the archive.
    backend, device : of the student, as in `student_force`.

    Attributes
    ----------
    checks : list of Check
        Of the newest report (`mlff_student.reporting.verdict`).

    Raises
    ------
    InputError : options or a structure that cannot be used.
    ArchiveError, MissingDependencyError : no such model, kernels or teacher.
    RunStoppedError : from `Simulation.step`, where action is "stop" and a figure fails.
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
            raise InputError(f"no action {action!r}; there are {', '.join(ACTIONS)}")
        if every < 1 or teacher_every < 1:
            raise InputError(
                f"every and teacher_every must be at least 1, not {every}, {teacher_every}"
            )
        archive = archive_of(model, device=device)
        self._archive = with_backend(archive, backend, device)
        self._device, self._every, self._action = device, every, action
        self._constant_energy, self._temperature = constant_energy, temperature_K
        trained_at = (archive.metadata["domain"] or {}).get("temperatures_K", [])
        self._hottest = max(trained_at, default=math.inf)
        self._teacher = make_teacher(teacher) if isinstance(teacher, str) else teacher
        self._teacher_every = teacher_every
        members = student_atoms(topology, atoms, archive.metadata["elements"])
        self._indices = [atom.index for atom in members]
        self._names = [f"{one.residue.name}{one.residue.id}-{one.name}" for one in members]
        self._symbols = [atom.element.symbol for atom in members]
        self._periodic = periodic
        self._start = positions.value_in_unit(unit.angstrom), topology.getPeriodicBoxVectors()
        species = archive.module.student.species_of[Atoms(self._symbols).numbers]
        self._references = archive.module.student.references[species].cpu().numpy()
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
        self._newest = (-math.inf, 0)  # time in ps and step of the last of them
        self.checks: list[Check] = []
        self._failing: set[str] = set()
        self._reports, self._good_step = 0, None
        self._last_good = Path(last_good) if last_good else None
        self._csv = open(csv, "a" if append else "w") if csv else None
        if self._csv and not self._csv.tell():
            print(",".join(COLUMNS), file=self._csv, flush=True)

    def describeNextReport(self, simulation: Simulation) -> dict[str, Any]:  # noqa: N802
        """Ask OpenMM for positions and velocities after the next `every` steps, not for energies:
        where it has none, no reporter would be called.
        """
        steps = self._every - simulation.currentStep % self._every
        return {"steps": steps, "periodic": False, "include": ["positions", "velocities"]}

    def report(self, simulation: Simulation, state: openmm.State) -> None:
        """Judge one State; called by OpenMM."""
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
        figures = [one.figure for one in located]
        finite = all(math.isfinite(thermo[key]) for key in THERMO_COLUMNS)
        figures.append(Figure("nonfinite_rows", int(not finite)))
        self.checks = judge(figures, self._thresholds)
        failed = {check.key for check in self.checks if check.outcome is Outcome.FAILED}
        places = {one.figure.key: one.atoms for one in located if one.atoms}
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
        words = "; ".join(
            f"{check.key} {check.figure.value:.4g} (limit {check.threshold.value:g} "
            + ", ".join(filter(None, (check.threshold.unit, places.get(check.key, ""))))
            + ")"
            for check in self.checks
            if check.key in failed - (self._failing if self._action == "warn" else set())
        )
        self._failing = failed
        if failed and self._action == "stop":
            raise RunStoppedError(
                f"stopped at step {simulation.currentStep}: {words}. {self._good()}"
            )
        if words:
            logger.warning("step %d: %s", simulation.currentStep, words)

    def _begin(self, system: openmm.System) -> None:
        """What depends on whether the student is periodic."""
        if self._periodic is None:
            own = [one for one in system.getForces() if one.getName().startswith(FORCE_NAME)]
            self._periodic = (own[0] if own else system).usesPeriodicBoundaryConditions()
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
        """A row of the run's log; NaN in place of what OpenMM cannot tell."""
        nowhere = dict.fromkeys(THERMO_COLUMNS, math.nan)
        nowhere["time_ps"] = state.getTime().value_in_unit(unit.picosecond)
        if not np.isfinite(atoms.positions).all():
            return nowhere
        try:
            if not state.getDataTypes() & openmm.State.Energy:
                state = simulation.context.getState(energy=True)
            return thermo_row(state, degrees)
        except openmm.OpenMMException as error:
            logger.warning("step %d: no energy: %s", simulation.currentStep, cause(error))
            return nowhere

    def _good(self) -> str:
        if self._good_step is None:
            return "No report before was good"
        kept = f", its state is in {self._last_good}" if self._last_good else ""
        return f"The last good report was at step {self._good_step}{kept}"

    def _atoms(self, positions: Any, box: Any) -> Atoms:
        """The student's atoms, of all positions (N, 3) in angstrom and the box."""
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
        if not len(self._pairs):
            return []
        longest = float(self._lengths.max())
        lengths = bond_lengths(atoms.positions[None], _cells(atoms), self._pairs, longest)[0]
        deviation = np.abs(lengths - self._lengths)
        worst = int(deviation.argmax())
        first, second = self._pairs[worst]
        figure = Figure("bond_deviation", float(deviation[worst]), "angstrom")
        return [Located(figure, f"{self._names[first]} {self._names[second]}")]

    def _domain(self, atoms: Atoms) -> list[Located]:
        finite = np.isfinite(atoms.positions).all(1)
        if not finite.all():
            nowhere = self._names[int(finite.argmin())]
            return [
                Located(Figure("largest_force", math.nan, "eV/angstrom"), nowhere),
                Located(Figure("network_depth", math.nan, "eV"), nowhere),
            ]
        energies, forces, _ = (
            one.cpu().numpy() for one in evaluate(self._archive, atoms, self._device)
        )
        sizes = np.linalg.norm(forces, axis=1)
        depths = np.maximum(self._references - energies, 0.0)  # repulsion can only add to energies
        strongest, deepest = int(sizes.argmax()), int(depths.argmax())
        force = Figure("largest_force", float(sizes[strongest]), "eV/angstrom")
        depth = Figure("network_depth", float(depths[deepest]), "eV")
        located = [
            Located(force, self._names[strongest]),
            Located(depth, self._names[deepest]),
            *self._neighbourhoods(atoms),
        ]
        if self._teacher and self._reports % self._teacher_every == 0:
            error = self._error(atoms, forces)
            located.append(Located(Figure("teacher_force_rmse", error, "eV/angstrom")))
            held_out = (self._archive.metadata["accuracy"] or {}).get("held_out_molecules", {})
            if usual := held_out.get("force_rmse_ev_per_angstrom"):
                located.append(Located(Figure("teacher_force_rmse_ratio", error / usual)))
        return located

    def _neighbourhoods(self, atoms: Atoms) -> list[Located]:
        """The atom whose neighbours are the least like any in training."""
        limits = (self._archive.metadata["domain"] or {}).get("neighbours")
        if not limits:
            return []
        vectors, edges = neighbour_edges(
            torch.tensor(atoms.positions),
            torch.tensor(atoms.cell.array),
            torch.tensor(atoms.pbc),
            REACH,
        )
        elements = self._archive.metadata["elements"]
        species = torch.tensor([elements.index(symbol) for symbol in atoms.symbols])
        counts = neighbour_counts(vectors.norm(dim=1), edges, species, len(elements))
        excess = neighbourhood_excess(counts, species, elements, limits)
        strangest = int(excess.argmax())
        figure = Figure("neighbourhood_excess", float(excess[strangest]))
        return [Located(figure, self._names[strangest])]

    def _error(self, atoms: Atoms, forces: NDArray[np.float64]) -> float:
        """RMSE of the student's forces against the teacher's; NaN where the teacher has none."""
        try:
            expected = self._teacher.get_property("forces", atoms)
        except Exception as error:  # it is anybody's program
            logger.warning("the teacher failed: %s", error)
            return math.nan
        return float(np.sqrt(np.mean((forces - expected) ** 2)))


def domain_limits(archive: Archive) -> dict[str, Threshold]:
    """Thresholds that the archive itself sets: where its training data end."""
    limits = {
        "network_depth_ev": Threshold(
            -archive.metadata["lowest"],
            "eV",
            "Network energies that the student squeezes, and that no atom has in training.",
        )
    }
    if largest := (archive.metadata["domain"] or {}).get("largest_force_ev_per_angstrom"):
        source = "The largest force on an atom in the training data."
        limits["largest_force_ev_per_angstrom"] = Threshold(largest, "eV/angstrom", source)
    return limits


def _cells(atoms: Atoms) -> NDArray[np.float64] | None:
    """Cell (1, 3, 3) of periodic atoms."""
    return atoms.cell.array[None] if atoms.pbc.all() else None


def _text(value: float | str) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)
