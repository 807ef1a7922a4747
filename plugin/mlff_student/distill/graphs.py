"""Frames as graphs with the labels that the network itself must learn, in batches.

Needs torch and numpy only: training must run where no chemistry is installed.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlff_student.core.errors import InputError
from mlff_student.distill.dataset import Frames
from mlff_student.model.neighbours import neighbour_edges
from mlff_student.model.student import Student, sum_to_atoms

Network = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]  # Student.network

PAIRS_AT_ONCE = 4_000_000  # bounds the scratch memory of the neighbour search
SHORTEST_THROW = 0.25  # angstrom an atom, root mean square; thermal motion is a third of it
LONGEST_THROW = 10.0  # angstrom, norm over all atoms
VOIGT = torch.tensor([[0, 5, 4], [5, 1, 3], [4, 3, 2]])  # of xx, yy, zz, yz, xz, xy
PROBE_STEP = 0.005  # angstrom a unit of the probe, for the central difference of H v


class Graphs(NamedTuple):
    """Frames with edges and with what the network does not learn taken off the labels."""

    frames: Frames
    species: Tensor  # (A,) int64
    edge_start: Tensor  # (T + 1,) int64
    edge_index: Tensor  # (2, E) int32, [receiver, sender], atoms counted from their frame's first
    edge_vectors: Tensor  # (E, 3) float32, angstrom
    energies: Tensor  # (T,) float32, eV, without references and repulsion
    forces: Tensor  # (A, 3) float32, eV/angstrom, without repulsion
    products: Tensor  # (A, 3) float32, eV/angstrom^2, without repulsion; NaN where there is none
    virials: Tensor  # (T, 3, 3) float32, eV, -dE/dstrain without repulsion; NaN where not labelled


class Batch(NamedTuple):
    """Some frames as one graph."""

    vectors: Tensor  # (E, 3)
    edge_index: Tensor  # (2, E)
    species: Tensor  # (N,)
    frame: Tensor  # (N,) frame of each atom
    atoms: Tensor  # (B,) atoms in each frame
    displaced: Tensor  # (B,) bool: thrown about, its energy a lower bound, its forces unknown
    energies: Tensor  # (B,)
    forces: Tensor  # (N, 3)
    probes: Tensor  # (N, 3), NaN where there is no product
    products: Tensor  # (N, 3)
    virials: Tensor  # (B, 3, 3), NaN where not labelled

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return Batch(*(one.to(device, non_blocking=True) for one in self))


def forces_from_gradient(gradient: Tensor, edge_index: Tensor, atoms: int) -> Tensor:
    """Forces (atoms, 3) from dE/d edge_vectors (E, 3): r_ij = x_j - x_i pulls on both ends."""
    return sum_to_atoms(gradient, edge_index[0], atoms) - sum_to_atoms(
        gradient, edge_index[1], atoms
    )


def virials_from_gradient(gradient: Tensor, vectors: Tensor, frame: Tensor, frames: int) -> Tensor:
    """-dE/dstrain (frames, 3, 3) from dE/d edge_vectors (E, 3), which belong to `frame` (E,)."""
    return -sum_to_atoms((gradient[:, :, None] * vectors[:, None]).flatten(1), frame, frames).view(
        frames, 3, 3
    )


def fit_references(frames: Frames, student: Student) -> None:
    """Set the per-element reference energies: least squares of the energies over composition.

    Raises
    ------
    InputError : energies that are not finite.
    """
    if not frames.energies.isfinite().all():
        raise InputError(
            "the dataset holds energies that are no numbers; see `mlff-student distill check`"
        )
    species = student.species_of.cpu()[frames.atomic_numbers]
    kinds = student.references.shape[0]
    composition = torch.zeros(len(frames.energies), kinds, dtype=torch.float64)
    frame = torch.repeat_interleave(frames.start.diff())
    composition.index_put_((frame, species), torch.ones(len(species)).double(), accumulate=True)
    solution = torch.linalg.lstsq(composition, frames.energies[:, None], driver="gelsd").solution
    student.references.copy_(solution[:, 0])


def build_graphs(frames: Frames, student: Student) -> Graphs:
    """Edges of every frame, and labels with references and repulsion taken off.

    Raises
    ------
    InputError : an element that the student does not know.
    """
    species = student.species_of[frames.atomic_numbers]
    if (species < 0).any():
        number = int(frames.atomic_numbers[species < 0][0])
        raise InputError(f"the dataset holds atomic number {number}, unknown to the student")
    none = torch.zeros((2, 0), dtype=torch.int64)
    parts = [(none[0], none, torch.zeros(0, 3).double())]
    parts += frame_edges(frames, student.cutoff)
    frame = torch.cat([part[0] for part in parts])
    order = torch.argsort(frame, stable=True)
    frame = frame[order]
    edge_index = torch.cat([part[1] for part in parts], 1)[:, order]  # within a frame
    vectors = torch.cat([part[2] for part in parts])[order]  # float64
    counts = torch.bincount(frame, minlength=len(frames.energies))

    atoms = edge_index + frames.start[frame]  # (2, E) rows of all atoms
    distances = vectors.norm(dim=1)
    pair, slope = student.repulsion(distances, species[atoms[0]], species[atoms[1]])
    owner = torch.repeat_interleave(frames.start.diff())
    references = student.references[species]
    energies = frames.energies.clone()
    energies.index_add_(0, owner, -references).index_add_(0, frame, -0.5 * pair)
    near = pair != 0.0
    gradient = (0.5 * slope / distances)[:, None] * vectors
    repulsive = forces_from_gradient(gradient[near], atoms[:, near], len(species))
    virials = -frames.stresses.double()[:, VOIGT] * frames.cells.double().det().abs()[:, None, None]
    virials -= virials_from_gradient(gradient[near], vectors[near], frame[near], len(energies))
    curved = _repulsive_product(frames, student, atoms[:, near], vectors[near], species)
    return Graphs(
        frames=frames,
        species=species,
        edge_start=torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
        edge_index=edge_index.int(),
        edge_vectors=vectors.float(),
        energies=energies.float(),
        forces=frames.forces - repulsive.float(),
        products=frames.products - curved.float(),
        virials=virials.float(),
    )


def _repulsive_product(
    frames: Frames, student: Student, atoms: Tensor, vectors: Tensor, species: Tensor
) -> Tensor:
    """H v of the repulsion alone, by the central difference that the labels were made with."""
    probes = frames.probes.double().nan_to_num()
    moved = PROBE_STEP * (probes[atoms[1]] - probes[atoms[0]])
    sides = []
    for sign in (1.0, -1.0):
        shifted = vectors + sign * moved
        distances = shifted.norm(dim=1)
        slope = student.repulsion(distances, species[atoms[0]], species[atoms[1]])[1]
        gradient = (0.5 * slope / distances)[:, None] * shifted
        sides.append(forces_from_gradient(gradient, atoms, len(species)))
    return (sides[1] - sides[0]) / (2.0 * PROBE_STEP)


def frame_edges(frames: Frames, cutoff: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Edges of all frames, some frames at a time: frame (E,), edge_index (2, E), vectors (E, 3),
    atoms counted from their frame's first.
    """
    yield from _open_edges(frames, cutoff)
    yield from _periodic_edges(frames, cutoff)


def _open_edges(frames: Frames, cutoff: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Frame (E,), edge_index (2, E) and vectors (E, 3) of open frames, those of a size together."""
    sizes = frames.start.diff()
    is_open = ~frames.pbc.any(1)
    for atoms in sizes[is_open].unique().tolist():
        members = ((sizes == atoms) & is_open).nonzero()[:, 0]
        for some in members.split(max(1, PAIRS_AT_ONCE // atoms**2)):
            rows = frames.start[some][:, None] + torch.arange(atoms)
            frame, edge_index, vectors = _all_edges(frames.positions[rows].double(), cutoff)
            yield some[frame], edge_index, vectors


def _all_edges(positions: Tensor, cutoff: float) -> tuple[Tensor, Tensor, Tensor]:
    """Frame (E,), edge_index (2, E) and vectors (E, 3) of open frames (T, N, 3)."""
    vectors = positions[:, None] - positions[:, :, None]  # (T, i, j, 3) = x_j - x_i
    itself = torch.eye(positions.shape[1], dtype=torch.bool)
    near = (vectors.square().sum(-1) < cutoff**2) & ~itself
    frame, i, j = near.nonzero(as_tuple=True)
    return frame, torch.stack([i, j]), vectors[near]


def _periodic_edges(frames: Frames, cutoff: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """As `_open_edges`, for frames with a cell."""
    for k in frames.pbc.any(1).nonzero()[:, 0].tolist():
        vectors, edge_index = neighbour_edges(
            frames.positions[frames.start[k] : frames.start[k + 1]].double(),
            frames.cells[k].double(),
            frames.pbc[k],
            cutoff,
        )
        yield torch.full((len(vectors),), k), edge_index, vectors


def make_batch(graphs: Graphs, chosen: list[int]) -> Batch:
    """The chosen frames as one graph."""
    some = torch.tensor(chosen)
    start, atoms = graphs.frames.start[some], graphs.frames.start.diff()[some]
    edge_start, edges = graphs.edge_start[some], graphs.edge_start.diff()[some]
    rows, edge_rows = _ranges(start, atoms), _ranges(edge_start, edges)
    offset = torch.repeat_interleave(atoms.cumsum(0) - atoms, edges)
    return Batch(
        vectors=graphs.edge_vectors[edge_rows],
        edge_index=graphs.edge_index[:, edge_rows].long() + offset,
        species=graphs.species[rows],
        frame=torch.repeat_interleave(atoms),
        atoms=atoms,
        displaced=torch.zeros_like(atoms, dtype=torch.bool),
        energies=graphs.energies[some],
        forces=graphs.forces[rows],
        probes=graphs.frames.probes[rows],
        products=graphs.products[rows],
        virials=graphs.virials[some],
    )


def join_batches(batches: list[Batch]) -> Batch:
    """Several batches as one graph."""
    if len(batches) == 1:
        return batches[0]
    first, *others = batches
    for other in others:
        moved = other._replace(
            edge_index=other.edge_index + len(first.species), frame=other.frame + len(first.atoms)
        )
        joined = {
            name: torch.cat([mine, theirs], -1 if name == "edge_index" else 0)
            for (name, mine), theirs in zip(first._asdict().items(), moved, strict=True)
        }
        first = Batch(**joined)
    return first


def displaced_batch(
    graphs: Graphs, chosen: list[int], seeds: list[list[int]], cutoff: float
) -> list[Batch]:
    """The open ones of the chosen frames with their atoms thrown about, a batch each.

    All atoms together move by up to 10 angstrom, as in a minimiser's first trial step, each by
    0.25 or more (root mean square), half of the frames at random and half along the forces. Nobody
    asks the teacher for their energies, but they are above the frame's own.

    Parameters
    ----------
    seeds : of the random numbers for each of the chosen frames.
    """
    batches = []
    for k, seed in zip(chosen, seeds, strict=True):
        if graphs.frames.pbc[k].any():
            continue
        rows = slice(int(graphs.frames.start[k]), int(graphs.frames.start[k + 1]))
        species, forces = graphs.species[rows], graphs.forces[rows].double()
        rng, atoms = np.random.default_rng(seed), len(species)
        downhill = rng.random() < 0.5 and bool(forces.any())
        direction = forces if downhill else torch.from_numpy(rng.standard_normal((atoms, 3)))
        least = SHORTEST_THROW * atoms**0.5
        length = rng.uniform(least, max(LONGEST_THROW, 2.0 * least))
        positions = graphs.frames.positions[rows] + length * direction / direction.norm()
        _, edge_index, vectors = _all_edges(positions[None], cutoff)
        unknown = torch.full((atoms, 3), torch.nan)
        batches.append(
            Batch(
                vectors=vectors.float(),
                edge_index=edge_index,
                species=species,
                frame=torch.zeros(atoms, dtype=torch.int64),
                atoms=torch.tensor([atoms]),
                displaced=torch.tensor([True]),
                energies=graphs.energies[k : k + 1],
                forces=unknown,
                probes=unknown,
                products=unknown,
                virials=torch.full((1, 3, 3), torch.nan),
            )
        )
    return batches


def with_products(batch: Batch) -> Batch:
    """The frames of a batch that have a Hessian-vector product: few, and each costs three times."""
    frames = torch.zeros_like(batch.atoms, dtype=torch.bool)  # (B,)
    frames[batch.frame[batch.products[:, 0].isfinite()]] = True
    rows = frames[batch.frame]  # (N,)
    edges = rows[batch.edge_index[0]]  # (E,)
    return Batch(
        vectors=batch.vectors[edges],
        edge_index=(rows.cumsum(0) - 1)[batch.edge_index[:, edges]],
        species=batch.species[rows],
        frame=(frames.cumsum(0) - 1)[batch.frame[rows]],
        atoms=batch.atoms[frames],
        displaced=batch.displaced[frames],
        energies=batch.energies[frames],
        forces=batch.forces[rows],
        probes=batch.probes[rows],
        products=batch.products[rows],
        virials=batch.virials[frames],
    )


def _ranges(start: Tensor, count: Tensor) -> Tensor:
    """start[0], start[0] + 1, ... (count[0] of them), start[1], ..."""
    first = torch.repeat_interleave(start - (count.cumsum(0) - count), count)
    return first + torch.arange(int(count.sum()))


class Prediction(NamedTuple):
    """What the network says of a batch, without references and repulsion."""

    energies: Tensor  # (B,)
    forces: Tensor  # (N, 3)
    virials: Tensor  # (B, 3, 3), of the frames that have a label; zeros of the others


def predict(network: Network, batch: Batch) -> Prediction:
    """Energies, forces and virials by the network."""
    atoms, frames = len(batch.species), len(batch.atoms)
    eps, gradient = network(batch.vectors, batch.edge_index, batch.species, atoms)
    frame = batch.frame[batch.edge_index[0]]
    some = batch.virials[:, 0, 0].isfinite()[frame]  # (E,)
    return Prediction(
        energies=sum_to_atoms(eps, batch.frame, frames),
        forces=forces_from_gradient(gradient, batch.edge_index, atoms),
        virials=virials_from_gradient(gradient[some], batch.vectors[some], frame[some], frames),
    )


def predict_products(network: Network, batch: Batch) -> Tensor:
    """H v (N, 3) of the network, by the central difference that the labels were made with."""
    moved = PROBE_STEP * (batch.probes[batch.edge_index[1]] - batch.probes[batch.edge_index[0]])
    forces = [
        predict(network, batch._replace(vectors=batch.vectors + sign * moved)).forces
        for sign in (1.0, -1.0)
    ]
    return (forces[1] - forces[0]) / (2.0 * PROBE_STEP)
