"""What is installed: `mlff-student models`, `doctor` and `lammps-env`."""

import typer
from rich.markup import escape
from rich.table import Table

from mlff_student.cli.common import Json, Quiet, console, quieten


def models_command(json: Json = None, quiet: Quiet = False) -> None:
    """The shipped models and what was measured of them.

    Example: mlff-student models
    """
    from mlff_student.archive.registry import available_models, read_card
    from mlff_student.core.results import write_results

    quieten(quiet)
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
    if json:
        write_results(json, "models", "", records)


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
    """What is installed, what works, and the one command that mends what does not.

    Example: mlff-student doctor
    """
    from mlff_student.core.results import write_results
    from mlff_student.engines.doctor import examine

    quieten(quiet)
    with console.status("trying the engines"):
        findings = examine()
    table = Table("", "works", "found", "to mend it")
    for one in findings:
        word = "[green]yes[/]" if one.works else "[yellow]no[/]" if one.optional else "[red]NO[/]"
        table.add_row(one.what, word, escape(one.found), escape(one.mend))
    console.print(table)
    if json:
        write_results(json, "doctor", "", [one._asdict() for one in findings])
    if not all(one.works or one.optional for one in findings):
        raise typer.Exit(3)
