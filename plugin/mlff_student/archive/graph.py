"""Join many structures into one graph, and sum the network's gradient to forces and virials."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from mlff_student.archive.archive import require_torch
from mlff_student.archive.backends import (
    Evaluator,
    forces_of,
    library_path,
    unavailable,
    virials_of,
)
from mlff_student.archive.core import NeighbourSearch
from mlff_student.core.errors import InputError

# Largest open structure, in atoms, whose pairs are all tested in numpy, together with those of the
# other structures of the same size. Processor time for a structure of 9, 22, 32, 50 and 68 atoms is
# 4, 24, 38, 73 and 112 microseconds; vesin needs 26, 38, 54, 71 and 92.
SMALL = 48
# Bytes of scratch memory, measured on all three models (`benchmark kernels`, peak_memory): the
# network's features on each atom (native kernels) or on each edge (portable ones) for a channel and
# layer, and the geometry of an edge.
FEATURE_BYTES, EDGE_BYTES = 80, 300
# Atoms within 5 angstrom of an atom in a dense organic liquid; open structures do not have more.
MAX_OPEN_NEIGHBOURS = 60


class Graph(NamedTuple):
    """Edges and atoms of several structures; no edge connects two structures."""

    edge_vectors: NDArray[np.float64]  # (E, 3) x_j - x_i of edge i <- j, angstrom
    edge_index: NDArray[np.int64]  # (2, E) [receiver, sender], counted over all structures
    numbers: NDArray[np.int64]  # (N,) atomic numbers
    owner: NDArray[np.int64]  # (N,) structure of each atom
    structures: int  # number of structures


class Evaluation(NamedTuple):
    """Energies, forces and gradient of a graph."""

    energies: NDArray[np.float64]  # (N,) eV
    forces: NDArray[np.float64]  # (N, 3) eV/angstrom
    gradient: NDArray[np.float64]  # (E, 3) dE/dr_ij, eV/angstrom


def join(structures: Sequence[Atoms], cutoff: float) -> Graph:
    """Join open and periodic structures into one graph.

    Parameters
    ----------
    structures : Sequence[Atoms]
        Structures with finite positions and, if they are periodic, a cell with a volume.
    cutoff : float
        Cutoff of the student, angstrom.
    """
    sizes = np.array([len(atoms) for atoms in structures], dtype=np.int64)
    first = np.concatenate([[0], sizes.cumsum()])[:-1]
    positions = np.concatenate([np.zeros((0, 3)), *(atoms.positions for atoms in structures)])
    numbers = np.concatenate([np.zeros(0, int), *(atoms.numbers for atoms in structures)])
    periodic = np.array([atoms.pbc.any() for atoms in structures], dtype=bool)
    small = ~periodic & (sizes <= SMALL)
    parts = [(np.zeros((2, 0), dtype=np.int64), np.zeros((0, 3)))]
    for size in np.unique(sizes[small]):
        begin = first[small & (sizes == size)]
        index, vectors = all_pairs(positions[begin[:, None] + np.arange(size)], cutoff)
        structure, index = index[0], index[1:]
        parts.append((index + begin[structure], vectors))
    search = edge_search(cutoff) if not small.all() else None
    for k in np.flatnonzero(~small):
        index, vectors = edges_of(structures[k], cutoff, search)
        parts.append((index + first[k], vectors))
    return Graph(
        edge_vectors=np.concatenate([vectors for _, vectors in parts]),
        edge_index=np.concatenate([index for index, _ in parts], axis=1),
        numbers=numbers,
        owner=np.repeat(np.arange(len(structures)), sizes),
        structures=len(structures),
    )


def all_pairs(
    positions: NDArray[np.float64], cutoff: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Find the edges of open structures of the same size by testing every pair of atoms.

    Parameters
    ----------
    positions : NDArray[np.float64]
        (B, n, 3), positions of the n atoms of each of B structures, angstrom.
    cutoff : float
        Cutoff, angstrom.

    Returns
    -------
    index : NDArray[np.int64]
        (3, E), [structure, receiver, sender]; atoms are counted from 0 in each structure.
    vectors : NDArray[np.float64]
        (E, 3), x_j - x_i of edge i <- j, angstrom.
    """
    i, j = np.triu_indices(positions.shape[1], 1)
    vectors = positions[:, j] - positions[:, i]  # (B, pairs, 3)
    structure, pair = np.nonzero(np.einsum("bpx,bpx->bp", vectors, vectors) < cutoff * cutoff)
    near = vectors[structure, pair]
    index = np.stack([structure, i[pair], j[pair]])
    return np.concatenate([index, index[[0, 2, 1]]], axis=1), np.concatenate([near, -near])


def evaluate_graph(student: Evaluator, graph: Graph) -> Evaluation:
    """Evaluate a graph.

    Parameters
    ----------
    student : Evaluator
        Evaluator of a model.
    graph : Graph
        Structures, joined with the cutoff of the model.
    """
    atoms = len(graph.numbers)
    energies, gradient = student.evaluate_edges(
        graph.edge_vectors, graph.edge_index, graph.numbers, atoms
    )
    return Evaluation(energies, forces_of(gradient, graph.edge_index, atoms), gradient)


def structure_virials(graph: Graph, gradient: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the virial of each structure.

    Parameters
    ----------
    graph : Graph
        Graph of B structures.
    gradient : NDArray[np.float64]
        (E, 3), dE/dr_ij, eV/angstrom.

    Returns
    -------
    NDArray[np.float64]
        (B, 3, 3), - sum r_ij (x) dE/dr_ij = - volume * stress, eV.
    """
    owner = graph.owner[graph.edge_index[0]]
    return virials_of(gradient, graph.edge_vectors, owner, graph.structures)


def atom_virials(graph: Graph, gradient: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the virial of each atom: half of the virial of each of its edges, as in LAMMPS.

    Parameters
    ----------
    graph : Graph
        Graph of N atoms.
    gradient : NDArray[np.float64]
        (E, 3), dE/dr_ij, eV/angstrom.

    Returns
    -------
    NDArray[np.float64]
        (N, 3, 3), eV.
    """
    arguments, atoms = (gradient, graph.edge_vectors), len(graph.numbers)
    receiver, sender = (virials_of(*arguments, row, atoms) for row in graph.edge_index)
    return 0.5 * (receiver + sender)


def within_memory(
    structures: Sequence[Atoms], metadata: dict, budget_bytes: float, by_edges: bool
) -> Iterator[slice]:
    """Divide structures into consecutive slices whose graphs fit into the memory.

    A structure that needs more memory than there is forms a slice alone.

    Parameters
    ----------
    structures : Sequence[Atoms]
        Structures to divide.
    metadata : dict
        Metadata of the archive, of which cutoff, channels and layers are used.
    budget_bytes : float
        Memory for one graph, bytes.
    by_edges : bool
        Whether the kernels store features of edges (as the portable ones do) or of atoms only.

    Yields
    ------
    slice
        Slice of `structures` to join into one graph.
    """
    features = FEATURE_BYTES * metadata["channels"] * metadata["layers"]
    sphere = 4.0 / 3.0 * np.pi * metadata["cutoff"] ** 3
    begin, used = 0, 0.0
    for k, atoms in enumerate(structures):
        neighbours = min(len(atoms) - 1, MAX_OPEN_NEIGHBOURS)
        if atoms.pbc.all():
            neighbours = len(atoms) * sphere / atoms.get_volume()
        elif atoms.pbc.any():
            neighbours = MAX_OPEN_NEIGHBOURS
        edges = len(atoms) * neighbours
        needed = features * (edges if by_edges else len(atoms)) + EDGE_BYTES * edges
        if k > begin and used + needed > budget_bytes:
            yield slice(begin, k)
            begin, used = k, 0.0
        used += needed
    if begin < len(structures):
        yield slice(begin, len(structures))


class EdgeSearch(Protocol):
    """Search for edges, by the core library (`NeighbourSearch`) or by vesin's Python package."""

    def compute(
        self, positions: NDArray[np.float64], cell: NDArray[np.float64], pbc: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return index (2, E) and vectors (E, 3); see `NeighbourSearch.compute`."""
        ...


class VesinSearch:
    """Search by vesin's Python package, where the core library is missing.

    Parameters
    ----------
    cutoff, skin : float
        As for `NeighbourSearch`.
    """

    def __init__(self, cutoff: float, skin: float = 0.0) -> None:
        from vesin import NeighborList  # imports torch, if it is installed

        self._list = NeighborList(cutoff=cutoff, full_list=True, skin=skin, n_threads=1)

    def compute(
        self, positions: NDArray[np.float64], cell: NDArray[np.float64], pbc: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return index (2, E) and vectors (E, 3)."""
        pairs, vectors = self._list.compute(
            points=positions, box=cell, periodic=pbc, quantities="PD"
        )
        return np.ascontiguousarray(pairs.T.astype(np.int64)), vectors


def edge_search(cutoff: float, skin: float = 0.0) -> EdgeSearch:
    """Return a search for edges, for one thread at a time.

    Parameters
    ----------
    cutoff : float
        Cutoff, angstrom.
    skin : float
        With a skin above 0 (angstrom), pairs are used again as long as no atom has moved by half of
        it.
    """
    if unavailable():
        return VesinSearch(cutoff, skin)
    return NeighbourSearch(cutoff, skin, library_path())


def edges_of(
    atoms: Atoms, cutoff: float, search: EdgeSearch | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Find all directed edges i <- j that are shorter than the cutoff.

    Parameters
    ----------
    atoms : Atoms
        Structure with positions below 1e5 angstrom and, if it is periodic, a cell with a volume.
    cutoff : float
        Cutoff, angstrom.
    search : EdgeSearch, optional
        Search with this cutoff, whose memory is used again.

    Returns
    -------
    index : NDArray[np.int64]
        (2, E), [receiver, sender].
    vectors : NDArray[np.float64]
        (E, 3), x_j + S.cell - x_i, angstrom.
    """
    search = search or edge_search(cutoff)
    if isinstance(search, VesinSearch) and _is_too_hard(atoms, cutoff):
        require_torch("without the native kernels, the search in a very long or flat structure")
        import torch

        from mlff_student.model.neighbours import neighbour_edges

        positions, cell = torch.tensor(atoms.positions), torch.tensor(atoms.cell.array)
        vectors, index = neighbour_edges(positions, cell, torch.tensor(atoms.pbc), cutoff)
        return index.numpy(), vectors.numpy()
    return search.compute(atoms.positions, atoms.cell.array, atoms.pbc)


def _is_too_hard(atoms: Atoms, cutoff: float) -> bool:
    """Return whether vesin 0.6 divides by zero, which ends the process, or may need hours.

    It makes a grid of more than 1e5 cells coarser, until a structure that is flat or long has less
    than one cell in a thin direction. In partly periodic structures it looks through very many
    cells if the grid is large, or if a periodic vector has a part along the Cartesian axis of an
    open direction.
    """
    lengths = np.ptp(atoms.positions, axis=0) * 1.01 if len(atoms) else np.ones(3)
    if atoms.pbc.any():
        if atoms.cell.array[np.ix_(atoms.pbc, ~atoms.pbc)].any():
            return True
        reciprocal = np.linalg.inv(atoms.cell.complete().array)
        lengths = np.where(atoms.pbc, 1.0 / np.linalg.norm(reciprocal, axis=0), lengths)
    cells = np.maximum(lengths / cutoff, 1.0)
    partly = atoms.pbc.any() and not atoms.pbc.all()
    return cells.prod() > 1e5 and (partly or cells.min() * np.cbrt(1e5 / cells.prod()) < 2.0)


def refuse_for_vesin(atoms: Atoms, cutoff: float) -> None:
    """Raise an error if vesin cannot search the neighbours of a structure.

    Parameters
    ----------
    atoms : Atoms
        Structure with finite positions and, if it is periodic, a cell with a volume.
    cutoff : float
        Cutoff, angstrom.

    Raises
    ------
    InputError
        The structure or its cell is very long or flat.
    """
    if _is_too_hard(atoms, cutoff):
        raise InputError(
            f"the neighbours of {len(atoms)} atoms within {cutoff:g} angstrom cannot be searched: "
            f"the cell {atoms.cell.array.tolist()} or the spread of the atoms, "
            f"{np.ptp(atoms.positions, axis=0).round(1).tolist()} angstrom, is very long or flat. "
            "Use a smaller cell, or check whether the molecule broke apart"
        )
