"""A whole OpenMM System whose only force is a student."""

import logging
import math
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ase import Atoms
from openmm import HarmonicBondForce, System, unit

from mlff_student.core.errors import InputError
from mlff_student.structures.checks import perceive_bonds

from .force import student_force

if TYPE_CHECKING:
    from openmm.app import Topology

logger = logging.getLogger(__name__)

ALWAYS_BONDED = ("H", "C")  # in the neutral closed-shell molecules of a student


def create_system(
    topology: "Topology",
    model: str | Path = "original",
    *,
    hydrogen_mass: float | unit.Quantity | None = None,
    **options: Any,
) -> System:
    """System with the masses and box of the topology and the student acting on every atom.

    Where the topology has a box, the System knows its molecules (`bonds_without_strength`), so
    that a barostat scales them as wholes; where bonds are missing from the topology, the log warns
    that it would not. For a solute in a solvent of another force field, see
    `MLPotential("mlff-student-original").createMixedSystem` of openmm-ml.

    A System that is to be copied (`copy.deepcopy`) or to travel as XML (`XmlSerializer`) needs
    interface="PythonForce": openmmtorch 1.5 ends the process when it reads a TorchForce back.

    Parameters
    ----------
    topology : OpenMM topology; periodic when it has a box.
    model : shipped name, or path of a checkpoint or archive.
    hydrogen_mass : amu; what a hydrogen gains, the heavy atom that it is bonded to loses. It slows
        the fastest vibrations and leaves all averages over positions as they are.
    **options : of `student_force`.

    Raises
    ------
    InputError : hydrogen_mass that is no positive mass, without bonds, or so large that it leaves
        a heavy atom without mass; and those of `student_force`.
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
    bonded = {atom.index for bond in topology.bonds() for atom in bond}
    loose = [
        atom
        for atom in topology.atoms()
        if (atoms is None or atom.index in atoms)
        and atom.element is not None
        and atom.element.symbol in ALWAYS_BONDED
        and atom.index not in bonded
    ]
    if loose:
        logger.warning(
            "the topology has a box, and %d atoms without a bond, atom %d (%s) the first: a "
            "barostat would take each for a molecule, and stretch its bonds. Add the bonds to the "
            "topology (load_structure finds them by distances), or run without a barostat",
            len(loose),
            loose[0].index,
            loose[0].name,
        )
    return force


def check_molecules(topology: "Topology", atoms: Atoms) -> None:
    """Refuse a topology by which a barostat would tear a molecule apart.

    Parameters
    ----------
    atoms : those of the topology, in their places.

    Raises
    ------
    InputError : an atom without any bond in the topology has another at bonding distance. (Atoms
        that have bonds may only touch: bromines of a packed liquid do.)
    """
    bonded = {atom.index for bond in topology.bonds() for atom in bond}
    for first, second in perceive_bonds(atoms):
        if not {first, second} <= bonded:
            raise InputError(
                f"atoms {first} ({atoms.symbols[first]}) and {second} ({atoms.symbols[second]}) "
                f"are {atoms.get_distance(first, second, mic=True):.2f} angstrom apart, and the "
                "topology has no bond for one of them: a barostat would scale it as a molecule of "
                "its own. Add the bonds (CONECT in a PDB file), or leave all of them out: then "
                "distances say"
            )


def _repartition(system: System, topology: "Topology", mass: float | unit.Quantity) -> None:
    """Move mass to the hydrogens from what they are bonded to."""
    try:
        mass = mass if unit.is_quantity(mass) else float(mass) * unit.dalton
        positive = 0.0 < mass.value_in_unit(unit.dalton) < math.inf
    except (TypeError, ValueError) as error:
        raise InputError(f"hydrogen_mass={mass} is not a mass: {error}") from error
    if not positive:
        raise InputError(f"hydrogen_mass={mass} must be a positive mass")
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
