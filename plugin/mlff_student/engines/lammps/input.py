"""Writes LAMMPS input for a student: the data file, the archive and the script of an ensemble."""

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
from mlff_student.core.installation import build_command
from mlff_student.core.paths import in_checkout_or_package
from mlff_student.engines.lammps.run import boundary, check_data, element_order, write_data
from mlff_student.structures.checks import allows_charges, check_structure

# The scripts are beside the pair style in a source tree, and inside an installed package.
FOLDERS = in_checkout_or_package("lammps", "lammps_inputs")
DATA, MODEL = "system.data", "model.pt"
VARIABLE = re.compile(r"^variable +(\w+) +index +(\"[^\"]*\"|\S+)", re.MULTILINE)
ATOM_STYLE = re.compile(r"^atom_style +(\w+)", re.MULTILINE)
WORD = re.compile(r"[A-Za-z0-9.+-]+")
PERIODIC = ("npt", "melt")  # scripts that change the box


class LammpsInput(NamedTuple):
    """Paths of the files that `write_lammps_input` writes.

    Attributes
    ----------
    script : Path
        Input script.
    data : Path
        Data file with the atoms.
    archive : Path
        Archive of the student.
    """

    script: Path
    data: Path
    archive: Path


def templates() -> dict[str, Path]:
    """Return the paths of the input scripts by ensemble: melt, minimise, npt, nve, nvt, tip3p.

    Raises
    ------
    MissingDependencyError
        The scripts are not installed.
    """
    for folder in FOLDERS:
        if scripts := {path.suffix[1:]: path for path in sorted(folder.glob("in.*"))}:
            return scripts
    raise MissingDependencyError(
        f"the LAMMPS input scripts are not installed; to install them: {build_command()}"
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
    """Write the files that `lmp -in in.<ensemble>` needs into a folder.

    The script is a copy of the script in `lammps/` after lines that set its variables for this
    system. The data file contains the velocities of the atoms, if they have any; the run then
    starts with them.

    Parameters
    ----------
    atoms : Atoms
        The structure. Its elements in alphabetical order are the atom types of LAMMPS, and its cell
        is rotated to the orientation that LAMMPS requires.
    model : str
        Shipped name, or path of a checkpoint or archive.
    ensemble : str
        Script: "nve", "nvt", "npt", "minimise", "melt" or "tip3p".
    folder : Path
        Folder that receives the files.
    units : str
        Units of the LAMMPS run: "metal" or "real".
    variables : Mapping[str, str], optional
        Values of variables of the script, such as {"temperature": "350"}; the comments of the
        script give their units.

    Raises
    ------
    InputError
        The structure, ensemble, units or a variable is unusable, or the folder cannot be written.
        Nothing is written in this case.
    ArchiveError
        The model does not exist or is unusable.
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
    changes = dict(variables or {})
    check_key(changes, [name for name in defaults if name not in own], f"in.{ensemble}")
    for name, value in changes.items():
        if _is_number(defaults[name]) and not _is_number(value):
            raise InputError(f"in.{ensemble}: {name} must be a number, got {value!r}")
        if not WORD.fullmatch(value):  # LAMMPS would take a part of it for a command
            raise InputError(f"in.{ensemble}: {name} must be a word, got {value!r}")
    archive = archive_of(model)
    charged = allows_charges(archive.metadata)
    check_structure(atoms, archive.metadata["elements"], charged=charged)
    check_data(atoms, units)
    if ensemble in PERIODIC and not atoms.pbc.all():
        raise InputError(
            f"in.{ensemble} changes the box, but the structure is periodic along "
            f"{atoms.pbc.tolist()}; give it a cell, or use nve or nvt"
        )
    written = LammpsInput(folder / f"in.{ensemble}", folder / DATA, folder / MODEL)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}") from error
    atom_style = ATOM_STYLE.findall(template)[0]
    write_data(atoms, written.data, units, atom_style)
    with atomic_write(written.archive) as temporary:
        save_archive(archive, temporary)
    lines = [f'variable {name:<11} index "{value}"' for name, value in (own | changes).items()]
    head = f"# {atoms.get_chemical_formula()}, {len(atoms)} atoms\n" + "\n".join(lines)
    with atomic_write(written.script) as temporary:
        temporary.write_text(f"{head}\n\n{template}")
    return written


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
