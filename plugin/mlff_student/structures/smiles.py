"""Molecules with RDKit: canonical SMILES, and three-dimensional structures of SMILES strings."""

from typing import Any

from ase import Atoms

from mlff_student.core.errors import InputError, MissingDependencyError


def identity(smiles: str) -> str:
    """Return the canonical SMILES without stereochemistry.

    Isomers that differ only in their stereochemistry count as one molecule when molecules are held
    out of training.

    Parameters
    ----------
    smiles : str
        SMILES string.

    Raises
    ------
    InputError
        The text is not a SMILES string.
    MissingDependencyError
        RDKit is not installed.
    """
    return rdkit_chem().MolToSmiles(_parse(smiles), isomericSmiles=False)


def rdkit_chem() -> Any:
    """Import and return the module `rdkit.Chem`.

    Raises
    ------
    MissingDependencyError
        RDKit is not installed.
    """
    try:
        from rdkit import Chem
    except ImportError as error:
        raise MissingDependencyError(
            "reading SMILES, SDF and MOL needs RDKit: pip install rdkit"
        ) from error
    return Chem


def atoms_and_bonds(molecule: Any) -> tuple[Atoms, list[tuple[int, int]]]:
    """Convert an RDKit molecule.

    Parameters
    ----------
    molecule : Any
        RDKit molecule with a conformer.

    Returns
    -------
    atoms : Atoms
        ASE structure, angstrom.
    bonds : list[tuple[int, int]]
        Pairs of bonded atoms.
    """
    symbols = [atom.GetSymbol() for atom in molecule.GetAtoms()]
    atoms = Atoms(symbols, positions=molecule.GetConformer().GetPositions())
    return atoms, [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in molecule.GetBonds()]


def _parse(smiles: str) -> Any:
    from rdkit import rdBase

    with rdBase.BlockLogs():
        molecule = rdkit_chem().MolFromSmiles(smiles)
    if molecule is None or molecule.GetNumAtoms() == 0:
        raise InputError(f"{smiles!r} is not a SMILES string")
    return molecule


def embed(smiles: str, seed: int = 1) -> tuple[Atoms, list[tuple[int, int]]]:
    """Make a three-dimensional structure with hydrogens from a SMILES string.

    The structure is an ETKDG conformer (Riniker & Landrum 2015, doi:10.1021/acs.jcim.5b00654),
    relaxed with MMFF94 if RDKit has parameters for the molecule.

    Parameters
    ----------
    smiles : str
        SMILES string.
    seed : int
        Seed of the random numbers for the embedding.

    Returns
    -------
    atoms : Atoms
        ASE structure, angstrom.
    bonds : list[tuple[int, int]]
        Pairs of bonded atoms.

    Raises
    ------
    InputError
        The text is not a SMILES string, or RDKit finds no conformer.
    MissingDependencyError
        RDKit is not installed.
    """
    molecule = rdkit_chem().AddHs(_parse(smiles))
    from rdkit import rdBase
    from rdkit.Chem import AllChem

    with rdBase.BlockLogs():
        if AllChem.EmbedMolecule(molecule, randomSeed=seed) != 0:
            raise InputError(
                f"RDKit found no conformer for {smiles!r}; give a file with coordinates instead"
            )
        if AllChem.MMFFHasAllMoleculeParams(molecule):
            AllChem.MMFFOptimizeMolecule(molecule, maxIters=500)
    return atoms_and_bonds(molecule)
