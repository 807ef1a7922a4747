"""Measure bond lengths in frames, and check the order of the atoms in a trajectory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from mlff_student.archive.graph import edges_of
from mlff_student.core.errors import InputError
from mlff_student.core.figures import load_thresholds
from mlff_student.structures.reading import Structure
from mlff_student.structures.trajectories import Frames, nearest_image

# A bond is broken when its length differs by more than this from the reference, angstrom.
BROKEN_BOND_DEVIATION = load_thresholds()["bond_deviation_angstrom"].value
# Thermal motion neither stretches a bond nor closes an angle by this much, angstrom.
NON_THERMAL_CHANGE = 0.4


def bond_pairs(topology: mdtraj.Topology) -> NDArray[np.int_]:
    """Return the indices (B, 2) of the atoms of each bond of a topology.

    Parameters
    ----------
    topology : mdtraj.Topology
        Topology with bonds.

    Returns
    -------
    NDArray[np.int_]
        Indices of the two atoms of each bond, (B, 2).
    """
    return np.array([(a.index, b.index) for a, b in topology.bonds], int).reshape(-1, 2)


def bond_lengths(
    positions: NDArray[Any],
    cells: NDArray[Any] | None,
    pairs: NDArray[Any],
    longest: float = 0.0,
    periodic: Sequence[bool] = (True, True, True),
) -> NDArray[Any]:
    """Return the lengths of bonds in each frame.

    A length is that to the nearest periodic image if every cell is thicker than twice the longest
    bond along its periodic directions, and the plain distance otherwise.

    Parameters
    ----------
    positions : NDArray[Any]
        Positions of the atoms, (F, N, 3), angstrom.
    cells : NDArray[Any] | None
        Cell vectors of each frame, (F, 3, 3), angstrom. None for open systems.
    pairs : NDArray[Any]
        Indices of the atoms of each bond, (B, 2).
    longest : float
        Length of the longest bond, angstrom.
    periodic : Sequence[bool]
        Whether the system is periodic along each of the three cell vectors.

    Returns
    -------
    NDArray[Any]
        Bond lengths, (F, B), angstrom.
    """
    vectors = positions[:, pairs[:, 1]] - positions[:, pairs[:, 0]]  # (F, B, 3)
    if cells is not None:
        faces = np.cross(np.roll(cells, -1, axis=1), np.roll(cells, -2, axis=1))  # (F, 3, 3)
        with np.errstate(all="ignore"):
            heights = np.abs(np.linalg.det(cells))[:, None] / np.linalg.norm(faces, axis=2)
        if (heights[:, np.asarray(periodic)] > 2.0 * longest).all():
            vectors = nearest_image(vectors, cells, periodic)
    return np.linalg.norm(vectors, axis=2)


def reference_lengths(structure: Structure, pairs: NDArray[np.int_]) -> NDArray[np.float64]:
    """Return the distances (B,) of pairs (B, 2) of atoms in the reference structure, angstrom.

    Parameters
    ----------
    structure : Structure
        Reference structure.
    pairs : NDArray[np.int_]
        Indices of the atoms of each pair, (B, 2).

    Returns
    -------
    NDArray[np.float64]
        Distances, (B,), angstrom.
    """
    atoms = structure.atoms
    cell = atoms.cell.complete().array[None] if atoms.pbc.any() else None
    return bond_lengths(atoms.positions[None], cell, pairs, periodic=atoms.pbc)[0]


def check_order(path: Path, structure: Structure, frames: Frames) -> None:
    """Refuse a trajectory that has the atoms of the reference structure in another order.

    The first frame shows another order by three signs together. Some bonds have a wrong length.
    Some atoms that are not bonded are as close as bonded atoms, and were not in the reference. The
    number of close pairs is about the same, and no pair is too close. A molecule that fell apart
    has no new close pairs, and a molecule that collapsed has many.

    Parameters
    ----------
    path : Path
        Trajectory file, for the error message.
    structure : Structure
        Reference structure with its bonds.
    frames : Frames
        First frames of the trajectory.

    Raises
    ------
    InputError
        If the atoms are in another order, or the bonds are others.
    """
    pairs = bond_pairs(structure.topology)
    first = frames.positions[0]
    if len(pairs) == 0 or not np.isfinite(first).all():
        return
    cell = None if frames.cells is None else frames.cells[:1]
    reference = reference_lengths(structure, pairs)
    periodic = structure.atoms.pbc
    (length,) = bond_lengths(first[None], cell, pairs, reference.max(), periodic)
    broken = np.abs(length - reference) > NON_THERMAL_CHANGE
    contact = reference.max() + 0.1  # angstrom; 0.1 is a thermal amplitude
    atoms = Atoms(structure.atoms.numbers, positions=first)
    if cell is not None:
        atoms.cell, atoms.pbc = cell[0], periodic
    index, vectors = edges_of(atoms, contact)
    once = index[0] < index[1]
    near, distance = index[:, once].T, np.linalg.norm(vectors[once], axis=1)
    before = reference_lengths(structure, near)
    new = before - distance > NON_THERMAL_CHANGE
    as_many = 0.8 * len(pairs) < len(near) < 1.5 * len(pairs)
    if broken.any() and new.any() and as_many and distance.min() > 0.75 * reference.min():
        raise InputError(
            f"{path} has the topology's atoms in another order, or other bonds: {broken.sum()} of "
            f"{len(pairs)} bonds are broken in its first frame, where {new.sum()} pairs of atoms "
            "that are not bonded are as close as bonds"
        )
