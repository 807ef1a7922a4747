"""Molecules as SMILES: the library, and new molecules made of its fragments."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mlff_student.core.errors import InputError
from mlff_student.model.elements import ELEMENTS
from mlff_student.structures.smiles import identity, rdkit_chem

LIBRARY = Path(__file__).with_name("molecules.smi")


class Molecule(NamedTuple):
    """A molecule of the library.

    Attributes
    ----------
    smiles : str
        SMILES string.
    name : str
        Common name.
    kind : str
        Class of the molecule, such as "solvent" or "drug".
    """

    smiles: str
    name: str
    kind: str


def read_library(path: Path = LIBRARY) -> list[Molecule]:
    """Read all molecules of a file.

    Parameters
    ----------
    path : Path
        Tab-separated file with the columns SMILES, name and class; lines that begin with # are
        comments.

    Raises
    ------
    InputError
        There is no such file, it is not text in UTF-8, or a line does not have three columns.
    """
    if not path.is_file():
        raise InputError(f"no file of molecules {path}; give a tab-separated file")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}; save it as text in UTF-8") from error
    molecules = []
    for number, line in enumerate(lines, 1):
        if line and not line.startswith("#"):
            columns = line.split("\t")
            if len(columns) != 3:
                raise InputError(
                    f"{path}, line {number}: expected SMILES, name, class with tabs between them, "
                    f"got {line!r}"
                )
            molecules.append(Molecule(*columns))
    return molecules


def recombined(
    molecules: list[Molecule], count: int, largest: int, seed: int
) -> Iterator[Molecule]:
    """Make new molecules of the fragments of others by BRICS.

    The new molecules are neutral, distinct and not among the others; they have no radicals
    and only elements that the students know. See Degen et al. 2008, doi:10.1002/cmdc.200800178.

    Parameters
    ----------
    molecules : list of Molecule
        Molecules that are cut into fragments.
    count : int
        Number of new molecules; fewer are made when the fragments are used up.
    largest : int
        Largest number of atoms of a new molecule, hydrogens included.
    seed : int
        Random seed of the draws of fragments.

    Yields
    ------
    Molecule
        A new molecule of the class "recombined".
    """
    chem = rdkit_chem()
    from rdkit.Chem import BRICS

    if count < 1:
        return
    known = {identity(molecule.smiles) for molecule in molecules}
    parsed = (chem.MolFromSmiles(molecule.smiles) for molecule in molecules)
    fragments = sorted({part for whole in parsed for part in BRICS.BRICSDecompose(whole)})
    pieces = [chem.MolFromSmiles(fragment) for fragment in fragments if "*" in fragment]
    rng = random.Random(seed)
    made, tries = 0, 0  # tries since the last new molecule
    while made < count and tries < 1000 and len(pieces) > 1:
        tries += 1
        pair = rng.sample(pieces, 2)
        for product in BRICS.BRICSBuild(pair, scrambleReagents=False, maxDepth=2):
            product.UpdatePropertyCache()
            chem.SanitizeMol(product)
            smiles = chem.MolToSmiles(product)
            whole = chem.AddHs(product)
            fits = whole.GetNumAtoms() <= largest and chem.GetFormalCharge(product) == 0
            known_atoms = all(
                atom.GetSymbol() in ELEMENTS and not atom.GetNumRadicalElectrons()
                for atom in whole.GetAtoms()
            )
            if fits and known_atoms and identity(smiles) not in known:
                known.add(identity(smiles))
                yield Molecule(smiles, f"brics_{made:05d}", "recombined")
                made, tries = made + 1, 0
                break
