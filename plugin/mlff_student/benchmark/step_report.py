"""What `benchmark openmm` shows of its records: a table, a document in Markdown, two figures."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from mlff_student.benchmark.architectures import ARCHITECTURES
from mlff_student.benchmark.records import Record
from mlff_student.core.files import atomic_write
from mlff_student.reporting.plots import COLOURS, FONT_SIZE, single_figure

# Key in a record, heading; key, heading, form.
WORDS = {
    "model": "model",
    "parameters": "parameters",
    "interface": "force",
    "backend": "kernels",
    "platform": "platform",
    "threads": "threads",
}
FIGURES = (
    ("ms_per_step", "ms/step", "{:.3g}"),
    ("ms_per_step_iqr", "IQR", "{:.2g}"),
    ("kernel_ms", "kernel ms", "{:.3g}"),
    ("overhead_ms", "overhead ms", "{:.2g}"),
    ("ns_per_day", "ns/day", "{:.3g}"),
)
NARROW = {"threads": "thr-\neads", "overhead ms": "over-\nhead ms", "ns/day": "ns/\nday"}


def step_table(records: list[Record]) -> Table:
    """One row a record."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1))  # it fits into 80 columns
    table.add_column("model", no_wrap=True)
    table.add_column("force,\nkernels", min_width=len("PythonForce"))
    table.add_column("platform", no_wrap=True)
    for title in ("atoms", "threads", "ms/step", "overhead ms", "ns/day"):
        table.add_column(NARROW.get(title, title), justify="right", no_wrap=True)
    for one in records:
        table.add_row(
            escape(_label(one)),
            f"{one['interface']} {one['backend']}",
            one["platform"],
            str(one["atoms"]),
            str(one["threads"]),
            *(_text(one[key], "{:.3g}") for key in ("ms_per_step", "overhead_ms", "ns_per_day")),
        )
    return table


def write_step_report(records: list[Record], machine: dict[str, Any], path: Path) -> list[Path]:
    """Write beside the records' file: .md, tables; .png, what runs how fast on the smallest
    structure; -atoms.png, where there are several sizes, how long a student's step takes.

    Parameters
    ----------
    records : of `benchmark_steps`.
    machine : what they were measured on.
    path : of their file.

    Returns
    -------
    The files.

    Raises
    ------
    InputError : they cannot be written.
    """
    written = [path.with_suffix(".md"), path.with_suffix(".png")]
    with atomic_write(written[0]) as temporary:
        temporary.write_text(step_markdown(records, machine))
    _plot_contest(records, written[1])
    if len({one["atoms"] for one in records}) > 1:
        written.append(path.with_name(f"{path.stem}-atoms.png"))
        _plot_sizes(records, written[2])
    return written


def step_markdown(records: list[Record], machine: dict[str, Any]) -> str:
    """Document with a table for each structure, and what it was run on."""
    lines = [
        f"Steps in OpenMM {machine['openmm']} with torch {machine['torch']} on "
        f"{machine['processor']}, {machine['cores']} cores. A step is the median, IQR the range "
        "between the quartiles; a kernel is energy and forces outside OpenMM, the overhead what a "
        f"step takes beyond; ns/day are of a timestep of {records[0]['timestep_fs']:g} fs."
    ]
    if random := sorted({one["model"] for one in records} & set(ARCHITECTURES)):
        lines += ["", f"Random weights, for their speed alone: {', '.join(random)}."]
    shown = ""
    for one in records:
        kind = "a box" if one["periodic"] else "a molecule"
        if (title := f"{one['atoms']:,} atoms, {kind}") != shown:
            headings = [*WORDS.values(), *(heading for _, heading, _ in FIGURES)]
            rule = ["---"] * len(WORDS) + ["---:"] * len(FIGURES)
            lines += ["", f"**{title}**", "", *map(_row, (headings, rule))]
            shown = title
        size = f"{one['parameters']:,}" if one["parameters"] else ""
        words = one | {"model": Path(one["model"]).name, "parameters": size}
        cells = [str(words[key] or "-") for key in WORDS]
        lines.append(_row(cells + [_text(one[key], form) for key, _, form in FIGURES]))
    return "\n".join(lines) + "\n"


def _plot_contest(records: list[Record], path: Path) -> None:
    """Bars of ns/day on the smallest structure, each model by its fastest way to run."""
    atoms = min(one["atoms"] for one in records)
    best: dict[str, Record] = {}
    for one in records:
        if one["atoms"] == atoms:
            best[_label(one)] = max(best.get(_label(one), one), one, key=lambda x: x["ns_per_day"])
    ranked = sorted(best.items(), key=lambda item: item[1]["ns_per_day"])
    with single_figure(path, "ns/day", "") as axes:
        for place, (_, one) in enumerate(ranked):
            rate = one["ns_per_day"]
            axes.barh(place, rate, color=COLOURS[0] if one["backend"] else COLOURS[1])
            axes.text(1.05 * rate, place, f"{rate:.3g}", va="center", fontsize=FONT_SIZE - 1)
        axes.set_yticks(range(len(ranked)), [label for label, _ in ranked])
        axes.set_xscale("log")
        axes.set_xlim(right=2.0 * ranked[-1][1]["ns_per_day"])
        axes.set_title(
            f"{atoms} atoms in OpenMM, {records[0]['timestep_fs']:g} fs a step", fontsize=FONT_SIZE
        )


def _plot_sizes(records: list[Record], path: Path) -> None:
    """Lines of the students' ms/step against atoms, by their fastest way to run; dashed on the
    largest number of threads.
    """
    students = [one for one in records if one["backend"]]
    threads = sorted({one["threads"] for one in students})
    models = zip(dict.fromkeys(one["model"] for one in students), COLOURS, strict=False)
    with single_figure(path, "atoms", "ms/step", yscale="log") as axes:
        for (model, colour), count in product(models, threads[:1] + threads[1:][-1:]):
            line: dict[int, float] = {}
            for one in students:
                if (one["model"], one["threads"]) == (model, count):
                    size = one["atoms"]
                    line[size] = min(line.get(size, np.inf), one["ms_per_step"])
            axes.plot(
                *zip(*sorted(line.items()), strict=True),
                marker="o",
                color=colour,
                linestyle="-" if count == threads[0] else "--",
                label=f"{Path(model).name}, threads: {count}",
            )
        axes.set_xscale("log")


def _label(record: Record) -> str:
    size = f", {record['parameters'] / 1e3:.0f}K" if record["parameters"] else ""
    return Path(record["model"]).name + size


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
