"""Energies and temperature of an OpenMM State for the log of a run, and the cause of an error."""

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit

from mlff_student.core.units import KB, KJ_PER_MOL
from mlff_student.engines.protocol import THERMO_COLUMNS

# The centre of mass is at rest if its kinetic energy is below this fraction of a particle's mean
# kinetic energy. Rounding of forces to float32 gives it 1e-7. A thermal state has such a small
# fraction by chance once in 20,000 states.
AT_REST = 1e-3


def thermo_row(state: openmm.State, degrees_of_freedom: int) -> dict[str, float]:
    """Return a row of the log of a run, with the columns of `THERMO_COLUMNS`.

    Parameters
    ----------
    state : openmm.State
        A state with energies.
    degrees_of_freedom : int
        Number of degrees of freedom, for the temperature.
    """
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
    """Return the number of degrees of freedom that the temperature is computed with.

    They are three for each particle that has mass, minus the constraints, and minus three if the
    centre of mass is at rest: because a CMMotionRemover keeps it there, or because a run at
    constant energy started so.

    Parameters
    ----------
    system : openmm.System
        The system of the state.
    state : openmm.State
        A state with velocities.
    """
    moving = moving_particles(system)
    at_rest = any(isinstance(force, openmm.CMMotionRemover) for force in system.getForces())
    return max(
        1, 3 * moving - system.getNumConstraints() - 3 * (at_rest or _is_at_rest(system, state))
    )


def moving_particles(system: openmm.System) -> int:
    """Return the number of particles that have mass."""
    return int((_masses(system) > 0).sum())


def _masses(system: openmm.System) -> NDArray[np.float64]:
    """Return the masses (N,) of all particles, dalton."""
    particles = range(system.getNumParticles())
    return np.array([system.getParticleMass(k).value_in_unit(unit.dalton) for k in particles])


def _is_at_rest(system: openmm.System, state: openmm.State) -> bool:
    """Return whether the centre of mass is at rest; see `AT_REST`."""
    masses = _masses(system)
    speed = unit.nanometer / unit.picosecond
    velocities = state.getVelocities(asNumpy=True).value_in_unit(speed)
    momentum = masses @ velocities
    kinetic = masses @ (velocities**2).sum(1)
    moving = max(1, (masses > 0).sum())
    return bool(momentum @ momentum <= AT_REST * masses.sum() * kinetic / moving)


def cause(error: openmm.OpenMMException) -> str:
    """Return the line of a message that names the cause, the last error of a traceback."""
    lines = str(error).strip().splitlines() or ["no reason given"]
    return next((line for line in reversed(lines) if "Error: " in line), lines[0])
