"""Energies and temperature of a State, as the project's logs have them."""

import openmm
from openmm import unit

from mlff_student.md import THERMO_COLUMNS
from mlff_student.units import KB, KJ_PER_MOL


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


def degrees_of_freedom(system: openmm.System) -> int:
    """Three a particle that has mass, less constraints, less three where the centre of mass is held
    at rest.
    """
    at_rest = any(isinstance(force, openmm.CMMotionRemover) for force in system.getForces())
    return max(1, 3 * moving_particles(system) - system.getNumConstraints() - 3 * at_rest)


def moving_particles(system: openmm.System) -> int:
    """Particles that have mass."""
    masses = (system.getParticleMass(k) for k in range(system.getNumParticles()))
    return sum(mass > 0 * unit.dalton for mass in masses)
