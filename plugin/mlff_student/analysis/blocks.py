"""Means of correlated series and their standard errors."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Estimate(NamedTuple):
    """A number and its standard error (NaN where one value cannot tell)."""

    value: float
    stderr: float


BLOCKS = 10  # of a run, unless another number is given


def mean_of_blocks(series: ArrayLike, blocks: int = BLOCKS) -> Estimate:
    """Mean of a series, its error from as many consecutive blocks, or from as many as there are.

    Right where a block outlasts the correlation: a lower bound for shorter runs (Flyvbjerg and
    Petersen 1989, doi:10.1063/1.457480).
    """
    series = np.asarray(series, float)
    means = [part.mean() for part in np.array_split(series, min(blocks, len(series)))]
    return Estimate(float(series.mean()), float(stderr_of(means)))


def mean_of_runs(runs: Sequence[ArrayLike]) -> Estimate:
    """Mean over several runs of one thing, its error the larger of what their blocks and, of two
    runs or more, the scatter of their means say.
    """
    means = [mean_of_blocks(run) for run in runs]
    share = np.array([np.size(run) for run in runs]) / sum(map(np.size, runs))
    by_blocks = np.sqrt(sum((w * mean.stderr) ** 2 for w, mean in zip(share, means, strict=True)))
    value = sum(w * mean.value for w, mean in zip(share, means, strict=True))
    return Estimate(float(value), float(np.fmax(by_blocks, stderr_of([m.value for m in means]))))


def stderr_of(values: ArrayLike) -> Any:
    """Standard error of the mean of independent values along the first axis; NaN of one."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return np.full(values.shape[1:], np.nan)[()]
    return values.std(axis=0, ddof=1) / np.sqrt(len(values))


class Stretches:
    """Means of an array over from `fewest` to twice as many equal stretches of a run whose length
    is not known beforehand.
    """

    def __init__(self, fewest: int) -> None:
        self._most = 2 * fewest
        self._size = 1
        self._sums: list[NDArray[np.float64]] = []
        self._counts: list[int] = []

    def add(self, value: NDArray[np.float64]) -> None:
        """One frame's."""
        if not self._counts or self._counts[-1] == self._size:
            if len(self._counts) == self._most:
                self._sums = [a + b for a, b in zip(self._sums[::2], self._sums[1::2], strict=True)]
                self._counts = [2 * self._size] * (self._most // 2)
                self._size *= 2
            self._sums.append(np.zeros_like(value, dtype=float))
            self._counts.append(0)
        self._sums[-1] += value
        self._counts[-1] += 1

    def means(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean of each stretch, (S, ...), and its share of the run, (S,). Less than half a stretch
        at the end is counted to the one before.
        """
        sums, counts = list(self._sums), list(self._counts)
        if len(counts) > 1 and 2 * counts[-1] < self._size:
            sums[-2:], counts[-2:] = [sums[-2] + sums[-1]], [counts[-2] + counts[-1]]
        return np.array([s / n for s, n in zip(sums, counts, strict=True)]), np.array(counts) / sum(
            counts
        )
