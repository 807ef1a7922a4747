"""Frames as graphs in batches, with the labels that the network learns.

This module needs torch and numpy only, because training must run where no chemistry is installed.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

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

ATOMS_AT_ONCE = 200_000  # bounds the memory in which edges are sorted
PAIRS_AT_ONCE = 4_000_000  # bounds the scratch memory of the neighbour search
# Shortest displacement of a displaced frame, root mean square over its atoms, angstrom; thermal
# motion is a third of it.
SHORTEST_DISPLACEMENT = 0.25
LONGEST_DISPLACEMENT = 10.0  # angstrom, norm over all atoms
LARGEST_DISPLACED = 40  # atoms; larger frames are not displaced
PADDING_LENGTH = 100.0  # angstrom, of each component of a padding edge; beyond any cutoff
VOIGT = torch.tensor([[0, 5, 4], [5, 1, 3], [4, 3, 2]])  # places of xx, yy, zz, yz, xz, xy


class Graphs(NamedTuple):
    """T frames of A atoms with their E edges, and the labels that the network learns.

    Reference energies and repulsion, which are not learned, are subtracted from the labels.

    Attributes
    ----------
    frames : LabelledFrames
        The frames with the teacher's labels.
    species : Tensor
        (A,) int64, index of each atom's element in the student.
    edge_start : Tensor
        (T + 1,) int64, row of the first edge of each frame; the last entry is E.
    edge_index : Tensor
        (2, E) int32, receiver and sender, counted from the first atom of their frame.
    edge_vectors : Tensor
        (E, 3) float32, from receiver to sender, angstrom.
    energies : Tensor
        (T,) float32, eV, without reference energies and repulsion.
    forces : Tensor
        (A, 3) float32, eV/angstrom, without repulsion.
    virials : Tensor
        (T, 3, 3) float32, -dE/dstrain without repulsion, eV; NaN if not labelled.
    structures : Tensor
        (T,) int64, number of the structure of each frame.
    atom_counts, edge_counts : ndarray
        (T,) int64, numbers of atoms and edges of each frame, always in the memory of the host.
    periodic : ndarray
        (T,) bool, whether a frame has a cell; in the memory of the host.
    """

    frames: LabelledFrames
    species: Tensor
    edge_start: Tensor
    edge_index: Tensor
    edge_vectors: Tensor
    energies: Tensor
    forces: Tensor
    virials: Tensor
    structures: Tensor
    atom_counts: np.ndarray
    edge_counts: np.ndarray
    periodic: np.ndarray

    def to(self, device: torch.device) -> "Graphs":
        """Return the same graphs on another device."""
        moved = {
            name: value.to(device)
            for name, value in self._asdict().items()
            if torch.is_tensor(value)
        }
        on_device = ("start", "positions")
        frames = self.frames._replace(
            **{name: getattr(self.frames, name).to(device) for name in on_device}
        )
        return self._replace(frames=frames, **moved)


class Shape(NamedTuple):
    """Largest numbers of frames, atoms and edges of a batch, and of its displaced frames.

    On a GPU all batches have one shape, so that a step can be recorded once and repeated. Entries
    that a batch does not need are padding, which has no effect on the loss.
    """

    frames: int
    atoms: int
    edges: int
    displaced: int = 0
    displaced_atoms: int = 0  # of each displaced frame


class Batch(NamedTuple):
    """B frames of N atoms as one graph of E edges.

    Padding atoms belong to the frame B, which has no label. Padding edges are longer than the
    cutoff and join the last atom to itself. Padding frames have 0 atoms.

    Attributes
    ----------
    vectors : Tensor
        (E, 3) float32, from receiver to sender, angstrom.
    edge_index : Tensor
        (2, E) int64, receiver and sender, counted over all frames.
    species : Tensor
        (N,) int64, index of each atom's element in the student.
    frame : Tensor
        (N,) int64, frame of each atom; B for padding.
    atoms : Tensor
        (B,) int64, number of atoms of each frame.
    displaced : Tensor
        (B,) bool, whether the atoms are displaced at random. The energy of such a frame is a lower
        bound, and its forces are unknown.
    energies : Tensor
        (B,) float32, eV, without reference energies and repulsion.
    forces : Tensor
        (N, 3) float32, eV/angstrom, without repulsion.
    virials : Tensor
        (B, 3, 3) float32, -dE/dstrain without repulsion, eV; NaN if not labelled.
    structures : Tensor
        (B,) int64, number of the structure of each frame.
    """

    vectors: Tensor
    edge_index: Tensor
    species: Tensor
    frame: Tensor
    atoms: Tensor
    displaced: Tensor
    energies: Tensor
    forces: Tensor
    virials: Tensor
    structures: Tensor


def fit_references(frames: LabelledFrames, student: Student) -> None:
    """Set the reference energy of each element by a least-squares fit of energies to compositions.

    Parameters
    ----------
    frames : LabelledFrames
        Frames with total energies.
    student : Student
        Student whose `references` are set.

    Raises
    ------
    InputError
        An energy is not finite.
    """
    if not frames.energies.isfinite().all():
        raise InputError(
            "the dataset holds energies that are not finite; find them with `mlff-student distill "
            "check`"
        )
    species = student.species_of.cpu()[frames.atomic_numbers]
    kinds = student.references.shape[0]
    composition = torch.zeros(len(frames.energies), kinds, dtype=torch.float64)
    frame = torch.repeat_interleave(frames.start.diff())
    composition.index_put_((frame, species), torch.ones(len(species)).double(), accumulate=True)
    solution = torch.linalg.lstsq(composition, frames.energies[:, None], driver="gelsd").solution
    student.references.copy_(solution[:, 0])


def build_graphs(frames: LabelledFrames, student: Student) -> Graphs:
    """Find the edges of all frames, and subtract references and repulsion from their labels.

    Parameters
    ----------
    frames : LabelledFrames
        Frames with the teacher's labels.
    student : Student
        Student with its cutoff, reference energies and repulsion.

    Raises
    ------
    InputError
        The frames hold an element that the student does not know.
    """
    species = student.species_of[frames.atomic_numbers]
    if (species < 0).any():
        number = int(frames.atomic_numbers[species < 0][0])
        raise InputError(
            f"the dataset holds atomic number {number}, unknown to the student; take it out"
        )
    marks = torch.arange(0, max(1, int(frames.start[-1])), ATOMS_AT_ONCE)
    bounds = [*torch.searchsorted(frames.start, marks).unique().tolist(), len(frames.energies)]
    parts = [_build_part(_part(frames, first, last), student) for first, last in pairwise(bounds)]
    return join_graphs(parts)._replace(frames=frames, structures=frames.molecule)


def _part(frames: LabelledFrames, first: int, last: int) -> LabelledFrames:
    """Return some of the frames, with the names of all structures."""
    start, stop = int(frames.start[first]), int(frames.start[last])
    of_frames = ("molecule", "methods", "energies", "temperatures", "cells", "pbc", "stresses")
    of_atoms = ("atomic_numbers", "positions", "forces")
    cut: dict[str, Any] = {name: getattr(frames, name)[first:last] for name in of_frames}
    cut |= {name: getattr(frames, name)[start:stop] for name in of_atoms}
    return frames._replace(start=frames.start[first : last + 1] - start, **cut)


def _build_part(frames: LabelledFrames, student: Student) -> Graphs:
    species = student.species_of[frames.atomic_numbers]
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
        structures=frames.molecule,
        atom_counts=frames.start.diff().numpy(),
        edge_counts=counts.numpy(),
        periodic=frames.pbc.any(1).numpy(),
    )


def join_graphs(several: list[Graphs]) -> Graphs:
    """Join the frames of several datasets.

    Parameters
    ----------
    several : list of Graphs
        Graphs of the same student. Of `frames` only the fields that batches need are joined.
    """
    if len(several) == 1:
        return several[0]

    def joined(parts: tuple[Any, ...], axis: int) -> Any:
        return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else torch.cat(parts, axis)

    def starts(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([parts[0][:1], *(part.diff() for part in parts)]).cumsum(0)

    columns: dict[str, Any] = {
        name: joined(column, -1 if name == "edge_index" else 0)
        for name, column in zip(Graphs._fields, zip(*several, strict=True), strict=True)
        if name not in ("frames", "edge_start", "structures")
    }
    first = [0, *np.cumsum([int(part.structures.max()) + 1 for part in several])]
    structures = [part.structures + n for part, n in zip(several, first, strict=False)]
    frames = [graphs.frames for graphs in several]
    return Graphs(
        frames=frames[0]._replace(
            start=starts([part.start for part in frames]),
            positions=torch.cat([part.positions for part in frames]),
        ),
        edge_start=starts([graphs.edge_start for graphs in several]),
        structures=torch.cat(structures),
        **columns,
    )


def frame_edges(frames: LabelledFrames, cutoff: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Find the edges of all frames, some frames at a time.

    Parameters
    ----------
    frames : LabelledFrames
        The frames.
    cutoff : float
        Largest length of an edge, angstrom.

    Yields
    ------
    frame : Tensor
        (E,) int64, frame of each edge.
    edge_index : Tensor
        (2, E) int64, receiver and sender, counted from the first atom of their frame.
    vectors : Tensor
        (E, 3) float64, from receiver to sender, angstrom.
    """
    yield from _open_edges(frames, cutoff)
    yield from _periodic_edges(frames, cutoff)


def _open_edges(frames: LabelledFrames, cutoff: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Find the edges of open frames; frames of equal size are searched together."""
    sizes = frames.start.diff()
    is_open = ~frames.pbc.any(1)
    for atoms in sizes[is_open].unique().tolist():
        members = ((sizes == atoms) & is_open).nonzero()[:, 0]
        for part in members.split(max(1, PAIRS_AT_ONCE // atoms**2)):
            rows = frames.start[part][:, None] + torch.arange(atoms)
            frame, edge_index, vectors = _all_edges(frames.positions[rows].double(), cutoff)
            yield part[frame], edge_index, vectors


def _all_edges(positions: Tensor, cutoff: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return frame (E,), edge_index (2, E) and vectors (E, 3) of open frames (T, N, 3)."""
    vectors = positions[:, None] - positions[:, :, None]  # (T, i, j, 3) = x_j - x_i
    itself = torch.eye(positions.shape[1], dtype=torch.bool)
    near = (vectors.square().sum(-1) < cutoff**2) & ~itself
    frame, i, j = near.nonzero(as_tuple=True)
    return frame, torch.stack([i, j]), vectors[near]


def _periodic_edges(
    frames: LabelledFrames, cutoff: float
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Find the edges of frames with a cell."""
    for k in frames.pbc.any(1).nonzero()[:, 0].tolist():
        vectors, edge_index = neighbour_edges(
            frames.positions[frames.start[k] : frames.start[k + 1]].double(),
            frames.cells[k].double(),
            frames.pbc[k],
            cutoff,
        )
        yield torch.full((len(vectors),), k), edge_index, vectors


def make_batch(graphs: Graphs, chosen: Sequence[int] | Tensor, shape: Shape | None = None) -> Batch:
    """Join the chosen frames into one graph, on the device of the graphs.

    Parameters
    ----------
    graphs : Graphs
        All frames.
    chosen : sequence of int, or Tensor
        Frames of the batch, in this order; a frame may occur twice. With a shape, a tensor of
        `shape.frames` numbers on the device of the graphs, with -1 for padding.
    shape : Shape, optional
        Shape of the batch; if it is not given, there is no padding.
    """
    if shape is None:
        members = np.asarray(chosen, dtype=np.int64)
        counts = graphs.atom_counts[members].sum(), graphs.edge_counts[members].sum()
        shape = Shape(len(members), *map(int, counts))
        chosen = torch.from_numpy(members)
    chosen = torch.as_tensor(chosen, device=graphs.energies.device)
    member, start = chosen.clamp(min=0), graphs.frames.start
    atoms = torch.where(chosen < 0, 0, start[member + 1] - start[member])
    edges = torch.where(chosen < 0, 0, graphs.edge_start[member + 1] - graphs.edge_start[member])
    rows, frame = _rows(start[member], atoms, shape.atoms)
    edge_rows, edge_frame = _rows(graphs.edge_start[member], edges, shape.edges)
    # Padding is behind all frames: its first atom would be the number of atoms of the frames.
    first = torch.cat([atoms.cumsum(0) - atoms, atoms.new_full((1,), shape.atoms - 1)])
    real = edge_frame < shape.frames
    local = torch.where(real, graphs.edge_index[:, edge_rows], 0)
    vectors = torch.where(real[:, None], graphs.edge_vectors[edge_rows], PADDING_LENGTH)
    return Batch(
        vectors=vectors,
        edge_index=local + first[edge_frame],
        species=graphs.species[rows],
        frame=frame,
        atoms=atoms,
        displaced=torch.zeros_like(atoms, dtype=torch.bool),
        energies=graphs.energies[member],
        forces=graphs.forces[rows],
        virials=graphs.virials[member],
        structures=graphs.structures[member],
    )


def _rows(start: Tensor, count: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Return start[0], start[0] + 1, ... (count[0] numbers), start[1], ... and their owners.

    There are `total` numbers; padding has the owner len(start) and the row 0.
    """
    ends, place = count.cumsum(0), torch.arange(total, device=start.device)
    owner = torch.searchsorted(ends, place, right=True)
    inside = owner.clamp(max=len(start) - 1)
    rows = (start - (ends - count))[inside] + place
    return torch.where(owner < len(start), rows, 0), owner


def join_batches(batches: list[Batch]) -> Batch:
    """Join several batches into one graph."""
    first, *others = batches
    for other in others:
        frames, more = len(first.atoms), len(other.atoms)
        moved = other._replace(
            edge_index=other.edge_index + len(first.species), frame=other.frame + frames
        )
        # Padding has the number of frames of the whole batch as its frame.
        frame = torch.where(first.frame == frames, frames + more, first.frame)
        joined = {
            name: torch.cat([mine, theirs], -1 if name == "edge_index" else 0)
            for (name, mine), theirs in zip(
                first._replace(frame=frame)._asdict().items(), moved, strict=True
            )
        }
        first = Batch(**joined)
    return first


class Displacements(NamedTuple):
    """Random displacements of D frames with at most A atoms, in the memory of the host.

    Attributes
    ----------
    chosen : Tensor
        (D,) int64, frames to displace; -1 for padding.
    downhill : Tensor
        (D,) bool, whether the atoms move along the forces and not in a random direction.
    directions : Tensor
        (D, A, 3) float32, normal random numbers.
    lengths : Tensor
        (D,) float32, norm of the displacement over all atoms, angstrom.
    """

    chosen: Tensor
    downhill: Tensor
    directions: Tensor
    lengths: Tensor


def draw_displacements(
    graphs: Graphs,
    chosen: Sequence[int],
    seeds: Sequence[Sequence[int]],
    shape: Shape | None = None,
) -> Displacements:
    """Draw large random displacements of open frames.

    A displacement is at least 0.25 angstrom (root mean square over the atoms), and its norm over
    all atoms is up to 10 angstrom, as in a minimiser's first trial step. Half of the frames are
    displaced at random and half along the forces.

    Parameters
    ----------
    graphs : Graphs
        All frames.
    chosen : sequence of int
        Frames to displace. Periodic frames, and frames with more atoms than `LARGEST_DISPLACED`,
        are left out.
    seeds : sequence of sequence of int
        Random seed for each of the chosen frames.
    shape : Shape, optional
        Gives the numbers of frames and atoms with padding.
    """
    kept = [
        (k, seed)
        for k, seed in zip(chosen, seeds, strict=True)
        if graphs.atom_counts[k] <= LARGEST_DISPLACED and not graphs.periodic[k]
    ]
    largest = max((int(graphs.atom_counts[k]) for k, _ in kept), default=0)
    frames, atoms = (shape.displaced, shape.displaced_atoms) if shape else (len(kept), largest)
    drawn = Displacements(
        chosen=torch.full((frames,), -1),
        downhill=torch.zeros(frames, dtype=torch.bool),
        directions=torch.zeros(frames, atoms, 3),
        lengths=torch.zeros(frames),
    )
    for row, (k, seed) in enumerate(kept):
        rng, count = np.random.default_rng(seed), int(graphs.atom_counts[k])
        drawn.chosen[row], drawn.downhill[row] = k, bool(rng.random() < 0.5)
        drawn.directions[row, :count] = torch.from_numpy(rng.standard_normal((count, 3)))
        shortest = SHORTEST_DISPLACEMENT * count**0.5
        drawn.lengths[row] = rng.uniform(shortest, max(LONGEST_DISPLACEMENT, 2.0 * shortest))
    return drawn


def displaced_batch(graphs: Graphs, drawn: Displacements, cutoff: float, padded: bool) -> Batch:
    """Return displaced copies of frames as one graph, on the device of the graphs.

    The teacher does not label them; their energies are taken to be above that of the frame itself.

    Parameters
    ----------
    graphs : Graphs
        All frames.
    drawn : Displacements
        Displacements, on the device of the graphs.
    cutoff : float
        Largest length of an edge, angstrom.
    padded : bool
        Whether all pairs of atoms are edges, so that the shape does not depend on the positions.
    """
    (frames, largest, _), device = drawn.directions.shape, graphs.energies.device
    member, start = drawn.chosen.clamp(min=0), graphs.frames.start
    atoms = torch.where(drawn.chosen < 0, 0, start[member + 1] - start[member])
    place = torch.arange(largest, device=device)
    inside = place < atoms[:, None]  # (D, A)
    rows = torch.where(inside, start[member][:, None] + place, 0)
    forces = torch.where(inside[:, :, None], graphs.forces[rows], 0.0)
    downhill = drawn.downhill & (forces != 0.0).any(2).any(1)
    direction = torch.where(downhill[:, None, None], forces, drawn.directions)
    norm = direction.square().sum((1, 2)).sqrt().clamp(min=1e-30)
    positions = graphs.frames.positions[rows]
    positions = positions + (drawn.lengths / norm)[:, None, None] * direction
    far = PADDING_LENGTH * (1.0 + place[None, :, None])
    positions = torch.where(inside[:, :, None], positions, far)
    i, j = (~torch.eye(largest, dtype=torch.bool)).nonzero().T.to(device)
    vectors = (positions[:, j] - positions[:, i]).flatten(0, 1)
    offset = largest * torch.arange(frames, device=device)[:, None]
    edge_index = torch.stack([(offset + i).flatten(), (offset + j).flatten()])
    if not padded:
        near = vectors.square().sum(1) < cutoff**2
        vectors, edge_index = vectors[near], edge_index[:, near]
    owner = torch.arange(frames, device=device)[:, None]
    return Batch(
        vectors=vectors,
        edge_index=edge_index,
        species=graphs.species[rows].flatten(),
        frame=torch.where(inside, owner, frames).flatten(),
        atoms=atoms,
        displaced=atoms > 0,
        energies=graphs.energies[member],
        forces=torch.zeros(frames * largest, 3, device=device),
        virials=torch.full((frames, 3, 3), torch.nan, device=device),
        structures=graphs.structures[member],
    )


class Prediction(NamedTuple):
    """Predictions for B frames with N atoms.

    Attributes
    ----------
    energies : Tensor
        (B,) eV.
    forces : Tensor
        (N, 3) eV/angstrom.
    virials : Tensor
        (B, 3, 3) -dE/dstrain, eV.
    """

    energies: Tensor
    forces: Tensor
    virials: Tensor


def predict(network: Network, batch: Batch) -> Prediction:
    """Predict a batch by the network, without reference energies and repulsion."""
    atoms, frames = len(batch.species), len(batch.atoms)
    eps, gradient = network(batch.vectors, batch.edge_index, batch.species, atoms)
    virials = edge_virials(gradient, batch.vectors)
    return Prediction(
        energies=sum_to_atoms(eps, batch.frame, frames + 1)[:-1],
        forces=forces_from_gradient(gradient, batch.edge_index, atoms),
        virials=sum_to_atoms(virials, batch.frame[batch.edge_index[0]], frames + 1)[:-1],
    )


def relative_to_mean(values: Tensor, groups: Tensor) -> Tensor:
    """Subtract from each value the mean of the values of its group.

    Parameters
    ----------
    values : Tensor
        (T,) values.
    groups : Tensor
        (T,) int64, number of the group of each value.
    """
    _, group, size = groups.unique(return_inverse=True, return_counts=True)
    return values - (sum_to_atoms(values, group, len(size)) / size)[group]


def predict_frames(student: Student, frames: LabelledFrames, batch: int = 32) -> Prediction:
    """Predict total energies, forces and virials of all frames, in float64.

    Parameters
    ----------
    student : Student
        The student.
    frames : LabelledFrames
        The frames; their labels are not used.
    batch : int
        Number of frames that are predicted at once.

    Raises
    ------
    InputError
        The frames hold an element that the student does not know.
    """
    graphs = build_graphs(frames, student)
    energies, forces, virials = [], [], []
    for first in range(0, len(frames.energies), batch):
        part = make_batch(graphs, list(range(first, min(first + batch, len(frames.energies)))))
        atoms = len(part.species)
        vectors, count = part.vectors.double(), len(part.atoms)
        each, gradient = student(vectors, part.edge_index, part.species, atoms)
        energies.append(sum_to_atoms(each, part.frame, count))
        forces.append(forces_from_gradient(gradient, part.edge_index, atoms))
        owner = part.frame[part.edge_index[0]]
        virials.append(sum_to_atoms(edge_virials(gradient, vectors), owner, count))
    return Prediction(torch.cat(energies), torch.cat(forces), torch.cat(virials))
