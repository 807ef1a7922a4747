"""The command `mlff-student`. It parses, calls one function, prints its result."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

from .errors import StudentError
from .validation.command import benchmark_report_command, validate_app

console = Console()
app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Small, fast force fields distilled from big slow ones, for OpenMM, LAMMPS and ASE.",
)
distill_app = typer.Typer(no_args_is_help=True, help="From a teacher to a student.")
app.add_typer(distill_app, name="distill")
benchmark_app = typer.Typer(no_args_is_help=True, help="How fast it runs on this machine.")
app.add_typer(benchmark_app, name="benchmark")
benchmark_app.command("report")(benchmark_report_command)
app.add_typer(validate_app, name="validate")

INTERRUPTED = 130  # exit status of a program ended by Ctrl-C

Json = Annotated[Path | None, typer.Option("--json", help="Also write the results to this file.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar and no table.")]


class Dtype(StrEnum):
    """Precision of an archive."""

    float32 = "float32"
    float64 = "float64"


class EngineName(StrEnum):
    """Engines that run MD."""

    openmm = "openmm"
    lammps = "lammps"
    ase = "ase"


class ExportEngine(StrEnum):
    """Engines that files can be written for."""

    openmm = "openmm"


class Backend(StrEnum):
    """Kernels of the network."""

    auto = "auto"
    native = "native"
    portable = "portable"


class Ensemble(StrEnum):
    """Ensembles of production."""

    nve = "nve"
    nvt = "nvt"
    npt = "npt"


def run(program: Callable[[], Any]) -> None:
    """Run a command; an error of the project's own becomes one line and its exit status."""
    try:
        program()
    except StudentError as error:
        Console(stderr=True).print(
            f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True
        )
        sys.exit(error.exit_status)


def main() -> None:
    """Entry point of the console script."""
    run(app)


@app.command("export")
def export_command(
    model: Annotated[
        str, typer.Option(help="A shipped model (original, tiny, ultra_tiny) or `all`.")
    ] = "",
    checkpoint: Annotated[Path | None, typer.Option(help="Weights of your own instead.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File, or folder with --model all.")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Precision of the network.")] = Dtype.float32,
    verify: Annotated[
        bool, typer.Option(help="Prove the archive against eager evaluation.")
    ] = True,
    engine: Annotated[
        ExportEngine | None, typer.Option(help="Files of one engine, to run without this package.")
    ] = None,
    topology: Annotated[
        str, typer.Option(help="Of --engine: PDB, mmCIF, SDF, MOL, XYZ, extxyz or SMILES.")
    ] = "",
    backend: Annotated[
        Backend, typer.Option(help="Of --engine: kernels; native ones need this package.")
    ] = Backend.portable,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Write a model as one TorchScript file for OpenMM, LAMMPS and ASE.

    With --engine openmm, a folder with a module for TorchForce, a System and a script that runs
    them.

    Example: python export.py --model original -o original.pt
    """
    from .checkpoints import available_models, checkpoint_path, model_name
    from .errors import InputError
    from .export import export
    from .results import write_results

    if bool(model) == bool(checkpoint):
        raise InputError(
            "give either --model original (tiny, ultra_tiny, all) or --checkpoint PATH"
        )
    if bool(engine) != bool(topology) or (engine and model == "all"):
        raise InputError("--engine openmm and --topology FILE go together, with one model")
    if engine:
        _export_for_openmm(
            model or str(checkpoint), topology, output, dtype.value, backend.value, json, quiet
        )
        return
    if checkpoint:
        jobs = {model_name(checkpoint): checkpoint}
    elif model == "all":
        jobs = {name: folder / "model.pt" for name, folder in available_models().items()}
    else:
        jobs = {model: checkpoint_path(model)}
    table = Table("structure", "atoms", "precision", "energy (eV/atom)", "forces (eV/angstrom)")
    records = []
    for name, weights in jobs.items():
        target = output or Path(f"{name}.pt")
        if model == "all" and output:
            output.mkdir(parents=True, exist_ok=True)
            target = output / f"{name}.pt"
        agreements = export(weights, target, dtype.value, verify)
        for one in agreements:
            table.add_row(
                f"{name}: {one.structure}",
                str(one.atoms),
                one.dtype,
                f"{one.energy_ev_per_atom:.1e}",
                f"{one.forces_ev_per_angstrom:.1e}",
            )
        records += [{"model": name, "file": str(target)} | one._asdict() for one in agreements]
        if not quiet:
            console.print(f"wrote {target} ({target.stat().st_size / 1e6:.2f} MB)")
    if not quiet and verify:
        console.print(table)
        worst_energy = max(one["energy_ev_per_atom"] for one in records)
        worst_force = max(one["forces_ev_per_angstrom"] for one in records)
        console.print(
            f"largest difference from eager evaluation: {worst_energy:.1e} eV/atom, "
            f"{worst_force:.1e} eV/angstrom"
        )
    if json:
        write_results(json, "export", ",".join(jobs), records)


def _export_for_openmm(
    model: str,
    topology: str,
    output: Path | None,
    dtype: str,
    backend: str,
    json: Path | None,
    quiet: bool,
) -> None:
    from .errors import MissingDependencyError
    from .results import write_results

    try:
        from openmm_integration.files import write_openmm_files
    except ImportError as error:
        raise MissingDependencyError(
            f"OpenMM does not load ({error}); pip install 'mlff-student[openmm]'"
        ) from error
    folder = output or Path(f"{Path(model).stem}-openmm")
    agreement = write_openmm_files(model, topology, folder, dtype=dtype, backend=backend)
    if not quiet:
        console.print(
            f"wrote {', '.join(sorted(path.name for path in folder.iterdir()))} in {folder}\n"
            f"difference from the archive: {agreement.energy_ev_per_atom:.1e} eV/atom, "
            f"{agreement.forces_ev_per_angstrom:.1e} eV/angstrom\n"
            f"to run it: cd {folder} && python simulate.py",
            markup=False,
        )
    if json:
        write_results(json, "export", model, [{"folder": str(folder)} | agreement._asdict()])


@app.command("md")
def md_command(
    structure: Annotated[str, typer.Argument(help="PDB, mmCIF, SDF, MOL, XYZ, extxyz or SMILES.")],
    engine: Annotated[EngineName, typer.Option(help="What integrates.")] = EngineName.openmm,
    model: Annotated[str, typer.Option(help="Shipped name, checkpoint or archive.")] = "original",
    ps: Annotated[float, typer.Option(help="Length of production, ps.")] = 10.0,
    timestep_fs: Annotated[float, typer.Option("--timestep-fs", help="Timestep, fs.")] = 0.5,
    temperature_k: Annotated[
        float, typer.Option("--temperature-K", help="Temperature, kelvin.")
    ] = 300.0,
    ensemble: Annotated[Ensemble, typer.Option(help="Of production.")] = Ensemble.nve,
    pressure_bar: Annotated[
        float, typer.Option("--pressure-bar", help="Pressure of npt, bar.")
    ] = 1.01325,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder of the run.")
    ] = None,
    every: Annotated[int, typer.Option(help="Steps between frames and log rows.")] = 20,
    thermalise_ps: Annotated[
        float, typer.Option("--thermalise-ps", help="Langevin dynamics before production, ps.")
    ] = 2.0,
    friction_per_ps: Annotated[
        float, typer.Option("--friction-per-ps", help="Of Langevin dynamics, 1/ps.")
    ] = 10.0,
    seed: Annotated[int, typer.Option(help="Of velocities and thermostat.")] = 1,
    platform: Annotated[str, typer.Option(help="OpenMM platform; the fastest if empty.")] = "",
    threads: Annotated[int, typer.Option(help="Of the network; 0: one for small systems.")] = 0,
    backend: Annotated[Backend, typer.Option(help="Kernels.")] = Backend.auto,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Minimise, thermalise and run MD; go on where a killed run stopped.

    The folder receives run.dcd, run.pdb, run.csv (time, potential, kinetic, total, temperature)
    and run.json.

    Example: mlff-student md --engine openmm --model original ethanol.xyz --ps 10 --timestep-fs 0.5
    """
    from .errors import InputError
    from .md import MDSettings, run_md
    from .results import write_results

    for option, value in (("--timestep-fs", timestep_fs), ("--ps", ps), ("--every", every)):
        if not 0 < value < math.inf:
            raise InputError(f"{option} must be positive, got {value}")
    if not 0 <= thermalise_ps < math.inf:
        raise InputError(f"--thermalise-ps must not be negative, got {thermalise_ps}")
    if round(ps * 1000.0 / timestep_fs / every) == 0:
        raise InputError(
            f"--ps {ps} is less than the {every} steps of {timestep_fs} fs between two frames"
        )
    settings = MDSettings(
        engine=engine.value,
        model=model,
        structure=structure,
        steps=round(ps * 1000.0 / timestep_fs / every) * every,
        timestep_fs=timestep_fs,
        temperature_K=temperature_k,
        ensemble=ensemble.value,
        every=every,
        thermalise_steps=round(thermalise_ps * 1000.0 / timestep_fs),
        friction_per_ps=friction_per_ps,
        seed=seed,
        platform=platform,
        threads=threads,
        backend=backend.value,
        pressure_bar=pressure_bar,
    )
    folder = output or Path("runs") / f"{Path(structure).stem or 'molecule'}-{engine.value}"
    try:
        record = run_md(settings, folder, quiet)
    except KeyboardInterrupt:
        text = f"\nstopped; the same command goes on from the last checkpoint in {folder}"
        console.print(text, markup=False)
        raise typer.Exit(INTERRUPTED) from None
    if not quiet:
        console.print(
            f"{folder}: {record['ms_per_step']:.2f} ms/step, {record['ns_per_day']:.2f} ns/day\n"
            f"next: mlff-student analyze {folder}/run.dcd --top {folder}/run.pdb "
            f"--log {folder}/run.csv",
            markup=False,
        )
    if json:
        write_results(json, "md", model, [record])


@app.command("analyze")
def analyze_command(
    trajectory: Annotated[
        Path,
        typer.Argument(help="DCD, XTC, TRR, HDF5, NetCDF, LAMMPS dump, ASE traj, (ext)XYZ, ..."),
    ],
    topology: Annotated[Path, typer.Option("--top", help="Structure of the same atoms: PDB, ...")],
    log: Annotated[
        Path, typer.Option("--log", help="Log of the same run: run.csv, OpenMM, LAMMPS or ASE.")
    ],
    ensemble: Annotated[
        str, typer.Option(help="nve, nvt or npt: what the run should be; drift is judged in nve.")
    ] = "nve",
    temperature_K: Annotated[
        float | None, typer.Option("--temperature-K", help="Of the thermostat, kelvin.")
    ] = None,
    teacher: Annotated[
        str, typer.Option(help="Compare the forces along the run with this teacher's.")
    ] = "",
    model: Annotated[
        str, typer.Option(help="That made the run, for its forces; model.pt beside it if there.")
    ] = "",
    teacher_frames: Annotated[int, typer.Option(help="Frames whose forces are compared.")] = 50,
    reference_trajectory: Annotated[
        Path | None,
        typer.Option(help="Run of the teacher: compare radial distributions and spectrum."),
    ] = None,
    reference_log: Annotated[
        Path | None, typer.Option(help="Of that run, for the time between its frames.")
    ] = None,
    degrees_of_freedom: Annotated[
        int | None, typer.Option(help="Of the run; 3N - 3 if not given.")
    ] = None,
    lammps_units: Annotated[
        str | None, typer.Option("--units", help="metal or real, where LAMMPS files do not say.")
    ] = None,
    timestep_fs: Annotated[
        float | None, typer.Option("--timestep-fs", help="Where the log has steps only.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", help="JSON file; beside the trajectory if not given.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="PNG file; beside the trajectory if not given.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Drift, temperature, bonds, forces and structure of a run of any program; exit status 1 when a
    threshold fails.

    Example: mlff-student analyze run.dcd --top run.pdb --log run.csv --teacher gfn2-xtb
    """
    from .analysis.command import run_analysis

    passed = run_analysis(
        trajectory,
        topology,
        log,
        console=console,
        teacher=teacher,
        model=model,
        reference_trajectory=reference_trajectory,
        reference_log=reference_log,
        json=json,
        plot=plot,
        quiet=quiet,
        ensemble=ensemble,
        temperature_K=temperature_K,
        teacher_frames=teacher_frames,
        degrees_of_freedom=degrees_of_freedom,
        lammps_units=lammps_units,
        timestep_fs=timestep_fs,
    )
    if not passed:
        raise typer.Exit(1)


@app.command("models")
def models_command(json: Json = None) -> None:
    """The shipped models and what was measured of them.

    Example: mlff-student models
    """
    from .checkpoints import available_models, read_card
    from .results import write_results

    table = Table("model", "parameters", "teacher", "force RMSE (eV/angstrom)", "R²", "elements")
    records = []
    for name, folder in available_models().items():
        card = read_card(folder / "model.pt")
        accuracy = card["accuracy"]["held_out_molecules"]
        records.append(
            {
                "model": name,
                "parameters": card["parameters"],
                "teacher": card["teacher"],
                "force_rmse_ev_per_angstrom": accuracy["force_rmse_ev_per_angstrom"],
                "force_r2": accuracy["force_r2"],
                "elements": " ".join(card["domain"]["elements"]),
            }
        )
        *words, rmse, r2, elements = records[-1].values()
        table.add_row(*map(str, words), f"{rmse:.3f}", f"{r2:.4f}", elements)
    console.print(table)
    if json:
        write_results(json, "models", "", records)


@app.command("lammps-env")
def lammps_env_command() -> None:
    """Print the shell line that lets any `lmp` of this environment find the pair style.

    Example: eval $(mlff-student lammps-env)
    """
    from .lammps_run import lammps_environment

    typer.echo(f"export LAMMPS_PLUGIN_PATH={lammps_environment()['LAMMPS_PLUGIN_PATH']}")


@app.command("doctor")
def doctor_command(json: Json = None) -> None:
    """What is installed, what works, and the one command that mends what does not.

    Example: mlff-student doctor
    """
    from .doctor import examine
    from .results import write_results

    with console.status("trying the engines"):
        findings = examine()
    table = Table("", "works", "found", "to mend it")
    for one in findings:
        word = "[green]yes[/]" if one.works else "[yellow]no[/]" if one.optional else "[red]NO[/]"
        table.add_row(one.what, word, escape(one.found), escape(one.mend))
    console.print(table)
    if json:
        write_results(json, "doctor", "", [one._asdict() for one in findings])
    if not all(one.works or one.optional for one in findings):
        raise typer.Exit(3)


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
    json: Annotated[
        Path | None, typer.Option("--json", help="File for the records, as they are made.")
    ] = None,
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

    from .benchmark.kernels import BenchmarkSettings, benchmark_kernels, models_of
    from .benchmark.tables import records_table, remarks, targets_table
    from .benchmark.targets import judge, load_targets
    from .files import require_writable
    from .plots import plot_roofline

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
            help="ASE calculators on the molecule, with commas: gfn2-xtb or any other teacher, "
            "python:package.module:factory."
        ),
    ] = "",
    timestep_fs: Annotated[
        float, typer.Option("--timestep-fs", help="That ns/day are counted with.")
    ] = 0.5,
    seconds: Annotated[
        float, typer.Option(help="At least, for each structure and number of threads.")
    ] = 5.0,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Time of a step in OpenMM, and what OpenMM adds to the kernels; measure on a quiet machine.

    Example: mlff-student benchmark openmm --models tiny --also gfn2-xtb --json openmm.json
    """
    from rich.progress import Progress

    from .benchmark.kernels import models_of
    from .benchmark.steps import COMMAND, StepSettings, benchmark_steps
    from .files import require_writable
    from .results import write_results

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
    if json:
        require_writable(json)
    with Progress(console=console, disable=quiet) as progress:
        bar = progress.add_task("openmm")
        records = benchmark_steps(
            settings,
            lambda job, done, jobs: progress.update(
                bar, description=escape(job), completed=done, total=jobs
            ),
        )
    if not quiet:
        table = Table("model", "force", "kernels", "platform", "atoms", "threads")
        for title in ("ms/step", "kernel ms", "overhead ms", "ns/day"):
            table.add_column(title, justify="right")
        for one in records:
            words = ("model", "interface", "backend", "platform", "atoms", "threads")
            figures = ("ms_per_step", "kernel_ms", "overhead_ms", "ns_per_day")
            table.add_row(
                *(escape(str(one[key])) for key in words), *(f"{one[key]:.3g}" for key in figures)
            )
        console.print(table)
    if json:
        write_results(json, COMMAND, ",".join(settings.models), records)


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """Numbers of a list with commas."""
    from .errors import InputError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} takes whole numbers with commas, got {text!r}") from None


RecipeFile = Annotated[
    Path, typer.Argument(help="YAML file; see mlff_student/distill/organic.yaml.")
]
DataFolder = Annotated[Path, typer.Option("--data", help="Folder of dataset.h5 and trainings.")]
Preset = Annotated[str, typer.Option("--model", help="A preset with a section in the recipe.")]
Workers = Annotated[int, typer.Option(help="Teacher processes on this machine.")]
Compile = Annotated[
    bool, typer.Option("--compile/--no-compile", help="Fuse the step with torch.compile.")
]


@contextmanager
def resumable() -> Iterator[None]:
    """Ctrl-C ends a long command with a word on how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        console.print("\nstopped; nothing is lost: the same command goes on from here")
        raise typer.Exit(INTERRUPTED) from None


@distill_app.command("sample")
def sample_command(
    recipe: RecipeFile,
    data: DataFolder,
    workers: Workers = 2,
    scheduler: Annotated[
        str, typer.Option(help="Dask scheduler (tcp://host:port) whose workers label instead.")
    ] = "",
) -> None:
    """Make the recipe's structures, sample them and label every frame by the teacher.

    Goes on where a killed run stopped. Next: distill check, distill train.

    Example: mlff-student distill sample organic.yaml --data runs/organic --workers 2
    """
    from .distill.label import label
    from .distill.recipe import read_recipe

    with resumable():
        label(read_recipe(recipe), data / "dataset.h5", workers, scheduler)


@distill_app.command("check")
def check_command(
    dataset: Annotated[Path, typer.Argument(help="HDF5 file that `distill sample` wrote.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder of the report; DATASET.check if not given."),
    ] = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Hold a dataset against the quality gate: GO, or NO-GO and exit status 1.

    The folder receives report.md, report.json and plots. Limits and their reasons are in
    mlff_student/distill/gate.yaml.

    Example: mlff-student distill check runs/organic/dataset.h5
    """
    from .distill.check import check_dataset
    from .distill.check_report import records, write_report
    from .results import write_results

    report = check_dataset(dataset, quiet)
    folder = output or dataset.with_suffix(".check")
    write_report(report, folder)
    if json:
        write_results(json, "distill check", "", records(report))
    if not quiet:
        table = Table("check", "found", "limit", "")
        for check in report.checks:
            *cells, outcome = check.cells
            style = {"pass": "green", "FAIL": "bold red"}.get(outcome, "yellow")
            table.add_row(*cells, f"[{style}]{outcome}[/]")
        console.print(table)
        console.print(f"{report.verdict}\nreport: {folder}/report.md", markup=False)
    if not report.passed:
        raise typer.Exit(1)


@distill_app.command("train")
def train_command(
    recipe: RecipeFile,
    data: DataFolder,
    model: Preset,
    extra: Annotated[
        Path | None, typer.Option(help="Another dataset to train on as well; see distill relabel.")
    ] = None,
    initial: Annotated[
        Path | None, typer.Option(help="Checkpoint (model.pt) of the same preset to start from.")
    ] = None,
    structures: Annotated[
        int, typer.Option(help="Train on so many structures alone, for a learning curve; 0: all.")
    ] = 0,
    compiled: Compile = True,
) -> None:
    """Train one preset; go on where a killed training stopped.

    On several processes or GPUs: torchrun --nproc-per-node 2 -m mlff_student distill train ...

    Example: mlff-student distill train organic.yaml --data runs/organic --model tiny
    """
    from .distill.recipe import read_recipe
    from .distill.train import train

    what, folder = read_recipe(recipe), data / model
    with resumable():
        train(
            what,
            model,
            data / "dataset.h5",
            folder,
            compiled=compiled,
            extra=extra,
            initial=initial,
            structures=structures,
        )


@distill_app.command("rounds")
def rounds_command(
    recipe: RecipeFile, data: DataFolder, workers: Workers = 2, compiled: Compile = True
) -> None:
    """Let students run their own MD and the teacher label what a committee of them is unsure of.

    Needs a section `rounds` in the recipe and the dataset of `distill sample`, which grows. Next:
    distill train, which goes on with the larger dataset.

    Example: mlff-student distill rounds organic.yaml --data runs/organic
    """
    from .distill.recipe import read_recipe
    from .distill.rounds import run_rounds

    with resumable():
        for number, count in enumerate(run_rounds(read_recipe(recipe), data, workers, compiled), 1):
            console.print(f"round {number}: {count} structures labelled")


@distill_app.command("relabel")
def relabel_command(
    dataset: Annotated[Path, typer.Argument(help="HDF5 file whose training frames are rattled.")],
    larger: Annotated[Path, typer.Option("--by", help="Checkpoint of the student that labels.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="HDF5 file to write.")],
    copies: Annotated[int, typer.Option(help="Of each frame.")] = 4,
    largest_force: Annotated[float, typer.Option(help="eV/angstrom; above: left out.")] = 30.0,
    seed: Annotated[int, typer.Option(help="Of the displacements.")] = 1,
) -> None:
    """Label many more frames by a larger student, for `distill train --extra`.

    Example: mlff-student distill relabel data.h5 --by checkpoints/original/model.pt -o more.h5
    """
    from .distill.ladder import relabel

    with resumable():
        frames = relabel(
            larger, dataset, output, copies=copies, largest_force=largest_force, seed=seed
        )
    console.print(f"{output}: {frames} frames")


@distill_app.command("evaluate")
def evaluate_command(
    recipe: RecipeFile,
    data: DataFolder,
    model: Preset,
    output: Annotated[Path, typer.Option("-o", "--output", help="Checkpoint folder to write.")],
) -> None:
    """Measure a trained student on held-out molecules; write its checkpoint, card and README.

    Example: mlff-student distill evaluate organic.yaml --data runs/organic --model tiny -o my/tiny
    """
    from .distill.evaluate import card_text, write_checkpoint
    from .distill.recipe import read_recipe

    trained = data / model / "model.pt"
    card = write_checkpoint(
        read_recipe(recipe), recipe, data / "dataset.h5", trained, model, output
    )
    console.print(Markdown(card_text(card)))


@distill_app.command("stability")
def stability_command(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder with its card.")],
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")],
    molecules: Annotated[int, typer.Option(help="Held-out molecules to run.")] = 20,
    ps: Annotated[float, typer.Option(help="Length of each run, ps.")] = 10.0,
    workers: Workers = 2,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="CSV; nve.csv in the folder if not given.")
    ] = None,
) -> None:
    """NVE in OpenMM of molecules the student never saw; exit status 1 when one drifts or breaks.

    Example: mlff-student distill stability checkpoints/tiny --runs runs/nve/tiny
    """
    from .distill.stability import measure_stability

    with resumable():
        rows = measure_stability(
            checkpoint / "model.pt",
            runs,
            output or checkpoint / "nve.csv",
            molecules=molecules,
            ps=ps,
            workers=workers,
        )
    table = Table(
        "molecule", "atoms", "drift (meV/atom/ps)", "largest bond deviation (angstrom)", ""
    )
    for row in rows:
        table.add_row(
            row.name,
            str(row.atoms),
            f"{row.drift_mev_per_atom_ps:.4f} ± {row.drift_stderr_mev_per_atom_ps:.4f}",
            f"{row.bond_deviation_angstrom:.2f}",
            "passed" if row.passed else f"[red]FAILED[/] {escape(row.failure)}",
        )
    console.print(table)
    if not all(row.passed for row in rows):
        raise typer.Exit(1)


@distill_app.command("quick")
def quick_command(
    molecule: Annotated[str, typer.Option(help="Structure file or SMILES.")],
    teacher: Annotated[str, typer.Option(help="Name of the teacher.")] = "gfn2-xtb",
    preset: Annotated[str, typer.Option(help="original, tiny or ultra_tiny.")] = "tiny",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder to write.")] = None,
    workers: Workers = 2,
    compiled: Compile = True,
) -> None:
    """A student specialised on your molecule, with its validation table, within half an hour.

    Example: mlff-student distill quick --teacher gfn2-xtb --molecule aspirin.sdf --preset tiny
    """
    from .distill.evaluate import card_text
    from .distill.quick import quick

    folder = output or Path("runs") / f"{Path(molecule).stem}-{preset}"
    with resumable():
        card = quick(molecule, preset, teacher, folder, workers, compiled)
    console.print(Markdown(card_text(card)))
    console.print(f"next: mlff-student md {molecule} --model {folder}/{preset}.pt", markup=False)
