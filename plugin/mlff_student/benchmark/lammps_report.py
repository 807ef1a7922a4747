"""What `benchmark lammps` found, as Markdown and as a figure."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mlff_student.archive.registry import archive_of
from mlff_student.benchmark.lammps import RIVALS, STUDENT
from mlff_student.benchmark.records import Record
from mlff_student.benchmark.tables import LEAST_CORES
from mlff_student.benchmark.targets import UNITS, judge, load_targets
from mlff_student.benchmark.weak_scaling import RANKS, Network, predict
from mlff_student.core.errors import InputError
from mlff_student.core.files import atomic_write
from mlff_student.core.results import machine_facts
from mlff_student.reporting.plots import COLOURS, FONT_SIZE, single_figure

BEGIN, END = "<!-- benchmark lammps: begin -->", "<!-- benchmark lammps: end -->"
# Heading, key, form.
STAGES = (
    ("neighbours", "neighbour_us", "{:.2f}"),
    ("edges", "edges_us", "{:.2f}"),
    ("model", "model_us", "{:.2f}"),
    ("tally", "tally_us", "{:.2f}"),
    ("communication", "communication_us", "{:.2f}"),
)
COLUMNS = (
    ("atoms", "atoms", "{:,}"),
    ("ranks", "ranks", "{}"),
    ("threads", "threads", "{}"),
    ("µs/atom/step", "us_per_atom_step", "{:.1f}"),
    *STAGES,
    ("communication share", "communication_share", "{:.1%}"),
    ("x 1 rank", "speedup_by_ranks", "{:.2f}"),
    ("x 1 thread", "thread_speedup", "{:.2f}"),
    ("held kB/atom", "held_kb_per_atom", "{:.1f}"),
    ("peak kB/atom", "peak_kb_per_atom", "{:.1f}"),
)


def report(records: Sequence[Record], network: Network) -> str:
    """Markdown: times by stage, targets, what the others take, messages, predicted weak scaling."""
    facts = machine_facts()
    sections = [
        f"On {facts['processor']}, {facts['cores']} cores. Acetone at liquid density, 300 K; SNAP "
        "on bcc tantalum. Times are µs a step and atom. Waiting for another rank is communication; "
        "'held' is what LAMMPS counts, 'peak' what the process took more than before its run.",
        _table(
            ("pair style", *(title for title, _, _ in COLUMNS)),
            ((_name(one), *(_text(one[key], form) for _, key, form in COLUMNS)) for one in records),
        ),
        *_sources(records),
        *_notes(records),
        _targets(records),
        *_messages(records),
        *_scaling(records, network),
    ]
    return "\n\n".join(section for section in sections if section)


def write_section(text: str, path: Path) -> None:
    """Write the report: between its marks where the file has them, else as a file of its own.

    Raises
    ------
    InputError : the file is there and has no marks.
    """
    marked = f"{BEGIN}\n\n{text}\n\n{END}"
    if path.exists():
        before, begin, rest = path.read_text().partition(BEGIN)
        _, end, after = rest.partition(END)
        if not (begin and end):
            raise InputError(f"{path} exists and has no place marked '{BEGIN}' ... '{END}'")
        marked = before + marked + after
    else:
        marked += "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(marked)


def plot_times(records: Sequence[Record], path: Path) -> None:
    """PNG of the time of a step and atom by size, on one thread; broken lines are two ranks.

    Raises
    ------
    InputError : `path` cannot be written.
    """
    found = [one for one in records if one["us_per_atom_step"] and one["threads"] == 1]
    names = list(dict.fromkeys(map(_name, found)))
    with single_figure(path, "atoms", "time of a step (µs/atom)", yscale="log") as axes:
        axes.set_xscale("log")
        styles = list(dict.fromkeys(name.partition(",")[0] for name in names))
        for name in names:
            style, _, portable = name.partition(",")
            colour = COLOURS[styles.index(style) % len(COLOURS)]
            for ranks in sorted({one["ranks"] for one in found}):
                points = sorted(
                    (one["atoms"], one["us_per_atom_step"])
                    for one in found
                    if _name(one) == name and one["ranks"] == ranks
                )
                if points:
                    axes.plot(
                        *zip(*points, strict=True),
                        color=colour,
                        marker="s" if portable else "o",
                        linestyle="-" if ranks == 1 else "--",
                        label=name if ranks == 1 else None,
                    )
        axes.set_title("full: one rank, broken: more ranks; one thread", fontsize=FONT_SIZE)


def _name(record: Record) -> str:
    if not record["model"]:
        return record["style"]
    model = Path(record["model"]).stem
    return model if record["backend"] == "native" else f"{model}, {record['backend']}"


def _text(value: Any, form: str) -> str:
    return "" if value is None else form.format(value)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _sources(records: Sequence[Record]) -> Iterator[str]:
    for style, potential in RIVALS.items():
        if any(one["style"] == style for one in records):
            yield (
                f"{style}: {potential.files[0]} of LAMMPS's own potentials, {potential.source}; "
                f"its usual timestep is {potential.timestep_fs:g} fs."
            )


def _notes(records: Sequence[Record]) -> Iterator[str]:
    for one in records:
        if one["note"]:
            yield f"{_name(one)}, {one['atoms']:,} atoms: {one['note']}."
    waited = [
        f"{_name(one)}, {one['atoms']:,} atoms ({one['cores_used']:.0%})"
        for one in records
        if one["threads"] == 1 and one["cores_used"] and one["cores_used"] < LEAST_CORES
    ]
    if waited:
        yield (
            "**Waited for memory or for other programs, and computed in only part of the time: "
            f"{'; '.join(waited)}. Measure these again on a quiet machine.**"
        )


def _targets(records: Sequence[Record]) -> str:
    rows = [
        (
            Path(one.model).stem,
            one.atoms,
            UNITS[one.target.figure],
            f"{'≤' if one.target.at_least is None else '≥'} {one.target.bound:g}",
            f"{one.measured:.3g}",
            one.verdict,
        )
        for one in judge(list(records), load_targets())
    ]
    return _table(("model", "atoms", "figure", "target", "measured", ""), rows) if rows else ""


def _exchanging(records: Sequence[Record]) -> list[Record]:
    """Students that run on several ranks, on one thread of each."""
    return [
        one
        for one in records
        if one["style"] == STUDENT
        and one["backend"] == "native"
        and one["threads"] == 1
        and one["swaps_per_step"]
    ]


def _messages(records: Sequence[Record]) -> Iterator[str]:
    if found := _exchanging(records):
        yield (
            "What the pair style exchanges in a step, each rank: swaps, of which those to other "
            "ranks are messages. LAMMPS itself adds 48 bytes a ghost."
        )
        yield _table(
            ("model", "atoms", "ranks", "ghosts", "swaps", "MB", "messages", "MB sent"),
            (
                (
                    _name(one),
                    f"{one['atoms']:,}",
                    str(one["ranks"]),
                    f"{one['ghosts_per_rank']:,.0f}",
                    f"{one['swaps_per_step']:.0f}",
                    f"{1e-3 * one['swapped_kb_per_step']:.2f}",
                    f"{one['messages_per_step']:.0f}",
                    f"{1e-3 * one['sent_kb_per_step']:.2f}",
                )
                for one in found
            ),
        )


def _scaling(records: Sequence[Record], network: Network) -> Iterator[str]:
    rows = []
    for one in (one for one in _exchanging(records) if one["ranks"] == 1):
        exchanges = 2 * (archive_of(one["model"]).metadata["layers"] - 1)
        cells = (
            f"{each.ms_per_step:.3g} ms, {each.efficiency:.0%}"
            for each in predict(one, exchanges, network)
        )
        rows.append((_name(one), f"{one['atoms']:,}", *cells))
    if rows:
        yield (
            "Predicted weak scaling, time of a step and efficiency, by "
            "t(P) = t(1) + d/3 (n a + b/w) + ceil(log2 P) a: t(1) is measured on one rank; n "
            "messages of b bytes in all are the swaps that it copies onto itself, and LAMMPS's own "
            "positions and forces, which among P ranks go to others in d of three directions (1 "
            "for two ranks, 3 from eight on); the last term is the reduction that decides on new "
            f"neighbour lists. Assumed: latency a = {network.latency_us:g} µs; w = "
            f"{network.bandwidth_gb_per_s:g} GB/s for each rank while all send; messages one after "
            "another and hidden behind nothing, as Comm sends them; equal work on all ranks."
        )
        titles = (f"{ranks:,} ranks" if ranks > 1 else "1 rank" for ranks in RANKS)
        yield _table(("model", "atoms/rank", *titles), rows)
