"""The archive, a TorchScript file that holds one model with its metadata, and its checks."""

import hashlib
import json
import platform
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mlff_student.core.errors import ArchiveError
from mlff_student.core.version import __version__
from mlff_student.model.neighbours import neighbour_edges
from mlff_student.model.student import (
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


def weights_hash(module: nn.Module) -> str:
    """Return the SHA-256 of all weights and reference energies, in the order of their names.

    Parameters
    ----------
    module : nn.Module
        Module of an archive.
    """
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
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
    module = torch.jit.script(ArchiveModule(student, config, name, teacher))
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": name,
        "parameters": parameter_count(student),
        **config.as_dict(),
        "units": {"length": "angstrom", "energy": "eV"},
        "dtype": dtype_name(student.dtype),
        "teacher": teacher,
        "dataset_sha256": card.get("dataset_sha256"),
        "recipe": card.get("recipe"),
        "accuracy": card.get("accuracy"),
        "domain": card.get("domain"),
        "weights_sha256": weights_hash(module),
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
    torch.jit.save(
        archive.module, str(path), _extra_files={METADATA_FILE: json.dumps(archive.metadata)}
    )


def load_archive(path: Path, device: str = "cpu") -> Archive:
    """Read an archive and check it.

    Parameters
    ----------
    path : Path
        Archive file.
    device : str
        Device of torch that the model is loaded to, for example "cpu" or "cuda".

    Raises
    ------
    ArchiveError
        The file is missing, damaged or not an archive; it has another format version; its weights
        do not have the stored hash; or the self-check molecule has another energy or other forces.
    """
    path = Path(path)
    if not path.is_file():
        raise ArchiveError(
            f"there is no file {path}; write one with: python export.py --model original"
        )
    extra = {METADATA_FILE: ""}
    try:
        with zipfile.ZipFile(path) as file:  # torch itself does not look at the checksums
            if damaged := file.testzip():
                raise zipfile.BadZipFile(f"bad checksum of {damaged}")
        module = torch.jit.load(str(path), map_location=device, _extra_files=extra)
    except Exception as error:  # torch raises errors of any kind for a damaged file
        raise ArchiveError(
            f"{path} is not a TorchScript archive or is damaged "
            f"({str(error).strip().splitlines()[0]}); export it again"
        ) from error
    try:
        metadata = json.loads(extra[METADATA_FILE])
    except json.JSONDecodeError as error:
        raise ArchiveError(f"{path} is TorchScript, but not an {FORMAT}") from error
    if not isinstance(metadata, dict):
        raise ArchiveError(f"{path} is TorchScript, but not an {FORMAT}")
    if metadata.get("format") != FORMAT or metadata.get("format_version") != FORMAT_VERSION:
        raise ArchiveError(
            f"{path}: expected {FORMAT} version {FORMAT_VERSION}, found "
            f"{metadata.get('format')} version {metadata.get('format_version')}; export it again"
        )
    if missing := {"weights_sha256", "self_check"} - metadata.keys():
        raise ArchiveError(
            f"{path}: {' and '.join(sorted(missing))} is missing in the metadata; export it again"
        )
    if (digest := weights_hash(module)) != metadata["weights_sha256"]:
        raise ArchiveError(
            f"{path}: the weights have the hash {digest[:12]}, the metadata have "
            f"{metadata['weights_sha256'][:12]}; the file was changed, export it again"
        )
    try:
        check_reference_numbers(path, module, metadata["self_check"], device)
    except ArchiveError:
        raise
    except Exception as error:  # damaged code
        detail = (str(error).strip().splitlines() or [""])[-1]
        raise ArchiveError(
            f"{path} does not run and is damaged ({detail}); export it again"
        ) from error
    return Archive(module, metadata)


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
