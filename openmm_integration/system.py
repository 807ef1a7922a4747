"""A whole OpenMM System whose only force is a student."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmm import HarmonicBondForce, System, unit

from mlff_student.errors import InputError

from .force import student_force

if TYPE_CHECKING:
    from openmm.app import Topology


def create_system(
    topology: "Topology",
    model: str | Path = "original",
    *,
    hydrogen_mass: float | unit.Quantity | None = None,
    **options: Any,
) -> System:
    """System with the masses and box of the topology and the student acting on every atom.

    Where the topology has a box, the System knows its molecules (`bonds_without_strength`), so
    that a barostat scales them as wholes. For a solute in a solvent of another force field, see
    `MLPotential("mlff-student-original").createMixedSystem` of openmm-ml.

    Parameters
    ----------
    topology : OpenMM topology; periodic when it has a box.
    model : shipped name, or path of a checkpoint or archive.
    hydrogen_mass : amu; what a hydrogen gains, the heavy atom that it is bonded to loses. It slows
        the fastest vibrations and leaves all averages over positions as they are.
    **options : of `student_force`.

    Raises
    ------
    InputError : hydrogen_mass without bonds, or one that leaves a heavy atom without mass; and
        those of `student_force`.
    """
    system = system_without_student(topology)
    if hydrogen_mass is not None:
        _repartition(system, topology, hydrogen_mass)
    system.addForce(student_force(topology, model, **options))
    return system


def system_without_student(topology: "Topology") -> System:
    """Masses, box and molecules of the topology."""
    system = System()
    for atom in topology.atoms():
        system.addParticle(atom.element.mass if atom.element else 0.0)
    if topology.getPeriodicBoxVectors() is not None:
        system.setDefaultPeriodicBoxVectors(*topology.getPeriodicBoxVectors())
        system.addForce(bonds_without_strength(topology))
    return system


def bonds_without_strength(
    topology: "Topology", atoms: Collection[int] | None = None
) -> HarmonicBondForce:
    """The topology's bonds (all, or those among some atoms) with a force constant of zero.

    OpenMM takes for a molecule what forces call bonded, and a student calls nothing so: barostats
    would move each atom by itself, and stretch its bonds.
    """
    force = HarmonicBondForce()
    force.setName("bonds without strength")
    for first, second in topology.bonds():
        if atoms is None or (first.index in atoms and second.index in atoms):
            force.addBond(first.index, second.index, 0.0, 0.0)
    return force


def _repartition(system: System, topology: "Topology", mass: float | unit.Quantity) -> None:
    """Move mass to the hydrogens from what they are bonded to."""
    if not unit.is_quantity(mass):
        mass = mass * unit.dalton
    if not topology.getNumBonds():
        raise InputError(f"hydrogen_mass={mass}, but the topology has no bonds to move mass along")
    for bond in topology.bonds():
        hydrogen, heavy = sorted(bond, key=lambda atom: atom.element.atomic_number)
        if hydrogen.element.symbol != "H" or heavy.element.symbol == "H":
            continue
        gain = mass - system.getParticleMass(hydrogen.index)
        left = system.getParticleMass(heavy.index) - gain
        if left <= 0 * unit.dalton:
            raise InputError(
                f"hydrogen_mass={mass} leaves atom {heavy.index} ({heavy.name}) a mass of {left}"
            )
        system.setParticleMass(hydrogen.index, mass)
        system.setParticleMass(heavy.index, left)
