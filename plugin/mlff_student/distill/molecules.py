"""Molecules as SMILES: the library, and recombination of its fragments."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mlff_student.core.errors import InputError
from mlff_student.model.elements import ELEMENTS
from mlff_student.structures.smiles import identity, rdkit_chem

LIBRARY = Path(__file__).with_name("molecules.smi")


class Molecule(NamedTuple):
    """One line of the library."""

    smiles: str
    name: str
    kind: str  # class of molecule: solvent, drug, ...


def read_library(path: Path = LIBRARY) -> list[Molecule]:
    """All molecules of a tab-separated file `SMILES name class`; lines with # are comments.

    Raises
    ------
    InputError
        No such file, or a line with another number of columns.
    """
    if not path.is_file():
        raise InputError(f"no file of molecules {path}")
    molecules = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line and not line.startswith("#"):
            columns = line.split("\t")
            if len(columns) != 3:
                raise InputError(f"{path}, line {number}: expected SMILES, name, class: {line!r}")
            molecules.append(Molecule(*columns))
    return molecules


def recombined(
    molecules: list[Molecule], count: int, largest: int, seed: int
) -> Iterator[Molecule]:
    """New molecules of the fragments of others (BRICS, Degen et al. 2008,
    doi:10.1002/cmdc.200800178): neutral, of the student's elements, distinct, none of the others.

    Parameters
    ----------
    largest : int
        Most atoms, hydrogens included.
    """
    chem = rdkit_chem()
    from rdkit.Chem import BRICS

    known = {identity(molecule.smiles) for molecule in molecules}
    parsed = (chem.MolFromSmiles(molecule.smiles) for molecule in molecules)
    fragments = sorted({part for whole in parsed for part in BRICS.BRICSDecompose(whole)})
    pieces = [chem.MolFromSmiles(fragment) for fragment in fragments if "*" in fragment]
    rng = random.Random(seed)
    made, barren = 0, 0
    while made < count and barren < 1000 and len(pieces) > 1:
        barren += 1
        pair = rng.sample(pieces, 2)
        for product in BRICS.BRICSBuild(pair, scrambleReagents=False, maxDepth=2):
            product.UpdatePropertyCache()
            chem.SanitizeMol(product)
            smiles = chem.MolToSmiles(product)
            whole = chem.AddHs(product)
            fits = whole.GetNumAtoms() <= largest and chem.GetFormalCharge(product) == 0
            usual = all(
                atom.GetSymbol() in ELEMENTS and not atom.GetNumRadicalElectrons()
                for atom in whole.GetAtoms()
            )
            if fits and usual and identity(smiles) not in known:
                known.add(identity(smiles))
                yield Molecule(smiles, f"brics_{made:05d}", "recombined")
                made, barren = made + 1, 0
                break
