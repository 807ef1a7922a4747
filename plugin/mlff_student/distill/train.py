"""Training of one student on energies and forces. Needs torch, numpy, h5py and rich only."""

import csv
import ctypes
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import Progress, TextColumn
from torch import Tensor

from ..errors import InputError
from ..files import atomic_write
from ..neighbours import neighbour_edges
from ..student import PRESETS, Student, sum_to_atoms
from .dataset import Frames, read_split
from .recipe import Recipe

Network = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]  # Student.network

STATE_EVERY_S = 60.0
VALIDATE_EVERY = 500  # steps


class Graphs(NamedTuple):
    """Frames with edges and with what the network does not learn taken off the labels."""

    frames: Frames
    species: Tensor  # (A,) int64
    edge_start: Tensor  # (T + 1,) int64
    edge_index: Tensor  # (2, E) int64, atoms counted from the start of their frame
    energies: Tensor  # (T,) float32, eV, without references and repulsion
    forces: Tensor  # (A, 3) float32, eV/angstrom, without repulsion


class Batch(NamedTuple):
    """Some frames as one graph."""

    positions: Tensor  # (N, 3)
    species: Tensor  # (N,)
    edge_index: Tensor  # (2, E)
    frame: Tensor  # (N,) frame of each atom
    atoms: Tensor  # (B,) atoms in each frame
    energies: Tensor  # (B,)
    forces: Tensor  # (N, 3)


def keep_freed_memory() -> None:
    """Ask glibc to reuse large blocks instead of returning them to the system.

    Every step allocates the same edge arrays; fresh pages for each made energy and forces of 1000
    atoms 2.6 times slower (128 channels, 52,000 edges). Does nothing where there is no glibc.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


def forces_from_gradient(gradient: Tensor, edge_index: Tensor, atoms: int) -> Tensor:
    """Forces (atoms, 3) from dE/d edge_vectors (E, 3): r_ij = x_j - x_i pulls on both ends."""
    return sum_to_atoms(gradient, edge_index[0], atoms) - sum_to_atoms(
        gradient, edge_index[1], atoms
    )


def fit_references(frames: Frames, student: Student) -> None:
    """Set the per-element reference energies: least squares of the energies over composition."""
    species = student.species_of[frames.atomic_numbers]
    kinds = student.references.shape[0]
    composition = torch.zeros(len(frames.energies), kinds, dtype=torch.float64)
    frame = torch.repeat_interleave(frames.start.diff())
    composition.index_put_((frame, species), torch.ones(len(species)).double(), accumulate=True)
    solution = torch.linalg.lstsq(composition, frames.energies[:, None], driver="gelsd").solution
    student.references.copy_(solution[:, 0])


def build_graphs(frames: Frames, student: Student) -> Graphs:
    """Edges of every frame, and labels with references and repulsion taken off."""
    species = student.species_of[frames.atomic_numbers]
    if (species < 0).any():
        number = int(frames.atomic_numbers[species < 0][0])
        raise InputError(f"the dataset holds atomic number {number}, unknown to the student")
    is_open = torch.zeros(3, dtype=torch.bool)
    edge_indices, edge_counts = [], []
    energies, forces = frames.energies.clone(), frames.forces.clone()
    for index, (first, last) in enumerate(zip(frames.start[:-1], frames.start[1:], strict=True)):
        vectors, edge_index = neighbour_edges(
            frames.positions[first:last].double(),
            torch.zeros(3, 3).double(),
            is_open,
            student.cutoff,
        )
        kind = species[first:last]
        distances = vectors.norm(dim=1)
        pair, slope = student.repulsion(distances, kind[edge_index[0]], kind[edge_index[1]])
        energies[index] -= student.references[kind].sum() + 0.5 * pair.sum()
        gradient = (0.5 * slope / distances)[:, None] * vectors
        forces[first:last] -= forces_from_gradient(gradient, edge_index, len(kind)).float()
        edge_indices.append(edge_index)
        edge_counts.append(edge_index.shape[1])
    edge_start = torch.tensor([0, *edge_counts]).cumsum(0)
    return Graphs(frames, species, edge_start, torch.cat(edge_indices, 1), energies.float(), forces)


def make_batch(graphs: Graphs, chosen: list[int]) -> Batch:
    """The chosen frames as one graph."""
    start, edge_start = graphs.frames.start.tolist(), graphs.edge_start.tolist()
    rows = torch.cat([torch.arange(start[k], start[k + 1]) for k in chosen])
    atoms = torch.tensor([start[k + 1] - start[k] for k in chosen])
    offset = (atoms.cumsum(0) - atoms).tolist()
    edge_index = torch.cat(
        [
            graphs.edge_index[:, edge_start[k] : edge_start[k + 1]] + o
            for k, o in zip(chosen, offset, strict=True)
        ],
        1,
    )
    return Batch(
        positions=graphs.frames.positions[rows],
        species=graphs.species[rows],
        edge_index=edge_index,
        frame=torch.repeat_interleave(atoms),
        atoms=atoms,
        energies=graphs.energies[chosen],
        forces=graphs.forces[rows],
    )


def predict(network: Network, batch: Batch) -> tuple[Tensor, Tensor]:
    """Network energies (B,) and forces (N, 3), without references and repulsion."""
    receiver, sender = batch.edge_index[0], batch.edge_index[1]
    vectors = batch.positions[sender] - batch.positions[receiver]
    atoms = len(batch.species)
    eps, gradient = network(vectors, batch.edge_index, batch.species, atoms)
    energies = sum_to_atoms(eps, batch.frame, len(batch.atoms))
    return energies, forces_from_gradient(gradient, batch.edge_index, atoms)


class Errors(NamedTuple):
    """Errors over a set of frames."""

    energy_rmse: float  # eV/atom
    force_rmse: float  # eV/angstrom
    force_mae: float  # eV/angstrom
    force_r2: float


def evaluate(network: Network, graphs: Graphs, chosen: list[int], batch: int = 32) -> Errors:
    """Errors over the chosen frames."""
    energy, force, label = [], [], []
    with torch.no_grad():
        for k in range(0, len(chosen), batch):
            part = make_batch(graphs, chosen[k : k + batch])
            energies, forces = predict(network, part)
            energy.append((energies - part.energies) / part.atoms)
            force.append((forces - part.forces).flatten())
            label.append(part.forces.flatten())
    energy_error, force_error, target = torch.cat(energy), torch.cat(force), torch.cat(label)
    return Errors(
        energy_rmse=float(energy_error.square().mean().sqrt()),
        force_rmse=float(force_error.square().mean().sqrt()),
        force_mae=float(force_error.abs().mean()),
        force_r2=float(1.0 - force_error.square().sum() / (target - target.mean()).square().sum()),
    )


def shuffled(frames: int, batch: int, seed: int, step: int) -> Iterator[list[int]]:
    """Batches from step `step` on, the same whether or not training was interrupted."""
    per_epoch = max(1, frames // batch)
    while True:
        epoch, within = divmod(step, per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(frames).tolist()
        for k in range(within, per_epoch):
            yield order[k * batch : (k + 1) * batch]
            step += 1


def train(
    recipe: Recipe, model: str, dataset: Path, folder: Path, compiled: bool = True
) -> dict[str, Any]:
    """Train one preset, going on from the state in `folder` if there is one.

    Parameters
    ----------
    model : name of a preset with a section in the recipe.
    dataset : HDF5 file of `write_dataset`.
    folder : receives state.pt (resume), metrics.csv (curve) and model.pt (result).
    compiled : let torch.compile fuse the step. One thread, 16 frames of 11 atoms on average: 57
        instead of 94 ms (original), 13 instead of 37 ms (tiny), after a minute of compiling.

    Returns
    -------
    The checkpoint that was written to model.pt.
    """
    if model not in recipe.training or model not in PRESETS:
        raise InputError(f"no preset {model!r} in the recipe; it has {', '.join(recipe.training)}")
    keep_freed_memory()
    settings = recipe.training[model]
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    student = Student(PRESETS[model])
    train_frames = read_split(dataset, "train")
    fit_references(train_frames, student)
    train_set = build_graphs(train_frames, student)
    validation_set = build_graphs(read_split(dataset, "validation"), student)
    validation = list(range(0, len(validation_set.energies), 2))

    optimizer = torch.optim.AdamW(student.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1.0, (step + 1) / settings.warmup)
            * (0.5 + 0.5 * math.cos(math.pi * min(1.0, step / settings.steps)))
        ),
    )
    average = torch.optim.swa_utils.AveragedModel(
        student, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(settings.ema)
    )
    parts = {"student": student, "optimizer": optimizer, "schedule": schedule, "average": average}
    state_path, done, elapsed = folder / "state.pt", 0, 0.0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        done, elapsed = state["step"], state["elapsed_s"]

    def save_state(step: int) -> None:
        with atomic_write(state_path) as temporary:
            state = {name: part.state_dict() for name, part in parts.items()}
            torch.save(state | {"step": step, "elapsed_s": elapsed}, temporary)

    network = torch.compile(student.network, dynamic=True) if compiled else student.network
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[info]}"))
    batches = shuffled(len(train_set.energies), settings.batch, recipe.seed, done)
    last_save = clock = time.monotonic()
    running = 0.0
    with Progress(*columns) as progress:
        bar = progress.add_task(f"training {model}", total=settings.steps, completed=done, info="")
        for step in range(done + 1, settings.steps + 1):
            batch = make_batch(train_set, next(batches))
            energies, forces = predict(network, batch)
            energy_loss = ((energies - batch.energies) / batch.atoms).square().mean()
            force_loss = (forces - batch.forces).square().mean()
            optimizer.zero_grad()
            (settings.energy_weight * energy_loss + force_loss).backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), settings.clip)
            optimizer.step()
            schedule.step()
            average.update_parameters(student)
            loss = float(force_loss.detach())
            running = 0.98 * running + 0.02 * loss if running else loss
            now = time.monotonic()
            elapsed, clock = elapsed + now - clock, now
            if step % VALIDATE_EVERY == 0 or step == settings.steps:
                errors = evaluate(average.module.network, validation_set, validation)
                _append_metrics(folder / "metrics.csv", step, elapsed, math.sqrt(running), errors)
                progress.update(bar, info=f"validation force RMSE {errors.force_rmse:.3f} eV/A")
            if now - last_save > STATE_EVERY_S or step == settings.steps:
                save_state(step)
                last_save = now
            progress.update(bar, completed=step)
    checkpoint = {
        "config": PRESETS[model].as_dict(),
        "weights": average.module.state_dict(),
        "training": {"steps": settings.steps, "seconds": round(elapsed)},
    }
    with atomic_write(folder / "model.pt") as temporary:
        torch.save(checkpoint, temporary)
    return checkpoint


def _append_metrics(
    path: Path, step: int, seconds: float, train_rmse: float, errors: Errors
) -> None:
    fresh = not path.exists()
    with open(path, "a", newline="") as stream:
        writer = csv.writer(stream)
        if fresh:
            writer.writerow(
                ["step", "seconds", "train_force_rmse_ev_per_angstrom"]
                + [f"validation_{name}" for name in Errors._fields]
            )
        writer.writerow([step, round(seconds), f"{train_rmse:.5f}"] + [f"{e:.6f}" for e in errors])
