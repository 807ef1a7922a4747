"""What `benchmark kernels` prints: the records, remarks on them, the targets."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from mlff_student.benchmark.targets import TargetCheck

LEAST_CORES = 0.9  # processor time over wall time on one thread of a quiet machine
PADDING = (0, 0, 0, 1)  # the tables fit into 80 columns
# Key in the record of the native kernels, heading, form.
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
    """The native kernels, one row a model, size and number of threads."""
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
    """One by one and in batches, one row a model, backend, kind of structures and threads."""
    table = Table(title="microseconds a structure", box=SIMPLE_HEAD, padding=PADDING)
    for title in ("model", "backend", "structures"):
        table.add_column(title, no_wrap=True)
    figures = ("one_by_one_us", "batch_us", "kernel_us", "batch_speedup", "batch_s")
    for title in ("atoms", "threads", "one\nby one", "batch", "kernels\nalone", "ratio", "all, s"):
        table.add_column(title, justify="right", no_wrap=True)
    for one in records:
        words = (_name(one), one["backend"], one["kind"], str(one["atoms"]), str(one["threads"]))
        table.add_row(*words, *(_text(one[key], "{:.3g}") for key in figures))
    return table


def targets_table(checks: list[TargetCheck]) -> Table:
    """One row a target and figure."""
    table = Table(title="targets", box=SIMPLE_HEAD, padding=PADDING)
    table.add_column("model", no_wrap=True)
    for title in ("atoms", "figure", "target", "measured"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for one in checks:
        figure, threshold = one.check.figure, one.check.threshold
        style = "green" if one.check.passed else "yellow"
        table.add_row(
            _name(one._asdict()),
            one.atoms,
            figure.title,
            f"{threshold.sign} {threshold.value:g}",
            f"{figure.value:.3g}",
            f"[{style}]{one.verdict}[/]",
        )
    return table


def remarks(records: list[dict[str, Any]]) -> Iterator[str]:
    """What is not in the table: steps in OpenMM, what was left out and why, a busy machine."""
    for one in records:
        if one["note"]:
            yield f"{one['model']}, {one['backend']}, {one['atoms']} atoms: {one['note']}"
        elif one["measurement"] == "openmm_step":
            yield (
                f"{one['model']}: a step of {one['atoms']} atoms in OpenMM takes {one['ms']:.3g} "
                f"ms, energy and forces alone {one['kernel_ms']:.3g} ms"
            )
    single = [one for one in records if one["threads"] == 1 and one.get("cores_used")]
    least = min((one["cores_used"] for one in single), default=1.0)
    if least < LEAST_CORES:
        yield (
            f"Other programs took up to {1.0 - least:.0%} of a core: measure again on a quiet "
            "machine before these figures are used."
        )


def _name(record: dict[str, Any]) -> str:
    return escape(Path(record["model"]).name)


def _text(value: float | None, form: str) -> str:
    if value is None:
        return "-"
    return form.format(value) if value < 1000.0 else f"{value:,.0f}"
