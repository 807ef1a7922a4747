"""`mlff-student liquid`."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import MissingDependencyError
from .common import Json, Quiet, console, resumable


def liquid_command(
    liquid: Annotated[
        str,
        typer.Argument(
            help="water, methanol, ethanol, acetone, acetonitrile, benzene, hexane; or SMILES."
        ),
    ],
    model: Annotated[str, typer.Option(help="Shipped name, checkpoint or archive.")] = "original",
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

    OpenMM, Monte Carlo barostat, hydrogens of 3 amu, 1 fs. The folder receives density.csv,
    density.png, end.pdb and liquid.json. A killed run goes on with the same command. The exit
    status is 1 where the density or a bond fails its threshold.

    Example: mlff-student liquid water --model tiny --ps 50 -o runs/water-tiny
    """
    from rich.progress import Progress

    from ..files import require_writable
    from ..results import write_results
    from ..verdict import load_thresholds, verdict

    try:
        from openmm_integration.liquid import LiquidSettings, run_liquid
    except ImportError as error:
        raise MissingDependencyError(
            f"OpenMM does not load ({error}); pip install 'mlff-student[openmm]'"
        ) from error
    settings = LiquidSettings(
        liquid=liquid,
        model=model,
        molecules=molecules,
        equilibrate_ps=equilibrate_ps,
        ps=ps,
        temperature_K=temperature_k,
        pressure_bar=pressure_bar,
        seed=seed,
    )
    if json:
        require_writable(json)
    with resumable(), Progress(console=console, disable=quiet) as progress:
        bar = progress.add_task(f"{liquid}, {model}")
        record = run_liquid(
            settings,
            output or Path("runs") / f"liquid-{liquid}-{Path(model).stem}",
            lambda done, whole: progress.update(bar, completed=done, total=whole),
        )
    checks = verdict(record, load_thresholds())
    if not quiet:
        error = record["density_stderr_g_per_cm3"]
        console.print(f"density {record['density_g_per_cm3']:.3f} ± {error:.3f} g/cm³")
        for check in checks:
            word = "[green]pass[/]" if check.passed else "[red]FAIL[/]"
            console.print(
                f"{word} {check.name} {check.value:.3g} (limit {check.limit:g} {check.unit})"
            )
    if json:
        write_results(json, "liquid", model, [record])
    if not all(check.passed for check in checks):
        raise typer.Exit(1)
