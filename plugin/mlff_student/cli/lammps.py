"""The command `mlff-student lammps-input`."""

from pathlib import Path
from typing import Annotated

import typer

from mlff_student.cli.common import Json, Quiet, default_folder, shell_path, show


def lammps_input_command(
    structure: Annotated[
        str,
        typer.Argument(
            help="Structure file that ASE or MDTraj reads, or a SMILES string. Velocities are kept."
        ),
    ],
    ensemble: Annotated[
        str, typer.Option(help="Script of the run: nve, nvt, npt, minimise, melt or tip3p.")
    ] = "nve",
    model: Annotated[
        str, typer.Option(help="Shipped name, or path of a checkpoint or archive.")
    ] = "original",
    units: Annotated[str, typer.Option(help="Units of the LAMMPS run: metal or real.")] = "metal",
    variables: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Variable of the script and its value, NAME=VALUE. May be repeated."
        ),
    ] = None,
    topology: Annotated[
        str,
        typer.Option(
            "--top", help="File with the atoms of a trajectory that has none (DCD, XTC, ...)."
        ),
    ] = "",
    frame: Annotated[
        int | None,
        typer.Option(
            help="Frame of a trajectory, from 0; negative numbers count from the end. Default: 0."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Folder that receives the files. Default: runs/, structure and ensemble.",
        ),
    ] = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Write a data file, an archive and an input script for LAMMPS, and run nothing.

    The exit status is 0 if the files are written, and 2 if the input is unusable.

    Example: mlff-student lammps-input examples/ethanol.xyz --ensemble nvt --set temperature=350
    """
    from mlff_student.core.errors import InputError
    from mlff_student.core.results import write_results
    from mlff_student.engines.lammps.input import write_lammps_input
    from mlff_student.structures.reading import read_frame, read_structure

    values = {}
    for text in variables or []:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise InputError(f"--set takes NAME=VALUE, got {text!r}")
        values[name] = value
    if topology or frame is not None:
        atoms = read_frame(structure, topology, frame or 0).atoms
    else:
        atoms = read_structure(structure).atoms
    folder = output or default_folder(structure, ensemble)
    written = write_lammps_input(atoms, model, ensemble, folder, units=units, variables=values)
    if not quiet:
        show(
            f"wrote {', '.join(path.name for path in written)} in {folder}\n"
            f"to run it: eval $(mlff-student lammps-env); cd {shell_path(folder)} && lmp -in "
            f"{written.script.name}"
        )
    if json:
        record = {name: str(path) for name, path in written._asdict().items()}
        write_results(json, "lammps-input", model, [record | {"atoms": len(atoms)}])
