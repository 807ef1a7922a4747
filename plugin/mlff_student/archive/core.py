"""The core library in Python, by ctypes: students on NumPy arrays, without torch.

The functions are those of `mlff_student.h`, which is installed beside the library.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlff_student.core.errors import ArchiveError, InputError, MissingDependencyError, StudentError
from mlff_student.core.paths import built_library

CORE_LIBRARY = "libmlff_student.so"
ABI = 1
ERRORS: dict[int, type[Exception]] = {1: InputError, 2: ArchiveError, 3: MemoryError}

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class SystemStruct(ctypes.Structure):
    _fields_ = (
        ("atoms", ctypes.c_int64),
        ("positions", ctypes.c_void_p),
        ("atomic_numbers", ctypes.c_void_p),
        ("cell", ctypes.c_void_p),
        ("periodic", ctypes.c_void_p),
    )


class ResultsStruct(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_void_p) for name in ("energies", "forces", "virial", "virials")
    )


class FactsStruct(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("teacher", ctypes.c_char_p),
        ("metadata", ctypes.c_char_p),
        ("cutoff", ctypes.c_double),
        ("parameters", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("layers", ctypes.c_int64),
        ("knots", ctypes.c_int64),
        ("atomic_numbers", ctypes.POINTER(ctypes.c_int64)),
        ("elements", ctypes.c_size_t),
    )


class Facts(NamedTuple):
    """What an archive says of its student.

    Attributes
    ----------
    name, teacher : str
        Names of the model and of its teacher.
    metadata : str
        JSON text.
    cutoff : float
        Cutoff, angstrom.
    parameters, channels, layers : int
        Sizes of the student.
    atomic_numbers : tuple of int
        Elements that it knows.
    """

    name: str
    teacher: str
    metadata: str
    cutoff: float
    parameters: int
    channels: int
    layers: int
    atomic_numbers: tuple[int, ...]


class CoreResults(NamedTuple):
    """Results of one structure of N atoms.

    Attributes
    ----------
    energies : ndarray
        (N,) energy of each atom, eV.
    forces : ndarray
        (N, 3) eV/angstrom.
    virial : ndarray
        (3, 3) - volume * stress, eV.
    virials : ndarray or None
        (N, 3, 3) virial of each atom, eV, if asked for.
    """

    energies: Floats
    forces: Floats
    virial: Floats
    virials: Floats | None


@cache
def core_library(path: Path | None = None) -> ctypes.CDLL:
    """Load the core library.

    Parameters
    ----------
    path : Path, optional
        Another library than the installed one.

    Raises
    ------
    MissingDependencyError
        The library was not built, does not load or has another interface.
    """
    path = path or built_library(CORE_LIBRARY)
    try:
        library = ctypes.CDLL(str(path))
        found = library.mlff_student_abi()
    except (OSError, AttributeError) as error:
        raise MissingDependencyError(f"the core library does not load: {error}") from error
    if found != ABI:
        raise MissingDependencyError(f"{path} has the interface {found}, expected {ABI}")
    library.mlff_student_error.restype = ctypes.c_char_p
    library.mlff_student_open_memory.restype = ctypes.c_void_p
    library.mlff_student_open_memory.argtypes = (
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_size_t,
    )
    library.mlff_student_describe.restype = FactsStruct
    library.mlff_student_describe.argtypes = (ctypes.c_void_p,)
    library.mlff_student_close.argtypes = (ctypes.c_void_p,)
    library.mlff_student_close.restype = None
    library.mlff_student_new_workspace.restype = ctypes.c_void_p
    library.mlff_student_free_workspace.argtypes = (ctypes.c_void_p,)
    library.mlff_student_free_workspace.restype = None
    library.mlff_student_evaluate.argtypes = (
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.POINTER(SystemStruct),
        ctypes.POINTER(ResultsStruct),
    )
    library.mlff_student_evaluate_edges.argtypes = (
        *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_void_p),
        *(ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64),
        *(ctypes.c_void_p, ctypes.c_void_p),
    )
    return library


class CoreStudent:
    """A student of an archive, evaluated by the core library.

    It can be called from several threads at once, pickled, and used after a fork.

    Parameters
    ----------
    name : str
        Name of the file, for messages.
    content : bytes
        Content of the archive; nothing in it is run.

    Raises
    ------
    ArchiveError
        The archive is damaged, altered or of another format.
    MissingDependencyError
        The core library cannot be used.
    """

    def __init__(self, name: str, content: bytes) -> None:
        self._library = core_library()
        self._origin, self._content = name, content
        self._handle = self._library.mlff_student_open_memory(name.encode(), content, len(content))
        self._free: list[int] = []  # workspaces that no call uses; append and pop are atomic
        if not self._handle:
            self._check(self._library.mlff_student_error_status())
        facts = self._library.mlff_student_describe(self._handle)
        self.facts = Facts(
            name=facts.name.decode(),
            teacher=facts.teacher.decode(),
            metadata=facts.metadata.decode(),
            cutoff=facts.cutoff,
            parameters=facts.parameters,
            channels=facts.channels,
            layers=facts.layers,
            atomic_numbers=tuple(facts.atomic_numbers[k] for k in range(facts.elements)),
        )

    def __del__(self) -> None:
        for work in getattr(self, "_free", ()):
            self._library.mlff_student_free_workspace(work)
        if getattr(self, "_handle", None):
            self._library.mlff_student_close(self._handle)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._origin, self._content)

    def evaluate(
        self,
        positions: ArrayLike,
        atomic_numbers: ArrayLike,
        cell: ArrayLike | None = None,
        pbc: ArrayLike = (True, True, True),
        *,
        threads: int = 1,
        with_virials: bool = False,
    ) -> CoreResults:
        """Evaluate a structure.

        Parameters
        ----------
        positions : array_like
            (N, 3) angstrom.
        atomic_numbers : array_like
            (N,).
        cell : array_like, optional
            (3, 3) lattice vectors as rows, angstrom; no cell if not given.
        pbc : array_like
            (3,) bool, directions in which the structure is periodic, if there is a cell.
        threads : int
            Number of threads.
        with_virials : bool
            Whether to compute the virial of each atom.

        Raises
        ------
        InputError
            An array has another shape, or the structure cannot be evaluated.
        """
        x, numbers = _floats(positions, (None, 3)), _integers(atomic_numbers)
        if len(x) != len(numbers):
            raise InputError(f"{len(x)} positions, but {len(numbers)} atomic numbers")
        box = None if cell is None else _floats(cell, (3, 3))
        periodic = np.ascontiguousarray(pbc, dtype=np.intc)
        if periodic.shape != (3,):
            raise InputError(f"pbc has the shape {periodic.shape}, expected (3,)")
        results = CoreResults(
            np.empty(len(x)),
            np.empty((len(x), 3)),
            np.empty((3, 3)),
            np.empty((len(x), 3, 3)) if with_virials else None,
        )
        system = SystemStruct(
            len(x),
            _address(x),
            _address(numbers),
            _address(box),
            None if box is None else _address(periodic),
        )
        outputs = ResultsStruct(*map(_address, results))
        with self._workspace() as work:
            self._check(
                self._library.mlff_student_evaluate(
                    self._handle, work, threads, ctypes.byref(system), ctypes.byref(outputs)
                )
            )
        return results

    def evaluate_edges(
        self,
        edge_vectors: ArrayLike,
        edge_index: ArrayLike,
        atomic_numbers: ArrayLike,
        n_local: int,
        *,
        threads: int = 1,
    ) -> tuple[Floats, Floats]:
        """Evaluate directed edges i <- j.

        Parameters
        ----------
        edge_vectors : array_like
            (E, 3) x_j - x_i, angstrom.
        edge_index : array_like
            (2, E) receivers and senders.
        atomic_numbers : array_like
            (N,).
        n_local : int
            Number of atoms that have an energy. They are the first ones.
        threads : int
            Number of threads.

        Returns
        -------
        energies : ndarray
            (n_local,) eV.
        gradient : ndarray
            (E, 3) of the sum of the energies by the vectors, eV/angstrom.

        Raises
        ------
        InputError
            An array has another shape, or an edge names an atom that does not exist.
        """
        vectors, numbers = _floats(edge_vectors, (None, 3)), _integers(atomic_numbers)
        index = np.ascontiguousarray(edge_index, dtype=np.int64)
        if index.shape != (2, len(vectors)):
            raise InputError(
                f"edge_index has the shape {index.shape}, expected (2, {len(vectors)})"
            )
        energies, gradient = np.empty(max(n_local, 0)), np.empty_like(vectors)
        with self._workspace() as work:
            self._check(
                self._library.mlff_student_evaluate_edges(
                    *(self._handle, work, threads, len(numbers), _address(numbers)),
                    *(len(vectors), _address(index), _address(vectors), n_local),
                    *(_address(energies), _address(gradient)),
                )
            )
        return energies, gradient

    @contextmanager
    def _workspace(self) -> Iterator[int]:
        """Yield a workspace that no other thread uses."""
        try:
            work = self._free.pop()
        except IndexError:
            work = self._library.mlff_student_new_workspace()
            if not work:
                raise MemoryError(self._reason()) from None
        try:
            yield work
        finally:
            self._free.append(work)

    def _check(self, status: int) -> None:
        if status:
            raise ERRORS.get(status, StudentError)(self._reason())

    def _reason(self) -> str:
        return self._library.mlff_student_error().decode(errors="replace")


def _floats(values: ArrayLike, shape: tuple[int | None, ...]) -> Floats:
    array = np.ascontiguousarray(values, dtype=np.float64)
    if array.ndim != len(shape) or any(
        wanted not in (None, size) for wanted, size in zip(shape, array.shape, strict=True)
    ):
        expected = ", ".join("N" if size is None else str(size) for size in shape)
        raise InputError(f"an array has the shape {array.shape}, expected ({expected})")
    return array


def _integers(values: ArrayLike) -> Integers:
    array = np.ascontiguousarray(values, dtype=np.int64)
    if array.ndim != 1:
        raise InputError(f"atomic_numbers has the shape {array.shape}, expected (N,)")
    return array


def _address(array: NDArray[Any] | None) -> int | None:
    return None if array is None else array.ctypes.data
