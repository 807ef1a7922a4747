"""Frames as graphs with the labels that the network itself must learn, in batches.

Needs torch and numpy only: training must run where no chemistry is installed.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlff_student.core.errors import InputError
from mlff_student.distill.dataset import LabelledFrames
from mlff_student.model.neighbours import neighbour_edges
from mlff_student.model.student import (
    Student,
    edge_virials,
    forces_from_gradient,
    sum_to_atoms,
)

Network = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]  # Student.network

PAIRS_AT_ONCE = 4_000_000  # bounds the scratch memory of the neighbour search
SHORTEST_THROW = 0.25  # angstrom an atom, root mean square; thermal motion is a third of it
LONGEST_THROW = 10.0  # angstrom, norm over all atoms
VOIGT = torch.tensor([[0, 5, 4], [5, 1, 3], [4, 3, 2]])  # of xx, yy, zz, yz, xz, xy


class Graphs(NamedTuple):
    """Frames with edges and with what the network does not learn taken off the labels."""

    frames: LabelledFrames
    species: Tensor  # (A,) int64
    edge_start: Tensor  # (T + 1,) int64
    edge_index: Tensor  # (2, E) int32, [receiver, sender], atoms counted from their frame's first
    edge_vectors: Tensor  # (E, 3) float32, angstrom
    energies: Tensor  # (T,) float32, eV, without references and repulsion
    forces: Tensor  # (A, 3) float32, eV/angstrom, without repulsion
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
    virials: Tensor  # (B, 3, 3), NaN where not labelled

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


def fit_references(frames: LabelledFrames, student: Student) -> None:
    """Set the per-element reference energies: least squares of the energies over composition.

    Raises
    ------
    InputError
        Energies that are not finite.
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


def build_graphs(frames: LabelledFrames, student: Student) -> Graphs:
    """Edges of every frame, and labels with references and repulsion taken off.

    Raises
    ------
    InputError
        An element that the student does not know.
    """
    species = student.species_of[frames.atomic_numbers]
    if (species < 0).any():
        number = int(frames.atomic_numbers[species < 0][0])
        raise InputError(f"the dataset holds atomic number {number}, unknown to the student")
    no_edges = torch.zeros((2, 0), dtype=torch.int64)
    parts = [(no_edges[0], no_edges, torch.zeros(0, 3).double())]
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
    virials -= sum_to_atoms(edge_virials(gradient[near], vectors[near]), frame[near], len(energies))
    return Graphs(
        frames=frames,
        species=species,
        edge_start=torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
        edge_index=edge_index.int(),
        edge_vectors=vectors.float(),
        energies=energies.float(),
        forces=frames.forces - repulsive.float(),
        virials=virials.float(),
    )


def frame_edges(frames: LabelledFrames, cutoff: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Edges of all frames, some frames at a time: frame (E,), edge_index (2, E), vectors (E, 3),
    atoms counted from their frame's first.
    """
    yield from _open_edges(frames, cutoff)
    yield from _periodic_edges(frames, cutoff)


def _open_edges(frames: LabelledFrames, cutoff: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Frame (E,), edge_index (2, E) and vectors (E, 3) of open frames, those of a size together."""
    sizes = frames.start.diff()
    is_open = ~frames.pbc.any(1)
    for atoms in sizes[is_open].unique().tolist():
        members = ((sizes == atoms) & is_open).nonzero()[:, 0]
        for part in members.split(max(1, PAIRS_AT_ONCE // atoms**2)):
            rows = frames.start[part][:, None] + torch.arange(atoms)
            frame, edge_index, vectors = _all_edges(frames.positions[rows].double(), cutoff)
            yield part[frame], edge_index, vectors


def _all_edges(positions: Tensor, cutoff: float) -> tuple[Tensor, Tensor, Tensor]:
    """Frame (E,), edge_index (2, E) and vectors (E, 3) of open frames (T, N, 3)."""
    vectors = positions[:, None] - positions[:, :, None]  # (T, i, j, 3) = x_j - x_i
    itself = torch.eye(positions.shape[1], dtype=torch.bool)
    near = (vectors.square().sum(-1) < cutoff**2) & ~itself
    frame, i, j = near.nonzero(as_tuple=True)
    return frame, torch.stack([i, j]), vectors[near]


def _periodic_edges(
    frames: LabelledFrames, cutoff: float
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
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
    members = torch.tensor(chosen)
    start, atoms = graphs.frames.start[members], graphs.frames.start.diff()[members]
    edge_start, edges = graphs.edge_start[members], graphs.edge_start.diff()[members]
    rows, edge_rows = _ranges(start, atoms), _ranges(edge_start, edges)
    offset = torch.repeat_interleave(atoms.cumsum(0) - atoms, edges)
    return Batch(
        vectors=graphs.edge_vectors[edge_rows],
        edge_index=graphs.edge_index[:, edge_rows].long() + offset,
        species=graphs.species[rows],
        frame=torch.repeat_interleave(atoms),
        atoms=atoms,
        displaced=torch.zeros_like(atoms, dtype=torch.bool),
        energies=graphs.energies[members],
        forces=graphs.forces[rows],
        virials=graphs.virials[members],
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
    seeds : list[list[int]]
        Of the random numbers for each of the chosen frames.
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
        batches.append(
            Batch(
                vectors=vectors.float(),
                edge_index=edge_index,
                species=species,
                frame=torch.zeros(atoms, dtype=torch.int64),
                atoms=torch.tensor([atoms]),
                displaced=torch.tensor([True]),
                energies=graphs.energies[k : k + 1],
                forces=torch.full((atoms, 3), torch.nan),
                virials=torch.full((1, 3, 3), torch.nan),
            )
        )
    return batches


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
    labelled = batch.virials[:, 0, 0].isfinite()[frame]  # (E,)
    virials = edge_virials(gradient[labelled], batch.vectors[labelled])
    return Prediction(
        energies=sum_to_atoms(eps, batch.frame, frames),
        forces=forces_from_gradient(gradient, batch.edge_index, atoms),
        virials=sum_to_atoms(virials, frame[labelled], frames),
    )


def predict_frames(
    student: Student, frames: LabelledFrames, batch: int = 32
) -> tuple[Tensor, Tensor]:
    """Total energies (T,) in eV and forces (A, 3) in eV/angstrom of all frames."""
    graphs = build_graphs(frames, student)
    energies, forces = [], []
    for first in range(0, len(frames.energies), batch):
        part = make_batch(graphs, list(range(first, min(first + batch, len(frames.energies)))))
        atoms = len(part.species)
        each, gradient = student(part.vectors.double(), part.edge_index, part.species, atoms)
        energies.append(sum_to_atoms(each, part.frame, len(part.atoms)))
        forces.append(forces_from_gradient(gradient, part.edge_index, atoms))
    return torch.cat(energies), torch.cat(forces)
