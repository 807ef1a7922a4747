"""From recipe to dataset: structures, samples and labels by real GFN2-xTB, a file that lasts."""

import copy
import itertools
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import bulk
from ase.build import molecule as g2
from ase.data import vdw_radii
from ase.io import write
from rdkit import Chem
from rdkit.Chem import rdDepictor, rdDistGeom
from tblite.ase import TBLite

from mlff_student.core.errors import ArchiveError, InputError
from mlff_student.core.files import sha256
from mlff_student.core.units import KB
from mlff_student.distill import dataset as data
from mlff_student.distill import label as labelling
from mlff_student.distill import sources as places
from mlff_student.distill.dataset import (
    SPLITS,
    LabelledStructure,
    dataset_sha256,
    open_dataset,
    read_dataset,
    read_frames,
    read_summary,
)
from mlff_student.distill.label import label_sources
from mlff_student.distill.molecules import Molecule, read_library, recombined
from mlff_student.distill.recipe import (
    MD,
    ORGANIC_RECIPE,
    Augmentation,
    HeldOut,
    Methods,
    NormalModes,
    Recipe,
    StructureRecipe,
    read_recipe,
)
from mlff_student.distill.sample import (
    CONTACT_SCALES,
    Labeller,
    label_source,
    thermal_displacements,
)
from mlff_student.distill.sources import (
    Source,
    build,
    connectivity,
    list_sources,
    read_generated,
    with_unique_bonds,
)
from mlff_student.model.elements import ELEMENTS
from mlff_student.model.student import PRESETS
from mlff_student.structures.packing import (
    CLUSTER_CONTACT,
    DIMER_CONTACTS,
    LIQUID_CONTACT,
    LIQUID_PACKING,
    liquid_box,
    molecular_volume,
)
from mlff_student.structures.smiles import embed, identity
from mlff_student.teachers import make_teacher

GFN2 = "gfn2-xtb"
# Two self-consistent solutions from different guesses differ by tblite's convergence, 1e-6 hartree.
SCF_ENERGY, SCF_FORCE = 5e-5, 1e-3  # eV, eV/angstrom


# --- Recipe -------------------------------------------------------------------------------------

RECIPE: dict[str, Any] = {
    "teacher": GFN2,
    "seed": 3,
    "structures": {"library": 8, "largest": 7, "held_out": {"validation": 0.15, "test": 0.15}},
    "sampling": {
        "molecule": {
            "starts": True,
            "md": {"temperatures_K": [300], "frames": 1, "interval": 3, "equilibration": 2},
            "normal_modes": {"temperature_K": 300, "frames": 1, "largest": 9},
            "augment": {"frames": 1, "temperature_K": 1000},
        }
    },
    "rounds": {
        "count": 1,
        "model": "tiny",
        "committee": 2,
        "steps": 5,
        "structures": 2,
        "temperature_K": 300,
        "ps": 0.1,
    },
    "training": {"ultra_tiny": {"steps": 6, "batch": 3, "learning_rate": 1e-3}},
}


def written(values: object, folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


def changed(section: str, change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """The recipe above after `change` of one section, named by its path."""
    values = copy.deepcopy(RECIPE)
    inner = values
    for part in section.split("."):
        inner = inner if part == "recipe" else inner[part]
    change(inner)
    return values


@pytest.mark.parametrize(
    ("section", "wrong", "right"),
    [
        ("recipe", "techer", "teacher"),
        ("structures", "librery", "library"),
        ("structures.held_out", "validaton", "validation"),
        ("sampling", "molecules", "molecule"),
        ("sampling.molecule", "start", "starts"),
        ("sampling.molecule.md", "temperature_K", "temperatures_K"),
        ("sampling.molecule.normal_modes", "frame", "frames"),
        ("sampling.molecule.augment", "temperatur_K", "temperature_K"),
        ("rounds", "comittee", "committee"),
        ("training.ultra_tiny", "learning_rat", "learning_rate"),
    ],
)
def test_misspelt_key_names_the_nearest(section: str, wrong: str, right: str, tmp_path: Path):
    values = changed(section, lambda inner: inner.update({wrong: inner.pop(right)}))
    with pytest.raises(InputError, match=f"^{section}: .*'{wrong}'; did you mean '{right}'"):
        read_recipe(written(values, tmp_path))


@pytest.mark.parametrize(
    ("section", "key"),
    [("sampling.molecule", "hessian_products"), ("training.ultra_tiny", "hessian_weight")],
)
def test_a_key_of_an_earlier_version_is_unknown(section: str, key: str, tmp_path: Path):
    values = changed(section, lambda inner: inner.update({key: 1}))
    with pytest.raises(InputError, match=f"^{section}: unknown key '{key}'"):
        read_recipe(written(values, tmp_path))


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("recipe", "seed"),
        ("structures", "largest"),
        ("structures.held_out", "test"),
        ("sampling.molecule.md", "frames"),
        ("training.ultra_tiny", "steps"),
    ],
)
def test_missing_key_is_named(section: str, key: str, tmp_path: Path):
    values = changed(section, lambda inner: inner.pop(key))
    with pytest.raises(InputError, match=f"^{section}: missing {key}$"):
        read_recipe(written(values, tmp_path))


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("recipe", {"seed": "three"}, "seed must be int, got 'three'"),
        ("recipe", {"seed": 1.5}, "seed must be int, got 1.5"),
        ("recipe", {"seed": True}, "seed must be int, got True"),
        ("structures", {"always": "water"}, "structures.always must be a list, got 'water'"),
        ("structures", {"held_out": 0.1}, "structures.held_out must be a mapping with the keys"),
        ("sampling.molecule", {"starts": 1}, "sampling.molecule.starts must be bool, got 1"),
        ("sampling.molecule.md", {"temperatures_K": [300, "hot"]}, "must be float, got 'hot'"),
        ("training.ultra_tiny", {"learning_rate": "fast"}, "must be float, got 'fast'"),
    ],
)
def test_wrong_type_is_named(section: str, value: dict[str, Any], message: str, tmp_path: Path):
    values = changed(section, lambda inner: inner.update(value))
    with pytest.raises(InputError, match=message):
        read_recipe(written(values, tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a\n- b\n",
        "{",
        "teacher: x\n\tseed: 1",
        yaml.safe_dump(RECIPE | {"training": None}),
        yaml.safe_dump(RECIPE | {"training": ["tiny"]}),
        yaml.safe_dump(RECIPE | {"sampling": 3}),
    ],
)
def test_what_is_no_recipe_is_an_input_error(text: str, tmp_path: Path):
    with pytest.raises(InputError):
        read_recipe(written(text, tmp_path))


def test_what_is_no_text_is_an_input_error(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(InputError, match="is not YAML"):
        read_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(InputError, match="no recipe file"):
        read_recipe(tmp_path / "nothing.yaml")


def test_defaults_and_numbers(tmp_path: Path):
    """An integer serves as a float; so does 1e-3, which YAML 1.1 takes for text."""
    text = yaml.safe_dump(RECIPE).replace("learning_rate: 0.001", "learning_rate: 1e-3")
    assert "1e-3" in text
    recipe = read_recipe(written(text, tmp_path))
    assert recipe.training["ultra_tiny"].learning_rate == 1e-3
    assert recipe.sampling["molecule"].md == MD([300.0], 1, 3, 2, timestep_fs=1.0)
    assert recipe.structures == StructureRecipe(8, 7, HeldOut(0.15, 0.15))
    assert recipe.structures.conformers == 1
    assert not (recipe.structures.files or recipe.structures.dimers or recipe.structures.smiles)
    assert recipe.largest_force == 30.0
    assert Methods() == Methods(md=None, normal_modes=None, augment=None, starts=False)


def test_shipped_recipe_is_valid_and_serves_every_preset():
    recipe = read_recipe(ORGANIC_RECIPE)
    assert set(recipe.training) == set(PRESETS)
    assert set(recipe.structures.always) <= {molecule.name for molecule in read_library()}
    assert {"molecule", "dimer", "cluster", "liquid", "held_out"} == set(recipe.sampling)


# --- Molecules ----------------------------------------------------------------------------------


def test_library_is_large_valid_and_distinct():
    library = read_library()
    parsed = [Chem.AddHs(Chem.MolFromSmiles(molecule.smiles)) for molecule in library]
    assert len({Chem.MolToSmiles(one) for one in parsed}) == len(library) >= 1000
    assert len({molecule.name for molecule in library}) == len(library)
    assert max(one.GetNumAtoms() for one in parsed) <= 40
    assert {atom.GetSymbol() for one in parsed for atom in one.GetAtoms()} == set(ELEMENTS)
    kinds = Counter(molecule.kind for molecule in library)
    assert set(kinds) == {
        *("amino_acid", "aromatic", "capped_dipeptide", "drug", "fragment", "functional_group"),
        *("halogen", "heterocycle", "hydrocarbon", "nucleobase", "phosphorus", "small"),
        *("solvent", "sugar", "sulfur"),
    }
    for molecule, one in zip(library, parsed, strict=True):
        assert Chem.GetFormalCharge(one) == 0, molecule
        assert not any(atom.GetNumRadicalElectrons() for atom in one.GetAtoms()), molecule
        assert len(Chem.GetMolFrags(one)) == 1, molecule


FAMILIAR = [
    Molecule("CC(=O)Nc1ccc(O)cc1", "paracetamol", "drug"),
    Molecule("CCOC(=O)c1ccccc1", "ethyl_benzoate", "solvent"),
    Molecule("CN(C)C(=O)CCl", "chloroacetamide", "solvent"),
    Molecule("COc1ccncc1", "methoxypyridine", "heterocycle"),
    Molecule("CSCC(=O)O", "methylthioacetic_acid", "sulfur"),
]


def test_recombined_molecules_are_new_and_usable():
    made = list(recombined(FAMILIAR, 25, 22, seed=4))
    assert len(made) == 25
    keys = [identity(molecule.smiles) for molecule in made]
    assert len(set(keys)) == 25
    assert not set(keys) & {identity(molecule.smiles) for molecule in FAMILIAR}
    for molecule in made:
        whole = Chem.AddHs(Chem.MolFromSmiles(molecule.smiles))
        assert whole.GetNumAtoms() <= 22
        assert Chem.GetFormalCharge(whole) == 0
        assert {atom.GetSymbol() for atom in whole.GetAtoms()} <= set(ELEMENTS)
        assert "*" not in molecule.smiles
    assert made == list(recombined(FAMILIAR, 25, 22, seed=4))
    assert made != list(recombined(FAMILIAR, 25, 22, seed=5))


def test_recombination_stops_when_fragments_are_used_up():
    few = FAMILIAR[3:4]  # methoxy and pyridyl: one molecule and its like
    assert len(list(recombined(few, 100, 30, seed=1))) < 10
    assert list(recombined([Molecule("C", "methane", "small")], 5, 30, seed=1)) == []
    assert list(recombined([], 5, 30, seed=1)) == []


def test_identity_is_blind_to_stereochemistry_alone():
    assert identity("C[C@H](N)C(=O)O") == identity("C[C@@H](N)C(=O)O") == identity("OC(=O)C(C)N")
    assert identity("C/C=C/C") == identity("C/C=C\\C")
    assert identity("CCO") != identity("COC")


@pytest.mark.parametrize("smiles", ["C(", "", "Xx", "c1ccc1C(C)(C)(C)(C)C"])
def test_bad_smiles(smiles: str):
    for use in (identity, embed):
        with pytest.raises(InputError, match="not a SMILES string"):
            use(smiles)


def test_embedding_is_reproducible():
    one, other = embed("CC(=O)NC(C)C(=O)NC")[0], embed("CC(=O)NC(C)C(=O)NC")[0]
    assert (one.positions == other.positions).all()
    assert (one.positions != embed("CC(=O)NC(C)C(=O)NC", seed=2)[0].positions).any()


def test_library_file_that_cannot_be_used(tmp_path: Path):
    with pytest.raises(InputError, match="no file of molecules"):
        read_library(tmp_path / "none.smi")
    (tmp_path / "bad.smi").write_text("# a comment\nO\twater\tsmall\nC methane\n")
    with pytest.raises(InputError, match=r"bad.smi, line 3: expected SMILES, name, class"):
        read_library(tmp_path / "bad.smi")


# --- Structures ---------------------------------------------------------------------------------

SMALL = {
    **{"water": "O", "methane": "C", "ammonia": "N", "methanol": "CO", "ethanol": "CCO"},
    **{"acetonitrile": "CC#N", "acetone": "CC(C)=O", "formamide": "NC=O", "thiol": "CS"},
    **{"chloroform": "ClC(Cl)Cl", "dme": "COC", "ethane": "CC", "propene": "CC=C", "hcn": "C#N"},
    **{"acetic": "CC(=O)O", "methylamine": "CN", "fluoride": "CF", "bromide": "CBr"},
    **{"peroxide": "OO", "phosphine": "P"},
}


@pytest.fixture
def own_library(tmp_path: Path) -> StructureRecipe:
    """Recipe of 20 small molecules of two classes from a file of the user's."""
    path = tmp_path / "own.smi"
    kinds = itertools.cycle(("one", "other"))
    path.write_text(
        "".join(f"{s}\t{n}\t{k}\n" for (n, s), k in zip(SMALL.items(), kinds, strict=False))
    )
    return StructureRecipe(
        library=20,
        largest=12,
        held_out=HeldOut(validation=0.2, test=0.3),
        always=["water", "bromide"],
        smiles=str(path),
        dimers=20,
        clusters=10,
        liquids=10,
        brics=0,
    )


def test_splits_are_disjoint_deterministic_and_counted(own_library: StructureRecipe):
    sources = list_sources(own_library, seed=5)
    assert sources == list_sources(own_library, seed=5)
    assert sources != list_sources(own_library, seed=6)
    single = [one for one in sources if one.group in ("molecule", "held_out")]
    assert Counter(one.split for one in single) == {"train": 10, "validation": 4, "test": 6}
    splits = {split: {one.identity for one in sources if one.split == split} for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not splits[one] & splits[other]
    assert {identity("O"), identity("CBr")} <= splits["train"]
    assert {one.group for one in single if one.split != "train"} == {"held_out"}
    assert len({one.name for one in sources}) == len(sources)
    order = [one.split == "train" for one in sources]
    assert order == sorted(order)  # those that are measured come first


def test_the_only_bond_of_its_kind_is_not_held_out():
    """Bonds to hydrogen count: C-F and H-F are in one molecule each, C-H and O-H are in two."""
    smiles = ["BrBr", "C", "CF", "F", "O", "COC", "CO", "ClCCl", "CCl"]
    unique = with_unique_bonds({one: places._bond_graph(one) for one in smiles})
    assert unique == {"BrBr", "CF", "F"}
    recipe = replace(read_recipe(ORGANIC_RECIPE).structures, brics=0)
    sources = list_sources(recipe, seed=20261121)
    assert {one.split for one in sources if one.identity in {"BrBr", "ClBr", "FF"}} == {"train"}


def test_complexes_are_made_of_one_split(own_library: StructureRecipe):
    sources = list_sources(own_library, seed=5)
    split_of = {one.identity: one.split for one in sources if len(one.smiles) == 1}
    complexes = [one for one in sources if one.group in ("dimer", "cluster", "liquid")]
    counts = Counter((one.group, one.split) for one in complexes)
    assert counts["dimer", "train"] == 10
    assert counts["dimer", "test"] == 6
    assert counts["dimer", "validation"] == 4
    assert all(counts[group, split] for group in ("cluster", "liquid") for split in SPLITS)
    for one in complexes:
        assert {split_of[identity(smiles)] for smiles in one.smiles} == {one.split}, one
        assert one.identity == ".".join(sorted(map(identity, one.smiles)))
        atoms = sum(Chem.AddHs(Chem.MolFromSmiles(smiles)).GetNumAtoms() for smiles in one.smiles)
        if one.group == "dimer":
            assert len(one.smiles) == 2
            assert atoms <= own_library.dimer_largest
        elif one.group == "cluster":
            assert len(one.smiles) >= 2
            assert atoms <= own_library.cluster_largest
        else:
            assert len(set(one.smiles)) == 1
            assert atoms <= own_library.liquid_largest


def test_solvents_are_pure_liquids_in_the_split_of_their_molecule(own_library: StructureRecipe):
    names = ["water", "bromide", "methanol"]
    recipe = replace(own_library, solvents=names, solvent_boxes=2)
    without, sources = list_sources(own_library, seed=5), list_sources(recipe, seed=5)
    split_of = {one.name: one.split for one in sources}
    boxes = [one for one in sources if one not in without]
    assert [one for one in sources if one in without] == without
    assert Counter(one.smiles[0] for one in boxes) == {SMALL[name]: 2 for name in names}
    for one in boxes:
        assert (one.kind, one.group) == ("liquid", "liquid")
        assert one.split == split_of[one.name.removeprefix("liquid_").rsplit("_", 1)[0]]
    assert len(next(one for one in boxes if one.smiles[0] == "O").smiles) == 24 // 3
    with pytest.raises(InputError, match="did you mean 'methanol'"):
        list_sources(replace(recipe, solvents=["methanole"]), seed=5)
    with pytest.raises(InputError, match=r"two molecules of methanol .* liquid_largest, 11"):
        list_sources(replace(recipe, liquid_largest=11), seed=5)


def test_a_longer_library_does_not_reshuffle_the_choice():
    recipe = replace(read_recipe(ORGANIC_RECIPE).structures, library=200)
    library = read_library()
    before = places.choose_molecules(library, recipe, seed=7)
    assert len(before) == len(set(before)) == 200
    assert {one.name for one in before[: len(recipe.always)]} == set(recipe.always)
    assert len({one.kind for one in before}) == 15
    longer = [*library, Molecule("CCCCCCCCC", "one_more", "hydrocarbon")]
    assert len(set(places.choose_molecules(longer, recipe, seed=7)) ^ set(before)) <= 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"always": ["watr"]}, "no molecule watr"),
        ({"held_out": HeldOut(0.5, 0.5)}, "asks for 20 of 18 molecules"),
        ({"smiles": "none.smi"}, "no file of molecules"),
        ({"files": ["nowhere"]}, "no file or folder of structures nowhere"),
    ],
)
def test_structures_that_cannot_be_had(
    change: dict[str, Any], message: str, own_library: StructureRecipe
):
    with pytest.raises(InputError, match=message):
        list_sources(replace(own_library, **change), seed=5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("CC(C\tbroken\tone", r"not a SMILES string: 'CC\(C'"),
        ("C[NH3+]\tcation\tone", r"cation .* has the charge \+1"),
        ("CCC\twater\tone", "two structures are called 'water'"),
        (f"CCC\t{'long' * 30}\tone", "more than 96 bytes"),
    ],
)
def test_own_molecules_that_cannot_be_used(line: str, message: str, own_library: StructureRecipe):
    with open(own_library.smiles, "a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=message):
        list_sources(replace(own_library, library=30), seed=5)


def test_molecules_above_the_limit_are_passed_over(own_library: StructureRecipe):
    sources = list_sources(replace(own_library, largest=6, dimers=0), seed=5)
    names = {one.name for one in sources}
    assert "methanol" in names
    assert not {"ethanol", "acetone", "dme"} & names


def contacts(atoms: Atoms, molecules: list[int], edge: float = 0.0) -> np.ndarray:
    """Distances over sums of van der Waals radii between molecules (and between all and their
    images), one a pair and shift.
    """
    owner = np.repeat(np.arange(len(molecules)), molecules)
    radii = vdw_radii[atoms.numbers][:, None] + vdw_radii[atoms.numbers]
    found = []
    for shift in itertools.product((-1, 0, 1), repeat=3) if edge else [(0, 0, 0)]:
        vectors = atoms.positions[:, None] - atoms.positions + edge * np.array(shift)
        ratios = np.linalg.norm(vectors, axis=2) / radii
        found.append(ratios[(owner[:, None] != owner) | any(shift)])
    return np.concatenate(found)


@pytest.mark.parametrize("smiles", [("O", "O"), ("CCO", "c1ccccc1"), ("C#N", "CC(=O)NC")])
def test_dimers_touch_as_asked(smiles: tuple[str, str]):
    source = Source("pair", "pair", "dimer", "dimer", "train", smiles)
    sizes = [len(embed(one)[0]) for one in smiles]
    scan = build(source, seed=8)
    found = [contacts(atoms, sizes).min() for atoms in scan]
    np.testing.assert_allclose(found, DIMER_CONTACTS, atol=1e-6)  # 30 bisections of 60 angstrom
    # One orientation: the molecules are rigid and only their distance differs.
    for atoms in scan[1:]:
        moved = atoms.positions - scan[0].positions
        np.testing.assert_allclose(moved[: sizes[0]], 0.0, atol=1e-12)
        np.testing.assert_allclose(moved[sizes[0] :], moved[-1:].repeat(sizes[1], 0), atol=1e-9)
    assert not np.allclose(build(source, seed=9)[0].positions, scan[0].positions)


def test_every_molecule_of_a_cluster_touches_another():
    smiles = ("O", "CO", "N", "CC#N", "O")
    sizes = [len(embed(one)[0]) for one in smiles]
    (atoms,) = build(Source("c", "c", "cluster", "cluster", "train", smiles), seed=3)
    assert contacts(atoms, sizes).min() == pytest.approx(CLUSTER_CONTACT, abs=1e-6)
    ends = np.cumsum(sizes)
    for k in range(1, 5):
        nearest = contacts(atoms[: ends[k]], [ends[k - 1], sizes[k]]).min()
        assert nearest == pytest.approx(CLUSTER_CONTACT, abs=1e-6)


@pytest.mark.parametrize(
    ("smiles", "count", "grams_per_cm3"),
    [("O", 8, (0.7, 1.05)), ("CCO", 2, (0.55, 0.9)), ("CCCCCCC", 1, (0.2, 0.8))],
)
def test_liquid_has_no_overlap_through_its_walls(
    smiles: str, count: int, grams_per_cm3: tuple[float, float]
):
    """Heptane is longer than its box: its own images count as well."""
    source = Source("l", "l", "liquid", "liquid", "train", (smiles,) * count)
    (atoms,) = build(source, seed=2)
    edge = atoms.cell.lengths()[0]
    assert atoms.pbc.all()
    assert contacts(atoms, [len(atoms) // count] * count, edge).min() > LIQUID_CONTACT
    density = atoms.get_masses().sum() / atoms.get_volume() * 1.66054  # amu/angstrom^3 to g/cm^3
    assert grams_per_cm3[0] < density < grams_per_cm3[1]


def test_crowded_box_grows_or_gives_up():
    water = embed("O")[0]
    volume = 6 * molecular_volume("O") / LIQUID_PACKING
    rng = np.random.default_rng(1)
    grown = liquid_box([water] * 6, 0.5 * volume, rng).get_volume()
    steps = np.log(grown / (0.5 * volume)) / np.log(1.05)
    assert steps == pytest.approx(round(steps), abs=1e-6)
    assert steps > 1
    with pytest.raises(InputError, match="no packing found for 2 molecules in 1 angstrom"):
        liquid_box([water] * 2, 1.0, rng)


def sdf_of(smiles: str, hydrogens: bool, flat: bool = False) -> str:
    parsed = Chem.AddHs(Chem.MolFromSmiles(smiles))
    if flat:
        rdDepictor.Compute2DCoords(parsed)
    else:
        rdDistGeom.EmbedMolecule(parsed, randomSeed=1)
    return Chem.MolToMolBlock(parsed if hydrogens else Chem.RemoveHs(parsed)) + "$$$$\n"


def test_folder_of_all_kinds_of_files(tmp_path: Path):
    ethanol = g2("CH3CH2OH")
    write(tmp_path / "many.extxyz", [ethanol, g2("CH3OCH3")])
    (tmp_path / "below").mkdir()
    write(tmp_path / "below" / "many.extxyz", g2("CH4"))
    (tmp_path / "two.sdf").write_text(sdf_of("CCO", hydrogens=True) + sdf_of("CO", hydrogens=False))
    write(tmp_path / "salt.cif", bulk("CBr", "zincblende", 5.2, cubic=True))
    (tmp_path / "notes.txt").write_text("not a structure")
    sources = read_generated(tmp_path)
    formulas = Counter(one.starts[0].get_chemical_formula() for one in sources)
    assert formulas == {"C2H6O": 3, "CH4": 1, "CH4O": 1, "C4Br4": 1}
    (salt,) = (one for one in sources if one.kind == "crystal")
    np.testing.assert_allclose(salt.starts[0].cell.lengths(), 5.2)
    assert len({one.name for one in sources}) == 6  # two files have one name
    assert all(one.name.startswith(("many_", "two_", "salt_")) for one in sources)
    # Ethanol from extxyz and SDF is one molecule, dimethyl ether another.
    assert len({one.identity for one in sources if "C2H6O" in one.identity}) == 2


def test_files_follow_the_split_of_the_library(own_library: StructureRecipe, tmp_path: Path):
    """A geometry of a held-out molecule does not come back to training by way of a file."""
    folder = tmp_path / "geometries"
    folder.mkdir()
    for name, smiles in SMALL.items():
        write(folder / f"{name}.xyz", embed(smiles, seed=77)[0])
    sources = list_sources(replace(own_library, files=[str(folder)]), seed=5)
    split_of = {one.name: one.split for one in sources if one.group in ("molecule", "held_out")}
    from_files = [one for one in sources if one.group == "file"]
    assert len(from_files) == len(SMALL)
    for one in from_files:
        assert one.split == split_of[one.name.split("_")[0]], one.name


def overlapping() -> Atoms:
    atoms = g2("CH4")
    atoms.positions[1] = atoms.positions[0] + 0.1
    return atoms


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.extxyz", [g2("H2O"), g2("SiH4")], "a.extxyz, structure 1: .* does not know Si"),
        ("a.extxyz", [g2("H2O"), g2("CH4"), overlapping()], "structure 2: .*angstrom apart"),
        ("a.xyz", "3\n\nthis is\nno file\n of atoms", "a.xyz, structure 0: ASE cannot read it"),
        ("a.xyz", "1\n\nH 0 0 0\n3\n\nH 0 0 zero\n", "a.xyz, structure .*ASE cannot read it"),
        ("a.cif", "no crystal", r"a.cif(, structure 0: ASE cannot read it| holds no structures)"),
        (
            "a.sdf",
            sdf_of("CO", True) + "garbage\n\n\nmore\n$$$$\n",
            "a.sdf, structure 1: RDKit cannot",
        ),
        ("a.sdf", sdf_of("CCO", True, flat=True), "a.sdf, structure 0: a flat drawing"),
        ("a.sdf", sdf_of("C[NH3+]", True), r"a.sdf, structure 0: has the charge \+1"),
        ("a.txt", "no extension that is known", "holds no structures"),
    ],
)
def test_file_that_cannot_be_used_is_named(
    name: str, content: str | list[Atoms], message: str, tmp_path: Path
):
    if isinstance(content, str):
        (tmp_path / name).write_text(content)
    else:
        write(tmp_path / name, content)
    with pytest.raises(InputError, match=message):
        read_generated(tmp_path)


def test_missing_path_and_empty_folder(tmp_path: Path):
    with pytest.raises(InputError, match="no file or folder of structures"):
        read_generated(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no structures"):
        read_generated(tmp_path)


def test_connectivity_is_of_the_bonds():
    alanine = "CC(N)C(=O)O"
    codes = {connectivity(embed(alanine, seed)[0]) for seed in (1, 2, 3)}
    assert len(codes) == 1
    shuffled = embed(alanine)[0][np.random.default_rng(0).permutation(13)]
    assert connectivity(shuffled) in codes
    isomers = ["CCCO", "CC(C)O", "CCOC"]
    assert len({connectivity(embed(smiles)[0]) for smiles in isomers}) == 3


# --- Sampling -----------------------------------------------------------------------------------


def source_of(smiles: str, conformers: int = 1) -> Source:
    return Source(smiles, smiles, "small", "molecule", "train", (smiles,), conformers)


def given(atoms: Atoms) -> Source:
    return Source("given", "given", "file", "file", "train", starts=(atoms,))


def sampled(source: Source, methods: Methods, largest_force: float = 30.0) -> LabelledStructure:
    return Labeller(source, make_teacher(GFN2), largest_force, seed=1).run(methods)


def geometries(one: LabelledStructure) -> Iterator[Atoms]:
    for positions, cell, pbc in zip(one.positions, one.cells, one.pbc, strict=True):
        yield Atoms(one.atomic_numbers, positions.astype(float), cell=cell.astype(float), pbc=pbc)


def assert_labels_are_the_teachers(one: LabelledStructure) -> None:
    for k, atoms in enumerate(geometries(one)):
        atoms.calc = make_teacher(GFN2)
        assert atoms.get_potential_energy() == pytest.approx(one.energies[k], abs=SCF_ENERGY)
        np.testing.assert_allclose(atoms.get_forces(), one.forces[k], atol=SCF_FORCE)
        if atoms.pbc.all():
            np.testing.assert_allclose(atoms.get_stress(), one.stresses[k], atol=1e-5)


ALL_METHODS = Methods(
    starts=True,
    rattle=0.05,
    md=MD([300.0, 900.0], frames=2, interval=3, equilibration=2),
    normal_modes=NormalModes(300.0, frames=3, largest=6),
    augment=Augmentation(frames=2, temperature_K=1000.0),
    contacts=2,
)


def test_every_method_gives_what_is_asked_with_the_teachers_labels():
    one = sampled(source_of("CO", conformers=2), ALL_METHODS)
    assert one.failure == ""
    counts = {"start": 1, "contact": 2, "augment": 2, "normal_modes": 3, "md": 4}
    assert Counter(one.methods) == {method: 2 * count for method, count in counts.items()}
    assert one.attempted == len(one.energies) == 24
    md = [t for t, method in zip(one.temperatures, one.methods, strict=True) if method == "md"]
    assert md == [300.0, 300.0, 900.0, 900.0] * 2
    thermal = np.isin(one.methods, ("md", "normal_modes"))
    assert (np.isnan(one.temperatures) == ~thermal).all()
    assert np.isnan(one.stresses).all()
    assert_labels_are_the_teachers(one)
    first = one.positions[np.flatnonzero(np.array(one.methods) == "md")]
    assert all(np.abs(a - b).max() > 1e-3 for a, b in itertools.combinations(first, 2))


def test_a_student_moves_the_atoms_and_the_teacher_labels():
    md = MD([300.0], frames=2, interval=5, equilibration=5)
    by_student = sampled(source_of("CO"), Methods(md=replace(md, by="ultra_tiny")))
    by_teacher = sampled(source_of("CO"), Methods(md=md))
    assert by_student.methods == by_teacher.methods == ["md", "md"]
    moved = np.abs(by_student.positions - by_teacher.positions).max()
    assert 1e-5 < moved < 0.1  # one random start, two force fields: alike, not the same
    assert_labels_are_the_teachers(by_student)
    with pytest.raises(ArchiveError, match="no_such_student"):
        sampled(source_of("CO"), Methods(md=replace(md, by="no_such_student")))


def test_largest_molecule_for_normal_modes_is_kept():
    small = replace(Methods(), normal_modes=NormalModes(300.0, frames=1, largest=5))
    assert sampled(source_of("CO"), small).methods == []


def test_labels_do_not_depend_on_what_was_labelled_before():
    """A process keeps its calculator; the same bits come of it, whatever it did before."""
    recipe = recipe_of({"molecule": Methods(starts=True, contacts=1)})
    first = label_source(source_of("CO"), recipe, seed=1)
    label_source(source_of("O"), recipe, seed=2)
    again = label_source(source_of("CO"), recipe, seed=1)
    np.testing.assert_array_equal(first.forces, again.forces)
    np.testing.assert_array_equal(first.energies, again.energies)


class Unrattled(Labeller):
    """Without the small displacement of all atoms that goes with a contact."""

    def _rattled(self, atoms: Atoms, width: float) -> Atoms:
        return atoms.copy()


def lengths(atoms: Atoms) -> np.ndarray:
    return np.array([atoms.get_distance(i, j, mic=True) for i, j in places.perceive_bonds(atoms)])


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_contact_changes_one_bond_alone(wrapped: bool):
    """Also that of a molecule that is cut by the wall of its cell."""
    atoms = embed("CCO")[0]
    if wrapped:
        atoms.set_cell([9.0, 9.0, 9.0])
        atoms.pbc = True
        atoms.wrap()
    labeller = Unrattled(given(atoms), make_teacher(GFN2), 30.0, seed=2)
    bonds = places.perceive_bonds(atoms)
    before = lengths(atoms)
    for _ in range(20):
        moved = labeller._with_contact(atoms)
        after = np.array([moved.get_distance(i, j, mic=True) for i, j in bonds])
        ratios = after / before
        (different,) = np.flatnonzero(abs(ratios - 1.0) > 1e-9)
        assert CONTACT_SCALES[0] <= ratios[different] <= CONTACT_SCALES[1]


def test_a_bond_of_a_ring_moves_one_atom():
    atoms = embed("C1CC1")[0]
    labeller = Unrattled(given(atoms), make_teacher(GFN2), 30.0, seed=2)
    for _ in range(20):
        moved = np.linalg.norm(labeller._with_contact(atoms).positions - atoms.positions, axis=1)
        assert (moved > 1e-9).sum() == 1


def relaxed(name: str) -> Atoms:
    from ase.optimize import BFGS

    atoms = g2(name)
    atoms.calc = make_teacher(GFN2)
    BFGS(atoms, logfile=None).run(fmax=1e-3, steps=100)
    return atoms


def hessian(atoms: Atoms, step: float = 0.002) -> np.ndarray:
    """Central difference of the teacher's forces, (3 N, 3 N) eV/angstrom^2."""
    rows = []
    for k in range(3 * len(atoms)):
        sides = []
        for sign in (1, -1):
            one = atoms.copy()
            one.positions.flat[k] += sign * step
            one.calc = make_teacher(GFN2)
            sides.append(one.get_forces().ravel())
        rows.append((sides[1] - sides[0]) / (2 * step))
    return np.array(rows)


@pytest.mark.parametrize(("name", "modes"), [("N2", 1), ("H2O", 3)])
def test_normal_modes_hold_half_kt_each(name: str, modes: int):
    """Equipartition with a Hessian that knows no masses nor modes: <d H d / 2> = modes kT / 2."""
    atoms, count = relaxed(name), 20_000
    settings = NormalModes(300.0, count, 9)
    rng = np.random.default_rng(5)
    steps = np.array(list(thermal_displacements(atoms, settings, rng))).reshape(count, -1)
    energies = 0.5 * np.einsum("ti,ij,tj->t", steps, hessian(atoms), steps)
    # The mean of 20 000 is known to 0.7 %; the two Hessians differ by their steps, 1 %.
    assert energies.mean() == pytest.approx(0.5 * modes * KB * 300.0, rel=0.03)
    if modes == 1:  # the variance of a bond is kT / k
        axis = atoms.positions[1] - atoms.positions[0]
        axis /= np.linalg.norm(axis)
        stretch = (steps[:, 3:] - steps[:, :3]) @ axis
        k = axis @ hessian(atoms)[3:, 3:] @ axis
        assert stretch.var() == pytest.approx(KB * 300.0 / k, rel=0.04)


class Moody(TBLite):
    """GFN2-xTB that fails in every fifth call and forgets a number in every seventh."""

    calls = 0

    def calculate(self, *arguments: Any, **keywords: Any) -> None:
        self.calls += 1
        super().calculate(*arguments, **keywords)
        if self.calls % 5 == 0:
            raise RuntimeError("the queue was full")
        if self.calls % 7 == 0:
            self.results["forces"] = np.full_like(self.results["forces"], np.nan)


def test_a_moody_teacher_costs_frames_that_are_counted():
    teacher = Moody(method="GFN2-xTB", verbosity=0)
    methods = Methods(
        starts=True,
        contacts=11,
        md=MD([300.0, 600.0, 900.0], frames=3, interval=1, equilibration=1),
    )
    one = Labeller(source_of("O"), teacher, 30.0, seed=1).run(methods)
    assert one.attempted == 1 + 11 + 9
    assert 5 < len(one.energies) < one.attempted
    assert "RuntimeError('the queue was full')" in one.failure
    assert "labels that are not finite" in one.failure
    assert np.isfinite(one.forces).all()
    assert_labels_are_the_teachers(one)


class Dead(TBLite):
    def calculate(self, *arguments: Any, **keywords: Any) -> None:
        raise OSError("no licence")


def test_a_dead_teacher_gives_an_empty_structure_with_the_reason():
    dead = Dead(method="GFN2-xTB")
    one = Labeller(source_of("CO"), dead, 30.0, seed=1).run(ALL_METHODS)
    assert len(one.energies) == 0
    assert one.attempted == 1 + 2 + 2 + 3 + 4
    assert one.failure == "OSError('no licence')"
    assert one.positions.shape == (0, 6, 3)


def test_large_forces_are_left_out_and_counted():
    one = sampled(source_of("O"), Methods(starts=True, rattle=0.1), largest_force=1e-3)
    assert (one.attempted, len(one.energies)) == (1, 0)
    assert one.failure.startswith("start: force of ")
    # Rattling that never gives one it may keep comes to an end.
    methods = Methods(augment=Augmentation(frames=1, temperature_K=300.0))
    stuck = sampled(source_of("O"), methods, largest_force=1e-3)
    assert (stuck.attempted, len(stuck.energies)) == (1, 0)
    assert "too few geometries" in stuck.failure


def test_structure_that_cannot_be_built_is_counted(tmp_path: Path):
    impossible = "C1#CC1C23C4C2C34"  # RDKit embeds neither this nor its like
    one = sampled(replace_smiles(impossible), Methods(starts=True))
    if len(one.energies) == 0:
        assert one.attempted == 1
    broken = sampled(replace_smiles("C("), Methods(starts=True))
    assert (broken.attempted, len(broken.energies)) == (1, 0)
    assert "not a SMILES string" in broken.failure
    with open_dataset(tmp_path / "data.h5") as writer:
        writer.append(broken)
    assert read_summary(tmp_path / "data.h5").failures == [broken.failure]


def replace_smiles(smiles: str) -> Source:
    return Source("odd", "odd", "small", "molecule", "train", (smiles,))


def test_periodic_structures_have_stress():
    (box,) = build(Source("l", "l", "liquid", "liquid", "train", ("O",) * 2), seed=2)
    one = sampled(given(box), Methods(starts=True, rattle=0.02, contacts=1))
    assert one.failure == ""
    assert one.pbc.all()
    assert np.isfinite(one.stresses).all()
    assert_labels_are_the_teachers(one)


def test_molecules_keep_their_shape_at_other_volumes():
    (box,) = build(Source("l", "l", "liquid", "liquid", "train", ("O",) * 2), seed=2)
    one = sampled(given(box), Methods(starts=True, volumes=3))
    assert one.methods == ["start", *["volume"] * 3]
    factors = np.linalg.det(one.cells) / box.cell.volume
    assert factors[0] == pytest.approx(1.0)
    assert len(set(factors.round(4))) == 4
    assert (factors > 0.8).all()
    assert (factors < 2.0).all()
    inside = np.linalg.norm(one.positions[:, [0, 0, 3, 3]] - one.positions[:, [1, 2, 4, 5]], axis=2)
    between = np.linalg.norm(one.positions[:, 0] - one.positions[:, 3], axis=1)
    np.testing.assert_allclose(inside, inside[:1].repeat(4, 0), atol=1e-5)
    # Centres of molecules, not oxygens, move with the box.
    np.testing.assert_allclose(between, between[0] * factors ** (1 / 3), rtol=0.05)
    assert_labels_are_the_teachers(one)


def test_slab_is_refused_by_a_teacher_that_takes_it_for_a_crystal():
    slab = g2("H2O")
    slab.set_cell([5.0, 5.0, 5.0])
    energies = {}
    for pbc in ((True, True, True), (True, True, False)):
        slab.pbc = pbc
        atoms = slab.copy()
        atoms.calc = make_teacher(GFN2)
        energies[pbc] = atoms.get_potential_energy()
    # What is wrong with tblite 0.8: if this fails it has learnt slabs, and the check can go.
    assert np.ptp(list(energies.values())) < 1e-6
    one = sampled(given(slab), Methods(starts=True, contacts=1))
    assert (one.attempted, len(one.energies)) == (1, 0)
    assert "periodic along" in one.failure


# --- Dataset ------------------------------------------------------------------------------------


def numbers(name: str, split: str = "train", frames: int = 3, atoms: int = 5) -> LabelledStructure:
    """Random numbers in the form of labels, the same for the same name."""
    rng = np.random.default_rng(list(name.encode()))

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return LabelledStructure(
        name=name,
        identity=f"identity of {name}",
        kind="kind",
        split=split,
        attempted=frames + 1,
        failure=f"of {name}",
        atomic_numbers=rng.choice([1, 6, 8], atoms).astype(np.uint8),
        methods=["md"] * frames,
        positions=draw(frames, atoms, 3),
        forces=draw(frames, atoms, 3),
        energies=draw(frames).astype(np.float64) / 3.0,
        temperatures=draw(frames),
        cells=draw(frames, 3, 3),
        pbc=rng.random((frames, 3)) < 0.5,
        stresses=draw(frames, 6),
    )


def assert_holds(path: Path, structures: list[LabelledStructure]) -> None:
    """The file holds these structures bit by bit, in this order, and no others."""
    summary, frames = read_summary(path), read_frames(path)
    assert summary.names == frames.names == [one.name for one in structures]
    assert summary.splits == [one.split for one in structures]
    assert summary.failures == [one.failure for one in structures]
    assert summary.labelled.tolist() == [len(one.energies) for one in structures]
    assert summary.attempted.tolist() == [one.attempted for one in structures]
    assert frames.start[-1] == len(frames.positions)
    frame = 0
    for index, one in enumerate(structures):
        for k in range(len(one.energies)):
            rows = slice(int(frames.start[frame]), int(frames.start[frame + 1]))
            assert frames.molecule[frame] == index
            assert frames.methods[frame] == one.methods[k]
            pairs = {
                "positions": frames.positions[rows],
                "forces": frames.forces[rows],
                "energies": frames.energies[frame],
                "temperatures": frames.temperatures[frame],
                "cells": frames.cells[frame],
                "pbc": frames.pbc[frame],
                "stresses": frames.stresses[frame],
            }
            for key, found in pairs.items():
                np.testing.assert_array_equal(found, getattr(one, key)[k], err_msg=key)
            np.testing.assert_array_equal(frames.atomic_numbers[rows], one.atomic_numbers)
            frame += 1
    assert frame == len(frames.energies)


STRUCTURES = [
    numbers("first", "test"),
    numbers("without frames", "train", frames=0),
    numbers("second", "train", frames=1, atoms=7),
    numbers("third", "validation", frames=4, atoms=2),
    numbers("fourth", "train"),
]


def filled(path: Path, structures: list[LabelledStructure] = STRUCTURES) -> Path:
    with open_dataset(path, teacher="random", seed=1) as writer:
        for one in structures:
            writer.append(one)
    return path


def test_round_trip_is_exact(tmp_path: Path):
    path = filled(tmp_path / "data.h5")
    assert_holds(path, STRUCTURES)
    attributes = read_summary(path).attributes
    assert attributes == {"teacher": "random", "seed": 1, "format": data.FORMAT}


def test_splits_are_read_apart(tmp_path: Path):
    path = filled(tmp_path / "data.h5")
    for split in SPLITS:
        members = [one for one in STRUCTURES if one.split == split]
        frames = read_frames(path, split)
        assert frames.names == [one.name for one in members]
        assert len(frames.energies) == sum(len(one.energies) for one in members)
        positions = np.concatenate([one.positions.reshape(-1, 3) for one in members])
        np.testing.assert_array_equal(frames.positions, positions)
        owners = [k for k, one in enumerate(members) for _ in one.energies]
        assert frames.molecule.tolist() == owners
    with pytest.raises(InputError, match="no split 'tset'; there are train, validation, test"):
        read_frames(path, "tset")


def test_packed_file_does_not_depend_on_who_was_first(tmp_path: Path):
    files = [tmp_path / "one.h5", tmp_path / "two.h5"]
    for path, order in zip(files, (range(5), (3, 0, 4, 2, 1)), strict=True):
        with open_dataset(path, teacher="random", seed=1) as writer:
            for number in order:
                writer.append(STRUCTURES[number], number)
        assert_holds(path, STRUCTURES)
        assert [part.name for part in tmp_path.glob("*.shards")] == []
    assert sha256(files[0]) == sha256(files[1])
    with open_dataset(files[0]):
        pass
    assert sha256(files[0]) == sha256(files[1])  # there was nothing to pack
    filled(files[0], [numbers("added")])
    assert_holds(files[0], [*STRUCTURES, numbers("added")])


def test_file_with_columns_of_earlier_versions_is_read(tmp_path: Path):
    path = filled(tmp_path / "data.h5")
    with h5py.File(path, "r+") as file:
        atoms = len(file["atoms/force"])
        for key in ("probe", "product"):
            file.create_dataset(f"atoms/{key}", data=np.full((atoms, 3), np.nan, np.float32))
    assert_holds(path, STRUCTURES)
    filled(path, [numbers("added")])
    assert_holds(path, [*STRUCTURES, numbers("added")])


def test_columns_of_the_file(tmp_path: Path):
    """Other programs read them; `atoms` and `start` find the rows of a frame."""
    with h5py.File(filled(tmp_path / "data.h5")) as file:
        columns = {f"{table}/{key}" for table in file for key in file[table]}
        assert columns == {
            *(f"structures/{key}" for key in ("name", "identity", "kind", "split", "failure")),
            *(f"structures/{key}" for key in ("attempted", "frames_end", "atoms_end")),
            *(f"frames/{key}" for key in ("structure", "start", "atoms", "method", "energy")),
            *(f"frames/{key}" for key in ("temperature", "cell", "pbc", "stress")),
            *(f"atoms/{key}" for key in ("atomic_number", "position", "force")),
        }
        frame = int(file["structures/frames_end"][2]) - 1  # the last one of the third structure
        start, count = file["frames/start"][frame], file["frames/atoms"][frame]
        assert file["frames/structure"][frame] == 2
        assert file["structures/atoms_end"][2] == start + count
        np.testing.assert_array_equal(
            file["atoms/position"][start : start + count], STRUCTURES[2].positions[-1]
        )


def test_some_structures_are_drawn_by_the_seed(tmp_path: Path):
    path = tmp_path / "data.h5"
    filled(path, [numbers(f"structure {k}", frames=k % 3 + 1) for k in range(9)])
    drawn = read_frames(path, "train", structures=4, seed=1)
    assert len(drawn.names) == 4
    assert drawn.names == read_frames(path, "train", structures=4, seed=1).names
    assert drawn.names != read_frames(path, "train", structures=4, seed=2).names
    whole = read_frames(path, "train")
    for number, name in enumerate(drawn.names):
        mine, its = drawn.molecule == number, whole.molecule == whole.names.index(name)
        torch.testing.assert_close(drawn.energies[mine], whole.energies[its], rtol=0, atol=0)


def test_smallest_datasets_can_be_read(tmp_path: Path):
    for k, structures in enumerate(([], [numbers("atom", frames=1, atoms=1)])):
        path = filled(tmp_path / f"{k}.h5", structures)
        assert_holds(path, structures)
        assert len(read_frames(path, "test").energies) == 0


def test_a_dataset_can_be_extended(tmp_path: Path):
    path = tmp_path / "data.h5"
    for one in STRUCTURES:
        with open_dataset(path, teacher="random", seed=1) as writer:
            assert one.name not in writer.names
            writer.append(one)
            assert_holds(path, STRUCTURES[: len(writer.names)])  # also while it is open
    with open_dataset(path, teacher="random", seed=1) as writer:
        assert writer.names == {one.name for one in STRUCTURES}
        assert writer.frames == sum(len(one.energies) for one in STRUCTURES)
    assert_holds(path, STRUCTURES)


def test_many_chunks_survive(tmp_path: Path):
    large = [numbers(f"large {k}", frames=100, atoms=40) for k in range(6)]  # 24 000 atoms
    path = filled(tmp_path / "data.h5", large)
    assert_holds(path, large)
    filled(path, [numbers("last")])
    assert_holds(path, [*large, numbers("last")])


@pytest.mark.parametrize("wrong", [{"teacher": "other"}, {"seed": 2}])
def test_another_teacher_or_seed_is_refused(wrong: dict[str, Any], tmp_path: Path):
    path = filled(tmp_path / "data.h5")
    before = path.read_bytes()
    expected = r"was made with (teacher 'random', the recipe says 'other'|seed 1, .* says 2)"
    with (
        pytest.raises(InputError, match=expected),
        open_dataset(path, **({"teacher": "random", "seed": 1} | wrong)),
    ):
        pass
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("**/*.part"))


def test_text_of_any_length_and_alphabet(tmp_path: Path):
    """Cut where a column ends, never within a character."""
    odd = numbers("café")._replace(identity="Ä" * 200, failure="x" * 239 + "Å")
    path = filled(tmp_path / "data.h5", [odd])
    with open_dataset(path) as writer:
        assert writer.names == {"café"}
    summary = read_summary(path)
    assert summary.identities == ["Ä" * 120]
    assert summary.failures == ["x" * 239]


def forked(work: Callable[[], None]) -> multiprocessing.Process:
    """A process that can be killed, without the seconds that imports take."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def test_killed_writer_leaves_whole_structures(tmp_path: Path):
    path, rng = tmp_path / "data.h5", np.random.default_rng(3)

    def write_all(structures: list[LabelledStructure]) -> None:
        with open_dataset(path, teacher="random", seed=1) as writer:
            for one in structures:
                if one.name not in writer.names:
                    writer.append(one)

    everything = [numbers(f"s{k}", frames=9, atoms=20) for k in range(200)]
    kept = 0
    for _ in range(4):
        process = forked(lambda: write_all(everything))
        time.sleep(rng.uniform(0.03, 0.4))
        process.kill()
        process.join()
        if path.exists():
            count = len(read_summary(path).names)
            assert count >= kept
            assert_holds(path, everything[:count])
            kept = count
    assert kept
    del everything[kept + 20 :]
    write_all(everything)
    assert_holds(path, everything)


@pytest.mark.parametrize("renamed", [False, True])
def test_a_writer_killed_while_it_packs_loses_and_doubles_nothing(
    renamed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Before the packed file has its name, and between that and the end of the shards."""
    path = filled(tmp_path / "data.h5", STRUCTURES[:2])
    owner, name = (shutil, "rmtree") if renamed else (data, "_packed")

    def die(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, die)
        with pytest.raises(KeyboardInterrupt):
            filled(path, STRUCTURES[2:])
    assert list(tmp_path.glob("data.h5.shards/*.npz"))
    assert_holds(path, STRUCTURES)
    filled(path, [])
    assert not (tmp_path / "data.h5.shards").exists()
    assert_holds(path, STRUCTURES)


def test_a_dataset_is_read_while_it_is_written_and_packed(tmp_path: Path):
    """Whatever moment a reader chooses, it gets whole structures, and no fewer than before."""
    path, everything = tmp_path / "data.h5", [numbers(f"s{k}") for k in range(60)]

    def write_all() -> None:
        for first in range(0, 60, 20):
            filled(path, everything[first : first + 20])

    process, seen, hashes = forked(write_all), 0, set()
    while process.is_alive() or seen < 60:
        if path.exists():
            summary, frames = read_dataset(path)
            assert (
                summary.names
                == frames.names
                == [one.name for one in everything][: len(frames.names)]
            )
            assert len(frames.energies) == 3 * len(frames.names) >= 3 * seen
            seen = len(frames.names)
            hashes.add(dataset_sha256(path))
    assert process.exitcode == 0
    assert len(hashes) > 1
    assert dataset_sha256(path) == sha256(path)
    assert_holds(path, everything)


def test_shards_of_a_missing_dataset_are_not_taken_for_those_of_a_new_one(tmp_path: Path):
    path = tmp_path / "data.h5"
    with pytest.raises(KeyboardInterrupt), open_dataset(path, teacher="random") as writer:
        writer.append(STRUCTURES[0])
        raise KeyboardInterrupt
    path.unlink()
    with pytest.raises(InputError, match=r"data.h5.shards holds structures, but its dataset"):
        filled(path)


def test_a_damaged_shard_is_named(tmp_path: Path):
    path = tmp_path / "data.h5"
    with open_dataset(path) as writer:
        writer.append(STRUCTURES[0])
        (shard,) = tmp_path.glob("data.h5.shards/*.npz")
        content = shard.read_bytes()
        for part in (b"", content[: len(content) // 2]):
            shard.write_bytes(part)
            with pytest.raises(InputError, match=rf"{shard.name} is damaged .* delete it"):
                read_frames(path)
        shard.write_bytes(content)
    assert_holds(path, STRUCTURES[:1])


@pytest.mark.parametrize("part", [0.0, 0.001, 0.2, 0.5, 0.8, 0.999])
def test_file_cut_short(part: float, tmp_path: Path):
    path = filled(tmp_path / "data.h5")
    os.truncate(path, int(part * path.stat().st_size))
    advice = "not a whole HDF5 file .* copy it again, or move it away"
    for use in (read_frames, read_summary, filled):
        with pytest.raises(InputError, match=advice):
            use(path)


def test_what_is_no_dataset(tmp_path: Path):
    path = tmp_path / "data.h5"
    with pytest.raises(InputError, match=r"no dataset .* run `mlff-student distill sample` first"):
        read_frames(path)
    path.write_text("name,energy\nwater,1\n")
    with pytest.raises(InputError, match="is not a whole HDF5 file"):
        read_frames(path)
    with h5py.File(path, "w") as file:
        file["something"] = [1, 2]
    for use in (read_frames, filled):
        with pytest.raises(InputError, match=r"no dataset of format 1 \(found format None\)"):
            use(path)
    path.unlink()
    filled(path)
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = 99
    with pytest.raises(InputError, match="found format 99"):
        read_frames(path)


def limited(path: Path, most: int, structures: list[LabelledStructure]) -> None:
    """Append as on a disk with room for `most` bytes; exit status 7 for an InputError."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    try:
        with open_dataset(path, teacher="random", seed=1) as writer:
            for one in structures:
                writer.append(one)
    except InputError as error:
        os._exit(7 if "is safe; make room" in str(error) else 8)
    except BaseException:
        os._exit(9)
    os._exit(0)


@pytest.mark.parametrize("room", [0, 1_000, 300_000])
def test_full_disk_loses_nothing(room: int, tmp_path: Path):
    """Where no shard can be written, or the packed file cannot; afterwards all can be appended."""
    first = [numbers(f"s{k}", frames=9, atoms=20) for k in range(20)]
    more = [numbers(f"t{k}", frames=9, atoms=20) for k in range(60)]
    path = filled(tmp_path / "data.h5", first)
    process = forked(lambda: limited(path, room, more))
    process.join(60)
    assert process.exitcode == 7
    count = len(read_summary(path).names)
    assert count == (20 if room < 10_000 else 80)
    assert_holds(path, (first + more)[:count])
    filled(path, more[count - 20 :])
    assert_holds(path, first + more)
    assert not list(tmp_path.glob("**/*.part"))


def test_two_writers_are_one_too_many(tmp_path: Path):
    path = tmp_path / "data.h5"

    def second() -> None:
        try:
            filled(path)
        except InputError as error:
            os._exit(7 if "another process is writing" in str(error) else 8)
        os._exit(0)

    with open_dataset(path, teacher="random", seed=1) as writer:
        writer.append(STRUCTURES[0])
        with pytest.raises(InputError, match="another process is writing"):
            filled(path)
        process = forked(second)
        process.join(60)
        assert process.exitcode == 7
        writer.append(STRUCTURES[1])
    assert_holds(path, STRUCTURES[:2])
    filled(path, STRUCTURES[2:])  # the lock went with its owner
    assert_holds(path, STRUCTURES)


def test_folder_that_is_not_there(tmp_path: Path):
    with pytest.raises(InputError, match="cannot write"):
        filled(tmp_path / "no folder" / "data.h5")


# --- Labelling ----------------------------------------------------------------------------------

METHODS = Methods(starts=True, contacts=2)
SOURCES = [
    source_of(smiles)._replace(split=split)
    for smiles, split in zip(
        ("O", "N", "C#N", "OO", "C=O", "CO", "CN", "CF", "C"), SPLITS * 3, strict=True
    )
]


def recipe_of(sampling: dict[str, Methods]) -> Recipe:
    held_out = HeldOut(validation=0.0, test=0.0)
    return Recipe(GFN2, 4, StructureRecipe(0, 9, held_out), sampling, training={})


LABELLING = recipe_of({"molecule": METHODS})


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset of all sources, by two workers."""
    path = tmp_path_factory.mktemp("labelled") / "data.h5"
    label_sources(SOURCES, LABELLING, path, workers=2)
    return path


def assert_same_labels(path: Path, other: Path, names: list[str]) -> None:
    """Equal bits for each of these structures, in whatever order they are."""
    one, two = read_frames(path), read_frames(other)
    for name in names:
        first, second = (
            (frames.molecule == frames.names.index(name)).numpy() for frames in (one, two)
        )
        assert first.sum() == second.sum() == 3
        np.testing.assert_array_equal(one.energies[first], two.energies[second])
        rows = [
            np.repeat(chosen, np.diff(frames.start))
            for chosen, frames in ((first, one), (second, two))
        ]
        np.testing.assert_array_equal(one.positions[rows[0]], two.positions[rows[1]])
        np.testing.assert_array_equal(one.forces[rows[0]], two.forces[rows[1]])


NAMES = [source.name for source in SOURCES]


def test_all_is_labelled_in_its_split(labelled: Path):
    summary = read_summary(labelled)
    splits = {source.name: source.split for source in SOURCES}
    assert dict(zip(summary.names, summary.splits, strict=True)) == splits
    assert len(summary.names) == len(splits)


def test_nothing_is_labelled_twice(labelled: Path, tmp_path: Path):
    path = Path(shutil.copy(labelled, tmp_path / "data.h5"))
    before = read_summary(path)
    label_sources(SOURCES, LABELLING, path, workers=1)
    assert read_summary(path).names == before.names
    assert_same_labels(labelled, path, NAMES)


@pytest.fixture(scope="module")
def dask_scheduler() -> Iterator[str]:
    """Address of a cluster in this process, of one worker with two threads."""
    distributed = pytest.importorskip("dask.distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None, protocol="tcp"
    ) as cluster:
        yield cluster.scheduler_address


def test_cluster_labels_as_this_machine(labelled: Path, dask_scheduler: str, tmp_path: Path):
    """A worker's threads share the process, but not a calculator."""
    label_sources(SOURCES, LABELLING, tmp_path / "data.h5", 1, dask_scheduler)
    assert_same_labels(labelled, tmp_path / "data.h5", NAMES)


# What `number` stops: all sources, then many more, by one worker, in a process of its own (a fork
# would share the threads of the Dask cluster here).
SCRIPT = """
import sys
from pathlib import Path

from test_distill_data import LABELLING, SOURCES, source_of
from mlff_student.distill.label import label_sources

if __name__ == "__main__":
    more = [source_of("CCO")._replace(name=f"later {k}") for k in range(300)]
    label_sources(SOURCES[:5] + more, LABELLING, Path(sys.argv[1]), workers=1)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_stopped_labelling_resumes(
    number: signal.Signals, labelled: Path, dask_scheduler: str, tmp_path: Path
):
    """One worker began, a cluster ends it: the labels are those of two workers."""
    path, script = tmp_path / "data.h5", tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, script, path],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        start_new_session=True,
        # A job in the background ignores Ctrl-C, and so do its children.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (path.exists() and read_summary(path).names):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)  # as a terminal does
    process.communicate(timeout=60)
    assert process.returncode not in (None, 0)
    done = read_summary(path).names
    assert 1 <= len(done) < 300
    assert len(read_frames(path).energies) == 3 * len(done)
    label_sources(SOURCES, LABELLING, path, 1, dask_scheduler)
    assert sorted(read_summary(path).names) == sorted({*done, *NAMES})
    assert_same_labels(labelled, path, NAMES)


def test_scheduler_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(labelling, "SCHEDULER_TIMEOUT_S", 1.0)
    for address in ("tcp://127.0.0.1:9", "nonsense://"):
        with pytest.raises(InputError, match=f"no Dask scheduler answers at {address}"):
            label_sources(SOURCES, LABELLING, tmp_path / "data.h5", 1, address)


def test_a_teacher_that_is_not_known_ends_the_labelling(dask_scheduler: str, tmp_path: Path):
    recipe = replace(LABELLING, teacher="gfn9-xtb")
    with pytest.raises(InputError, match="unknown teacher 'gfn9-xtb'"):
        label_sources(SOURCES, recipe, tmp_path / "data.h5", 1, dask_scheduler)


def test_no_frame_at_all_is_an_error(dask_scheduler: str, tmp_path: Path):
    recipe = replace(LABELLING, largest_force=1e-9)
    path = tmp_path / "data.h5"
    with pytest.raises(InputError, match="no structure gave a frame"):
        label_sources(SOURCES[:2], recipe, path, 1, dask_scheduler)
    assert all("force of" in failure for failure in read_summary(path).failures)
