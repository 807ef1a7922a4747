"""Load the compiled library of native CPU kernels, and run archives on it."""

import logging
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlff_student.archive.archive import Archive, check_reference_numbers
from mlff_student.archive.scripting import script
from mlff_student.core.errors import InputError, MissingDependencyError
from mlff_student.core.installation import build_command, build_record, why_missing
from mlff_student.core.paths import built_library

logger = logging.getLogger(__name__)

LIBRARY = "libmlff_student_torch.so"
BUFFERS = ("charges", "lengths", "ranges", "weights", "rates")
BACKENDS = ("auto", "native", "portable")


class NativeModule(nn.Module):
    """The methods of an archive, computed by the native kernels; see `ArchiveModule` for them.

    Parameters
    ----------
    module : torch.jit.ScriptModule
        Module of an archive in float32.

    Raises
    ------
    MissingDependencyError
        The library was not built or does not load, or the weights are not float32.
    """

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.native = native_student(module)

    def forward(
        self, positions: Tensor, atomic_numbers: Tensor, cell: Tensor, pbc: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return energy (), forces (N, 3) and virial (3, 3) of one structure."""
        energies, forces, virial = self.evaluate(positions, atomic_numbers, cell, pbc)
        return energies.sum(), forces, virial

    @torch.jit.export
    def evaluate(
        self, positions: Tensor, atomic_numbers: Tensor, cell: Tensor, pbc: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `forward` returns, with the energy of each atom (N,) in place of the sum."""
        return self.native.evaluate(positions, atomic_numbers, cell, pbc)

    @torch.jit.export
    def from_edges(
        self, edge_vectors: Tensor, edge_index: Tensor, atomic_numbers: Tensor, n_local: int
    ) -> tuple[Tensor, Tensor]:
        """Return energies of atoms (n_local,) and dE/d edge_vectors (E, 3)."""
        return self.native.from_edges(edge_vectors, edge_index, atomic_numbers, n_local)


def with_backend(archive: Archive, backend: str = "auto", device: str = "cpu") -> Archive:
    """Return the archive with a module that is evaluated by the chosen backend.

    Parameters
    ----------
    archive : Archive
        Archive with its own TorchScript module.
    backend : str
        "native" (compiled kernels, CPU, float32), "portable" (the archive's own TorchScript) or
        "auto" (native if possible, otherwise portable). The choice of "auto" and its reason are
        logged once.
    device : str
        Device of torch that the archive is on.

    Raises
    ------
    InputError
        There is no such backend.
    MissingDependencyError
        "native" is not possible: the library is missing, or the precision or device is another.
    ArchiveError
        The native kernels compute other numbers than those stored in the archive.
    """
    if backend not in BACKENDS:
        raise InputError(f"there is no backend {backend!r}; expected {', '.join(BACKENDS)}")
    if backend == "portable":
        return archive
    reason = _unfit(archive, device)
    if backend == "auto":
        _log_choice(reason)
    if not reason:
        native = script(NativeModule(archive.module))
        check_reference_numbers("the native backend", native, archive.metadata["self_check"])
        return archive._replace(module=native)
    if backend == "native":
        raise MissingDependencyError(f"the native kernels cannot be used: {reason}")
    return archive


@cache
def _log_choice(reason: str | None) -> None:
    if reason:
        logger.warning("backend portable, several times slower: %s", reason)
    else:
        logger.info("backend native, %s", torch.ops.mlff_student.instruction_set())


def _unfit(archive: Archive, device: str) -> str | None:
    """Return why the native kernels cannot evaluate an archive, or None if they can."""
    if torch.device(device).type != "cpu":
        return f"they run on the CPU, not on {device}"
    if archive.metadata["dtype"] != "float32":
        return f"they compute in float32, the archive in {archive.metadata['dtype']}"
    return unavailable()


def load_library() -> None:
    """Load the library, which registers `torch.classes.mlff_student.NativeStudent`.

    Raises
    ------
    MissingDependencyError
        The library was not built or does not load; the message says why.
    """
    if reason := unavailable():
        raise MissingDependencyError(f"the native kernels are not available: {reason}")


@cache
def unavailable() -> str | None:
    """Return why the native kernels cannot be used on this machine, or None if they can.

    The text ends with the command that builds them, unless the environment variable
    MLFF_STUDENT_NATIVE is the cause.
    """
    reason = obstacle()
    if reason is None or "MLFF_STUDENT_NATIVE" in os.environ:
        return reason
    return f"{reason}; to build them: {build_command()}"


def obstacle() -> str | None:
    """Load the library, and return why that failed, or None."""
    setting = os.environ.get("MLFF_STUDENT_NATIVE")
    if setting == "off":
        return "MLFF_STUDENT_NATIVE is set to off"
    path = library_path()
    if not path.is_file():
        if setting:
            return f"MLFF_STUDENT_NATIVE is set to {setting}, which is no file; correct or unset it"
        return f"{why_missing('torch operators')} ({path} does not exist)"
    built_for, found = build_record().get("torch"), ".".join(torch.__version__.split(".")[:2])
    if built_for not in (None, found) and not setting:
        return f"{path} was built for torch {built_for}, found torch {found}"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path} does not load into torch {torch.__version__} ({error})"
    return None


def library_path() -> Path:
    """Return the path of the library; the file need not exist.

    The environment variable MLFF_STUDENT_NATIVE can give the path of another library than the
    installed one.
    """
    if path := os.environ.get("MLFF_STUDENT_NATIVE"):
        return Path(path)
    return built_library(LIBRARY)


def native_student(module: torch.nn.Module | torch.jit.ScriptModule, knots: int = 0) -> Any:
    """Return the native form of a `Student`, or of an archive's module that contains one.

    Parameters
    ----------
    module : torch.nn.Module | torch.jit.ScriptModule
        Student or module of an archive, with float32 weights.
    knots : int
        Number of knots of the tabulated radial filters; 0 lets the library choose.

    Returns
    -------
    Any
        `torch.classes.mlff_student.NativeStudent` with the archive's methods `evaluate` and
        `from_edges`. It may be called from several threads, and be an attribute of a module that is
        scripted and saved.

    Raises
    ------
    MissingDependencyError
        The library was not built or does not load, or the weights are not float32.
    """
    load_library()
    student: Any = getattr(module, "student", module)
    if student.embedding.weight.dtype != torch.float32:
        raise MissingDependencyError(
            f"the native kernels compute in float32, the weights are "
            f"{student.embedding.weight.dtype}; use the portable module"
        )
    tensors = {name: tensor.detach().cpu() for name, tensor in student.state_dict().items()}
    tensors["species_of"], tensors["limits"] = student.species_of.cpu(), student.limits.cpu()
    for name in BUFFERS:
        tensors[f"repulsion.{name}"] = getattr(student.repulsion, name).cpu()
    return torch.classes.mlff_student.NativeStudent(tensors, student.cutoff, knots)
