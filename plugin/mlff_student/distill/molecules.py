"""The molecule library: SMILES with name and class, and their three-dimensional structures."""

from pathlib import Path
from typing import NamedTuple

from ase import Atoms

from ..errors import InputError, MissingDependencyError

LIBRARY = Path(__file__).with_name("molecules.smi")


class Molecule(NamedTuple):
    """One line of the library."""

    smiles: str
    name: str
    kind: str  # class of molecule: solvent, drug, ...


def read_library(path: Path = LIBRARY) -> list[Molecule]:
    """All molecules of a tab-separated file `SMILES name class`; lines with # are comments."""
    lines = path.read_text().splitlines()
    return [Molecule(*line.split("\t")) for line in lines if line and not line.startswith("#")]


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
    try:
        from rdkit import Chem, rdBase
        from rdkit.Chem import AllChem
    except ImportError as error:
        raise MissingDependencyError("reading SMILES needs RDKit: pip install rdkit") from error
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
        if molecule is None or molecule.GetNumAtoms() == 0:
            raise InputError(f"not a SMILES string: {smiles!r}")
        molecule = Chem.AddHs(molecule)
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
