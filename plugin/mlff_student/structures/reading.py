"""Read structures with their bonds from files and SMILES strings, and write topology files."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from io import StringIO
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.db import connect
from ase.io import iread
from ase.io import read as ase_read

from mlff_student.core.errors import InputError, MissingDependencyError
from mlff_student.core.processes import signal_of
from mlff_student.structures.checks import (
    charge_and_multiplicity,
    connected_fragments,
    deuterium,
    perceive_bonds,
)
from mlff_student.structures.smiles import (
    atoms_and_bonds,
    embed,
    is_smiles,
    rdkit_chem,
    shorten,
)
from mlff_student.structures.text import (
    ISOTOPES,
    check_poscar,
    choose_frame,
    element_of,
    frames_of_gro,
    frames_of_pdb,
    frames_of_xyz,
    pdb_text,
    with_elements,
)

if TYPE_CHECKING:
    import mdtraj
    from mdtraj.core.topology import Residue

logger = logging.getLogger(__name__)

SUFFIXES = (
    ".pdb", ".ent", ".cif", ".mmcif", ".pdbx", ".sdf", ".mol", ".mol2", ".xyz", ".extxyz", ".gro",
    ".traj", ".vasp", ".json", ".db", ".gz",
)  # fmt: skip
# The largest number of bonds of elements that have one valence.
MOST_BONDS = {1: 1, 6: 4, 9: 1, 17: 1, 35: 1}


class Structure(NamedTuple):
    """Atoms with their topology, in the same order.

    Attributes
    ----------
    atoms : Atoms
        Structure, angstrom. It has a charge, unpaired electrons and the masses of isotopes if the
        file states them; see `read_structure`.
    topology : mdtraj.Topology
        Residues and bonds.
    """

    atoms: Atoms
    topology: "mdtraj.Topology"


def read_structure(source: str) -> Structure:
    """Read a structure from a file, or make it from a SMILES string.

    The file may be PDB, PDBx/mmCIF, SDF, MOL, XYZ, extended XYZ, GRO or any other format that ASE
    reads. Of several frames or molecules the first is read, and a warning says how many there are;
    `FILE@INDEX` reads another one, counted from 0, or from the end if the index is negative.

    Bonds come from the file, and those of the standard residues from their names. Where atoms can
    have more bonds, `perceive_bonds` adds them, for example in a ligand without CONECT records. A
    cell of zeros means that there is no cell.

    Formal charges and unpaired electrons are stored in `initial_charges` and `initial_magmoms`, the
    total charge and multiplicity, if they are not 0 and 1, in `info["charge"]` and `info["spin"]`.
    D is hydrogen with the mass of deuterium; other isotopes have their masses too.

    Parameters
    ----------
    source : str
        Path of a file, or SMILES string.

    Raises
    ------
    InputError
        There is no such file and the text is not a SMILES string, or the file cannot be read or has
        no such frame.
    MissingDependencyError
        A package that reads this format is not installed.
    """
    located = _located(source)
    if located is None:
        return _from_smiles(source)
    path, index = located
    try:
        structure, count = _read(path, index or 0)
        _store_charge(structure.atoms)
    except MissingDependencyError:
        raise
    except InputError as error:
        raise error if str(path) in str(error) else InputError(f"{path}: {error}") from error
    except ImportError as error:
        raise MissingDependencyError(f"reading {path} needs another package: {error}") from error
    except Exception as error:  # the readers raise errors of any kind
        raise InputError(f"cannot read {path}: {_first_line(error)}") from error
    if count > 1 and index is None:
        logger.warning(
            "%s has %d frames or molecules; the first is read. %s@1 is the second, %s@-1 the last",
            path, count, path, path,
        )  # fmt: skip
    return structure


def _located(source: str) -> tuple[Path, int | None] | None:
    """Return the path and, for FILE@INDEX, the index of a source; None if it is not a file."""
    if _exists(source):
        return Path(source), None
    name, _, index = source.rpartition("@")
    if name and index.removeprefix("-").isdecimal() and len(index) < 10 and _exists(name):
        return Path(name), int(index)
    return None


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # a SMILES string may be longer than a file name can be
        return False


def _read(path: Path, index: int) -> tuple[Structure, int]:
    """Read the frame or molecule of an index; return it with the number of frames in the file."""
    suffix = path.suffix.lower()
    if suffix in (".pdb", ".ent"):
        return _from_pdb(path, index)
    if suffix in (".cif", ".mmcif", ".pdbx") and _is_macromolecular(path):
        return _from_mmcif(path, index)
    if suffix in (".sdf", ".mol"):
        return _from_mol_file(path, index)
    if suffix in (".xyz", ".extxyz"):
        atoms, count = _from_xyz(path, index)
    elif suffix == ".gro":
        atoms, count = _from_gro(path, index)
    else:
        check_poscar(path)
        frames = (
            _rows_of_database(path)
            if suffix in (".db", ".json")
            else iread(path, index=":", do_not_split_by_at_sign=True)
        )
        atoms, count = choose_frame(path, frames, index)
    if atoms.pbc.any() and not atoms.cell.any():
        atoms.pbc = False
    if atoms.constraints:  # which ASE's integrators would apply, and no other engine
        logger.warning("%s fixes atoms; its constraints are not used, and all atoms move", path)
        atoms.set_constraint()
    return Structure(atoms, make_topology(atoms, perceive_bonds(atoms))), count


def _rows_of_database(path: Path) -> Iterator[Atoms]:
    """Read the rows of an ASE database with their columns in `info`, which `iread` leaves out."""
    for row in connect(path).select():
        yield row.toatoms(add_additional_information=True)


def _from_xyz(path: Path, index: int) -> tuple[Atoms, int]:
    frame, count = choose_frame(path, frames_of_xyz(path), index)
    lines, isotopes = with_elements(path, frame)
    atoms = ase_read(StringIO("".join(lines)), index=0, format="extxyz")
    for key, value in re.findall(r"(?i)\b(charge|mult\w*)\s*:\s*([+-]?\d+)\b", frame[1]):
        atoms.info.setdefault(key.lower() if key.lower() == "charge" else "mult", float(value))
    if isotopes:
        masses = atoms.get_masses()
        masses[list(isotopes)] = list(isotopes.values())
        atoms.set_masses(masses)
    return atoms, count


def _from_gro(path: Path, index: int) -> tuple[Atoms, int]:
    """Read a GRO file, which has names of atoms but no elements."""
    frame, count = choose_frame(path, frames_of_gro(path), index)
    atoms = ase_read(StringIO("".join(frame)), format="gromacs")
    velocities = atoms.get_velocities() if atoms.has("momenta") else None
    residues = [line[:10] for line in frame[2:-1]]
    names = [line[10:15].strip() for line in frame[2:-1]]
    sizes = Counter(residues)
    symbols = [element_of(name, sizes[r]) for name, r in zip(names, residues, strict=True)]
    if "" in symbols:
        raise InputError(
            f"{path}: the name {names[symbols.index('')]!r} of atom {symbols.index('')} has no "
            "element; expected is a name that begins with one"
        )
    _set_symbols(atoms, symbols)
    if velocities is not None:  # ASE stores momenta, with the masses of the elements
        atoms.set_velocities(velocities)
    return atoms, count


def _set_symbols(atoms: Atoms, symbols: list[str]) -> None:
    """Set elements; D is hydrogen with the mass of deuterium."""
    atoms.set_chemical_symbols(["H" if symbol == "D" else symbol for symbol in symbols])
    if "D" in symbols:
        masses = atoms.get_masses()
        masses[[symbol == "D" for symbol in symbols]] = ISOTOPES["D"]
        atoms.set_masses(masses)


def _store_charge(atoms: Atoms) -> None:
    """Store a charge and a multiplicity in both forms that calculators read.

    Some read `info`. Others, such as tblite, read the sums of the initial charges and magnetic
    moments, which are spread evenly here if the file has the sums only.
    """
    charge, multiplicity = charge_and_multiplicity(atoms)
    for key, value, none, name, total in (
        ("charge", charge, 0.0, "initial_charges", charge),
        ("spin", multiplicity, 1.0, "initial_magmoms", multiplicity - 1.0),
    ):
        if value != none:
            atoms.info[key] = int(value) if value % 1 == 0 else value
            if name not in atoms.arrays:
                atoms.set_array(name, np.full(len(atoms), total / len(atoms)))


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

    def read() -> "mdtraj.Trajectory":
        index = frame
        if index < 0:
            index += sum(len(chunk) for chunk in mdtraj.iterload(trajectory, **options))
        return mdtraj.load_frame(trajectory, index, **options)

    try:
        if trajectory.lower().endswith((".trr", ".h5", ".hdf5")) and (end := signal_of(read)):
            raise InputError(f"{trajectory} is damaged: reading it ends a process with {end}")
        return _from_mdtraj(read())
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
    heavy = deuterium(atoms)
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
            mdtraj.element.Element.getBySymbol("D" if heavy[index] else symbol),
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


def _from_smiles(text: str) -> Structure:
    is_path = "/" in text and not any(mark in text for mark in "=#()[]")
    if Path(text).suffix.lower() in SUFFIXES or is_path:
        raise InputError(f"there is no file {text}")
    if not is_smiles(text):
        raise InputError(f"there is no file {shorten(text)}, and it is not a SMILES string")
    atoms, bonds = embed(text)
    _store_charge(atoms)
    return Structure(atoms, make_topology(atoms, bonds))


def _is_macromolecular(path: Path) -> bool:
    return "_atom_site.label_asym_id" in path.read_text(errors="replace")


def _from_pdb(path: Path, index: int) -> tuple[Structure, int]:
    import mdtraj

    shared: list[str] = []
    frame, count = choose_frame(path, frames_of_pdb(path, shared), index)
    with NamedTemporaryFile("w", suffix=".pdb") as file:
        file.write(pdb_text(frame, shared))
        file.flush()
        return _from_mdtraj(mdtraj.load_pdb(file.name)), count


def _from_mmcif(path: Path, index: int) -> tuple[Structure, int]:
    from mdtraj.formats.pdbx import load_pdbx
    from mdtraj.formats.pdbx.PdbxReader import PdbxReader

    frames = load_pdbx(str(path))
    number, count = choose_frame(path, range(len(frames)), index)
    frame = frames[number]
    blocks: list[Any] = []
    with path.open(errors="replace") as file:
        PdbxReader(file).read(blocks)
    sites = blocks[0].getObj("atom_site")
    serial, charge = map(sites.getAttributeIndex, ("id", "pdbx_formal_charge"))
    if charge >= 0:
        charges = {row[serial]: row[charge] for row in sites.getRowList()}
        for atom in frame.topology.atoms:
            text = charges.get(atom.serial, "?")
            # mmCIF has -1; some programs write 1-, as in PDB.
            atom.formal_charge = 0 if text in ".?" else int(re.sub(r"^(\d+)([+-])$", r"\2\1", text))
    for (
        residue
    ) in frame.topology.residues:  # MDTraj reads these numbers as text, but writes numbers
        residue.resSeq = int(residue.resSeq)
    for atom in frame.topology.atoms:
        atom.serial = None
    return _from_mdtraj(frame), count


def _from_mdtraj(trajectory: "mdtraj.Trajectory") -> Structure:
    """Return the first frame of a trajectory."""
    symbols = []
    for atom in trajectory.topology.atoms:
        if atom.element is None or atom.element.symbol == "VS":
            raise InputError(
                f"atom {atom.index} ({atom}) has no element; expected is an element for every atom"
            )
        symbols.append(atom.element.symbol)
    atoms = Atoms(len(symbols) * "X", positions=trajectory.xyz[0].astype(float) * 10.0)
    _set_symbols(atoms, symbols)
    charges = [atom.formal_charge or 0 for atom in trajectory.topology.atoms]
    if any(charges):
        atoms.set_initial_charges(charges)
    if trajectory.unitcell_lengths is not None and trajectory.unitcell_lengths[0].any():
        atoms.cell = trajectory.unitcell_vectors[0].astype(float) * 10.0
        atoms.pbc = True
    members = list(trajectory.topology.atoms)
    for i, j in missing_bonds(atoms, [(a.index, b.index) for a, b in trajectory.topology.bonds]):
        trajectory.topology.add_bond(members[i], members[j])
    return Structure(atoms, trajectory.topology)


def missing_bonds(atoms: Atoms, bonds: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Find bonds by distance that are not in a list, between atoms that can have more bonds.

    A file may have the bonds of some residues only, and some of the bonds of a residue. Hydrogen
    and the halogens have one bond, carbon has four at most: close contacts of complete molecules
    are not bonds.

    Parameters
    ----------
    atoms : Atoms
        Structure.
    bonds : Iterable[tuple[int, int]]
        Pairs of bonded atoms that are known.

    Returns
    -------
    list[tuple[int, int]]
        Pairs of atom indices (i < j) in ascending order.
    """
    known = {(min(pair), max(pair)) for pair in bonds}
    count = np.bincount(np.array(list(known), int).reshape(-1), minlength=len(atoms))
    most = np.array([MOST_BONDS.get(number, len(atoms)) for number in atoms.numbers])
    room = count < most
    return [(i, j) for i, j in perceive_bonds(atoms) if room[i] and room[j] and (i, j) not in known]


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
    supplier = _supplier(path)
    for index in range(len(supplier)):
        yield _molecule(path, supplier, index)


def _supplier(path: Path) -> Any:
    """Return RDKit's list of the molecules in a file, which reads each when it is asked for."""
    chem = rdkit_chem()
    from rdkit import rdBase

    with rdBase.BlockLogs():
        supplier = chem.SDMolSupplier(str(path), removeHs=False)
        len(supplier)  # here it looks for the ends of the molecules
    return supplier


def _molecule(path: Path, supplier: Any, index: int) -> Any:
    from rdkit import rdBase

    with rdBase.BlockLogs():
        molecule = supplier[index]
    if molecule is None or not molecule.GetNumConformers():
        raise InputError(
            f"{path}, structure {index} (the first is 0): RDKit cannot read it, or it has no "
            "geometry"
        )
    return molecule


def _from_mol_file(path: Path, index: int) -> tuple[Structure, int]:
    supplier = _supplier(path)
    number, count = choose_frame(path, range(len(supplier)), index)
    molecule = _molecule(path, supplier, number)
    implicit = [atom.GetIdx() for atom in molecule.GetAtoms() if atom.GetTotalNumHs()]
    if implicit:
        atom = molecule.GetAtomWithIdx(implicit[0])
        raise InputError(
            f"{path}: atom {implicit[0]} ({atom.GetSymbol()}) lacks {atom.GetTotalNumHs()} "
            "hydrogen(s); write the file with explicit hydrogens"
        )
    atoms, bonds = atoms_and_bonds(molecule)
    return Structure(atoms, make_topology(atoms, bonds)), count
