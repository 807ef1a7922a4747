"""Prediction of weak scaling in LAMMPS from what one rank computes and would send."""

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
GHOST_BYTES = 24  # a position there, a force back: three doubles each
# Messages of LAMMPS itself a step, for each of an exchange of the pair style: positions, forces.
OWN_EXCHANGES = 2


class Network(NamedTuple):
    """Between any two ranks, all of them sending at once."""

    latency_us: float
    bandwidth_gb_per_s: float  # of each rank


class Prediction(NamedTuple):
    """A step of one rank's atoms, among so many ranks."""

    ranks: int
    ms_per_step: float
    efficiency: float  # time of one rank over this


def main(
    records: Annotated[Path, typer.Argument(help="JSON of `mlff-student benchmark lammps`.")],
    latency_us: Annotated[float, typer.Option(help="Latency of the network, µs.")] = 2.0,
    bandwidth: Annotated[
        float, typer.Option("--bandwidth-gb-per-s", help="Bandwidth of each rank.")
    ] = 1.0,
) -> None:
    """Print how long a step would take in LAMMPS on up to 1,000 ranks, each with as many atoms.

    The records must have runs on one rank. The model: t(P) = t(1) + d/3 (n a + b/w) +
    ceil(log2 P) a, for n messages of b bytes, latency a and bandwidth w, and d of three directions
    divided among ranks.

    Example: mlff-student benchmark lammps --models tiny --json lammps.json
    && python benchmarks/weak_scaling.py lammps.json --latency-us 2
    """
    check_positive("--latency-us", latency_us)
    check_positive("--bandwidth-gb-per-s", bandwidth)
    _, rows = read_records(records, "benchmark lammps", "benchmarks/rivals_lammps.py")
    print(scaling_table(rows, Network(latency_us, bandwidth)))


def scaling_table(records: list[Record], network: Network) -> str:
    """Markdown table of the predictions.

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
                f"{guess.ms_per_step:.3g} ms, {guess.efficiency:.0%}"
                for guess in predict(row, exchanges, network)
            )
            rows.append([pair_label(row), f"{row['atoms']:,}", *cells])
    if not rows:
        raise InputError("no record is of a student on one rank with native kernels")
    return table(["model", "atoms/rank", *(f"{ranks:,} ranks" for ranks in RANKS)], rows)


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
    record : Record
        Record of `benchmark lammps`, one rank.
    exchanges : int
        Exchanges of the pair style a step, 2 (L - 1) for a student of L layers.
    network : Network
        What connects the ranks.
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
