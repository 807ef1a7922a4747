"""Structures of any size to measure on: random thermal ones, and a liquid."""

from itertools import product

import numpy as np
import torch
import vesin
from ase import Atoms
from ase.build import molecule
from numpy.typing import NDArray
from torch import Tensor

from mlff_student.core.errors import InputError

ORGANIC = ("H", "C", "N", "O")
MOLECULE_NEIGHBOURS = 15  # of an atom of a molecule of 22; fewer in a smaller one
CONDENSED_NEIGHBOURS = 40
LARGEST_MOLECULE = 76  # from 77 atoms on, a box of condensed density is two cutoffs wide
DISORDER = 0.1  # standard deviation of a coordinate, in lattice spacings
ACETONE_ATOMS = 10
ACETONE_A3 = 122.9  # a molecule, of the liquid at 298 K: 0.7845 g/cm3, CRC Handbook
LATTICE_SEED = 1


def thermal_structure(count: int, elements: list[str], cutoff: float) -> Atoms:
    """Atoms around points of a cubic lattice; the same for the same arguments.

    Parameters
    ----------
    count : int
        Number of atoms, two or more. Up to 76 make an open molecule of about 15 neighbours an
        atom, more a periodic cube of 40.
    elements : list[str]
        Symbols to draw from: the organic ones among them, or all if none is organic.
    cutoff : float
        Distance within which neighbours count, angstrom.
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


def whole_molecules(atoms: int) -> int:
    """Molecules of acetone that so many atoms are.

    Raises
    ------
    InputError
        The atoms are no whole number of molecules.
    """
    if atoms < ACETONE_ATOMS or atoms % ACETONE_ATOMS:
        raise InputError(f"boxes are of acetone: a multiple of {ACETONE_ATOMS} atoms, got {atoms}")
    return atoms // ACETONE_ATOMS


def acetone_box(atoms: int) -> Atoms:
    """Acetone at liquid density: molecules on a lattice, in one orientation, 2 angstrom apart.

    Raises
    ------
    InputError
        The atoms are no whole number of molecules.
    """
    count = whole_molecules(atoms)
    acetone = molecule("CH3COCH3")
    spacing = np.ptp(acetone.positions, axis=0)
    # The one distance between boxes around molecules that gives the density.
    gap = np.roots([1.0, spacing.sum(), spacing @ np.roll(spacing, 1), spacing.prod() - ACETONE_A3])
    spacing = spacing + gap.real[abs(gap.imag) < 1e-9].max()
    places, cell = lattice(count, spacing)
    # Vacancies of the lattice must not thin the liquid.
    stretch = (count * ACETONE_A3 / cell.prod()) ** (1 / 3)
    positions = stretch * places[:, None] + acetone.positions
    symbols = list(acetone.symbols) * count
    return Atoms(symbols, positions.reshape(-1, 3), cell=stretch * cell, pbc=True)


def lattice(
    count: int, spacing: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points (count, 3) of a lattice with a few vacancies, and its edges (3,), nearly a cube.

    Parameters
    ----------
    count : int
        Number of points.
    spacing : array (3,)
        Distance between neighbours in each direction, angstrom.
    """
    edge = (count * spacing.prod()) ** (1 / 3)

    def defects(shape: tuple[int, ...]) -> float:
        lengths = np.array(shape) * spacing
        return (np.prod(shape) - count) / count + np.log(lengths.max() / lengths.min())

    near = [range(max(1, int(n) - 1), int(n) + 3) for n in edge / spacing]
    shape = min((shape for shape in product(*near) if np.prod(shape) >= count), key=defects)
    points = np.array(list(np.ndindex(*shape)), float)
    chosen = np.sort(np.random.default_rng(LATTICE_SEED).permutation(len(points))[:count])
    return spacing * points[chosen], spacing * np.array(shape, float)
