"""What is installed: `mlff-student models`, `doctor` and `lammps-env`."""

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from mlff_student.cli.common import Json, Quiet, console, quieten


def models_command(
    check: Annotated[
        bool, typer.Option("--check", help="Compare weights, card and evidence of each model.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="With --check: exit 1 for outdated evidence as well.")
    ] = False,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """The shipped models and what was measured of them.

    With --check: whether weights, card and summary of each belong together (exit 1 if not), and
    which evidence was made with another recipe, protocol or thresholds than the shipped ones.

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
    """Print the table of models; a record for each."""
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
    """Print what is inconsistent or outdated; a record for each piece of evidence, and whether all
    is in order.
    """
    from mlff_student.archive.evidence import Evidence, EvidenceState, check_evidence
    from mlff_student.archive.registry import available_models, read_card
    from mlff_student.validation.evidence import evidence_inputs

    outdated = Table("model", "evidence", "of", "made with another")
    commands: dict[str, None] = {}
    records: list[dict[str, Any]] = []
    for name, folder in available_models().items():
        state = check_evidence(folder, read_card(folder / "model.pt"), evidence_inputs(name))
        consistent = not state.inconsistent
        word = "[green]weights, card and summary belong together[/]"
        if not consistent:
            word = f"[bold red]inconsistent:[/] {escape('; '.join(state.inconsistent))}"
        total, current = len(state.evidence), sum(not each.changed for each in state.evidence)
        console.print(f"{name}: {word}; {current} of {total} pieces of evidence are current")
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
        console.print("To make it anew, then `python benchmarks/summarise_evidence.py FILE ...`:")
        for command in commands:
            console.print(f"  {command}", markup=False, soft_wrap=True)
    in_order = all(record["consistent"] for record in records) and not (strict and commands)
    return records, in_order


def lammps_env_command(json: Json = None, quiet: Quiet = False) -> None:
    """Print the shell line that lets any `lmp` of this environment find the pair style.

    Example: eval $(mlff-student lammps-env)
    """
    from mlff_student.core.results import write_results
    from mlff_student.engines.lammps.plugin import lammps_environment

    path = lammps_environment()["LAMMPS_PLUGIN_PATH"]
    if not quiet:
        typer.echo(f"export LAMMPS_PLUGIN_PATH={path}")
    if json:
        write_results(json, "lammps-env", "", [{"lammps_plugin_path": path}])


def doctor_command(json: Json = None, quiet: Quiet = False) -> None:
    """What is installed, what works, and the one command that fixes what does not.

    Example: mlff-student doctor
    """
    from mlff_student.core.results import write_results
    from mlff_student.engines.doctor import examine

    quieten(quiet)
    with console.status("trying the engines"):
        findings = examine()
    table = Table("", "works", "found", "to fix it")
    for one in findings:
        word = "[green]yes[/]" if one.works else "[yellow]no[/]" if one.optional else "[red]NO[/]"
        table.add_row(one.what, word, escape(one.found), escape(one.mend))
    console.print(table)
    if json:
        write_results(json, "doctor", "", [one._asdict() for one in findings])
    if not all(one.works or one.optional for one in findings):
        raise typer.Exit(3)
