"""Makes an OpenMM System in which a student acts on every atom."""

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

# Atoms of these elements have a bond in every molecule that a student describes.
ALWAYS_BONDED = ("H", "C")


def create_system(
    topology: "Topology",
    model: str | Path = "original",
    *,
    hydrogen_mass: float | unit.Quantity | None = None,
    **options: Any,
) -> System:
    """Make a System with the masses and box of the topology and a student that acts on every atom.

    If the topology has a box, the System knows the molecules (`bonds_without_strength`), so that a
    barostat moves each molecule as a whole. If bonds are missing from the topology, the log has a
    warning. For a solute in a solvent of another force field, use
    `MLPotential("mlff-student-original").createMixedSystem` of openmm-ml.

    A System that is copied (`copy.deepcopy`) or stored as XML (`XmlSerializer`) needs
    interface="PythonForce", because openmmtorch 1.5 ends the process when it reads a TorchForce.

    Parameters
    ----------
    topology : Topology
        OpenMM topology; the System is periodic if it has a box.
    model : str | Path
        Shipped name, or path of a checkpoint or archive.
    hydrogen_mass : float | unit.Quantity, optional
        Mass of every hydrogen, amu. The mass that a hydrogen gains is taken from the heavy atom
        that it is bonded to. It slows the fastest vibrations and changes no average over positions.
    **options : Any
        Options of `student_force`.

    Raises
    ------
    InputError
        `hydrogen_mass` is not a positive mass, the topology has no bonds, a heavy atom would have
        no mass left, or `student_force` refuses its arguments.
    """
    system = system_without_student(topology)
    if hydrogen_mass is not None:
        _repartition(system, topology, hydrogen_mass)
    system.addForce(student_force(topology, model, **options))
    return system


def system_without_student(topology: "Topology") -> System:
    """Return a System with the masses, the box and the molecules of the topology."""
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
    """Return the topology's bonds as a Force with a force constant of zero.

    OpenMM derives molecules from the bonds of forces, and a student has no bonds. Without this
    Force a barostat would move each atom separately and stretch the bonds.

    Parameters
    ----------
    topology : Topology
        OpenMM topology.
    atoms : Collection[int], optional
        Indices of atoms; only bonds between two of them are used. None uses all bonds.
    """
    force = HarmonicBondForce()
    force.setName("bonds without strength")
    for first, second in topology.bonds():
        if atoms is None or (first.index in atoms and second.index in atoms):
            force.addBond(first.index, second.index, 0.0, 0.0)
    bonded = {atom.index for bond in topology.bonds() for atom in bond}
    unbonded = [
        atom
        for atom in topology.atoms()
        if (atoms is None or atom.index in atoms)
        and atom.element is not None
        and atom.element.symbol in ALWAYS_BONDED
        and atom.index not in bonded
    ]
    if unbonded:
        logger.warning(
            "the topology has a box and %d atoms without a bond, atom %d (%s) is the first: a "
            "barostat would move each of them as a molecule and stretch its bonds. Add the bonds "
            "to the topology (load_structure finds them from distances), or use no barostat",
            len(unbonded),
            unbonded[0].index,
            unbonded[0].name,
        )
    return force


def check_molecules(topology: "Topology", atoms: Atoms) -> None:
    """Refuse a topology with which a barostat would stretch the bonds of a molecule.

    Parameters
    ----------
    topology : Topology
        OpenMM topology.
    atoms : Atoms
        The same atoms with positions.

    Raises
    ------
    InputError
        An atom without any bond in the topology has another atom at bonding distance. (Two atoms
        that have other bonds may come this close without a bond, as bromines in a liquid do.)
    """
    bonded = {atom.index for bond in topology.bonds() for atom in bond}
    for first, second in perceive_bonds(atoms):
        if not {first, second} <= bonded:
            raise InputError(
                f"atoms {first} ({atoms.symbols[first]}) and {second} ({atoms.symbols[second]}) "
                f"are {atoms.get_distance(first, second, mic=True):.2f} angstrom apart, and the "
                "topology has no bond for one of them: a barostat would move it as a molecule of "
                "its own. Add the bonds (CONECT in a PDB file), or leave out all bonds: they are "
                "then found from distances"
            )


def _repartition(system: System, topology: "Topology", mass: float | unit.Quantity) -> None:
    """Move mass to the hydrogens from the heavy atoms that they are bonded to."""
    try:
        quantity: Any = mass if unit.is_quantity(mass) else float(mass) * unit.dalton
        mass = quantity
        positive = 0.0 < quantity.value_in_unit(unit.dalton) < math.inf
    except (TypeError, ValueError) as error:
        raise InputError(f"hydrogen_mass={mass} is not a mass: {error}") from error
    if not positive:
        raise InputError(f"hydrogen_mass={mass} must be a positive mass")
    if not topology.getNumBonds():
        raise InputError(f"hydrogen_mass={mass} needs bonds, and the topology has no bonds")
    for bond in topology.bonds():
        hydrogen, heavy = sorted(bond, key=lambda atom: atom.element.atomic_number)
        if hydrogen.element.symbol != "H" or heavy.element.symbol == "H":
            continue
        gain = quantity - system.getParticleMass(hydrogen.index)
        left = system.getParticleMass(heavy.index) - gain
        if left <= 0 * unit.dalton:
            raise InputError(
                f"hydrogen_mass={mass} leaves atom {heavy.index} ({heavy.name}) a mass of {left}"
            )
        system.setParticleMass(hydrogen.index, quantity)
        system.setParticleMass(heavy.index, left)
