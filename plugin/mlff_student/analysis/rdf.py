"""Radial distribution functions by pair of elements, and how two runs' differ."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray
from vesin import NeighborList

from mlff_student.analysis.blocks import Stretches, stderr_of
from mlff_student.analysis.bonds import bond_pairs
from mlff_student.core.errors import InputError
from mlff_student.core.figures import Figure, Measured
from mlff_student.structures.checks import connected_fragments
from mlff_student.structures.reading import Structure
from mlff_student.structures.trajectories import Frames, make_whole

MEAN_OF_NORMAL = np.sqrt(2.0 / np.pi)  # of |x|, width 1
# Bins of liquids, angstrom. 28 pairs of atoms, seen by two runs of the teacher of 800 moves each,
# have a noise of 8 % in bins a quarter as wide, and 5 % in these.
LIQUID_BIN = 0.2
BLOCKS = 8  # of a run, whose scatter gives the error of a g(r)


@dataclass(frozen=True)
class Rdf:
    """g(r) of each pair of elements; of an open system, the density of distances in 1/angstrom."""

    r: NDArray[np.float64]  # (R,), angstrom, middles of bins
    pairs: tuple[str, ...]  # "C-O"
    blocks: NDArray[np.float64]  # (blocks, pairs, R), of consecutive stretches of the run
    weights: NDArray[np.float64]  # (blocks,), share of each stretch; sum 1

    @property
    def g(self) -> NDArray[np.float64]:
        """Of the whole run, (pairs, R)."""
        return np.tensordot(self.weights, self.blocks, 1)

    @property
    def stderr(self) -> NDArray[np.float64]:
        """Standard error of `g`, (pairs, R), from the scatter of the stretches."""
        return stderr_of(self.blocks)


@dataclass(frozen=True)
class RdfError(Measured):
    """How far a run's g(r) are from the teacher's: 100 int |g_s - g_t| dr / int g_t dr, percent.

    Attributes
    ----------
    rdf_error_percent : float
        Of the pair of elements that is farthest off.
    rdf_error_pair : str
        Of the pair of elements that is farthest off.
    rdf_error_stderr_percent : float
        Its standard error, by jackknife over stretches of both runs.
    rdf_noise_percent : float
        What the error of that pair would be on average if both runs were of one potential: the mean
        of |x| of a normal distribution, sqrt(2 / pi) of its width, with the widths of both runs,
        each the larger one by stretches and by halves. An error is never smaller than none, so that
        noise adds to it, and takes nothing away.
    rdf_mean_error_percent : float
        Sum of the numerators of all pairs over that of the denominators.
    by_pair : dict[str, float]
        Error of each pair.
    """

    rdf_error_percent: float
    rdf_error_pair: str
    rdf_error_stderr_percent: float
    rdf_noise_percent: float
    rdf_mean_error_percent: float
    by_pair: dict[str, float]

    def figures(self) -> list[Figure]:
        """All figures: of the worst pair, of all, and of each."""
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
        """The pair of elements that is farthest off."""
        return {"rdf_error_pair": self.rdf_error_pair}


def measure_rdf(
    frames: Iterable[Frames],
    structure: Structure,
    *,
    r_max: float = 10.0,
    bin_width: float = 0.05,
    intermolecular: bool = False,
) -> Rdf:
    """g(r) up to `r_max`, angstrom, images beyond half the cell included, in any cell.

    Parameters
    ----------
    intermolecular : bool
        Leaves out pairs of the same molecule (but not of its images), also from the number of pairs
        that an ideal gas would have.

    Raises
    ------
    InputError
        Fewer than two frames, one atom, or positions that are not finite.
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
        raise InputError("a radial distribution function needs two atoms or more")
    edges = np.arange(0.0, r_max + 0.5 * bin_width, bin_width)
    shells = 4.0 / 3.0 * np.pi * np.diff(edges**3)  # angstrom^3
    neighbours = NeighborList(cutoff=edges[-1], full_list=False)
    stretches = Stretches(BLOCKS)
    for part in frames:
        if not np.isfinite(part.positions).all():
            raise InputError("positions that are not finite have no radial distribution function")
        positions = make_whole(part.positions, part.cells, bonds, structure.atoms.pbc)
        for index, points in enumerate(positions):
            periodic = part.cells is not None
            cell = part.cells[index] if periodic else np.zeros((3, 3))
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
        raise InputError("a radial distribution function needs two frames or more")
    there = pairs_of_kind > 0  # one atom of an element makes no pair with itself
    kept = tuple(name for name, one in zip(names, there, strict=True) if one)
    return Rdf(0.5 * (edges[1:] + edges[:-1]), kept, blocks[:, there], weights)


def measure_suitable_rdf(frames: Iterable[Frames], structure: Structure) -> Rdf:
    """g(r) as two runs are compared by: of several molecules in a periodic box, between them alone
    and up to half the box. Pairs within a molecule are left out: their peaks would be most of the
    figure, and an error of the liquid a small part of it.
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
    """Error of a run's g(r) against those of the teacher's run.

    Raises
    ------
    InputError
        Other elements or other distances.
    """
    if student.pairs != teacher.pairs or not np.array_equal(student.r, teacher.r):
        raise InputError(
            f"the runs differ in elements or distances: {', '.join(student.pairs)} up to "
            f"{student.r[-1]:.1f} angstrom against {', '.join(teacher.pairs)} up to "
            f"{teacher.r[-1]:.1f}"
        )
    total = teacher.g.sum(axis=1)
    seen = (total > 0) | (student.g.sum(axis=1) > 0)  # one fluorine in a molecule: never a pair
    if not seen.any():
        raise InputError(f"no two atoms come within {student.r[-1]:.1f} angstrom in either run")
    errors = np.where(seen, _error(student.g, teacher.g), np.nan)
    worst = int(np.nanargmax(errors))
    left_out = [
        _error(_without(one, k), other.g) if one is student else _error(other.g, _without(one, k))
        for one, other in ((student, teacher), (teacher, student))
        for k in range(len(one.blocks))
    ]
    of_student, of_teacher = np.split(np.array(left_out)[:, worst], [len(student.blocks)])
    with np.errstate(all="ignore"):  # infinite where the teacher never has the pair
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
    """Names of the pairs of elements, their index by two atomic numbers, and how many ordered
    pairs divided by two each has: N_a (N_a - 1) / 2 or N_a N_b.
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
    """Percent, of each pair (pairs,)."""
    with np.errstate(all="ignore"):
        return 100.0 * np.abs(student - teacher).sum(axis=1) / teacher.sum(axis=1)


def _width(rdf: Rdf) -> NDArray[np.float64]:
    """Standard error of g(r) summed over r, (pairs,)."""
    half = len(rdf.blocks) // 2
    halves = [
        np.average(rdf.blocks[part], axis=0, weights=rdf.weights[part])
        for part in (slice(half), slice(half, None))
    ]
    by_halves = np.abs(halves[0] - halves[1]).sum(axis=1) / (2.0 * MEAN_OF_NORMAL)
    return np.maximum(rdf.stderr.sum(axis=1), by_halves)


def _without(rdf: Rdf, left_out: int) -> NDArray[np.float64]:
    """g(r) of the run without one of its stretches."""
    weights = np.delete(rdf.weights, left_out)
    return np.tensordot(weights / weights.sum(), np.delete(rdf.blocks, left_out, axis=0), 1)


def _jackknife(values: NDArray[np.float64]) -> float:
    """Standard error of an estimate from those with one of the stretches left out."""
    return float(np.sqrt((len(values) - 1) / len(values) * ((values - values.mean()) ** 2).sum()))
