"""The neighbour search, compared with the independent ones of vesin and ASE."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list
from vesin import NeighborList

from mlff_student.archive.graph import edges_of
from mlff_student.model.neighbours import complete_cell, neighbour_edges

CUTOFF = 5.0
SKEWED = np.array([[6.0, 0.0, 0.0], [23.0, 6.5, 0.0], [-17.0, 31.0, 7.0]])  # 6 x 6.5 x 7


class Edges(NamedTuple):
    """Edges of a structure in a fixed order, so that those of two searches can be compared."""

    keys: np.ndarray  # (E, 5) int, [receiver, sender, image of the sender]
    vectors: np.ndarray  # (E, 3)


def search(atoms: Atoms, cutoff: float = CUTOFF, function: Callable = neighbour_edges, **options):
    vectors, index = function(
        torch.tensor(atoms.positions),
        torch.tensor(atoms.cell.array),
        torch.tensor(atoms.pbc),
        cutoff,
        **options,
    )
    return vectors, index


def as_edges(i: np.ndarray, j: np.ndarray, vectors: np.ndarray, atoms: Atoms) -> Edges:
    """Sort edges by receiver, sender and image of the sender."""
    images = vectors - (atoms.positions[j] - atoms.positions[i])
    if atoms.pbc.any():
        images = images @ np.linalg.inv(atoms.cell.complete().array)
    keys = np.column_stack([i, j, np.rint(images * atoms.pbc)]).astype(int)
    order = np.lexsort(keys.T[::-1])
    keys = keys[order]
    assert (np.diff(keys, axis=0) != 0).any(1).all(), "an edge is listed twice"
    return Edges(keys, vectors[order])


def own_edges(vectors: torch.Tensor, index: torch.Tensor, atoms: Atoms) -> Edges:
    return as_edges(index[0].numpy(), index[1].numpy(), vectors.numpy(), atoms)


def assert_same_edges(edges: Edges, expected: Edges, source: str) -> None:
    __tracebackhide__ = True
    if not np.array_equal(edges.keys, expected.keys):
        ours, theirs = ({tuple(key) for key in each.keys.tolist()} for each in (edges, expected))
        pytest.fail(
            f"of {len(theirs)} edges of {source} {len(theirs - ours)} are missing, e.g. "
            f"{sorted(theirs - ours)[:3]}; {len(ours - theirs)} are too many, e.g. "
            f"{sorted(ours - theirs)[:3]}"
        )
    # Positions up to 1e4 angstrom have a rounding of 1e-12.
    np.testing.assert_allclose(edges.vectors, expected.vectors, rtol=0, atol=1e-9)


def random_atoms(n: int, cell: np.ndarray, pbc, seed: int = 0, spread: float = 1.0) -> Atoms:
    """Uniform in the cell, or in `spread` cells along each direction."""
    fractional = (np.random.default_rng(seed).random((n, 3)) - 0.5 * (spread - 1.0)) * spread
    return Atoms(f"H{n}", positions=fractional @ np.asarray(cell), cell=cell, pbc=pbc)


def open_cluster(n: int, edge: float, seed: int = 0) -> Atoms:
    atoms = random_atoms(n, np.eye(3) * edge, False, seed)
    atoms.cell = None
    return atoms


def partly(pbc: tuple[bool, bool, bool], cell: np.ndarray, n: int = 40) -> Atoms:
    """Rows of open directions are zero, as in files of slabs and chains."""
    atoms = random_atoms(n, cell, pbc, seed=sum(pbc))
    atoms.cell.array[~np.array(pbc)] = 0.0
    return atoms


def on_faces() -> Atoms:
    """Fractional coordinates of 0, 1, a half, and the rounding error that wraps to 1."""
    corners = [0.0, 0.5, 1.0 - 1e-16, -1e-17]
    fractional = np.array([[a, b, c] for a in corners[:2] for b in corners[1:3] for c in corners])
    fractional += np.linspace(0, 3, len(fractional)).round()[:, None] * [1, 0, -1]  # other images
    cell = np.array([[10.3, 0.0, 0.0], [0.4, 11.1, 0.0], [0.0, -0.7, 12.7]])
    return Atoms(f"H{len(fractional)}", positions=fractional @ cell, cell=cell, pbc=True)


def far_apart(distance: float) -> Atoms:
    """Two small clusters with nothing between them."""
    first = open_cluster(12, 6.0)
    second = open_cluster(12, 6.0, seed=1)
    second.positions += distance * np.array([1.0, -0.7, 0.4])
    return first + second


ORTHORHOMBIC = np.diag([9.0, 11.0, 13.0])
TRICLINIC = np.array([[9.0, 0.0, 0.0], [3.0, 10.0, 0.0], [-4.0, 2.0, 11.0]])
SYSTEMS = {
    "one atom": lambda: Atoms("H", positions=[[1.0, 2.0, 3.0]]),
    "one atom, periodic": lambda: Atoms("H", positions=[[9.0, -2.0, 3.0]], cell=[3, 4, 4], pbc=1),
    "two atoms, 1e4 angstrom": lambda: Atoms("H2", positions=[[0, 0, 0], [1e4, -1e4, 1e4]]),
    "two clusters, 1e4 angstrom": lambda: far_apart(1e4),
    "a line": lambda: Atoms("H30", positions=np.arange(30)[:, None] * [1.1, 0, 0]),
    "small cluster": lambda: open_cluster(20, 4.0),
    "large cluster": lambda: open_cluster(400, 22.0),
    "cluster with an unused cell": lambda: random_atoms(60, TRICLINIC, False),
    "orthorhombic": lambda: random_atoms(80, ORTHORHOMBIC, True),
    "triclinic": lambda: random_atoms(80, TRICLINIC, True),
    "left-handed": lambda: random_atoms(80, TRICLINIC[[1, 0, 2]], True),
    "rotated": lambda: random_atoms(
        60, np.linalg.qr(np.arange(9).reshape(3, 3) + SKEWED)[0] * 9, 1
    ),
    "strongly skewed": lambda: random_atoms(20, SKEWED, True),
    "strongly skewed, large": lambda: random_atoms(150, 2.5 * SKEWED, True),
    "flat": lambda: random_atoms(20, np.diag([40.0, 9.0, 1.3]), True),
    "below the cutoff": lambda: random_atoms(4, np.diag([2.1, 2.9, 3.3]), True),
    "below the cutoff, triclinic": lambda: random_atoms(3, TRICLINIC / 4.0, True),
    "unwrapped": lambda: random_atoms(60, TRICLINIC, True, spread=9.0),
    "unwrapped along periodic directions only": lambda: random_atoms(
        60, TRICLINIC, (True, False, True), spread=4.0
    ),
    "faces": on_faces,
    "face-centred crystal": lambda: bulk("Ar", "fcc", a=5.3).repeat(3),
    "primitive crystal": lambda: bulk("Ar", "fcc", a=5.3),
    "3000 atoms": lambda: random_atoms(3000, np.diag([30.0, 33.0, 35.0]), True),
}
for mask in np.ndindex(2, 2, 2):
    if 0 < sum(mask) < 3:
        directions = "".join(axis for axis, periodic in zip("abc", mask, strict=True) if periodic)
        for shape, cell in [
            ("orthorhombic", ORTHORHOMBIC),
            ("triclinic", TRICLINIC),
            ("skewed", SKEWED),
            ("below the cutoff", TRICLINIC / 3.0),
        ]:
            pbc = tuple(map(bool, mask))
            SYSTEMS[f"periodic along {directions}, {shape}"] = lambda p=pbc, c=cell: partly(p, c)


@pytest.mark.parametrize("name", SYSTEMS)
def test_edges_equal_those_of_vesin_and_ase(name: str):
    atoms = SYSTEMS[name]()
    vectors, index = search(atoms)
    edges = own_edges(vectors, index, atoms)

    # vesin needs an invertible box; it ignores the rows of open directions.
    box = atoms.cell.complete().array if atoms.pbc.any() else np.eye(3)
    i, j, d = NeighborList(cutoff=CUTOFF, full_list=True).compute(
        points=atoms.positions, box=box, periodic=atoms.pbc, quantities="ijD"
    )
    assert_same_edges(edges, as_edges(i.astype(int), j.astype(int), d, atoms), "vesin")
    assert_same_edges(edges, as_edges(*neighbor_list("ijD", atoms, CUTOFF), atoms), "ASE")

    receiver = index[0].numpy()
    assert (np.diff(receiver) >= 0).all(), "not sorted by receiver"
    assert vectors.dtype == torch.float64
    assert index.dtype == torch.int64


@pytest.mark.parametrize("cutoff", [1.5, 3.0, 9.0])
def test_any_cutoff(cutoff: float):
    for name in ("triclinic", "large cluster", "periodic along ac, skewed"):
        atoms = SYSTEMS[name]()
        vectors, index = search(atoms, cutoff)
        edges = own_edges(vectors, index, atoms)
        assert_same_edges(edges, as_edges(*neighbor_list("ijD", atoms, cutoff), atoms), name)


@pytest.mark.parametrize("name", ["triclinic", "large cluster", "below the cutoff", "one atom"])
def test_every_edge_has_its_opposite(name: str):
    atoms = SYSTEMS[name]()
    vectors, index = search(atoms)
    edges = own_edges(vectors, index, atoms)
    opposite = as_edges(index[1].numpy(), index[0].numpy(), -vectors.numpy(), atoms)
    assert_same_edges(opposite, edges, "the opposite edges")


@pytest.mark.parametrize("name", ["strongly skewed, large", "large cluster", "below the cutoff"])
def test_scripted_and_chunked_searches_find_the_same(name: str):
    atoms = SYSTEMS[name]()
    vectors, index = search(atoms)
    expected = own_edges(vectors, index, atoms)
    scripted = torch.jit.script(neighbour_edges)
    for function, options in [
        (scripted, {}),
        (neighbour_edges, {"candidates_at_once": 1}),
        (scripted, {"candidates_at_once": 20_000}),
    ]:
        vectors, index = search(atoms, function=function, **options)
        edges = own_edges(vectors, index, atoms)
        assert_same_edges(edges, expected, f"{function} {options}")
        assert (index[0].diff() >= 0).all()


@pytest.mark.parametrize(
    "cell",
    [
        [9e4, 9e4, 9e4],
        [9e4, 9e4, 10.0],
        [2000.0, 2000.0, 6.0],
        [9e4, 10.0, 10.0],
        [20_000.0, 200.0, 10.0],
    ],
    ids=str,
)
@pytest.mark.parametrize("mask", [(1, 1, 1), (1, 1, 0), (0, 0, 0)], ids=str)
def test_few_atoms_in_a_huge_cell(cell: list[float], mask: tuple[int, int, int]):
    """Vesin divides by zero in some of them, and ASE makes a grid of all of the cell."""
    atoms = Atoms("OH2", positions=[[1.0, 0.5, 0.3], [1.9, 0.5, 0.3], [0.8, 1.4, 0.3]], pbc=mask)
    atoms += Atoms("O", positions=[np.array(cell) - 0.5])  # nearest through the faces, if any
    atoms.set_cell(cell)
    vectors, index = search(atoms)
    assert_same_edges(
        own_edges(vectors, index, atoms),
        as_edges(*with_few_images(atoms), atoms),
        "all pairs",
    )
    index, vectors = edges_of(atoms, CUTOFF)
    assert_same_edges(
        as_edges(*index, vectors, atoms), as_edges(*with_few_images(atoms), atoms), "all pairs"
    )


def with_few_images(atoms: Atoms) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Receivers, senders and vectors among the atoms and the next images of the cell."""
    shifts = np.stack(np.meshgrid(*[(-1, 0, 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
    shifts = shifts[(shifts[:, ~atoms.pbc] == 0).all(1)]
    vectors = atoms.positions[None, None] - atoms.positions[None, :, None]
    vectors = vectors + (shifts @ atoms.cell.array)[:, None, None]
    near = np.linalg.norm(vectors, axis=-1) < CUTOFF
    itself = (shifts == 0).all(1)[:, None, None] & np.eye(len(atoms), dtype=bool)
    image, i, j = np.nonzero(near & ~itself)
    return i, j, vectors[image, i, j]


def test_a_wire_along_no_axis_that_is_not_wrapped():
    atoms = open_cluster(12, 6.0)
    wire = np.array([53.0, -50.0, -41.0])
    atoms.set_cell([[0, 0, 0], wire, [0, 0, 0]])
    atoms.pbc = (False, True, False)
    expected = own_edges(*search(atoms), atoms)
    atoms.positions[::2] += 700 * wire
    for vectors, index in (search(atoms), edges_of(atoms, CUTOFF)[::-1]):
        edges = own_edges(torch.as_tensor(vectors), torch.as_tensor(index), atoms)
        assert len(edges.keys) == len(expected.keys)
        lengths = (np.sort(np.linalg.norm(each.vectors, axis=1)) for each in (edges, expected))
        np.testing.assert_allclose(*lengths, atol=1e-9)


NAN = float("nan")
BAD_CELLS = {
    "zero": (np.zeros((3, 3)), "no volume"),
    "singular": (np.array([[5.0, 0, 0], [0, 5.0, 0], [5.0, 5.0, 0]]), "no volume"),
    "NaN": (np.full((3, 3), NAN), "no volume"),
    "tiny": (0.2 * np.eye(3), "thin"),
    "skewed": (np.array([[5.0, 0, 0], [1e6, 5.0, 0], [0, 0, 5.0]]), "thin"),
}


@pytest.mark.parametrize("name", BAD_CELLS)
@pytest.mark.parametrize("function", [neighbour_edges, torch.jit.script(neighbour_edges)])
def test_cells_that_are_refused(name: str, function: Callable):
    cell, message = BAD_CELLS[name]
    atoms = Atoms("H2", positions=[[0, 0, 0], [0.8, 0, 0]], cell=cell, pbc=True)
    with pytest.raises(Exception, match=f"mlff_student: .*{message}"):
        search(atoms, function=function)


def test_cutoffs_and_positions_that_are_refused():
    atoms = SYSTEMS["orthorhombic"]()
    for cutoff in (0.0, -1.0, NAN, float("inf")):
        with pytest.raises(RuntimeError, match="mlff_student: the cutoff"):
            search(atoms, cutoff)
    atoms.pbc = False
    atoms.positions[3] = NAN
    with pytest.raises(RuntimeError, match="mlff_student: a position"):
        search(atoms)


def test_a_structure_without_atoms_has_no_edges():
    vectors, index = search(Atoms())
    assert vectors.shape == (0, 3)
    assert index.shape == (2, 0)


@pytest.mark.parametrize("mask", list(np.ndindex(2, 2, 2)))
def test_completed_cell_keeps_periodic_rows_and_is_invertible(mask: tuple[int, int, int]):
    for cell in (ORTHORHOMBIC, TRICLINIC, SKEWED):
        pbc = torch.tensor(mask, dtype=torch.bool)
        rows = torch.tensor(cell) * pbc[:, None]
        completed = complete_cell(rows, pbc)
        assert (completed[pbc] == rows[pbc]).all()
        opened = completed[~pbc]
        torch.testing.assert_close(opened @ opened.T, torch.eye(len(opened)).double())
        torch.testing.assert_close(
            opened @ completed[pbc].T, torch.zeros(len(opened), 3)[:, pbc].double()
        )
