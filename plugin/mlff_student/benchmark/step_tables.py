"""Tables of `benchmark openmm` and `benchmark lammps` for the terminal."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from mlff_student.benchmark.records import Record

PADDING = (0, 0, 0, 1)  # the tables fit into 80 columns
# Keys in a record, and headings.
OPENMM_FIGURES = (
    ("ms_per_step", "ms/step"),
    ("overhead_ms", "over-\nhead ms"),
    ("ns_per_day", "ns/\nday"),
)
LAMMPS_FIGURES = (
    ("us_per_atom_step", "µs/atom/\nstep"),
    ("communication_share", "commu-\nnication"),
    ("speedup_by_ranks", "x one\nrank"),
    ("thread_speedup", "x one\nthread"),
    ("peak_kb_per_atom", "kB/\natom"),
)


def step_table(records: list[Record]) -> Table:
    """Make the table of `benchmark openmm`, with a row for each record."""
    table = Table(box=SIMPLE_HEAD, padding=PADDING)
    table.add_column("model", no_wrap=True)
    table.add_column("force,\nkernels", min_width=len("PythonForce"))
    table.add_column("platform", no_wrap=True)
    for title in ("atoms", "thr-\neads", *(title for _, title in OPENMM_FIGURES)):
        table.add_column(title, justify="right", no_wrap=True)
    for record in records:
        table.add_row(
            escape(step_label(record)),
            f"{record['interface']} {record['backend']}",
            record["platform"],
            str(record["atoms"]),
            str(record["threads"]),
            *(_text(record[key]) for key, _ in OPENMM_FIGURES),
        )
    return table


def lammps_table(records: list[Record]) -> Table:
    """Make the table of `benchmark lammps`, with a row for each record."""
    table = Table(box=SIMPLE_HEAD, padding=PADDING)
    table.add_column("pair style", no_wrap=True)
    for title in ("atoms", "ranks", "thr-\neads", *(title for _, title in LAMMPS_FIGURES)):
        table.add_column(title, justify="right", no_wrap=True)
    for record in records:
        counts = (str(record[key]) for key in ("atoms", "ranks", "threads"))
        figures = (_text(record[key]) for key, _ in LAMMPS_FIGURES)
        table.add_row(escape(pair_label(record)), *counts, *figures)
    return table


def step_label(record: Record) -> str:
    """Return the name of a potential in OpenMM, with its number of parameters."""
    size = f", {record['parameters'] / 1e3:.0f}K" if record["parameters"] else ""
    return Path(record["model"]).name + size


def pair_label(record: Record) -> str:
    """Return the name of a potential in LAMMPS, with its backend if that is not native."""
    if not record["model"]:
        return record["style"]
    model = Path(record["model"]).stem
    return model if record["backend"] == "native" else f"{model}, {record['backend']}"


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
