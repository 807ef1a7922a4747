"""Refuse structures for which a student's energy would be meaningless; find bonds by distance."""

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from numpy.typing import NDArray

from mlff_student.archive.graph import edges_of
from mlff_student.core.errors import InputError
from mlff_student.model.elements import ELEMENTS

SHORTEST_DISTANCE = 0.3  # angstrom; no two nuclei come closer in any simulation
BOND_TOLERANCE = 1.2  # atoms are bonded if closer than this times the sum of covalent radii
HOT_BOND_TOLERANCE = 1.3  # the same for hot structures: C-H bonds stretch as far at 1000 K
FARTHEST = 1e5  # largest coordinate, angstrom; vesin divides by zero from 1e6 on


def check_structure(atoms: Atoms, elements: Sequence[str] = tuple(ELEMENTS)) -> None:
    """Raise an error if the energy of a structure would be meaningless.

    Parameters
    ----------
    atoms : Atoms
        Structure to check.
    elements : Sequence[str]
        Chemical symbols of the elements that the student knows.

    Raises
    ------
    InputError
        There are no atoms; a coordinate is NaN, infinite or above 1e5 angstrom; an element is
        unknown; a periodic cell has no volume; two atoms are closer than 0.3 angstrom; or hydrogens
        are missing.
    """
    if len(atoms) == 0:
        raise InputError("the structure has no atoms")
    misplaced = ~(np.abs(atoms.positions) < FARTHEST).all(1)
    if misplaced.any():
        index = int(misplaced.argmax())
        raise InputError(
            f"atom {index} ({atoms.symbols[index]}) has the position {atoms.positions[index]}; "
            f"expected are finite coordinates below {FARTHEST:g} angstrom"
        )
    unknown = sorted(set(atoms.symbols) - set(elements))
    if unknown:
        raise InputError(
            f"the student does not know {', '.join(unknown)}; it knows {', '.join(elements)}"
        )
    check_cell(atoms)
    reach = 2.0 * HOT_BOND_TOLERANCE * covalent_radii[atoms.numbers].max()
    index, vectors = edges_of(atoms, max(SHORTEST_DISTANCE, reach))
    _check_distances(atoms, index, vectors)
    if len(bare := bare_atoms(atoms.numbers, index, vectors, np.zeros(len(atoms), dtype=np.int64))):
        raise InputError(
            f"atom {bare[0]} ({atoms.symbols[bare[0]]}) lacks hydrogens, judged by its geometry; "
            "students are trained on complete molecules. Add the hydrogens, for example with "
            "RDKit, Open Babel or PDBFixer"
        )


def check_cell(atoms: Atoms) -> None:
    """Check the cell of a structure; a part of `check_structure` for when only the cell changed.

    Parameters
    ----------
    atoms : Atoms
        Structure to check.

    Raises
    ------
    InputError
        A lattice vector is NaN or infinite, or a periodic cell has no volume.
    """
    if not np.isfinite(atoms.cell.array).all():
        raise InputError(f"the cell {atoms.cell.array.tolist()} is not finite")
    if atoms.pbc.any() and (
        not atoms.cell.array[atoms.pbc].any(1).all() or abs(atoms.cell.complete().volume) < 1e-3
    ):
        raise InputError(
            f"the structure is periodic along {atoms.pbc}, but its cell "
            f"{atoms.cell.array.tolist()} has no volume"
        )


def check_distances(atoms: Atoms) -> None:
    """Check the distances; a part of `check_structure` for when only the positions changed.

    Parameters
    ----------
    atoms : Atoms
        Structure to check, with finite positions.

    Raises
    ------
    InputError
        Two atoms are closer than 0.3 angstrom.
    """
    _check_distances(atoms, *edges_of(atoms, SHORTEST_DISTANCE))


def _check_distances(atoms: Atoms, index: NDArray[np.int64], vectors: NDArray[np.float64]) -> None:
    distance = np.linalg.norm(vectors, axis=1)
    if distance.min(initial=np.inf) < SHORTEST_DISTANCE:
        closest = distance.argmin()
        i, j = sorted(index[:, closest].tolist())
        raise InputError(
            f"atoms {i} ({atoms.symbols[i]}) and {j} ({atoms.symbols[j]}) are "
            f"{distance[closest]:.3f} angstrom apart; expected at least {SHORTEST_DISTANCE}. "
            "Are the positions in angstrom?"
        )


def bare_atoms(
    numbers: NDArray[np.int64],
    index: NDArray[np.int64],
    vectors: NDArray[np.float64],
    owner: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Find the atoms that lack hydrogens, judged by the geometry of their bonds.

    Most files have no bond orders. In stable closed-shell molecules, however, a carbon with three
    neighbours is planar, a carbon with two is linear, and a carbon with one occurs only in carbon
    monoxide and isocyanides. The limits of the angles allow for thermal motion at 1000 K. An atom
    other than hydrogen that has no bond at all lacks hydrogens too (for example the oxygen of a
    water molecule), unless it is the only atom of its structure.

    Parameters
    ----------
    numbers : NDArray[np.int64]
        (N,), atomic numbers.
    index : NDArray[np.int64]
        (2, E), edges as `edges_of` returns them, with a cutoff longer than any bond.
    vectors : NDArray[np.float64]
        (E, 3), vectors of these edges, angstrom.
    owner : NDArray[np.int64]
        (N,), index of the structure that each atom belongs to.

    Returns
    -------
    NDArray[np.int64]
        Indices of the atoms that lack hydrogens, in ascending order.
    """
    from_heavy = numbers[index[0]] > 1
    (receiver, sender), vectors = index[:, from_heavy], vectors[from_heavy]
    distance = np.linalg.norm(vectors, axis=1)
    radii = covalent_radii[numbers]
    bonded = distance < HOT_BOND_TOLERANCE * (radii[receiver] + radii[sender])
    order = np.argsort(receiver[bonded], kind="stable")
    partner = numbers[sender[bonded][order]]
    bonds = (vectors[bonded] / distance[bonded, None])[order]  # unit vectors
    count = np.bincount(receiver[bonded], minlength=len(numbers))
    begin = count.cumsum() - count

    def bonds_of(carbons: NDArray[np.int64], bond: int) -> NDArray[np.float64]:
        return bonds[begin[carbons] + bond]

    carbon = numbers == 6
    among_others = np.bincount(owner)[owner] > 1
    bare = (count == 0) & (carbon | (among_others & (numbers > 1)))
    single, two, three = (np.flatnonzero(carbon & (count == k)) for k in (1, 2, 3))
    bare[single] = ~np.isin(partner[begin[single]], (7, 8))
    cosine = np.einsum("cx,cx->c", bonds_of(two, 0), bonds_of(two, 1))
    bare[two] = np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))) <= 140.0
    # Height of the carbon above the plane through the ends of its three unit vectors: 0.33 for sp3,
    # near 0 for sp2, also in three-membered rings.
    a, b, c = (bonds_of(three, bond) for bond in range(3))
    normal = np.cross(b - a, c - a)
    height = np.abs(np.einsum("cx,cx->c", normal, a))
    bare[three] = height >= 0.25 * np.linalg.norm(normal, axis=1)
    return np.flatnonzero(bare)


def perceive_bonds(atoms: Atoms) -> list[tuple[int, int]]:
    """Find the pairs of atoms closer than 1.2 times the sum of their covalent radii.

    The radii are those of Cordero et al. 2008, doi:10.1039/b801115j.

    Parameters
    ----------
    atoms : Atoms
        Open or periodic structure.

    Returns
    -------
    list[tuple[int, int]]
        Pairs of atom indices (i < j) in ascending order; empty if a position is not finite.
    """
    from ase.neighborlist import natural_cutoffs, neighbor_list  # half a second, for SciPy

    if len(atoms) == 0 or not np.isfinite(atoms.positions).all():
        return []
    first, second = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=BOND_TOLERANCE))
    return sorted({(int(i), int(j)) for i, j in zip(first, second, strict=True) if i < j})


def connected_fragments(atoms: int, bonds: list[tuple[int, int]]) -> NDArray[np.int_]:
    """Return the index of the bonded fragment that each atom belongs to.

    Parameters
    ----------
    atoms : int
        Number of atoms.
    bonds : list[tuple[int, int]]
        Pairs of bonded atoms.

    Returns
    -------
    NDArray[np.int_]
        (atoms,), index of the fragment. Fragments are counted in the order of their first atoms.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    i, j = np.array(bonds, dtype=int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(i)), (i, j)), shape=(atoms, atoms))
    _, label = connected_components(graph, directed=False)
    order = np.unique(label, return_index=True)[1]
    return np.argsort(np.argsort(order))[label]
