"""Predict weak scaling in LAMMPS from a run on one rank."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from markdown_table import table

from mlff_student.archive.registry import archive_of
from mlff_student.benchmark.lammps import STUDENT
from mlff_student.benchmark.records import Record, read_records
from mlff_student.benchmark.settings import check_positive
from mlff_student.benchmark.step_tables import pair_label
from mlff_student.cli import run
from mlff_student.core.errors import InputError

RANKS = (1, 2, 8, 64, 1000)
GHOST_BYTES = 24  # a position or a force: three doubles
# Exchanges of LAMMPS itself in a step: positions of ghosts forward, forces back.
OWN_EXCHANGES = 2


class Network(NamedTuple):
    """The network between the ranks, when all ranks send at once.

    Attributes
    ----------
    latency_us : float
        Latency of a message, microseconds.
    bandwidth_gb_per_s : float
        Bandwidth of each rank, GB/s.
    """

    latency_us: float
    bandwidth_gb_per_s: float


class Prediction(NamedTuple):
    """The predicted time of a step.

    Attributes
    ----------
    ranks : int
        Number of ranks.
    ms_per_step : float
        Time of a step, ms.
    efficiency : float
        Time of a step on one rank over this time.
    """

    ranks: int
    ms_per_step: float
    efficiency: float


def main(
    records: Annotated[Path, typer.Argument(help="JSON file of `mlff-student benchmark lammps`.")],
    latency_us: Annotated[float, typer.Option(help="Latency of a message, µs.")] = 2.0,
    bandwidth: Annotated[
        float, typer.Option("--bandwidth-gb-per-s", help="Bandwidth of each rank, GB/s.")
    ] = 1.0,
) -> None:
    """Predict the time of a step in LAMMPS on up to 1,000 ranks with equal numbers of atoms.

    The records must have runs on one rank. The model is t(P) = t(1) + d/3 (n a + b/w) +
    ceil(log2 P) a, for n messages of b bytes together, latency a, bandwidth w, and d directions
    (of three) that are divided among the ranks.

    Example: mlff-student benchmark lammps --models tiny --json lammps.json
    && python benchmarks/weak_scaling.py lammps.json --latency-us 2
    """
    check_positive("--latency-us", latency_us)
    check_positive("--bandwidth-gb-per-s", bandwidth)
    _, rows = read_records(records, "benchmark lammps", "benchmarks/rivals_lammps.py")
    print(scaling_table(rows, Network(latency_us, bandwidth)))


def scaling_table(records: list[Record], network: Network) -> str:
    """Return a Markdown table of the predictions.

    Raises
    ------
    InputError
        No record is of a student on one rank.
    """
    rows = []
    for row in records:
        alone = row["style"] == STUDENT and row["ranks"] == row["threads"] == 1
        if alone and row["swaps_per_step"]:
            exchanges = 2 * (archive_of(row["model"]).metadata["layers"] - 1)
            cells = (
                f"{prediction.ms_per_step:.3g} ms, {prediction.efficiency:.0%}"
                for prediction in predict(row, exchanges, network)
            )
            rows.append([pair_label(row), f"{row['atoms']:,}", *cells])
    if not rows:
        raise InputError(
            "no record is of a student on one rank with native kernels; measure with --ranks 1"
        )
    return table(["model", "atoms/rank", *(f"{ranks:,} ranks" for ranks in RANKS)], rows)


def predict(record: Record, exchanges: int, network: Network) -> Iterator[Prediction]:
    """Predict the times of systems in which each rank has the atoms of `record`.

    The time of one rank alone, t(1), is measured. So are the swaps and bytes that it copies to
    itself across the periodic boundaries of its box. Among P ranks these are messages to other
    ranks, which `Comm` sends one after another while nothing else is computed. With n messages and
    b bytes of the pair style and of the positions and forces of LAMMPS, latency a and bandwidth w,

        t(P) = t(1) + d(P)/3 (n a + b / w) + ceil(log2 P) a

    where d directions are divided among ranks: 1 for two ranks, 3 from eight on. The last term is
    the reduction that decides on new neighbour lists. All ranks are assumed to have equal work.

    Parameters
    ----------
    record : dict
        Record of `benchmark lammps` with one rank.
    exchanges : int
        Number of exchanges of the pair style in a step, 2 (L - 1) for a student with L layers.
    network : Network
        The network between the ranks.

    Yields
    ------
    Prediction
        For each number of ranks in `RANKS`.
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


if __name__ == "__main__":
    run(lambda: typer.run(main))
