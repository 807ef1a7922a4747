"""The commands `mlff-student validate run` and `mlff-student validate compare`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mlff_student.cli.common import Json, Quiet, console, resumable, show


class RunByDefault(TyperGroup):
    """Group of commands in which `validate MODEL` means `validate run MODEL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `run` before arguments that do not begin with a command of the group."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["run", *args]
        return super().parse_args(ctx, args)


validate_app = typer.Typer(
    cls=RunByDefault,
    no_args_is_help=True,
    help="""Test whether a model can be trusted in MD, and write a report with the evidence.

    `validate MODEL` is short for `validate run MODEL`.

    Example: mlff-student validate tiny --protocol quick --teacher gfn2-xtb
    """,
)


@validate_app.command("run")
def run_command(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Models: shipped names, checkpoints or archives. With --engine ase also any ASE "
            "calculator as python:package.module:factory. Required, unless the "
            "protocol names models, as campaign does."
        ),
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(
            help="Protocol: quick, standard, full, campaign, condensed, liquid, stability, or a "
            "YAML file."
        ),
    ] = "quick",
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Folder of the campaign. Default: validation/PROTOCOL."
        ),
    ] = None,
    teacher: Annotated[
        str,
        typer.Option(
            help="Teacher whose forces, liquids and spectra are compared, such as gfn2-xtb."
        ),
    ] = "",
    engine: Annotated[
        str,
        typer.Option(
            help="MD engines, separated by commas: openmm, lammps or ase. Default: the engines of "
            "the protocol."
        ),
    ] = "",
    workers: Annotated[
        int, typer.Option(min=1, help="Number of runs at the same time, each on a core.")
    ] = 1,
    estimate_only: Annotated[
        bool,
        typer.Option("--estimate", help="Print how long the campaign will take, and run nothing."),
    ] = False,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Run a protocol and write a report.

    The same command resumes a killed campaign. The folder receives comparison.html (all models),
    report-MODEL.html and report-MODEL.json, tables (CSV) and README.md. Trajectories are in its
    folder runs, which git ignores. The exit status is 0 if every judged figure passes its
    threshold, else 1.

    Example: mlff-student validate run tiny --protocol quick --teacher gfn2-xtb --workers 2

    Example: mlff-student validate run tiny --protocol condensed --teacher so3lr --estimate
    """
    from mlff_student.core.files import require_writable
    from mlff_student.validation.campaign import Campaign
    from mlff_student.validation.estimate import Estimate, duration_text
    from mlff_student.validation.protocol import load_protocol
    from mlff_student.validation.report import summary_table, write_reports
    from mlff_student.validation.tasks import CampaignTarget

    loaded = load_protocol(protocol)
    folder = output or Path("validation") / loaded.name
    target = CampaignTarget(
        models=tuple(models or loaded.models),
        engines=tuple(engine.split(",")) if engine else loaded.engines,
        teacher=teacher,
    )
    if json:
        require_writable(json)
    campaign = Campaign(loaded, target, folder)
    estimate = Estimate()
    pending = campaign.pending()
    if pending or estimate_only:
        seconds = estimate.wall(pending, workers)
        if not quiet or estimate_only:
            console.print(
                f"{len(pending)} of {len(campaign.tasks)} tasks are not done yet; they will take "
                f"about {duration_text(seconds)} on {workers} worker(s)",
                highlight=False,
            )
        if estimate_only:
            for step in loaded.steps:
                alone = sum(estimate(task) for task in pending if task.step == step.step)
                console.print(f"  {step.step}: {duration_text(alone)} on a core", highlight=False)
            return
    elif not quiet:
        done = f"All {len(campaign.tasks)} tasks are done; writing the report."
        console.print(done, highlight=False)
    with resumable():
        campaign.run(workers, estimate, quiet)
        report = write_reports(campaign, json)
    if not quiet:
        console.print(summary_table(report))
        show(f"report: {folder}/comparison.html")
    if not report.summary.passed:
        raise typer.Exit(1)


@validate_app.command("compare")
def compare_command(
    old: Annotated[Path, typer.Argument(help="report-MODEL.json of the old model.")],
    new: Annotated[Path, typer.Argument(help="report-MODEL.json of the new model.")],
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Compare the reports of two models, and list every figure in which the new model is worse.

    A difference counts if it is beyond the uncertainty. Both reports must be of the same teacher
    and protocol (by what it runs, not by its name). The exit status is 1 if the new model is worse,
    else 0.

    Example: mlff-student validate compare old/report-tiny.json new/report-tiny.json
    """
    from rich.table import Table

    from mlff_student.core.figures import load_thresholds
    from mlff_student.core.results import write_results
    from mlff_student.validation.compare import compare, read_report

    worse = compare(read_report(old), read_report(new), load_thresholds())
    if not quiet:
        table = Table("figure", "case", "old", "new", "why it is worse")
        for row in worse:
            table.add_row(row.figure, row.case, f"{row.old:.4g}", f"{row.new:.4g}", row.reason)
        console.print(table if worse else "The new model is not worse in any figure.")
    if json:
        write_results(json, "validate compare", str(new), [row._asdict() for row in worse])
    if worse:
        raise typer.Exit(1)
