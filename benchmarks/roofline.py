"""Draw a roofline plot of the records of `mlff-student benchmark kernels`."""

from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import typer

from mlff_student.benchmark.records import Record, read_records
from mlff_student.cli import run
from mlff_student.core.errors import InputError
from mlff_student.reporting.plots import COLOURS, FONT_SIZE, single_figure


def main(
    records: Annotated[Path, typer.Argument(help="JSON of `mlff-student benchmark kernels`.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG file to write.")] = Path(
        "roofline.png"
    ),
) -> None:
    """Plot the arithmetic rate of each model against its arithmetic intensity, with the limits.

    The limits are the rates of a matrix product and of a copy of memory, measured in the same run.

    Example: mlff-student benchmark kernels --json kernels.json
    && python benchmarks/roofline.py kernels.json -o roofline.png
    """
    _, rows = read_records(records, "benchmark kernels")
    plot_roofline(rows, output)
    print(f"written: {output}")


def plot_roofline(records: list[Record], path: Path) -> None:
    """Plot the rates with the smallest number of threads against the arithmetic intensity.

    Raises
    ------
    InputError
        No record has a time, or the file cannot be written.
    """
    kernels = [row for row in records if row["measurement"] == "kernels" and row["ms"]]
    if not kernels:
        raise InputError("no record of the kernels has a time; give a file of benchmark kernels")
    threads = min(row["threads"] for row in kernels)
    kernels = [row for row in kernels if row["threads"] == threads]
    sgemm = median(row["sgemm_gflop_per_s"] for row in kernels)
    bandwidth = median(row["copy_gb_per_s"] for row in kernels)
    models = list(dict.fromkeys(row["model"] for row in kernels))
    x, y = "arithmetic intensity (FLOP/byte)", "rate (GFLOP/s)"
    with single_figure(path, x, y, yscale="log") as axes:
        ends = np.array([1.0, sgemm / bandwidth, 100.0])
        axes.plot(ends, np.minimum(sgemm, bandwidth * ends), color="black")
        text = {"fontsize": FONT_SIZE}
        axes.text(100.0, 1.1 * sgemm, f"SGEMM {sgemm:.0f} GFLOP/s", ha="right", **text)
        axes.text(1.2, 1.1 * bandwidth, f"copy {bandwidth:.0f} GB/s", va="top", **text)
        for row in kernels:
            colour = COLOURS[models.index(row["model"]) % len(COLOURS)]
            axes.plot(
                row["flop_per_byte"],
                row["gflop_per_s"],
                marker="o",
                markersize=4.0 + 1.5 * np.log10(row["atoms"]),
                color=colour,
                markerfacecolor=colour if row["backend"] == "native" else "none",
                linestyle="none",
            )
        for model, colour in zip(models, COLOURS, strict=False):
            axes.plot([], [], color=colour, marker="o", linestyle="none", label=Path(model).stem)
        smallest, largest = (end(row["atoms"] for row in kernels) for end in (min, max))
        axes.set_title(
            f"full: native, open: portable; {smallest:,} (small) to {largest:,} atoms (large), "
            f"threads: {threads}",
            fontsize=FONT_SIZE - 1,
        )
        axes.set_xscale("log")


if __name__ == "__main__":
    run(lambda: typer.run(main))
