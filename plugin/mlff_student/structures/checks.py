"""Reading a structure from any file a chemist has, and refusing what no student can answer for."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import mdtraj
import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.io import read as ase_read
from ase.neighborlist import natural_cutoffs, neighbor_list
from mdtraj.formats.pdbx import load_pdbx
from numpy.typing import NDArray
from vesin import NeighborList

from .elements import ELEMENTS
from .errors import InputError, MissingDependencyError

SHORTEST_DISTANCE = 0.3  # angstrom; no two nuclei come closer in any simulation
BOND_TOLERANCE = 1.2  # bonded when closer than this times the sum of covalent radii
HOT_BOND_TOLERANCE = 1.3  # as far do C-H bonds stretch at 1000 K
FARTHEST = 1e5  # angstrom from the origin; vesin divides by zero from 1e6 on


class Structure(NamedTuple):
    """Atoms with their topology, in the same order."""

    atoms: Atoms
    topology: mdtraj.Topology


def read_structure(source: str) -> Structure:
    """Structure of a PDB, PDBx/mmCIF, SDF, MOL, XYZ or extended XYZ file (or any other that ASE
    reads), or of a SMILES string.

    Bonds come from the file; where it has none they are perceived from distances.

    Raises
    ------
    InputError : no such file and not a SMILES string, or a file that cannot be read.
    """
    path = Path(source)
    if not path.exists():
        if path.suffix or ("/" in source and not _may_be_smiles(source)):
            raise InputError(f"no file {source}")
        return _from_smiles(source)
    suffix = path.suffix.lower()
    try:
        if suffix == ".pdb":
            return _from_mdtraj(mdtraj.load_pdb(str(path)))
        if suffix in (".cif", ".mmcif", ".pdbx") and _is_macromolecular(path):
            return _from_mdtraj(load_pdbx(str(path)))
        if suffix in (".sdf", ".mol"):
            return _from_mol_file(path)
        atoms = ase_read(path)
    except (InputError, MissingDependencyError):
        raise
    except ImportError as error:
        raise MissingDependencyError(f"reading {path} needs another package: {error}") from error
    except Exception as error:  # the readers raise whatever their parsers run into
        detail = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"cannot read {path}: {detail[0]}") from error
    return Structure(atoms, make_topology(atoms, perceive_bonds(atoms)))


def read_frame(trajectory: str, topology: str = "", frame: int = 0) -> Structure:
    """One frame of any file that MDTraj reads.

    Parameters
    ----------
    topology : file with the atoms, for a trajectory that names none.
    frame : counted from 0; from the end if negative.

    Raises
    ------
    InputError : a file that cannot be read, or has no such frame.
    """
    options = {"top": topology} if topology else {}
    try:
        if frame < 0:
            frame += sum(len(chunk) for chunk in mdtraj.iterload(trajectory, **options))
        return _from_mdtraj(mdtraj.load_frame(trajectory, frame, **options))
    except InputError:
        raise
    except Exception as error:  # the readers raise whatever their parsers run into
        detail = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"cannot read frame {frame} of {trajectory}: {detail[0]}") from error


def check_structure(atoms: Atoms, elements: Sequence[str] = tuple(ELEMENTS)) -> None:
    """Refuse a structure that would give a meaningless number.

    Parameters
    ----------
    atoms : the structure.
    elements : symbols the student knows.

    Raises
    ------
    InputError : no atoms, positions that are NaN, infinite or absurdly far from the origin, unknown
        elements, a periodic cell of zero volume, atoms closer than 0.3 angstrom, or missing
        hydrogens.
    """
    if len(atoms) == 0:
        raise InputError("the structure has no atoms")
    misplaced = ~(np.abs(atoms.positions) < FARTHEST).all(1)
    if misplaced.any():
        index = int(misplaced.argmax())
        raise InputError(
            f"atom {index} ({atoms.symbols[index]}) has the position {atoms.positions[index]}"
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
            f"atom {bare[0]} ({atoms.symbols[bare[0]]}) lacks hydrogens by its geometry; a student "
            "is trained on complete molecules. Add them, e.g. with RDKit, Open Babel or PDBFixer"
        )


def check_cell(atoms: Atoms) -> None:
    """The part of `check_structure` that another cell may fail.

    Raises
    ------
    InputError : NaN or infinite lattice vectors, or a periodic cell of zero volume.
    """
    if not np.isfinite(atoms.cell.array).all():
        raise InputError(f"the cell {atoms.cell.array.tolist()} is not finite")
    if atoms.pbc.any() and (
        not atoms.cell.array[atoms.pbc].any(1).all() or abs(atoms.cell.complete().volume) < 1e-3
    ):
        raise InputError(
            f"periodic along {atoms.pbc}, but the cell {atoms.cell.array.tolist()} has no volume"
        )


def check_distances(atoms: Atoms) -> None:
    """The part of `check_structure` that another set of positions may fail.

    Raises
    ------
    InputError : atoms closer than 0.3 angstrom.
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


def edges_of(
    atoms: Atoms, cutoff: float, search: NeighborList | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Directed edges i <- j shorter than the cutoff, by vesin.

    Parameters
    ----------
    cutoff : angstrom.
    search : a list of this cutoff whose memory, and skin, serve again.

    Returns
    -------
    index : (2, E) [receiver, sender].
    vectors : (E, 3) x_j + S.cell - x_i, angstrom.
    """
    search = search or NeighborList(cutoff=cutoff, full_list=True, n_threads=1)
    pairs, vectors = search.compute(
        points=atoms.positions, box=atoms.cell.array, periodic=atoms.pbc, quantities="PD"
    )
    return np.ascontiguousarray(pairs.T.astype(np.int64)), vectors


def bare_atoms(
    numbers: NDArray[np.int64],
    index: NDArray[np.int64],
    vectors: NDArray[np.float64],
    owner: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Atoms whose neighbours leave room for hydrogens that are not there, in ascending order.

    By geometry, since most files carry no bond orders: a carbon with three neighbours is planar,
    one with two is linear, one with a single neighbour does not occur in stable closed-shell
    molecules but in carbon monoxide and isocyanides. The angles allow for thermal motion at 1000 K.
    Of other elements than hydrogen an atom without any bond is bare (the oxygen of a water without
    its hydrogens), unless it is all there is of a structure.

    Parameters
    ----------
    numbers : (N,) atomic numbers.
    index, vectors : (2, E) and (E, 3), edges as `edges_of` gives, farther than any bond.
    owner : (N,) number of the structure each atom is of.
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
    one, two, three = (np.flatnonzero(carbon & (count == k)) for k in (1, 2, 3))
    bare[one] = ~np.isin(partner[begin[one]], (7, 8))
    cosine = np.einsum("cx,cx->c", bonds_of(two, 0), bonds_of(two, 1))
    bare[two] = np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))) <= 140.0
    # Height above the plane of three points one bond direction away each: 0.33 for sp3, near 0 for
    # sp2, three-membered rings included.
    a, b, c = (bonds_of(three, bond) for bond in range(3))
    normal = np.cross(b - a, c - a)
    height = np.abs(np.einsum("cx,cx->c", normal, a))
    bare[three] = height >= 0.25 * np.linalg.norm(normal, axis=1)
    return np.flatnonzero(bare)


def perceive_bonds(atoms: Atoms) -> list[tuple[int, int]]:
    """Pairs closer than 1.2 times the sum of their covalent radii (Cordero et al. 2008)."""
    if len(atoms) == 0 or not np.isfinite(atoms.positions).all():
        return []
    first, second = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=BOND_TOLERANCE))
    return sorted({(int(i), int(j)) for i, j in zip(first, second, strict=True) if i < j})


def make_topology(atoms: Atoms, bonds: list[tuple[int, int]]) -> mdtraj.Topology:
    """MDTraj topology with one residue for each bonded fragment."""
    fragment = connected_fragments(len(atoms), bonds)
    topology = mdtraj.Topology()
    chain = topology.add_chain()
    residues: dict[int, mdtraj.core.topology.Residue] = {}
    counts: dict[tuple[int, str], int] = {}
    # A topology lists atoms residue by residue; fragments that interleave share one residue.
    interleaved = bool((np.diff(fragment) < 0).any())
    for index, symbol in enumerate(atoms.symbols):
        home = 0 if interleaved else int(fragment[index])
        if home not in residues:
            residues[home] = topology.add_residue("MOL", chain, resSeq=home + 1)
        counts[home, symbol] = counts.get((home, symbol), 0) + 1
        topology.add_atom(
            f"{symbol}{counts[home, symbol]}",
            mdtraj.element.Element.getBySymbol(symbol),
            residues[home],
        )
    members = list(topology.atoms)
    for i, j in bonds:
        topology.add_bond(members[i], members[j])
    return topology


def connected_fragments(atoms: int, bonds: list[tuple[int, int]]) -> NDArray[np.int_]:
    """Number of the bonded fragment each atom belongs to, (atoms,), counted in atom order."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    i, j = np.array(bonds, dtype=int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(i)), (i, j)), shape=(atoms, atoms))
    _, label = connected_components(graph, directed=False)
    order = np.unique(label, return_index=True)[1]
    return np.argsort(np.argsort(order))[label]


def in_engine_orientation(structure: Structure) -> Structure:
    """The same structure turned so that its cell is lower triangular and reduced, the one form that
    OpenMM and LAMMPS both take; an open structure as it is.
    """
    atoms = structure.atoms.copy()
    if not atoms.pbc.all() or not abs(atoms.cell.volume) > 0:
        return structure
    cell, rotation = atoms.cell.standard_form()
    atoms.set_cell(cell)
    atoms.positions = atoms.positions @ rotation.T
    a, b, c = atoms.cell.array * np.sign(np.diag(cell.array))[:, None]
    b = b - a * round(b[0] / a[0])
    c = c - b * round(c[1] / b[1])
    c = c - a * round(c[0] / a[0])
    atoms.set_cell([a, b, c])
    return Structure(atoms, structure.topology)


def write_topology(structure: Structure, path: Path) -> None:
    """PDB file with CONECT records, for any program that reads the trajectory.

    A PDB file gives a cell by lengths and angles: a periodic structure is turned to fit them.
    """
    structure = in_engine_orientation(structure)
    atoms = structure.atoms
    lengths = angles = None
    if atoms.pbc.all():
        a, b, c, alpha, beta, gamma = atoms.cell.cellpar()
        lengths, angles = np.array([[a, b, c]]) / 10.0, np.array([[alpha, beta, gamma]])
    mdtraj.Trajectory(
        atoms.positions[None] / 10.0,
        structure.topology,
        unitcell_lengths=lengths,
        unitcell_angles=angles,
    ).save_pdb(str(path), bond_orders=False)


def _may_be_smiles(text: str) -> bool:
    return any(mark in text for mark in "=#()[]")


def _from_smiles(smiles: str) -> Structure:
    from .distill.molecules import embed

    atoms, bonds = embed(smiles)
    return Structure(atoms, make_topology(atoms, bonds))


def _is_macromolecular(path: Path) -> bool:
    return "_atom_site.label_asym_id" in path.read_text(errors="replace")


def _from_mdtraj(trajectory: mdtraj.Trajectory) -> Structure:
    symbols = []
    for atom in trajectory.topology.atoms:
        if atom.element is None or atom.element.symbol == "VS":
            raise InputError(f"atom {atom.index} ({atom}) has no element")
        symbols.append(atom.element.symbol)
    atoms = Atoms(symbols, positions=trajectory.xyz[0].astype(float) * 10.0)
    if trajectory.unitcell_vectors is not None:
        atoms.cell = trajectory.unitcell_vectors[0].astype(float) * 10.0
        atoms.pbc = True
    topology = trajectory.topology
    if topology.n_bonds < len(atoms) - topology.n_chains and not any(topology.bonds):
        members = list(topology.atoms)
        for i, j in perceive_bonds(atoms):
            topology.add_bond(members[i], members[j])
    return Structure(atoms, topology)


def _from_mol_file(path: Path) -> Structure:
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        molecule = next(iter(Chem.SDMolSupplier(str(path), removeHs=False)), None)
    if molecule is None or not molecule.GetNumConformers():
        raise InputError(f"{path} holds no molecule that RDKit can read")
    implicit = [atom.GetIdx() for atom in molecule.GetAtoms() if atom.GetTotalNumHs()]
    if implicit:
        atom = molecule.GetAtomWithIdx(implicit[0])
        raise InputError(
            f"{path}: atom {implicit[0]} ({atom.GetSymbol()}) lacks {atom.GetTotalNumHs()} "
            "hydrogen(s); write the file with explicit hydrogens"
        )
    atoms = Atoms(
        [atom.GetSymbol() for atom in molecule.GetAtoms()],
        positions=molecule.GetConformer().GetPositions(),
    )
    bonds = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in molecule.GetBonds()]
    return Structure(atoms, make_topology(atoms, bonds))
