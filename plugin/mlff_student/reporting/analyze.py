"""Measure, judge, print and plot a run, for the command `mlff-student analyze`."""

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
    """Measure and judge a run, print a table, and write plots and a JSON file.

    Parameters
    ----------
    trajectory, topology, log : Path
        Files of the run, as in `mlff_student.analysis.run.analyze`.
    console : Console
        Console on which the table is printed.
    teacher : str
        Name of the teacher whose forces the forces of the run are compared with. Empty: none.
    model : str
        Model of the run, a shipped name or a file. It checks that log and trajectory are of the
        same run, and computes forces. Empty: `model.pt` beside the trajectory, where
        `mlff-student md` leaves it, if there is such a file.
    reference_trajectory, reference_log : Path | None
        Trajectory and log of the teacher's own run.
    json : Path | None
        JSON file to write. None: beside the trajectory.
    plot : Path | None
        PNG file of the drift. None: beside the trajectory. Other plots get names from this name.
    quiet : bool
        Whether to print nothing.
    **settings : Any
        Other arguments of `mlff_student.analysis.run.analyze`.

    Returns
    -------
    bool
        Whether every judged figure passes.

    Raises
    ------
    StudentError
        If a file cannot be used, a reference log has no trajectory, or a teacher is missing.
    """
    if trajectory.is_dir():  # a missing file is reported later, after the outputs are checked
        raise InputError(f"{trajectory} is a folder; give a trajectory file")
    if reference_log and not reference_trajectory:
        raise InputError(f"--reference-log {reference_log} also needs --reference-trajectory")
    # run.json is the summary that `md` writes, and must not be overwritten.
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
    """Compare the figures of a run with the thresholds of the project.

    Parameters
    ----------
    analysis : Analysis
        Figures of the run.

    Returns
    -------
    list[Check]
        A check for each figure that has a threshold.
    """
    return judge(analysis.figures(), load_thresholds(), analysis.ensemble)


def energy_course(analysis: Analysis) -> EnergyCourse:
    """Return what `plot_drift` draws of a run.

    Parameters
    ----------
    analysis : Analysis
        Figures and log of the run.

    Returns
    -------
    EnergyCourse
        Energy and temperature against time.
    """
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
    """Write the plots of what was measured, and return their paths."""
    plot_drift({label: energy_course(analysis)}, path)
    written = [path]
    if forces := analysis.forces:
        written.append(path.with_suffix(".forces.png"))
        rmse = next(figure for figure in forces.figures() if figure.name == "force_rmse")
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
    """Return a table of all figures with units, standard errors and, if judged, their limits.

    Parameters
    ----------
    figures : Iterable[Figure]
        Figures of a run.
    facts : Mapping[str, str]
        What is known in words, such as the ensemble.
    checks : Iterable[Check]
        Checks of the judged figures.

    Returns
    -------
    Table
        Table to print on a console.
    """
    table = Table("figure", "unit", "value", "limit", "verdict")
    judged = {check.key: check for check in checks}
    for figure in sorted(figures, key=lambda figure: figure.key not in DRIFT_ROWS):
        check = judged.get(figure.key)
        cells = [f"{check.threshold.value:g}", mark(check.outcome)] if check else ["", ""]
        table.add_row(figure.title, figure.unit, Text(str(figure)), *cells)
        if figure.noise is not None:
            noise = f"{figure.noise:.4g}"
            table.add_row(f"{figure.title}: noise", figure.unit, noise, "", "")
    for name, text in facts.items():
        table.add_row(name.replace("_", " "), "", Text(text), "", "")
    table.add_section()
    table.add_row("verdict", "", "", "", mark(overall(judged.values())))
    return table
