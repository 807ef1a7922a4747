"""Runs molecular dynamics in OpenMM, for `mlff-student md --engine openmm`."""

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from openmm import (
    CMMotionRemover,
    Integrator,
    LangevinMiddleIntegrator,
    LocalEnergyMinimizer,
    MonteCarloBarostat,
    OpenMMException,
    Platform,
    State,
    System,
    VerletIntegrator,
    unit,
)
from openmm.app import DCDReporter, Simulation

from mlff_student.core.errors import InputError, InterruptedRunError, StudentError
from mlff_student.core.files import atomic_write
from mlff_student.core.units import KB, KJ_PER_MOL
from mlff_student.engines.protocol import (
    MIN_START_KINETIC_FRACTION,
    THERMO_COLUMNS,
    MDSettings,
    RunFolder,
)
from mlff_student.structures.reading import Structure

from .system import check_molecules, create_system
from .thermo import cause, degrees_of_freedom, thermo_row
from .topology import openmm_topology

STEPS_BETWEEN_SAMPLES = 10  # between samples of the mean potential energy
MINIMISE_TOLERANCE = 10.0 * unit.kilojoule_per_mole / unit.nanometer


class ThermoReporter:
    """Reporter that writes the log of a run: time in ps, energies in eV, temperature in K.

    Parameters
    ----------
    path : Path
        CSV file that receives the rows.
    every : int
        Steps between rows.
    """

    def __init__(self, path: Path, every: int) -> None:
        self._every = every
        self._file = open(path, "w")
        print(",".join(THERMO_COLUMNS), file=self._file, flush=True)

    def describeNextReport(self, simulation: Simulation) -> dict:  # noqa: N802  (OpenMM's name)
        """Ask OpenMM for the energies after the next `every` steps."""
        steps = self._every - simulation.currentStep % self._every
        return {"steps": steps, "periodic": None, "include": ["energy", "velocities"]}

    def report(self, simulation: Simulation, state: State) -> None:
        """Write one row."""
        row = thermo_row(state, degrees_of_freedom(simulation.system, state))
        print(",".join(f"{value:.12g}" for value in row.values()), file=self._file, flush=True)


def run_openmm(
    settings: MDSettings,
    structure: Structure,
    folder: RunFolder,
    progress: Callable[[int], None],
) -> float:
    """Run MD in OpenMM; an engine of `run_md`, see `mlff_student.engines.protocol.Engine`."""
    threads = settings.threads_for(len(structure.atoms))
    topology = openmm_topology(structure)
    if settings.ensemble == "npt":
        check_molecules(topology, structure.atoms)
    system = create_system(topology, folder.archive, backend=settings.backend, threads=threads)
    if "torch" in sys.modules:  # for the portable backend
        sys.modules["torch"].set_num_threads(threads)
    if settings.ensemble != "nve":
        system.addForce(CMMotionRemover())
    if settings.ensemble == "npt":
        barostat = MonteCarloBarostat(
            settings.pressure_bar * unit.bar, settings.temperature_K * unit.kelvin
        )
        barostat.setRandomNumberSeed(settings.seed)
        system.addForce(barostat)
    checkpoint = folder.path / "checkpoint.bin"

    def simulation(integrator: Integrator) -> Simulation:
        return Simulation(topology, system, integrator, *find_platform(settings.platform))

    friction = settings.friction_per_ps / unit.picosecond
    temperature = settings.temperature_K * unit.kelvin
    start_timestep = settings.start_timestep_fs * unit.femtosecond
    langevin = LangevinMiddleIntegrator(temperature, friction, start_timestep)
    langevin.setRandomNumberSeed(settings.seed)
    try:
        if settings.ensemble == "nve":
            production = simulation(VerletIntegrator(settings.timestep_fs * unit.femtosecond))
        else:
            production = simulation(langevin)
        if checkpoint.exists():
            _load(production, checkpoint)
        else:
            start = simulation(langevin) if settings.ensemble == "nve" else production
            start.context.setPositions(structure.atoms.positions * unit.angstrom)
            LocalEnergyMinimizer.minimize(start.context, MINIMISE_TOLERANCE)
            start.context.setVelocitiesToTemperature(temperature, settings.seed)
            start.step(settings.thermalise_steps // 2)
            mean = _mean_potential(start, settings.thermalise_steps - start.currentStep)
            state = start.context.getState(positions=True, velocities=True, energy=True)
            missing = mean - state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
            production.context.setPositions(state.getPositions())
            velocities = _start_velocities(
                state.getVelocities(asNumpy=True), system, settings.temperature_K, missing
            )
            production.context.setVelocities(velocities)
            production.context.setTime(0.0)
            production.currentStep = 0
            _save(production, checkpoint)
        production.integrator.setStepSize(settings.timestep_fs * unit.femtosecond)
        return _produce(production, settings, folder, checkpoint, progress)
    except OpenMMException as error:
        raise StudentError(f"OpenMM stopped: {cause(error)}") from error


def _produce(
    simulation: Simulation,
    settings: MDSettings,
    folder: RunFolder,
    checkpoint: Path,
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


def _save(simulation: Simulation, checkpoint: Path) -> None:
    with atomic_write(checkpoint) as temporary:
        simulation.saveCheckpoint(str(temporary))


def _load(simulation: Simulation, checkpoint: Path) -> None:
    try:
        simulation.loadCheckpoint(str(checkpoint))
    except OpenMMException as error:
        raise InterruptedRunError(
            f"OpenMM cannot read {checkpoint}: {cause(error)}; remove the folder "
            f"{checkpoint.parent} and run again"
        ) from error


def _mean_potential(simulation: Simulation, steps: int) -> float:
    """Run a number of steps and return their mean potential energy, kJ/mol."""
    total, last = 0.0, simulation.currentStep + steps
    samples = 0
    while simulation.currentStep < last:
        simulation.step(min(STEPS_BETWEEN_SAMPLES, last - simulation.currentStep))
        energy = simulation.context.getState(energy=True).getPotentialEnergy()
        total += energy.value_in_unit(unit.kilojoule_per_mole)
        samples += 1
    return total / samples


def _start_velocities(
    velocities: unit.Quantity, system: System, temperature_K: float, missing: float
) -> unit.Quantity:
    """Return velocities (N, 3) with which a run at constant energy has the given temperature.

    The centre of mass is at rest. The kinetic energy is that of the temperature plus `missing`, the
    mean potential energy minus the present one in kJ/mol.
    """
    masses = np.array(
        [system.getParticleMass(k).value_in_unit(unit.dalton) for k in range(len(velocities))]
    )
    values = velocities.value_in_unit(unit.nanometer / unit.picosecond)
    values = values - masses @ values / masses.sum()
    kinetic = 0.5 * float(masses @ (values**2).sum(1))  # dalton nm^2/ps^2 = kJ/mol
    thermal = 0.5 * max(1, 3 * len(masses) - 3) * KB * temperature_K / KJ_PER_MOL
    wanted = max(thermal + missing, MIN_START_KINETIC_FRACTION * thermal)
    if kinetic > 0:
        values = values * np.sqrt(wanted / kinetic)
    return values * (unit.nanometer / unit.picosecond)


def find_platform(name: str) -> list[Platform]:
    """Return the platform of that name in a list, or an empty list if the name is empty.

    OpenMM takes the fastest platform if it is given none.

    Raises
    ------
    InputError
        OpenMM has no platform of that name on this machine.
    """
    if not name:
        return []
    known = [Platform.getPlatform(k).getName() for k in range(Platform.getNumPlatforms())]
    if name not in known:
        raise InputError(f"OpenMM has no platform {name!r} here; it has {', '.join(known)}")
    return [Platform.getPlatformByName(name)]
