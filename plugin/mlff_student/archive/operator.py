"""Students as TorchScript that calls the native kernels, for engines that take TorchScript."""

import hashlib
import logging
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlff_student.archive.archive import Archive
from mlff_student.archive.backends import PortableStudent, evaluator, library_path
from mlff_student.archive.scripting import script
from mlff_student.core.errors import MissingDependencyError
from mlff_student.core.installation import why_missing

logger = logging.getLogger(__name__)

LIBRARY = "libmlff_student_torch.so"
OLDEST_TORCH = (2, 9)  # with the functions of the stable ABI that the operators use


class OperatorModule(nn.Module):
    """The methods of an archive, computed by the native kernels; see `ArchiveModule` for them.

    A program that loads the TorchScript of this module must have loaded the library of the
    operators (`operators_path`) before. The kernels compute on the CPU, also if arguments are
    elsewhere, and results are on the CPU.

    Parameters
    ----------
    archive : Archive
        Archive in float32.
    threads : int
        Number of threads; 0 means OMP_NUM_THREADS where the module is evaluated or, without it, the
        number of CPUs that the process may use.

    Raises
    ------
    MissingDependencyError
        The library of the operators was not built or does not load.
    """

    def __init__(self, archive: Archive, threads: int = 0) -> None:
        super().__init__()
        if reason := operators_unavailable():
            raise MissingDependencyError(f"the torch operators cannot be used: {reason}")
        # No buffer, so that it stays on the CPU when the module is moved to a GPU.
        self.content = torch.frombuffer(bytearray(archive.content), dtype=torch.uint8)
        digest = hashlib.sha256(archive.content).digest()
        self.key = int.from_bytes(digest[:8], "big") >> 1
        self.threads = threads

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
        return torch.ops.mlff_student.evaluate(
            self.content, self.key, positions, atomic_numbers, cell, pbc, self.threads
        )

    @torch.jit.export
    def from_edges(
        self, edge_vectors: Tensor, edge_index: Tensor, atomic_numbers: Tensor, n_local: int
    ) -> tuple[Tensor, Tensor]:
        """Return energies of atoms (n_local,) and dE/d edge_vectors (E, 3)."""
        return torch.ops.mlff_student.from_edges(
            self.content, self.key, edge_vectors, edge_index, atomic_numbers, n_local, self.threads
        )


def torch_module(
    archive: Archive, backend: str = "auto", device: str = "cpu", threads: int | None = None
) -> Any:
    """Return an archive as a TorchScript module that is evaluated by a backend.

    Parameters
    ----------
    archive : Archive
        Model.
    backend, device : str
        As for `evaluator`; "auto" is portable if the operators do not load, and the log says why.
    threads : int, optional
        Threads of the native kernels; see `OperatorModule` for what None means.

    Returns
    -------
    Any
        Script module, `OperatorModule` or `ArchiveModule`. On the CPU, the second may be the
        module of the archive itself, which other callers use too.

    Raises
    ------
    MissingDependencyError
        "native" is not possible; see also `evaluator` for other errors.
    """
    chosen = evaluator(archive, backend, device, threads)
    if isinstance(chosen, PortableStudent):
        return chosen.module
    reason = operators_unavailable()
    if not reason:
        return script(OperatorModule(archive, threads or 0))
    if backend == "native":
        raise MissingDependencyError(f"the torch operators cannot be used: {reason}")
    _log_portable(reason)
    return archive.module


@cache
def _log_portable(reason: str) -> None:
    logger.warning("TorchScript with the portable backend, several times slower: %s", reason)


@cache
def operators_unavailable() -> str | None:
    """Load the operators of the native kernels, and return why that failed, or None."""
    path, found = operators_path(), f"found torch {torch.__version__}"
    if not path.is_file():
        return f"{why_missing('torch operators')} ({path} does not exist)"
    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
        return f"they need torch {'.'.join(map(str, OLDEST_TORCH))} or later, {found}"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path} does not load ({error}), {found}"
    if not hasattr(torch.ops.mlff_student, "evaluate"):
        return f"the operators of {path} were not registered, {found}"
    return None


def operators_path() -> Path:
    """Return the path of the operators' library, which is beside the core library."""
    return library_path().with_name(LIBRARY)
