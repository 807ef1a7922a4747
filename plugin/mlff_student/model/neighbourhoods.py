"""Count the neighbours of atoms, and compare the counts with those of the training data.

A student has not learnt anything about, for example, a carbon with five hydrogens or an atom
without neighbours. The energies that it predicts for them are arbitrary.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

RADII = (1.3, 2.0, 3.0, 4.5)  # angstrom: bonds to hydrogen, all bonds, second shell, beyond
# Width of the sigmoid by which a neighbour counts, as a fraction of the radius: counts must be
# continuous.
SOFTNESS = 0.05
REACH = 5.0  # angstrom; neighbours farther away are not counted

Limits = dict[str, dict[str, Any]]
Floats = NDArray[np.floating]
Integers = NDArray[np.int64]


def neighbour_counts(
    distances: Floats, edge_index: Integers, species: Integers, kinds: int
) -> Floats:
    """Count the neighbours of each species within each of the distances `RADII`.

    Parameters
    ----------
    distances : ndarray
        (E,), length of each edge up to `REACH`, angstrom.
    edge_index : ndarray
        (2, E) int64, [receiver, sender].
    species : ndarray
        (N,) int64, species of each atom, from 0 to kinds - 1.
    kinds : int
        Number of species.

    Returns
    -------
    ndarray
        (N, kinds, 4), number of neighbours. A neighbour near a radius counts in part.
    """
    radii = np.array(RADII)
    share = 1.0 / (1.0 + np.exp((distances[:, None] - radii) / (SOFTNESS * radii)))  # (E, 4)
    receiver, sender = edge_index
    place = receiver * kinds + species[sender]
    counts = np.zeros((len(species) * kinds, len(RADII)))
    for column, weights in zip(counts.T, share.T, strict=True):
        column += np.bincount(place, weights, len(column))
    return counts.reshape(len(species), kinds, len(RADII))


def neighbourhood_limits(counts: Iterable[tuple[Floats, Integers]], elements: list[str]) -> Limits:
    """Return the largest and smallest numbers of neighbours that the atoms of each element have.

    Parameters
    ----------
    counts : Iterable[tuple[ndarray, ndarray]]
        Pairs of `neighbour_counts` (N, kinds, 4) and species (N,), each of one or more structures.
    elements : list[str]
        Symbol of each species.

    Returns
    -------
    Limits
        {"most": {element: {element of the neighbours: 4 numbers}}, "fewest": {element: 4 numbers}}.
        "most" is the largest number of neighbours of one element, "fewest" the smallest number of
        neighbours of all elements together, within each of `RADII`. Elements without an atom are
        left out.
    """
    kinds = len(elements)
    most = np.zeros((kinds, kinds, len(RADII)))
    fewest = np.full((kinds, len(RADII)), np.inf)
    for neighbours, species in counts:
        for kind in np.unique(species):
            of_kind = neighbours[species == kind]
            most[kind] = np.maximum(most[kind], of_kind.max(0))
            fewest[kind] = np.minimum(fewest[kind], of_kind.sum(1).min(0))
    known = [kind for kind in range(kinds) if np.isfinite(fewest[kind]).all()]
    return {
        "most": {elements[a]: {elements[b]: _rounded(most[a, b]) for b in known} for a in known},
        "fewest": {elements[a]: _rounded(fewest[a]) for a in known},
    }


def neighbourhood_excess(
    counts: Floats, species: Integers, elements: list[str], limits: Limits
) -> Floats:
    """Return by how many neighbours each atom exceeds the limits.

    Parameters
    ----------
    counts : ndarray
        (N, kinds, 4), as `neighbour_counts` returns them.
    species : ndarray
        (N,) int64, species of each atom.
    elements : list[str]
        Symbol of each species.
    limits : Limits
        Limits, as `neighbourhood_limits` returns them.

    Returns
    -------
    ndarray
        (N,), number of neighbours above "most" or below "fewest", whichever is larger; 0 for an
        atom within the limits.
    """
    none = [0.0] * len(RADII)
    fewest = np.array([limits["fewest"].get(symbol, none) for symbol in elements])
    most = np.array([[limits["most"].get(a, {}).get(b, none) for b in elements] for a in elements])
    above = (counts - most[species]).max((1, 2))
    below = (fewest[species] - counts.sum(1)).max(1)
    return np.maximum(np.maximum(above, below), 0.0)


def _rounded(values: Floats) -> list[float]:
    return [round(value, 2) for value in values.tolist()]
