"""Structures of every format are read; those with meaningless energies are refused."""

import time
from pathlib import Path

import mdtraj
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.db import connect
from ase.io import write
from rdkit import Chem
from rdkit.Chem import AllChem

from mlff_student.core.errors import InputError, StudentError
from mlff_student.distill.molecules import read_library
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.model.elements import ELEMENTS
from mlff_student.structures.checks import (
    allows_charges,
    charge_and_multiplicity,
    check_electrons,
    check_masses,
    check_structure,
    deuterium,
    perceive_bonds,
)
from mlff_student.structures.reading import Structure, make_topology, read_structure, write_topology
from mlff_student.structures.smiles import embed
from mlff_student.structures.text import element_of
from mlff_student.teachers.registry import make_teacher

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


# --- Names, frames, bonds and cells in files ------------------------------------------------------


def write_pdb(path: Path, atoms: Atoms, names: list[str], ending: str = "END\n") -> None:
    """Write a ligand with names of atoms, without elements and bonds."""
    lines = [
        f"HETATM{k + 1:5d} {name} LIG B  99    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00\n"
        for k, (name, (x, y, z)) in enumerate(zip(names, atoms.positions, strict=True))
    ]
    path.write_text("".join([*lines, ending]))


@pytest.mark.parametrize(
    ("name", "residue_atoms", "element"),
    [("CA", 9, "C"), ("CA", 1, "Ca"), ("CL1", 5, "Cl"), ("BR2A", 5, "Br"), ("1HB2", 9, "H"),
     ("HG21", 9, "H"), ("NA", 1, "Na"), ("NA", 7, "N"), ("OXT", 9, "O"), ("D11", 9, "D"),
     ("SE", 17, "Se"), ("FE", 40, "Fe"), ("C1'", 30, "C"), ("***", 9, ""), ("M", 4, "")],
)  # fmt: skip
def test_elements_of_names(name: str, residue_atoms: int, element: str):
    assert element_of(name, residue_atoms) == element


def test_pdb_and_gro_without_elements(tmp_path: Path):
    atoms = molecule("CH3Cl")
    for symbol in ("Cl", "Br"):
        atoms.symbols[atoms.symbols.search("Cl")] = symbol
        names = [f"{s.upper()}{k}" for k, s in enumerate(atoms.symbols)]
        write_pdb(tmp_path / "a.pdb", atoms, [f" {name:<3}" for name in names])
        lines = [
            f"    1LIG  {name:>5}{k:5d}{x:8.3f}{y:8.3f}{z:8.3f}\n"
            for k, (name, (x, y, z)) in enumerate(zip(names, atoms.positions / 10, strict=True))
        ]
        (tmp_path / "a.gro").write_text(f"title\n{len(atoms)}\n{''.join(lines)}   0.0 0.0 0.0\n")
        for suffix in ("pdb", "gro"):
            structure = read_structure(str(tmp_path / f"a.{suffix}"))
            assert list(structure.atoms.symbols) == list(atoms.symbols)
            assert not structure.atoms.pbc.any()


@pytest.mark.parametrize("suffix", ["xyz", "extxyz", "pdb", "sdf", "gro", "cif", "traj"])
def test_the_first_frame_is_read_in_every_format(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    frames = [embed("CO", seed)[0] for seed in (1, 2, 3)]
    frames[1].positions += 1.0
    path = tmp_path / f"two.{suffix}"
    if suffix == "sdf":
        with Chem.SDWriter(str(path)) as writer:
            for atoms in frames:
                mol = Chem.AddHs(Chem.MolFromSmiles("CO"))
                AllChem.EmbedMolecule(mol, randomSeed=1)
                for index, position in enumerate(atoms.positions):
                    mol.GetConformer().SetAtomPosition(index, position.tolist())
                writer.write(mol)
    elif suffix == "cif":
        topology = make_topology(frames[0], [])
        positions = np.array([atoms.positions for atoms in frames])
        mdtraj.Trajectory(positions / 10.0, topology).save_cif(str(path))
    elif suffix == "gro":
        for atoms in frames:
            write(tmp_path / "one.gro", atoms)
            text = (tmp_path / "one.gro").read_text().rstrip("\n")
            path.open("a").write(f"{text}\n   0.00000   0.00000   0.00000\n")
    else:
        write(path, frames)
    for source, index in ((path, 0), (f"{path}@1", 1), (f"{path}@-1", 2), (f"{path}@-2", 1)):
        stored = read_structure(str(source)).atoms
        np.testing.assert_allclose(stored.positions, frames[index].positions, atol=0.006)
    assert len(caplog.messages) == 1
    assert "two" in caplog.text and "has 3 frames or molecules; the first is read" in caplog.text
    with pytest.raises(InputError, match="has 3 frames or molecules, and there is no 3"):
        read_structure(f"{path}@3")


def test_bonds_of_a_residue_without_template(tmp_path: Path):
    """A peptide of standard residues beside a ligand with no bonds, and with some, in the file."""
    example = Path(__file__).parents[2] / "examples" / "ace_ala_nme.pdb"
    lines = example.read_text().splitlines()
    peptide = [line for line in lines if line.startswith(("ATOM", "HETATM"))]
    ligand = molecule("CH3CH2OH")
    ligand.positions += [12.0, 0.0, 0.0]
    names = [f" {s}{k:<2}" for k, s in enumerate(ligand.symbols)]
    expected = {(i + 22, j + 22) for i, j in perceive_bonds(ligand)}
    known = {(22, 23), (23, 24)}
    for conect in ("", "CONECT  101  102\nCONECT  102  103\n"):
        path = tmp_path / "complex.pdb"
        write_pdb(path, ligand, names, conect + "END\n")
        text = "".join(f"HETATM{int(line[6:11]) + 100:5d}{line[11:]}\n" if line[:6] == "HETATM"
                       else f"{line}\n" for line in path.read_text().splitlines())  # fmt: skip
        path.write_text("\n".join(peptide) + f"\n{text}")
        bonds = bonds_of(read_structure(str(path)))
        assert len(bonds) == 21 + 8
        assert known <= expected == {pair for pair in bonds if min(pair) >= 22}


def test_contacts_of_complete_molecules_are_no_bonds(tmp_path: Path):
    """Two bromines of neighbouring molecules may be as close as 2.8 angstrom in a hot liquid."""
    atoms, bonds = embed("BrBr")
    other = atoms.copy()
    other.positions += [0.0, 2.8, 0.0]
    pair = atoms + other
    topology = make_topology(pair, [*bonds, (2, 3)])
    assert len(perceive_bonds(pair)) == 4
    write_topology(Structure(pair, topology), tmp_path / "pair.pdb")
    assert bonds_of(read_structure(str(tmp_path / "pair.pdb"))) == {(0, 1), (2, 3)}


def test_cells_of_zeros_are_no_cells(tmp_path: Path):
    atoms = molecule("CH3OH")
    write(tmp_path / "a.pdb", atoms)
    text = (tmp_path / "a.pdb").read_text()
    for angle in (0.0, 90.0):
        cell = "CRYST1" + 3 * "    0.000" + 3 * f"{angle:7.2f}" + " P 1           1\n"
        (tmp_path / f"{angle}.pdb").write_text(cell + text)
    atoms.cell = np.eye(3)
    atoms.pbc = True
    for suffix in ("extxyz", "vasp"):
        write(tmp_path / f"cell.{suffix}", atoms)
        text = (tmp_path / f"cell.{suffix}").read_text().replace("1.0 0.0 0.0 0.0 1.0", "0 0 0 0 0")
        lines = text.replace("0.0 0.0 0.0 1.0", "0 0 0 0").splitlines(keepends=True)
        if suffix == "vasp":
            lines[2:5] = 3 * ["0.0 0.0 0.0\n"]
        (tmp_path / f"zero.{suffix}").write_text("".join(lines))
    for path in [*tmp_path.glob("*0.pdb"), *tmp_path.glob("zero.*")]:
        structure = read_structure(str(path))
        assert not structure.atoms.pbc.any() and structure.topology.n_bonds == 5, path
        check_structure(structure.atoms)


def test_labels_of_xyz_files(tmp_path: Path):
    path = tmp_path / "a.xyz"
    path.write_text("4\ncharge transfer\nC1 0 0 0\n8 1.2 0 0\nD -0.6 0.9 0\nh2 -0.6 -0.9 0\n")
    atoms = read_structure(str(path)).atoms
    assert list(atoms.symbols) == ["C", "O", "H", "H"]
    assert deuterium(atoms).tolist() == [False, False, True, False]
    check_structure(atoms)
    path.write_text("2\n\nH 0 0 0\nH 0 0 0.74\n\nwritten by hand\n")
    assert len(read_structure(str(path)).atoms) == 2
    path.write_text("1\n\nQ1 0 0 0\n")
    with pytest.raises(InputError, match="atom 0 is 'Q1'; expected is an element"):
        read_structure(str(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.xyz", "100000000\n\nC 0 0 0\n"),
        ("a.extxyz", "1\nProperties=species:S:1:pos:R:3:x:R:100000000\nC 0 0 0\n"),
        ("a.gro", "title\n100000000\n    1LIG     C1    1   0.000   0.000   0.000\n"),
        ("a.vasp", "t\n1.0\n5 0 0\n0 5 0\n0 0 5\nO H\n100000000 2\nCartesian\n0 0 0\n"),
        ("a.xyz", "1e8\n\nC 0 0 0\n"),
        ("a.xyz", "-5\n\nC 0 0 0\n"),
    ],
)
def test_headers_that_claim_too_much_are_refused_at_once(name: str, content: str, tmp_path: Path):
    (tmp_path / name).write_text(content)
    start = time.perf_counter()
    with pytest.raises(InputError, match=name):
        read_structure(str(tmp_path / name))
    assert time.perf_counter() - start < 1.0


# --- Charges, radicals, isotopes ------------------------------------------------------------------


def stored_as(suffix: str, smiles: str, tmp_path: Path) -> str:
    """Write a molecule into a file whose format has charges; return its path."""
    if suffix == "smiles":
        return smiles
    path = tmp_path / f"a.{suffix}"
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(mol, randomSeed=1)
    if suffix == "pdb":
        Chem.MolToPDBFile(mol, str(path))
    elif suffix == "extxyz":
        atoms = embed(smiles)[0]
        atoms.arrays.pop("initial_charges", None)
        write(path, atoms)
        lines = path.read_text().splitlines(keepends=True)
        lines[1] = f"total_charge={Chem.GetFormalCharge(mol)} {lines[1]}"
        path.write_text("".join(lines))
    else:
        with Chem.SDWriter(str(path)) as writer:
            writer.write(mol)
    return str(path)


@pytest.mark.parametrize("suffix", ["smiles", "sdf", "mol", "pdb", "extxyz"])
@pytest.mark.parametrize(("smiles", "charge"), [("CC(=O)[O-]", -1), ("C[NH3+]", 1)])
def test_ions_are_refused(suffix: str, smiles: str, charge: int, tmp_path: Path):
    atoms = read_structure(stored_as(suffix, smiles, tmp_path)).atoms
    assert atoms.info["charge"] == charge
    assert atoms.get_initial_charges().sum() == pytest.approx(charge)
    with pytest.raises(InputError, match=rf"charge {charge}, multiplicity 1"):
        check_structure(atoms)
    check_structure(atoms, charged=True)


@pytest.mark.parametrize("suffix", ["smiles", "sdf", "pdb"])
def test_zwitterions_are_refused_and_nitro_groups_are_not(suffix: str, tmp_path: Path):
    with pytest.raises(InputError, match=r"\(N\) has the formal charge \+1, which no bonded atom"):
        check_structure(read_structure(stored_as(suffix, "[NH3+]CC(=O)[O-]", tmp_path)).atoms)
    for smiles in ("C[N+](=O)[O-]", "CN=[N+]=[N-]", "C[N+](C)(C)[O-]"):
        check_structure(read_structure(stored_as(suffix, smiles, tmp_path)).atoms)


def test_radicals_are_refused(tmp_path: Path):
    for source in ("C[CH2]", stored_as("sdf", "C[CH2]", tmp_path)):
        with pytest.raises(InputError, match="charge 0, multiplicity 2"):
            check_structure(read_structure(source).atoms)
    methyl = molecule("CH3")
    with pytest.raises(InputError, match="multiplicity 2"):  # ASE's molecule has the moment
        check_structure(methyl)
    methyl.set_initial_magnetic_moments(None)
    with pytest.raises(InputError, match=r"CH3 has 9 electrons .* an odd number"):
        check_structure(methyl)
    check_structure(Atoms("H"))  # the energy of a single atom is that of the element


def test_radicals_are_refused_where_ions_are_allowed():
    methyl = molecule("CH3")
    with pytest.raises(InputError, match="multiplicity 2: the student was trained on closed-shell"):
        check_structure(methyl, charged=True)
    methyl.set_initial_magnetic_moments(None)
    with pytest.raises(InputError, match=r"charge \+0 has 9 electrons.* State the total charge"):
        check_structure(methyl, charged=True)
    methyl.info["charge"] = 2
    with pytest.raises(InputError, match=r"charge \+2 has 7 electrons"):
        check_structure(methyl, charged=True)
    methyl.info["charge"] = 0.5
    with pytest.raises(InputError, match=r"charge 0\.5, .*whole number"):
        check_structure(methyl, charged=True)
    methyl.info["charge"] = 1
    check_structure(methyl, charged=True)
    del methyl.info["charge"]
    check_structure(methyl, charged=True, charge=1)


@pytest.mark.parametrize(
    ("info", "refused"),
    [({"charge": 1}, True), ({"Total-Charge": -1}, True), ({"spin": 3}, True),
     ({"multiplicity": 2}, True), ({"charge": "-1"}, True), ({"charge": 0.5}, True),
     ({"charge": np.nan}, True), ({"charge": "high"}, True),
     ({"charge": 0, "total_charge": 1}, True), ({"TotalCharge": 1}, True), ({"uhf": 2}, True),
     ({"total_spin": 3}, True), ({"num_unpaired_electrons": 0, "spin": 3}, True),
     ({"data": {"total_charge": np.array([2.0])}}, True),
     ({"key_value_pairs": {"charge": 1}}, True),
     ({"charge": "None"}, False), ({"uhf": 0, "multiplicity": 1}, False), ({"data": {}}, False),
     ({"charge": 0, "spin": 1}, False), ({"spin": 0, "multiplicity": 1}, False),
     ({"charge": None}, False), ({"charge": True}, False), ({"energy": 1.0}, False)],
)  # fmt: skip
def test_what_info_states(info: dict, refused: bool):
    atoms = molecule("H2O")
    atoms.info = info
    if refused:
        with pytest.raises(InputError):
            check_electrons(atoms)
    else:
        check_electrons(atoms)


def test_charges_in_comments_and_databases_are_read(tmp_path: Path):
    lines = "3\nwater, {}\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n"
    for comment, charge in (("Charge: -2 Mult: 1", -2), ("charge = 2", 2), ("charge transfer", 0)):
        path = tmp_path / "water.xyz"
        path.write_text(lines.format(comment), encoding="utf-8-sig")
        assert charge_and_multiplicity(read_structure(str(path)).atoms) == (charge, 1)
    for suffix in ("db", "json"):
        path = tmp_path / f"rows.{suffix}"
        with connect(path) as database:
            database.write(molecule("CH3OH"), total_charge=2)  # ASE itself overwrites `charge`
            database.write(molecule("CH3OH"), data={"total_charge": [2.0]})
            database.write(molecule("H2O"))
        for row in ("0", "1"):
            with pytest.raises(InputError, match="charge 2"):
                check_structure(read_structure(f"{path}@{row}").atoms)
        check_structure(read_structure(f"{path}@2").atoms)


def test_initial_charges_may_be_partial():
    water = molecule("H2O")
    water.set_initial_charges([-0.834, 0.417, 0.41699])
    check_structure(water)
    water.set_initial_charges([-1.0, 0.0, 0.0])
    with pytest.raises(InputError, match="charge -1"):
        check_structure(water)


def test_a_model_that_was_trained_on_ions_may_be_used_for_them():
    assert not allows_charges({"domain": None}) and not allows_charges({})
    assert not allows_charges({"domain": {"charged": False}})
    assert allows_charges({"domain": {"charged": True}})


def test_a_teacher_gets_the_charge_of_the_file(tmp_path: Path):
    """GFN2-xTB with the charge as an argument and with the charge of an extended XYZ file."""
    energies = []
    for stated in (True, False):
        atoms = read_structure(stored_as("extxyz", "CC(=O)[O-]", tmp_path)).atoms
        atoms.calc = make_teacher("gfn2-xtb")
        if not stated:
            atoms.set_initial_charges(None)
            atoms.calc.set(charge=-1)
        energies.append(atoms.get_potential_energy())
    assert energies[0] == pytest.approx(energies[1], abs=1e-6)


@pytest.mark.parametrize("source", ["[2H]O[2H]", "sdf"])
def test_deuterium_keeps_its_mass_in_the_topology_of_a_run(source: str, tmp_path: Path):
    structure = read_structure(
        stored_as("sdf", "[2H]O[2H]", tmp_path) if source == "sdf" else source
    )
    assert structure.atoms.get_masses().sum() == pytest.approx(20.027, abs=1e-3)
    check_structure(structure.atoms)
    check_masses(structure.atoms)
    write_topology(structure, tmp_path / "run.pdb")
    stored = read_structure(str(tmp_path / "run.pdb")).atoms
    assert list(stored.symbols) == list(structure.atoms.symbols)
    assert stored.get_masses() == pytest.approx(structure.atoms.get_masses(), abs=1e-3)


def test_other_isotopes_cannot_be_kept_by_a_run():
    atoms = read_structure("[13CH4]").atoms
    with pytest.raises(InputError, match=r"atom 0 \(C\) has the mass 13.00"):
        check_masses(atoms)
    check_structure(atoms)


# --- SMILES -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("smiles", "sizes"), [("CCO.O", [9, 3]), ("O.O.O", [3, 3, 3])])
def test_a_dot_separates_molecules(smiles: str, sizes: list[int]):
    structure = read_structure(smiles)
    check_structure(structure.atoms)
    assert [residue.n_atoms for residue in structure.topology.residues] == sizes
    assert bonds_of(structure) == set(perceive_bonds(structure.atoms))


def test_a_smiles_string_may_be_longer_than_a_file_name():
    smiles = "[H]C([H])([H])" + 22 * "C([H])([H])" + "[H]"
    assert len(smiles) > 255 and len(read_structure(smiles).atoms) == 71
    with pytest.raises(InputError, match=r"there is no file .* \(1050 characters\)"):
        read_structure(70 * "not a molecule ")


def test_a_wildcard_is_no_element():
    with pytest.raises(InputError, match=r"atom 0 is '\*', which stands for any atom"):
        read_structure("*CC")


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


def test_cells_that_are_thin_or_very_long():
    atoms = molecule("H2O", cell=[[5, 0, 0], [5, 1e-3, 0], [0, 0, 5]], pbc=True)
    assert perceive_bonds(atoms) == []
    with pytest.raises(InputError, match=r"is 0.001 angstrom thin"):
        check_structure(atoms)
    for cell in ([1e6, 10.0, 10.0], [1e9, 1e9, 1e9]):
        atoms = molecule("H2O", cell=cell, pbc=True)
        assert perceive_bonds(atoms) == [(0, 1), (0, 2)]
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


@pytest.mark.parametrize("smiles", ["C=C", "c1ccccc1", "C#CC"])
def test_a_bent_carbon_of_a_complete_molecule_is_thermal(smiles: str):
    """A hydrogen leaves the plane by 40 degrees, as it does in hot molecules."""
    atoms, bonds = embed(smiles)
    carbon, hydrogen = next((i, j) for i, j in bonds if atoms.symbols[j] == "H")
    neighbour = next(i if j == carbon else j for i, j in bonds if carbon in (i, j) and
                     hydrogen not in (i, j))  # fmt: skip
    vector = atoms.positions[hydrogen] - atoms.positions[carbon]
    along = atoms.positions[neighbour] - atoms.positions[carbon]
    normal = np.cross(along, vector)
    if np.linalg.norm(normal) < 0.1:  # a linear carbon
        normal = np.cross(along, [0.3, 0.5, 0.7])
    normal *= np.linalg.norm(vector) / np.linalg.norm(normal)
    angle = np.radians(45.0)
    atoms.positions[hydrogen] = (
        atoms.positions[carbon] + np.cos(angle) * vector + np.sin(angle) * normal
    )
    check_structure(atoms)


def test_two_missing_hydrogens_are_noticed():
    """The number of electrons is even again."""
    atoms, bonds = embed("CC(C)CO")
    hydrogens = [j for i, j in bonds if atoms.symbols[i] == "C" and atoms.symbols[j] == "H"]
    for first in hydrogens:
        for second in hydrogens:
            if first < second:
                bare = atoms.copy()
                del bare[[first, second]]
                with pytest.raises(InputError, match="lacks hydrogens"):
                    check_structure(bare)


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
