"""`mlff-student validate`: run a protocol, compare two reports; and `benchmark report`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mlff_student.cli.benchmark import benchmark_app
from mlff_student.cli.common import Json, Quiet, console, resumable, whole_numbers


class RunByDefault(TyperGroup):
    """`validate MODEL` is `validate run MODEL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `run` before what begins with no command of the group."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["run", *args]
        return super().parse_args(ctx, args)


validate_app = typer.Typer(
    cls=RunByDefault,
    no_args_is_help=True,
    help="""May a model be trusted in MD, with evidence.

    `validate MODEL ...` is `validate run MODEL ...`.

    Example: mlff-student validate tiny --protocol quick --teacher gfn2-xtb
    """,
)


@validate_app.command("run")
def run_command(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Shipped names, checkpoints or archives; with --engine ase also any calculator as "
            "python:package.module:factory. Those of the protocol if not given."
        ),
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="quick, standard, full, campaign, or a YAML file.")
    ] = "quick",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder; validation/PROTOCOL if not given."),
    ] = None,
    teacher: Annotated[
        str, typer.Option(help="Whose forces and liquid are compared, such as gfn2-xtb.")
    ] = "",
    engine: Annotated[
        str, typer.Option(help="openmm, lammps or ase, with commas. The protocol's if not given.")
    ] = "",
    workers: Annotated[int, typer.Option(min=1, help="Runs at once, one core each.")] = 1,
    estimate_only: Annotated[
        bool, typer.Option("--estimate", help="Say how long it will take, and stop.")
    ] = False,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Run a protocol, write the report, and exit with 1 where a threshold fails.

    Goes on where a killed one stopped. The folder receives comparison.html (all models),
    report-MODEL.html and .json, tables (CSV) and a README.md; trajectories stay in its folder runs,
    which git ignores.

    Example: mlff-student validate run tiny --protocol quick --teacher gfn2-xtb --workers 2

    Example, from the root of a checkout, where the guides of the teacher's liquids are:
    mlff-student validate run --protocol campaign --teacher gfn2-xtb -o campaign
    """
    from mlff_student.core.files import require_writable
    from mlff_student.validation.campaign import Campaign
    from mlff_student.validation.estimate import Estimate, duration_text
    from mlff_student.validation.protocol import load_protocol
    from mlff_student.validation.report import summary_table, write_reports
    from mlff_student.validation.tasks import Subject

    what = load_protocol(protocol)
    folder = output or Path("validation") / what.name
    subject = Subject(
        models=tuple(models or what.models),
        engines=tuple(engine.split(",")) if engine else what.engines,
        teacher=teacher,
    )
    if json:
        require_writable(json)
    campaign = Campaign(what, subject, folder)
    estimate = Estimate()
    pending = campaign.pending()
    if pending or estimate_only:
        seconds = estimate.wall(pending, workers)
        if not quiet or estimate_only:
            console.print(
                f"{len(pending)} of {len(campaign.tasks)} tasks are to be done, in about "
                f"{duration_text(seconds)} on {workers} worker(s)",
                highlight=False,
            )
        if estimate_only:
            for step in what.steps:
                alone = sum(estimate(task) for task in pending if task.step == step.step)
                console.print(f"  {step.step}: {duration_text(alone)} of one core", highlight=False)
            return
    with resumable():
        campaign.run(workers, estimate, quiet)
    report = write_reports(campaign, json)
    if not quiet:
        console.print(summary_table(report))
        console.print(f"report: {folder}/comparison.html", markup=False, highlight=False)
    if not report.summary.passed:
        raise typer.Exit(1)


@validate_app.command("compare")
def compare_command(
    old: Annotated[Path, typer.Argument(help="report-MODEL.json of the last model.")],
    new: Annotated[Path, typer.Argument(help="report-MODEL.json of the new one.")],
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Exit with 1 where the new model is worse than the old one beyond the uncertainty.

    Both reports must be of one protocol (by what it runs, not by its name) and one teacher.

    Example: mlff-student validate compare old/report-tiny.json new/report-tiny.json
    """
    from rich.table import Table

    from mlff_student.core.figures import load_thresholds
    from mlff_student.core.results import write_results
    from mlff_student.validation.compare import compare, read_report

    worse = compare(read_report(old), read_report(new), load_thresholds())
    if not quiet:
        table = Table("figure", "case", "old", "new", "")
        for one in worse:
            table.add_row(one.figure, one.case, f"{one.old:.4g}", f"{one.new:.4g}", one.reason)
        console.print(table if worse else "not worse in any figure")
    if json:
        write_results(json, "validate compare", str(new), [one._asdict() for one in worse])
    if worse:
        raise typer.Exit(1)


@benchmark_app.command("report")
def benchmark_report_command(
    models: Annotated[
        str, typer.Option(help="Shipped names or paths, with commas; all: every shipped one.")
    ] = "all",
    teacher: Annotated[
        str, typer.Option(help="Measured beside them; empty for none.")
    ] = "gfn2-xtb",
    molecule: Annotated[
        str, typer.Option(help="File or SMILES; alanine dipeptide if not given.")
    ] = "CC(=O)N[C@@H](C)C(=O)NC",
    atoms: Annotated[
        str, typer.Option(help="Sizes for the scaling, with commas.")
    ] = "22,100,300,1000,3000",
    batches: Annotated[str, typer.Option(help="Sizes of batches, with commas.")] = "1,8,64",
    engines: Annotated[str, typer.Option(help="Of MD, with commas.")] = "openmm,lammps",
    steps: Annotated[int, typer.Option(help="Of MD that are timed.")] = 2000,
    seconds: Annotated[float, typer.Option(help="For each structure's latencies.")] = 5.0,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder.")] = Path("benchmark"),
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """All students beside their teacher: speed, accuracy, memory and where the time goes.

    Writes benchmark.html and benchmark.json; goes on where a killed one stopped. Measure on a quiet
    machine.

    Example: mlff-student benchmark report --models tiny,ultra_tiny -o benchmark
    """
    from rich.progress import Progress

    from mlff_student.benchmark.kernels import models_of
    from mlff_student.benchmark.report import COMMAND, ReportSettings, benchmark_report
    from mlff_student.core.files import require_writable
    from mlff_student.core.results import write_results

    settings = ReportSettings(
        models=models_of(models),
        teacher=teacher,
        molecule=molecule,
        atoms=whole_numbers("--atoms", atoms),
        batches=whole_numbers("--batches", batches),
        engines=models_of(engines),
        steps=steps,
        seconds=seconds,
    )
    if json:
        require_writable(json)
    with resumable(), Progress(console=console, disable=quiet) as progress:
        bar = progress.add_task("benchmark")
        records = benchmark_report(
            settings,
            output,
            lambda job, done, jobs: progress.update(
                bar, description=job, completed=done, total=jobs
            ),
        )
    if not quiet:
        console.print(f"report: {output}/benchmark.html", markup=False, highlight=False)
    if json:
        write_results(json, COMMAND, ",".join(settings.models), records)
