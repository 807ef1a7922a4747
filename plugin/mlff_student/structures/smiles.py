"""Molecules by RDKit: their identity, and structures of SMILES strings."""

from typing import Any

from ase import Atoms

from mlff_student.core.errors import InputError, MissingDependencyError


def identity(smiles: str) -> str:
    """Canonical SMILES without stereochemistry: isomers that differ in it alone are one molecule
    when molecules are held out.

    Raises
    ------
    InputError
        Not a SMILES string.
    """
    return rdkit_chem().MolToSmiles(_parse(smiles), isomericSmiles=False)


def rdkit_chem() -> Any:
    """The module `rdkit.Chem`.

    Raises
    ------
    MissingDependencyError
        If RDKit is not installed.
    """
    try:
        from rdkit import Chem
    except ImportError as error:
        raise MissingDependencyError(
            "reading SMILES, SDF and MOL needs RDKit: pip install rdkit"
        ) from error
    return Chem


def atoms_and_bonds(molecule: Any) -> tuple[Atoms, list[tuple[int, int]]]:
    """ASE structure (angstrom) and pairs of bonded atoms of an RDKit molecule with a conformer."""
    symbols = [atom.GetSymbol() for atom in molecule.GetAtoms()]
    atoms = Atoms(symbols, positions=molecule.GetConformer().GetPositions())
    return atoms, [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in molecule.GetBonds()]


def _parse(smiles: str) -> Any:
    from rdkit import rdBase

    with rdBase.BlockLogs():
        molecule = rdkit_chem().MolFromSmiles(smiles)
    if molecule is None or molecule.GetNumAtoms() == 0:
        raise InputError(f"not a SMILES string: {smiles!r}")
    return molecule


def embed(smiles: str, seed: int = 1) -> tuple[Atoms, list[tuple[int, int]]]:
    """Three-dimensional structure and bonds of a SMILES string, hydrogens added.

    ETKDG embedding (Riniker & Landrum 2015, doi:10.1021/acs.jcim.5b00654), relaxed with MMFF94
    where RDKit has parameters.

    Returns
    -------
    atoms : Atoms
        ASE structure, angstrom.
    bonds : list[tuple[int, int]]
        Pairs of atom indices.

    Raises
    ------
    InputError
        Not a SMILES string, or no conformer could be made.
    MissingDependencyError
        RDKit is not installed.
    """
    molecule = rdkit_chem().AddHs(_parse(smiles))
    from rdkit import rdBase
    from rdkit.Chem import AllChem

    with rdBase.BlockLogs():
        if AllChem.EmbedMolecule(molecule, randomSeed=seed) != 0:
            raise InputError(f"RDKit found no conformer for {smiles!r}; give a 3-D file instead")
        if AllChem.MMFFHasAllMoleculeParams(molecule):
            AllChem.MMFFOptimizeMolecule(molecule, maxIters=500)
    return atoms_and_bonds(molecule)
