"""The MD protocol of mlff_student.md in OpenMM."""

import math
import os
import time
from collections.abc import Callable

import numpy as np
from openmm import (
    CMMotionRemover,
    Integrator,
    LangevinMiddleIntegrator,
    LocalEnergyMinimizer,
    OpenMMException,
    Platform,
    VerletIntegrator,
    unit,
)
from openmm.app import DCDReporter, Simulation

from mlff_student.errors import InputError, StudentError
from mlff_student.files import atomic_write
from mlff_student.md import THERMO_COLUMNS, MDSettings, RunFolder
from mlff_student.structure import Structure

from .system import create_system
from .topology import openmm_topology

MINIMISE_TOLERANCE = 10.0 * unit.kilojoule_per_mole / unit.nanometer


class ThermoReporter:
    """Rows of the run's log: time in ps, energies in eV, temperature in K (3N - 3 degrees of
    freedom: the centre of mass is at rest).
    """

    def __init__(self, path: os.PathLike[str], every: int) -> None:
        self._every = every
        self._file = open(path, "w")
        print(",".join(THERMO_COLUMNS), file=self._file, flush=True)

    def describeNextReport(self, simulation: Simulation) -> dict:  # noqa: N802  (OpenMM's name)
        """Ask OpenMM for the energies after the next `every` steps."""
        steps = self._every - simulation.currentStep % self._every
        return {"steps": steps, "periodic": None, "include": ["energy"]}

    def report(self, simulation: Simulation, state) -> None:
        """Write one row."""
        per_mole = unit.kilojoule_per_mole
        potential = state.getPotentialEnergy().value_in_unit(per_mole)
        kinetic = state.getKineticEnergy().value_in_unit(per_mole)
        degrees = 3 * simulation.topology.getNumAtoms() - 3
        gas_constant = unit.MOLAR_GAS_CONSTANT_R.value_in_unit(per_mole / unit.kelvin)
        ev = (1.0 * unit.elementary_charge * unit.volt * unit.AVOGADRO_CONSTANT_NA).value_in_unit(
            per_mole
        )
        time_ps = state.getTime().value_in_unit(unit.picosecond)
        row = (
            time_ps,
            potential / ev,
            kinetic / ev,
            (potential + kinetic) / ev,
            2.0 * kinetic / (max(degrees, 1) * gas_constant),
        )
        print(",".join(f"{value:.12g}" for value in row), file=self._file, flush=True)


def run_openmm(
    settings: MDSettings,
    structure: Structure,
    folder: RunFolder,
    progress: Callable[[int], None],
) -> float:
    """Engine of `mlff_student.md.run_md`; see `mlff_student.md.Engine`."""
    topology = openmm_topology(structure)
    system = create_system(topology, folder.archive)
    if settings.ensemble == "nvt":
        system.addForce(CMMotionRemover())
    checkpoint = folder.path / "checkpoint.bin"

    def simulation(integrator: Integrator) -> Simulation:
        return Simulation(topology, system, integrator, *_platform(settings.platform))

    timestep = settings.timestep_fs * unit.femtosecond
    friction = settings.friction_per_ps / unit.picosecond
    temperature = settings.temperature_K * unit.kelvin
    langevin = LangevinMiddleIntegrator(temperature, friction, timestep)
    langevin.setRandomNumberSeed(settings.seed)
    try:
        if settings.ensemble == "nve":
            production = simulation(VerletIntegrator(timestep))
        else:
            production = simulation(langevin)
        if checkpoint.exists():
            production.loadCheckpoint(str(checkpoint))
        else:
            start = production if settings.ensemble == "nvt" else simulation(langevin)
            start.context.setPositions(structure.atoms.positions * unit.angstrom)
            LocalEnergyMinimizer.minimize(start.context, MINIMISE_TOLERANCE)
            start.context.setVelocitiesToTemperature(temperature, settings.seed)
            start.step(settings.thermalise_steps)
            state = start.context.getState(positions=True, velocities=True)
            production.context.setPositions(state.getPositions())
            production.context.setVelocities(_at_rest(state.getVelocities(asNumpy=True), system))
            production.context.setTime(0.0)
            production.currentStep = 0
            _save(production, checkpoint)
        return _produce(production, settings, folder, checkpoint, progress)
    except OpenMMException as error:
        raise StudentError(f"OpenMM stopped: {str(error).strip().splitlines()[0]}") from error


def _produce(
    simulation: Simulation,
    settings: MDSettings,
    folder: RunFolder,
    checkpoint: os.PathLike[str],
    progress: Callable[[int], None],
) -> float:
    first = simulation.currentStep
    segment = folder.segment(first)
    simulation.reporters.append(
        DCDReporter(str(segment.trajectory), settings.every, enforcePeriodicBox=False)
    )
    simulation.reporters.append(ThermoReporter(segment.thermo, settings.every))
    progress(first)
    began = time.perf_counter()
    while simulation.currentStep < settings.steps:
        simulation.step(min(settings.every, settings.steps - simulation.currentStep))
        progress(simulation.currentStep)
        if simulation.currentStep % settings.checkpoint_every == 0:
            _save(simulation, checkpoint)
    steps = settings.steps - first
    return 1e3 * (time.perf_counter() - began) / steps if steps else math.nan


def _save(simulation: Simulation, checkpoint: os.PathLike[str]) -> None:
    with atomic_write(checkpoint) as temporary:
        simulation.saveCheckpoint(str(temporary))


def _at_rest(velocities: unit.Quantity, system) -> unit.Quantity:
    """Velocities without the motion of the centre of mass."""
    masses = np.array(
        [system.getParticleMass(k).value_in_unit(unit.dalton) for k in range(len(velocities))]
    )
    values = velocities.value_in_unit(unit.nanometer / unit.picosecond)
    return (values - masses @ values / masses.sum()) * (unit.nanometer / unit.picosecond)


def _platform(name: str) -> list[Platform]:
    if not name:
        return []
    known = [Platform.getPlatform(k).getName() for k in range(Platform.getNumPlatforms())]
    if name not in known:
        raise InputError(f"OpenMM has no platform {name!r} here; it has {', '.join(known)}")
    return [Platform.getPlatformByName(name)]
