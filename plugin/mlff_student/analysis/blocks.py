"""Compute means of correlated series and their standard errors."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Estimate(NamedTuple):
    """A mean and its standard error.

    Attributes
    ----------
    value : float
        The mean.
    stderr : float
        Its standard error, in the same unit. NaN if there is only a single value.
    """

    value: float
    stderr: float


BLOCKS = 10  # default number of blocks


def mean_of_blocks(series: ArrayLike, blocks: int = BLOCKS) -> Estimate:
    """Return the mean of a series, with a standard error from the means of consecutive blocks.

    The standard error is correct if a block is longer than the correlation time. For a shorter run
    it is a lower bound (Flyvbjerg and Petersen 1989, doi:10.1063/1.457480).

    Parameters
    ----------
    series : ArrayLike
        Values in the order of time, (rows,).
    blocks : int
        Number of blocks. A shorter series has a block for each value.

    Returns
    -------
    Estimate
        Mean and standard error, in the unit of the series.
    """
    series = np.asarray(series, float)
    means = [part.mean() for part in np.array_split(series, min(blocks, len(series)))]
    return Estimate(float(series.mean()), float(stderr_of(means)))


def mean_of_runs(runs: Sequence[ArrayLike]) -> Estimate:
    """Return the mean over several runs of the same system.

    There are two standard errors: that from the blocks of each run and, for two runs or more, that
    from the scatter of the runs' means. The larger is returned.

    Parameters
    ----------
    runs : Sequence[ArrayLike]
        A series (rows,) for each run. Each row has the same weight.

    Returns
    -------
    Estimate
        Mean and standard error, in the unit of the series.
    """
    means = [mean_of_blocks(run) for run in runs]
    share = np.array([np.size(run) for run in runs]) / sum(map(np.size, runs))
    by_blocks = np.sqrt(sum((w * mean.stderr) ** 2 for w, mean in zip(share, means, strict=True)))
    value = sum(w * mean.value for w, mean in zip(share, means, strict=True))
    return Estimate(float(value), float(np.fmax(by_blocks, stderr_of([m.value for m in means]))))


def stderr_of(values: ArrayLike) -> Any:
    """Return the standard error of the mean of independent values along the first axis.

    It is NaN for a single value.

    Parameters
    ----------
    values : ArrayLike
        Independent values, (K, ...).

    Returns
    -------
    Any
        Standard error, a number or an array (...), in the unit of the values.
    """
    values = np.asarray(values, float)
    if len(values) < 2:
        return np.full(values.shape[1:], np.nan)[()]
    return values.std(axis=0, ddof=1) / np.sqrt(len(values))


class Stretches:
    """Means of an array over equal stretches of a run whose length is not known beforehand.

    Parameters
    ----------
    fewest : int
        Least number of stretches. There are at most twice as many.
    """

    def __init__(self, fewest: int) -> None:
        self._most = 2 * fewest
        self._size = 1
        self._sums: list[NDArray[np.float64]] = []
        self._counts: list[int] = []

    def add(self, value: NDArray[np.float64]) -> None:
        """Add the array of the next frame.

        Parameters
        ----------
        value : NDArray[np.float64]
            Array of a frame, with the same shape for all frames.
        """
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
        """Return the means of the stretches, and each stretch's share of the run.

        Less than half a stretch at the end of the run is counted to the stretch before.

        Returns
        -------
        tuple[NDArray[np.float64], NDArray[np.float64]]
            Means, (S, ...), and shares, (S,), whose sum is 1.
        """
        sums, counts = list(self._sums), list(self._counts)
        if len(counts) > 1 and 2 * counts[-1] < self._size:
            sums[-2:], counts[-2:] = [sums[-2] + sums[-1]], [counts[-2] + counts[-1]]
        means = np.array([total / count for total, count in zip(sums, counts, strict=True)])
        return means, np.array(counts) / sum(counts)
