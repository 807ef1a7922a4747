"""The command `mlff-student liquid`, which runs `mlff-student validate` for a liquid."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from mlff_student.cli.common import Json, Quiet, console, default_folder, resumable, show
from mlff_student.cli.md import EngineName


def liquid_command(
    liquid: Annotated[
        str,
        typer.Argument(
            help="Liquid: water, methanol, ethanol, acetone, acetonitrile, benzene, hexane, "
            "or SMILES."
        ),
    ],
    model: Annotated[
        str, typer.Option(help="Model: shipped name, checkpoint or archive.")
    ] = "original",
    engine: Annotated[EngineName, typer.Option(help="MD engine: openmm or lammps.")] = (
        EngineName.openmm
    ),
    molecules: Annotated[int | None, typer.Option(help="Number of molecules in the box.")] = None,
    equilibrate_ps: Annotated[
        float | None,
        typer.Option("--equilibrate-ps", help="Length at constant pressure before measuring, ps."),
    ] = None,
    ps: Annotated[
        float | None, typer.Option(help="Length at constant pressure that is measured, ps.")
    ] = None,
    temperature_k: Annotated[
        float | None, typer.Option("--temperature-K", help="Temperature, K.")
    ] = None,
    pressure_bar: Annotated[
        float | None, typer.Option("--pressure-bar", help="Pressure, bar.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed of packing, velocities and thermostat.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder of the campaign. Default: in runs."),
    ] = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Measure the density of a liquid at constant pressure, and compare it with experiment.

    The command runs `validate` with the protocol `liquid`. By default it takes 60 molecules at
    298.15 K and 1 bar, equilibrates for 20 ps and measures for 50 ps. The box is packed at random
    and thermalised for 2 ps, in OpenMM at constant pressure and in LAMMPS at constant volume. The
    folder receives comparison.html with the density over time, and the other files of `validate`.
    The same command resumes a killed run. The exit status is 0 if density, bonds and temperature
    are within their thresholds, else 1.

    Example: mlff-student liquid water --model tiny --ps 50 -o runs/water-tiny
    """
    from mlff_student.core.figures import figure_of
    from mlff_student.core.results import write_results
    from mlff_student.validation.campaign import Campaign
    from mlff_student.validation.protocol import Liquid, liquid_protocol
    from mlff_student.validation.report import summary_table, write_reports
    from mlff_student.validation.tasks import CampaignTarget, label_of

    protocol = liquid_protocol(
        liquid,
        molecules=molecules,
        equilibrate_ps=equilibrate_ps,
        ps=ps,
        temperature_K=temperature_k,
        pressure_bar=pressure_bar,
        seed=seed,
    )
    protocol = replace(protocol, command=shlex.join(["mlff-student", *sys.argv[1:]]))
    folder = output or default_folder(f"liquid-{label_of(liquid)}", label_of(model))
    campaign = Campaign(protocol, CampaignTarget((model,), (engine.value,)), folder)
    with resumable():
        campaign.run(workers=1, quiet=quiet)
    report = write_reports(campaign)
    (result,) = report.results.values()
    if not quiet:
        if density := figure_of(result["record"], "density_g_per_cm3"):
            experiment = figure_of(result["record"], "experiment_g_per_cm3")
            text = f", experiment {experiment}" if experiment else ""
            console.print(f"density {density} g/cm³{text}", highlight=False)
        console.print(summary_table(report))
        show(f"report: {folder}/comparison.html")
    if json:
        (step,) = protocol.steps
        assert isinstance(step, Liquid)
        settings = {
            "liquid": liquid,
            "molecules": protocol.boxes[step.box].count,
            "equilibrate_ps": step.equilibrate_ps,
            "ps": step.npt_ps,
            "temperature_K": step.temperature_K,
            "pressure_bar": step.pressure_bar,
            "seed": step.seed,
        }
        write_results(json, "liquid", model, [settings | result["record"]])
    if not report.summary.passed:
        raise typer.Exit(1)
