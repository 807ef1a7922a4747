"""Three-dimensional structures of SMILES strings, by RDKit."""

from typing import Any

from ase import Atoms

from mlff_student.core.errors import InputError, MissingDependencyError


def identity(smiles: str) -> str:
    """Canonical SMILES without stereochemistry: isomers that differ in it alone are one molecule
    when molecules are held out.

    Raises
    ------
    InputError : not a SMILES string.
    """
    return _chem().MolToSmiles(_parse(smiles), isomericSmiles=False)


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
