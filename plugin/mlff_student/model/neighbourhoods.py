"""How many neighbours atoms have, and whether any atom of the training data had as many or as few.

A student has learnt nothing of an atom with five hydrogens, or of one alone: its energy there is
whatever the network happens to give.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

RADII = (1.3, 2.0, 3.0, 4.5)  # angstrom: bonds to hydrogen, all bonds, second shell, beyond
SOFTNESS = 0.05  # of a radius: within it a neighbour counts in part, so that counts are continuous
REACH = 5.0  # angstrom, beyond which no neighbour counts

Limits = dict[str, dict[str, Any]]


def neighbour_counts(distances: Tensor, edge_index: Tensor, species: Tensor, kinds: int) -> Tensor:
    """Neighbours of each kind within each of `RADII`, (N, kinds, 4).

    Parameters
    ----------
    distances : Tensor
        (E,), angstrom, up to `REACH`.
    edge_index : Tensor
        (2, E), [receiver, sender].
    species : Tensor
        (N,), from 0 to kinds - 1.
    """
    radii = torch.tensor(RADII, dtype=distances.dtype)
    share = torch.sigmoid((radii - distances[:, None]) / (SOFTNESS * radii))  # (E, 4)
    receiver, sender = edge_index
    counts = torch.zeros(len(species) * kinds, len(RADII), dtype=distances.dtype)
    counts.index_add_(0, receiver * kinds + species[sender], share)
    return counts.view(len(species), kinds, len(RADII))


def neighbourhood_limits(counts: Iterable[tuple[Tensor, Tensor]], elements: list[str]) -> Limits:
    """The most neighbours of each element, and the fewest of all, that atoms of each element have.

    Parameters
    ----------
    counts : Iterable[tuple[Tensor, Tensor]]
        Of some structures each: `neighbour_counts` (N, kinds, 4) and species (N,).
    elements : list[str]
        Symbols of the species.

    Returns
    -------
    Limits
        {"most": {element: {neighbour: 4 numbers}}, "fewest": {element: 4 numbers}}, of the elements
        that there are.
    """
    kinds = len(elements)
    most = torch.zeros(kinds, kinds, len(RADII))
    fewest = torch.full((kinds, len(RADII)), torch.inf)
    for neighbours, species in counts:
        for kind in species.unique().tolist():
            here = neighbours[species == kind].float()
            most[kind] = torch.maximum(most[kind], here.amax(0))
            fewest[kind] = torch.minimum(fewest[kind], here.sum(1).amin(0))
    known = [kind for kind in range(kinds) if fewest[kind].isfinite().all()]
    return {
        "most": {elements[a]: {elements[b]: _rounded(most[a, b]) for b in known} for a in known},
        "fewest": {elements[a]: _rounded(fewest[a]) for a in known},
    }


def neighbourhood_excess(
    counts: Tensor, species: Tensor, elements: list[str], limits: Limits
) -> Tensor:
    """By how many neighbours each atom is beyond the limits, (N,); 0 where it is within."""
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
