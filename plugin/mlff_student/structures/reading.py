"""Read structures with their bonds from files and SMILES strings, and write topology files."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.io import read as ase_read

from mlff_student.core.errors import InputError, MissingDependencyError
from mlff_student.structures.checks import connected_fragments, perceive_bonds
from mlff_student.structures.smiles import atoms_and_bonds, embed, rdkit_chem

if TYPE_CHECKING:
    import mdtraj
    from mdtraj.core.topology import Residue


class Structure(NamedTuple):
    """Atoms with their topology, in the same order.

    Attributes
    ----------
    atoms : Atoms
        Structure, angstrom.
    topology : mdtraj.Topology
        Residues and bonds.
    """

    atoms: Atoms
    topology: "mdtraj.Topology"


def read_structure(source: str) -> Structure:
    """Read a structure from a file, or make it from a SMILES string.

    The file may be PDB, PDBx/mmCIF, SDF, MOL, XYZ, extended XYZ or any other format that ASE reads.
    Bonds come from the file; if it has none, they are found by distance (`perceive_bonds`).

    Parameters
    ----------
    source : str
        Path of a file, or SMILES string.

    Raises
    ------
    InputError
        There is no such file and the text is not a SMILES string, or the file cannot be read.
    MissingDependencyError
        A package that reads this format is not installed.
    """
    path = Path(source)
    if not path.exists():
        if path.suffix or ("/" in source and not _may_be_smiles(source)):
            raise InputError(f"there is no file {source}")
        return _from_smiles(source)
    suffix = path.suffix.lower()
    try:
        if suffix == ".pdb":
            import mdtraj

            return _from_mdtraj(mdtraj.load_pdb(str(path)))
        if suffix in (".cif", ".mmcif", ".pdbx") and _is_macromolecular(path):
            from mdtraj.formats.pdbx import load_pdbx

            return _from_mdtraj(load_pdbx(str(path)))
        if suffix in (".sdf", ".mol"):
            return _from_mol_file(path)
        atoms = ase_read(path)
    except (InputError, MissingDependencyError):
        raise
    except ImportError as error:
        raise MissingDependencyError(f"reading {path} needs another package: {error}") from error
    except Exception as error:  # the readers raise errors of any kind
        raise InputError(f"cannot read {path}: {_first_line(error)}") from error
    return Structure(atoms, make_topology(atoms, perceive_bonds(atoms)))


def read_frame(trajectory: str, topology: str = "", frame: int = 0) -> Structure:
    """Read one frame of any file that MDTraj reads.

    Parameters
    ----------
    trajectory : str
        Trajectory file.
    topology : str
        File with the atoms, for a trajectory that does not contain them.
    frame : int
        Index of the frame, counted from 0; a negative index counts from the end.

    Raises
    ------
    InputError
        The file cannot be read or has no such frame.
    """
    import mdtraj

    options = {"top": topology} if topology else {}
    try:
        if frame < 0:
            frame += sum(len(chunk) for chunk in mdtraj.iterload(trajectory, **options))
        return _from_mdtraj(mdtraj.load_frame(trajectory, frame, **options))
    except InputError:
        raise
    except Exception as error:  # the readers raise errors of any kind
        raise InputError(
            f"cannot read frame {frame} of {trajectory}: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    """Return the first line of a message, or the name of the error if there is no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def make_topology(atoms: Atoms, bonds: list[tuple[int, int]]) -> "mdtraj.Topology":
    """Make an MDTraj topology with one residue for each bonded fragment.

    If the atoms of the fragments are not in consecutive order, there is one residue only.

    Parameters
    ----------
    atoms : Atoms
        Structure.
    bonds : list[tuple[int, int]]
        Pairs of bonded atoms.
    """
    import mdtraj

    fragment = connected_fragments(len(atoms), bonds)
    topology = mdtraj.Topology()
    chain = topology.add_chain()
    residues: dict[int, Residue] = {}
    counts: dict[tuple[int, str], int] = {}
    # A topology lists atoms residue by residue.
    interleaved = bool((np.diff(fragment) < 0).any())
    for index, symbol in enumerate(atoms.symbols):
        number = 0 if interleaved else int(fragment[index])
        if number not in residues:
            residues[number] = topology.add_residue("MOL", chain, resSeq=number + 1)
        counts[number, symbol] = counts.get((number, symbol), 0) + 1
        topology.add_atom(
            f"{symbol}{counts[number, symbol]}",
            mdtraj.element.Element.getBySymbol(symbol),
            residues[number],
        )
    members = list(topology.atoms)
    for i, j in bonds:
        topology.add_bond(members[i], members[j])
    return topology


def in_engine_orientation(structure: Structure) -> Structure:
    """Rotate a periodic structure so that its cell is lower triangular and reduced.

    This is the form that both OpenMM and LAMMPS accept. A structure that is open or has no volume
    is returned as it is.

    Parameters
    ----------
    structure : Structure
        Structure to rotate; it is not changed.
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
    """Write a PDB file with CONECT records, for programs that read the trajectory.

    A PDB file describes a cell by lengths and angles. Therefore a periodic structure is written in
    the orientation of `in_engine_orientation`.

    Parameters
    ----------
    structure : Structure
        Structure to write.
    path : Path
        PDB file.
    """
    import mdtraj

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
    atoms, bonds = embed(smiles)
    return Structure(atoms, make_topology(atoms, bonds))


def _is_macromolecular(path: Path) -> bool:
    return "_atom_site.label_asym_id" in path.read_text(errors="replace")


def _from_mdtraj(trajectory: "mdtraj.Trajectory") -> Structure:
    symbols = []
    for atom in trajectory.topology.atoms:
        if atom.element is None or atom.element.symbol == "VS":
            raise InputError(
                f"atom {atom.index} ({atom}) has no element; expected is an element for every atom"
            )
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


def read_molecules(path: Path) -> Iterator[Any]:
    """Read the molecules of an SDF or MOL file in their order with RDKit.

    Parameters
    ----------
    path : Path
        SDF or MOL file.

    Yields
    ------
    Any
        RDKit molecule with a geometry.

    Raises
    ------
    InputError
        RDKit cannot read a molecule, or a molecule has no geometry.
    MissingDependencyError
        RDKit is not installed.
    """
    chem = rdkit_chem()
    from rdkit import rdBase

    with rdBase.BlockLogs():
        supplier = chem.SDMolSupplier(str(path), removeHs=False)
        count = len(supplier)
    for index in range(count):
        with rdBase.BlockLogs():
            molecule = supplier[index]
        if molecule is None or not molecule.GetNumConformers():
            raise InputError(
                f"{path}, structure {index} (the first is 0): RDKit cannot read it, or it has no "
                "geometry"
            )
        yield molecule


def _from_mol_file(path: Path) -> Structure:
    molecule = next(read_molecules(path), None)
    if molecule is None:
        raise InputError(f"{path} contains no molecule")
    implicit = [atom.GetIdx() for atom in molecule.GetAtoms() if atom.GetTotalNumHs()]
    if implicit:
        atom = molecule.GetAtomWithIdx(implicit[0])
        raise InputError(
            f"{path}: atom {implicit[0]} ({atom.GetSymbol()}) lacks {atom.GetTotalNumHs()} "
            "hydrogen(s); write the file with explicit hydrogens"
        )
    atoms, bonds = atoms_and_bonds(molecule)
    return Structure(atoms, make_topology(atoms, bonds))
