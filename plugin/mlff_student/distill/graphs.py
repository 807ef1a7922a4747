"""Frames as graphs in batches, with the labels that the network learns.

This module needs torch and numpy only, because training must run where no chemistry is installed.
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
# Shortest displacement of a displaced frame, root mean square over its atoms, angstrom; thermal
# motion is a third of it.
SHORTEST_DISPLACEMENT = 0.25
LONGEST_DISPLACEMENT = 10.0  # angstrom, norm over all atoms
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
    """

    frames: LabelledFrames
    species: Tensor
    edge_start: Tensor
    edge_index: Tensor
    edge_vectors: Tensor
    energies: Tensor
    forces: Tensor
    virials: Tensor


class Batch(NamedTuple):
    """B frames of N atoms as one graph of E edges.

    Attributes
    ----------
    vectors : Tensor
        (E, 3) float32, from receiver to sender, angstrom.
    edge_index : Tensor
        (2, E) int64, receiver and sender, counted over all frames.
    species : Tensor
        (N,) int64, index of each atom's element in the student.
    frame : Tensor
        (N,) int64, frame of each atom.
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

    def to(self, device: torch.device) -> "Batch":
        """Return the same batch on another device."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


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


def make_batch(graphs: Graphs, chosen: list[int]) -> Batch:
    """Join the chosen frames into one graph.

    Parameters
    ----------
    graphs : Graphs
        All frames.
    chosen : list of int
        Frames of the batch, in this order; a frame may occur twice.
    """
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
    """Join several batches into one graph."""
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
    """Displace the atoms of the chosen open frames by a large distance; return a batch for each.

    The displacement is at least 0.25 angstrom (root mean square over the atoms), and its norm over
    all atoms is up to 10 angstrom, as in a minimiser's first trial step. Half of the frames are
    displaced at random and half along the forces. The teacher does not label them; their energies
    are taken to be above that of the frame itself.

    Parameters
    ----------
    graphs : Graphs
        All frames.
    chosen : list of int
        Frames to displace; periodic frames are left out.
    seeds : list of list of int
        Random seed for each of the chosen frames.
    cutoff : float
        Largest length of an edge, angstrom.
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
        shortest = SHORTEST_DISPLACEMENT * atoms**0.5
        length = rng.uniform(shortest, max(LONGEST_DISPLACEMENT, 2.0 * shortest))
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
    """Return start[0], start[0] + 1, ... (count[0] numbers), start[1], ..."""
    first = torch.repeat_interleave(start - (count.cumsum(0) - count), count)
    return first + torch.arange(int(count.sum()))


class Prediction(NamedTuple):
    """Predictions of the network for a batch, without reference energies and repulsion.

    Attributes
    ----------
    energies : Tensor
        (B,) eV.
    forces : Tensor
        (N, 3) eV/angstrom.
    virials : Tensor
        (B, 3, 3) -dE/dstrain, eV; zero for frames whose virial is not labelled.
    """

    energies: Tensor
    forces: Tensor
    virials: Tensor


def predict(network: Network, batch: Batch) -> Prediction:
    """Predict energies, forces and virials of a batch by the network."""
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
    """Predict total energies and forces of all frames.

    Parameters
    ----------
    student : Student
        The student.
    frames : LabelledFrames
        The frames; their labels are not used.
    batch : int
        Number of frames that are predicted at once.

    Returns
    -------
    energies : Tensor
        (T,) float64, eV.
    forces : Tensor
        (A, 3) float64, eV/angstrom.

    Raises
    ------
    InputError
        The frames hold an element that the student does not know.
    """
    graphs = build_graphs(frames, student)
    energies, forces = [], []
    for first in range(0, len(frames.energies), batch):
        part = make_batch(graphs, list(range(first, min(first + batch, len(frames.energies)))))
        atoms = len(part.species)
        each, gradient = student(part.vectors.double(), part.edge_index, part.species, atoms)
        energies.append(sum_to_atoms(each, part.frame, len(part.atoms)))
        forces.append(forces_from_gradient(gradient, part.edge_index, atoms))
    return torch.cat(energies), torch.cat(forces)
