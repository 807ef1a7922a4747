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


class EdgesStruct(ctypes.Structure):
    _fields_ = (
        ("edges", ctypes.c_int64),
        ("first", ctypes.POINTER(ctypes.c_int64)),
        ("senders", ctypes.POINTER(ctypes.c_int32)),
        ("vectors", ctypes.POINTER(ctypes.c_double)),
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
    library.mlff_student_instruction_set.restype = ctypes.c_char_p
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
    library.mlff_student_search.argtypes = (
        *(ctypes.c_void_p, ctypes.c_double, ctypes.c_double),
        *(ctypes.POINTER(SystemStruct), ctypes.POINTER(EdgesStruct)),
    )
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
    threads : int
        Number of threads of each call; results do not depend on it.
    library : Path, optional
        Another core library than the installed one.

    Attributes
    ----------
    backend : str
        "native".
    facts : Facts
        What the archive says of the student.
    threads : int
        Number of threads of each call; it may be changed.

    Raises
    ------
    ArchiveError
        The archive is damaged, altered or of another format.
    MissingDependencyError
        The core library cannot be used.
    """

    backend = "native"

    def __init__(
        self, name: str, content: bytes, threads: int = 1, library: Path | None = None
    ) -> None:
        self._library = core_library(library)
        self._origin, self._content, self._path = name, content, library
        self.threads = threads
        self._handle = self._library.mlff_student_open_memory(
            name.encode(errors="backslashreplace"), content, len(content)
        )
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
        return type(self), (self._origin, self._content, self.threads, self._path)

    def evaluate(
        self,
        positions: ArrayLike,
        atomic_numbers: ArrayLike,
        cell: ArrayLike | None = None,
        pbc: ArrayLike = (True, True, True),
        *,
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
        system, _arrays = _system(x, numbers, cell, pbc)
        results = CoreResults(
            np.empty(len(x)),
            np.empty((len(x), 3)),
            np.empty((3, 3)),
            np.empty((len(x), 3, 3)) if with_virials else None,
        )
        outputs = ResultsStruct(*map(_address, results))
        with self._workspace() as work:
            self._check(
                self._library.mlff_student_evaluate(
                    *(self._handle, work, self.threads),
                    *(ctypes.byref(system), ctypes.byref(outputs)),
                )
            )
        return results

    def evaluate_edges(
        self,
        edge_vectors: ArrayLike,
        edge_index: ArrayLike,
        atomic_numbers: ArrayLike,
        n_local: int,
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
                    *(self._handle, work, self.threads, len(numbers), _address(numbers)),
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
                self._check(self._library.mlff_student_error_status())
        try:
            yield work
        finally:
            self._free.append(work)

    def _check(self, status: int) -> None:
        _check(self._library, status)


class NeighbourSearch:
    """Search for the edges of structures by the core library, for one thread at a time.

    Parameters
    ----------
    cutoff : float
        Cutoff, angstrom.
    skin : float
        With a skin above 0 (angstrom), pairs are used again as long as no atom has moved by half of
        it.
    library : Path, optional
        Another core library than the installed one.
    """

    def __init__(self, cutoff: float, skin: float = 0.0, library: Path | None = None) -> None:
        self.cutoff, self.skin = cutoff, skin
        self._library = core_library(library)
        self._work = self._library.mlff_student_new_workspace()

    def __del__(self) -> None:
        if getattr(self, "_work", None):
            self._library.mlff_student_free_workspace(self._work)

    def compute(
        self, positions: ArrayLike, cell: ArrayLike, pbc: ArrayLike
    ) -> tuple[Integers, Floats]:
        """Find all directed edges i <- j that are shorter than the cutoff.

        Parameters
        ----------
        positions : array_like
            (N, 3) angstrom.
        cell : array_like
            (3, 3) lattice vectors as rows, angstrom.
        pbc : array_like
            (3,) bool, directions in which the structure is periodic.

        Returns
        -------
        index : ndarray
            (2, E) receivers and senders, sorted by receiver.
        vectors : ndarray
            (E, 3) x_j - x_i, angstrom.

        Raises
        ------
        InputError
            An atom is far away or not finite, or the cell has no volume.
        """
        x, edges = _floats(positions, (None, 3)), EdgesStruct()
        system, _arrays = _system(x, None, cell, pbc)
        arguments = self._work, self.cutoff, self.skin, ctypes.byref(system), ctypes.byref(edges)
        _check(self._library, self._library.mlff_student_search(*arguments))
        if not edges.edges:
            return np.zeros((2, 0), dtype=np.int64), np.zeros((0, 3))
        as_array = np.ctypeslib.as_array
        index = np.empty((2, edges.edges), dtype=np.int64)
        counts = np.diff(as_array(edges.first, (len(x) + 1,)))
        index[0], index[1] = (
            np.repeat(np.arange(len(x)), counts),
            as_array(edges.senders, (edges.edges,)),
        )
        return index, as_array(edges.vectors, (edges.edges, 3)).copy()


def _check(library: ctypes.CDLL, status: int) -> None:
    if status:
        reason = library.mlff_student_error().decode(errors="replace")
        raise ERRORS.get(status, StudentError)(reason)


def _system(
    positions: Floats, numbers: Integers | None, cell: ArrayLike | None, pbc: ArrayLike
) -> tuple[SystemStruct, tuple[Any, ...]]:
    """Return a structure, and the arrays that it points to."""
    box = None if cell is None else _floats(cell, (3, 3))
    periodic = np.ascontiguousarray(pbc, dtype=np.intc)
    if periodic.shape != (3,):
        raise InputError(f"pbc has the shape {periodic.shape}, expected (3,)")
    system = SystemStruct(
        len(positions),
        _address(positions),
        _address(numbers),
        _address(box),
        None if box is None else _address(periodic),
    )
    return system, (positions, numbers, box, periodic)


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
