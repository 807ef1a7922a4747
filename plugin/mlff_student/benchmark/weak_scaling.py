"""Prediction of weak scaling in LAMMPS from what one rank computes and would send."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from mlff_student.benchmark.records import Record

RANKS = (1, 2, 8, 64, 1000)
GHOST_BYTES = 24  # a position there, a force back: three doubles each
# Messages of LAMMPS itself a step, for each of an exchange of the pair style: positions, forces.
OWN_EXCHANGES = 2


class Network(NamedTuple):
    """Between any two ranks, all of them sending at once."""

    latency_us: float = 2.0
    bandwidth_gb_per_s: float = 1.0  # of each rank


class Prediction(NamedTuple):
    """A step of one rank's atoms, among so many ranks."""

    ranks: int
    ms_per_step: float
    efficiency: float  # time of one rank over this


def predict(record: Record, exchanges: int, network: Network) -> Iterator[Prediction]:
    """Times of larger and larger systems, with the atoms of `record` on each rank.

    A rank's time alone, t(1), is measured, and so are the swaps and bytes that it copies onto
    itself across the periodic boundaries of its box: among P ranks they are messages to others, one
    after another as `Comm` sends them, hidden behind nothing. With n messages and b bytes of the
    pair style and of LAMMPS's own positions and forces, latency a and bandwidth w,

        t(P) = t(1) + d(P)/3 (n a + b / w) + ceil(log2 P) a

    where d directions are divided among ranks: 1 for two ranks, 3 from eight on. The last term is
    the reduction that decides on new neighbour lists. Ranks are taken to have equal work.

    Parameters
    ----------
    record : of `benchmark lammps`, one rank.
    exchanges : of the pair style a step, 2 (L - 1) for a student of L layers.
    """
    swaps = record["swaps_per_step"] * (1.0 + OWN_EXCHANGES / exchanges)
    size = (
        1e3 * record["swapped_kb_per_step"]
        + OWN_EXCHANGES * GHOST_BYTES * record["ghosts_per_rank"]
    )
    messages_ms = 1e-3 * network.latency_us * swaps + 1e-6 * size / network.bandwidth_gb_per_s
    alone = record["ms_per_step"]
    for ranks in RANKS:
        divided = min(3, ranks.bit_length() - 1)
        reduction = 1e-3 * network.latency_us * math.ceil(math.log2(ranks))
        time = alone + divided / 3 * messages_ms + reduction
        yield Prediction(ranks, time, alone / time)
