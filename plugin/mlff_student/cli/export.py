"""The command `mlff-student export`, which `python export.py` calls as well."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mlff_student.cli.common import Backend, Json, Quiet, console, shell_path, show


class Dtype(StrEnum):
    """Precision of an archive."""

    float32 = "float32"
    float64 = "float64"


class Format(StrEnum):
    """Format of the file."""

    torchscript = "torchscript"
    onnx = "onnx"


class ExportEngine(StrEnum):
    """Engines that files can be written for."""

    openmm = "openmm"


def export_command(
    model: Annotated[
        str, typer.Option(help="Shipped model: original, tiny or ultra_tiny; or all of them: all.")
    ] = "",
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Weights file of another model, in place of --model; or an archive that another "
            "version wrote, whose weights are read and whose code is not run."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="File to write, or a folder with --model all or --engine. Default: the name of "
            "the model, in the current folder.",
        ),
    ] = None,
    file_format: Annotated[
        Format,
        typer.Option("--format", help="Format: TorchScript (.pt), or ONNX for other programs."),
    ] = Format.torchscript,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Precision of the network. Default: float32.")
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(help="Compare the file with eager evaluation of the model before it is kept."),
    ] = True,
    engine: Annotated[
        ExportEngine | None,
        typer.Option(help="MD engine to write files for, which run without this package."),
    ] = None,
    topology: Annotated[
        str,
        typer.Option(
            help="Structure to simulate, with --engine: a PDB, mmCIF, SDF, MOL, XYZ or extxyz "
            "file, or a SMILES string."
        ),
    ] = "",
    backend: Annotated[
        Backend,
        typer.Option(
            help="Compute backend, with --engine: native, portable or auto. The files of the "
            "native one need this package to run."
        ),
    ] = Backend.portable,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Write a model as one file for OpenMM, LAMMPS, ASE and C, verified for each backend.

    With --checkpoint FILE, an archive of an older format is written again.

    With --format onnx, write an ONNX file (opset 18, any number of atoms and edges). Its inputs are
    edge_vectors (edges, 3), edge_index (2, edges) and atomic_numbers (atoms); its outputs are
    energy, energies (atoms), forces (atoms, 3), virial (3, 3) and gradient (edges, 3), in eV and
    angstrom.

    With --engine openmm, write a folder with a module for TorchForce, a System and a script that
    runs them.

    The file contains TorchScript, which is code. This package reads the weights and does not run
    the code of a file; with other programs, load only files that you trust.

    Exit status: 0 done, 2 bad input, or a file that computes other numbers than the model, 3 a
    package is missing.

    Example: mlff-student export --model original -o original.pt
    """
    from mlff_student.archive.export import export
    from mlff_student.archive.registry import available_models, checkpoint_path, model_name
    from mlff_student.core.errors import InputError
    from mlff_student.core.results import write_results

    if bool(model) == bool(checkpoint):
        raise InputError(
            "give either --model original (or tiny, ultra_tiny, all) or --checkpoint PATH"
        )
    if bool(engine) != bool(topology) or (engine and model == "all"):
        raise InputError(
            "--engine openmm and --topology FILE must be given together, and with one model"
        )
    if engine and file_format is Format.onnx:
        raise InputError("--engine openmm writes TorchScript only; leave out --format onnx")
    if engine:
        name = model_name(checkpoint.resolve()) if checkpoint else Path(model).stem
        folder = output or Path(f"{name}-openmm")
        _export_for_openmm(
            model or str(checkpoint),
            topology,
            folder,
            dtype.value if dtype else None,
            backend.value,
            json,
            quiet,
        )
        return
    suffix, write = ".pt", export
    if file_format is Format.onnx:
        from mlff_student.archive.onnx import export_onnx

        suffix, write = ".onnx", export_onnx
    if checkpoint:
        jobs = {model_name(checkpoint): checkpoint}
    elif model == "all":
        jobs = {name: folder / "model.pt" for name, folder in available_models().items()}
    else:
        jobs = {model: checkpoint_path(model)}
    table = Table(
        "structure", "atoms", "backend", "precision", "energy (eV/atom)", "forces (eV/angstrom)"
    )
    records = []
    for name, weights in jobs.items():
        target = output or Path(f"{name}{suffix}")
        if model == "all" and output:
            try:
                output.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"cannot make the folder {output}: {error.strerror}") from error
            target = output / f"{name}{suffix}"
        agreements = write(weights, target, (dtype or Dtype.float32).value, verify)
        for agreement in agreements:
            table.add_row(
                f"{name}: {agreement.structure}",
                str(agreement.atoms),
                agreement.backend,
                agreement.dtype,
                f"{agreement.energy_ev_per_atom:.1e}",
                f"{agreement.forces_ev_per_angstrom:.1e}",
            )
        written = {"model": name, "file": str(target)}
        records += [written | agreement._asdict() for agreement in agreements] or [written]
        if not quiet:
            show(f"wrote {target} ({target.stat().st_size / 1e6:.2f} MB)")
    if not quiet and verify:
        console.print(table)
        worst_energy = max(record["energy_ev_per_atom"] for record in records)
        worst_force = max(record["forces_ev_per_angstrom"] for record in records)
        console.print(
            f"largest difference from eager evaluation: {worst_energy:.1e} eV/atom, "
            f"{worst_force:.1e} eV/angstrom"
        )
    if json:
        write_results(json, "export", ",".join(jobs), records)


def _export_for_openmm(
    model: str,
    topology: str,
    folder: Path,
    dtype: str | None,
    backend: str,
    json: Path | None,
    quiet: bool,
) -> None:
    from mlff_student.core.results import write_results
    from mlff_student.engines.openmm import openmm_module

    files = openmm_module("files")
    agreement = files.write_openmm_files(model, topology, folder, dtype=dtype, backend=backend)
    if not quiet:
        show(
            f"wrote {', '.join(files.FILES)} in {folder}\n"
            f"difference from the archive: {agreement.energy_ev_per_atom:.1e} eV/atom, "
            f"{agreement.forces_ev_per_angstrom:.1e} eV/angstrom\n"
            f"to run it: cd {shell_path(folder)} && python simulate.py"
        )
    if json:
        write_results(json, "export", model, [{"folder": str(folder)} | agreement._asdict()])
