"""Write the report of a campaign as HTML, CSV tables, Markdown and JSON."""

import csv
import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from mlff_student.core.figures import (
    Threshold,
    figure_of,
    known_figures,
    load_thresholds,
    symbols,
)
from mlff_student.core.files import atomic_write
from mlff_student.core.results import machine_facts, package_versions, write_json
from mlff_student.core.version import __version__
from mlff_student.reporting.pages import render
from mlff_student.reporting.verdict import mark
from mlff_student.validation.campaign import Campaign, Result
from mlff_student.validation.plots import Plot, plots_of
from mlff_student.validation.protocol import Protocol
from mlff_student.validation.summary import Summary, summarise
from mlff_student.validation.tasks import CampaignTarget, RunTask

SCHEMA = Path(__file__).with_name("report.schema.json")
# Columns of the tables in the page, by the keys of the figures.
COLUMNS = (
    "target_temperature_k",
    "timestep_fs",
    "duration_ps",
    "atoms",
    "molecules",
    "drift_mev_per_atom_ps",
    "heating_percent",
    "drift_percent",
    "exchange_ratio",
    "conservation_ratio",
    "stable_ps",
    "temperature_k",
    "bond_deviation_angstrom",
    "rmsd_angstrom",
    "force_rmse_ev_per_angstrom",
    "force_r2",
    "force_angle_deg",
    "density_g_per_cm3",
    "density_change_percent",
    "density_drift_percent_per_ns",
    "density_teacher_g_per_cm3",
    "density_error_percent",
    "vaporisation_kj_per_mol",
    "vaporisation_teacher_kj_per_mol",
    "vaporisation_error_kj_per_mol",
    "diffusion_cm2_per_s",
    "diffusion_friction_per_ps",
    "rdf_error_percent",
    "rdf_noise_percent",
    "rdf_mean_error_percent",
    "pressure_teacher_gpa",
    "pressure_error_gpa",
    "virial_error_on_teacher_frames_gpa",
    "burn_in_ps",
    "window_ps",
    "teacher_window_ps",
    "teacher_acceptance",
    "teacher_longest_rest",
    "convergence_deviation",
    "spectrum_overlap_percent",
    "spectrum_overlap_noise_percent",
    "spectrum_peak_shift_per_cm",
    "spectrum_peaks_missing",
)
# Titles of steps by the names that the protocols of the package use.
TITLES = {
    "nve": "Molecules at constant energy",
    "temperature_ladder": "Increasing temperature",
    "timestep_ladder": "Increasing timestep",
    "size_ladder": "Increasing size",
    "spectrum": "Vibrational spectra",
    "liquid": "Liquid box",
}


class Row(NamedTuple):
    """A case in a table of the page.

    Attributes
    ----------
    case : str
        Name of the case.
    cells : list[str]
        Figures in the order of the columns.
    verdict : str
        Result of the case in words.
    failed : list[bool]
        Whether the figure of each cell does not pass.
    command : str
        Command that repeats the run. Empty for a comparison.
    notes : str
        Remarks of the analysis.
    """

    case: str
    cells: list[str]
    verdict: str
    failed: list[bool]
    command: str
    notes: str = ""


class Section(NamedTuple):
    """A step on the page.

    Attributes
    ----------
    title : str
        Title of the step.
    headings : list[tuple[str, str]]
        Title and unit of each column.
    rows : list[Row]
        Cases of the step.
    plots : list[Plot]
        Plots of the step.
    """

    title: str
    headings: list[tuple[str, str]]
    rows: list[Row]
    plots: list[Plot]


@dataclass(frozen=True)
class Report:
    """Everything from which the pages and files are written.

    Attributes
    ----------
    protocol : Protocol
        The protocol.
    target : CampaignTarget
        Models, engines and teacher.
    runs : Mapping[str, RunTask]
        Runs by the name of the task.
    results : Mapping[str, Result]
        Results by the name of the task.
    thresholds : Mapping[str, Threshold]
        Thresholds by the keys of the figures.
    summary : Summary
        Verdict and advice.
    command : str
        Command that makes the report.
    """

    protocol: Protocol
    target: CampaignTarget
    runs: Mapping[str, RunTask]
    results: Mapping[str, Result]
    thresholds: Mapping[str, Threshold]
    summary: Summary
    command: str

    def of_model(self, label: str) -> "Report":
        """Return the report of a single model, with the teacher's runs.

        Parameters
        ----------
        label : str
            Short name of the model.

        Returns
        -------
        Report
            The smaller report.
        """
        models = {case.model for case in self.summary.checks if case.judged}
        results = {
            name: result
            for name, result in self.results.items()
            if result["record"]["model"] == label or result["record"]["model"] not in models
        }
        summary = summarise((result["record"] for result in results.values()), self.thresholds)
        return replace(self, results=results, summary=summary)

    @property
    def groups(self) -> list[tuple[str, str]]:
        """Model and engine of each column in the table of figures."""
        judged = ((case.model, case.engine) for case in self.summary.checks if case.judged)
        return list(dict.fromkeys(judged))


def make_report(campaign: Campaign) -> Report:
    """Return the report of the finished tasks of a campaign.

    Parameters
    ----------
    campaign : Campaign
        The campaign, which may be unfinished.

    Returns
    -------
    Report
        The report.

    Raises
    ------
    InputError
        If no finished task is judged.
    """
    results = campaign.results()
    thresholds = load_thresholds()
    target = campaign.target
    words = ["mlff-student", "validate", *target.models, "--protocol", campaign.protocol.source]
    words += ["--engine", ",".join(target.engines)]
    words += ["--teacher", target.teacher] if target.teacher else []
    return Report(
        protocol=campaign.protocol,
        target=target,
        runs={task.name: task for task in campaign.runs()},
        results=results,
        thresholds=thresholds,
        summary=summarise((result["record"] for result in results.values()), thresholds),
        command=campaign.protocol.command or shlex.join([*words, "-o", str(campaign.folder.path)]),
    )


def write_reports(campaign: Campaign, json_file: Path | None = None) -> Report:
    """Write comparison.html, report-MODEL.html and .json, tables/STEP.csv and README.md.

    Parameters
    ----------
    campaign : Campaign
        The campaign, which may be unfinished.
    json_file : Path | None
        File that receives the JSON of all models. None: no such file.

    Returns
    -------
    Report
        The report.

    Raises
    ------
    InputError
        If no finished task is judged.
    """
    report, folder = make_report(campaign), campaign.folder.path
    _write(folder / "comparison.html", page(report))
    for model in dict.fromkeys(model for model, _ in report.groups):
        of_model = report.of_model(model)
        _write(folder / f"report-{model}.html", page(of_model))
        write_json(folder / f"report-{model}.json", as_json(of_model))
    if json_file:
        write_json(json_file, as_json(report))
    (folder / "tables").mkdir(exist_ok=True)
    for step in report.protocol.steps:
        write_table(folder / "tables" / f"{step.step}.csv", _records(report, step.step))
    _write(folder / "README.md", render("validation/report.md.j2", report=report) + "\n")
    return report


def as_json(report: Report) -> dict[str, Any]:
    """Return the content of the JSON file, which report.schema.json describes.

    Parameters
    ----------
    report : Report
        The report.

    Returns
    -------
    dict[str, Any]
        Content of the file.
    """
    summary = report.summary
    return {
        "command": "validate",
        "version": __version__,
        "model": ",".join(dict.fromkeys(model for model, _ in report.groups)),
        "machine": machine_facts() | package_versions(),
        "protocol": report.protocol.name,
        "protocol_sha256": report.protocol.digest,
        "teacher": report.target.teacher,
        "passed": summary.passed,
        "reproduce": report.command,
        "checks": [
            {"case": case.case, "judged": case.judged} | case.check.as_record()
            for case in summary.checks
        ],
        "not_measured": summary.not_measured,
        "advice": {model: advice._asdict() for model, advice in summary.advice.items()},
        "results": [dict(result["record"]) for result in report.results.values()],
    }


def load_schema() -> dict[str, Any]:
    """Return the JSON Schema of `as_json`."""
    return json.loads(SCHEMA.read_text())


def page(report: Report) -> str:
    """Return the report as a self-contained HTML page.

    Parameters
    ----------
    report : Report
        The report.

    Returns
    -------
    str
        The page.
    """
    return render(
        "validation/report.html.j2",
        report=report,
        summary=report.summary,
        worst={group: report.summary.worst(*group) for group in report.groups},
        names=[
            name
            for name in report.thresholds
            if any(case.check.key == name for case in report.summary.checks)
        ],
        sections=[_section(report, step.step) for step in report.protocol.steps],
        machine=machine_facts(),
        packages=package_versions(),
        version=__version__,
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
    )


def run_command(task: RunTask, folder: str, campaign: str) -> str:
    """Return the command that repeats a run.

    Parameters
    ----------
    task : RunTask
        The run.
    folder : str
        Folder of the repeated run.
    campaign : str
        Command of the whole campaign. It is returned for hybrid Monte Carlo, which
        `mlff-student md` does not run.

    Returns
    -------
    str
        The command.
    """
    if task.proposal_model:
        return campaign
    settings = task.settings
    words = ["mlff-student", "md", settings.structure, "--engine", settings.engine]
    words += ["--model", settings.model, "--ensemble", settings.ensemble]
    for option, value in (
        ("--ps", settings.steps * settings.timestep_fs * 1e-3),
        ("--timestep-fs", settings.timestep_fs),
        ("--temperature-K", settings.temperature_K),
        ("--pressure-bar", settings.pressure_bar),
        ("--every", settings.every),
        ("--thermalise-ps", settings.thermalise_steps * settings.start_timestep_fs * 1e-3),
        ("--thermalise-timestep-fs", settings.thermalise_timestep_fs),
        ("--friction-per-ps", settings.friction_per_ps),
        ("--seed", settings.seed),
        ("--threads", settings.threads),
    ):
        words += [option, f"{value:.12g}"]
    return shlex.join([*words, "-o", folder])


def summary_table(report: Report) -> Table:
    """Return the table that the command prints: the worst case of each figure, and the verdict.

    Parameters
    ----------
    report : Report
        The report.

    Returns
    -------
    Table
        Table to print on a console.
    """
    table = Table("figure", "limit", "unit")
    for model, engine in report.groups:
        table.add_column(f"{model}\n{engine}", justify="right")
    worst = {group: report.summary.worst(*group) for group in report.groups}
    for name, threshold in report.thresholds.items():
        if not any(name in cases for cases in worst.values()):
            continue
        cells = []
        for cases in worst.values():
            if name not in cases:
                cells.append(Text("-"))
                continue
            check = cases[name].check
            cells.append(Text(f"{check.figure.value:.3g}").append_text(mark(check.outcome)))
        table.add_row(name, f"{threshold.value:g}", threshold.unit, *cells)
    for name, need in report.summary.not_measured.items():
        table.add_row(name, "", f"not measured: needs {need}", style="yellow")
    table.add_section()
    table.add_row(Text("verdict"), "", Text(report.summary.verdict.upper(), "bold"))
    return table


def _section(report: Report, step: str) -> Section:
    results = [result for result in report.results.values() if result["record"]["step"] == step]
    records = [result["record"] for result in results]
    columns = [key for key in COLUMNS if any(record.get(key) is not None for record in records)]
    checks = {(case.case, case.check.key): case.check for case in report.summary.checks}
    rows = []
    for record in records:
        case = record["case"]
        bad = [check for (name, _), check in checks.items() if name == case and not check.passed]
        words = [
            f"{word}: " + ", ".join(check.key for check in bad if check.resolved is resolved)
            for word, resolved in (("fails", True), ("not resolved", False))
            if any(check.resolved is resolved for check in bad)
        ]
        verdict = record["failure"] or "; ".join(words) or "passes"
        if not record["judged"]:
            verdict += " (not judged)"
        rows.append(
            Row(
                case=_label(record),
                cells=[str(figure_of(record, key) or "-") for key in columns],
                verdict=verdict,
                failed=[(case, key) in checks and not checks[case, key].passed for key in columns],
                command=run_command(report.runs[case], f"runs/{case}", report.command)
                if case in report.runs
                else "",
                notes=record.get("notes", ""),
            )
        )
    known = known_figures()
    headings = [(known[key].title, symbols(known[key].unit)) for key in columns]
    title = TITLES.get(step, step.replace("_", " ").capitalize())
    return Section(title, headings, rows, plots_of(step, results, report.thresholds))


def _label(record: Mapping[str, Any]) -> str:
    """Return the name of a case in a table that has columns for temperature and timestep."""
    last = record["case"].split("/")[-1]
    name = record["structure"] if record.get("ensemble") == "nve" else last
    return f"{record['model']}, {record['engine']}: {name}"


def _records(report: Report, step: str) -> list[Mapping[str, Any]]:
    records = (result["record"] for result in report.results.values())
    return [record for record in records if record["step"] == step]


def write_table(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write records as a CSV file with a column for each key that occurs.

    Parameters
    ----------
    path : Path
        CSV file to write.
    records : Iterable[Mapping[str, Any]]
        Records, which become the rows.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    records = list(records)
    keys = list(dict.fromkeys(key for record in records for key in record))
    with atomic_write(path) as temporary, open(temporary, "w", newline="") as stream:
        writer = csv.DictWriter(stream, keys)
        writer.writeheader()
        for record in records:
            writer.writerow(
                {
                    key: f"{value:.6g}" if isinstance(value, float) else value
                    for key, value in record.items()
                }
            )


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text)
