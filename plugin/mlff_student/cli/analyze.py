"""`mlff-student analyze`."""

from pathlib import Path
from typing import Annotated

import typer

from mlff_student.cli.common import Quiet, console


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
        float | None,
        typer.Option("--temperature-K", help="Of the thermostat, kelvin; nvt and npt need it."),
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
        int | None, typer.Option(help="Of the run; else those of the log.")
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

    A figure within a standard error of its threshold, or beyond it by no more than its noise, is
    not resolved, and no pass either: run longer. A thermostat left on is told by its exchange of
    energy, where its coupling is strong (some 1/ps and more); a weak one is not. Equipartition
    needs a trajectory with velocities.

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
