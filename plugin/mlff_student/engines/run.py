"""Runs molecular dynamics in the engine of the settings, and resumes it."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ase.calculators.calculator import Calculator
from rich.progress import Progress, TextColumn

from mlff_student.archive.archive import Archive, require_torch, save_archive
from mlff_student.archive.registry import archive_of, model_file
from mlff_student.core.errors import InputError, InterruptedRunError
from mlff_student.core.files import atomic_write, only_writer, sha256
from mlff_student.core.results import read_json, write_json
from mlff_student.engines.openmm import openmm_module
from mlff_student.engines.protocol import (
    Engine,
    MDSettings,
    RunFolder,
    damaged_run,
    join_segments,
    ns_per_day,
)
from mlff_student.structures.checks import (
    allows_charges,
    check_electrons,
    check_masses,
    check_structure,
)
from mlff_student.structures.reading import (
    Structure,
    in_engine_orientation,
    read_structure,
    write_topology,
)
from mlff_student.teachers.registry import is_teacher, reads_charge


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
        The structure is unusable, the folder contains another run, or another process runs in it.
    InterruptedRunError
        The disk is full, or files of the run are damaged.
    MissingDependencyError
        The engine is not installed.
    StudentError
        The engine stopped with an error.
    """
    folder = RunFolder(output)
    extra = dict(identity or {})
    identity = _identity(settings, calculator) | extra
    begun = _has_begun(folder, identity)
    if begun and folder.summary.exists():
        return _read_summary(folder)
    engine = engine or engine_of(settings, calculator)
    structure = in_engine_orientation(read_structure(settings.structure))
    archive = None
    if not (begun and folder.archive.exists()):
        archive = _checked_archive(settings, structure, calculator)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {folder.path}: {error.strerror or error}") from error
    with _only_run(folder):
        # Another process may have begun or ended the run meanwhile.
        if _has_begun(folder, identity) and folder.summary.exists():
            return _read_summary(folder)
        _complete_folder(folder, identity, structure, archive)
        with _progress_bar(settings, quiet) as report:
            ms_per_step = engine(settings, structure, folder, report)
        frames = join_segments(folder, settings.every, periodic=bool(structure.atoms.pbc.all()))
        if frames != settings.steps // settings.every:
            raise damaged_run(
                folder,
                f"its segments have {frames} frames, expected {settings.steps // settings.every}",
            )
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


@contextmanager
def _only_run(folder: RunFolder) -> Iterator[None]:
    """Lock the folder of a run, and remove the temporary files of a run that was killed.

    Raises
    ------
    InputError
        Another process runs in the folder, or the folder cannot be written to.
    InterruptedRunError
        The disk is full or fails during the run.
    """
    try:
        with only_writer(folder.path, "wait for it, or choose another --output"):
            for temporary in folder.path.glob(".*.[0-9]*.part*"):
                temporary.unlink()
            yield
    except OSError as error:
        name = f" ({error.filename})" if error.filename else ""
        raise InterruptedRunError(
            f"the run in {folder.path} stopped: {error.strerror or error}{name}; the same command "
            "resumes it"
        ) from error


def _has_begun(folder: RunFolder, identity: dict[str, Any]) -> bool:
    """Return whether the folder contains a part of this run.

    Raises
    ------
    InputError
        The folder contains another run, or files of the user that the run would overwrite.
    """
    if not folder.settings.exists():
        for path in (folder.archive, folder.topology, folder.trajectory, folder.thermo):
            if path.exists():
                raise InputError(
                    f"{path} exists and does not belong to this run; choose another --output"
                )
        return False
    stored = read_json(folder.settings)
    if changed := [key for key in identity | stored if stored.get(key) != identity.get(key)]:
        raise InputError(
            f"{folder.path} contains another run ({', '.join(changed)} differ); "
            "choose another --output or remove that folder"
        )
    return True


def _read_summary(folder: RunFolder) -> dict[str, Any]:
    """Read the record of a finished run."""
    record = read_json(folder.summary)
    for key in ("atoms", "ms_per_step", "ns_per_day"):
        # The speed is null if the run was killed after its last step and then completed.
        if not isinstance(record.get(key, "missing"), int | float | None):
            raise damaged_run(folder, f"{folder.summary} has {key} {record.get(key, 'missing')}")
    return record


def _identity(settings: MDSettings, calculator: Calculator | None) -> dict[str, Any]:
    """Return the settings and, for a student, the hash of its weights."""
    if calculator is not None or is_teacher(settings.model):
        return asdict(settings)
    return asdict(settings) | {"model_sha256": sha256(model_file(settings.model))}


def _checked_archive(
    settings: MDSettings, structure: Structure, calculator: Calculator | None
) -> Archive | None:
    """Check that the model can run the structure; return its archive if it is a student."""
    archive = None
    if calculator is None and not (settings.engine == "ase" and is_teacher(settings.model)):
        archive = archive_of(settings.model)
        check_structure(
            structure.atoms,
            archive.metadata["elements"],
            charged=allows_charges(archive.metadata),
        )
    elif is_teacher(settings.model) and not reads_charge(settings.model):
        check_electrons(structure.atoms)
    check_masses(structure.atoms)
    if settings.engine == "lammps":
        from mlff_student.engines.lammps.run import check_data

        check_data(structure.atoms, "metal")
    if settings.ensemble == "npt" and not structure.atoms.pbc.all():
        raise InputError("npt needs a periodic box; the structure has none")
    if structure.atoms.pbc.any() and not structure.atoms.pbc.all():
        raise InputError(
            f"the structure is periodic along {structure.atoms.pbc.tolist()}; this command runs "
            "open or fully periodic systems: use the ASE calculator or a LAMMPS script for slabs "
            "and wires"
        )
    return archive


def _complete_folder(
    folder: RunFolder, identity: dict[str, Any], structure: Structure, archive: Archive | None
) -> None:
    """Write the settings, the topology and the archive of a run, if they are not there.

    The settings are first: they make the folder that of this run, also after a kill at any moment.
    """
    if not folder.settings.exists():
        write_json(folder.settings, identity)
    if not folder.topology.exists():
        with atomic_write(folder.topology) as temporary:
            write_topology(structure, temporary)
    if archive and not folder.archive.exists():
        if identity["engine"] == "lammps" and identity["backend"] == "portable":
            require_torch("the portable backend of LAMMPS")
            from mlff_student.archive.scripting import with_script

            archive = with_script(archive)
        with atomic_write(folder.archive) as temporary:
            save_archive(archive, temporary)


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
