"""Recipes, structures and the dataset of distillation."""

import copy
import itertools
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
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
from random_labels import STRUCTURES, assert_holds, filled, numbers
from rdkit import Chem
from rdkit.Chem import rdDepictor, rdDistGeom

from mlff_student.core.errors import InputError
from mlff_student.core.files import sha256
from mlff_student.distill import dataset as data
from mlff_student.distill import sources as places
from mlff_student.distill.dataset import (
    SPLITS,
    open_dataset,
    read_frames,
    read_summary,
)
from mlff_student.distill.molecules import LIBRARY, Molecule, read_library, recombined
from mlff_student.distill.packed import read_packed, write_packed
from mlff_student.distill.recipe import (
    CONDENSED_RECIPE,
    MD,
    ORGANIC_RECIPE,
    HeldOut,
    Methods,
    Mixture,
    StructureRecipe,
    read_recipe,
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

# --- Recipe -------------------------------------------------------------------------------------


RECIPE: dict[str, Any] = {
    "teacher": "gfn2-xtb",
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
        "temperatures_K": [300],
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
def test_misspelt_key_is_refused_with_the_nearest_key(
    section: str, wrong: str, right: str, tmp_path: Path
):
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
def test_file_that_is_no_recipe_is_refused(text: str, tmp_path: Path):
    with pytest.raises(InputError):
        read_recipe(written(text, tmp_path))


def test_file_that_is_no_text_is_refused(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(InputError, match="is not YAML"):
        read_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(InputError, match="no recipe file"):
        read_recipe(tmp_path / "nothing.yaml")


def test_defaults_and_numbers(tmp_path: Path):
    """An integer is read as a float, and so is 1e-3, which is text in YAML 1.1."""
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


def test_shipped_recipe_is_valid_and_has_every_preset():
    recipe = read_recipe(ORGANIC_RECIPE)
    assert set(recipe.training) == set(PRESETS)
    assert set(recipe.structures.always) <= {molecule.name for molecule in read_library()}
    assert {"molecule", "dimer", "cluster", "liquid", "held_out"} == set(recipe.sampling)


def test_recipe_of_the_condensed_phase_names_molecules_that_exist():
    recipe = read_recipe(CONDENSED_RECIPE)
    assert set(recipe.training) == set(PRESETS)
    molecules = read_library() + read_library(LIBRARY.with_name(recipe.structures.added_smiles))
    names = [molecule.name for molecule in molecules]
    assert len(names) == len(set(names))
    assert len({identity(m.smiles) for m in molecules}) >= len(names) - 12  # stereoisomers
    known = {*names, *(molecule.kind for molecule in molecules)}
    for mixture in recipe.structures.mixtures:
        assert {*mixture.solvents, *mixture.solutes} <= known, mixture.name
    assert set(recipe.structures.always) <= known


# --- Molecules ----------------------------------------------------------------------------------


def test_library_is_large_and_its_molecules_are_valid_and_distinct():
    library = read_library()
    parsed = [Chem.AddHs(Chem.MolFromSmiles(molecule.smiles)) for molecule in library]
    assert len({Chem.MolToSmiles(atoms) for atoms in parsed}) == len(library) >= 1000
    assert len({molecule.name for molecule in library}) == len(library)
    assert max(atoms.GetNumAtoms() for atoms in parsed) <= 40
    assert {atom.GetSymbol() for atoms in parsed for atom in atoms.GetAtoms()} == set(ELEMENTS)
    kinds = Counter(molecule.kind for molecule in library)
    assert set(kinds) == {
        *("amino_acid", "aromatic", "capped_dipeptide", "drug", "fragment", "functional_group"),
        *("halogen", "heterocycle", "hydrocarbon", "nucleobase", "phosphorus", "small"),
        *("solvent", "sugar", "sulfur"),
    }
    for molecule, atoms in zip(library, parsed, strict=True):
        assert Chem.GetFormalCharge(atoms) == 0, molecule
        assert not any(atom.GetNumRadicalElectrons() for atom in atoms.GetAtoms()), molecule
        assert len(Chem.GetMolFrags(atoms)) == 1, molecule


FAMILIAR = [
    Molecule("CC(=O)Nc1ccc(O)cc1", "paracetamol", "drug"),
    Molecule("CCOC(=O)c1ccccc1", "ethyl_benzoate", "solvent"),
    Molecule("CN(C)C(=O)CCl", "chloroacetamide", "solvent"),
    Molecule("COc1ccncc1", "methoxypyridine", "heterocycle"),
    Molecule("CSCC(=O)O", "methylthioacetic_acid", "sulfur"),
]


def test_recombined_molecules_are_new_and_can_be_sampled():
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


def test_identity_ignores_stereochemistry_only():
    assert identity("C[C@H](N)C(=O)O") == identity("C[C@@H](N)C(=O)O") == identity("OC(=O)C(C)N")
    assert identity("C/C=C/C") == identity("C/C=C\\C")
    assert identity("CCO") != identity("COC")


@pytest.mark.parametrize("smiles", ["C(", "", "Xx", "c1ccc1C(C)(C)(C)(C)C"])
def test_wrong_smiles_is_refused(smiles: str):
    for use in (identity, embed):
        with pytest.raises(InputError, match="not a SMILES string"):
            use(smiles)


def test_embedding_is_reproducible():
    first, second = embed("CC(=O)NC(C)C(=O)NC")[0], embed("CC(=O)NC(C)C(=O)NC")[0]
    assert (first.positions == second.positions).all()
    assert (first.positions != embed("CC(=O)NC(C)C(=O)NC", seed=2)[0].positions).any()


def test_library_file_that_cannot_be_read_is_refused(tmp_path: Path):
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
    """Recipe with a file of 20 small molecules of two classes."""
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
    single = [structure for structure in sources if structure.group in ("molecule", "held_out")]
    assert Counter(structure.split for structure in single) == {
        "train": 10,
        "validation": 4,
        "test": 6,
    }
    splits = {
        split: {structure.identity for structure in sources if structure.split == split}
        for split in SPLITS
    }
    for split, other in itertools.combinations(SPLITS, 2):
        assert not splits[split] & splits[other]
    assert {identity("O"), identity("CBr")} <= splits["train"]
    assert {structure.group for structure in single if structure.split != "train"} == {"held_out"}
    assert len({structure.name for structure in sources}) == len(sources)
    order = [structure.split == "train" for structure in sources]
    assert order == sorted(order)  # those that are measured come first


def test_molecule_with_a_unique_kind_of_bond_is_not_held_out():
    """Bonds to hydrogen count: C-F and H-F are in one molecule each, C-H and O-H are in two."""
    smiles = ["BrBr", "C", "CF", "F", "O", "COC", "CO", "ClCCl", "CCl"]
    unique = with_unique_bonds({structure: places._bond_graph(structure) for structure in smiles})
    assert unique == {"BrBr", "CF", "F"}
    complexes = {"dimers": 0, "clusters": 0, "liquids": 0, "solvents": []}
    recipe = replace(read_recipe(ORGANIC_RECIPE).structures, brics=0, **complexes)
    sources = list_sources(recipe, seed=20261121)
    assert {
        structure.split for structure in sources if structure.identity in {"BrBr", "ClBr", "FF"}
    } == {"train"}


def test_complexes_are_made_of_one_split(own_library: StructureRecipe):
    sources = list_sources(own_library, seed=5)
    split_of = {
        structure.identity: structure.split for structure in sources if len(structure.smiles) == 1
    }
    complexes = [
        structure for structure in sources if structure.group in ("dimer", "cluster", "liquid")
    ]
    counts = Counter((structure.group, structure.split) for structure in complexes)
    assert counts["dimer", "train"] == 10
    assert counts["dimer", "test"] == 6
    assert counts["dimer", "validation"] == 4
    assert all(counts[group, split] for group in ("cluster", "liquid") for split in SPLITS)
    for structure in complexes:
        assert {split_of[identity(smiles)] for smiles in structure.smiles} == {structure.split}, (
            structure
        )
        assert structure.identity == ".".join(sorted(map(identity, structure.smiles)))
        atoms = sum(
            Chem.AddHs(Chem.MolFromSmiles(smiles)).GetNumAtoms() for smiles in structure.smiles
        )
        if structure.group == "dimer":
            assert len(structure.smiles) == 2
            assert atoms <= own_library.dimer_largest
        elif structure.group == "cluster":
            assert len(structure.smiles) >= 2
            assert atoms <= own_library.cluster_largest
        else:
            assert len(set(structure.smiles)) == 1
            assert atoms <= own_library.liquid_largest


def test_solvents_are_pure_liquids_in_the_split_of_their_molecule(own_library: StructureRecipe):
    names = ["water", "bromide", "methanol"]
    recipe = replace(own_library, solvents=names, solvent_boxes=2)
    without, sources = list_sources(own_library, seed=5), list_sources(recipe, seed=5)
    split_of = {structure.name: structure.split for structure in sources}
    boxes = [structure for structure in sources if structure not in without]
    assert [structure for structure in sources if structure in without] == without
    assert Counter(structure.smiles[0] for structure in boxes) == {SMALL[name]: 2 for name in names}
    for structure in boxes:
        assert (structure.kind, structure.group) == ("liquid", "liquid")
        assert structure.split == split_of[structure.name.removeprefix("liquid_").rsplit("_", 1)[0]]
    assert (
        len(next(structure for structure in boxes if structure.smiles[0] == "O").smiles) == 24 // 3
    )
    with pytest.raises(InputError, match="did you mean 'methanol'"):
        list_sources(replace(recipe, solvents=["methanole"]), seed=5)
    with pytest.raises(InputError, match=r"two molecules of methanol .* liquid_largest, 11"):
        list_sources(replace(recipe, liquid_largest=11), seed=5)


def test_mixtures_have_a_molecule_of_their_split(own_library: StructureRecipe):
    mixtures = [
        Mixture("pair", 40, [20, 40], ["one", "other"], kinds=2),
        Mixture("solution", 40, [12, 30], ["water"], ["other", "ethane"], periodic=True),
    ]
    sources = list_sources(replace(own_library, mixtures=mixtures), seed=5)
    alone = {source.identity: source for source in sources if len(source.smiles) == 1}
    mixed = [source for source in sources if source.kind in ("pair", "solution")]
    counts = Counter((source.kind, source.split) for source in mixed)
    assert all(counts[kind, split] for kind in ("pair", "solution") for split in SPLITS)
    assert 70 <= len(mixed) <= 82  # rounding, and those whose second molecule has no room
    for source in mixed:
        members = [alone[identity(smiles)] for smiles in source.smiles]
        assert members[0].split == source.split
        drawn = [member for member in members if member.name not in own_library.always]
        assert {member.split for member in drawn} <= {source.split}
        atoms = sum(map(atom_count, source.smiles))
        assert len(members) > 1
        if source.kind == "pair":
            assert source.group == "cluster"
            assert len(set(source.smiles)) <= 2
            assert atoms <= 40
        else:
            assert source.group == "liquid"
            assert set(source.smiles[1:]) == {"O"}
            assert members[0].kind == "other" or members[0].name == "ethane"
            assert atoms <= 30
    with pytest.raises(InputError, match=r"mixture pair: .*'metanol'.*'methanol'"):
        wrong = Mixture("pair", 1, [1, 9], ["metanol"])
        list_sources(replace(own_library, mixtures=[wrong]), seed=5)
    with pytest.raises(InputError, match=r"mixture pair: atoms is \[9, 1\]"):
        Mixture("pair", 1, [9, 1], ["water"])


def atom_count(smiles: str) -> int:
    return Chem.AddHs(Chem.MolFromSmiles(smiles)).GetNumAtoms()


def test_boxes_have_the_volume_and_the_charge_of_their_molecules():
    box = Source(
        name="salt_water",
        identity="",
        kind="solution",
        group="liquid",
        split="train",
        smiles=("CC(=O)[O-]", *["O"] * 12),
        packing=0.65,
        dilation=(1.1, 1.1),
    )
    (atoms,) = build(box, seed=3)
    volume = molecular_volume("CC(=O)[O-]") + 12 * molecular_volume("O")
    assert atoms.get_volume() == pytest.approx(1.1 * volume / 0.65, rel=1e-6)
    assert atoms.info == {"charge": -1}
    water = atoms[7:10]
    np.testing.assert_allclose(water.get_distance(0, 1), embed("O", 3)[0].get_distance(0, 1))
    assert build(box._replace(smiles=("O",) * 3), seed=3)[0].info == {}


def test_elements_and_charges_are_those_of_the_recipe(own_library: StructureRecipe, tmp_path: Path):
    (tmp_path / "more.smi").write_text("C[NH3+]\tammonium\tion\nCSi\tno\tother\n")
    few = replace(own_library, elements=["H", "C", "O"], always=["water"])
    symbols = {
        atom.GetSymbol()
        for source in list_sources(few, seed=5)
        for smiles in source.smiles
        for atom in Chem.MolFromSmiles(smiles).GetAtoms()
    }
    assert symbols == {"C", "O"}
    (tmp_path / "more.smi").write_text("C[NH3+]\tammonium\tion\nCBr\tbromo\tother\n")
    added = replace(own_library, added_smiles=str(tmp_path / "more.smi"), smiles="", library=3)
    added = replace(added, always=["water"], held_out=HeldOut(0.0, 0.0))
    with pytest.raises(InputError, match=r"ammonium .* has the charge \+1, .*structures.charged"):
        list_sources(added, seed=5)
    names = {s.name for s in list_sources(replace(added, charged=True), seed=5)}
    assert {"ammonium", "bromo"} <= names
    chno = replace(added, charged=True, elements=["H", "C", "N", "O"])
    assert "bromo" not in {s.name for s in list_sources(chno, seed=5)}


def test_longer_library_does_not_change_the_other_molecules():
    recipe = replace(read_recipe(ORGANIC_RECIPE).structures, library=200)
    library = read_library()
    before = places.choose_molecules(library, recipe, seed=7)
    assert len(before) == len(set(before)) == 200
    assert {structure.name for structure in before[: len(recipe.always)]} == set(recipe.always)
    assert len({structure.kind for structure in before}) == 15
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
def test_structures_that_cannot_be_made_are_refused(
    change: dict[str, Any], message: str, own_library: StructureRecipe
):
    with pytest.raises(InputError, match=message):
        list_sources(replace(own_library, **change), seed=5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("CC(C\tbroken\tone", r"'CC\(C' is not a SMILES string"),
        ("C[NH3+]\tcation\tone", r"cation .* has the charge \+1"),
        ("CCC\twater\tone", "two structures are called 'water'"),
        (f"CCC\t{'long' * 30}\tone", "more than 96 bytes"),
    ],
)
def test_own_molecules_that_cannot_be_used_are_refused(
    line: str, message: str, own_library: StructureRecipe
):
    with open(own_library.smiles, "a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=message):
        list_sources(replace(own_library, library=30), seed=5)


def test_molecules_above_the_largest_size_are_not_chosen(own_library: StructureRecipe):
    sources = list_sources(replace(own_library, largest=6, dimers=0), seed=5)
    names = {structure.name for structure in sources}
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
def test_dimers_have_the_contact_distances_of_the_recipe(smiles: tuple[str, str]):
    source = Source("pair", "pair", "dimer", "dimer", "train", smiles)
    sizes = [len(embed(structure)[0]) for structure in smiles]
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
    sizes = [len(embed(structure)[0]) for structure in smiles]
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
    """Heptane is longer than its box, so its own images count too."""
    source = Source("l", "l", "liquid", "liquid", "train", (smiles,) * count)
    (atoms,) = build(source, seed=2)
    edge = atoms.cell.lengths()[0]
    assert atoms.pbc.all()
    assert contacts(atoms, [len(atoms) // count] * count, edge).min() > LIQUID_CONTACT
    density = atoms.get_masses().sum() / atoms.get_volume() * 1.66054  # amu/angstrom^3 to g/cm^3
    assert grams_per_cm3[0] < density < grams_per_cm3[1]


def test_box_that_is_too_small_grows_or_is_refused():
    water = embed("O")[0]
    volume = 3 * molecular_volume("O") / LIQUID_PACKING
    rng = np.random.default_rng(1)
    grown = liquid_box([water] * 3, 0.5 * volume, rng).get_volume()
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


def test_folder_with_files_of_all_formats_is_read(tmp_path: Path):
    ethanol = g2("CH3CH2OH")
    write(tmp_path / "many.extxyz", [ethanol, g2("CH3OCH3")])
    (tmp_path / "below").mkdir()
    write(tmp_path / "below" / "many.extxyz", g2("CH4"))
    (tmp_path / "two.sdf").write_text(sdf_of("CCO", hydrogens=True) + sdf_of("CO", hydrogens=False))
    write(tmp_path / "salt.cif", bulk("CBr", "zincblende", 5.2, cubic=True))
    (tmp_path / "notes.txt").write_text("not a structure")
    sources = read_generated(tmp_path)
    formulas = Counter(structure.starts[0].get_chemical_formula() for structure in sources)
    assert formulas == {"C2H6O": 3, "CH4": 1, "CH4O": 1, "C4Br4": 1}
    (salt,) = (structure for structure in sources if structure.kind == "crystal")
    np.testing.assert_allclose(salt.starts[0].cell.lengths(), 5.2)
    assert len({structure.name for structure in sources}) == 6  # two files have one name
    assert all(structure.name.startswith(("many_", "two_", "salt_")) for structure in sources)
    # Ethanol from extxyz and SDF is one molecule, dimethyl ether another.
    assert len({structure.identity for structure in sources if "C2H6O" in structure.identity}) == 2


def test_files_follow_the_split_of_the_library(own_library: StructureRecipe, tmp_path: Path):
    """A geometry of a held-out molecule in a file is not put into the training set."""
    folder = tmp_path / "geometries"
    folder.mkdir()
    for name, smiles in SMALL.items():
        write(folder / f"{name}.xyz", embed(smiles, seed=77)[0])
    sources = list_sources(replace(own_library, files=[str(folder)]), seed=5)
    split_of = {
        structure.name: structure.split
        for structure in sources
        if structure.group in ("molecule", "held_out")
    }
    from_files = [structure for structure in sources if structure.group == "file"]
    assert len(from_files) == len(SMALL)
    for structure in from_files:
        assert structure.split == split_of[structure.name.split("_")[0]], structure.name


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
        ("a.xyz", "1\n\nH 0 0 0\n3\n\nH 0 0 zero\n", "a.xyz ends too early: .*3 atoms and has 1"),
        ("a.cif", "no crystal", r"a.cif(, structure 0: ASE cannot read it| holds no structures)"),
        (
            "a.sdf",
            sdf_of("CO", True) + "garbage\n\n\nmore\n$$$$\n",
            "a.sdf, structure 1 .*RDKit cannot",
        ),
        ("a.sdf", sdf_of("CCO", True, flat=True), "a.sdf, structure 0: a flat drawing"),
        ("a.sdf", sdf_of("C[NH3+]", True), r"a.sdf, structure 0: has the charge \+1"),
        ("a.txt", "no extension that is known", "holds no structures"),
    ],
)
def test_file_that_cannot_be_read_is_named(
    name: str, content: str | list[Atoms], message: str, tmp_path: Path
):
    if isinstance(content, str):
        (tmp_path / name).write_text(content)
    else:
        write(tmp_path / name, content)
    with pytest.raises(InputError, match=message):
        read_generated(tmp_path)


def test_missing_path_and_empty_folder_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no file or folder of structures"):
        read_generated(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no structures"):
        read_generated(tmp_path)


def test_connectivity_depends_on_the_bonds_only():
    alanine = "CC(N)C(=O)O"
    codes = {connectivity(embed(alanine, seed)[0]) for seed in (1, 2, 3)}
    assert len(codes) == 1
    shuffled = embed(alanine)[0][np.random.default_rng(0).permutation(13)]
    assert connectivity(shuffled) in codes
    isomers = ["CCCO", "CC(C)O", "CCOC"]
    assert len({connectivity(embed(smiles)[0]) for smiles in isomers}) == 3


# --- Dataset ------------------------------------------------------------------------------------


def test_round_trip_is_exact(tmp_path: Path):
    path = filled(tmp_path / "data.h5")
    assert_holds(path, STRUCTURES)
    attributes = read_summary(path).attributes
    assert attributes == {"teacher": "random", "seed": 1, "format": data.FORMAT}


def test_each_split_is_read_alone(tmp_path: Path):
    path = filled(tmp_path / "data.h5")
    for split in SPLITS:
        members = [structure for structure in STRUCTURES if structure.split == split]
        frames = read_frames(path, split)
        assert frames.names == [structure.name for structure in members]
        assert len(frames.energies) == sum(len(structure.energies) for structure in members)
        positions = np.concatenate([structure.positions.reshape(-1, 3) for structure in members])
        np.testing.assert_array_equal(frames.positions, positions)
        owners = [k for k, structure in enumerate(members) for _ in structure.energies]
        assert frames.molecule.tolist() == owners
    with pytest.raises(InputError, match="no split 'tset'; there are train, validation, test"):
        read_frames(path, "tset")


def test_packed_file_does_not_depend_on_the_order_of_labelling(tmp_path: Path):
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


def test_file_has_the_documented_columns(tmp_path: Path):
    """Other programs read the columns; `atoms` and `start` give the rows of a frame."""
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


def test_structures_are_drawn_by_the_random_seed(tmp_path: Path):
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


def test_empty_and_smallest_datasets_can_be_read(tmp_path: Path):
    for k, structures in enumerate(([], [numbers("atom", frames=1, atoms=1)])):
        path = filled(tmp_path / f"{k}.h5", structures)
        assert_holds(path, structures)
        assert len(read_frames(path, "test").energies) == 0


def test_a_dataset_can_be_extended(tmp_path: Path):
    path = tmp_path / "data.h5"
    for structure in STRUCTURES:
        with open_dataset(path, teacher="random", seed=1) as writer:
            assert structure.name not in writer.names
            writer.append(structure)
            assert_holds(path, STRUCTURES[: len(writer.names)])  # also while it is open
    with open_dataset(path, teacher="random", seed=1) as writer:
        assert writer.names == {structure.name for structure in STRUCTURES}
        assert writer.frames == sum(len(structure.energies) for structure in STRUCTURES)
    assert_holds(path, STRUCTURES)


def test_dataset_of_many_chunks_is_read_back(tmp_path: Path):
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


def test_text_of_any_length_and_alphabet_is_stored(tmp_path: Path):
    """A text is cut at the width of its column, but never within a character."""
    odd = numbers("café")._replace(identity="Ä" * 200, failure="x" * 239 + "Å")
    path = filled(tmp_path / "data.h5", [odd])
    with open_dataset(path) as writer:
        assert writer.names == {"café"}
    summary = read_summary(path)
    assert summary.identities == ["Ä" * 120]
    assert summary.failures == ["x" * 239]


@pytest.mark.parametrize("renamed", [False, True])
def test_writer_killed_while_it_packs_loses_and_repeats_no_structure(
    renamed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The kill comes before the packed file has its name, or before the shards are removed."""
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


def test_shards_without_their_dataset_are_refused(tmp_path: Path):
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
def test_file_that_is_cut_short_is_refused(part: float, tmp_path: Path):
    path = filled(tmp_path / "data.h5")
    os.truncate(path, int(part * path.stat().st_size))
    advice = "not a whole HDF5 file .* copy it again, or move it away"
    for use in (read_frames, read_summary, filled):
        with pytest.raises(InputError, match=advice):
            use(path)


def test_packed_frames_are_those_of_the_dataset(tmp_path: Path):
    """Positions and forces are rounded; everything else is the same."""
    filled(tmp_path / "data.h5")
    splits = {split: read_frames(tmp_path / "data.h5", split) for split in SPLITS}
    write_packed(tmp_path / "data.npz", splits)
    whole = read_frames(tmp_path / "data.h5")
    for split, expected in [*splits.items(), (None, None)]:
        frames = read_frames(tmp_path / "data.npz", split)
        if expected is None:
            assert len(frames.energies) == len(whole.energies)
            assert sorted(frames.names) == sorted(whole.names)
            numbers = torch.cat([splits[split].atomic_numbers for split in SPLITS])
            assert torch.equal(frames.atomic_numbers, numbers)
            assert int(frames.start[-1]) == len(numbers)
            continue
        for name, value in expected._asdict().items():
            mine = getattr(frames, name)
            if name in ("positions", "forces"):
                step = {"positions": 2.0**-15, "forces": 2.0**-12}[name]
                torch.testing.assert_close(mine, value, rtol=1e-6, atol=1.01 * step)
            elif isinstance(value, list):
                assert mine == value
            else:
                assert torch.equal(torch.nan_to_num(mine), torch.nan_to_num(value)), name
    content = (tmp_path / "data.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="no packed dataset or is damaged"):
        read_packed(tmp_path / "cut.npz", "train")
    broken = splits["train"]._replace(forces=splits["train"].forces * torch.nan)
    with pytest.raises(InputError, match="the forces are not finite"):
        write_packed(tmp_path / "broken.npz", {"train": broken})
    assert not (tmp_path / "broken.npz").exists()


def test_file_that_is_no_dataset_is_refused(tmp_path: Path):
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


def test_missing_folder_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="cannot write"):
        filled(tmp_path / "no folder" / "data.h5")
