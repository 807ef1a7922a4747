"""Lengths of bonds in frames, and whether a trajectory has its topology's atoms in their order."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
from numpy.typing import NDArray

from mlff_student.core.errors import InputError
from mlff_student.core.figures import load_thresholds
from mlff_student.structures.reading import Structure
from mlff_student.structures.trajectories import Frames, nearest_image

COLLAPSE = load_thresholds()["bond_deviation_angstrom"].value  # off its length: the bond is gone
NEVER_BY_HEAT = 0.4  # angstrom: neither bonds stretch nor angles close by so much


def bond_pairs(topology: mdtraj.Topology) -> NDArray[np.int_]:
    """Indices (B, 2) of bonded atoms."""
    return np.array([(a.index, b.index) for a, b in topology.bonds], int).reshape(-1, 2)


def bond_lengths(
    positions: NDArray[Any],
    cells: NDArray[Any] | None,
    pairs: NDArray[Any],
    longest: float = 0.0,
    periodic: Sequence[bool] = (True, True, True),
) -> NDArray[Any]:
    """Lengths (F, B) of bonds, pairs (B, 2), in positions (F, N, 3) and cells (F, 3, 3), angstrom.

    To the nearest image where every cell is thicker than twice the `longest` bond, along what of it
    is periodic.
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
    """Lengths (B,) of pairs of atoms in the reference structure, angstrom."""
    atoms = structure.atoms
    cell = atoms.cell.complete().array[None] if atoms.pbc.any() else None
    return bond_lengths(atoms.positions[None], cell, pairs, periodic=atoms.pbc)[0]


def check_order(path: Path, structure: Structure, frames: Frames) -> None:
    """Refuse a trajectory whose first frame is the reference with its atoms in another order.

    Some bonds are then far off, atoms stand at bonding distance that are not bonded and were far
    apart, and yet there are about as many contacts as before, none of them squeezed. A molecule
    that fell apart has no new contacts, one that collapsed has many.

    Raises
    ------
    InputError
        See above.
    """
    from vesin import NeighborList

    pairs = bond_pairs(structure.topology)
    first = frames.positions[0]
    if len(pairs) == 0 or not np.isfinite(first).all():
        return
    cell = None if frames.cells is None else frames.cells[:1]
    reference = reference_lengths(structure, pairs)
    periodic = structure.atoms.pbc
    (length,) = bond_lengths(first[None], cell, pairs, reference.max(), periodic)
    broken = np.abs(length - reference) > NEVER_BY_HEAT
    contact = reference.max() + 0.1  # angstrom, a thermal amplitude
    box = np.zeros((3, 3)) if cell is None else cell[0]
    i, j, distance = NeighborList(cutoff=contact, full_list=False).compute(
        first, box, False if cell is None else periodic, "ijd"
    )
    near = np.stack([i, j], axis=1).astype(int)
    before = reference_lengths(structure, near)
    new = before - distance > NEVER_BY_HEAT
    as_many = 0.8 * len(pairs) < len(near) < 1.5 * len(pairs)
    if broken.any() and new.any() and as_many and distance.min() > 0.75 * reference.min():
        raise InputError(
            f"{path} has the topology's atoms in another order, or other bonds: {broken.sum()} of "
            f"{len(pairs)} bonds are broken in its first frame, where {new.sum()} pairs of atoms "
            "that are not bonded are as close as bonds"
        )
