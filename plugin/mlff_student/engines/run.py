"""Run molecular dynamics in the engine that the settings name, and resume it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ase.calculators.calculator import Calculator

from mlff_student.archive.archive import save_archive
from mlff_student.archive.registry import archive_of, model_file
from mlff_student.core.errors import InputError
from mlff_student.core.files import atomic_write, sha256
from mlff_student.core.results import write_json
from mlff_student.engines.openmm import openmm_module
from mlff_student.engines.protocol import (
    Engine,
    MDSettings,
    RunFolder,
    join_segments,
    ns_per_day,
    progress_bar,
)
from mlff_student.structures.checks import check_structure
from mlff_student.structures.reading import (
    Structure,
    in_engine_orientation,
    read_structure,
    write_topology,
)
from mlff_student.teachers.registry import is_teacher


def engine_of(settings: MDSettings, calculator: Calculator | None = None) -> Engine:
    """The engine of a run; imported only here, where it is used.

    Parameters
    ----------
    calculator : that ASE takes instead of the settings' model.

    Raises
    ------
    MissingDependencyError : it is not installed.
    InputError : a platform that OpenMM does not have.
    """
    if settings.engine == "openmm":
        openmm = openmm_module("run")
        openmm.find_platform(settings.platform)
        return openmm.run_openmm
    if settings.engine == "ase":
        from mlff_student.engines.ase.run import engine_with

        return engine_with(calculator)
    from mlff_student.engines.lammps.plugin import lammps_executable, plugin_path
    from mlff_student.engines.lammps.run import run_lammps

    lammps_executable()
    plugin_path()
    return run_lammps


def run_md(
    settings: MDSettings,
    output: Path,
    quiet: bool = False,
    calculator: Calculator | None = None,
) -> dict[str, Any]:
    """Minimise, thermalise and run; resume if the folder holds this run unfinished.

    Parameters
    ----------
    output : folder; receives run.dcd, run.pdb, run.csv, run.json, and what the engine keeps.
    quiet : no progress bar.
    calculator : that ASE takes instead of the settings' model, which is then no more than a name.

    Returns
    -------
    Flat record of the run: ms_per_step, ns_per_day and the settings.

    Raises
    ------
    InputError : unusable structure, or a folder that holds another run.
    """
    folder = RunFolder(output)
    identity = _identity(settings, calculator)
    if folder.settings.exists():
        found = json.loads(folder.settings.read_text())
        if changed := [key for key in identity | found if found.get(key) != identity.get(key)]:
            raise InputError(
                f"{output} holds another run ({', '.join(changed)} differ); "
                "choose another --output or remove that folder"
            )
        if folder.summary.exists():
            return json.loads(folder.summary.read_text())
    engine = engine_of(settings, calculator)
    structure = in_engine_orientation(read_structure(settings.structure))
    if not folder.settings.exists():
        begin(settings, structure, folder, identity, calculator)

    with progress_bar(settings, quiet) as report:
        ms_per_step = engine(settings, structure, folder, report)
    join_segments(folder, settings.every, periodic=bool(structure.atoms.pbc.all()))
    record = asdict(settings) | {
        "atoms": len(structure.atoms),
        "ms_per_step": ms_per_step,
        "ns_per_day": ns_per_day(settings.timestep_fs, ms_per_step),
    }
    write_json(folder.summary, record)
    for segment in folder.segments():
        segment.trajectory.unlink(missing_ok=True)
        segment.thermo.unlink()
    return record


def _identity(settings: MDSettings, calculator: Calculator | None) -> dict[str, Any]:
    """What decides a run: its settings, and the weights that the files they name hold."""
    models = {"guide": settings.guide}
    if calculator is None and not is_teacher(settings.model):
        models["model"] = settings.model
    return asdict(settings) | {
        f"{name}_sha256": sha256(model_file(model)) for name, model in models.items() if model
    }


def begin(
    settings: MDSettings,
    structure: Structure,
    folder: RunFolder,
    identity: dict[str, Any],
    calculator: Calculator | None = None,
) -> None:
    """Check everything, then make the folder with the archive (where a student runs), the topology
    and what decides the run.
    """
    archive = None
    if calculator is None and not (settings.engine == "ase" and is_teacher(settings.model)):
        archive = archive_of(settings.model)
        check_structure(structure.atoms, archive.metadata["elements"])
    if settings.ensemble == "npt" and not structure.atoms.pbc.all():
        raise InputError("npt needs a periodic box; the structure has none")
    if structure.atoms.pbc.any() and not structure.atoms.pbc.all():
        raise InputError(
            f"periodic along {structure.atoms.pbc.tolist()}: this command runs open or fully "
            "periodic systems; use the ASE calculator, or LAMMPS by hand, for slabs and wires"
        )
    for path in (folder.archive, folder.topology, folder.trajectory, folder.thermo):
        if path.exists():
            raise InputError(
                f"{path} exists and is of no run with these settings; choose another --output"
            )
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        if archive:
            with atomic_write(folder.archive) as temporary:
                save_archive(archive, temporary)
        write_topology(structure, folder.topology)
        write_json(folder.settings, identity)
    except OSError as error:
        raise InputError(f"cannot write to {folder.path}: {error.strerror or error}") from error
