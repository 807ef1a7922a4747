"""The TorchScript of an archive: the module that is compiled, and its comparison with weights."""

import io
import platform
from threading import RLock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlff_student.archive.archive import (
    FORMAT_VERSION,
    SELF_CHECK_NUMBERS,
    SELF_CHECK_POSITIONS,
    Archive,
    make_archive,
    pack_archive,
    weights_hash,
)
from mlff_student.archive.contents import members_of
from mlff_student.core.errors import ArchiveError
from mlff_student.core.version import __version__
from mlff_student.model.architecture import weight_shapes
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

# Ten times the rounding of float32 arithmetic on another machine.
SELF_CHECK_ENERGY_TOLERANCE = 1e-4  # eV
SELF_CHECK_FORCE_TOLERANCE = 1e-3  # eV/angstrom
LARGEST_ORDINARY_FORCE = 100.0  # eV/angstrom; beyond it the tolerances grow with the force

# torch has one table of compiled classes, which it fills without a lock: of two threads that
# compile the same class for the first time, one raises "Can't redefine method".
_COMPILER = RLock()


def script(module: nn.Module) -> Any:
    """Return `torch.jit.script(module)`; other threads that compile wait until it is done.

    Parameters
    ----------
    module : nn.Module
        Module to compile.
    """
    with _COMPILER:
        return torch.jit.script(module)


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


def student_of(archive: Archive, dtype: torch.dtype) -> Student:
    """Make the student of an archive, ready for inference.

    Parameters
    ----------
    archive : Archive
        Archive of the student.
    dtype : torch.dtype
        Precision of the student.
    """
    student, weights = Student(archive.config, dtype), archive.weights()
    names = weight_shapes(archive.config)
    student.load_state_dict({name: torch.tensor(weights[name]) for name in names})
    return student.eval().requires_grad_(False)


def compile_archive(archive: Archive, device: str = "cpu") -> torch.jit.ScriptModule:
    """Return the TorchScript module of an archive.

    Parameters
    ----------
    archive : Archive
        Model. Its weights are compiled with the code of this version, and the code in the file is
        not looked at, unless `archive.trust` is true.
    device : str
        Device of torch.

    Raises
    ------
    ArchiveError
        The self-check molecule has another energy or other forces; or the file's own TorchScript is
        missing, does not run or has other weights.
    """
    facts = archive.metadata
    if archive.trust:
        module = _own_script(archive, device)
    else:
        student = student_of(archive, DTYPES[facts["dtype"]])
        module = script(ArchiveModule(student, archive.config, facts["name"], facts["teacher"]))
        tensors = archive.tensors.items()
        module.load_state_dict({name: torch.tensor(array) for name, array in tensors})
        module = module.to(device)
    if facts["self_check"] is not None:
        check_reference_numbers(archive.origin, module, facts["self_check"], device)
    return module


def _own_script(archive: Archive, device: str) -> torch.jit.ScriptModule:
    """Return the TorchScript in the file of an archive, which a user trusts."""
    try:
        module = torch.jit.load(io.BytesIO(archive.content), map_location=device)
    except Exception as error:  # torch raises errors of any kind
        raise ArchiveError(
            f"{archive.origin} contains no TorchScript that can be loaded "
            f"({str(error).strip().splitlines()[0]}); export it again"
        ) from error
    arrays = {name: value.cpu().numpy() for name, value in module.state_dict().items()}
    if weights_hash(arrays) != archive.metadata["weights_sha256"]:
        raise ArchiveError(
            f"{archive.origin}: the TorchScript has other weights than the archive; export it again"
        )
    return module


def build_archive(
    student: Student, config: StudentConfig, name: str, card: dict[str, Any]
) -> Archive:
    """Return the archive of a student, with TorchScript and self-check.

    Parameters
    ----------
    student : Student
        Student to compile.
    config : StudentConfig
        Architecture of the student.
    name : str
        Name of the model.
    card : dict[str, Any]
        As for `make_archive`.
    """
    weights = {key: value.detach().cpu().numpy() for key, value in student.state_dict().items()}
    return with_script(make_archive(config, weights, name, card, dtype_name(student.dtype)))


def with_script(archive: Archive) -> Archive:
    """Return an archive with the TorchScript of this version and its self-check.

    Parameters
    ----------
    archive : Archive
        Model; its own TorchScript and self-check are replaced.

    Raises
    ------
    ArchiveError
        The archive has a self-check, and the code of this version computes other numbers.
    """
    module = archive.module
    versions = {
        "mlff_student": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    metadata = archive.metadata | {"self_check": self_check_numbers(module), "versions": versions}
    complete = pack_archive(metadata, archive.tensors, script_members(module))
    complete.__dict__["module"] = module  # it need not be compiled again
    return complete


def script_members(module: torch.jit.ScriptModule) -> dict[str, bytes]:
    """Return the members of the file of a module, without the positions in the Python source.

    Parameters
    ----------
    module : torch.jit.ScriptModule
        Module to save.
    """
    content = io.BytesIO()
    torch.jit.save(module, content)
    members = members_of(content.getvalue())
    return {name: data for name, data in members.items() if not name.endswith(".debug_pkl")}


def self_check_numbers(module: nn.Module, device: str = "cpu") -> dict[str, Any]:
    """Evaluate the self-check molecule.

    Parameters
    ----------
    module : nn.Module
        Module with the `forward` of `ArchiveModule`.
    device : str
        Device of torch that the module is on.

    Returns
    -------
    dict[str, Any]
        "atomic_numbers" (6), "positions" (6, 3) in angstrom, "energy" in eV and "forces" (6, 3) in
        eV/angstrom, as plain numbers and lists.
    """
    energy, forces, _ = module(
        torch.tensor(SELF_CHECK_POSITIONS, dtype=torch.float64, device=device),
        torch.tensor(SELF_CHECK_NUMBERS, device=device),
        torch.zeros(3, 3, dtype=torch.float64, device=device),
        torch.zeros(3, dtype=torch.bool, device=device),
    )
    return {
        "atomic_numbers": SELF_CHECK_NUMBERS,
        "positions": SELF_CHECK_POSITIONS,
        "energy": float(energy),
        "forces": forces.tolist(),
    }


def check_reference_numbers(
    origin: str, module: nn.Module, expected: dict[str, Any], device: str = "cpu"
) -> None:
    """Evaluate the self-check molecule and compare its energy and forces with the stored ones.

    Parameters
    ----------
    origin : str
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
        The module does not run, or energy or forces differ by more than
        `SELF_CHECK_ENERGY_TOLERANCE` (eV) or `SELF_CHECK_FORCE_TOLERANCE` (eV/angstrom).
    """
    try:
        actual = self_check_numbers(module, device)
    except Exception as error:  # foreign code
        detail = (str(error).strip().splitlines() or [""])[-1]
        raise ArchiveError(f"{origin} does not run ({detail}); export it again") from error
    reference = np.array(expected["forces"])
    energy_error = abs(actual["energy"] - expected["energy"])
    force_error = float(abs(np.array(actual["forces"]) - reference).max())
    scale = max(1.0, float(abs(reference).max()) / LARGEST_ORDINARY_FORCE)
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
