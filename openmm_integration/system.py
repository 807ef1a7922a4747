"""A whole OpenMM System whose only force is a student."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmm import System

from .force import student_force

if TYPE_CHECKING:
    from openmm.app import Topology


def create_system(topology: "Topology", model: str | Path = "original", **options: Any) -> System:
    """System with the masses and box of the topology and the student acting on every atom.

    Parameters
    ----------
    topology : OpenMM topology; periodic when it has a box.
    model : shipped name, or path of a checkpoint or archive.
    **options : of `student_force`.
    """
    system = System()
    for atom in topology.atoms():
        system.addParticle(atom.element.mass if atom.element else 0.0)
    if topology.getPeriodicBoxVectors() is not None:
        system.setDefaultPeriodicBoxVectors(*topology.getPeriodicBoxVectors())
    system.addForce(student_force(topology, model, **options))
    return system
