"""The commands `mlff-student models`, `doctor` and `lammps-env`, which report the installation."""

import shlex
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from mlff_student.cli.common import Json, Quiet, console, quieten


def models_command(
    check: Annotated[
        bool,
        typer.Option("--check", help="Check that weights, card and evidence belong together."),
    ] = False,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="With --check: exit status 1 for outdated evidence as well."),
    ] = False,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """List the shipped models with their teacher, accuracy and elements.

    With --check, report whether the weights, card and summary of each model belong together, and
    which evidence was made with another recipe, protocol or thresholds than the present ones.

    Exit status: 0 done, 1 weights, card and summary of a model do not belong together.

    Example: mlff-student models --check
    """
    from mlff_student.core.results import write_results

    quieten(quiet)
    if check:
        records, passed = check_models(strict)
    else:
        records, passed = list_models(), True
    if json:
        write_results(json, "models", "", records)
    if not passed:
        raise typer.Exit(1)


def list_models() -> list[dict[str, Any]]:
    """Print the table of shipped models, and return a record for each of them."""
    from mlff_student.archive.registry import available_models, read_card

    table = Table("model", "parameters", "teacher", "force RMSE (eV/angstrom)", "R²", "elements")
    records = []
    for name, folder in available_models().items():
        card = read_card(folder / "model.pt")
        accuracy = card["accuracy"]["held_out_molecules"]
        records.append(
            {
                "model": name,
                "parameters": card["parameters"],
                "teacher": card["teacher"],
                "force_rmse_ev_per_angstrom": accuracy["force_rmse_ev_per_angstrom"],
                "force_r2": accuracy["force_r2"],
                "elements": " ".join(card["domain"]["elements"]),
            }
        )
        *words, rmse, r2, elements = records[-1].values()
        table.add_row(*map(str, words), f"{rmse:.3f}", f"{r2:.4f}", elements)
    console.print(table)
    return records


def check_models(strict: bool) -> tuple[list[dict[str, Any]], bool]:
    """Print what is inconsistent or outdated.

    Parameters
    ----------
    strict : bool
        Whether outdated evidence counts as a failure.

    Returns
    -------
    records : list[dict[str, Any]]
        One record for each piece of evidence.
    passed : bool
        Whether all models are consistent, and with `strict` all evidence is current.
    """
    from mlff_student.archive.evidence import Evidence, EvidenceState, check_evidence
    from mlff_student.archive.registry import available_models, read_card
    from mlff_student.validation.evidence import evidence_inputs

    outdated = Table("model", "evidence", "date", "changed since")
    commands: dict[str, None] = {}
    records: list[dict[str, Any]] = []
    for name, folder in available_models().items():
        state = check_evidence(folder, read_card(folder / "model.pt"), evidence_inputs(name))
        consistent = not state.inconsistent
        verdict = "[green]weights, card and summary belong together[/]"
        if not consistent:
            verdict = f"[bold red]inconsistent:[/] {escape('; '.join(state.inconsistent))}"
        total, current = len(state.evidence), sum(not each.changed for each in state.evidence)
        console.print(f"{name}: {verdict}; {current} of {total} pieces of evidence are current")
        for each in state.evidence or [EvidenceState(Evidence("", "", "", []), [])]:
            evidence, changed = each.evidence, ", ".join(each.changed)
            if changed:
                outdated.add_row(name, escape(evidence.what), evidence.date, changed)
                commands[evidence.command] = None
            records.append(
                {
                    "model": name,
                    "consistent": consistent,
                    "evidence": evidence.what,
                    "date": evidence.date,
                    "current": not changed,
                    "changed": changed,
                    "command": evidence.command,
                }
            )
    if commands:
        console.print(outdated)
        console.print(
            "Repeat the outdated measurements with these commands, then run "
            "`python benchmarks/summarise_evidence.py FILE ...`:"
        )
        for command in commands:
            console.print(f"  {command}", markup=False, soft_wrap=True)
    passed = all(record["consistent"] for record in records) and not (strict and commands)
    return records, passed


def lammps_env_command(json: Json = None, quiet: Quiet = False) -> None:
    """Print the shell line that lets any `lmp` of this environment find the pair style.

    Exit status: 0 done, 3 the pair style was not built.

    Example: eval $(mlff-student lammps-env)
    """
    from mlff_student.core.results import write_results
    from mlff_student.engines.lammps.plugin import lammps_environment

    path = lammps_environment()["LAMMPS_PLUGIN_PATH"]
    if not quiet:
        typer.echo(f"export LAMMPS_PLUGIN_PATH={shlex.quote(path)}")
    if json:
        write_results(json, "lammps-env", "", [{"lammps_plugin_path": path}])


def doctor_command(json: Json = None, quiet: Quiet = False) -> None:
    """Report which parts of the installation work, and the command that fixes each other part.

    Exit status: 0 all necessary parts work, 3 one of them does not.

    Example: mlff-student doctor
    """
    from mlff_student.core.results import write_results
    from mlff_student.engines.doctor import examine

    quieten(quiet)
    with console.status("trying the engines"):
        findings = examine()
    table = Table("", "works", "found")
    commands: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        works = "[red]NO[/]"
        if finding.works or finding.optional:
            works = "[green]yes[/]" if finding.works else "[yellow]no[/]"
        table.add_row(finding.what, works, escape(finding.found))
        if finding.fix:
            verb = "install" if finding.optional else "fix"
            commands.setdefault((verb, finding.fix), []).append(finding.what)
    console.print(table)
    for (verb, command), parts in commands.items():
        console.print(f"To {verb} {', '.join(parts)}:\n  {command}", markup=False, soft_wrap=True)
    if json:
        write_results(json, "doctor", "", [finding._asdict() for finding in findings])
    if not all(finding.works or finding.optional for finding in findings):
        raise typer.Exit(3)
