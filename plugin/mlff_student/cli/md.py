"""The command `mlff-student md`."""

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mlff_student.cli.common import (
    INTERRUPTED,
    Backend,
    Json,
    Quiet,
    default_folder,
    shell_path,
    show,
)


class EngineName(StrEnum):
    """Names of the MD engines."""

    openmm = "openmm"
    lammps = "lammps"
    ase = "ase"


class Ensemble(StrEnum):
    """Names of the ensembles of a production run."""

    nve = "nve"
    nvt = "nvt"
    npt = "npt"


def md_command(
    structure: Annotated[
        str,
        typer.Argument(help="PDB, mmCIF, SDF, MOL, XYZ or extxyz file, or a SMILES string."),
    ],
    engine: Annotated[EngineName, typer.Option(help="MD engine.")] = EngineName.openmm,
    model: Annotated[
        str,
        typer.Option(
            help="Shipped name, or path of a checkpoint or archive; with --engine ase also the "
            "name of a teacher."
        ),
    ] = "original",
    ps: Annotated[float, typer.Option(help="Length of the production run, ps.")] = 10.0,
    timestep_fs: Annotated[
        float, typer.Option("--timestep-fs", help="Timestep of the production run, fs.")
    ] = 0.5,
    temperature_k: Annotated[
        float,
        typer.Option(
            "--temperature-K",
            help="Temperature of thermalisation, and of production in nvt and npt, K.",
        ),
    ] = 300.0,
    ensemble: Annotated[
        Ensemble, typer.Option(help="Ensemble of the production run.")
    ] = Ensemble.nve,
    pressure_bar: Annotated[
        float, typer.Option("--pressure-bar", help="Pressure of the ensemble npt, bar.")
    ] = 1.01325,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Folder that receives the files. Default: runs/, structure and engine.",
        ),
    ] = None,
    every: Annotated[
        int, typer.Option(help="Number of steps between frames, and between log rows.")
    ] = 20,
    thermalise_ps: Annotated[
        float,
        typer.Option(
            "--thermalise-ps", help="Length of Langevin dynamics before the production run, ps."
        ),
    ] = 2.0,
    thermalise_timestep_fs: Annotated[
        float,
        typer.Option(
            "--thermalise-timestep-fs",
            help="Timestep of thermalisation, fs; 0 means that of production. Runs with different "
            "timesteps start from the same state if they thermalise with the same timestep.",
        ),
    ] = 0.0,
    friction_per_ps: Annotated[
        float,
        typer.Option("--friction-per-ps", help="Friction coefficient of Langevin dynamics, 1/ps."),
    ] = 10.0,
    seed: Annotated[int, typer.Option(help="Random seed of velocities and thermostat.")] = 1,
    platform: Annotated[str, typer.Option(help="OpenMM platform. Default: the fastest.")] = "",
    threads: Annotated[
        int,
        typer.Option(
            help="Number of threads of the network; 0 means one below 500 atoms, else all cores."
        ),
    ] = 0,
    backend: Annotated[
        Backend, typer.Option(help="Compute backend: native, portable or auto.")
    ] = Backend.auto,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Minimise, thermalise and run MD, or resume a run that was killed.

    The folder receives the trajectory run.dcd, the topology run.pdb, the log run.csv (time,
    potential, kinetic and total energy, temperature) and the record run.json. The exit status is 0
    if the run is complete, and 130 after Ctrl-C.

    Example: mlff-student md --engine openmm --model original examples/ethanol.xyz --ps 10
    """
    from mlff_student.core.errors import InputError
    from mlff_student.core.results import write_results
    from mlff_student.engines.protocol import MDSettings
    from mlff_student.engines.run import run_md

    for option, value in (("--timestep-fs", timestep_fs), ("--ps", ps), ("--every", every)):
        if not 0 < value < math.inf:
            raise InputError(f"{option} must be positive, got {value}")
    for option, value in (
        ("--thermalise-ps", thermalise_ps),
        ("--thermalise-timestep-fs", thermalise_timestep_fs),
    ):
        if not 0 <= value < math.inf:
            raise InputError(f"{option} must not be negative, got {value}")
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
        thermalise_steps=round(thermalise_ps * 1000.0 / (thermalise_timestep_fs or timestep_fs)),
        friction_per_ps=friction_per_ps,
        seed=seed,
        platform=platform,
        threads=threads,
        backend=backend.value,
        pressure_bar=pressure_bar,
        thermalise_timestep_fs=thermalise_timestep_fs,
    )
    folder = output or default_folder(structure, engine.value)
    try:
        record = run_md(settings, folder, quiet)
    except KeyboardInterrupt:
        show(f"\nstopped; the same command resumes the run from the last checkpoint in {folder}")
        raise typer.Exit(INTERRUPTED) from None
    if not quiet:
        speed = record["ms_per_step"]  # None or NaN if the run was killed after its last step
        if speed and math.isfinite(speed):
            show(f"{folder}: {speed:.2f} ms/step, {record['ns_per_day']:.2f} ns/day")
        dcd, pdb, csv = (shell_path(folder / f"run.{ending}") for ending in ("dcd", "pdb", "csv"))
        show(f"next: mlff-student analyze {dcd} --top {pdb} --log {csv}")
    if json:
        write_results(json, "md", model, [record])
