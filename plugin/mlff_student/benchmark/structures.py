"""Structures of any size for benchmarks: random thermal structures, and boxes of acetone."""

from itertools import product

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.data import atomic_numbers
from numpy.typing import NDArray

from mlff_student.archive.graph import edges_of
from mlff_student.core.errors import InputError

ORGANIC = ("H", "C", "N", "O")
MOLECULE_NEIGHBOURS = 15  # of each atom in a molecule of 22 atoms or more
CONDENSED_NEIGHBOURS = 40  # of each atom in a periodic box
LARGEST_MOLECULE = 76  # from 77 atoms on, a box of condensed density is two cutoffs wide
DISORDER = 0.1  # standard deviation of a coordinate, in lattice spacings
ACETONE_ATOMS = 10
ACETONE_A3 = 122.9  # volume of a molecule in the liquid at 298 K: 0.7845 g/cm3, CRC Handbook
LATTICE_SEED = 1


def thermal_structure(count: int, elements: list[str], cutoff: float) -> Atoms:
    """Make a structure of atoms displaced from a cubic lattice, the same for equal arguments.

    Parameters
    ----------
    count : int
        Number of atoms, two or more. Up to 76 atoms are an open molecule with about 15 neighbours
        of each atom; more are a periodic cube with 40.
    elements : list of str
        Chemical symbols to draw from. H, C, N and O among them are used, or all if none of these
        is among them.
    cutoff : float
        Distance within which atoms are neighbours, angstrom.
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
    symbols = rng.choice(drawn, count)
    numbers = np.array([atomic_numbers[symbol] for symbol in drawn])
    if len(odd := np.flatnonzero(numbers % 2)) and len(even := np.flatnonzero(numbers % 2 == 0)):
        # Another first atom where the number of electrons would be odd, which students refuse.
        others = sum(atomic_numbers[symbol] for symbol in symbols[1:])
        if (others + atomic_numbers[symbols[0]]) % 2:
            symbols[0] = drawn[odd[0] if others % 2 else even[0]]
    atoms = Atoms(
        symbols,
        positions=points[chosen] + DISORDER * rng.normal(size=(count, 3)),
        cell=[edge] * 3 if periodic else None,
        pbc=periodic,
    )
    # The scale puts the cutoff between the last edge that is wanted and the next longer one.
    distances = np.sort(edge_lengths(atoms, 3.0))
    last = max(neighbours * count // 2 * 2, 2)  # a pair is two edges
    scale = cutoff / distances[last - 1 : last + 1].mean()
    if last == len(distances):
        scale *= 0.99
    atoms.positions *= scale
    atoms.cell *= scale
    return atoms


def edge_lengths(atoms: Atoms, cutoff: float) -> np.ndarray:
    """Return the lengths of all directed edges that are shorter than the cutoff.

    Parameters
    ----------
    atoms : Atoms
        Open or periodic structure.
    cutoff : float
        Angstrom.

    Returns
    -------
    ndarray
        (E,) angstrom.
    """
    return np.linalg.norm(edges_of(atoms, cutoff)[1], axis=1)


def archive_arguments(atoms: Atoms) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Return copies of positions, atomic numbers, cell and pbc, as an `Evaluator` takes them."""
    return (atoms.get_positions(), atoms.numbers.copy(), atoms.cell.array.copy(), atoms.pbc.copy())


def whole_molecules(atoms: int) -> int:
    """Return the number of acetone molecules that have this number of atoms together.

    Parameters
    ----------
    atoms : int
        Number of atoms.

    Raises
    ------
    InputError
        The number is not a multiple of ten.
    """
    if atoms < ACETONE_ATOMS or atoms % ACETONE_ATOMS:
        raise InputError(f"boxes are of acetone: a multiple of {ACETONE_ATOMS} atoms, got {atoms}")
    return atoms // ACETONE_ATOMS


def acetone_box(atoms: int) -> Atoms:
    """Make a periodic box of acetone at the density of the liquid.

    The molecules are on a lattice, in one orientation, about 2 angstrom apart.

    Parameters
    ----------
    atoms : int
        Number of atoms, a multiple of ten.

    Raises
    ------
    InputError
        The number is not a multiple of ten.
    """
    count = whole_molecules(atoms)
    acetone = molecule("CH3COCH3")
    spacing = np.ptp(acetone.positions, axis=0)
    # The distance between the boxes around the molecules that gives the density.
    gap = np.roots([1.0, spacing.sum(), spacing @ np.roll(spacing, 1), spacing.prod() - ACETONE_A3])
    spacing = spacing + gap.real[abs(gap.imag) < 1e-9].max()
    places, cell = lattice(count, spacing)
    # Vacancies of the lattice must not lower the density.
    stretch = (count * ACETONE_A3 / cell.prod()) ** (1 / 3)
    positions = stretch * places[:, None] + acetone.positions
    symbols = list(acetone.symbols) * count
    return Atoms(symbols, positions.reshape(-1, 3), cell=stretch * cell, pbc=True)


def lattice(
    count: int, spacing: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Make a lattice with few vacancies in a box that is nearly a cube.

    Parameters
    ----------
    count : int
        Number of points.
    spacing : ndarray
        (3,) distance between neighbours in each direction, angstrom.

    Returns
    -------
    points : ndarray
        (count, 3) angstrom.
    edges : ndarray
        (3,) lengths of the box, angstrom.
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
