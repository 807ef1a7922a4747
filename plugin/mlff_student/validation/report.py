"""What a campaign found, for people (HTML, tables) and for programs (JSON)."""

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

from mlff_student.core.figures import Threshold, load_thresholds
from mlff_student.core.files import atomic_write
from mlff_student.core.results import machine_facts, package_versions, write_json
from mlff_student.core.version import __version__
from mlff_student.engines.protocol import MDSettings
from mlff_student.reporting.pages import render
from mlff_student.reporting.verdict import stderr_of, with_error
from mlff_student.validation.campaign import Campaign, Result
from mlff_student.validation.plots import Plot, plots_of
from mlff_student.validation.protocol import Protocol
from mlff_student.validation.summary import Summary, summarise
from mlff_student.validation.tasks import RunTask, Subject

SCHEMA = Path(__file__).with_name("report.schema.json")
# Columns of the page's tables: key in a record, heading, unit.
COLUMNS = (
    ("target_temperature_k", "set to", "K"),
    ("timestep_fs", "timestep", "fs"),
    ("duration_ps", "length", "ps"),
    ("atoms", "atoms", ""),
    ("molecules", "molecules", ""),
    ("drift_mev_per_atom_ps", "energy drift", "meV/atom/ps"),
    ("heating_percent", "heating by it", "% of T"),
    ("drift_percent", "last - first", "%"),
    ("exchange_ratio", "std total / kinetic", ""),
    ("conservation_ratio", "with their trends", ""),
    ("stable_ps", "stable", "ps"),
    ("temperature_k", "temperature", "K"),
    ("bond_deviation_angstrom", "bond deviation", "Å"),
    ("rmsd_angstrom", "RMSD", "Å"),
    ("force_rmse_ev_per_angstrom", "force RMSE", "eV/Å"),
    ("force_r2", "force R²", ""),
    ("force_angle_deg", "force angle", "deg"),
    ("density_g_per_cm3", "density", "g/cm³"),
    ("density_change_percent", "above the packed box's", "%"),
    ("density_drift_percent_per_ns", "its trend", "%/ns"),
    ("diffusion_cm2_per_s", "diffusion of this box", "cm²/s"),
    ("diffusion_friction_per_ps", "slowed by friction", "1/ps"),
    ("rdf_error_percent", "g(r) error, between molecules", "%"),
    ("rdf_noise_percent", "its noise", "%"),
    ("rdf_mean_error_percent", "of all pairs", "%"),
    ("pressure_teacher_gpa", "teacher's pressure", "GPa"),
    ("pressure_error_gpa", "student's off", "GPa"),
    ("virial_error_on_teacher_frames_gpa", "off on teacher's frames", "GPa"),
    ("burn_in_ps", "left out", "ps"),
    ("window_ps", "then compared", "ps"),
    ("teacher_window_ps", "with teacher's", "ps"),
    ("teacher_acceptance", "teacher's moves accepted", ""),
    ("teacher_longest_rest", "most rejected in a row", ""),
    ("convergence_deviation", "off dt²", ""),
    ("spectrum_overlap_percent", "overlap of spectra", "%"),
    ("spectrum_overlap_noise_percent", "of the teacher's halves", "%"),
    ("spectrum_peak_shift_per_cm", "shift of peaks", "1/cm"),
    ("spectrum_peaks_missing", "peaks missing", ""),
)
# Of steps as all protocols call them.
TITLES = {
    "nve": "Molecules at constant energy",
    "temperature_ladder": "Ladder of temperatures",
    "timestep_ladder": "Ladder of timesteps",
    "size_ladder": "Ladder of sizes",
    "spectrum": "Vibrational spectra",
    "liquid": "Liquid box",
}


class Row(NamedTuple):
    """A case in a table of the page."""

    case: str
    cells: list[str]
    verdict: str
    failed: list[bool]  # of each cell
    command: str
    notes: str = ""


class Section(NamedTuple):
    """A step on the page."""

    title: str
    headings: list[tuple[str, str]]
    rows: list[Row]
    plots: list[Plot]


@dataclass(frozen=True)
class Report:
    """Everything that the pages and files are written from."""

    protocol: Protocol
    subject: Subject
    runs: Mapping[str, RunTask]
    results: Mapping[str, Result]
    thresholds: Mapping[str, Threshold]
    summary: Summary
    command: str

    def of_model(self, label: str) -> "Report":
        """The report of one model alone, with the teacher's runs."""
        models = {one.model for one in self.summary.checks if one.judged}
        results = {
            name: one
            for name, one in self.results.items()
            if one["record"]["model"] == label or one["record"]["model"] not in models
        }
        summary = summarise((one["record"] for one in results.values()), self.thresholds)
        return replace(self, results=results, summary=summary)

    @property
    def groups(self) -> list[tuple[str, str]]:
        """Model and engine of the columns of the verdict's table."""
        judged = ((one.model, one.engine) for one in self.summary.checks if one.judged)
        return list(dict.fromkeys(judged))


def make_report(campaign: Campaign) -> Report:
    """Report of what is finished.

    Raises
    ------
    InputError : nothing is.
    """
    results = campaign.results()
    thresholds = load_thresholds()
    subject = campaign.subject
    words = ["mlff-student", "validate", *subject.models, "--protocol", campaign.protocol.source]
    words += ["--engine", ",".join(subject.engines)]
    words += ["--teacher", subject.teacher] if subject.teacher else []
    return Report(
        protocol=campaign.protocol,
        subject=subject,
        runs={task.name: task for task in campaign.runs()},
        results=results,
        thresholds=thresholds,
        summary=summarise((one["record"] for one in results.values()), thresholds),
        command=shlex.join([*words, "-o", str(campaign.folder.path)]),
    )


def write_reports(campaign: Campaign, json_file: Path | None = None) -> Report:
    """Write comparison.html, report-MODEL.html and .json, tables/STEP.csv and README.md.

    Parameters
    ----------
    json_file : receives the JSON of all models as well.
    """
    report, folder = make_report(campaign), campaign.folder.path
    _write(folder / "comparison.html", page(report))
    for model in dict.fromkeys(model for model, _ in report.groups):
        one = report.of_model(model)
        _write(folder / f"report-{model}.html", page(one))
        write_json(folder / f"report-{model}.json", as_json(one))
    if json_file:
        write_json(json_file, as_json(report))
    (folder / "tables").mkdir(exist_ok=True)
    for step in report.protocol.steps:
        _write_table(folder / "tables" / f"{step.step}.csv", _records(report, step.step))
    _write(folder / "README.md", render("validation/report.md.j2", report=report) + "\n")
    return report


def as_json(report: Report) -> dict[str, Any]:
    """Content of the JSON file, as report.schema.json describes it."""
    summary = report.summary
    return {
        "command": "validate",
        "version": __version__,
        "model": ",".join(dict.fromkeys(model for model, _ in report.groups)),
        "machine": machine_facts() | package_versions(),
        "protocol": report.protocol.name,
        "protocol_sha256": report.protocol.digest,
        "teacher": report.subject.teacher,
        "passed": summary.passed,
        "reproduce": report.command,
        "checks": [
            {"case": one.case, "judged": one.judged} | one.check._asdict() for one in summary.checks
        ],
        "not_measured": summary.not_measured,
        "advice": {model: advice._asdict() for model, advice in summary.advice.items()},
        "results": [dict(one["record"]) for one in report.results.values()],
    }


def load_schema() -> dict[str, Any]:
    """JSON Schema of `as_json`."""
    return json.loads(SCHEMA.read_text())


def page(report: Report) -> str:
    """One self-contained HTML page."""
    return render(
        "validation/report.html.j2",
        report=report,
        summary=report.summary,
        worst={group: report.summary.worst(*group) for group in report.groups},
        names=[
            name
            for name in report.thresholds
            if any(one.check.name == name for one in report.summary.checks)
        ],
        sections=[_section(report, step.step) for step in report.protocol.steps],
        machine=machine_facts(),
        packages=package_versions(),
        version=__version__,
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
    )


def md_command(settings: MDSettings, folder: str, campaign: str) -> str:
    """The command that makes one run alone; of hybrid Monte Carlo, which `mlff-student md` does not
    do, the one of the whole `campaign`.
    """
    if settings.guide:
        return campaign
    words = ["mlff-student", "md", settings.structure, "--engine", settings.engine]
    words += ["--model", settings.model, "--ensemble", settings.ensemble]
    for option, value in (
        ("--ps", settings.steps * settings.timestep_fs * 1e-3),
        ("--timestep-fs", settings.timestep_fs),
        ("--temperature-K", settings.temperature_K),
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
    """What the command prints: the worst of each figure, and the verdict."""
    table = Table("figure", "limit", "unit")
    for model, engine in report.groups:
        table.add_column(f"{model}\n{engine}", justify="right")
    worst = {group: report.summary.worst(*group) for group in report.groups}
    for name, (limit, unit, _) in report.thresholds.items():
        if not any(name in found for found in worst.values()):
            continue
        cells = []
        for found in worst.values():
            if name not in found:
                cells.append(Text("-"))
                continue
            check = found[name].check
            style = "green" if check.passed else "bold red"
            word = "pass" if check.passed else "FAIL" if check.resolved else "NOT RESOLVED"
            cells.append(Text(f"{check.value:.3g} {word}", style))
        table.add_row(name, f"{limit:g}", unit, *cells)
    for name, what in report.summary.not_measured.items():
        table.add_row(name, "", f"not measured: needs {what}", style="yellow")
    table.add_section()
    table.add_row(Text("verdict"), "", Text(report.summary.verdict.upper(), "bold"))
    return table


def _section(report: Report, step: str) -> Section:
    results = [one for one in report.results.values() if one["record"]["step"] == step]
    records = [one["record"] for one in results]
    columns = [one for one in COLUMNS if any(record.get(one[0]) is not None for record in records)]
    checks = {(one.case, one.check.name): one.check for one in report.summary.checks}
    rows = []
    for record in records:
        case = record["case"]
        bad = [one for (of, _), one in checks.items() if of == case and not one.passed]
        words = [
            f"{word}: " + ", ".join(one.name for one in bad if one.resolved is resolved)
            for word, resolved in (("fails", True), ("not resolved", False))
            if any(one.resolved is resolved for one in bad)
        ]
        word = "; ".join(words) or "holds"
        if record["failure"]:
            word = record["failure"]
        if not record["judged"]:
            word += " (not judged)"
        rows.append(
            Row(
                case=_label(record),
                cells=[_cell(record, key) for key, _, _ in columns],
                verdict=word,
                failed=[
                    (case, key) in checks and not checks[case, key].passed for key, _, _ in columns
                ],
                command=md_command(report.runs[case].settings, f"runs/{case}", report.command)
                if case in report.runs
                else "",
                notes=record.get("notes", ""),
            )
        )
    headings = [(heading, unit) for _, heading, unit in columns]
    title = TITLES.get(step, step.replace("_", " ").capitalize())
    return Section(title, headings, rows, plots_of(step, results, report.thresholds))


def _label(record: Mapping[str, Any]) -> str:
    """What a case is called where columns say temperature, timestep and length."""
    last = record["case"].split("/")[-1]
    name = record["structure"] if record.get("ensemble") == "nve" else last
    return f"{record['model']}, {record['engine']}: {name}"


def _cell(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if value is None:
        return "-"
    return with_error(value, stderr_of(record, key))


def _records(report: Report, step: str) -> list[Mapping[str, Any]]:
    return [one["record"] for one in report.results.values() if one["record"]["step"] == step]


def _write_table(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    records = list(records)
    keys = list(dict.fromkeys(key for record in records for key in record))
    with atomic_write(path) as temporary, open(temporary, "w", newline="") as stream:
        writer = csv.DictWriter(stream, keys)
        writer.writeheader()
        for record in records:
            writer.writerow(
                {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in record.items()}
            )


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text)
