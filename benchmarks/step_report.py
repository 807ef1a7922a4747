"""Write Markdown tables and figures of the records of steps in OpenMM or LAMMPS."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from markdown_table import table

from mlff_student.benchmark.records import Record, read_records
from mlff_student.benchmark.step_tables import pair_label, step_label
from mlff_student.cli import run
from mlff_student.core.files import atomic_write
from mlff_student.reporting.plots import COLOURS, FONT_SIZE, single_figure

OPENMM = ("benchmark openmm", "benchmarks/rivals_openmm.py")
LAMMPS = ("benchmark lammps", "benchmarks/rivals_lammps.py")
# Key in a record, heading, format.
OPENMM_COLUMNS = (
    ("interface", "force", "{}"),
    ("backend", "kernels", "{}"),
    ("platform", "platform", "{}"),
    ("threads", "threads", "{}"),
    ("ms_per_step", "ms/step", "{:.3g}"),
    ("ms_per_step_iqr", "IQR", "{:.2g}"),
    ("kernel_ms", "kernel ms", "{:.3g}"),
    ("overhead_ms", "overhead ms", "{:.2g}"),
    ("ns_per_day", "ns/day", "{:.3g}"),
)
LAMMPS_COLUMNS = (
    ("atoms", "atoms", "{:,}"),
    ("ranks", "ranks", "{}"),
    ("threads", "threads", "{}"),
    ("us_per_atom_step", "µs/atom/step", "{:.1f}"),
    ("neighbour_us", "neighbours", "{:.2f}"),
    ("edges_us", "edges", "{:.2f}"),
    ("model_us", "model", "{:.2f}"),
    ("tally_us", "tally", "{:.2f}"),
    ("communication_us", "communication", "{:.2f}"),
    ("communication_share", "communication share", "{:.1%}"),
    ("speedup_by_ranks", "x 1 rank", "{:.2f}"),
    ("thread_speedup", "x 1 thread", "{:.2f}"),
    ("ghosts_per_rank", "ghosts per rank", "{:,.0f}"),
    ("messages_per_step", "messages per step", "{:.0f}"),
    ("sent_kb_per_step", "kB sent per step", "{:,.0f}"),
    ("held_kb_per_atom", "held kB/atom", "{:.1f}"),
    ("peak_kb_per_atom", "peak kB/atom", "{:.1f}"),
)


def main(
    records: Annotated[
        Path,
        typer.Argument(
            help="JSON file of `benchmark openmm` or `benchmark lammps`, or of a script of rivals."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Markdown file; the PNG files are written beside it."),
    ] = None,
) -> None:
    """Write a Markdown table of all records, and figures of the times.

    Example: mlff-student benchmark openmm --models tiny --json openmm.json
    && python benchmarks/step_report.py openmm.json -o openmm.md
    """
    machine, rows = read_records(records, *OPENMM, *LAMMPS)
    path = output or records.with_suffix(".md")
    if "style" in rows[0]:
        text, figures = lammps_markdown(rows, machine), {"": plot_lammps}
    else:
        text, figures = openmm_markdown(rows, machine), {"": plot_openmm}
        if len({row["atoms"] for row in rows}) > 1:
            figures["-atoms"] = plot_sizes
    with atomic_write(path) as temporary:
        temporary.write_text(text)
    print(f"written: {path}")
    for suffix, plot in figures.items():
        figure = path.with_name(f"{path.stem}{suffix}.png")
        plot(rows, figure)
        print(f"written: {figure}")


def openmm_markdown(records: list[Record], machine: dict[str, Any]) -> str:
    """Return a document with a table for each structure."""
    parts = [
        f"Steps in OpenMM {machine['openmm']} with torch {machine['torch']} on "
        f"{machine['processor']}, {machine['cores']} cores. Times of a step are medians, and "
        "IQR is the range between the quartiles. The kernel is energy and forces outside OpenMM, "
        "and the overhead is the rest of a step. ns/day are for a timestep of "
        f"{records[0]['timestep_fs']:g} fs."
    ]
    for atoms, periodic in dict.fromkeys((row["atoms"], row["periodic"]) for row in records):
        parts.append(f"**{atoms:,} atoms, {'a box' if periodic else 'a molecule'}**")
        parts.append(
            table(
                ["model", *(heading for _, heading, _ in OPENMM_COLUMNS)],
                (
                    [step_label(row), *_cells(row, OPENMM_COLUMNS)]
                    for row in records
                    if (row["atoms"], row["periodic"]) == (atoms, periodic)
                ),
            )
        )
    return "\n\n".join(parts) + "\n"


def lammps_markdown(records: list[Record], machine: dict[str, Any]) -> str:
    """Return a document with one table, and a line for each run that was not measured."""
    parts = [
        f"Steps in LAMMPS {machine['lammps']} on {machine['processor']}, {machine['cores']} cores. "
        "The system is acetone at liquid density and 300 K; for SNAP it is bcc tantalum. Times are "
        "µs per step and atom. Waiting for another rank counts as communication. 'held' is the "
        "memory that LAMMPS counts, 'peak' the memory that the run adds to that of the process.",
        table(
            ["pair style", *(heading for _, heading, _ in LAMMPS_COLUMNS)],
            ([pair_label(row), *_cells(row, LAMMPS_COLUMNS)] for row in records),
        ),
        *_notes(records),
    ]
    return "\n\n".join(parts) + "\n"


def _notes(records: list[Record]) -> Iterator[str]:
    for row in records:
        if row["note"]:
            yield f"{pair_label(row)}, {row['atoms']:,} atoms: {row['note']}."


def _cells(record: Record, columns: tuple[tuple[str, str, str], ...]) -> list[str]:
    values = [(record[key], form) for key, _, form in columns]
    return ["-" if value in (None, "") else form.format(value) for value, form in values]


def plot_openmm(records: list[Record], path: Path) -> None:
    """Plot ns/day on the smallest structure, with the fastest way to run each model."""
    atoms = min(row["atoms"] for row in records)
    best: dict[str, Record] = {}
    for row in (row for row in records if row["atoms"] == atoms):
        fastest = best.setdefault(step_label(row), row)
        if row["ns_per_day"] > fastest["ns_per_day"]:
            best[step_label(row)] = row
    ranked = sorted(best.items(), key=lambda item: item[1]["ns_per_day"])
    with single_figure(path, "ns/day", "") as axes:
        for place, (_, row) in enumerate(ranked):
            rate = row["ns_per_day"]
            axes.barh(place, rate, color=COLOURS[0] if row["backend"] else COLOURS[1])
            axes.text(1.05 * rate, place, f"{rate:.3g}", va="center", fontsize=FONT_SIZE - 1)
        axes.set_yticks(range(len(ranked)), [label for label, _ in ranked])
        axes.set_xscale("log")
        axes.set_xlim(right=2.0 * ranked[-1][1]["ns_per_day"])
        axes.set_title(
            f"{atoms} atoms in OpenMM, {records[0]['timestep_fs']:g} fs a step", fontsize=FONT_SIZE
        )


def plot_sizes(records: list[Record], path: Path) -> None:
    """Plot the students' ms/step against atoms; dashed lines have the most threads."""
    students = [row for row in records if row["backend"]]
    threads = sorted({row["threads"] for row in students})
    models = zip(dict.fromkeys(row["model"] for row in students), COLOURS, strict=False)
    with single_figure(path, "atoms", "ms/step", yscale="log") as axes:
        for (model, colour), count in product(models, threads[:1] + threads[1:][-1:]):
            line: dict[int, float] = {}
            for row in students:
                if (row["model"], row["threads"]) == (model, count):
                    size = row["atoms"]
                    line[size] = min(line.get(size, np.inf), row["ms_per_step"])
            axes.plot(
                *zip(*sorted(line.items()), strict=True),
                marker="o",
                color=colour,
                linestyle="-" if count == threads[0] else "--",
                label=f"{Path(model).name}, threads: {count}",
            )
        axes.set_xscale("log")


def plot_lammps(records: list[Record], path: Path) -> None:
    """Plot the time per step and atom against atoms, with one thread; dashed: more ranks."""
    timed = [row for row in records if row["us_per_atom_step"] and row["threads"] == 1]
    labels = list(dict.fromkeys(map(pair_label, timed)))
    models = list(dict.fromkeys(row["model"] or row["style"] for row in timed))
    with single_figure(path, "atoms", "time of a step (µs/atom)", yscale="log") as axes:
        axes.set_xscale("log")
        for label, ranks in product(labels, sorted({row["ranks"] for row in timed})):
            line = [row for row in timed if (pair_label(row), row["ranks"]) == (label, ranks)]
            if line:
                model = line[0]["model"] or line[0]["style"]
                axes.plot(
                    *zip(
                        *sorted((row["atoms"], row["us_per_atom_step"]) for row in line),
                        strict=True,
                    ),
                    color=COLOURS[models.index(model) % len(COLOURS)],
                    marker="s" if line[0]["backend"] == "portable" else "o",
                    linestyle="-" if ranks == 1 else "--",
                    label=label if ranks == 1 else None,
                )
        axes.set_title("full: one rank, dashed: more ranks; one thread", fontsize=FONT_SIZE)


if __name__ == "__main__":
    run(lambda: typer.run(main))
