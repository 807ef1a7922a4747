"""Evaluate archives: by the native kernels of the core library, or by their TorchScript."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import ArrayLike

from mlff_student.archive.archive import Archive, require_torch
from mlff_student.archive.core import (
    CORE_LIBRARY,
    CoreResults,
    CoreStudent,
    Floats,
    core_library,
)
from mlff_student.core.errors import InputError, MissingDependencyError
from mlff_student.core.installation import build_command, why_missing
from mlff_student.core.paths import built_library

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "native", "portable")
MAX_THREADS = 1024  # of the core library


class Evaluator(Protocol):
    """A student that can be evaluated, with NumPy arrays in and out.

    Attributes
    ----------
    backend : str
        "native" or "portable".
    """

    backend: str

    def evaluate(
        self,
        positions: ArrayLike,
        atomic_numbers: ArrayLike,
        cell: ArrayLike | None = None,
        pbc: ArrayLike = (True, True, True),
        *,
        with_virials: bool = False,
    ) -> CoreResults:
        """Evaluate a structure; see `CoreStudent.evaluate`."""
        ...

    def evaluate_edges(
        self,
        edge_vectors: ArrayLike,
        edge_index: ArrayLike,
        atomic_numbers: ArrayLike,
        n_local: int,
    ) -> tuple[Floats, Floats]:
        """Evaluate directed edges; see `CoreStudent.evaluate_edges`."""
        ...


class PortableStudent:
    """The TorchScript of an archive as an `Evaluator`.

    Parameters
    ----------
    archive : Archive
        Model.
    device : str
        Device of torch, for example "cpu" or "cuda".

    Attributes
    ----------
    backend : str
        "portable".
    module : torch.jit.ScriptModule
        Module on the device.

    Raises
    ------
    ArchiveError
        The module computes other numbers than those stored in the archive.
    InputError
        torch has no such device on this machine.
    MissingDependencyError
        torch is not installed.
    """

    backend = "portable"

    def __init__(self, archive: Archive, device: str = "cpu") -> None:
        check_device(device)
        self.device = device
        self.module = archive.module if device == "cpu" else archive.compile(device)

    def _tensor(self, values: ArrayLike, dtype: str) -> "torch.Tensor":
        import torch

        return torch.tensor(np.asarray(values, dtype=dtype), device=self.device)

    def evaluate(
        self,
        positions: ArrayLike,
        atomic_numbers: ArrayLike,
        cell: ArrayLike | None = None,
        pbc: ArrayLike = (True, True, True),
        *,
        with_virials: bool = False,
    ) -> CoreResults:
        """Evaluate a structure; see `CoreStudent.evaluate`.

        Raises
        ------
        InputError
            The structure cannot be evaluated.
        """
        x, numbers = self._tensor(positions, "float64"), self._tensor(atomic_numbers, "int64")
        box = self._tensor(np.zeros((3, 3)) if cell is None else cell, "float64")
        periodic = self._tensor(np.zeros(3) if cell is None else pbc, "bool")
        with _input_errors():
            if not with_virials:
                return CoreResults(*_arrays(self.module.evaluate(x, numbers, box, periodic)), None)
            from mlff_student.model.neighbours import neighbour_edges

            edges, index = neighbour_edges(x, box, periodic, float(self.module.cutoff))
            energies, gradient = self.module.from_edges(edges, index, numbers, len(numbers))
        energies, gradient, edges, index = _arrays((energies, gradient, edges, index))
        atoms = len(energies)
        receiver, sender = (virials_of(gradient, edges, row, atoms) for row in index)
        virials = 0.5 * (receiver + sender)
        return CoreResults(energies, forces_of(gradient, index, atoms), virials.sum(0), virials)

    def evaluate_edges(
        self,
        edge_vectors: ArrayLike,
        edge_index: ArrayLike,
        atomic_numbers: ArrayLike,
        n_local: int,
    ) -> tuple[Floats, Floats]:
        """Evaluate directed edges; see `CoreStudent.evaluate_edges`."""
        vectors, index = self._tensor(edge_vectors, "float64"), self._tensor(edge_index, "int64")
        numbers = self._tensor(atomic_numbers, "int64")
        with _input_errors():
            energies, gradient = _arrays(self.module.from_edges(vectors, index, numbers, n_local))
        return energies, gradient


@contextmanager
def _input_errors() -> Iterator[None]:
    """Raise errors of TorchScript that name this package as errors of the input."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        _, prefix, reason = str(error).rpartition("mlff_student: ")
        if not prefix:
            raise
        raise InputError(reason.strip()) from error


def _arrays(tensors: tuple["torch.Tensor", ...]) -> list[np.ndarray]:
    return [tensor.cpu().numpy() for tensor in tensors]


def check_device(device: str) -> None:
    """Raise an error if torch has no such device on this machine.

    Parameters
    ----------
    device : str
        Device of torch, for example "cpu" or "cuda".

    Raises
    ------
    InputError
        There is no such device.
    MissingDependencyError
        torch is not installed.
    """
    require_torch(f"device {device}" if device != "cpu" else "the portable backend")
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError if torch has no CUDA
        raise InputError(
            f"torch cannot use the device {device!r}: {str(error).splitlines()[0]}"
        ) from error


def evaluator(
    archive: Archive, backend: str = "auto", device: str = "cpu", threads: int | None = None
) -> Evaluator:
    """Return an evaluator of an archive.

    Parameters
    ----------
    archive : Archive
        Model.
    backend : str
        "native" (compiled kernels, CPU, float32), "portable" (TorchScript, which needs torch) or
        "auto" (native if possible, otherwise portable). The choice of "auto" and its reason are
        logged once. With an archive whose `trust` is true, "auto" is portable.
    device : str
        Device of torch for the portable backend.
    threads : int, optional
        Threads of the native kernels; if not given, OMP_NUM_THREADS or, without it, the number of
        CPUs that this process may use. The portable backend uses the threads of torch.

    Raises
    ------
    InputError
        There is no such backend or device, or the number of threads is impossible.
    MissingDependencyError
        "native" is not possible: the library is missing, or the precision or device is another; or
        torch is missing for the portable backend.
    ArchiveError
        The backend computes other numbers than those stored in the archive.
    """
    if backend not in BACKENDS:
        raise InputError(f"there is no backend {backend!r}; expected {', '.join(BACKENDS)}")
    whole = isinstance(threads, int | np.integer) and not isinstance(threads, bool)
    if threads is not None and not (whole and 1 <= threads <= MAX_THREADS):
        raise InputError(f"threads must be a whole number from 1 to {MAX_THREADS}, got {threads!r}")
    if device != "cpu":
        check_device(device)
    reason = None if backend == "portable" else _unfit(archive, device)
    if backend == "native" and reason:
        raise MissingDependencyError(f"the native kernels cannot be used: {reason}")
    if backend == "auto":
        reason = reason or ("the code in the archive is trusted" if archive.trust else None)
        _log_choice(reason)
    if backend == "portable" or reason:
        return _portable(archive, device)
    # Not shared: its neighbour list is that of the structure that it evaluated last.
    threads = threads or default_threads()
    return CoreStudent(archive.origin, archive.content, threads, library_path())


@lru_cache(maxsize=4)
def _portable(archive: Archive, device: str) -> PortableStudent:
    return PortableStudent(archive, device)


def default_threads() -> int:
    """Return OMP_NUM_THREADS or, without it, the number of CPUs that this process may use."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    count = int(first) if first.isdecimal() and int(first) else len(os.sched_getaffinity(0))
    return min(count, MAX_THREADS)


@cache
def _log_choice(reason: str | None) -> None:
    if reason:
        logger.warning("backend portable, several times slower: %s", reason)
    else:
        logger.info("backend native, %s", instruction_set())


def instruction_set() -> str:
    """Return the instruction set of the native kernels: "avx512", "avx2" or "generic"."""
    return core_library(library_path()).mlff_student_instruction_set().decode()


def _unfit(archive: Archive, device: str) -> str | None:
    """Return why the native kernels cannot evaluate an archive, or None if they can."""
    if device.partition(":")[0] != "cpu":
        return f"they run on the CPU, not on {device}"
    if archive.metadata["dtype"] != "float32":
        return f"they compute in float32, the archive in {archive.metadata['dtype']}"
    return unavailable()


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
    """Load the core library, and return why that failed, or None."""
    setting, path = os.environ.get("MLFF_STUDENT_NATIVE"), library_path()
    if setting == "off":
        return "MLFF_STUDENT_NATIVE is set to off"
    if not path.is_file():
        if setting:
            return f"MLFF_STUDENT_NATIVE is set to {setting}, which is no file; correct or unset it"
        return f"{why_missing('native kernels')} ({path} does not exist)"
    try:
        core_library(path)
    except MissingDependencyError as error:
        return str(error)
    return None


def library_path() -> Path:
    """Return the path of the core library; the file need not exist.

    The environment variable MLFF_STUDENT_NATIVE can give the path of another library than the
    installed one.
    """
    if path := os.environ.get("MLFF_STUDENT_NATIVE"):
        return Path(path)
    return built_library(CORE_LIBRARY)


# --- Sums over edges ------------------------------------------------------------------------------


def sum_by(values: np.ndarray, index: np.ndarray, count: int) -> np.ndarray:
    """Sum the rows of an array that have the same index.

    Parameters
    ----------
    values : np.ndarray
        (E,) or (E, C) float64.
    index : np.ndarray
        (E,) int64, from 0 to count - 1.
    count : int
        Number of sums.

    Returns
    -------
    np.ndarray
        (count,) or (count, C) float64.
    """
    # Of 400,000 rows of 3, in ms: np.add.at 40, bincount 5.3, reduceat of sorted rows 1.8.
    starts = np.flatnonzero(np.diff(index, prepend=-1))
    if 4 * len(starts) < len(index):
        values, index = np.add.reduceat(values, starts, axis=0), index[starts]
    if values.ndim == 1:
        return np.bincount(index, values, count)
    return np.stack([np.bincount(index, column, count) for column in values.T], -1)


def forces_of(gradient: np.ndarray, edge_index: np.ndarray, atoms: int) -> np.ndarray:
    """Return the forces (atoms, 3) that follow from the gradients dE/dr_ij with r_ij = x_j - x_i.

    Parameters
    ----------
    gradient : np.ndarray
        (E, 3), dE/dr_ij, eV/angstrom.
    edge_index : np.ndarray
        (2, E) int64, [receiver i, sender j].
    atoms : int
        Number of atoms.
    """
    return sum_by(gradient, edge_index[0], atoms) - sum_by(gradient, edge_index[1], atoms)


def virials_of(
    gradient: np.ndarray, edge_vectors: np.ndarray, index: np.ndarray, count: int
) -> np.ndarray:
    """Sum the virials - r_ij (x) dE/dr_ij of edges (count, 3, 3), eV.

    Parameters
    ----------
    gradient : np.ndarray
        (E, 3), dE/dr_ij, eV/angstrom.
    edge_vectors : np.ndarray
        (E, 3), r_ij, angstrom.
    index : np.ndarray
        (E,) int64, sum to which each edge belongs, from 0 to count - 1.
    count : int
        Number of sums.
    """
    r, g = np.ascontiguousarray(edge_vectors.T), np.ascontiguousarray(gradient.T)
    sums = [sum_by(-r[a] * g[b], index, count) for a in range(3) for b in range(3)]
    return np.stack(sums, -1).reshape(count, 3, 3)
