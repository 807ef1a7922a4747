"""LAMMPS input of a student, ready to run: data file, archive and the script of an ensemble."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ase import Atoms

from mlff_student.archive.archive import save_archive
from mlff_student.archive.registry import archive_of
from mlff_student.core.errors import InputError, MissingDependencyError, check_key
from mlff_student.core.files import atomic_write
from mlff_student.core.paths import in_checkout_or_package
from mlff_student.engines.lammps.run import boundary, check_data, element_order, write_data
from mlff_student.structures.checks import check_structure

# In a source tree the scripts lie beside the pair style; an installed package carries them inside.
FOLDERS = in_checkout_or_package("lammps", "lammps_inputs")
DATA, MODEL = "system.data", "model.pt"
VARIABLE = re.compile(r"^variable +(\w+) +index +(\"[^\"]*\"|\S+)", re.MULTILINE)
PERIODIC = ("npt", "melt")  # these change the box


class LammpsInput(NamedTuple):
    """Files written."""

    script: Path
    data: Path
    archive: Path


def templates() -> dict[str, Path]:
    """Input scripts by ensemble: melt, minimise, npt, nve, nvt.

    Raises
    ------
    MissingDependencyError : an installation without them.
    """
    for folder in FOLDERS:
        if found := {path.suffix[1:]: path for path in sorted(folder.glob("in.*"))}:
            return found
    raise MissingDependencyError(
        "the LAMMPS input scripts are not installed; pip install --no-build-isolation . in a "
        "checkout"
    )


def write_lammps_input(
    atoms: Atoms,
    model: str,
    ensemble: str,
    folder: Path,
    *,
    units: str = "metal",
    variables: Mapping[str, str] | None = None,
) -> LammpsInput:
    """Write what `lmp -in in.<ensemble>` needs into a folder.

    The script is the one in `lammps/`, after lines that define its variables for this system:
    LAMMPS does not define them again. Velocities of the atoms go into the data file, and the run
    starts from them.

    Parameters
    ----------
    atoms : the structure; LAMMPS types are its elements in alphabetical order, and its cell is
        turned into the orientation that LAMMPS wants.
    model : shipped name, checkpoint or archive.
    ensemble : "nve", "nvt", "npt", "minimise" or "melt".
    units : "metal" or "real".
    variables : others than the script's own, such as {"temperature": "350"}; their units are in the
        script.

    Raises
    ------
    InputError : unusable structure, ensemble, units or variable, or a folder that cannot be
        written; before anything is written.
    ArchiveError : no such model.
    """
    scripts = templates()
    check_key([ensemble], scripts, "ensemble")
    template = scripts[ensemble].read_text()
    defaults = {name: value.strip('"') for name, value in VARIABLE.findall(template)}
    own = {
        "data": DATA,
        "model": MODEL,
        "elements": " ".join(element_order(atoms)),
        "units": units,
        "boundary": boundary(atoms),
    }
    if "start" in defaults:
        own["start"] = "data" if atoms.has("momenta") else "create"
    chosen = dict(variables or {})
    check_key(chosen, [name for name in defaults if name not in own], f"in.{ensemble}")
    for name, value in chosen.items():
        if _is_number(defaults[name]) and not _is_number(value):
            raise InputError(f"in.{ensemble}: {name} must be a number, got {value!r}")
    archive = archive_of(model)
    check_structure(atoms, archive.metadata["elements"])
    check_data(atoms, units)
    if ensemble in PERIODIC and not atoms.pbc.all():
        raise InputError(
            f"in.{ensemble} changes the box, but the structure is periodic along "
            f"{atoms.pbc.tolist()}; give it a cell, or take nve or nvt"
        )
    written = LammpsInput(folder / f"in.{ensemble}", folder / DATA, folder / MODEL)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}") from error
    write_data(atoms, written.data, units)
    with atomic_write(written.archive) as temporary:
        save_archive(archive, temporary)
    lines = [f'variable {name:<11} index "{value}"' for name, value in (own | chosen).items()]
    head = f"# {atoms.get_chemical_formula()}, {len(atoms)} atoms\n" + "\n".join(lines)
    with atomic_write(written.script) as temporary:
        temporary.write_text(f"{head}\n\n{template}")
    return written


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
