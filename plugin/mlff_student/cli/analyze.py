"""The command `mlff-student analyze`."""

from pathlib import Path
from typing import Annotated

import typer

from mlff_student.cli.common import Quiet, console


def analyze_command(
    trajectory: Annotated[
        Path,
        typer.Argument(
            help="Trajectory file: DCD, XTC, TRR, HDF5, NetCDF, LAMMPS dump, ASE traj, XYZ, ..."
        ),
    ],
    topology: Annotated[
        Path,
        typer.Option(
            "--top",
            help="Structure file with the same atoms in the same order, such as PDB. Its "
            "coordinates are the reference for bonds.",
        ),
    ],
    log: Annotated[
        Path,
        typer.Option(
            "--log",
            help="Log of the same run: run.csv, or a log of OpenMM, LAMMPS or ASE. All its tables "
            "that belong to the trajectory are used.",
        ),
    ],
    ensemble: Annotated[
        str,
        typer.Option(
            help="Ensemble of the run: nve, nvt or npt. Energy drift is judged in nve only."
        ),
    ] = "nve",
    temperature_K: Annotated[
        float | None,
        typer.Option(
            "--temperature-K", help="Temperature of the thermostat, K. Required for nvt and npt."
        ),
    ] = None,
    teacher: Annotated[
        str,
        typer.Option(
            help="Name of a teacher: compare the forces of the run with those of the teacher."
        ),
    ] = "",
    model: Annotated[
        str,
        typer.Option(
            help="Model of the run, for its forces and a check of the log: shipped name or file. "
            "Default: model.pt beside the trajectory, if it exists."
        ),
    ] = "",
    teacher_frames: Annotated[
        int, typer.Option(help="Number of frames on which forces are compared.")
    ] = 50,
    reference_trajectory: Annotated[
        Path | None,
        typer.Option(
            help="Trajectory of a run of the teacher: compare radial distribution functions and "
            "vibrational spectra."
        ),
    ] = None,
    reference_log: Annotated[
        Path | None,
        typer.Option(help="Log of the teacher's run, for the time between its frames."),
    ] = None,
    degrees_of_freedom: Annotated[
        int | None,
        typer.Option(
            help="Number of degrees of freedom. Default: as the log implies, else 3N - 3."
        ),
    ] = None,
    lammps_units: Annotated[
        str | None,
        typer.Option(
            "--units", help="Unit style of LAMMPS files that do not have it: metal or real."
        ),
    ] = None,
    timestep_fs: Annotated[
        float | None,
        typer.Option("--timestep-fs", help="Timestep of a log that has only steps, fs."),
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option("--json", help="JSON file to write. Default: beside the trajectory."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="PNG file of the drift. Default: beside the trajectory."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Measure the energy drift, temperature, bonds, forces and structure of a run of any program.

    The command prints a table, and writes a JSON file and plots beside the trajectory. The exit
    status is 0 if every figure passes its threshold, else 1. A figure is not resolved if its
    standard error or noise leaves open on which side of the threshold it is. It does not pass then:
    run longer. At constant energy, a thermostat that was left on is found if its friction is about
    1/ps or more. Equipartition needs a trajectory with velocities.

    Example: mlff-student analyze run.dcd --top run.pdb --log run.csv --teacher gfn2-xtb
    """
    from mlff_student.reporting.analyze import run_analysis

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
