"""The report of the quality gate: a JSON file, a page in Markdown and plots."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from mlff_student.core.errors import InputError
from mlff_student.core.figures import record_of
from mlff_student.core.files import atomic_write
from mlff_student.core.results import write_results
from mlff_student.distill.check import WORST, GateReport, frame_sizes
from mlff_student.distill.dataset import SPLITS
from mlff_student.model.elements import ELEMENTS
from mlff_student.reporting.plots import COLOURS, single_figure


def records(report: GateReport) -> list[dict[str, Any]]:
    """Return flat records for JSON: one of the whole dataset, then one for each check."""
    whole = report.as_record() | {"verdict": report.verdict, "passed": report.passed}
    whole |= {f"{check.figure.key}_passed": check.passed for check in report.checks}
    return [whole] + [
        {
            "check": check.figure.key,
            "found": check.figure.value,
            "bound": check.check.threshold.bound,
            "limit": check.check.threshold.value,
            "unit": check.check.threshold.unit,
            "asked": check.asked,
            "passed": check.passed,
            "worst": "; ".join(check.worst),
            "source": check.check.threshold.source,
        }
        for check in report.checks
    ]


def write_report(report: GateReport, folder: Path) -> None:
    """Write report.json, report.md and plots (PNG) into a folder.

    Parameters
    ----------
    report : GateReport
        The judged dataset.
    folder : Path
        Folder, which is made if there is none.

    Raises
    ------
    InputError
        The folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder {folder}: {error.strerror}; give another with -o"
        ) from error
    write_results(folder / "report.json", "distill check", "", records(report))
    plots = _plot(report, folder)
    with atomic_write(folder / "report.md") as temporary:
        temporary.write_text(_text(report, plots))


def _text(report: GateReport, plots: list[str]) -> str:
    """Return the report as Markdown."""
    figures, texts = record_of(report.figures()), report.texts
    lines = [
        f"# {report.verdict}",
        "",
        f"`{report.dataset}`, sha256 `{texts['sha256']}`, labelled by {texts['teacher']}:",
        f"{figures['structures']} structures of {figures['molecules']} molecules and complexes, "
        f"{figures['frames']} frames, {figures['atoms']} atoms.",
        "",
        *_table(("check", "value", "limit", ""), [check.cells for check in report.checks]),
    ]
    if texts["split_by"] == "trajectory":
        lines += [
            "The checks that are not asked are for datasets of many molecules. This dataset is "
            "split by trajectory: it is of one structure, which is in all splits.",
            "",
        ]
    for check in report.checks:
        if check.worst and check.asked:
            title = check.figure.title[0].upper() + check.figure.title[1:]
            lines += [f"## {title}: {check.cells[3]}", ""]
            lines += [] if check.passed else [f"What to do: {check.criterion.remedy}", ""]
            lines += [f"- {line}" for line in check.worst] + [""]
        elif not check.passed:
            lines += [f"What to do about {check.figure.title}: {check.criterion.remedy}", ""]
    if report.failures:
        lines += ["## Failures of the teacher", ""]
        lines += _table(("reason", "structures"), report.failures.most_common(2 * WORST))
    lines += ["## Classes", "", *_table(*_classes(report))]
    lines += ["## Elements", ""]
    lines += _table(
        ("element", "atoms in all frames", "structures"),
        [(s, report.atoms_of[s], report.structures_of[s]) for s in ELEMENTS],
    )
    lines += ["## All figures", ""]
    lines += _table(
        ("figure", "value"),
        [
            *texts.items(),
            *((k, f"{v:.5g}" if isinstance(v, float) else v) for k, v in figures.items()),
        ],
    )
    lines += ["## Why these limits", ""]
    lines += [f"- {check.figure.title}: {check.check.threshold.source}" for check in report.checks]
    lines += [""]
    return "\n".join(lines + [f"![{name}]({name})" for name in plots]) + "\n"


def _table(head: tuple[str, ...], rows: Any) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return [
        "| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |" for line in lines
    ] + [""]


def _classes(report: GateReport) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Return head and rows of the table of classes: structures, and frames of each split."""
    frames = report.frames
    structures = Counter(frames.kinds)
    count = Counter((frames.kinds[m], report.splits[m]) for m in frames.molecule.tolist())
    rows = [
        (kind, number, *(count[kind, split] for split in SPLITS))
        for kind, number in structures.most_common()
    ]
    return ("class", "structures", *(f"{split} frames" for split in SPLITS)), rows


def _plot(report: GateReport, folder: Path) -> list[str]:
    """Write the plots, and return their names."""
    frames, geometry, energies = report.frames, report.geometry, report.energies
    criteria = {check.figure.key: check.criterion for check in report.checks}
    sizes, molecule = frame_sizes(frames), frames.molecule.numpy()
    split = np.array(report.splits)[molecule]
    plots = []

    def axes_of(name: str, x: str, y: str, log: bool = True) -> Any:
        plots.append(f"{name}.png")
        return single_figure(folder / plots[-1], x, y, yscale="log" if log else "linear")

    with axes_of("sizes", "atoms of a structure", "structures", log=False) as axes:
        one_frame = np.unique(molecule, return_index=True)[1]
        parts = [sizes[one_frame][split[one_frame] == name] for name in SPLITS]
        width = -(-int(np.ptp(sizes) + 1) // 40)
        bins = np.arange(sizes.min(), sizes.max() + width + 1, width) - 0.5
        axes.hist(parts, bins, stacked=True, color=COLOURS[:3], label=SPLITS)
    with axes_of(
        "forces", "force component, absolute (eV/angstrom)", "share of components"
    ) as axes:
        methods = np.repeat(np.array(frames.methods), sizes)
        forces = frames.forces.abs().numpy()
        bins = np.linspace(0.0, np.nanmax(forces), 61)
        for index, method in enumerate(np.unique(methods)):
            chosen = forces[methods == method].ravel()
            colour = COLOURS[index % len(COLOURS)]
            weights = np.full(len(chosen), 1 / len(chosen))
            axes.hist(chosen, bins, weights=weights, histtype="step", color=colour, label=method)
        axes.axvline(
            criteria["largest_force_ev_per_angstrom"].threshold.value, color="black", linestyle=":"
        )
    with axes_of("energies", "energy per atom after the fit (eV/atom)", "frames") as axes:
        kept = [values[np.isfinite(values)] for values in (energies.residual, energies.deviation)]
        bins = np.histogram_bin_edges(np.concatenate(kept), 80)
        labels = ("residual of composition", "from the median of the molecule")
        axes.hist(kept, bins, histtype="step", color=COLOURS[:2], label=labels)
        for sign in (-1, 1):
            bound = sign * criteria["energy_outlier_percent"].beyond * energies.sigma
            axes.axvline(bound, color=COLOURS[1], linestyle=":")
    with axes_of("contacts", "shortest distance / sum of covalent radii", "frames") as axes:
        near = geometry.closeness[np.isfinite(geometry.closeness)]
        axes.hist(near, 60, color=COLOURS[0])
        axes.axvline(criteria["overlapping_percent"].beyond, color="black", linestyle=":")
    with axes_of("elements", "element", "count") as axes:
        counts = {"atoms": report.atoms_of, "structures": report.structures_of}
        for index, (what, count) in enumerate(counts.items()):
            heights = [count[symbol] for symbol in ELEMENTS]
            place = np.arange(len(ELEMENTS)) + 0.4 * index
            axes.bar(place, heights, 0.4, color=COLOURS[index], label=what)
        axes.set_xticks(np.arange(len(ELEMENTS)) + 0.2, list(ELEMENTS))
    with axes_of("classes", "frames", "", log=False) as axes:
        rows = _classes(report)[1][::-1]
        left = np.zeros(len(rows))
        for index, name in enumerate(SPLITS):
            width = np.array([row[2 + index] for row in rows], float)
            axes.barh([row[0] for row in rows], width, left=left, color=COLOURS[index], label=name)
            left += width
    return plots
