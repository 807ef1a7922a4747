"""Structures of every format are read; those with meaningless energies are refused."""

from pathlib import Path

import mdtraj
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import write
from rdkit import Chem
from rdkit.Chem import AllChem

from mlff_student.core.errors import InputError, StudentError
from mlff_student.distill.molecules import read_library
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.model.elements import ELEMENTS
from mlff_student.structures.checks import check_structure, perceive_bonds
from mlff_student.structures.reading import Structure, make_topology, read_structure, write_topology
from mlff_student.structures.smiles import embed

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"  # 21 atoms, 21 bonds
PDB_ROUNDING = 6e-4  # angstrom; the format has three decimals


@pytest.fixture(scope="module")
def aspirin() -> tuple[Atoms, list[tuple[int, int]]]:
    return embed(ASPIRIN)


def bonds_of(structure: Structure) -> set[tuple[int, int]]:
    return {tuple(sorted((a.index, b.index))) for a, b in structure.topology.bonds}


def sorted_pairs(bonds: list[tuple[int, int]]) -> set[tuple[int, int]]:
    return {tuple(sorted(pair)) for pair in bonds}


def rdkit_molecule(atoms: Atoms) -> Chem.Mol:
    mol = Chem.AddHs(Chem.MolFromSmiles(ASPIRIN))
    AllChem.EmbedMolecule(mol, randomSeed=1)
    for index, position in enumerate(atoms.positions):
        mol.GetConformer().SetAtomPosition(index, position.tolist())
    return mol


# --- Reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["pdb", "cif", "sdf", "mol", "xyz", "extxyz"])
def test_every_format_gives_the_same_molecule(
    suffix: str, aspirin: tuple[Atoms, list[tuple[int, int]]], tmp_path: Path
):
    atoms, bonds = aspirin
    path = tmp_path / f"aspirin.{suffix}"
    if suffix == "pdb":
        write_topology(Structure(atoms, make_topology(atoms, bonds)), path)
    elif suffix == "cif":
        topology = make_topology(atoms, bonds)
        mdtraj.Trajectory(atoms.positions[None] / 10.0, topology).save_cif(str(path))
    elif suffix in ("sdf", "mol"):
        with Chem.SDWriter(str(path)) as writer:
            writer.write(rdkit_molecule(atoms))
    else:
        write(path, atoms)
    structure = read_structure(str(path))
    assert list(structure.atoms.symbols) == list(atoms.symbols)
    # mdtraj stores positions as float32, in nm; a mol file has four decimals.
    np.testing.assert_allclose(structure.atoms.positions, atoms.positions, atol=PDB_ROUNDING)
    assert not structure.atoms.pbc.any()
    assert bonds_of(structure) == sorted_pairs(bonds)
    assert [a.element.symbol for a in structure.topology.atoms] == list(atoms.symbols)
    check_structure(structure.atoms)


def test_pdb_written_by_another_program_without_bonds(tmp_path: Path):
    path = tmp_path / "ethanol.pdb"
    write(path, molecule("CH3CH2OH"))
    structure = read_structure(str(path))
    assert bonds_of(structure) == sorted_pairs(perceive_bonds(molecule("CH3CH2OH")))
    assert structure.topology.n_bonds == 8


def test_periodic_files_keep_their_cell(structures: dict[str, Atoms], tmp_path: Path):
    for name in ("water_box", "triclinic"):
        atoms = structures[name]
        for suffix in ("extxyz", "pdb"):
            path = tmp_path / f"{name}.{suffix}"
            write(path, atoms)
            stored = read_structure(str(path)).atoms
            assert stored.pbc.all()
            # PDB has lengths to 1e-3 angstrom and angles to 1e-2 degrees.
            tolerance = 1e-7 if suffix == "extxyz" else 5e-3
            np.testing.assert_allclose(stored.cell.array, atoms.cell.array, atol=tolerance)


def test_small_molecule_cif_is_read_as_a_crystal(tmp_path: Path):
    path = tmp_path / "crystal.cif"
    write(path, molecule("H2O", cell=[4.0, 5.0, 6.0], pbc=True))
    atoms = read_structure(str(path)).atoms
    assert atoms.pbc.all()
    assert atoms.cell.lengths() == pytest.approx([4.0, 5.0, 6.0])


@pytest.mark.parametrize(
    ("smiles", "formula"),
    [("CCO", "C2H6O"), ("[H][H]", "H2"), ("C/C=C/C", "C4H8"), ("N#N", "N2"),
     (r"F/C=C\F", "C2H2F2"), ("C[C@H](N)C(=O)O", "C3H7NO2"), ("O=C=O", "CO2")],
)  # fmt: skip
def test_smiles(smiles: str, formula: str):
    structure = read_structure(smiles)
    assert structure.atoms.get_chemical_formula() == formula
    assert structure.topology.n_atoms == len(structure.atoms)
    check_structure(structure.atoms)


@pytest.mark.parametrize("smiles", ["CCO", ASPIRIN, "C#N", "O=S(=O)(Cl)Cl", "BrCCBr"])
def test_perceived_bonds_equal_those_of_the_smiles(smiles: str):
    atoms, bonds = embed(smiles)
    assert set(perceive_bonds(atoms)) == sorted_pairs(bonds)


def test_residues_are_molecules(structures: dict[str, Atoms]):
    atoms = structures["triclinic"]
    topology = make_topology(atoms, perceive_bonds(atoms))
    assert topology.n_residues == 8
    assert sorted({residue.n_atoms for residue in topology.residues}) == [3, 6]
    names = [(atom.residue.index, atom.name) for atom in topology.atoms]
    assert len(set(names)) == len(atoms)


def test_bonds_across_a_periodic_boundary(structures: dict[str, Atoms]):
    unwrapped = structures["water_box"]
    unwrapped.positions -= unwrapped.cell.array.sum(0) / 8.0  # molecules onto the faces
    wrapped = unwrapped.copy()
    wrapped.wrap()
    assert np.abs(wrapped.positions - unwrapped.positions).max() > 1.0  # a molecule is cut
    assert set(perceive_bonds(wrapped)) == set(perceive_bonds(unwrapped))
    assert len(perceive_bonds(wrapped)) == 16


def test_written_topology_can_be_read_back(structures: dict[str, Atoms], tmp_path: Path):
    for name, atoms in structures.items():
        path = tmp_path / "topology.pdb"
        structure = Structure(atoms, make_topology(atoms, perceive_bonds(atoms)))
        write_topology(structure, path)
        stored = read_structure(str(path))
        assert list(stored.atoms.symbols) == list(atoms.symbols), name
        assert bonds_of(stored) == bonds_of(structure), name
        assert (stored.atoms.pbc == atoms.pbc).all(), name


# --- Files that cannot be read --------------------------------------------------------------------


@pytest.mark.parametrize("source", ["nothing.pdb", "folder/nothing.xyz", "./nothing", "no/such"])
def test_missing_file(source: str):
    with pytest.raises(InputError, match=f"no file {source}"):
        read_structure(source)


@pytest.mark.parametrize("source", ["not a molecule", "C1CC", "C(C", "Xx", "C(C)(C)(C)(C)C"])
def test_text_that_is_not_a_smiles_string(source: str):
    with pytest.raises(InputError, match=r"SMILES|no file"):
        read_structure(source)


@pytest.mark.parametrize(
    "suffix", ["pdb", "cif", "mmcif", "sdf", "mol", "xyz", "extxyz", "gro", "dat", "json"]
)
@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b"nonsense, not a structure\n", bytes(range(256))]
)
def test_unreadable_files_are_input_errors(suffix: str, content: bytes, tmp_path: Path):
    path = tmp_path / f"bad.{suffix}"
    path.write_bytes(content)
    try:
        structure = read_structure(str(path))
    except StudentError as error:
        assert str(path) in str(error)
    else:
        with pytest.raises(InputError):  # the reader accepted the file and returned no atoms
            check_structure(structure.atoms)


@pytest.mark.parametrize("suffix", ["xyz", "extxyz", "sdf", "pdb"])
def test_truncated_files_are_input_errors(
    suffix: str, aspirin: tuple[Atoms, list[tuple[int, int]]], tmp_path: Path
):
    atoms, bonds = aspirin
    path = tmp_path / f"cut.{suffix}"
    if suffix == "sdf":
        path.write_text(Chem.MolToMolBlock(rdkit_molecule(atoms)))
    elif suffix == "pdb":
        write_topology(Structure(atoms, make_topology(atoms, bonds)), path)
    else:
        write(path, atoms)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3])
    with pytest.raises(InputError):  # the reader refuses the file, or hydrogens are missing
        check_structure(read_structure(str(path)).atoms)


def test_folders_are_input_errors(tmp_path: Path):
    for source in (str(tmp_path), "."):
        with pytest.raises(InputError):
            read_structure(source)
    with pytest.raises(InputError):
        read_structure("")


def test_mol_file_without_hydrogens_is_refused(tmp_path: Path):
    path = tmp_path / "bare.sdf"
    bare = Chem.MolFromSmiles("CCO")
    AllChem.EmbedMolecule(bare, randomSeed=1)
    path.write_text(Chem.MolToMolBlock(bare))
    with pytest.raises(InputError, match=r"atom 0 \(C\) lacks 3 hydrogen"):
        read_structure(str(path))


# --- Refused structures -------------------------------------------------------------------------


def test_empty_structure():
    with pytest.raises(InputError, match="no atoms"):
        check_structure(Atoms())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_positions_that_are_not_finite(value: float):
    atoms = molecule("CH3OH")
    atoms.positions[3, 1] = value
    with pytest.raises(InputError, match=r"atom 3 \(H\) has the position .*(nan|inf)"):
        check_structure(atoms)


def test_unknown_elements_are_named_with_the_known():
    atoms = Atoms("SiH4", positions=molecule("SiH4").positions)
    with pytest.raises(InputError, match="does not know Si; it knows " + ", ".join(ELEMENTS)):
        check_structure(atoms)
    with pytest.raises(InputError, match=r"does not know O; it knows H, C$"):
        check_structure(molecule("CH3OH"), ("H", "C"))
    with pytest.raises(InputError, match="does not know X;"):
        check_structure(Atoms("XH", positions=[[0, 0, 0], [0, 0, 1]]))


@pytest.mark.parametrize(
    ("cell", "pbc"),
    [
        ([0, 0, 0], True),
        ([10, 10, 0], True),
        ([10, 0, 10], (True, True, False)),
        ([[5, 0, 0], [10, 0, 0], [0, 0, 5]], True),
        ([[5, 0, 0], [10, 0, 0], [0, 0, 5]], (True, True, False)),
        ([[5, 5, 0], [0, 5, 5], [5, 10, 5]], True),
    ],
)
def test_periodic_cells_without_volume(cell: list, pbc: bool | tuple[bool, ...]):
    atoms = molecule("H2O")
    atoms.cell = cell
    atoms.pbc = pbc
    with pytest.raises(InputError, match="has no volume"):
        check_structure(atoms)


@pytest.mark.parametrize("pbc", [True, False])
@pytest.mark.parametrize("length", [np.nan, np.inf])
def test_cells_that_are_not_finite(length: float, pbc: bool):
    with pytest.raises(InputError, match="is not finite"):
        check_structure(molecule("H2O", cell=[length, 10, 10], pbc=pbc))


@pytest.mark.parametrize("pbc", [(True, True, False), (True, False, False)])
def test_cells_need_no_rows_in_open_directions(pbc: tuple[bool, bool, bool]):
    atoms = molecule("CH3OH")
    atoms.set_cell(np.diag([8.0, 9.0, 0.0]) * np.array(pbc)[:, None])
    atoms.pbc = pbc
    check_structure(atoms)


def test_overlapping_atoms():
    atoms = molecule("H2O")
    atoms += Atoms("O", positions=[atoms.positions[0] + [0.0, 0.29, 0.0]])
    with pytest.raises(InputError, match=r"atoms 0 \(O\) and 3 \(O\) are 0.290 angstrom apart"):
        check_structure(atoms)
    atoms.positions[3, 1] += 0.02
    check_structure(atoms)


def test_overlap_with_a_periodic_image():
    atoms = molecule("H2O", cell=[9.0, 9.0, 9.0], pbc=True)
    atoms += Atoms("O", positions=[atoms.positions[0] + [9.0, -9.0, 0.2]])
    with pytest.raises(InputError, match=r"0.200 angstrom apart"):
        check_structure(atoms)


def test_positions_in_nanometres_are_refused():
    atoms = molecule("CH3CH2OH")
    atoms.positions /= 10.0
    with pytest.raises(InputError, match="Are the positions in angstrom"):
        check_structure(atoms)


# --- Missing hydrogens --------------------------------------------------------------------------

COMPLETE = """
C CC CCC C=C C#C C=C=C CC=C=C CC#N C#N N#N O=C=O [C-]#[O+] C=O CC=O CC(C)=O C(=O)O CC(=O)OC
CO COC CN CNC CN(C)C C[N+](=O)[O-] CC(=O)N C=CC=C C#CC#C CC#CC C1CC1 C1=CC1 C1CCC1 C1=CCC1
C1CCCCC1 c1ccccc1 Cc1ccccc1 c1ccncc1 c1ccoc1 c1ccsc1 c1cc[nH]c1 c1cnc[nH]1 c1ccc2ccccc2c1
N#Cc1ccccc1 Oc1ccccc1 O=[N+]([O-])c1ccccc1 CS CSC CS(C)=O CS(C)(=O)=O C=S S=C=S O=C=S
CF C(F)(F)F C(Cl)(Cl)Cl ClC=CCl CBr FC(F)=C(F)F CP CP(C)C COP(=O)(OC)OC N=C=O CN=C=O CN=C=S
CN=[N+]=[N-] C=[N+]=[N-] C=C=O NC#N NC(N)=O NC(=N)N NCC(=O)O CC(N)C(=O)O
CC(=O)Oc1ccccc1C(=O)O CC(=O)Nc1ccc(O)cc1 CC(C)Cc1ccc(cc1)C(C)C(=O)O
Cn1cnc2c1c(=O)n(C)c(=O)n2C OC1OCC(O)C(O)C1O OCC1OC(O)C(O)C(O)C1O
CC(=O)NC(C)C(=O)NC Nc1ncnc2[nH]cnc12 O=c1cc[nH]c(=O)[nH]1 C1CC2CCC1C2 C12C3C4C1C5C2C3C45
""".split()


def test_there_are_enough_complete_molecules():
    assert len(set(COMPLETE)) >= 60


@pytest.mark.parametrize("smiles", COMPLETE)
def test_complete_molecules_are_accepted_hot_and_cold(smiles: str):
    atoms, _ = embed(smiles)
    check_structure(atoms)
    for seed in range(3):
        hot = atoms.copy()
        # 0.05 angstrom per coordinate is the amplitude of a C-H stretch at 1000 K.
        hot.rattle(0.05, seed=seed)
        check_structure(hot)


@pytest.mark.parametrize(
    "smiles",
    ["C", "CC", "C=C", "C#C", "CCO", "c1ccccc1", "CC=O", "CC(N)C(=O)O", "C1CCCCC1", "CN", "CSC",
     "C=O", "ClC(Cl)Cl", ASPIRIN, "OCC1OC(O)C(O)C(O)C1O"],
)  # fmt: skip
def test_a_missing_hydrogen_of_any_carbon_is_noticed(smiles: str):
    atoms, bonds = embed(smiles)
    removed = 0
    for i, j in bonds:
        carbon, hydrogen = sorted((i, j), key=lambda k: atoms.symbols[k])
        if atoms.symbols[carbon] == "C" and atoms.symbols[hydrogen] == "H":
            bare = atoms.copy()
            del bare[hydrogen]
            with pytest.raises(InputError, match=rf"atom {carbon} \(C\) lacks hydrogens"):
                check_structure(bare)
            removed += 1
    assert removed > 0


@pytest.mark.parametrize("smiles", ["CCO", "c1ccccc1", ASPIRIN, "CC(=O)NC(C)C(=O)NC", "C1CCCCC1"])
def test_molecules_without_any_hydrogen_are_refused(smiles: str):
    """Crystal structures in the PDB have no hydrogens."""
    atoms, _ = embed(smiles)
    heavy = atoms[atoms.numbers > 1]
    with pytest.raises(InputError, match="lacks hydrogens"):
        check_structure(heavy)


@pytest.mark.parametrize("symbol", ["O", "N", "S", "P", "Cl", "C"])
def test_heavy_atoms_without_any_bond_are_refused(symbol: str):
    """Water in the PDB is an oxygen without a bond, alone or beside a complete molecule."""
    apart = [[0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 3.0, 0.0]]
    with pytest.raises(InputError, match=rf"atom 0 \({symbol}\) lacks hydrogens"):
        check_structure(Atoms(3 * [symbol], apart))
    with pytest.raises(InputError, match=rf"atom 3 \({symbol}\) lacks hydrogens"):
        check_structure(molecule("H2O") + Atoms(symbol, [[4.0, 0.0, 0.0]]))


def test_single_atoms_are_accepted():
    check_structure(Atoms("O"))
    check_structure(Atoms("O", cell=[8.0, 8.0, 8.0], pbc=True))
    check_structure(Atoms("HH", [[0.0, 0.0, 0.0], [0.0, 0.0, 9.0]]))


def test_a_sample_of_the_library_is_complete():
    library = read_library()
    for entry in library[:: len(library) // 150]:
        try:
            atoms, _ = embed(entry.smiles)
        except InputError:
            continue
        check_structure(atoms)


# --- The calculator refuses the same ------------------------------------------------------------


def test_calculator_refuses_before_it_computes(tiny_archive: Path):
    calculator = StudentForceFieldCalculator(tiny_archive)
    methyl = molecule("CH4")[:-1]
    for atoms, text in [
        (molecule("SiH4"), "does not know Si"),
        (methyl, "lacks hydrogens"),
        (Atoms("OO", positions=[[0, 0, 0], [0, 0, 0.1]]), "apart"),
        (Atoms("O", positions=[[np.nan, 0, 0]]), "position"),
    ]:
        atoms.calc = calculator
        with pytest.raises(InputError, match=text):
            atoms.get_potential_energy()


def test_calculator_gives_all_properties(tiny_archive64: Path, structures: dict[str, Atoms]):
    atoms = structures["water_box"]
    atoms.calc = StudentForceFieldCalculator(tiny_archive64)
    energy = atoms.get_potential_energy()
    assert atoms.get_potential_energies().sum() == pytest.approx(energy)
    strain, energies = 1e-5, []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.calc = atoms.calc
        moved.set_cell(atoms.cell.array * (1.0 + sign * strain), scale_atoms=True)
        energies.append(moved.get_potential_energy())
    # dE/d(strain) is the volume times the trace of the stress.
    slope = (energies[0] - energies[1]) / (2 * strain)
    trace = atoms.get_stress(voigt=False).trace()
    assert atoms.get_volume() * trace == pytest.approx(slope, rel=1e-5, abs=1e-4)
