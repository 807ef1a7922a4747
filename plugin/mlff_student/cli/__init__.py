"""The command `mlff-student`. A command parses, calls one function, prints its result."""

import typer

from .analyze import analyze_command
from .benchmark import benchmark_app
from .common import console, run
from .distill import distill_app
from .export import export_command
from .installation import doctor_command, lammps_env_command, models_command
from .lammps import lammps_input_command
from .liquid import liquid_command
from .md import md_command
from .validate import validate_app

__all__ = ["app", "console", "export_command", "main", "run"]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="""Small, fast force fields distilled from big slow ones, for OpenMM, LAMMPS and ASE.

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
    """Entry point of the console script."""
    run(app)
