"""Pack molecules into dimers, clusters and periodic boxes of a liquid."""

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.data import vdw_radii
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from mlff_student.core.errors import InputError

# Shortest contacts of two molecules, as fractions of the sum of van der Waals radii: a hydrogen
# bond is at 0.7, the first shell of a liquid at about 1.
DIMER_CONTACTS = (0.68, 0.8, 0.95, 1.15, 1.5)
CLUSTER_CONTACT = 0.9
LIQUID_CONTACT = 0.72
LIQUID_PACKING = 0.58  # van der Waals volume of the molecules / volume, of organic liquids


def dimer_scan(first: Atoms, second: Atoms, rng: np.random.Generator) -> list[Atoms]:
    """Place two molecules in one random orientation at the distances of `DIMER_CONTACTS`.

    Parameters
    ----------
    first, second : Atoms
        Molecules.
    rng : np.random.Generator
        Random numbers for the orientation.

    Returns
    -------
    list[Atoms]
        One dimer for each contact, the atoms of `first` before those of `second`.
    """
    second = _turned(second, rng)
    direction = rng.normal(size=3)
    return [first + _touching(first, second, direction, contact) for contact in DIMER_CONTACTS]


def cluster(molecules: Sequence[Atoms], rng: np.random.Generator) -> Atoms:
    """Build a cluster by moving molecules in from random directions until they touch.

    Parameters
    ----------
    molecules : Sequence[Atoms]
        Molecules, in the order in which they are added.
    rng : np.random.Generator
        Random numbers for directions and orientations.
    """
    whole = _turned(molecules[0], rng)
    for molecule in molecules[1:]:
        whole = whole + _touching(
            whole, _turned(molecule, rng), rng.normal(size=3), CLUSTER_CONTACT
        )
    return whole


def liquid_box(molecules: Sequence[Atoms], volume: float, rng: np.random.Generator) -> Atoms:
    """Place molecules at random positions and in random orientations in a cubic periodic box.

    Parameters
    ----------
    molecules : Sequence[Atoms]
        Molecules, in the order in which they are placed.
    volume : float
        Volume of the box, angstrom^3. Whenever there is no place for a molecule, it is increased by
        5 % and the packing starts again.
    rng : np.random.Generator
        Random numbers for positions and orientations.

    Raises
    ------
    InputError
        No packing was found even in a box of ten times the volume.
    """
    for growth in 1.05 ** np.arange(48):
        edge = (growth * volume) ** (1 / 3)
        box = Atoms(cell=[edge] * 3, pbc=True)
        for molecule in molecules:
            for _ in range(200):
                placed = _turned(molecule, rng)
                placed.translate(rng.uniform(0, edge, 3))
                apart = not len(box) or _contact(box, placed, edge) > LIQUID_CONTACT
                if apart and _image_contact(placed, edge) > LIQUID_CONTACT:
                    box += placed
                    break
            else:
                break
        else:
            box.set_cell([edge] * 3)
            return box
    raise InputError(
        f"no packing found for {len(molecules)} molecules in {volume:.0f} angstrom^3, nor in ten "
        "times as much"
    )


def scaled_box(box: Atoms, sizes: Sequence[int], volume: float) -> Atoms:
    """Bring a periodic box to a volume by moving its molecules together or apart as rigid bodies.

    Parameters
    ----------
    box : Atoms
        Periodic structure whose molecules lie one after another and are whole.
    sizes : Sequence[int]
        Number of atoms of each molecule, in their order.
    volume : float
        Volume of the returned box, angstrom^3.
    """
    scaled = box.copy()
    factor = (volume / box.get_volume()) ** (1.0 / 3.0)
    for rows in np.split(np.arange(len(box)), np.cumsum(sizes)[:-1]):
        scaled.positions[rows] += (factor - 1.0) * box.positions[rows].mean(0)
    scaled.cell[:] = factor * box.cell.array
    return scaled


def molecular_volume(smiles: str) -> float:
    """Return the van der Waals volume of a molecule, computed by RDKit on a grid.

    Parameters
    ----------
    smiles : str
        SMILES string of the molecule.

    Returns
    -------
    float
        Volume, angstrom^3.
    """
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
    """Return the shortest distance of two molecules, in sums of the atoms' van der Waals radii.

    If the edge of a cubic box is not 0, distances are those to the nearest images.
    """
    radii = vdw_radii[first.numbers][:, None] + vdw_radii[second.numbers]
    if edge:
        vectors = first.positions[:, None] - second.positions
        distances = np.linalg.norm(vectors - edge * np.round(vectors / edge), axis=2)
    else:
        distances = cdist(first.positions, second.positions)
    return float((distances / radii).min())


def _image_contact(molecule: Atoms, edge: float) -> float:
    """Return the `_contact` of a molecule with its own nearest images in a cubic box."""
    shifts = np.array([shift for shift in np.ndindex(3, 3, 3) if shift != (1, 1, 1)]) - 1
    images = Atoms(np.tile(molecule.numbers, len(shifts)))
    images.positions = (molecule.positions + edge * shifts[:, None]).reshape(-1, 3)
    return _contact(molecule, images)


def _touching(first: Atoms, second: Atoms, direction: np.ndarray, contact: float) -> Atoms:
    """Return `second`, moved in from a distance along a direction to the contact `contact`."""
    direction = direction / np.linalg.norm(direction)
    moved = second.copy()
    near, far = 0.0, 60.0  # angstrom
    for _ in range(30):
        middle = 0.5 * (near + far)
        moved.positions = second.positions + first.positions.mean(0) + middle * direction
        near, far = (near, middle) if _contact(first, moved) > contact else (middle, far)
    return moved
