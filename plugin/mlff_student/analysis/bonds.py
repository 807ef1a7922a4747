"""Bonds that left their length in the course of a trajectory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mdtraj
import numpy as np
from ase import units
from numpy.typing import NDArray

from ..errors import InputError
from ..structure import Structure, read_structure
from ..trajectory import iterate_frames

COLLAPSE = 0.5  # angstrom; used to recognise a permuted trajectory, the verdict's is in the table


class BondDeviation(NamedTuple):
    """The bond that went farthest from its reference length."""

    angstrom: float  # absolute deviation; NaN where a position is
    atoms: str  # the bond's two atoms, empty without bonds
    frame: int  # counted from 0
    frames: int  # read
    bonds: int  # watched


def bond_deviation(trajectory: Path, topology: Path, *, chunk: int = 100) -> BondDeviation:
    """Largest deviation of a bond from its length in the topology file, read in chunks of frames.

    Bonds are the topology file's, or perceived from its coordinates where it lists none. Distances
    are to the nearest image where the cell is thicker than two bonds (what is thinner is taken for
    the bounding box that LAMMPS writes for an open system).

    Raises
    ------
    InputError : a missing, unreadable or empty file, another number of atoms, or another order.
    """
    return largest_deviation(Path(trajectory), read_topology(topology), chunk)


def largest_deviation(path: Path, structure: Structure, chunk: int = 100) -> BondDeviation:
    """As `bond_deviation`, with the reference structure read already."""
    members = list(structure.topology.atoms)
    pairs = np.array([(a.index, b.index) for a, b in structure.topology.bonds], int).reshape(-1, 2)
    positions = structure.atoms.positions[None]
    cell = structure.atoms.cell.array[None] if structure.atoms.pbc.all() else None
    reference = bond_lengths(positions, cell, pairs)[0]  # (B,)
    worst = BondDeviation(0.0, "", 0, 0, len(pairs))
    frames = 0
    for part in _read_chunks(path, structure.topology, chunk):
        if len(pairs):
            cells = None if part.unitcell_vectors is None else part.unitcell_vectors * units.nm
            lengths = bond_lengths(part.xyz * units.nm, cells, pairs, longest=reference.max())
            deviation = np.abs(lengths - reference)  # (F, B)
            if frames == 0:
                _check_order(path, part.xyz[0] * units.nm, positions[0], deviation[0])
            frame, bond = divmod(int(deviation.argmax()), len(pairs))  # a NaN counts as largest
            value = float(deviation[frame, bond])
            if not np.isnan(worst.angstrom) and not value <= worst.angstrom:
                names = f"{members[pairs[bond, 0]]} {members[pairs[bond, 1]]}"
                worst = BondDeviation(value, names, frames + frame, 0, len(pairs))
        frames += len(part)
    if frames == 0:
        raise InputError(f"{path} has no frames")
    return worst._replace(frames=frames)


def bond_lengths(
    positions: NDArray[Any], cells: NDArray[Any] | None, pairs: NDArray[Any], longest: float = 0.0
) -> NDArray[Any]:
    """Lengths (F, B) of bonds, pairs (B, 2), in positions (F, N, 3) and cells (F, 3, 3), angstrom.

    To the nearest image where every cell is thicker than twice the `longest` bond.
    """
    vectors = positions[:, pairs[:, 1]] - positions[:, pairs[:, 0]]  # (F, B, 3)
    if cells is not None:
        faces = np.cross(np.roll(cells, -1, axis=1), np.roll(cells, -2, axis=1))  # (F, 3, 3)
        with np.errstate(all="ignore"):
            heights = np.abs(np.linalg.det(cells))[:, None] / np.linalg.norm(faces, axis=2)
        if (heights > 2.0 * longest).all():
            vectors -= np.round(vectors @ np.linalg.inv(cells)) @ cells
    return np.linalg.norm(vectors, axis=2)


def read_topology(path: Path) -> Structure:
    """Reference structure of a trajectory."""
    if not Path(path).is_file():
        raise InputError(f"no topology file {path}")
    return read_structure(str(path))


def _read_chunks(path: Path, topology: mdtraj.Topology, chunk: int) -> Iterator[mdtraj.Trajectory]:
    """Pieces of a trajectory, each with the topology's number of atoms."""
    if not path.is_file():
        raise InputError(f"no trajectory file {path}")
    try:
        for part in iterate_frames(path, topology, chunk):
            if part.n_atoms != topology.n_atoms:
                raise InputError(_other_atoms(path, part.n_atoms, topology.n_atoms))
            yield part
    except InputError:
        raise
    except Exception as error:  # MDTraj's readers raise whatever they run into
        found = _count_atoms(path)
        if found not in (None, topology.n_atoms):
            raise InputError(_other_atoms(path, found, topology.n_atoms)) from error
        raise InputError(f"cannot read the trajectory {path}: {error}") from error


def _count_atoms(path: Path) -> int | None:
    try:
        with mdtraj.open(str(path)) as file:
            data = file.read(n_frames=1)
        return int((data[0] if isinstance(data, tuple) else data).shape[-2])
    except Exception:
        return None


def _other_atoms(path: Path, found: int, expected: int) -> str:
    return (
        f"{path} has {found} atoms, the topology has {expected}. Give the topology that the run "
        "started from"
    )


def _check_order(
    path: Path, first: NDArray[Any], reference: NDArray[Any], deviation: NDArray[Any]
) -> None:
    """Refuse a first frame that is the reference with its atoms in another order.

    Most bonds are then far off, yet the distances from each atom to its nearest are the
    reference's; those of a molecule that fell apart are not.
    """
    from scipy.spatial import cKDTree

    if np.isfinite(first).all() and np.mean(deviation > COLLAPSE) > 0.5:
        nearest = [np.sort(cKDTree(x).query(x, k=2)[0][:, 1]) for x in (first, reference)]
        if np.abs(nearest[0] - nearest[1]).max() < 0.3:  # angstrom, three thermal amplitudes
            raise InputError(
                f"{path} has the topology's atoms in another order: {np.sum(deviation > COLLAPSE)} "
                f"of {len(deviation)} bonds are broken in its first frame, though no atom is alone"
            )
