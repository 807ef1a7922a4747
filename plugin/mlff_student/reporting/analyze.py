"""What `mlff-student analyze` does: measure, judge, print, plot."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlff_student.analysis.run import Analysis, Reference, analyze
from mlff_student.analysis.spectrum import HIGHEST
from mlff_student.core.errors import InputError
from mlff_student.core.figures import Figure, load_thresholds
from mlff_student.core.files import require_writable
from mlff_student.core.results import write_results
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.reporting.plots import (
    EnergyCourse,
    RdfCurves,
    SpectrumCurve,
    plot_drift,
    plot_force_errors,
    plot_rdf,
    plot_spectra,
)
from mlff_student.reporting.verdict import DRIFT_ROWS, Check, Outcome, judge, mark, overall
from mlff_student.teachers.registry import make_teacher


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
    teacher : str
        Name of the teacher whose forces the run's are compared with; empty: none.
    model : str
        That made the run, to check that the log is the trajectory's, and for its forces; by default
        `model.pt` beside the trajectory, where `mlff-student md` leaves it.
    reference_trajectory, reference_log : Path | None
        Of the teacher's own run.
    json, plot : Path | None
        Beside the trajectory if None. Other plots are named after this one.
    **settings : Any
        Of `analyze`.

    Raises
    ------
    StudentError
        Files that cannot be used, a log without its trajectory, or a teacher that is not there.
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
    checks = judge_run(analysis)
    plots = _plot(analysis, trajectory.stem, plot)
    passed = overall(checks) is Outcome.PASSED
    results = analysis.as_record() | {"passed": passed, "notes": "; ".join(analysis.notes)}
    results |= {f"{check.key}_passed": check.passed for check in checks}
    results |= {f"{check.key}_resolved": False for check in checks if not check.resolved}
    write_results(json, "analyze", model, [results])
    if not quiet:
        console.print(figures_table(analysis.figures(), analysis.facts(), checks))
        for check in checks:
            if not check.resolved:
                console.print(str(check), style="yellow", markup=False)
        for note in analysis.notes:
            console.print(note, style="yellow", markup=False)
        console.print(f"plots: {', '.join(map(str, plots))}", markup=False, soft_wrap=True)
    return passed


def judge_run(analysis: Analysis) -> list[Check]:
    """Judge a run by the project's thresholds, as every command does."""
    return judge(analysis.figures(), load_thresholds(), analysis.ensemble)


def energy_course(analysis: Analysis) -> EnergyCourse:
    """What `plot_drift` draws of a run."""
    thermo = analysis.thermo
    figures = {figure.key: figure for figure in analysis.drift.figures()}
    return EnergyCourse(
        thermo.time_ps,
        1e3 * thermo.total_ev / analysis.atoms,
        thermo.temperature_k,
        figures["drift_mev_per_atom_ps"],
        figures["temperature_k"],
        figures["temperature_std_k"],
    )


def _plot(analysis: Analysis, label: str, path: Path) -> list[Path]:
    """Write the plots of what was measured."""
    plot_drift({label: energy_course(analysis)}, path)
    written = [path]
    if forces := analysis.forces:
        written.append(path.with_suffix(".forces.png"))
        rmse = next(one for one in forces.figures() if one.name == "force_rmse")
        plot_force_errors(forces.rmse_of_frames, rmse, analysis.duration_ps, written[-1])
    if (run := analysis.rdf) and (teacher := analysis.teacher_rdf):
        written.append(path.with_suffix(".rdf.png"))
        curves = {
            label: RdfCurves(run.g, run.stderr),
            "teacher": RdfCurves(teacher.g, teacher.stderr),
        }
        plot_rdf(run.r, run.pairs, curves, written[-1])
    if (run := analysis.spectrum) and (teacher := analysis.teacher_spectrum):
        written.append(path.with_suffix(".spectrum.png"))
        spectra = {
            label: SpectrumCurve(run.frequency_per_cm, run.power),
            "teacher": SpectrumCurve(teacher.frequency_per_cm, teacher.power),
        }
        plot_spectra(spectra, HIGHEST, written[-1])
    return written


def figures_table(
    figures: Iterable[Figure], facts: Mapping[str, str], checks: Iterable[Check]
) -> Table:
    """All figures with their units and standard errors, and limits of those that are judged."""
    table = Table("figure", "unit", "value", "limit", "verdict")
    judged = {check.key: check for check in checks}
    for figure in sorted(figures, key=lambda figure: figure.key not in DRIFT_ROWS):
        check = judged.get(figure.key)
        cells = [f"{check.threshold.value:g}", mark(check.outcome)] if check else ["", ""]
        table.add_row(figure.title, figure.unit, Text(str(figure)), *cells)
        if figure.noise is not None:
            noise = f"{figure.noise:.4g}"
            table.add_row(f"{figure.title}: by noise alone", figure.unit, noise, "", "")
    for name, text in facts.items():
        table.add_row(name.replace("_", " "), "", Text(text), "", "")
    table.add_section()
    table.add_row("verdict", "", "", "", mark(overall(judged.values())))
    return table
