"""Molecules as SMILES: the library, recombination of its fragments, and their structures."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ase import Atoms

from ..elements import ELEMENTS
from ..errors import InputError, MissingDependencyError

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
    InputError : no such file, or a line with another number of columns.
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


def identity(smiles: str) -> str:
    """Canonical SMILES without stereochemistry: isomers that differ in it alone are one molecule
    when molecules are held out.

    Raises
    ------
    InputError : not a SMILES string.
    """
    return _chem().MolToSmiles(_parse(smiles), isomericSmiles=False)


def recombined(
    molecules: list[Molecule], count: int, largest: int, seed: int
) -> Iterator[Molecule]:
    """New molecules of the given ones' fragments (BRICS, Degen et al. 2008,
    doi:10.1002/cmdc.200800178): neutral, of the student's elements, distinct, none of the given.

    Parameters
    ----------
    largest : most atoms, hydrogens included.
    """
    chem = _chem()
    from rdkit.Chem import BRICS

    known = {identity(molecule.smiles) for molecule in molecules}
    parsed = (chem.MolFromSmiles(molecule.smiles) for molecule in molecules)
    fragments = sorted({part for one in parsed for part in BRICS.BRICSDecompose(one)})
    pieces = [chem.MolFromSmiles(fragment) for fragment in fragments if "*" in fragment]
    rng = random.Random(seed)
    made, barren = 0, 0
    while made < count and barren < 1000 and len(pieces) > 1:
        barren += 1
        pair = rng.sample(pieces, 2)
        for one in BRICS.BRICSBuild(pair, scrambleReagents=False, maxDepth=2):
            one.UpdatePropertyCache()
            chem.SanitizeMol(one)
            smiles = chem.MolToSmiles(one)
            whole = chem.AddHs(one)
            fits = whole.GetNumAtoms() <= largest and chem.GetFormalCharge(one) == 0
            usual = all(
                atom.GetSymbol() in ELEMENTS and not atom.GetNumRadicalElectrons()
                for atom in whole.GetAtoms()
            )
            if fits and usual and identity(smiles) not in known:
                known.add(identity(smiles))
                yield Molecule(smiles, f"brics_{made:05d}", "recombined")
                made, barren = made + 1, 0
                break


def _chem() -> Any:
    try:
        from rdkit import Chem
    except ImportError as error:
        raise MissingDependencyError("reading SMILES needs RDKit: pip install rdkit") from error
    return Chem


def _parse(smiles: str) -> Any:
    from rdkit import rdBase

    with rdBase.BlockLogs():
        molecule = _chem().MolFromSmiles(smiles)
    if molecule is None or molecule.GetNumAtoms() == 0:
        raise InputError(f"not a SMILES string: {smiles!r}")
    return molecule


def embed(smiles: str, seed: int = 1) -> tuple[Atoms, list[tuple[int, int]]]:
    """Three-dimensional structure and bonds of a SMILES string, hydrogens added.

    ETKDG embedding (Riniker & Landrum 2015, doi:10.1021/acs.jcim.5b00654), relaxed with MMFF94
    where RDKit has parameters.

    Returns
    -------
    atoms : ASE structure, angstrom.
    bonds : pairs of atom indices.

    Raises
    ------
    InputError : not a SMILES string, or no conformer could be made.
    MissingDependencyError : RDKit is not installed.
    """
    molecule = _chem().AddHs(_parse(smiles))
    from rdkit import rdBase
    from rdkit.Chem import AllChem

    with rdBase.BlockLogs():
        if AllChem.EmbedMolecule(molecule, randomSeed=seed) != 0:
            raise InputError(f"RDKit found no conformer for {smiles!r}; give a 3-D file instead")
        if AllChem.MMFFHasAllMoleculeParams(molecule):
            AllChem.MMFFOptimizeMolecule(molecule, maxIters=500)
    atoms = Atoms(
        [atom.GetSymbol() for atom in molecule.GetAtoms()],
        positions=molecule.GetConformer().GetPositions(),
    )
    bonds = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in molecule.GetBonds()]
    return atoms, bonds
