"""The MD protocol of mlff_student.engines.protocol in ASE, for a student, a teacher or any other calculator."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import mdtraj
import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import LBFGS

from mlff_student.core.errors import InputError, StudentError
from mlff_student.core.files import atomic_write
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.engines.protocol import (
    COLDEST_START,
    THERMO_COLUMNS,
    Engine,
    MDSettings,
    RunFolder,
    Segment,
)
from mlff_student.structures.reading import Structure
from mlff_student.teachers.registry import is_teacher, make_teacher
from mlff_student.validation.reference_monte_carlo import HybridMonteCarlo

MINIMISE_FORCE = 0.1  # eV/angstrom, the largest component left
MINIMISE_STEPS = 200
PRESSURE = "pressure_gpa"  # column of the log where the calculator gives a stress
CHECKPOINT = "checkpoint.npz"


class State(NamedTuple):
    """What production goes on from."""

    step: int
    positions: np.ndarray  # (N, 3), angstrom
    momenta: np.ndarray  # (N, 3), ASE's units
    randomness: str  # the generator's state as JSON


def engine_with(calculator: Calculator | None) -> Engine:
    """Engine of `mlff_student.engines.run.run_md` (see `mlff_student.engines.protocol.Engine`).

    Parameters
    ----------
    calculator : what gives energy and forces; the settings' model, student or teacher, if None.
    """

    def run_ase(
        settings: MDSettings,
        structure: Structure,
        folder: RunFolder,
        progress: Callable[[int], None],
    ) -> float:
        torch.set_num_threads(settings.threads_for(len(structure.atoms)))
        atoms = structure.atoms.copy()
        atoms.calc = calculator or _calculator_of(settings, folder)
        return _run(settings, atoms, folder, progress)

    return run_ase


@contextmanager
def _charged_to_calculator() -> Iterator[None]:
    """StudentError of whatever a calculator raises, which may be anything; but what the machine is
    to blame for passes, and what this package says of the installation.
    """
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, StudentError) and not isinstance(error, InputError):
            raise
        what = str(error) or type(error).__name__
        raise StudentError(f"the calculator stopped: {what}") from error


def _calculator_of(settings: MDSettings, folder: RunFolder) -> Calculator:
    if is_teacher(settings.model):
        return make_teacher(settings.model)
    return StudentForceFieldCalculator(model=folder.archive, backend=settings.backend)


def _run(
    settings: MDSettings, atoms: Atoms, folder: RunFolder, progress: Callable[[int], None]
) -> float:
    checkpoint = folder.path / CHECKPOINT
    rng = np.random.Generator(np.random.PCG64(settings.seed))
    guide = StudentForceFieldCalculator(settings.guide) if settings.guide else None
    if not checkpoint.exists():
        target, atoms.calc = atoms.calc, guide or atoms.calc
        with _charged_to_calculator():
            _thermalise(settings, atoms, rng)
        atoms.calc = target
        _save(checkpoint, 0, atoms, rng)
    with np.load(checkpoint) as content:
        state = State(**content)
    atoms.positions = state.positions
    atoms.set_momenta(state.momenta)
    rng.bit_generator.state = json.loads(str(state.randomness))
    first = step = int(state.step)
    timestep_fs = settings.timestep_fs
    if guide:
        dynamics = HybridMonteCarlo(
            atoms, guide, timestep_fs * units.fs, temperature_K=settings.temperature_K, rng=rng
        )
    else:
        dynamics = _dynamics(settings, atoms, rng, settings.ensemble, timestep_fs)
    began = time.perf_counter()
    progress(first)
    while step < settings.steps:  # one segment to a checkpoint: a DCD file is whole once closed
        last = min(step + settings.checkpoint_every, settings.steps)
        with _charged_to_calculator():
            _write_segment(settings, dynamics, folder.segment(step), step, last, progress)
        _save(checkpoint, last, atoms, rng)
        step = last
    steps = settings.steps - first
    return 1e3 * (time.perf_counter() - began) / steps if steps else math.nan


def _write_segment(
    settings: MDSettings,
    dynamics: MolecularDynamics | HybridMonteCarlo,
    segment: Segment,
    first: int,
    last: int,
    progress: Callable[[int], None],
) -> None:
    atoms = dynamics.atoms
    degrees = max(1, 3 * len(atoms) - 3)
    box = _box(atoms)
    with (
        closing(mdtraj.formats.DCDTrajectoryFile(str(segment.trajectory), "w")) as frames,
        open(segment.thermo, "w") as log,
    ):
        columns = (*THERMO_COLUMNS, PRESSURE) if _has_stress(atoms) else THERMO_COLUMNS
        print(",".join(columns), file=log, flush=True)
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
            frames.write(atoms.positions[None].astype(np.float32), **box)
            print(",".join(f"{value:.12g}" for value in row), file=log, flush=True)
            progress(step)


def _has_stress(atoms: Atoms) -> bool:
    """Whether the calculator gives it along with the forces."""
    atoms.get_forces()
    return bool(atoms.pbc.all()) and "stress" in atoms.calc.results


def _box(atoms: Atoms) -> dict[str, np.ndarray]:
    if not atoms.pbc.all():
        return {}
    lengths, angles = np.split(atoms.cell.cellpar(), 2)
    return {"cell_lengths": lengths, "cell_angles": angles}


def _thermalise(settings: MDSettings, atoms: Atoms, rng: np.random.Generator) -> None:
    """Minimise, then Langevin dynamics; a constant-energy run then has the temperature asked for
    (see `MDSettings.thermalise_steps`).
    """
    LBFGS(atoms, logfile=None).run(fmax=MINIMISE_FORCE, steps=MINIMISE_STEPS)
    thermalize_momenta(atoms, temperature_K=settings.temperature_K, rng=rng)
    Stationary(atoms)
    dynamics = _dynamics(settings, atoms, rng, "nvt", settings.start_timestep_fs)
    dynamics.run(settings.thermalise_steps // 2)
    potentials: list[float] = []
    dynamics.attach(lambda: potentials.append(atoms.get_potential_energy()))
    dynamics.run(settings.thermalise_steps - settings.thermalise_steps // 2)
    Stationary(atoms)
    degrees = max(1, 3 * len(atoms) - 3)
    thermal = 0.5 * degrees * units.kB * settings.temperature_K
    missing = float(np.mean(potentials)) - atoms.get_potential_energy()
    wanted = max(thermal + missing, COLDEST_START * thermal)
    if (kinetic := atoms.get_kinetic_energy()) > 0:
        atoms.set_momenta(atoms.get_momenta() * np.sqrt(wanted / kinetic))


def _dynamics(
    settings: MDSettings, atoms: Atoms, rng: np.random.Generator, ensemble: str, timestep_fs: float
) -> MolecularDynamics:
    timestep = timestep_fs * units.fs
    if ensemble == "nve":
        return VelocityVerlet(atoms, timestep)
    friction = settings.friction_per_ps / (1000.0 * units.fs)
    # Not fixcm, which heats small molecules; the centre of mass is brought to rest every step.
    dynamics = Langevin(
        atoms, timestep, temperature_K=settings.temperature_K, friction=friction, fixcm=False,
        rng=rng,
    )  # fmt: skip
    dynamics.attach(lambda: Stationary(atoms, preserve_temperature=False))
    return dynamics


def _save(path: Path, step: int, atoms: Atoms, rng: np.random.Generator) -> None:
    state = State(step, atoms.positions, atoms.get_momenta(), json.dumps(rng.bit_generator.state))
    with atomic_write(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, **state._asdict())
        stream.flush()
        os.fsync(stream.fileno())
