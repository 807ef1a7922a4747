"""Where structures come from: molecules, complexes of them, liquids, and files of any generator."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.data import vdw_radii
from ase.io import iread
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from ..errors import InputError
from ..structure import check_structure, perceive_bonds
from .molecules import LIBRARY, Molecule, embed, identity, read_library, recombined
from .recipe import StructureRecipe

# Shortest contact of two molecules as a fraction of the sum of van der Waals radii: a hydrogen bond
# is at 0.7, liquids have their first shell about 1.
DIMER_CONTACTS = (0.68, 0.8, 0.95, 1.15, 1.5)
CLUSTER_CONTACT = 0.9
LIQUID_CONTACT = 0.72
LIQUID_PACKING = 0.58  # van der Waals volume over volume, of organic liquids
CLUSTER_SIZES = (3, 4, 5)
EXTENSIONS = (".extxyz", ".xyz", ".sdf", ".mol", ".cif", ".vasp", ".poscar", ".pdb", ".traj")


class Source(NamedTuple):
    """One structure to be sampled, described so briefly that it can be sent to any worker."""

    name: str
    identity: str  # what may be in one split only
    kind: str  # class of molecule, or dimer, cluster, liquid, ...
    group: str  # key of the recipe's sampling methods
    split: str
    smiles: tuple[str, ...] = ()  # of its molecules
    conformers: int = 1
    starts: tuple[Atoms, ...] = ()  # geometries, where they are given


def list_sources(recipe: StructureRecipe, seed: int) -> list[Source]:
    """All structures of a recipe, those of the held-out splits first.

    Raises
    ------
    InputError : a file that cannot be used, too few molecules to hold any out, an unknown name.
    """
    library = read_library(Path(recipe.smiles) if recipe.smiles else LIBRARY)
    molecules = choose_molecules(library, recipe, seed)
    keys = {molecule: identity(molecule.smiles) for molecule in molecules}
    always = {keys[molecule] for molecule in molecules if molecule.name in recipe.always}
    split_of = draw_splits(set(keys.values()), always, recipe, seed)
    single = [
        Source(m.name, key, m.kind, "molecule", split_of[key], (m.smiles,), recipe.conformers)
        for m, key in keys.items()
    ]
    single = [one if one.split == "train" else one._replace(group="held_out") for one in single]
    sources = single + list(_complexes(single, recipe, seed))
    for molecule in recombined(molecules, recipe.brics, recipe.brics_largest, seed):
        key = identity(molecule.smiles)
        sources.append(
            Source(molecule.name, key, molecule.kind, "molecule", "train", (molecule.smiles,))
        )
    from_files = [one for path in recipe.files for one in read_generated(Path(path))]
    split_of = (
        draw_splits({one.identity for one in from_files}, always | set(split_of), recipe, seed)
        | split_of
    )
    sources += [one._replace(split=split_of[one.identity]) for one in from_files]
    return sorted(sources, key=lambda one: one.split == "train")


def choose_molecules(library: list[Molecule], recipe: StructureRecipe, seed: int) -> list[Molecule]:
    """Molecules that are sampled: those always wanted, then one of each class in turn.

    Within a class a hash decides, so that a longer library does not reshuffle the rest.
    """
    unknown = set(recipe.always) - {molecule.name for molecule in library}
    if unknown:
        raise InputError(f"structures.always: no molecule {', '.join(sorted(unknown))}")
    chosen = [molecule for molecule in library if molecule.name in recipe.always]
    by_kind: dict[str, list[Molecule]] = defaultdict(list)
    for molecule in sorted(set(library) - set(chosen), key=lambda one: _draw(seed, one.smiles)):
        by_kind[molecule.kind].append(molecule)
    turns = zip_longest(*(by_kind[kind] for kind in sorted(by_kind)))
    others = [molecule for turn in turns for molecule in turn if molecule]
    return (chosen + others)[: max(recipe.library, len(chosen))] if recipe.library else []


def draw_splits(
    keys: set[str], always: set[str], recipe: StructureRecipe, seed: int
) -> dict[str, str]:
    """Split of each identity: those with the lowest hashes are held out."""
    drawn = sorted(keys - always, key=lambda key: _draw(seed, key))
    test = round(recipe.held_out.test * len(keys))
    held = test + round(recipe.held_out.validation * len(keys))
    if held > len(drawn):
        raise InputError(f"structures.held_out asks for {held} of {len(drawn)} molecules")
    split_of = dict.fromkeys(keys, "train")
    split_of |= dict.fromkeys(drawn[:test], "test") | dict.fromkeys(drawn[test:held], "validation")
    return split_of


def _draw(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed} {key}".encode()).digest()


def _complexes(single: list[Source], recipe: StructureRecipe, seed: int) -> Iterator[Source]:
    """Dimers, clusters and liquids, drawn within each split in proportion to its molecules."""
    rng = np.random.default_rng([seed, 1])
    sizes = {one.name: _atom_count(one.smiles[0]) for one in single}
    for split in ("test", "validation", "train"):
        members = [one for one in single if one.split == split]
        share = len(members) / max(len(single), 1)

        def draw(count: int, members: list[Source] = members) -> tuple[str, ...] | None:
            """Molecules that fit together, half of the time copies of one."""
            for _ in range(100):
                copies = rng.random() < 0.5
                picked = rng.choice(len(members), 1 if copies else count)
                chosen = [members[k] for k in picked] * (count if copies else 1)
                if sum(sizes[one.name] for one in chosen) <= recipe.complex_largest:
                    return tuple(one.smiles[0] for one in chosen)
            return None

        for group, wanted in (
            ("dimer", recipe.dimers),
            ("cluster", recipe.clusters),
            ("liquid", recipe.liquids),
        ):
            for index in range(round(share * wanted)):
                if group == "liquid":
                    one = draw(1)
                    molecules = one and one * (recipe.complex_largest // _atom_count(one[0]))
                else:
                    molecules = draw(2 if group == "dimer" else int(rng.choice(CLUSTER_SIZES)))
                if molecules:
                    key = ".".join(sorted(identity(smiles) for smiles in molecules))
                    name = f"{group}_{split}_{index:04d}"
                    yield Source(name, key, group, group, split, molecules)


def _atom_count(smiles: str) -> int:
    from rdkit import Chem

    return Chem.AddHs(Chem.MolFromSmiles(smiles)).GetNumAtoms()


def build(source: Source, seed: int) -> list[Atoms]:
    """Starting geometries of a structure.

    Raises
    ------
    InputError : RDKit found no conformer, or no packing was found.
    """
    if source.starts:
        return list(source.starts)
    if source.group in ("molecule", "held_out"):
        return [embed(source.smiles[0], seed + k)[0] for k in range(source.conformers)]
    rng = np.random.default_rng(seed)
    molecules = [embed(smiles, seed % 2**31)[0] for smiles in source.smiles]
    if source.group == "dimer":
        return dimer_scan(*molecules, rng)
    if source.group == "cluster":
        return [cluster(molecules, rng)]
    volume = sum(molecular_volume(smiles) for smiles in source.smiles)
    return [liquid_box(molecules, volume / LIQUID_PACKING, rng)]


def dimer_scan(first: Atoms, second: Atoms, rng: np.random.Generator) -> list[Atoms]:
    """Two molecules in one random orientation, at the distances of `DIMER_CONTACTS`."""
    second = _turned(second, rng)
    direction = rng.normal(size=3)
    return [first + _touching(first, second, direction, contact) for contact in DIMER_CONTACTS]


def cluster(molecules: Sequence[Atoms], rng: np.random.Generator) -> Atoms:
    """Molecules added one by one, from random directions, until they touch."""
    whole = _turned(molecules[0], rng)
    for molecule in molecules[1:]:
        whole = whole + _touching(
            whole, _turned(molecule, rng), rng.normal(size=3), CLUSTER_CONTACT
        )
    return whole


def liquid_box(molecules: Sequence[Atoms], volume: float, rng: np.random.Generator) -> Atoms:
    """Molecules at random places and orientations in a cubic periodic box.

    Parameters
    ----------
    volume : angstrom^3; grows by 5 % whenever no place is found for a molecule.

    Raises
    ------
    InputError : none was found in a box ten times as large.
    """
    for growth in 1.05 ** np.arange(48):
        edge = (growth * volume) ** (1 / 3)
        box = Atoms(cell=[edge] * 3, pbc=True)
        for molecule in molecules:
            for _ in range(200):
                one = _turned(molecule, rng)
                one.translate(rng.uniform(0, edge, 3))
                if not len(box) or _contact(box, one, edge) > LIQUID_CONTACT:
                    box += one
                    break
            else:
                break
        else:
            box.set_cell([edge] * 3)
            return box
    raise InputError(f"no packing found for {len(molecules)} molecules in {volume:.0f} angstrom^3")


def molecular_volume(smiles: str) -> float:
    """Van der Waals volume of a molecule, angstrom^3 (RDKit's grid)."""
    from rdkit import Chem
    from rdkit.Chem import AllChem

    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(molecule, randomSeed=1)
    return AllChem.ComputeMolVolume(molecule)


def _turned(molecule: Atoms, rng: np.random.Generator) -> Atoms:
    turned = molecule.copy()
    turned.positions -= turned.positions.mean(0)
    turned.positions = turned.positions @ Rotation.random(random_state=rng).as_matrix()
    return turned


def _contact(first: Atoms, second: Atoms, edge: float = 0.0) -> float:
    """Shortest distance of two molecules over the sum of the atoms' van der Waals radii; to the
    nearest image in a cubic box where there is an edge.
    """
    radii = vdw_radii[first.numbers][:, None] + vdw_radii[second.numbers]
    if edge:
        vectors = first.positions[:, None] - second.positions
        distances = np.linalg.norm(vectors - edge * np.round(vectors / edge), axis=2)
    else:
        distances = cdist(first.positions, second.positions)
    return float((distances / radii).min())


def _touching(first: Atoms, second: Atoms, direction: np.ndarray, contact: float) -> Atoms:
    """`second` moved in from afar along a direction until its closest contact is `contact`."""
    direction = direction / np.linalg.norm(direction)
    moved = second.copy()
    near, far = 0.0, 60.0  # angstrom
    for _ in range(30):
        middle = 0.5 * (near + far)
        moved.positions = second.positions + first.positions.mean(0) + middle * direction
        near, far = (near, middle) if _contact(first, moved) > contact else (middle, far)
    return moved


def read_generated(path: Path) -> list[Source]:
    """Structures that a generator wrote: a file or a folder of files.

    SDF and MOL are read by RDKit, which also adds the hydrogens that generators leave out; all else
    by ASE, crystals with their cells.

    Raises
    ------
    InputError : no such path, nothing readable, or a structure that no student can answer for.
    """
    if not path.exists():
        raise InputError(f"no file or folder of structures {path}")
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS)
    sources = []
    for file in files:
        read: Callable[[Path], Iterator[Atoms]] = (
            _read_mol_file if file.suffix.lower() in (".sdf", ".mol") else _read_with_ase
        )
        for index, atoms in enumerate(read(file)):
            try:
                check_structure(atoms)
            except InputError as error:
                raise InputError(f"{file}, structure {index}: {error}") from error
            kind = "crystal" if atoms.pbc.any() else "file"
            name = f"{file.stem}_{index:06d}"
            sources.append(Source(name, connectivity(atoms), kind, "file", "", starts=(atoms,)))
    if not sources:
        raise InputError(f"{path} holds no structures ({', '.join(EXTENSIONS)})")
    return sources


def _read_with_ase(path: Path) -> Iterator[Atoms]:
    try:
        yield from iread(path, index=":")
    except Exception as error:  # ASE's readers raise whatever their parsers run into
        raise InputError(f"cannot read {path}: {error}") from error


def _read_mol_file(path: Path) -> Iterator[Atoms]:
    from rdkit import Chem

    for index, molecule in enumerate(Chem.SDMolSupplier(str(path), removeHs=False)):
        if molecule is None or not molecule.GetNumConformers():
            raise InputError(
                f"{path}, structure {index}: RDKit cannot read it or it has no geometry"
            )
        whole = Chem.AddHs(molecule, addCoords=True)
        symbols = [atom.GetSymbol() for atom in whole.GetAtoms()]
        yield Atoms(symbols, positions=whole.GetConformer().GetPositions())


def connectivity(atoms: Atoms) -> str:
    """Composition and a hash of the bond graph (Weisfeiler & Lehman 1968), which two conformers of
    a molecule share and two molecules almost never do.
    """
    import networkx

    graph = networkx.Graph(perceive_bonds(atoms))
    graph.add_nodes_from((k, {"symbol": symbol}) for k, symbol in enumerate(atoms.symbols))
    code = networkx.weisfeiler_lehman_graph_hash(graph, node_attr="symbol", iterations=4)
    return f"{atoms.get_chemical_formula()} {code[:16]}"
