"""Times of calls that take turns, so that a noisy machine is noisy to all of them."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median, quantiles
from typing import NamedTuple

import torch

TURN_S = 0.05
ROUNDS = 3
# A shorter call that begins a turn is left out: it finds the caches full of another's data.
COLD_S = 0.2


class Times(NamedTuple):
    """Of the calls of one kind."""

    seconds: list[float]
    cores: float  # processor time over wall time

    @property
    def ms(self) -> float:
        """Median."""
        return 1e3 * median(self.seconds)

    @property
    def ms_iqr(self) -> float:
        """Range between the quartiles, which tells of other work on the machine."""
        low, _, high = quantiles(self.seconds, n=4)
        return 1e3 * (high - low)


def in_turns(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, Times]:
    """Times of each kind of call, in rounds of one turn each.

    Parameters
    ----------
    calls : Mapping[str, Callable]
        What is timed, by name.
    seconds : float
        Time for all of them together; at least three rounds are made.
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
def torch_threads(count: int) -> Iterator[None]:
    """That many threads of torch, which the compiled kernels use too."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
