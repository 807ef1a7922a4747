"""Tables of `benchmark kernels` and `benchmark batch` for the terminal, and of the targets."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from mlff_student.benchmark.targets import TargetCheck

LEAST_CORES = 0.9  # processor time over wall time of one thread; less on a busy machine
PADDING = (0, 0, 0, 1)  # the tables fit into 80 columns
# Key in a record of the native kernels, heading, format.
FIGURES = (
    ("ms", "ms", "{:.3g}"),
    ("us_per_atom", "µs/\natom", "{:.3g}"),
    ("ratio_to_portable", "x port-\nable", "{:.1f}"),
    ("gflop_per_s", "GFLOP\n/s", "{:.1f}"),
    ("sgemm_fraction", "of\nSGEMM", "{:.2f}"),
    ("speedup_by_threads", "x one\nthread", "{:.2f}"),
    ("peak_memory_kb_per_atom", "kB/\natom", "{:.1f}"),
)


def records_table(records: list[dict[str, Any]]) -> Table:
    """Make the table of the native kernels, with a row for each model, size and threads."""
    table = Table(title="energy and forces, native kernels", box=SIMPLE_HEAD, padding=PADDING)
    table.add_column("model", no_wrap=True)
    for title in ("atoms", "threads", *(heading for _, heading, _ in FIGURES)):
        table.add_column(title, justify="right", no_wrap=True)
    for record in records:
        if record["measurement"] == "kernels" and record["backend"] == "native":
            head = (_name(record), str(record["atoms"]), str(record["threads"]))
            cells = (_text(record[key], form) for key, _, form in FIGURES)
            table.add_row(*head, *cells)
    return table


def batch_table(records: list[dict[str, Any]]) -> Table:
    """Make the table of `benchmark batch`, with a row for each record."""
    table = Table(title="microseconds per structure", box=SIMPLE_HEAD, padding=PADDING)
    for title in ("model", "backend", "structures"):
        table.add_column(title, no_wrap=True)
    figures = ("one_by_one_us", "batch_us", "kernel_us", "batch_speedup", "batch_s")
    for title in ("atoms", "threads", "one\nby one", "batch", "kernels\nalone", "ratio", "all, s"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in records:
        words = (_name(row), row["backend"], row["kind"], str(row["atoms"]), str(row["threads"]))
        table.add_row(*words, *(_text(row[key], "{:.3g}") for key in figures))
    return table


def targets_table(checks: list[TargetCheck]) -> Table:
    """Make the table of the targets, with a row for each judged figure."""
    table = Table(title="targets", box=SIMPLE_HEAD, padding=PADDING)
    table.add_column("model", no_wrap=True)
    for title in ("atoms", "figure", "target", "measured"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for target in checks:
        figure, threshold = target.check.figure, target.check.threshold
        style = "green" if target.check.passed else "yellow"
        table.add_row(
            _name(target._asdict()),
            target.atoms,
            figure.title,
            f"{threshold.sign} {threshold.value:g}",
            f"{figure.value:.3g}",
            f"[{style}]{target.verdict}[/]",
        )
    return table


def remarks(records: list[dict[str, Any]]) -> Iterator[str]:
    """Say what is not in the tables.

    These are steps in OpenMM, what was not measured and why, and whether the machine was busy.
    """
    for row in records:
        if row["note"]:
            yield f"{row['model']}, {row['backend']}, {row['atoms']} atoms: {row['note']}"
        elif row["measurement"] == "openmm_step":
            yield (
                f"{row['model']}: a step of {row['atoms']} atoms in OpenMM takes {row['ms']:.3g} "
                f"ms, energy and forces alone {row['kernel_ms']:.3g} ms"
            )
    single = [row for row in records if row["threads"] == 1 and row.get("cores_used")]
    cores = min((row["cores_used"] for row in single), default=1.0)
    if cores < LEAST_CORES:
        yield (
            f"Other programs took up to {1.0 - cores:.0%} of a core: measure again on a machine "
            "that does nothing else before you use these figures."
        )


def _name(record: dict[str, Any]) -> str:
    return escape(Path(record["model"]).name)


def _text(value: float | None, form: str) -> str:
    if value is None:
        return "-"
    return form.format(value) if value < 1000.0 else f"{value:,.0f}"
