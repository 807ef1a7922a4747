"""`mlff-student liquid`."""

from pathlib import Path
from typing import Annotated

import typer

from mlff_student.cli.common import Json, Quiet, console, resumable
from mlff_student.cli.md import EngineName


def liquid_command(
    liquid: Annotated[
        str,
        typer.Argument(
            help="water, methanol, ethanol, acetone, acetonitrile, benzene, hexane; or SMILES."
        ),
    ],
    model: Annotated[str, typer.Option(help="Shipped name, checkpoint or archive.")] = "original",
    engine: Annotated[EngineName, typer.Option(help="openmm or lammps.")] = EngineName.openmm,
    molecules: Annotated[int, typer.Option(help="In the box.")] = 60,
    equilibrate_ps: Annotated[
        float, typer.Option("--equilibrate-ps", help="At constant pressure, not measured.")
    ] = 20.0,
    ps: Annotated[float, typer.Option(help="At constant pressure, measured.")] = 50.0,
    temperature_k: Annotated[
        float, typer.Option("--temperature-K", help="Temperature, kelvin.")
    ] = 298.15,
    pressure_bar: Annotated[float, typer.Option("--pressure-bar", help="Pressure, bar.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of all that is random.")] = 1,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder of the run.")
    ] = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Density of a liquid by a student at constant pressure, beside the experiment's.

    The box is packed at random and thermalised for 2 ps: in OpenMM with the barostat on already, in
    LAMMPS in the box as it was packed. The folder receives density.png and the files of `md`. A
    killed run goes on with the same command. The exit status is 1 where the density or a bond fails
    its threshold.

    Example: mlff-student liquid water --model tiny --ps 50 -o runs/water-tiny
    """
    from mlff_student.core.figures import load_thresholds
    from mlff_student.core.files import require_writable
    from mlff_student.core.results import write_results
    from mlff_student.reporting.verdict import judge, mark
    from mlff_student.validation.liquid import LiquidSettings, run_liquid

    settings = LiquidSettings(
        liquid=liquid,
        model=model,
        engine=engine.value,
        molecules=molecules,
        equilibrate_ps=equilibrate_ps,
        ps=ps,
        temperature_K=temperature_k,
        pressure_bar=pressure_bar,
        seed=seed,
    )
    if json:
        require_writable(json)
    folder = output or Path("runs") / f"liquid-{liquid}-{Path(model).stem}"
    with resumable():
        record = run_liquid(settings, folder, quiet)
    checks = judge(record, load_thresholds())
    if not quiet:
        error = record["density_stderr_g_per_cm3"]
        console.print(f"density {record['density_g_per_cm3']:.3f} ± {error:.3f} g/cm³")
        for check in checks:
            console.print(mark(check), f"{check} (limit {check.limit:g} {check.unit})")
    if json:
        write_results(json, "liquid", model, [record])
    if not all(check.passed for check in checks):
        raise typer.Exit(1)
