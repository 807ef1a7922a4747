"""What `mlff-student analyze` does: measure, judge, print, plot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlff_student.analysis.run import Analysis, Reference, analyze
from mlff_student.core.errors import InputError
from mlff_student.core.figures import load_thresholds
from mlff_student.core.files import require_writable
from mlff_student.core.results import write_results
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.reporting.plots import plot_drift, plot_force_errors, plot_rdf, plot_spectra
from mlff_student.reporting.verdict import FIGURES, Check, judge, mark, mark_of, with_error
from mlff_student.teachers.registry import make_teacher

# Ends of keys, the longest first, and the units that they stand for.
UNITS = {
    "_ev_per_angstrom": "eV/angstrom",
    "_percent_per_ns": "%/ns",
    "_mev_per_atom_ps": "meV/atom/ps",
    "_kt_per_ns_per_dof": "kT/ns/dof",
    "_g_per_cm3": "g/cm^3",
    "_cm2_per_s": "cm^2/s",
    "_angstrom": "angstrom",
    "_percent": "%",
    "_per_cm": "1/cm",
    "_sigma": "standard errors",
    "_deg": "degrees",
    "_ps": "ps",
    "_k": "K",
}


def run_analysis(
    trajectory: Path,
    topology: Path,
    log: Path,
    *,
    console: Console,
    teacher: str = "",
    model: str = "",
    reference_trajectory: Path | None = None,
    reference_log: Path | None = None,
    json: Path | None = None,
    plot: Path | None = None,
    quiet: bool = False,
    **settings: Any,
) -> bool:
    """Whether a run is within the thresholds; prints tables, writes plots and a JSON file.

    Parameters
    ----------
    teacher : name of the teacher whose forces the run's are compared with; empty: none.
    model : that made the run, to check that the log is the trajectory's, and for its forces; by
        default `model.pt` beside the trajectory, where `mlff-student md` leaves it.
    reference_trajectory, reference_log : of the teacher's own run.
    json, plot : beside the trajectory if None. Other plots are named after this one.
    settings : of `analyze`.

    Raises
    ------
    StudentError : files that cannot be used, a log without its trajectory, or a teacher that is
        not there.
    """
    if trajectory.is_dir():  # a file that is missing is found after the outputs are checked
        raise InputError(f"no trajectory file {trajectory}")
    if reference_log and not reference_trajectory:
        raise InputError(f"--reference-log {reference_log} needs its --reference-trajectory")
    # Not run.json: that is the summary of `md`, by which it knows a finished run.
    json = json or trajectory.with_suffix(".analysis.json")
    plot = plot or trajectory.with_suffix(".png")
    for path in (json, plot):
        require_writable(path)
    beside = trajectory.with_name("model.pt")
    model = model or (str(beside) if beside.is_file() else "")
    analysis = analyze(
        trajectory,
        topology,
        log,
        teacher=make_teacher(teacher) if teacher else None,
        calculator=StudentForceFieldCalculator(model) if model else None,
        reference=(
            Reference(reference_trajectory, reference_log) if reference_trajectory else None
        ),
        **settings,
    )
    record = analysis.as_record()
    checks = judge(record, load_thresholds())
    label = trajectory.stem
    plots = _plot(analysis, label, teacher, plot)
    passed = all(check.passed for check in checks)
    results = record | {"passed": passed, "notes": "; ".join(analysis.notes)}
    results |= {f"{check.name}_passed": check.passed for check in checks}
    results |= {f"{check.name}_resolved": False for check in checks if not check.resolved}
    write_results(json, "analyze", model, [results])
    if not quiet:
        console.print(_table(record, checks))
        for check in checks:
            if not check.resolved:
                console.print(str(check), style="yellow", markup=False)
        for note in analysis.notes:
            console.print(note, style="yellow", markup=False)
        console.print(f"plots: {', '.join(map(str, plots))}", markup=False, soft_wrap=True)
    return passed


def _plot(analysis: Analysis, label: str, teacher: str, path: Path) -> list[Path]:
    """Write the plots of what was measured."""
    plot_drift({label: analysis.thermo}, {label: analysis}, path)
    written = [path]
    if analysis.forces:
        written.append(path.with_suffix(".forces.png"))
        plot_force_errors(analysis.forces, analysis.duration_ps, written[-1])
    if analysis.rdf and analysis.teacher_rdf:
        written.append(path.with_suffix(".rdf.png"))
        plot_rdf({label: analysis.rdf, "teacher": analysis.teacher_rdf}, written[-1])
    if analysis.spectrum and analysis.teacher_spectrum:
        written.append(path.with_suffix(".spectrum.png"))
        plot_spectra({label: analysis.spectrum, "teacher": analysis.teacher_spectrum}, written[-1])
    return written


def _table(record: Mapping[str, Any], checks: list[Check]) -> Table:
    """All figures with their units and standard errors, and limits of those that are judged."""
    table = Table("figure", "unit", "value", "limit", "verdict")
    titles = {key: (title, unit) for key, title, unit in FIGURES}
    judged = {check.name: check for check in checks}
    for key in sorted(record, key=lambda key: key not in titles):
        if "_stderr" in key:
            continue
        end = next((end for end in UNITS if key.endswith(end)), "")
        name = key.removesuffix(end)
        title, unit = titles.get(key, (name.replace("_", " "), UNITS.get(end, "")))
        stderr = record.get(f"{name}_stderr{end}", float("nan"))
        cells = ["", ""]
        if check := judged.get(key):
            cells = [f"{check.limit:g}", mark(check)]
        table.add_row(title, unit, Text(with_error(record[key], stderr)), *cells)
    table.add_section()
    table.add_row("verdict", "", "", "", mark_of(all(check.passed for check in checks)))
    return table
