"""Timing of calls that take turns, so that other work on the machine affects all of them alike."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median, quantiles
from typing import NamedTuple

TURN_S = 0.05
ROUNDS = 3
# The first call of a turn is left out if it is shorter: the caches hold the data of another call.
COLD_S = 0.2


class Times(NamedTuple):
    """Times of the calls of one kind.

    Attributes
    ----------
    seconds : list of float
        Time of each call, s.
    cores : float
        Processor time over wall time.
    """

    seconds: list[float]
    cores: float

    @property
    def ms(self) -> float:
        """Median time of a call, ms."""
        return 1e3 * median(self.seconds)

    @property
    def ms_iqr(self) -> float:
        """Range between the quartiles, ms; it is large if the machine does other work."""
        low, _, high = quantiles(self.seconds, n=4)
        return 1e3 * (high - low)


def in_turns(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, Times]:
    """Time several kinds of calls, in rounds in which each kind has a turn.

    Parameters
    ----------
    calls : mapping of str to callable
        Functions without arguments, by name.
    seconds : float
        Time for all of them together, s; at least three rounds are made.

    Returns
    -------
    dict of str to Times
        The times by the same names.
    """
    wall: dict[str, list[float]] = {name: [] for name in calls}
    busy = dict.fromkeys(calls, 0.0)
    began, rounds = time.perf_counter(), 0
    while rounds < ROUNDS or time.perf_counter() - began < seconds:
        rounds += 1
        for name, call in calls.items():
            start, processor = time.perf_counter(), time.process_time()
            call()
            if (took := time.perf_counter() - start) >= COLD_S:
                wall[name].append(took)
                busy[name] += time.process_time() - processor
                continue
            turn, processor = time.perf_counter(), time.process_time()
            end = turn
            while end - turn < TURN_S:
                start = end
                call()
                end = time.perf_counter()
                wall[name].append(end - start)
            busy[name] += time.process_time() - processor
    return {name: Times(times, busy[name] / sum(times)) for name, times in wall.items()}


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Set the number of threads of evaluators that are made in a block, and of torch if it is used.

    Parameters
    ----------
    count : int
        Number of threads.
    """
    torch, before = sys.modules.get("torch"), os.environ.get("OMP_NUM_THREADS")
    of_torch = torch.get_num_threads() if torch else 1
    os.environ["OMP_NUM_THREADS"] = str(count)
    if torch:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if torch:
            torch.set_num_threads(of_torch)
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
