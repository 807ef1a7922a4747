"""Runs molecular dynamics in the engine of the settings, and resumes it."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ase.calculators.calculator import Calculator
from rich.progress import Progress, TextColumn

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
    """Import and return the engine of a run.

    Parameters
    ----------
    settings : MDSettings
        Settings of the run.
    calculator : Calculator, optional
        ASE calculator that is used instead of the model of the settings.

    Raises
    ------
    MissingDependencyError
        The engine is not installed.
    InputError
        The engine does not have the platform or the ensemble.
    """
    if settings.engine == "openmm":
        openmm = openmm_module("run")
        openmm.find_platform(settings.platform)
        return openmm.run_openmm
    if settings.engine == "ase":
        if settings.ensemble == "npt":
            raise InputError("npt runs in openmm and lammps; the engine ase has nve and nvt")
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
    engine: Engine | None = None,
    identity: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Minimise, thermalise and run MD, or resume the run if the folder contains a part of it.

    Parameters
    ----------
    settings : MDSettings
        Settings of the run.
    output : Path
        Folder that receives run.dcd, run.pdb, run.csv, run.json and files of the engine.
    quiet : bool
        Whether to show no progress bar.
    calculator : Calculator, optional
        ASE calculator that is used instead of the model of the settings, which is then only a name.
    engine : Engine, optional
        Engine that is used instead of the engine of the settings.
    identity : Mapping[str, Any], optional
        Numbers and strings that determine the run in addition to the settings, such as parameters
        of `engine`. A folder whose run has another identity is an error.

    Returns
    -------
    dict[str, Any]
        Flat record of the run: the settings, `identity`, atoms, ms_per_step (wall time of a
        production step, ms) and ns_per_day.

    Raises
    ------
    InputError
        The structure is unusable, or the folder contains another run.
    MissingDependencyError
        The engine is not installed.
    StudentError
        The engine stopped with an error.
    """
    folder = RunFolder(output)
    extra = dict(identity or {})
    identity = _identity(settings, calculator) | extra
    if folder.settings.exists():
        stored = json.loads(folder.settings.read_text())
        if changed := [key for key in identity | stored if stored.get(key) != identity.get(key)]:
            raise InputError(
                f"{output} contains another run ({', '.join(changed)} differ); "
                "choose another --output or remove that folder"
            )
        if folder.summary.exists():
            return json.loads(folder.summary.read_text())
    engine = engine or engine_of(settings, calculator)
    structure = in_engine_orientation(read_structure(settings.structure))
    if not folder.settings.exists():
        _make_folder(settings, structure, folder, identity, calculator)

    with _progress_bar(settings, quiet) as report:
        ms_per_step = engine(settings, structure, folder, report)
    join_segments(folder, settings.every, periodic=bool(structure.atoms.pbc.all()))
    record = (
        asdict(settings)
        | extra
        | {
            "atoms": len(structure.atoms),
            "ms_per_step": ms_per_step,
            "ns_per_day": ns_per_day(settings.timestep_fs, ms_per_step),
        }
    )
    write_json(folder.summary, record)
    for segment in folder.segments():
        segment.trajectory.unlink(missing_ok=True)
        segment.thermo.unlink()
    return record


def _identity(settings: MDSettings, calculator: Calculator | None) -> dict[str, Any]:
    """Return the settings and, for a student, the hash of its weights."""
    if calculator is not None or is_teacher(settings.model):
        return asdict(settings)
    return asdict(settings) | {"model_sha256": sha256(model_file(settings.model))}


def _make_folder(
    settings: MDSettings,
    structure: Structure,
    folder: RunFolder,
    identity: dict[str, Any],
    calculator: Calculator | None,
) -> None:
    """Check the run, then make its folder with the student's archive, topology and identity."""
    archive = None
    if calculator is None and not (settings.engine == "ase" and is_teacher(settings.model)):
        archive = archive_of(settings.model)
        check_structure(structure.atoms, archive.metadata["elements"])
    if settings.ensemble == "npt" and not structure.atoms.pbc.all():
        raise InputError("npt needs a periodic box; the structure has none")
    if structure.atoms.pbc.any() and not structure.atoms.pbc.all():
        raise InputError(
            f"the structure is periodic along {structure.atoms.pbc.tolist()}; this command runs "
            "open or fully periodic systems: use the ASE calculator or a LAMMPS script for slabs "
            "and wires"
        )
    for path in (folder.archive, folder.topology, folder.trajectory, folder.thermo):
        if path.exists():
            raise InputError(
                f"{path} exists and does not belong to this run; choose another --output"
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


@contextmanager
def _progress_bar(settings: MDSettings, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Show a progress bar of the production steps with the speed in ns/day."""
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[speed]}"))
    with Progress(*columns, disable=quiet) as progress:
        bar = progress.add_task(
            f"{settings.engine}: minimising, thermalising", total=settings.steps, speed=""
        )
        start: tuple[float, int] | None = None

        def report(step: int) -> None:
            nonlocal start
            now = time.monotonic()
            start = start or (now, step)
            seconds, steps = now - start[0], step - start[1]
            speed = (
                f"{ns_per_day(settings.timestep_fs, 1e3 * seconds / steps):.2f} ns/day"
                if steps
                else ""
            )
            progress.update(
                bar,
                completed=step,
                description=f"{settings.engine}: {settings.ensemble.upper()}",
                speed=speed,
            )

        yield report
