"""The command `mlff-student`. Each command reads its options, calls a function and prints."""

import typer

from mlff_student.cli.analyze import analyze_command
from mlff_student.cli.benchmark import benchmark_app
from mlff_student.cli.common import console, run
from mlff_student.cli.distill import distill_app
from mlff_student.cli.export import export_command
from mlff_student.cli.installation import doctor_command, lammps_env_command, models_command
from mlff_student.cli.lammps import lammps_input_command
from mlff_student.cli.liquid import liquid_command
from mlff_student.cli.md import md_command
from mlff_student.cli.validate import validate_app

__all__ = ["app", "console", "export_command", "main", "run"]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""Small, fast force fields for OpenMM, LAMMPS and ASE, trained on larger, slower models.

    Example: mlff-student md --model tiny examples/ethanol.xyz --ps 10
    """,
)
app.command("export")(export_command)
app.add_typer(distill_app, name="distill")
app.command("md")(md_command)
app.command("analyze")(analyze_command)
app.add_typer(validate_app, name="validate")
app.add_typer(benchmark_app, name="benchmark")
app.command("lammps-env")(lammps_env_command)
app.command("lammps-input")(lammps_input_command)
app.command("liquid")(liquid_command)
app.command("doctor")(doctor_command)
app.command("models")(models_command)


def main() -> None:
    """Run the command line; the console script and `python -m mlff_student` call this."""
    run(app)
