"""The commands `mlff-student benchmark`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from mlff_student.benchmark import MOLECULE
from mlff_student.cli.common import Quiet, console, json_option, resumable, whole_numbers

if TYPE_CHECKING:
    from mlff_student.benchmark.records import Progress

Models = Annotated[
    str,
    typer.Option(help="Shipped names or paths, separated by commas; all: every shipped model."),
]
Molecule = Annotated[str, typer.Option(help="Structure file or SMILES string of a molecule.")]
Threads = Annotated[str, typer.Option(help="Numbers of threads, separated by commas.")]
Backends = Annotated[
    str, typer.Option(help="Compute backends, separated by commas: native, portable.")
]
Records = Annotated[
    Path | None,
    json_option(
        "Write each record to this JSON file when it is made; a killed run resumes from it."
    ),
]

benchmark_app = typer.Typer(
    no_args_is_help=True,
    help="""Measure how fast the models run on this machine.

    Example: mlff-student benchmark kernels --models tiny --json kernels.json
    """,
)


@contextmanager
def progress_bar(title: str, quiet: bool) -> "Iterator[Progress]":
    """Give a function that moves a progress bar; Ctrl-C prints how to resume."""
    from rich.progress import Progress as ProgressBar

    with resumable(), ProgressBar(console=console, disable=quiet) as progress:
        bar = progress.add_task(title)
        yield lambda job, done, jobs: progress.update(
            bar, description=escape(job), completed=done, total=jobs
        )


@benchmark_app.command("kernels")
def benchmark_kernels_command(
    models: Models = "all",
    atoms: Annotated[
        str, typer.Option(help="Numbers of atoms, separated by commas.")
    ] = "22,100,1000,10000",
    threads: Threads = "1",
    seconds: Annotated[
        float, typer.Option(help="Least time for each model, size and number of threads, s.")
    ] = 2.0,
    openmm: Annotated[
        bool, typer.Option(help="Whether to measure a step of 22 atoms in OpenMM as well.")
    ] = True,
    json: Records = None,
    quiet: Quiet = False,
) -> None:
    """Measure time, arithmetic rate and memory of energy and forces with both backends.

    The calls of the backends alternate with a matrix product, and times are medians. Structures are
    random: molecules with 15 neighbours of each atom up to 76 atoms, larger ones are periodic boxes
    with 40. The table of targets is for information: the exit status is 0 also if one is missed.

    Example: mlff-student benchmark kernels --threads 1,2 --json kernels.json

    Example: mlff-student benchmark kernels --atoms 1000,10000,100000 --json scaling.json
    """
    from mlff_student.benchmark.kernels import BenchmarkSettings, benchmark_kernels
    from mlff_student.benchmark.settings import models_of
    from mlff_student.benchmark.tables import records_table, remarks, targets_table
    from mlff_student.benchmark.targets import judge_targets, load_targets

    settings = BenchmarkSettings(
        models=models_of(models),
        atoms=whole_numbers("--atoms", atoms),
        threads=whole_numbers("--threads", threads),
        seconds=seconds,
        openmm=openmm,
    )
    with progress_bar("kernels", quiet) as progress:
        records = benchmark_kernels(settings, json, progress)
    if not quiet:
        console.print(records_table(records))
        for line in remarks(records):
            console.print(line, markup=False)
        console.print(targets_table(judge_targets(records, load_targets())))


@benchmark_app.command("openmm")
def benchmark_openmm_command(
    models: Models = "all",
    molecule: Molecule = MOLECULE,
    atoms: Annotated[
        str, typer.Option(help="Numbers of atoms of random boxes, separated by commas.")
    ] = "100,1000",
    interfaces: Annotated[
        str, typer.Option(help="OpenMM forces, separated by commas.")
    ] = "TorchForce,PythonForce",
    backends: Backends = "native,portable",
    platforms: Annotated[
        str, typer.Option(help="OpenMM platforms, separated by commas.")
    ] = "Reference,CPU",
    threads: Threads = "1",
    also: Annotated[
        str,
        typer.Option(
            help="Teachers to run on the molecule too, separated by commas: gfn2-xtb, or any ASE "
            "calculator as python:package.module:factory."
        ),
    ] = "",
    timestep_fs: Annotated[
        float, typer.Option("--timestep-fs", help="Timestep for the figure ns/day, fs.")
    ] = 0.5,
    seconds: Annotated[
        float, typer.Option(help="Least time for each structure and number of threads, s.")
    ] = 5.0,
    json: Records = None,
    quiet: Quiet = False,
) -> None:
    """Measure the time of a step in OpenMM, and its part that is not energy and forces.

    Measure on a machine that does nothing else.

    Example: mlff-student benchmark openmm --models tiny --also gfn2-xtb --json openmm.json
    """
    from mlff_student.benchmark.settings import models_of, words_of
    from mlff_student.benchmark.step_tables import step_table
    from mlff_student.benchmark.steps import StepSettings, benchmark_steps

    settings = StepSettings(
        models=models_of(models),
        molecule=molecule,
        atoms=whole_numbers("--atoms", atoms) if atoms else (),
        interfaces=words_of(interfaces),
        backends=words_of(backends),
        platforms=words_of(platforms),
        threads=whole_numbers("--threads", threads),
        also=words_of(also),
        timestep_fs=timestep_fs,
        seconds=seconds,
    )
    with progress_bar("openmm", quiet) as progress:
        records = benchmark_steps(settings, json, progress)
    if not quiet:
        console.print(step_table(records))


@benchmark_app.command("lammps")
def benchmark_lammps_command(
    models: Models = "all",
    atoms: Annotated[
        str,
        typer.Option(help="Numbers of atoms of the boxes, multiples of ten, separated by commas."),
    ] = "1000,10000,100000",
    ranks: Annotated[str, typer.Option(help="Numbers of MPI ranks, separated by commas.")] = "1,2",
    threads: Annotated[
        str, typer.Option(help="Numbers of threads of each rank, separated by commas.")
    ] = "1,2",
    seconds: Annotated[
        float, typer.Option(help="Time of the steps for each combination, s.")
    ] = 10.0,
    backends: Backends = "native,portable",
    json: Records = None,
    quiet: Quiet = False,
) -> None:
    """Measure the time of a step in LAMMPS by size, ranks, threads and stage, and the memory.

    Measure on a machine that does nothing else. The table of targets is for information: the exit
    status is 0 also if one is missed.

    Example: mlff-student benchmark lammps --models tiny --atoms 1000 --json lammps.json
    """
    from mlff_student.benchmark.lammps import LammpsSettings, benchmark_lammps
    from mlff_student.benchmark.settings import models_of, words_of
    from mlff_student.benchmark.step_tables import lammps_table
    from mlff_student.benchmark.tables import remarks, targets_table
    from mlff_student.benchmark.targets import judge_targets, load_targets

    settings = LammpsSettings(
        models=models_of(models),
        atoms=whole_numbers("--atoms", atoms),
        ranks=whole_numbers("--ranks", ranks),
        threads=whole_numbers("--threads", threads),
        seconds=seconds,
        backends=words_of(backends),
    )
    with progress_bar("lammps", quiet) as progress:
        records = benchmark_lammps(settings, json, progress)
    if not quiet:
        console.print(lammps_table(records))
        for line in remarks(records):
            console.print(line, markup=False)
        console.print(targets_table(judge_targets(records, load_targets())))


@benchmark_app.command("batch")
def benchmark_batch_command(
    models: Models = "all",
    molecule: Molecule = MOLECULE,
    structures: Annotated[int, typer.Option(help="Number of structures of each kind.")] = 1000,
    backends: Backends = "native,portable",
    threads: Threads = "1",
    memory_mb: Annotated[
        float, typer.Option("--memory-mb", help="Memory of a batch, MB; 0: the calculator chooses.")
    ] = 0.0,
    seconds: Annotated[
        float, typer.Option(help="Least time for each model, backend and kind of structures, s.")
    ] = 5.0,
    json: Records = None,
    quiet: Quiet = False,
) -> None:
    """Measure how many structures per second the ASE calculator computes, with and without batches.

    Structures are different molecules of 9 atoms, conformers of one of them, and conformers of
    --molecule. The time of the kernels alone for the same structures is shown beside it. The table
    of targets is for information: the exit status is 0 also if one is missed.

    Example: mlff-student benchmark batch --models tiny --json batch.json
    """
    from mlff_student.benchmark.batch import BatchSettings, benchmark_batch
    from mlff_student.benchmark.settings import models_of, words_of
    from mlff_student.benchmark.tables import batch_table, targets_table
    from mlff_student.benchmark.targets import judge_targets, load_targets

    settings = BatchSettings(
        models=models_of(models),
        molecule=molecule,
        structures=structures,
        backends=words_of(backends),
        threads=whole_numbers("--threads", threads),
        memory_mb=memory_mb,
        seconds=seconds,
    )
    with progress_bar("batch", quiet) as progress:
        records = benchmark_batch(settings, json, progress)
    if not quiet:
        console.print(batch_table(records))
        console.print(targets_table(judge_targets(records, load_targets())))
