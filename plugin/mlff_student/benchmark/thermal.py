"""Random thermal structures of any size, to measure on: a molecule's density or a liquid's."""

import numpy as np
import torch
import vesin
from ase import Atoms
from torch import Tensor

ORGANIC = ("H", "C", "N", "O")
MOLECULE_NEIGHBOURS = 15  # of an atom of a molecule of 22; fewer in a smaller one
CONDENSED_NEIGHBOURS = 40
LARGEST_MOLECULE = 76  # from 77 atoms on, a box of condensed density is two cutoffs wide
GAP = 3.0  # angstrom, between molecules side by side
DISORDER = 0.1  # standard deviation of a coordinate, in lattice spacings


def thermal_structure(count: int, elements: list[str], cutoff: float) -> Atoms:
    """Atoms around points of a cubic lattice; the same for the same arguments.

    Parameters
    ----------
    count : number of atoms, two or more. Up to 76 make an open molecule of about 15 neighbours an
        atom, more a periodic cube of 40.
    elements : symbols to draw from: the organic ones among them, or all.
    cutoff : angstrom, within which neighbours count.
    """
    rng = np.random.default_rng(count)
    periodic = count > LARGEST_MOLECULE
    edge = int(np.ceil(round(count ** (1 / 3), 9)))
    points = np.stack(np.meshgrid(*[np.arange(edge)] * 3, indexing="ij"), -1).reshape(-1, 3)
    points = points - (edge - 1) / 2.0
    if periodic:
        chosen = np.sort(rng.permutation(len(points))[:count])
        neighbours = CONDENSED_NEIGHBOURS
    else:
        chosen = np.argsort(np.square(points).sum(1), kind="stable")[:count]
        neighbours = min(MOLECULE_NEIGHBOURS, round(MOLECULE_NEIGHBOURS / 21 * (count - 1)))
    drawn = [symbol for symbol in ORGANIC if symbol in elements] or elements
    atoms = Atoms(
        rng.choice(drawn, count),
        positions=points[chosen] + DISORDER * rng.normal(size=(count, 3)),
        cell=[edge] * 3 if periodic else None,
        pbc=periodic,
    )
    # So scaled that the cutoff falls between the last edge that is to count and the next one.
    distances = np.sort(edge_lengths(atoms, 3.0))
    last = max(neighbours * count // 2 * 2, 2)  # a pair is two edges
    scale = cutoff / distances[last - 1 : last + 1].mean()
    if last == len(distances):
        scale *= 0.99
    atoms.positions *= scale
    atoms.cell *= scale
    return atoms


def side_by_side(molecule: Atoms, copies: int) -> Atoms:
    """Copies of a molecule on a lattice, `GAP` apart, without a cell."""
    edge = int(np.ceil(round(copies ** (1 / 3), 9)))
    extent = np.ptp(molecule.positions, axis=0) + GAP
    boxed = Atoms(molecule.numbers, positions=molecule.positions, cell=extent)
    cluster = boxed.repeat(edge)[: copies * len(molecule)]
    cluster.cell = None
    return cluster


def edge_lengths(atoms: Atoms, cutoff: float) -> np.ndarray:
    """Lengths (E,) of all directed edges shorter than the cutoff."""
    (lengths,) = vesin.NeighborList(cutoff=cutoff, full_list=True).compute(
        points=atoms.positions,
        box=atoms.cell.array,
        periodic=bool(atoms.pbc.all()),
        quantities="d",
    )
    return lengths


def archive_arguments(atoms: Atoms) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions, atomic numbers, cell and pbc as an archive's methods take them."""
    return (
        torch.tensor(atoms.positions),
        torch.tensor(atoms.numbers),
        torch.tensor(atoms.cell.array),
        torch.tensor(atoms.pbc),
    )
