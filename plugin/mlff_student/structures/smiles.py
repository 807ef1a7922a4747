"""Molecules with RDKit: canonical SMILES, and three-dimensional structures of SMILES strings."""

from typing import Any

import numpy as np
from ase import Atoms

from mlff_student.core.errors import InputError, MissingDependencyError

LARGE = 150  # atoms; embedding of a larger molecule starts from random coordinates


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


def formal_charge(smiles: str) -> int:
    """Return the sum of the formal charges of a molecule, elementary charges.

    Parameters
    ----------
    smiles : str
        SMILES string.

    Raises
    ------
    InputError
        The text is not a SMILES string.
    """
    return rdkit_chem().GetFormalCharge(_parse(smiles))


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
        ASE structure, angstrom, with the formal charges, unpaired electrons and masses of isotopes
        that the molecule has.
    bonds : list[tuple[int, int]]
        Pairs of bonded atoms.

    Raises
    ------
    InputError
        An atom is a wildcard such as `*`.
    """
    members = list(molecule.GetAtoms())
    for atom in members:
        if not atom.GetAtomicNum():
            raise InputError(
                f"atom {atom.GetIdx()} is {atom.GetSymbol()!r}, which stands for any atom; "
                "expected is an element"
            )
    atoms = Atoms(
        [atom.GetAtomicNum() for atom in members],
        positions=molecule.GetConformer().GetPositions(),
    )
    if any(charges := [atom.GetFormalCharge() for atom in members]):
        atoms.set_initial_charges(charges)
    if any(unpaired := [atom.GetNumRadicalElectrons() for atom in members]):
        atoms.set_initial_magnetic_moments(unpaired)
    if any(isotope := [atom.GetIsotope() for atom in members]):
        masses = atoms.get_masses()
        masses[np.flatnonzero(isotope)] = [a.GetMass() for a in members if a.GetIsotope()]
        atoms.set_masses(masses)
    return atoms, [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in molecule.GetBonds()]


def is_smiles(text: str) -> bool:
    """Return whether RDKit reads a text as a SMILES string.

    Parameters
    ----------
    text : str
        Any text.

    Raises
    ------
    MissingDependencyError
        RDKit is not installed.
    """
    try:
        return bool(_parse(text))
    except MissingDependencyError:
        raise
    except InputError:
        return False


def shorten(text: str) -> str:
    """Return at most 80 characters of a text, for error messages."""
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def _parse(smiles: str) -> Any:
    from rdkit import rdBase

    with rdBase.BlockLogs():
        try:
            molecule = rdkit_chem().MolFromSmiles(smiles)
        except UnicodeError:  # a path with bytes that are no characters
            molecule = None
    if molecule is None or molecule.GetNumAtoms() == 0:
        raise InputError(f"{shorten(smiles)!r} is not a SMILES string")
    return molecule


def embed(smiles: str, seed: int = 1) -> tuple[Atoms, list[tuple[int, int]]]:
    """Make a three-dimensional structure with hydrogens from a SMILES string.

    The structure is an ETKDG conformer (Riniker & Landrum 2015, doi:10.1021/acs.jcim.5b00654),
    relaxed with MMFF94 if RDKit has parameters for the molecule. Several molecules (a dot in the
    string) are placed in random orientations so that they touch.

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
    chem = rdkit_chem()
    molecule = chem.AddHs(_parse(smiles))
    fragments = chem.GetMolFrags(molecule, asMols=True)
    if len(fragments) == 1:
        return _embedded(molecule, smiles, seed)
    from mlff_student.structures.packing import cluster

    parts = [_embedded(fragment, smiles, seed) for fragment in fragments]
    # AddHs puts the hydrogens of all molecules last; here each molecule has its own.
    bonds, first = [], 0
    for atoms, pairs in parts:
        bonds += [(first + i, first + j) for i, j in pairs]
        first += len(atoms)
    return cluster([atoms for atoms, _ in parts], np.random.default_rng(seed)), bonds


def _embedded(molecule: Any, smiles: str, seed: int) -> tuple[Atoms, list[tuple[int, int]]]:
    """Return a conformer of a molecule with explicit hydrogens."""
    from rdkit import rdBase
    from rdkit.Chem import AllChem

    # From random coordinates a large molecule is found at once, and a small one in another way.
    random = (True,) if molecule.GetNumAtoms() > LARGE else (False, True)
    with rdBase.BlockLogs():
        if all(
            AllChem.EmbedMolecule(molecule, randomSeed=seed, useRandomCoords=coordinates) != 0
            for coordinates in random
        ):
            raise InputError(
                f"RDKit found no conformer for {shorten(smiles)!r}; give a file with coordinates "
                "instead"
            )
        if AllChem.MMFFHasAllMoleculeParams(molecule):
            AllChem.MMFFOptimizeMolecule(molecule, maxIters=500)
    return atoms_and_bonds(molecule)
