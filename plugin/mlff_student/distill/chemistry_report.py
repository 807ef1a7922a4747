"""Records, table and plots of a student's chemistry against its teacher."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.table import Column, Table
from rich.text import Text

from mlff_student.core.figures import record_of
from mlff_student.core.results import write_results
from mlff_student.distill.chemistry import PARTS, ChemistryReport, Comparison
from mlff_student.reporting.plots import COLOURS, panel_figure, single_figure
from mlff_student.reporting.verdict import Check, mark, overall

HEADINGS = {
    "torsions": "worst barrier (kcal/mol)",
    "dimers": "binding, S22 (kcal/mol)",
    "conformers": "conformers (kcal/mol)",
    "bonds": "stretched bond (r / r0)",
    "isomers": "isomerisations in MD",
}
SCANNED = {
    "torsions": "torsion angle (degrees)",
    "dimers": "distance of the molecules (of that in S22)",
    "bonds": "length (of r0)",
}


class Line(NamedTuple):
    """A line of the table."""

    name: str
    teacher: str = ""
    student: str = ""
    limit: str = ""
    checks: Sequence[Check] = ()


def records(report: ChemistryReport) -> list[dict[str, Any]]:
    """Return a flat record of each comparison and of each molecule that was left out.

    Parameters
    ----------
    report : ChemistryReport
        The comparison.
    """
    facts = {"teacher": report.teacher, "limits_of": report.preset}
    rows = [each.as_record() for each in report.comparisons]
    rows += [
        {"part": each.part, "name": each.name, "left_out": each.reason} for each in report.left_out
    ]
    return [row | facts for row in rows]


def write_report(report: ChemistryReport) -> None:
    """Write chemistry.json and plots (PNG) into the folder of the report.

    Parameters
    ----------
    report : ChemistryReport
        The comparison.

    Raises
    ------
    InputError
        The folder cannot be written to.
    """
    path = report.folder / "chemistry.json"
    write_results(path, "distill chemistry", report.student, records(report))
    for part in PARTS:
        curves = [each for each in report.comparisons if each.part == part and each.curve]
        if curves and part in SCANNED:
            _plot_scans(report, part, curves)
        elif curves:
            _plot_conformers(report, curves)
    values = [record_of(each.figures) for each in report.comparisons if each.part == "dimers"]
    points = [
        (value["binding_teacher_kcal_per_mol"], value["binding_kcal_per_mol"])
        for value in values
        if "binding_kcal_per_mol" in value
    ]
    if points:
        axis = [f"binding energy, {who} (kcal/mol)" for who in (report.teacher, report.student)]
        with single_figure(report.folder / "binding.png", *axis) as axes:
            axes.scatter(*zip(*points, strict=True), color=COLOURS[0], s=16.0)
            axes.axline((0.0, 0.0), slope=1.0, color="black", linewidth=0.8)


def _plot_scans(report: ChemistryReport, part: str, curves: list[Comparison]) -> None:
    """Plot the energies of both along the scan of each molecule."""
    path, titles = report.folder / f"{part}.png", [each.name for each in curves]
    y = "energy (kcal/mol)"
    with panel_figure(path, titles, SCANNED[part], y, columns=4) as panels:
        for each, panel in zip(curves, panels, strict=True):
            if each.curve is None:
                continue
            for label, energies, colour in (
                (report.teacher, each.curve.teacher, "black"),
                (report.student, each.curve.student, COLOURS[1]),
            ):
                if energies is not None:
                    # Binding energies have a zero of their own.
                    zero = 0.0 if part == "dimers" else energies.min()
                    panel.plot(each.curve.x, energies - zero, color=colour, marker=".", label=label)


def _plot_conformers(report: ChemistryReport, curves: list[Comparison]) -> None:
    """Plot the student's energies of conformers against the teacher's."""
    path, titles = report.folder / "conformers.png", [each.name for each in curves]
    axis = [f"energy, {who} (kcal/mol)" for who in (report.teacher, report.student)]
    with panel_figure(path, titles, *axis, columns=4, sharex=False) as panels:
        for each, panel in zip(curves, panels, strict=True):
            if each.curve is not None and each.curve.teacher is not None:
                panel.scatter(each.curve.teacher, each.curve.student, color=COLOURS[0], s=10.0)
                panel.axline((0.0, 0.0), slope=1.0, color="black", linewidth=0.8)


def table(report: ChemistryReport) -> Table:
    """Return the table of all judged figures and of the binding energies by class.

    Parameters
    ----------
    report : ChemistryReport
        The comparison.
    """
    result = Table(
        Column("test", no_wrap=True),
        report.teacher,
        report.student,
        f"limit of {report.preset}",
        "",
    )
    for part in PARTS:
        lines = [line for each in report.comparisons if each.part == part for line in _lines(each)]
        left_out = [each for each in report.left_out if each.part == part]
        if lines or left_out:
            result.add_section()
            result.add_row(Text(HEADINGS[part], style="bold"))
        for *cells, checks in lines:
            result.add_row(*cells, mark(overall(checks)) if checks else "")
        for left in left_out:
            result.add_row(left.name, "", "", Text(left.reason), Text("left out", style="yellow"))
    return result


def _lines(row: Comparison) -> Iterator[Line]:
    """Yield the lines of a comparison; none for a single dimer or the conformers of a molecule."""
    values, checks = record_of(row.figures), row.checks
    if row.part == "torsions":
        barrier, teacher = values["barrier_kcal_per_mol"], values["barrier_teacher_kcal_per_mol"]
        limit = f"teacher ± {checks[0].threshold.value:.2f}"
        yield Line(row.name, f"{teacher:.2f}", f"{barrier:.2f}", limit, checks)
    elif row.part == "dimers" and "binding_mae_kcal_per_mol" in values:
        slope = 1.0 + values["binding_slope_deviation"]
        limit = f"1 ± {checks[0].threshold.value:g}" if checks else ""
        yield Line(f"slope, {row.name}", "", f"{slope:.3f}", limit, checks)
        yield Line(f"MAE, {row.name}", "", f"{values['binding_mae_kcal_per_mol']:.2f}")
    elif row.part == "conformers":
        for check, name in zip(checks, ("mean Spearman", "MAE"), strict=False):
            limit = str(check.threshold)
            yield Line(name, "", f"{check.figure.value:.3f}", limit, [check])
    elif row.part == "bonds":
        turnover = values.get("bond_turnover")
        outcome = f"turns at {turnover:.2f}" if turnover else "falls below 1"
        yield Line(
            row.name, "", outcome if values["bond_curve_falls"] else "rises", "rises", checks
        )
    elif row.part == "isomers":
        count = values["isomerisations"]
        outcome = f"{count:.0f}" if np.isfinite(count) else f"broke: {values['stable_ps']:g} ps"
        yield Line(row.name, "", outcome, "0", checks)
