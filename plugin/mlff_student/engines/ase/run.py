"""Runs molecular dynamics in ASE, with a student, a teacher or any other calculator."""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import mdtraj
import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import LBFGS

from mlff_student.core.errors import InputError, InterruptedRunError, StudentError
from mlff_student.core.files import ascii_path, atomic_write
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.engines.protocol import (
    MIN_START_KINETIC_FRACTION,
    THERMO_COLUMNS,
    Engine,
    MDSettings,
    RunFolder,
    Segment,
    damaged_run,
)
from mlff_student.structures.reading import Structure
from mlff_student.teachers.registry import is_teacher, make_teacher

MINIMISE_FORCE = 0.1  # largest force on an atom at which minimisation ends, eV/angstrom
MINIMISE_STEPS = 200
PRESSURE = "pressure_gpa"  # column of the log if the calculator computes a stress
CHECKPOINT = "checkpoint.npz"


class State(NamedTuple):
    """Contents of a checkpoint.

    Attributes
    ----------
    step : int
        Number of production steps done.
    positions : np.ndarray
        Positions (N, 3), angstrom.
    momenta : np.ndarray
        Momenta (N, 3), ASE's units.
    randomness : str
        State of the random number generator as JSON.
    cell : np.ndarray or None
        Lattice vectors as rows (3, 3), angstrom. None, as in files of older versions: those of the
        structure.
    """

    step: int
    positions: np.ndarray
    momenta: np.ndarray
    randomness: str
    cell: np.ndarray | None = None


class Dynamics(Protocol):
    """An object that moves atoms, such as ASE's `MolecularDynamics`.

    If it has the attribute `record`, a dictionary from names to numbers, the log has a column for
    each name.
    """

    atoms: Atoms

    def run(self, steps: int) -> Any:
        """Move the atoms by a number of steps."""


def engine_with(calculator: Calculator | None) -> Engine:
    """Return the ASE engine of `run_md`; see `mlff_student.engines.protocol.Engine`.

    Parameters
    ----------
    calculator : Calculator, optional
        ASE calculator of the run; None uses the model of the settings, a student or a teacher.
    """

    def run_ase(
        settings: MDSettings,
        structure: Structure,
        folder: RunFolder,
        progress: Callable[[int], None],
    ) -> float:
        atoms = structure.atoms.copy()
        atoms.calc = calculator or calculator_of(settings, folder)
        step, rng = start(settings, atoms, folder)
        dynamics = make_dynamics(settings, atoms, rng, settings.ensemble, settings.timestep_fs)
        return produce(settings, dynamics, step, rng, folder, progress)

    return run_ase


@contextmanager
def _calculator_errors() -> Iterator[None]:
    """Raise a StudentError for any error of a calculator.

    Errors of the machine (OSError, MemoryError) and this package's errors about the installation
    are raised unchanged.
    """
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, StudentError) and not isinstance(error, InputError):
            raise
        reason = str(error) or type(error).__name__
        raise StudentError(f"the calculator stopped: {reason}") from error


def calculator_of(settings: MDSettings, folder: RunFolder) -> Calculator:
    """Return the calculator of the settings' teacher, or of the student in the run's folder."""
    if is_teacher(settings.model):
        return make_teacher(settings.model)
    return StudentForceFieldCalculator(model=folder.archive, backend=settings.backend)


def start(settings: MDSettings, atoms: Atoms, folder: RunFolder) -> tuple[int, np.random.Generator]:
    """Set atoms to the state of the newest checkpoint.

    Without a checkpoint, minimise and thermalise the atoms first and write one.

    Parameters
    ----------
    settings : MDSettings
        Settings of the run.
    atoms : Atoms
        Atoms with their calculator; positions, momenta and cell are changed.
    folder : RunFolder
        Folder of the run.

    Returns
    -------
    step : int
        Number of production steps done.
    rng : np.random.Generator
        Random number generator in the state of the checkpoint.

    Raises
    ------
    StudentError
        The calculator raised an error.
    InterruptedRunError
        The checkpoint is damaged.
    """
    threads = settings.threads_for(len(atoms))
    if "torch" in sys.modules:  # for a teacher or the portable backend
        sys.modules["torch"].set_num_threads(threads)
    if isinstance(atoms.calc, StudentForceFieldCalculator):
        atoms.calc.use_threads(threads)
    checkpoint = folder.path / CHECKPOINT
    rng = np.random.Generator(np.random.PCG64(settings.seed))
    if not checkpoint.exists():
        with _calculator_errors():
            thermalise(settings, atoms, rng)
        _save(checkpoint, 0, atoms, rng)
    try:
        with np.load(checkpoint) as content:
            state = State(**content)
        step = int(state.step)
        if not 0 <= step <= settings.steps or step % settings.every:
            raise ValueError(f"step {step}")
        for values in (state.positions, state.momenta):
            if values.shape != (len(atoms), 3) or not np.isfinite(values).all():
                raise ValueError(f"expected {len(atoms)} positions and momenta")
        if state.cell is not None:
            if not np.isfinite(state.cell).all():
                raise ValueError("the cell is not finite")
            atoms.set_cell(state.cell)
        atoms.positions = state.positions
        atoms.set_momenta(state.momenta)
        rng.bit_generator.state = json.loads(str(state.randomness))
    except Exception as error:  # NumPy raises errors of any kind for a damaged file
        raise damaged_run(folder, f"{checkpoint} cannot be read ({error})") from error
    return step, rng


def produce(
    settings: MDSettings,
    dynamics: Dynamics,
    first: int,
    rng: np.random.Generator,
    folder: RunFolder,
    progress: Callable[[int], None],
) -> float:
    """Run production to its end, with a checkpoint after each segment.

    Parameters
    ----------
    settings : MDSettings
        Settings of the run.
    dynamics : Dynamics
        Object that moves the atoms.
    first : int
        Number of production steps done; see `start`.
    rng : np.random.Generator
        Random number generator of `dynamics`; its state is stored in the checkpoints.
    folder : RunFolder
        Folder that receives segments and checkpoints.
    progress : Callable[[int], None]
        Function that is called with the number of completed steps.

    Returns
    -------
    float
        Wall time of a step, ms.

    Raises
    ------
    StudentError
        The calculator raised an error.
    """
    began = time.perf_counter()
    progress(first)
    step = first
    # Each checkpoint ends a segment, because a DCD file is complete only after it is closed.
    while step < settings.steps:
        last = min(step + settings.checkpoint_every, settings.steps)
        with _calculator_errors():
            write_segment(settings, dynamics, folder.segment(step), step, last, progress)
        _save(folder.path / CHECKPOINT, last, dynamics.atoms, rng)
        step = last
    steps = settings.steps - first
    return 1e3 * (time.perf_counter() - began) / steps if steps else math.nan


def write_segment(
    settings: MDSettings,
    dynamics: Dynamics,
    segment: Segment,
    first: int,
    last: int,
    progress: Callable[[int], None],
) -> None:
    """Run from step `first` to step `last`; write a frame and a log row every `settings.every`."""
    atoms = dynamics.atoms
    degrees = max(1, 3 * len(atoms) - 3)
    record: dict[str, float] = getattr(dynamics, "record", {})
    with (
        ascii_path(segment.trajectory) as name,
        closing(mdtraj.formats.DCDTrajectoryFile(name, "w")) as frames,
        open(segment.thermo, "w") as log,
    ):
        columns = (*THERMO_COLUMNS, PRESSURE) if _has_stress(atoms) else THERMO_COLUMNS
        print(",".join([*columns, *record]), file=log, flush=True)
        for step in range(first + settings.every, last + 1, settings.every):
            dynamics.run(settings.every)
            potential, kinetic = atoms.get_potential_energy(), atoms.get_kinetic_energy()
            row = [
                step * settings.timestep_fs * 1e-3,
                potential,
                kinetic,
                potential + kinetic,
                2.0 * kinetic / (degrees * units.kB),
            ]
            if PRESSURE in columns:
                stress = atoms.get_stress(include_ideal_gas=True)
                row.append(-stress[:3].mean() / units.GPa)
            row += record.values()
            try:
                frames.write(atoms.positions[None].astype(np.float32), **_box(atoms))
            except Exception as error:  # MDTraj has no error of its own for a full disk
                raise InterruptedRunError(
                    f"cannot write {segment.trajectory}; is the disk full?"
                ) from error
            print(",".join(f"{value:.12g}" for value in row), file=log, flush=True)
            progress(step)


def _has_stress(atoms: Atoms) -> bool:
    """Return whether the calculator computes the stress together with the forces."""
    atoms.get_forces()
    return bool(atoms.pbc.all()) and "stress" in atoms.calc.results


def _box(atoms: Atoms) -> dict[str, np.ndarray]:
    if not atoms.pbc.all():
        return {}
    lengths, angles = np.split(atoms.cell.cellpar(), 2)
    return {"cell_lengths": lengths, "cell_angles": angles}


def thermalise(settings: MDSettings, atoms: Atoms, rng: np.random.Generator) -> None:
    """Minimise atoms and run Langevin dynamics, before production at any ensemble.

    The kinetic energy at the end is such that a run at constant energy has the temperature of the
    settings; see `MDSettings.thermalise_steps`.
    """
    LBFGS(atoms, logfile=os.devnull).run(fmax=MINIMISE_FORCE, steps=MINIMISE_STEPS)
    thermalize_momenta(atoms, temperature_K=settings.temperature_K, rng=rng)
    Stationary(atoms)
    dynamics = make_dynamics(settings, atoms, rng, "nvt", settings.start_timestep_fs)
    dynamics.run(settings.thermalise_steps // 2)
    potentials: list[float] = []
    dynamics.attach(lambda: potentials.append(atoms.get_potential_energy()))
    dynamics.run(settings.thermalise_steps - settings.thermalise_steps // 2)
    Stationary(atoms)
    degrees = max(1, 3 * len(atoms) - 3)
    thermal = 0.5 * degrees * units.kB * settings.temperature_K
    missing = float(np.mean(potentials)) - atoms.get_potential_energy()
    wanted = max(thermal + missing, MIN_START_KINETIC_FRACTION * thermal)
    if (kinetic := atoms.get_kinetic_energy()) > 0:
        atoms.set_momenta(atoms.get_momenta() * np.sqrt(wanted / kinetic))


def make_dynamics(
    settings: MDSettings, atoms: Atoms, rng: np.random.Generator, ensemble: str, timestep_fs: float
) -> MolecularDynamics:
    """Return ASE's velocity Verlet dynamics for "nve" and Langevin dynamics for "nvt"."""
    timestep = timestep_fs * units.fs
    if ensemble == "nve":
        return VelocityVerlet(atoms, timestep)
    friction = settings.friction_per_ps / (1000.0 * units.fs)
    # The option fixcm heats small molecules, so the centre of mass is set to rest after each step.
    dynamics = Langevin(
        atoms, timestep, temperature_K=settings.temperature_K, friction=friction, fixcm=False,
        rng=rng,
    )  # fmt: skip
    dynamics.attach(lambda: Stationary(atoms, preserve_temperature=False))
    return dynamics


def _save(path: Path, step: int, atoms: Atoms, rng: np.random.Generator) -> None:
    randomness = json.dumps(rng.bit_generator.state)
    state = State(step, atoms.positions, atoms.get_momenta(), randomness, atoms.cell.array)
    with atomic_write(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, **state._asdict())
        stream.flush()
        os.fsync(stream.fileno())
