"""Periodic boxes of any size that a potential of LAMMPS can start from: a liquid, a metal."""

from itertools import product

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from numpy.typing import NDArray

from mlff_student.core.errors import InputError

ACETONE_ATOMS = 10
ACETONE_A3 = 122.9  # a molecule, of the liquid at 298 K: 0.7845 g/cm3, CRC Handbook
TANTALUM_A = 3.316  # angstrom, bcc lattice constant of Ta06A.snap
SEED = 1


def whole_molecules(atoms: int) -> int:
    """Molecules of acetone that so many atoms are.

    Raises
    ------
    InputError : no whole number of them.
    """
    if atoms < ACETONE_ATOMS or atoms % ACETONE_ATOMS:
        raise InputError(f"boxes are of acetone: a multiple of {ACETONE_ATOMS} atoms, got {atoms}")
    return atoms // ACETONE_ATOMS


def acetone_box(atoms: int) -> Atoms:
    """Liquid density, molecules on a lattice and all in one orientation, about 2 angstrom
    apart: carbon, hydrogen and oxygen, which a student and ReaxFF know.

    Raises
    ------
    InputError : no whole number of molecules.
    """
    count = whole_molecules(atoms)
    one = molecule("CH3COCH3")
    spacing = np.ptp(one.positions, axis=0)
    # The one distance between boxes around molecules that gives the density.
    gap = np.roots([1.0, spacing.sum(), spacing @ np.roll(spacing, 1), spacing.prod() - ACETONE_A3])
    spacing = spacing + gap.real[abs(gap.imag) < 1e-9].max()
    places, cell = _lattice(count, spacing)
    # Vacancies of the lattice must not thin the liquid.
    stretch = (count * ACETONE_A3 / cell.prod()) ** (1 / 3)
    positions = stretch * places[:, None] + one.positions
    symbols = list(one.symbols) * count
    return Atoms(symbols, positions.reshape(-1, 3), cell=stretch * cell, pbc=True)


def tantalum_box(atoms: int) -> Atoms:
    """Body-centred cubic, with up to a few percent of vacancies."""
    cubic = bulk("Ta", "bcc", a=TANTALUM_A, cubic=True)
    places, cell = _lattice(-(-atoms // 2), np.full(3, TANTALUM_A))
    positions = (places[:, None] + cubic.positions).reshape(-1, 3)[:atoms]
    return Atoms(f"Ta{atoms}", positions, cell=cell, pbc=True)


def _lattice(
    count: int, spacing: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points (count, 3) drawn from a lattice, and its edges (3,), nearly a cube."""
    edge = (count * spacing.prod()) ** (1 / 3)

    def defects(shape: tuple[int, ...]) -> float:
        lengths = np.array(shape) * spacing
        return (np.prod(shape) - count) / count + np.log(lengths.max() / lengths.min())

    near = [range(max(1, int(n) - 1), int(n) + 3) for n in edge / spacing]
    shape = min((one for one in product(*near) if np.prod(one) >= count), key=defects)
    points = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 3)
    chosen = np.sort(np.random.default_rng(SEED).permutation(len(points))[:count])
    return points[chosen] * spacing, np.array(shape) * spacing
