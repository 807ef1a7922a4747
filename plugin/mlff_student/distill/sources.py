"""The structures of a dataset: molecules, complexes, liquids, and structures from files."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
from ase import Atoms
from ase.io import iread

from mlff_student.core.errors import InputError, check_key
from mlff_student.distill.molecules import LIBRARY, Molecule, read_library, recombined
from mlff_student.distill.recipe import Mixture, StructureRecipe
from mlff_student.structures.checks import check_structure, perceive_bonds
from mlff_student.structures.packing import (
    LIQUID_PACKING,
    cluster,
    dimer_scan,
    liquid_box,
    molecular_volume,
    scaled_box,
)
from mlff_student.structures.reading import read_molecules
from mlff_student.structures.smiles import (
    atoms_and_bonds,
    embed,
    formal_charge,
    identity,
    rdkit_chem,
)
from mlff_student.structures.text import check_counts

# Smallest and largest volume of a box over that of LIQUID_PACKING: what a barostat may try.
LIQUID_DILATION = (0.9, 1.15)
LONGEST_NAME = 96  # bytes, the width of the column in a dataset
STRETCHES = 50  # parts that files are cut into where whole molecules cannot be held out
EXTENSIONS = (".extxyz", ".xyz", ".sdf", ".mol", ".cif", ".vasp", ".poscar", ".pdb", ".traj")

BondGraph = tuple[list[str], list[tuple[int, int]]]  # symbols, and pairs of atoms


class Source(NamedTuple):
    """A structure to sample, in a form that is short enough to send to a worker.

    Attributes
    ----------
    name : str
        Name of the structure, unique in a dataset.
    identity : str
        What may be in one split only: the canonical SMILES, or a code of the bonds.
    kind : str
        Class of the molecule, or "dimer", "cluster", "liquid", "crystal" or "file".
    group : str
        Key of the recipe's sampling methods.
    split : str
        "train", "validation" or "test".
    smiles : tuple of str
        SMILES of its molecules; empty if the structure is from a file.
    conformers : int
        Number of embedded geometries.
    starts : tuple of Atoms
        Starting geometries; empty if they are made from the SMILES.
    packing : float
        Van der Waals volume of the molecules over the volume of a box.
    dilation : tuple of float
        Smallest and largest factor of the volume of a box.
    """

    name: str
    identity: str
    kind: str
    group: str
    split: str
    smiles: tuple[str, ...] = ()
    conformers: int = 1
    starts: tuple[Atoms, ...] = ()
    packing: float = LIQUID_PACKING
    dilation: tuple[float, float] = LIQUID_DILATION


def list_sources(recipe: StructureRecipe, seed: int) -> list[Source]:
    """List all structures of a recipe, held-out structures first.

    Parameters
    ----------
    recipe : StructureRecipe
        Which structures there are.
    seed : int
        Random seed of the draws.

    Raises
    ------
    InputError
        A file cannot be used, there are fewer molecules than are to be held out, or a name is
        unknown, not unique or too long.
    """
    molecules = choose_molecules(
        read_library(Path(recipe.smiles) if recipe.smiles else LIBRARY), recipe, seed
    )
    if recipe.added_smiles:
        added = read_library(_shipped(recipe.added_smiles))
        molecules += [molecule for molecule in added if _atom_count(molecule, recipe)]
    keys = {molecule: identity(molecule.smiles) for molecule in molecules}
    always = {keys[molecule] for molecule in molecules if molecule.name in recipe.always}
    unique = with_unique_bonds({key: _bond_graph(key) for key in keys.values()})
    split_of = draw_splits(set(keys.values()), always, unique, recipe, seed)
    single = [
        Source(
            name=molecule.name,
            identity=key,
            kind=molecule.kind,
            group="molecule" if split_of[key] == "train" else "held_out",
            split=split_of[key],
            smiles=(molecule.smiles,),
            conformers=recipe.conformers,
        )
        for molecule, key in keys.items()
    ]
    sources = single + list(_complexes(single, recipe, seed)) + list(_solvents(single, recipe))
    for mixture in recipe.mixtures:
        sources += _mixtures(single, mixture, recipe.always, seed)
    for molecule in recombined(molecules, recipe.brics, recipe.brics_largest, seed):
        key = identity(molecule.smiles)
        sources.append(
            Source(molecule.name, key, molecule.kind, "molecule", "train", (molecule.smiles,))
        )
    from_files = [source for path in recipe.files for source in read_generated(_shipped(path))]
    stretch = max(1, len(from_files) // STRETCHES)
    units = [
        source.identity if recipe.split_by == "molecule" else f"stretch {index // stretch}"
        for index, source in enumerate(from_files)
    ]
    split_of = draw_splits(set(units), set(), set(), recipe, seed)
    if from_files:  # a molecule of the library is in the split that it has there
        split_of |= {graph_code(*_bond_graph(source.smiles[0])): source.split for source in single}
    sources += [
        source._replace(split=split_of[unit])
        for source, unit in zip(from_files, units, strict=True)
    ]
    _check_names([source.name for source in sources])
    # In the order of a hash, so that a dataset that is half labelled has all kinds of structures.
    return sorted(sources, key=lambda source: (source.split == "train", _draw(seed, source.name)))


def _check_names(names: list[str]) -> None:
    """Refuse equal names, because a name says what is labelled already, and names that are cut."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(
            f"two structures are called {repeated[0]!r}; rename one of them or its file"
        )
    long = [name for name in names if len(name.encode()) > LONGEST_NAME]
    if long:
        raise InputError(f"a name has more than {LONGEST_NAME} bytes: {long[0]!r}; shorten it")


def choose_molecules(library: list[Molecule], recipe: StructureRecipe, seed: int) -> list[Molecule]:
    """Choose molecules: all of `recipe.always`, then one of each class in turn.

    Within a class the order is that of a hash, so that a longer library does not change the choice
    of the other molecules.

    Parameters
    ----------
    library : list of Molecule
        Molecules to choose from.
    recipe : StructureRecipe
        How many molecules of which size are wanted.
    seed : int
        Random seed of the hash.

    Raises
    ------
    InputError
        A name of `recipe.always` is not in the library, or a molecule is charged and
        `recipe.charged` is not set.
    """
    unknown = set(recipe.always) - {molecule.name for molecule in library}
    if unknown:
        raise InputError(
            f"structures.always: no molecule {', '.join(sorted(unknown))} in the library; give "
            "names of its second column"
        )
    chosen = [molecule for molecule in library if molecule.name in recipe.always]
    by_kind: dict[str, list[Molecule]] = defaultdict(list)
    small = {
        molecule
        for molecule in library
        if recipe.library and 0 < _atom_count(molecule, recipe) <= recipe.largest
    }
    for molecule in sorted(small - set(chosen), key=lambda molecule: _draw(seed, molecule.smiles)):
        by_kind[molecule.kind].append(molecule)
    turns = zip_longest(*(by_kind[kind] for kind in sorted(by_kind)))
    others = [molecule for turn in turns for molecule in turn if molecule]
    return (chosen + others)[: max(recipe.library, len(chosen))] if recipe.library else []


def with_unique_bonds(graphs: dict[str, BondGraph]) -> set[str]:
    """Return the molecules with a bond between two elements that no other molecule has (Br2, HF).

    Such a molecule should be trained on: as a test it would be outside of the student's domain.

    Parameters
    ----------
    graphs : dict[str, BondGraph]
        Symbols and bonds of each molecule, by its identity.

    Returns
    -------
    set of str
        Identities of these molecules.
    """
    owners: dict[frozenset[str], set[str]] = defaultdict(set)
    for key, (symbols, bonds) in graphs.items():
        for i, j in bonds:
            owners[frozenset((symbols[i], symbols[j]))].add(key)
    return {key for keys in owners.values() if len(keys) == 1 for key in keys}


def draw_splits(
    keys: set[str], always: set[str], last: set[str], recipe: StructureRecipe, seed: int
) -> dict[str, str]:
    """Draw the split of each identity: those with the lowest hashes are held out.

    Parameters
    ----------
    keys : set[str]
        All identities.
    always : set[str]
        Identities that are never held out.
    last : set[str]
        Identities that are held out only if there are not enough others.
    recipe : StructureRecipe
        Gives the fractions that are held out.
    seed : int
        Random seed of the hash.

    Returns
    -------
    dict of str to str
        "train", "validation" or "test" for each identity.

    Raises
    ------
    InputError
        There are fewer identities than are to be held out.
    """
    drawn = sorted(keys - always, key=lambda key: (key in last, _draw(seed, key)))
    test = round(recipe.held_out.test * len(keys))
    held = test + round(recipe.held_out.validation * len(keys))
    if held > len(drawn):
        raise InputError(
            f"structures.held_out asks for {held} of {len(drawn)} molecules that may be held out; "
            "lower its fractions, or add molecules"
        )
    split_of = dict.fromkeys(keys, "train")
    split_of |= dict.fromkeys(drawn[:test], "test") | dict.fromkeys(drawn[test:held], "validation")
    return split_of


def _draw(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed} {key}".encode()).digest()


def _complexes(single: list[Source], recipe: StructureRecipe, seed: int) -> Iterator[Source]:
    """Draw dimers, clusters and liquids in each split, in proportion to its number of molecules."""
    sizes = {source.name: len(_bond_graph(source.smiles[0])[0]) for source in single}
    groups = (
        ("dimer", recipe.dimers, 2, recipe.dimer_largest),
        ("cluster", recipe.clusters, 99, recipe.cluster_largest),
        ("liquid", recipe.liquids, 99, recipe.liquid_largest),
    )
    for split in ("test", "validation", "train"):
        members = [source for source in single if source.split == split]
        for group, wanted, molecules, largest in groups:
            for index in range(round(wanted * len(members) / max(len(single), 1))):
                name = f"{group}_{split}_{index:04d}"
                # Each has its own random numbers: more dimers do not change the clusters.
                rng = np.random.default_rng([seed, crc32(name.encode())])
                pure = group == "liquid" or rng.random() < 0.5
                room = (
                    int(rng.integers(largest // 3, largest + 1)) if group == "cluster" else largest
                )
                chosen = _fill(members, sizes, molecules, room, pure, rng)
                key = ".".join(sorted(source.identity for source in chosen))
                if len(chosen) > 1:
                    smiles = tuple(source.smiles[0] for source in chosen)
                    yield Source(name, key, group, group, split, smiles)


def _solvents(single: list[Source], recipe: StructureRecipe) -> Iterator[Source]:
    """Return the boxes of the liquids that the recipe names."""
    by_name = {source.name: source for source in single}
    check_key(recipe.solvents, by_name, "structures.solvents")
    for source in (by_name[name] for name in recipe.solvents):
        count = recipe.liquid_largest // len(_bond_graph(source.smiles[0])[0])
        if count < 2:
            raise InputError(
                f"structures.solvents: two molecules of {source.name} have more atoms than "
                f"liquid_largest, {recipe.liquid_largest}"
            )
        for index in range(recipe.solvent_boxes):
            yield source._replace(
                name=f"liquid_{source.name}_{index:04d}",
                identity=".".join([source.identity] * count),
                kind="liquid",
                group="liquid",
                smiles=source.smiles * count,
            )


def _mixtures(
    single: list[Source], mixture: Mixture, always: list[str], seed: int
) -> Iterator[Source]:
    """Draw the structures of a mixture in each split.

    A structure of a held-out split has a held-out molecule: its solute if there is one, else its
    first solvent. Its other solvents are from the same split or in `always`.
    """

    def matching(names: list[str]) -> list[Source]:
        check_key(names, known, f"mixture {mixture.name}")
        return [source for source in single if {source.name, source.kind} & set(names)]

    known = {source.name for source in single} | {source.kind for source in single}
    sizes = {source.name: len(_bond_graph(source.smiles[0])[0]) for source in single}
    solvents, solutes = matching(mixture.solvents), matching(mixture.solutes)
    leading = solutes or solvents
    for split in ("test", "validation", "train"):
        own = [source for source in leading if source.split == split]
        allowed = [s for s in solvents if s.split == split or s.name in always]
        for index in range(round(mixture.count * len(own) / len(leading))):
            name = f"{mixture.name}_{split}_{index:05d}"
            rng = np.random.default_rng([seed, crc32(name.encode())])
            first = own[rng.integers(len(own))]
            others = [allowed[k] for k in rng.permutation(len(allowed)) if allowed[k] != first]
            kinds = [*([] if solutes else [first]), *others][: mixture.kinds]
            share = rng.dirichlet(np.ones(len(kinds)))
            room = int(rng.integers(mixture.atoms[0], mixture.atoms[1] + 1)) - sizes[first.name]
            chosen = [first]
            while kinds and sizes[(new := kinds[rng.choice(len(kinds), p=share)]).name] <= room:
                chosen.append(new)
                room -= sizes[new.name]
            if len(chosen) > 1:
                yield Source(
                    name=name,
                    identity=".".join(sorted(source.identity for source in chosen)),
                    kind=mixture.name,
                    group="liquid" if mixture.periodic else "cluster",
                    split=split,
                    smiles=tuple(source.smiles[0] for source in chosen),
                    packing=mixture.packing,
                    dilation=(mixture.dilation[0], mixture.dilation[1]),
                )


def _fill(
    members: list[Source],
    sizes: dict[str, int],
    molecules: int,
    largest: int,
    pure: bool,
    rng: np.random.Generator,
) -> list[Source]:
    """Draw molecules with at most `largest` atoms together; copies of one molecule if `pure`."""
    small = [source for source in members if sizes[source.name] <= largest // 2]
    if pure and small:
        small = [small[rng.integers(len(small))]]
    chosen: list[Source] = []
    while len(chosen) < molecules and small:
        chosen.append(small[rng.integers(len(small))])
        room = largest - sum(sizes[source.name] for source in chosen)
        small = [source for source in small if sizes[source.name] <= room]
    return chosen


def _atom_count(molecule: Molecule, recipe: StructureRecipe) -> int:
    """Return the number of atoms, hydrogens included; 0 if an element is not in the recipe.

    Raises
    ------
    InputError
        The molecule is charged, and the recipe does not allow that.
    """
    from rdkit import Chem

    identity(molecule.smiles)  # raises InputError if it is no SMILES string
    parsed = Chem.MolFromSmiles(molecule.smiles)
    charge = Chem.GetFormalCharge(parsed)
    if charge and not recipe.charged:
        raise InputError(
            f"{molecule.name} ({molecule.smiles}) has the charge {charge:+d}, not 0; take it out, "
            "or set structures.charged if the teacher reads the total charge"
        )
    whole = Chem.AddHs(parsed)
    symbols = {atom.GetSymbol() for atom in whole.GetAtoms()}
    return whole.GetNumAtoms() if symbols <= set(recipe.elements or symbols) else 0


def _shipped(name: str) -> Path:
    """Return the path of a file that lies beside the library, or the path as it is."""
    shipped = LIBRARY.parent / name
    return shipped if shipped.is_file() else Path(name)


@cache
def _bond_graph(smiles: str) -> BondGraph:
    """Return symbols and bonds of a molecule, hydrogens included."""
    from rdkit import Chem

    whole = Chem.AddHs(Chem.MolFromSmiles(smiles))
    symbols = [atom.GetSymbol() for atom in whole.GetAtoms()]
    return symbols, [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in whole.GetBonds()]


def build(source: Source, seed: int) -> list[Atoms]:
    """Make the starting geometries of a structure.

    Parameters
    ----------
    source : Source
        The structure.
    seed : int
        Random seed of the embedding and packing.

    Raises
    ------
    InputError
        RDKit finds no conformer, or the molecules cannot be packed.
    """
    if source.starts:
        return list(source.starts)
    charge = sum(formal_charge(smiles) for smiles in source.smiles)
    built = _built(source, seed)
    for atoms in built:
        atoms.info.update({"charge": charge} if charge else {})
    return built


def bonds_of(source: Source, atoms: Atoms) -> list[tuple[int, int]]:
    """Return the bonds of a starting geometry.

    They are those of the SMILES, because molecules that are packed into a box may touch. Of a
    structure from a file they are perceived from its distances.

    Parameters
    ----------
    source : Source
        The structure.
    atoms : Atoms
        Geometry that `build` made of it.

    Returns
    -------
    list of tuple of int
        Pairs of bonded atoms.
    """
    if source.starts:
        return perceive_bonds(atoms)
    bonds, first = [], 0
    for symbols, own in map(_bond_graph, source.smiles):
        bonds += [(first + i, first + j) for i, j in own]
        first += len(symbols)
    return bonds


def _built(source: Source, seed: int) -> list[Atoms]:
    if source.group in ("molecule", "held_out"):
        return [embed(source.smiles[0], seed + k)[0] for k in range(source.conformers)]
    rng = np.random.default_rng(seed)
    geometry = {smiles: embed(smiles, seed % 2**31)[0] for smiles in sorted(set(source.smiles))}
    molecules = [geometry[smiles] for smiles in source.smiles]
    if source.group == "dimer":
        return dimer_scan(molecules[0], molecules[1], rng)
    if source.group == "cluster":
        return [cluster(molecules, rng)]
    volumes = {smiles: molecular_volume(smiles) for smiles in geometry}
    volume = sum(volumes[smiles] for smiles in source.smiles) / source.packing
    volume *= rng.uniform(*source.dilation)
    sizes = [len(molecule) for molecule in molecules]
    return [scaled_box(liquid_box(molecules, volume, rng), sizes, volume)]


def read_generated(path: Path) -> list[Source]:
    """Read structures from a file, or from all files in a folder and the folders in it.

    SDF and MOL files are read by RDKit, which adds missing hydrogens; all other files by ASE,
    crystals with their cells.

    Parameters
    ----------
    path : Path
        File or folder.

    Returns
    -------
    list of Source
        The structures, without a split.

    Raises
    ------
    InputError
        There is no such path, a file cannot be read, there is no structure, or a structure has
        elements or distances that no student can be used for.
    """
    if not path.exists():
        raise InputError(
            f"no file or folder of structures {path}; see structures.files of the recipe"
        )
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
            name = f"{_stem(file, path)}_{index:06d}"
            sources.append(Source(name, connectivity(atoms), kind, "file", "", starts=(atoms,)))
    if not sources:
        raise InputError(f"{path} holds no structures; it needs files {', '.join(EXTENSIONS)}")
    return sources


def _stem(file: Path, folder: Path) -> str:
    """Return a name of a file that is unique among the files in its folder and below."""
    whole = str(file.relative_to(folder)) if file != folder else file.name
    code = hashlib.sha256(whole.encode()).hexdigest()[:8]
    return f"{file.stem.encode()[:64].decode(errors='ignore')}_{code}"


def _read_with_ase(path: Path) -> Iterator[Atoms]:
    index = 0
    check_counts(path)
    try:
        for atoms in iread(path, index=":"):
            yield atoms
            index += 1
    except Exception as error:  # ASE's readers raise errors of any type
        detail = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}, structure {index}: ASE cannot read it: {detail}") from error


def _read_mol_file(path: Path) -> Iterator[Atoms]:
    """Return the molecules of an SDF or MOL file, with missing hydrogens added."""
    chem = rdkit_chem()
    for index, molecule in enumerate(read_molecules(path)):
        if not molecule.GetConformer().Is3D():
            raise InputError(
                f"{path}, structure {index}: a flat drawing by its header (2D); give a 3-D file"
            )
        if charge := chem.GetFormalCharge(molecule):
            raise InputError(
                f"{path}, structure {index}: has the charge {charge:+d}, not 0; take it out"
            )
        yield atoms_and_bonds(chem.AddHs(molecule, addCoords=True))[0]


def connectivity(atoms: Atoms) -> str:
    """Return the composition and a hash of the bond graph (Weisfeiler & Lehman 1968).

    Conformers of a molecule have the same code; two molecules almost never have.

    Parameters
    ----------
    atoms : Atoms
        Structure whose bonds are perceived from its distances.
    """
    return graph_code(list(atoms.symbols), perceive_bonds(atoms))


def graph_code(symbols: list[str], bonds: list[tuple[int, int]]) -> str:
    """Return the code of `connectivity` for atoms with known bonds.

    Parameters
    ----------
    symbols : list of str
        (N,) chemical symbols.
    bonds : list of tuple of int
        Pairs of bonded atoms.
    """
    import networkx

    graph = networkx.Graph(bonds)
    graph.add_nodes_from((k, {"symbol": symbol}) for k, symbol in enumerate(symbols))
    code = networkx.weisfeiler_lehman_graph_hash(graph, node_attr="symbol", iterations=4)
    return f"{Atoms(symbols).get_chemical_formula()} {code[:16]}"
