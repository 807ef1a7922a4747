"""Full neighbour list in plain torch, for use inside a TorchScript archive.

Open, partly periodic, triclinic and small cells are treated in the same way: atoms are sorted into
bins that are at least one cutoff wide where the cell allows it, and every atom looks through the
bins (and periodic images of bins) around its own.
"""

import math

import torch
from torch import Tensor


def neighbour_edges(
    positions: Tensor,
    cell: Tensor,
    pbc: Tensor,
    cutoff: float,
    candidates_at_once: int = 4_000_000,
) -> tuple[Tensor, Tensor]:
    """Find all directed edges i <- j that are shorter than the cutoff.

    Time and memory grow as O(N log N) and O(N) at constant density.

    Parameters
    ----------
    positions : Tensor
        (N, 3) float64, angstrom; wrapped into the cell or not.
    cell : Tensor
        (3, 3) float64, angstrom, lattice vectors as rows. Rows of open directions are ignored.
    pbc : Tensor
        (3,) bool, directions in which the structure is periodic.
    cutoff : float
        Cutoff, angstrom.
    candidates_at_once : int
        Number of pairs that are tested together; it limits the scratch memory (4e6: 0.3 GB).

    Returns
    -------
    edge_vectors : Tensor
        (E, 3) float64, r_ij = x_j + S.cell - x_i, angstrom.
    edge_index : Tensor
        (2, E) int64, rows [receiver i, sender j], sorted by receiver.

    Raises
    ------
    RuntimeError
        The cutoff is not a positive number; a position is NaN or infinite; the periodic cell has no
        volume, or is so thin or skewed that 10,000 images of it are within the cutoff.
    """
    if not (cutoff > 0.0 and math.isfinite(cutoff)):
        raise RuntimeError("mlff_student: the cutoff is not a positive number")
    atoms = positions.shape[0]
    device = positions.device
    if atoms == 0:
        return positions.new_zeros((0, 3)), torch.zeros((2, 0), dtype=torch.int64, device=device)

    lattice = complete_cell(cell, pbc)
    if not bool(torch.linalg.det(lattice).abs() > 1e-3):  # also if it is NaN
        raise RuntimeError("mlff_student: the periodic cell has no volume")
    reciprocal = torch.linalg.inv(lattice)  # columns
    fractional = positions @ reciprocal  # (N, 3)
    # An open direction gets bins from one end of the structure to the other.
    lowest = torch.where(pbc, torch.zeros_like(lattice[0]), fractional.amin(0))
    length = torch.where(
        pbc, torch.ones_like(lattice[0]), (fractional.amax(0) - lowest).clamp(min=1e-6) * 1.0001
    )
    wrapped = fractional - torch.where(pbc, fractional.floor(), torch.zeros_like(fractional))
    positions = wrapped @ lattice

    heights = length / torch.linalg.vector_norm(reciprocal, dim=[0])  # (3,) between opposite faces
    bins = (heights / cutoff).floor().clamp(min=1.0, max=1e6)  # (3,)
    reach = (cutoff * bins / heights).ceil()  # bins to look through each way
    if not bool(torch.isfinite(heights).all()):
        raise RuntimeError("mlff_student: a position is NaN or infinite")
    # A cubic cell of 0.5 angstrom has so many images within 5 angstrom.
    if not bool(torch.where(pbc, 2.0 * cutoff / heights + 1.0, 1.0).prod() < 1e4):
        raise RuntimeError("mlff_student: the periodic cell is too thin or skewed; reduce it")
    # No image of an open direction exists: its farthest bin is the last one.
    reach = torch.where(pbc, reach, torch.minimum(reach, bins - 1.0)).to(torch.int64)
    bins = bins.to(torch.int64)

    own_bin = ((wrapped - lowest) / length * bins).floor().to(torch.int64)  # (N, 3)
    own_bin = torch.minimum(own_bin.clamp(min=0), bins - 1)
    bin_id = (own_bin[:, 0] * bins[1] + own_bin[:, 1]) * bins[2] + own_bin[:, 2]
    sorted_id, sorted_atom = torch.sort(bin_id)

    a, b, c = int(reach[0]), int(reach[1]), int(reach[2])
    offsets = torch.cartesian_prod(
        torch.arange(-a, a + 1, device=device),
        torch.arange(-b, b + 1, device=device),
        torch.arange(-c, c + 1, device=device),
    )  # (S, 3)

    vectors: list[Tensor] = []
    indices: list[Tensor] = []
    # There are about 14 candidates per atom and bin in condensed phases.
    for block in offsets.split(max(1, candidates_at_once // (14 * atoms))):
        target = own_bin[None] + block[:, None]  # (S', N, 3)
        image = torch.div(target, bins, rounding_mode="floor")
        inside = (pbc | (image == 0)).all(-1)  # (S', N)
        target = target - image * bins
        target_id = (target[..., 0] * bins[1] + target[..., 1]) * bins[2] + target[..., 2]
        first = torch.searchsorted(sorted_id, target_id)
        last = torch.searchsorted(sorted_id, target_id, right=True)
        count = torch.where(inside, last - first, torch.zeros_like(first)).flatten()
        pair = torch.repeat_interleave(count)  # (candidates,) row of (S' * N) each belongs to
        within = torch.arange(pair.shape[0], device=device) - (count.cumsum(0) - count)[pair]
        receiver = pair % atoms
        sender = sorted_atom[first.flatten()[pair] + within]
        shift = image.flatten(0, 1)[pair].to(lattice.dtype) @ lattice
        vector = positions[sender] - positions[receiver] + shift
        squared = vector.square().sum(1)
        itself = (receiver == sender) & (image.flatten(0, 1) == 0).all(1)[pair]
        keep = torch.nonzero((squared < cutoff * cutoff) & ~itself).flatten()
        vectors.append(vector[keep])
        indices.append(torch.stack([receiver[keep], sender[keep]]))

    edge_index = torch.cat(indices, dim=1)
    order = torch.argsort(edge_index[0], stable=True)
    return torch.cat(vectors)[order], edge_index[:, order]


def complete_cell(cell: Tensor, pbc: Tensor) -> Tensor:
    """Replace the rows of open directions by unit vectors orthogonal to the periodic rows.

    Parameters
    ----------
    cell : Tensor
        (3, 3), lattice vectors as rows, angstrom. Rows of open directions may have any value.
    pbc : Tensor
        (3,) bool, directions in which the structure is periodic.

    Returns
    -------
    Tensor
        (3, 3), invertible matrix with the periodic rows unchanged, angstrom.
    """
    periodic = torch.nonzero(pbc).flatten()
    if periodic.shape[0] == 3:
        return cell
    if periodic.shape[0] == 0:
        return torch.eye(3, dtype=cell.dtype, device=cell.device)
    first = cell[periodic[0]]
    if periodic.shape[0] == 2:
        open_direction = 3 - int(periodic.sum())
        normal = torch.linalg.cross(first, cell[periodic[1]])
        completed = cell.clone()
        completed[open_direction] = normal / normal.norm()
        return completed
    axis = torch.zeros_like(first)
    axis[int(first.abs().argmin())] = 1.0  # the Cartesian axis farthest from the periodic one
    second = torch.linalg.cross(first, axis)
    third = torch.linalg.cross(first, second)
    completed = torch.stack([first, second / second.norm(), third / third.norm()])
    return completed.roll(int(periodic[0]), 0)
