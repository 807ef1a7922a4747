"""Structures and frames for the tests of distillation."""

from ase import Atoms
from ase.build import molecule

from mlff_student.distill.dataset import LabelledFrames


def periodic_water() -> Atoms:
    """Hydrogen-bonded chains of water; every atom neighbours its own images."""
    water = molecule("H2O", cell=[3.2, 3.4, 3.6])
    water.pbc = True
    return water


def atoms_of(frames: LabelledFrames, k: int) -> Atoms:
    rows = slice(int(frames.start[k]), int(frames.start[k + 1]))
    return Atoms(
        frames.atomic_numbers[rows].numpy(),
        positions=frames.positions[rows].double().numpy(),
        cell=frames.cells[k].double().numpy(),
        pbc=frames.pbc[k].numpy(),
    )
