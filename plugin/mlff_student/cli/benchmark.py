"""`mlff-student benchmark`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from mlff_student.cli.common import Json, Quiet, console, json_option, resumable, whole_numbers

benchmark_app = typer.Typer(
    no_args_is_help=True,
    help="""How fast it runs on this machine.

    Example: mlff-student benchmark kernels --models tiny --json kernels.json
    """,
)


@benchmark_app.command("kernels")
def benchmark_kernels_command(
    models: Annotated[
        str, typer.Option(help="Shipped names or paths, with commas; all: every shipped one.")
    ] = "all",
    atoms: Annotated[str, typer.Option(help="Sizes, with commas.")] = "22,100,1000,10000",
    threads: Annotated[str, typer.Option(help="Numbers of threads, with commas.")] = "1",
    seconds: Annotated[
        float, typer.Option(help="At least, for each model, size and number of threads.")
    ] = 2.0,
    openmm: Annotated[
        bool, typer.Option(help="Measure a step of 22 atoms in OpenMM as well.")
    ] = True,
    json: Annotated[Path | None, json_option("File for the records, as they are made.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="PNG file of the roofline; beside --json if not given.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Time, arithmetic rate and memory of energy and forces, native kernels and portable.

    Calls are made in turns with a matrix product and, after warming up, medians are taken.
    Structures are random: up to 76 atoms a molecule of 15 neighbours an atom, then a periodic box
    of 40. With the same --json a killed run goes on. Beside the targets, missed or met, the exit
    status is 0.

    Example: mlff-student benchmark kernels --threads 1,2 --json kernels.json

    Example: mlff-student benchmark kernels --atoms 1000,10000,100000 --json scaling.json
    """
    from rich.progress import Progress

    from mlff_student.benchmark.kernels import BenchmarkSettings, benchmark_kernels, models_of
    from mlff_student.benchmark.tables import records_table, remarks, targets_table
    from mlff_student.benchmark.targets import judge, load_targets
    from mlff_student.core.files import require_writable
    from mlff_student.reporting.plots import plot_roofline

    settings = BenchmarkSettings(
        models=models_of(models),
        atoms=whole_numbers("--atoms", atoms),
        threads=whole_numbers("--threads", threads),
        seconds=seconds,
        openmm=openmm,
    )
    figure = plot or (json.with_suffix(".png") if json else None)
    if figure:
        require_writable(figure)
    with resumable(), Progress(console=console, disable=quiet) as progress:
        bar = progress.add_task("kernels")
        records = benchmark_kernels(
            settings,
            json,
            lambda job, done, jobs: progress.update(
                bar, description=escape(job), completed=done, total=jobs
            ),
        )
    if figure:
        plot_roofline(records, figure)
    if not quiet:
        console.print(records_table(records))
        for line in remarks(records):
            console.print(line, markup=False)
        console.print(targets_table(judge(records, load_targets())))


@benchmark_app.command("openmm")
def benchmark_openmm_command(
    models: Annotated[
        str, typer.Option(help="Shipped names or paths, with commas; all: every shipped one.")
    ] = "all",
    molecule: Annotated[
        str, typer.Option(help="File or SMILES; alanine dipeptide if not given.")
    ] = "CC(=O)N[C@@H](C)C(=O)NC",
    atoms: Annotated[str, typer.Option(help="Sizes of thermal boxes, with commas.")] = "100,1000",
    interfaces: Annotated[str, typer.Option(help="With commas.")] = "TorchForce,PythonForce",
    backends: Annotated[str, typer.Option(help="With commas.")] = "native,portable",
    platforms: Annotated[str, typer.Option(help="Of OpenMM, with commas.")] = "Reference,CPU",
    threads: Annotated[str, typer.Option(help="Numbers of threads, with commas.")] = "1",
    also: Annotated[
        str,
        typer.Option(
            help="What else to run on the molecule, with commas: gfn2-xtb or any other teacher, "
            "python:package.module:factory; networks of a model's size with random weights: "
            "tensornet, mace, ani."
        ),
    ] = "",
    timestep_fs: Annotated[
        float, typer.Option("--timestep-fs", help="That ns/day are counted with.")
    ] = 0.5,
    seconds: Annotated[
        float, typer.Option(help="At least, for each structure and number of threads.")
    ] = 5.0,
    json: Annotated[
        Path | None,
        json_option("File for the records, as they are made; .md and .png go beside it."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Time of a step in OpenMM, and what OpenMM adds to the kernels; measure on a quiet machine.

    With --json, figures and tables in Markdown are written beside it, and a killed run goes on with
    the same command. TensorNet compiles for a minute before its first step.

    Example: mlff-student benchmark openmm --models tiny --also gfn2-xtb --json openmm.json

    Example: mlff-student benchmark openmm --also gfn2-xtb,tensornet,mace,ani --json rivals.json
    """
    from rich.progress import Progress

    from mlff_student.benchmark.kernels import models_of
    from mlff_student.benchmark.step_report import step_table, write_step_report
    from mlff_student.benchmark.steps import StepSettings, benchmark_steps, versions
    from mlff_student.core.results import machine_facts

    settings = StepSettings(
        models=models_of(models),
        molecule=molecule,
        atoms=whole_numbers("--atoms", atoms) if atoms else (),
        interfaces=models_of(interfaces),
        backends=models_of(backends),
        platforms=models_of(platforms),
        threads=whole_numbers("--threads", threads),
        others=models_of(also),
        timestep_fs=timestep_fs,
        seconds=seconds,
    )
    with resumable(), Progress(console=console, disable=quiet) as progress:
        bar = progress.add_task("openmm")
        records = benchmark_steps(
            settings,
            json,
            lambda job, done, jobs: progress.update(
                bar, description=escape(job), completed=done, total=jobs
            ),
        )
    files = write_step_report(records, machine_facts() | versions(), json) if json else []
    if not quiet:
        console.print(step_table(records))
        for path in files:
            console.print(f"written: {path}", markup=False, soft_wrap=True)


@benchmark_app.command("batch")
def benchmark_batch_command(
    models: Annotated[
        str, typer.Option(help="Shipped names or paths, with commas; all: every shipped one.")
    ] = "all",
    molecule: Annotated[
        str, typer.Option(help="File or SMILES, for conformers; alanine dipeptide if not given.")
    ] = "CC(=O)N[C@@H](C)C(=O)NC",
    structures: Annotated[int, typer.Option(help="How many, of each kind.")] = 1000,
    backends: Annotated[str, typer.Option(help="With commas.")] = "native,portable",
    threads: Annotated[str, typer.Option(help="Numbers of threads, with commas.")] = "1",
    memory_mb: Annotated[
        float, typer.Option("--memory-mb", help="Of a batch; 0: the calculator's choice.")
    ] = 0.0,
    seconds: Annotated[
        float, typer.Option(help="At least, for each model, backend and kind of structures.")
    ] = 5.0,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Structures a second of the ASE calculator, one by one and in batches.

    Different molecules of 9 atoms, conformers of one of them, and conformers of a larger one. The
    kernels alone, on the same graphs, say what is left to gain. Beside the targets, missed or met,
    the exit status is 0.

    Example: mlff-student benchmark batch --models tiny --json batch.json
    """
    from rich.progress import Progress

    from mlff_student.benchmark.batch import COMMAND, BatchSettings, benchmark_batch
    from mlff_student.benchmark.kernels import models_of
    from mlff_student.benchmark.tables import batch_table, targets_table
    from mlff_student.benchmark.targets import judge, load_targets
    from mlff_student.core.results import write_results

    settings = BatchSettings(
        models=models_of(models),
        molecule=molecule,
        structures=structures,
        backends=models_of(backends),
        threads=whole_numbers("--threads", threads),
        memory_mb=memory_mb,
        seconds=seconds,
    )
    with Progress(console=console, disable=quiet) as progress:
        bar = progress.add_task("batch")
        records = benchmark_batch(
            settings,
            lambda job, done, jobs: progress.update(
                bar, description=escape(job), completed=done, total=jobs
            ),
        )
    if not quiet:
        console.print(batch_table(records))
        console.print(targets_table(judge(records, load_targets())))
    if json:
        write_results(json, COMMAND, ",".join(settings.models), records)
