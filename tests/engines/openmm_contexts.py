"""Topologies, contexts, energies and forces, as all tests of OpenMM take them."""

import numpy as np
import openmm
from ase import Atoms
from numpy.typing import NDArray
from openmm import app, unit

from mlff_student.structures.checks import perceive_bonds
from mlff_student.structures.reading import Structure, make_topology
from openmm_integration.topology import openmm_topology


def topology_of(atoms: Atoms) -> app.Topology:
    """With the bonds that distances say."""
    return openmm_topology(Structure(atoms, make_topology(atoms, perceive_bonds(atoms))))


def context_of(system: openmm.System, platform: str = "Reference") -> openmm.Context:
    """Context without positions."""
    return openmm.Context(
        system, openmm.VerletIntegrator(0.0005), openmm.Platform.getPlatformByName(platform)
    )


def context_at(
    system: openmm.System, positions: unit.Quantity, platform: str = "Reference"
) -> openmm.Context:
    """Context with the positions, and more for link atoms, which lie where their bonds do."""
    context = context_of(system, platform)
    values = np.zeros((system.getNumParticles(), 3))
    values[: len(positions)] = positions.value_in_unit(unit.nanometer)
    context.setPositions(values)
    context.computeVirtualSites()
    return context


def energy_of(context: openmm.Context) -> float:
    """Potential energy, kJ/mol."""
    energy = context.getState(energy=True).getPotentialEnergy()
    return energy.value_in_unit(unit.kilojoule_per_mole)


def forces_of(context: openmm.Context) -> NDArray[np.float64]:
    """Forces (N, 3), kJ/mol/nm."""
    forces = context.getState(forces=True).getForces(asNumpy=True)
    return forces.value_in_unit(unit.kilojoule_per_mole / unit.nanometer)


def energy_at(context: openmm.Context, positions_nm: NDArray[np.float64]) -> float:
    """Potential energy of positions (N, 3), kJ/mol."""
    context.setPositions(positions_nm)
    return energy_of(context)


def forces_at(context: openmm.Context, positions_nm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Forces (N, 3) of positions (N, 3), kJ/mol/nm."""
    context.setPositions(positions_nm)
    return forces_of(context)
