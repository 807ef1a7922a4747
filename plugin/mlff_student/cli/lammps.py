"""`mlff-student benchmark lammps` and `mlff-student lammps-input`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markdown import Markdown
from rich.markup import escape

from mlff_student.cli.benchmark import benchmark_app
from mlff_student.cli.common import Json, Quiet, console, json_option, resumable, whole_numbers


@benchmark_app.command("lammps")
def benchmark_lammps_command(
    models: Annotated[
        str, typer.Option(help="Shipped names or paths, with commas; all: every shipped one.")
    ] = "all",
    atoms: Annotated[
        str, typer.Option(help="Sizes of boxes, multiples of ten, with commas.")
    ] = "1000,10000,100000",
    ranks: Annotated[str, typer.Option(help="Of MPI, with commas.")] = "1,2",
    threads: Annotated[str, typer.Option(help="Of each rank, with commas.")] = "1,2",
    seconds: Annotated[float, typer.Option(help="Of steps, for each combination.")] = 10.0,
    others: Annotated[
        str, typer.Option(help="Of portable, reaxff and snap, with commas; empty: none.")
    ] = "portable,reaxff,snap",
    latency_us: Annotated[float, typer.Option(help="Of the network predicted for, µs.")] = 2.0,
    bandwidth: Annotated[
        float, typer.Option("--bandwidth-gb-per-s", help="Of each rank in that network.")
    ] = 1.0,
    json: Annotated[Path | None, json_option("File for the records, as they are made.")] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Markdown file; if there, with the marked place to write into."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="PNG file of the times; beside --json if not given.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Time of a step in LAMMPS by size, ranks, threads and stage, with memory and messages.

    In the same run what the same LAMMPS offers otherwise (ReaxFF, SNAP) and the portable backend,
    and after it the weak scaling to be expected. With the same --json a killed run goes on. Measure
    on a quiet machine. Beside the targets, missed or met, the exit status is 0.

    Example: mlff-student benchmark lammps --json lammps.json --report lammps.md
    """
    from rich.progress import Progress

    from mlff_student.benchmark.kernels import models_of
    from mlff_student.benchmark.lammps import LammpsSettings, benchmark_lammps
    from mlff_student.benchmark.lammps_report import plot_times, write_section
    from mlff_student.benchmark.lammps_report import report as markdown
    from mlff_student.benchmark.weak_scaling import Network
    from mlff_student.core.errors import InputError
    from mlff_student.core.files import require_writable

    settings = LammpsSettings(
        models=models_of(models),
        atoms=whole_numbers("--atoms", atoms),
        ranks=whole_numbers("--ranks", ranks),
        threads=whole_numbers("--threads", threads),
        seconds=seconds,
        others=models_of(others),
    )
    for option, value in (("--latency-us", latency_us), ("--bandwidth-gb-per-s", bandwidth)):
        if not 0.0 < value < float("inf"):
            raise InputError(f"{option} must be positive, got {value}")
    figure = plot or (json.with_suffix(".png") if json else None)
    for path in (figure, report):
        if path:
            require_writable(path)
    with resumable(), Progress(console=console, disable=quiet) as progress:
        bar = progress.add_task("lammps")
        records = benchmark_lammps(
            settings,
            json,
            lambda job, done, jobs: progress.update(
                bar, description=escape(job), completed=done, total=jobs
            ),
        )
    if figure:
        plot_times(records, figure)
    text = markdown(records, Network(latency_us, bandwidth))
    if report:
        write_section(text, report)
    if not quiet:
        console.print(Markdown(text))


def lammps_input_command(
    structure: Annotated[
        str, typer.Argument(help="File that ASE or MDTraj reads, or SMILES; velocities are kept.")
    ],
    ensemble: Annotated[
        str, typer.Option(help="nve, nvt, npt, minimise or melt: a script of lammps/.")
    ] = "nve",
    model: Annotated[str, typer.Option(help="Shipped name, checkpoint or archive.")] = "original",
    units: Annotated[str, typer.Option(help="metal or real.")] = "metal",
    variables: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE, of the script's variables; may be repeated."),
    ] = None,
    topology: Annotated[
        str, typer.Option("--top", help="Atoms of a trajectory (DCD, XTC, ...) that names none.")
    ] = "",
    frame: Annotated[
        int | None, typer.Option(help="Of a file that MDTraj reads; negative: from its end.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder to write into.")
    ] = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Write data file, archive and input script for LAMMPS, and run nothing.

    Example: mlff-student lammps-input examples/ethanol.xyz --ensemble nvt --set temperature=350
    """
    from mlff_student.core.errors import InputError
    from mlff_student.core.results import write_results
    from mlff_student.engines.lammps.input import write_lammps_input
    from mlff_student.structures.reading import read_frame, read_structure

    chosen = {}
    for text in variables or []:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise InputError(f"--set takes NAME=VALUE, got {text!r}")
        chosen[name] = value
    if topology or frame is not None:
        atoms = read_frame(structure, topology, frame or 0).atoms
    else:
        atoms = read_structure(structure).atoms
    folder = output or Path("runs") / f"{Path(structure).stem or 'molecule'}-{ensemble}"
    written = write_lammps_input(atoms, model, ensemble, folder, units=units, variables=chosen)
    if not quiet:
        console.print(
            f"wrote {', '.join(path.name for path in written)} in {folder}\n"
            f"to run it: eval $(mlff-student lammps-env); cd {folder} && lmp -in "
            f"{written.script.name}",
            markup=False,
        )
    if json:
        record = {name: str(path) for name, path in written._asdict().items()}
        write_results(json, "lammps-input", model, [record | {"atoms": len(atoms)}])
