"""Measure radial distribution functions by pair of elements, and compare those of two runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray
from vesin import NeighborList

from mlff_student.analysis.blocks import Stretches, stderr_of
from mlff_student.analysis.bonds import bond_pairs
from mlff_student.archive.graph import refuse_for_vesin
from mlff_student.core.errors import InputError
from mlff_student.core.figures import Figure, Measured
from mlff_student.structures.checks import connected_fragments
from mlff_student.structures.reading import Structure
from mlff_student.structures.trajectories import Frames, make_whole

MEAN_OF_NORMAL = np.sqrt(2.0 / np.pi)  # mean of |x| for a normal distribution of width 1
# Width of the bins for liquids, angstrom. For 28 pairs of atoms in two runs of the teacher of 800
# moves each, the noise is 5 % with these bins and 8 % with bins a quarter as wide.
LIQUID_BIN = 0.2
BLOCKS = 8  # least number of stretches of a run, whose scatter gives the error of g(r)


@dataclass(frozen=True)
class Rdf:
    """Radial distribution function g(r) of each pair of elements.

    For an open system, g(r) is the density of distances in 1/angstrom.

    Attributes
    ----------
    r : NDArray[np.float64]
        Middles of the bins, (R,), angstrom.
    pairs : tuple[str, ...]
        Pairs of elements, such as "C-O".
    blocks : NDArray[np.float64]
        g(r) of consecutive stretches of the run, (blocks, pairs, R).
    weights : NDArray[np.float64]
        Share of each stretch in the run, (blocks,). The sum is 1.
    """

    r: NDArray[np.float64]
    pairs: tuple[str, ...]
    blocks: NDArray[np.float64]
    weights: NDArray[np.float64]

    @property
    def g(self) -> NDArray[np.float64]:
        """The g(r) of the whole run, (pairs, R)."""
        return np.tensordot(self.weights, self.blocks, 1)

    @property
    def stderr(self) -> NDArray[np.float64]:
        """The standard error of `g`, (pairs, R), from the scatter of the stretches."""
        return stderr_of(self.blocks)


@dataclass(frozen=True)
class RdfError(Measured):
    """How far the g(r) of a run differ from those of the teacher's run.

    The error of a pair of elements is 100 int |g_s - g_t| dr / int g_t dr, in percent, for the g(r)
    of the run, g_s, and of the teacher's run, g_t.

    Attributes
    ----------
    rdf_error_percent : float
        Error of the pair of elements with the largest error, percent.
    rdf_error_pair : str
        The pair of elements with the largest error, such as "C-O".
    rdf_error_stderr_percent : float
        Standard error of the largest error, percent, by jackknife over stretches of both runs.
    rdf_noise_percent : float
        Mean error of that pair between two runs of the same potential, percent. It is the mean of
        |x| for a normal distribution, sqrt(2 / pi) times its width, with the widths of both runs.
        The width of a run is the larger of that from its stretches and that from its halves. An
        error is never negative, so noise always adds to it.
    rdf_mean_error_percent : float
        Sum of the numerators of all pairs over the sum of their denominators, percent.
    by_pair : dict[str, float]
        Error of each pair, percent.
    """

    rdf_error_percent: float
    rdf_error_pair: str
    rdf_error_stderr_percent: float
    rdf_noise_percent: float
    rdf_mean_error_percent: float
    by_pair: dict[str, float]

    def figures(self) -> list[Figure]:
        """Return all figures: of the worst pair, of all pairs together, and of each pair."""
        return [
            Figure(
                "rdf_error",
                self.rdf_error_percent,
                "%",
                self.rdf_error_stderr_percent,
                self.rdf_noise_percent,
            ),
            Figure("rdf_mean_error", self.rdf_mean_error_percent, "%"),
            *(Figure(f"rdf_error_{pair}", error, "%") for pair, error in self.by_pair.items()),
        ]

    def facts(self) -> dict[str, str]:
        """Return the pair of elements with the largest error."""
        return {"rdf_error_pair": self.rdf_error_pair}


def measure_rdf(
    frames: Iterable[Frames],
    structure: Structure,
    *,
    r_max: float = 10.0,
    bin_width: float = 0.05,
    intermolecular: bool = False,
) -> Rdf:
    """Measure g(r) of each pair of elements in a trajectory.

    Cells may have any shape. Periodic images beyond half of the cell are counted.

    Parameters
    ----------
    frames : Iterable[Frames]
        Parts of a trajectory, as `stream_frames` yields them.
    structure : Structure
        Structure of the same atoms, with bonds and periodicity.
    r_max : float
        Largest distance, angstrom.
    bin_width : float
        Width of a bin, angstrom.
    intermolecular : bool
        Whether to leave out pairs within a molecule. A molecule and its own periodic image still
        count as two. The number of pairs of the ideal gas is reduced in the same way.

    Returns
    -------
    Rdf
        g(r) of the stretches of the run.

    Raises
    ------
    InputError
        If there are fewer than two frames or no pair of atoms, or a position is not finite.
    """
    numbers = structure.atoms.numbers
    bonds = bond_pairs(structure.topology)
    fragment = connected_fragments(len(numbers), bonds.tolist())
    names, kind_of, pairs_of_kind = _kinds(numbers)
    if intermolecular:
        i, j = np.triu_indices(len(numbers), 1)
        own = fragment[i] == fragment[j]
        pairs_of_kind = pairs_of_kind - np.bincount(
            kind_of[numbers[i[own]], numbers[j[own]]], minlength=len(names)
        )
    if not pairs_of_kind.any():
        raise InputError("a radial distribution function needs a pair of atoms; there is none")
    edges = np.arange(0.0, r_max + 0.5 * bin_width, bin_width)
    shells = 4.0 / 3.0 * np.pi * np.diff(edges**3)  # angstrom^3
    neighbours = NeighborList(cutoff=edges[-1], full_list=False)
    stretches = Stretches(BLOCKS)
    for part in frames:
        if not np.isfinite(part.positions).all():
            raise InputError(
                "a position is NaN or infinite, so there is no radial distribution function"
            )
        positions = make_whole(part.positions, part.cells, bonds, structure.atoms.pbc)
        for index, points in enumerate(positions):
            periodic = part.cells is not None
            cell = part.cells[index] if periodic else np.zeros((3, 3))
            refuse_for_vesin(Atoms(numbers, positions=points, cell=cell, pbc=periodic), edges[-1])
            i, j, shift, distance = neighbours.compute(points, cell, periodic, "ijSd")
            kind = kind_of[numbers[i], numbers[j]]
            if intermolecular:
                apart = (fragment[i] != fragment[j]) | shift.any(axis=1)
                kind, distance = kind[apart], distance[apart]
            bins = np.minimum((distance / bin_width).astype(int), len(shells) - 1)
            counts = np.bincount(
                kind * len(shells) + bins, minlength=len(names) * len(shells)
            ).reshape(len(names), -1)
            ideal = shells / abs(np.linalg.det(cell)) if periodic else np.diff(edges)
            stretches.add(counts / (np.maximum(pairs_of_kind, 1)[:, None] * ideal))
    blocks, weights = stretches.means()
    if len(blocks) < 2:
        raise InputError(
            f"a radial distribution function needs two frames or more, got {len(blocks)}"
        )
    present = pairs_of_kind > 0  # a single atom of an element makes no pair with itself
    kept = tuple(name for name, kind in zip(names, present, strict=True) if kind)
    return Rdf(0.5 * (edges[1:] + edges[:-1]), kept, blocks[:, present], weights)


def measure_suitable_rdf(frames: Iterable[Frames], structure: Structure) -> Rdf:
    """Measure the g(r) by which two runs are compared.

    For several molecules in a periodic box, these are the g(r) between molecules up to half of the
    box edge. Pairs within a molecule are left out, because their peaks would be most of the figure,
    and an error of the liquid only a small part of it. For other systems all pairs are counted.

    Parameters
    ----------
    frames : Iterable[Frames]
        Parts of a trajectory, as `stream_frames` yields them.
    structure : Structure
        Structure of the same atoms, with bonds and periodicity.

    Returns
    -------
    Rdf
        g(r) of the stretches of the run.

    Raises
    ------
    InputError
        If there are fewer than two frames or no pair of atoms, or a position is not finite.
    """
    molecules = connected_fragments(
        len(structure.atoms), bond_pairs(structure.topology).tolist()
    ).max()
    if not (structure.atoms.pbc.all() and molecules > 0):
        return measure_rdf(frames, structure)
    half = 0.5 * float(structure.atoms.cell.cellpar()[:3].min())
    return measure_rdf(
        frames,
        structure,
        r_max=LIQUID_BIN * int(half / LIQUID_BIN),
        bin_width=LIQUID_BIN,
        intermolecular=True,
    )


def compare_rdf(student: Rdf, teacher: Rdf) -> RdfError:
    """Compare the g(r) of a run with those of the teacher's run.

    Parameters
    ----------
    student, teacher : Rdf
        g(r) of the two runs, with the same pairs and bins.

    Returns
    -------
    RdfError
        Errors with their standard error and noise.

    Raises
    ------
    InputError
        If the pairs or the distances differ, or no two atoms come close enough.
    """
    if student.pairs != teacher.pairs or not np.array_equal(student.r, teacher.r):
        raise InputError(
            f"the runs differ in elements or distances: {', '.join(student.pairs)} up to "
            f"{student.r[-1]:.1f} angstrom against {', '.join(teacher.pairs)} up to "
            f"{teacher.r[-1]:.1f}"
        )
    total = teacher.g.sum(axis=1)
    seen = (total > 0) | (student.g.sum(axis=1) > 0)  # a pair may never occur within r_max
    if not seen.any():
        raise InputError(f"no two atoms come within {student.r[-1]:.1f} angstrom in either run")
    errors = np.where(seen, _error(student.g, teacher.g), np.nan)
    worst = int(np.nanargmax(errors))
    left_out = [
        *(_error(_without(student, k), teacher.g) for k in range(len(student.blocks))),
        *(_error(student.g, _without(teacher, k)) for k in range(len(teacher.blocks))),
    ]
    of_student, of_teacher = np.split(np.array(left_out)[:, worst], [len(student.blocks)])
    with np.errstate(all="ignore"):  # infinite if the pair never occurs in the teacher's run
        noise = np.hypot(_width(student), _width(teacher))[worst] / total[worst]
        error = np.hypot(_jackknife(of_student), _jackknife(of_teacher))
    return RdfError(
        rdf_error_percent=float(errors[worst]),
        rdf_error_pair=student.pairs[worst],
        rdf_error_stderr_percent=float(error),
        rdf_noise_percent=float(100.0 * MEAN_OF_NORMAL * noise),
        rdf_mean_error_percent=float(
            100.0 * np.abs(student.g - teacher.g)[seen].sum() / total[seen].sum()
        ),
        by_pair={
            name: float(error)
            for name, error in zip(student.pairs, errors, strict=True)
            if np.isfinite(error)
        },
    )


def _kinds(
    numbers: NDArray[np.int_],
) -> tuple[tuple[str, ...], NDArray[np.int_], NDArray[np.int_]]:
    """Return the names of the pairs of elements, their index by two atomic numbers, and the number
    of pairs of atoms of each: N_a (N_a - 1) / 2 or N_a N_b.
    """
    elements, counts = np.unique(numbers, return_counts=True)
    kind_of = np.zeros((numbers.max() + 1,) * 2, int)
    names, number = [], []
    for index, (a, b) in enumerate(combinations_with_replacement(range(len(elements)), 2)):
        kind_of[elements[a], elements[b]] = kind_of[elements[b], elements[a]] = index
        names.append(f"{chemical_symbols[elements[a]]}-{chemical_symbols[elements[b]]}")
        number.append(counts[a] * (counts[a] - 1) // 2 if a == b else counts[a] * counts[b])
    return tuple(names), kind_of, np.array(number)


def _error(student: NDArray[np.float64], teacher: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the error of each pair of elements, (pairs,), percent."""
    with np.errstate(all="ignore"):
        return 100.0 * np.abs(student - teacher).sum(axis=1) / teacher.sum(axis=1)


def _width(rdf: Rdf) -> NDArray[np.float64]:
    """Return the standard error of g(r) summed over r, (pairs,)."""
    half = len(rdf.blocks) // 2
    halves = [
        np.average(rdf.blocks[part], axis=0, weights=rdf.weights[part])
        for part in (slice(half), slice(half, None))
    ]
    by_halves = np.abs(halves[0] - halves[1]).sum(axis=1) / (2.0 * MEAN_OF_NORMAL)
    return np.maximum(rdf.stderr.sum(axis=1), by_halves)


def _without(rdf: Rdf, left_out: int) -> NDArray[np.float64]:
    """Return the g(r) of the run without the stretch of this index, (pairs, R)."""
    weights = np.delete(rdf.weights, left_out)
    return np.tensordot(weights / weights.sum(), np.delete(rdf.blocks, left_out, axis=0), 1)


def _jackknife(values: NDArray[np.float64]) -> float:
    """Return the jackknife standard error, from estimates that each leave out a stretch."""
    return float(np.sqrt((len(values) - 1) / len(values) * ((values - values.mean()) ** 2).sum()))
