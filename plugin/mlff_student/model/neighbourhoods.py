"""Count the neighbours of atoms, and compare the counts with those of the training data.

A student has not learnt anything about, for example, a carbon with five hydrogens or an atom
without neighbours. The energies that it predicts for them are arbitrary.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

RADII = (1.3, 2.0, 3.0, 4.5)  # angstrom: bonds to hydrogen, all bonds, second shell, beyond
# Width of the sigmoid by which a neighbour counts, as a fraction of the radius: counts must be
# continuous.
SOFTNESS = 0.05
REACH = 5.0  # angstrom; neighbours farther away are not counted

Limits = dict[str, dict[str, Any]]


def neighbour_counts(distances: Tensor, edge_index: Tensor, species: Tensor, kinds: int) -> Tensor:
    """Count the neighbours of each species within each of the distances `RADII`.

    Parameters
    ----------
    distances : Tensor
        (E,), length of each edge up to `REACH`, angstrom.
    edge_index : Tensor
        (2, E) int64, [receiver, sender].
    species : Tensor
        (N,) int64, species of each atom, from 0 to kinds - 1.
    kinds : int
        Number of species.

    Returns
    -------
    Tensor
        (N, kinds, 4), number of neighbours. A neighbour near a radius counts in part.
    """
    radii = torch.tensor(RADII, dtype=distances.dtype)
    share = torch.sigmoid((radii - distances[:, None]) / (SOFTNESS * radii))  # (E, 4)
    receiver, sender = edge_index
    counts = torch.zeros(len(species) * kinds, len(RADII), dtype=distances.dtype)
    counts.index_add_(0, receiver * kinds + species[sender], share)
    return counts.view(len(species), kinds, len(RADII))


def neighbourhood_limits(counts: Iterable[tuple[Tensor, Tensor]], elements: list[str]) -> Limits:
    """Return the largest and smallest numbers of neighbours that the atoms of each element have.

    Parameters
    ----------
    counts : Iterable[tuple[Tensor, Tensor]]
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
    most = torch.zeros(kinds, kinds, len(RADII))
    fewest = torch.full((kinds, len(RADII)), torch.inf)
    for neighbours, species in counts:
        for kind in species.unique().tolist():
            of_kind = neighbours[species == kind].float()
            most[kind] = torch.maximum(most[kind], of_kind.amax(0))
            fewest[kind] = torch.minimum(fewest[kind], of_kind.sum(1).amin(0))
    known = [kind for kind in range(kinds) if fewest[kind].isfinite().all()]
    return {
        "most": {elements[a]: {elements[b]: _rounded(most[a, b]) for b in known} for a in known},
        "fewest": {elements[a]: _rounded(fewest[a]) for a in known},
    }


def neighbourhood_excess(
    counts: Tensor, species: Tensor, elements: list[str], limits: Limits
) -> Tensor:
    """Return by how many neighbours each atom exceeds the limits.

    Parameters
    ----------
    counts : Tensor
        (N, kinds, 4), as `neighbour_counts` returns them.
    species : Tensor
        (N,) int64, species of each atom.
    elements : list[str]
        Symbol of each species.
    limits : Limits
        Limits, as `neighbourhood_limits` returns them.

    Returns
    -------
    Tensor
        (N,), number of neighbours above "most" or below "fewest", whichever is larger; 0 for an
        atom within the limits.
    """
    kinds = len(elements)
    most = torch.zeros(kinds, kinds, len(RADII), dtype=counts.dtype)
    fewest = torch.zeros(kinds, len(RADII), dtype=counts.dtype)
    for a, first in enumerate(elements):
        fewest[a] = torch.tensor(limits["fewest"].get(first, [0.0] * len(RADII)))
        for b, second in enumerate(elements):
            most[a, b] = torch.tensor(limits["most"].get(first, {}).get(second, [0.0] * len(RADII)))
    above = (counts - most[species]).flatten(1).amax(1)
    below = (fewest[species] - counts.sum(1)).amax(1)
    return torch.maximum(above, below).clamp(min=0.0)


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 2) for value in values.tolist()]
