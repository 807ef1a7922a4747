"""Numbers of neighbours, and their comparison with limits from other structures."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from mlff_student.archive.graph import edges_of
from mlff_student.model.neighbourhoods import (
    RADII,
    REACH,
    neighbour_counts,
    neighbourhood_excess,
    neighbourhood_limits,
)

ELEMENTS = ["H", "C", "O", "S"]


def counted(atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """Counts (N, 4, 4) and species (N,)."""
    edges, vectors = edges_of(atoms, REACH)
    species = np.array([ELEMENTS.index(symbol) for symbol in atoms.symbols])
    distances = np.linalg.norm(vectors, axis=1)
    return neighbour_counts(distances, edges, species, len(ELEMENTS)), species


def test_counts_are_bonds():
    """A carbon of ethanol has its hydrogens within 1.3 angstrom and all atoms within 4.5."""
    atoms = molecule("CH3CH2OH")
    counts, species = counted(atoms)
    carbons = counts[species == ELEMENTS.index("C")]
    hydrogens = carbons[:, ELEMENTS.index("H"), RADII.index(1.3)]
    # A C-H bond of 1.09 angstrom counts as 0.96 within 1.3: the edge is soft.
    assert sorted(hydrogens.tolist()) == pytest.approx([2.0, 3.0], abs=0.15)
    assert carbons.sum(1)[:, RADII.index(4.5)].tolist() == pytest.approx([8.0] * 2, abs=0.01)


def test_within_and_beyond_the_limits():
    """The structures that the limits are made from are within them; others exceed them."""
    known = [counted(molecule(name)) for name in ("CH3OH", "H2O", "CH4")]
    limits = neighbourhood_limits(known, ELEMENTS)
    assert set(limits["fewest"]) == {"H", "C", "O"}  # no structure has sulphur
    for counts, species in known:
        # Limits are rounded to hundredths.
        assert neighbourhood_excess(counts, species, ELEMENTS, limits).max() < 0.01

    def excess(atoms: Atoms) -> np.ndarray:
        return neighbourhood_excess(*counted(atoms), ELEMENTS, limits)

    crowded = molecule("CH4") + Atoms("H", positions=[[0.0, 0.0, 1.15]])
    assert excess(crowded)[0] == pytest.approx(1.0, abs=0.1)  # a fifth hydrogen on carbon
    assert excess(Atoms("H"))[0] == pytest.approx(2.0, abs=0.1)  # in water it has two neighbours
    unknown = excess(molecule("CH3SH"))
    assert unknown[list(molecule("CH3SH").symbols).index("S")] > 0.9
