"""Energies and temperature of a State, as the project's logs have them; why OpenMM gave none."""

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit

from mlff_student.core.units import KB, KJ_PER_MOL
from mlff_student.engines.protocol import THERMO_COLUMNS

# Of a particle's mean kinetic energy. Forces rounded to float32 leave the centre of mass 1e-7; by
# chance its share is as small as this in one of 20,000 states.
AT_REST = 1e-3


def thermo_row(state: openmm.State, degrees_of_freedom: int) -> dict[str, float]:
    """A row of the run's log (`THERMO_COLUMNS`) from a State with energies."""
    potential = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole) * KJ_PER_MOL
    kinetic = state.getKineticEnergy().value_in_unit(unit.kilojoule_per_mole) * KJ_PER_MOL
    row = (
        state.getTime().value_in_unit(unit.picosecond),
        potential,
        kinetic,
        potential + kinetic,
        2.0 * kinetic / (degrees_of_freedom * KB),
    )
    return dict(zip(THERMO_COLUMNS, row, strict=True))


def degrees_of_freedom(system: openmm.System, state: openmm.State) -> int:
    """Three a particle that has mass, less constraints, less three where the centre of mass is at
    rest: held there, or because a run at constant energy began so.

    Parameters
    ----------
    state : with velocities.
    """
    moving = moving_particles(system)
    at_rest = any(isinstance(force, openmm.CMMotionRemover) for force in system.getForces())
    return max(1, 3 * moving - system.getNumConstraints() - 3 * (at_rest or _rests(system, state)))


def moving_particles(system: openmm.System) -> int:
    """Particles that have mass."""
    return int((_masses(system) > 0).sum())


def _masses(system: openmm.System) -> NDArray[np.float64]:
    """Of all particles, dalton."""
    particles = range(system.getNumParticles())
    return np.array([system.getParticleMass(k).value_in_unit(unit.dalton) for k in particles])


def _rests(system: openmm.System, state: openmm.State) -> bool:
    """Whether the centre of mass has next to nothing of the kinetic energy that is its due."""
    masses = _masses(system)
    speed = unit.nanometer / unit.picosecond
    velocities = state.getVelocities(asNumpy=True).value_in_unit(speed)
    momentum = masses @ velocities
    kinetic = masses @ (velocities**2).sum(1)
    moving = max(1, (masses > 0).sum())
    return bool(momentum @ momentum <= AT_REST * masses.sum() * kinetic / moving)


def cause(error: openmm.OpenMMException) -> str:
    """The line of a message that names the cause: the last error of a TorchScript traceback."""
    lines = str(error).strip().splitlines() or ["no reason given"]
    return next((line for line in reversed(lines) if "Error: " in line), lines[0])
