"""The archive, a TorchScript file that holds one model with its metadata, and its checks."""

import hashlib
import io
import json
import platform
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from os.path import isfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mlff_student.archive.contents import (
    definitions,
    difference,
    foreign_code,
    members_of,
    read_members,
    read_pickle,
    tensors_of,
    write_members,
)
from mlff_student.archive.restore import restore_student
from mlff_student.archive.scripting import script
from mlff_student.core.errors import ArchiveError
from mlff_student.core.version import __version__
from mlff_student.model.neighbours import neighbour_edges
from mlff_student.model.student import (
    DTYPES,
    Student,
    StudentConfig,
    dtype_name,
    forces_from_gradient,
    parameter_count,
    virial_from_gradient,
)

FORMAT = "mlff-student-archive"
FORMAT_VERSION = 2
METADATA_FILE = "metadata.json"
UNITS = {"length": "angstrom", "energy": "eV"}
MAX_LAYERS = 32  # of a student whose code is compared
CONFIG = tuple(field.name for field in fields(StudentConfig))  # keys of the metadata
REQUIRED: dict[str, Any] = {
    "name": str,
    "teacher": str,
    "dtype": str,
    "parameters": int,
    "weights_sha256": str,
    "self_check": dict,
    "accuracy": dict | None,
    "domain": dict | None,
    "units": dict,
}

# Distorted formamide, the molecule of the self-check. It has four elements and is not planar.
SELF_CHECK_NUMBERS = [6, 8, 7, 1, 1, 1]
SELF_CHECK_POSITIONS = [
    [0.12, 0.38, 0.05],
    [1.21, 0.24, -0.11],
    [-0.94, -0.56, 0.08],
    [-0.42, 1.46, 0.13],
    [-0.64, -1.50, -0.02],
    [-1.90, -0.33, 0.21],
]
# Ten times the rounding of float32 arithmetic on another machine.
SELF_CHECK_ENERGY_TOLERANCE = 1e-4  # eV
SELF_CHECK_FORCE_TOLERANCE = 1e-3  # eV/angstrom
LARGEST_ORDINARY_FORCE = 100.0  # eV/angstrom; beyond it the tolerances grow with the force


class ArchiveModule(nn.Module):
    """Module that is compiled: a student, a neighbour search, and facts that clients read.

    Energies are in eV, lengths in angstrom. The methods compute gradients themselves, so they may
    be called under no_grad or in inference mode.

    Parameters
    ----------
    student : Student
        Student to compile.
    config : StudentConfig
        Architecture of the student.
    name : str
        Name of the model.
    teacher : str
        Name of the teacher.
    """

    def __init__(self, student: Student, config: StudentConfig, name: str, teacher: str) -> None:
        super().__init__()
        self.student = student
        self.format_version = FORMAT_VERSION
        self.name = name
        self.parameter_count = parameter_count(student)
        self.elements = list(config.elements)
        self.cutoff = config.cutoff
        self.teacher = teacher
        self.dtype_name = dtype_name(student.dtype)

    def species(self, atomic_numbers: Tensor) -> Tensor:
        """Return the index of each atom's element in the student's elements.

        Parameters
        ----------
        atomic_numbers : Tensor
            (N,) int64.

        Returns
        -------
        Tensor
            (N,) int64.

        Raises
        ------
        RuntimeError
            An element is unknown to the student.
        """
        known = self.student.species_of
        species = known[atomic_numbers.clamp(0, known.shape[0] - 1)]
        if bool((species < 0).any()):
            unknown = int(atomic_numbers[species < 0][0])
            raise RuntimeError(
                "mlff_student: atomic number "
                + str(unknown)
                + " is unknown to this student; it knows "
                + ", ".join(self.elements)
            )
        return species

    def forward(
        self, positions: Tensor, atomic_numbers: Tensor, cell: Tensor, pbc: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return energy, forces and virial of one structure.

        Parameters
        ----------
        positions : Tensor
            (N, 3) float32 or float64, angstrom.
        atomic_numbers : Tensor
            (N,) int64.
        cell : Tensor
            (3, 3), lattice vectors as rows, angstrom.
        pbc : Tensor
            (3,) bool, directions in which the structure is periodic.

        Returns
        -------
        energy : Tensor
            () float64, eV.
        forces : Tensor
            (N, 3) float64, contiguous, eV/angstrom.
        virial : Tensor
            (3, 3) float64, - sum r_ij (x) dE/dr_ij = - volume * stress, eV.

        Raises
        ------
        RuntimeError
            An unknown element, positions or a cell that are not finite, or two atoms at one place.
        """
        energies, forces, virial = self.evaluate(positions, atomic_numbers, cell, pbc)
        return energies.sum(), forces, virial

    @torch.jit.export
    def evaluate(
        self, positions: Tensor, atomic_numbers: Tensor, cell: Tensor, pbc: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `forward` returns, with the energy of each atom (N,) in place of the sum."""
        if positions.shape[0] != atomic_numbers.shape[0]:
            raise RuntimeError(
                "mlff_student: "
                + str(positions.shape[0])
                + " positions, but "
                + str(atomic_numbers.shape[0])
                + " atomic numbers"
            )
        if not bool(torch.isfinite(positions).all()):
            raise RuntimeError("mlff_student: a position is NaN or infinite")
        if not bool(torch.isfinite(cell[pbc]).all()):
            raise RuntimeError("mlff_student: the periodic cell is NaN or infinite")
        edge_vectors, edge_index = neighbour_edges(
            positions.to(torch.float64), cell.to(torch.float64), pbc, self.cutoff
        )
        atoms = positions.shape[0]
        energies, gradient = self.from_edges(edge_vectors, edge_index, atomic_numbers, atoms)
        # Close atoms are no error: a minimiser tries such steps, and the repulsion corrects them.
        if not bool(torch.isfinite(energies).all()):
            raise RuntimeError("mlff_student: an energy is not finite; do two atoms coincide?")
        forces = forces_from_gradient(gradient, edge_index, atoms)
        return energies, forces, virial_from_gradient(gradient, edge_vectors)

    @torch.jit.export
    def from_edges(
        self, edge_vectors: Tensor, edge_index: Tensor, atomic_numbers: Tensor, n_local: int
    ) -> tuple[Tensor, Tensor]:
        """Return energies of atoms and dE/d edge_vectors, for an engine with a neighbour list.

        Parameters
        ----------
        edge_vectors : Tensor
            (E, 3) float32 or float64, x_j - x_i of edge i <- j, all shorter than the cutoff,
            angstrom.
        edge_index : Tensor
            (2, E) int64, [receiver, sender].
        atomic_numbers : Tensor
            (N,) int64.
        n_local : int
            Number of atoms that have an energy. They are the first ones; the others only send.

        Returns
        -------
        energies : Tensor
            (n_local,) float64, eV.
        gradient : Tensor
            (E, 3) float64, eV/angstrom.

        Raises
        ------
        RuntimeError
            An element is unknown to the student.
        """
        species = self.species(atomic_numbers)
        return self.student(edge_vectors.to(torch.float64), edge_index, species, n_local)


class Archive(NamedTuple):
    """A compiled model with its metadata.

    Attributes
    ----------
    module : torch.jit.ScriptModule
        Compiled module with the methods of `ArchiveModule`.
    metadata : dict[str, Any]
        Facts of the model, as `build_archive` gathers them.
    """

    module: torch.jit.ScriptModule
    metadata: dict[str, Any]


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of all weights and reference energies, in the order of their names.

    Parameters
    ----------
    tensors : Mapping[str, Tensor]
        The `state_dict` of the module of an archive.
    """
    digest = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def self_check_numbers(module: nn.Module) -> dict[str, Any]:
    """Evaluate the self-check molecule.

    Parameters
    ----------
    module : nn.Module
        Module with the `forward` of `ArchiveModule`.

    Returns
    -------
    dict[str, Any]
        "atomic_numbers" (6), "positions" (6, 3) in angstrom, "energy" in eV and "forces" (6, 3) in
        eV/angstrom, as plain numbers and lists.
    """
    energy, forces, _ = module(
        torch.tensor(SELF_CHECK_POSITIONS, dtype=torch.float64),
        torch.tensor(SELF_CHECK_NUMBERS),
        torch.zeros(3, 3, dtype=torch.float64),
        torch.zeros(3, dtype=torch.bool),
    )
    return {
        "atomic_numbers": SELF_CHECK_NUMBERS,
        "positions": SELF_CHECK_POSITIONS,
        "energy": float(energy),
        "forces": forces.tolist(),
    }


def build_archive(
    student: Student, config: StudentConfig, name: str, card: dict[str, Any]
) -> Archive:
    """Compile a student and gather its metadata.

    Parameters
    ----------
    student : Student
        Student to compile.
    config : StudentConfig
        Architecture of the student.
    name : str
        Name of the model.
    card : dict[str, Any]
        Content of the checkpoint's card.json. Teacher, hash of the dataset, recipe, measured
        accuracy and domain are copied from it.
    """
    student = student.eval().requires_grad_(False)
    teacher = str(card.get("teacher", "unknown"))
    module = script(ArchiveModule(student, config, name, teacher))
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": name,
        "parameters": parameter_count(student),
        **config.as_dict(),
        "units": UNITS,
        "dtype": dtype_name(student.dtype),
        "teacher": teacher,
        "dataset_sha256": card.get("dataset_sha256"),
        "recipe": card.get("recipe"),
        "accuracy": card.get("accuracy"),
        "domain": card.get("domain"),
        "weights_sha256": weights_hash(module.state_dict()),
        "self_check": self_check_numbers(module),
        "versions": {
            "mlff_student": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    return Archive(module, metadata)


def save_archive(archive: Archive, path: Path) -> None:
    """Write an archive as a TorchScript file that contains the metadata.

    Parameters
    ----------
    archive : Archive
        Archive to write.
    path : Path
        File to write.
    """
    # torch itself ends the process if the disk is full.
    path.write_bytes(write_members(_members(archive.module, json.dumps(archive.metadata))))


def _members(module: nn.Module, metadata: str) -> dict[str, bytes]:
    """Return the members of the file of a module, without the positions in the Python source."""
    content = io.BytesIO()
    torch.jit.save(module, content, _extra_files={METADATA_FILE: metadata})
    members = members_of(content.getvalue())
    return {name: data for name, data in members.items() if not name.endswith(".debug_pkl")}


def load_archive(path: Path, device: str = "cpu", trust: bool = False) -> Archive:
    """Read an archive and check it.

    A TorchScript file contains code, which may do anything that this process may do. Therefore
    nothing in the file is run: its code is compared with the code that this version writes for the
    same model, and the module that is returned was compiled here, with the weights of the file.

    Parameters
    ----------
    path : Path
        Archive file.
    device : str
        Device of torch that the model is loaded to, for example "cpu" or "cuda".
    trust : bool
        Whether to run code in the file that this version does not write. Use this only for files
        from people whom you trust.

    Raises
    ------
    ArchiveError
        The file is missing, damaged or not an archive; it has another format version; it contains
        other code than this version writes, and `trust` is false; the metadata contradict the
        module; the weights are not finite or do not have the stored hash; or the self-check
        molecule has another energy or other forces.
    """
    path = Path(path)
    if not isfile(path):
        raise ArchiveError(
            f"there is no file {path}; write one with: python export.py --model original"
        )
    contents = read_archive(path)
    module = _run_foreign_code(path, contents) if trust else _compile_again(path, contents)
    module = module.to(device)
    try:
        check_reference_numbers(path, module, contents.metadata["self_check"], device)
    except ArchiveError:
        raise
    except Exception as error:  # foreign code
        detail = (str(error).strip().splitlines() or [""])[-1]
        raise ArchiveError(
            f"{path} does not run and is damaged ({detail}); export it again"
        ) from error
    return Archive(module, contents.metadata)


class ArchiveContents(NamedTuple):
    """What an archive contains; nothing of it was run.

    Attributes
    ----------
    members : dict[str, bytes]
        Members of the zip file.
    metadata : dict[str, Any]
        Facts of the model, as `build_archive` gathers them.
    """

    members: dict[str, bytes]
    metadata: dict[str, Any]


def read_archive(path: Path) -> ArchiveContents:
    """Read the members and the metadata of an archive, and check the metadata by themselves.

    Parameters
    ----------
    path : Path
        Archive file.

    Raises
    ------
    ArchiveError
        The file is damaged or not an archive, or has another format version.
    """
    try:
        members = read_members(path)
        if "constants.pkl" not in members:
            raise ValueError("it contains no code")
    except ValueError as error:
        raise ArchiveError(
            f"{path} is not a TorchScript archive or is damaged ({error}); export it again, or "
            "copy it again"
        ) from error
    try:
        metadata = json.loads(members[f"extra/{METADATA_FILE}"])
    except (KeyError, ValueError, RecursionError) as error:
        raise ArchiveError(f"{path} is TorchScript, but not an {FORMAT}") from error
    if not isinstance(metadata, dict):
        raise ArchiveError(f"{path} is TorchScript, but not an {FORMAT}")
    if metadata.get("format") != FORMAT or metadata.get("format_version") != FORMAT_VERSION:
        raise ArchiveError(
            f"{path}: expected {FORMAT} version {FORMAT_VERSION}, found "
            f"{metadata.get('format')} version {metadata.get('format_version')}; export it again"
        )
    if missing := {*REQUIRED, *CONFIG} - metadata.keys():
        raise ArchiveError(
            f"{path}: {' and '.join(sorted(missing))} is missing in the metadata; export it again"
        )
    wrong = [key for key, kinds in REQUIRED.items() if not isinstance(metadata[key], kinds)]
    check, forces = metadata["self_check"], [[0.0] * 3] * len(SELF_CHECK_NUMBERS)
    if not wrong and (
        check.get("atomic_numbers") != SELF_CHECK_NUMBERS
        or check.get("positions") != SELF_CHECK_POSITIONS
        or not isinstance(check.get("energy"), float)
        or not _same_shape(check.get("forces"), forces)
    ):
        wrong = ["self_check"]
    if not wrong:
        wrong = ["units"] * (metadata["units"] != UNITS) + ["dtype"] * (
            metadata["dtype"] not in DTYPES
        )
    if wrong:
        raise ArchiveError(
            f"{path}: the metadata are damaged ({wrong[0]} is {str(metadata[wrong[0]])[:80]}); "
            "export it again"
        )
    return ArchiveContents(members, metadata)


def _same_shape(value: Any, template: Any) -> bool:
    """Return whether a value consists of lists and numbers as the template does."""
    if not isinstance(template, list):
        return isinstance(value, float | int)
    return (
        isinstance(value, list)
        and len(value) == len(template)
        and all(map(_same_shape, value, template))
    )


@lru_cache
def written_code(layers: int) -> dict[str, bytes]:
    """Return the members of an archive that this version writes for a student.

    Except for the numbers that `definitions` leaves out, the code depends on nothing but the number
    of layers.

    Parameters
    ----------
    layers : int
        Number of message-passing layers.
    """
    config = StudentConfig(channels=16, layers=layers, radial_functions=1)
    return _members(script(ArchiveModule(Student(config).eval(), config, "", "")), "")


def read_student(
    path: Path, contents: ArchiveContents, dtype: torch.dtype
) -> tuple[Student, StudentConfig]:
    """Make a student of the numbers in an archive; its code is not run.

    Parameters
    ----------
    path : Path
        Name of the file, for messages.
    contents : ArchiveContents
        What is in the file.
    dtype : torch.dtype
        Precision of the student.

    Returns
    -------
    student : Student
        Student in evaluation mode, whose weights need no gradients.
    config : StudentConfig
        Architecture of the student.

    Raises
    ------
    ArchiveError
        The metadata contradict the weights, or the weights do not have the stored hash.
    """
    metadata = contents.metadata
    try:
        tensors = tensors_of(read_pickle(contents.members))
        _check_hash(path, tensors, metadata)
        weights = {name.removeprefix("student."): value for name, value in tensors.items()}
        return restore_student({key: metadata[key] for key in CONFIG}, weights, dtype)
    except ValueError as error:
        raise ArchiveError(
            f"{path} was changed or is damaged ({error}); export it again"
        ) from error


def _check_hash(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> None:
    if (digest := weights_hash(tensors)) != metadata["weights_sha256"]:
        raise ArchiveError(
            f"{path}: the weights have the hash {digest[:12]}, the metadata have "
            f"{metadata['weights_sha256'][:12]}; the file was changed, export it again"
        )


def _compile_again(path: Path, contents: ArchiveContents) -> torch.jit.ScriptModule:
    """Return the module of an archive, compiled from the code of this version.

    Raises
    ------
    ArchiveError
        The archive contains other code, or its metadata contradict its module.
    """
    members, metadata = contents
    try:
        stored = read_pickle(members)
        tensors = tensors_of(stored)
    except ValueError:  # a module of another program, or damaged
        stored, tensors = None, {}
    layers = len({name.split(".")[2] for name in tensors if name.startswith("student.blocks.")})
    expected = written_code(min(max(1, layers), MAX_LAYERS))
    foreign = foreign_code(definitions(members), definitions(expected))
    if foreign or members["constants.pkl"] != expected["constants.pkl"]:
        raise ArchiveError(
            f"{path} contains code that this version of mlff-student ({__version__}) does not "
            f"write ({foreign or 'constants.pkl'}); nothing of it was run. If another version "
            "wrote the file, write it again with the code of this version: mlff-student export "
            f"--checkpoint {path} -o NEW.pt. To run the code of a file whose author you trust, "
            "load it in Python with trust=True"
        )
    student, config = read_student(path, contents, DTYPES[metadata["dtype"]])
    module = script(ArchiveModule(student, config, metadata["name"], metadata["teacher"]))
    own = _members(module, "")
    contradiction = difference(stored, read_pickle(own))
    if not contradiction and metadata["parameters"] != parameter_count(student):
        contradiction = f"the student has {parameter_count(student)} parameters"
    for name, value in module.state_dict().items():
        if not contradiction and not torch.allclose(tensors[name], value, rtol=1e-5, atol=0.0):
            contradiction = f"{name} does not follow from the metadata"
    if contradiction:
        raise ArchiveError(
            f"{path}: the metadata contradict the module ({contradiction}); the file was changed: "
            "export it again"
        )
    module.load_state_dict(tensors)
    return module


def _run_foreign_code(path: Path, contents: ArchiveContents) -> torch.jit.ScriptModule:
    """Return the module of an archive that a user trusts, compiled from the code in it.

    Raises
    ------
    ArchiveError
        The code does not compile, or the metadata contradict the module.
    """
    metadata = contents.metadata
    facts = {name: metadata[name] for name in ("name", "teacher", "elements", "cutoff")}
    facts |= {"dtype_name": metadata["dtype"], "parameter_count": metadata["parameters"]}
    try:
        module = torch.jit.load(io.BytesIO(write_members(contents.members)), map_location="cpu")
        stored = {name: getattr(module, name) for name in facts}
    except Exception as error:  # torch raises errors of any kind
        raise ArchiveError(
            f"{path} is not a TorchScript archive or is damaged "
            f"({str(error).strip().splitlines()[0]}); export it again"
        ) from error
    if wrong := [name for name, value in facts.items() if stored[name] != value]:
        raise ArchiveError(
            f"{path}: the metadata contradict the module ({wrong[0]} is {stored[wrong[0]]!r}); "
            "the file was changed: export it again"
        )
    _check_hash(path, module.state_dict(), metadata)
    return module


def check_reference_numbers(
    origin: Path | str, module: nn.Module, expected: dict[str, Any], device: str = "cpu"
) -> None:
    """Evaluate the self-check molecule and compare its energy and forces with the stored ones.

    Parameters
    ----------
    origin : Path | str
        Name of the file or backend that is checked; the message begins with it.
    module : nn.Module
        Module with the `forward` of `ArchiveModule`.
    expected : dict[str, Any]
        Structure, energy and forces, as `self_check_numbers` returns them.
    device : str
        Device of torch that the module is on.

    Raises
    ------
    ArchiveError
        Energy or forces differ by more than `SELF_CHECK_ENERGY_TOLERANCE` (eV) or
        `SELF_CHECK_FORCE_TOLERANCE` (eV/angstrom).
    """
    energy, forces, _ = module(
        torch.tensor(expected["positions"], dtype=torch.float64, device=device),
        torch.tensor(expected["atomic_numbers"], device=device),
        torch.zeros(3, 3, dtype=torch.float64, device=device),
        torch.zeros(3, dtype=torch.bool, device=device),
    )
    energy_error = abs(float(energy) - expected["energy"])
    reference = torch.tensor(expected["forces"]).double()
    force_error = float((forces.cpu() - reference).abs().max())
    scale = max(1.0, float(reference.abs().max()) / LARGEST_ORDINARY_FORCE)
    energy_limit, force_limit = (
        tolerance * scale for tolerance in (SELF_CHECK_ENERGY_TOLERANCE, SELF_CHECK_FORCE_TOLERANCE)
    )
    if not (energy_error < energy_limit and force_error < force_limit):
        raise ArchiveError(
            f"{origin} fails its self-check: energy off by {energy_error:.1e} eV (allowed "
            f"{energy_limit:.0e}), forces by {force_error:.1e} eV/angstrom (allowed "
            f"{force_limit:.0e}). This torch ({torch.__version__}) computes other numbers than the "
            "one that wrote the archive; run `mlff-student doctor`"
        )
