"""Training of one student on energies, forces and virials.

This module needs torch, numpy, h5py, yaml and rich only. Under `torchrun` each process computes its
share of each batch, and the sum of the gradients is the same as with one process.
"""

import csv
import ctypes
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.distributed as dist
from rich.progress import Progress, TextColumn
from torch import Tensor

from mlff_student.archive.registry import load_student
from mlff_student.core.errors import InputError, MissingDependencyError
from mlff_student.core.files import atomic_write
from mlff_student.distill.dataset import LabelledFrames, dataset_sha256, read_frames
from mlff_student.distill.graphs import (
    Batch,
    Graphs,
    Network,
    build_graphs,
    displaced_batch,
    fit_references,
    join_batches,
    make_batch,
    predict,
    predict_frames,
)
from mlff_student.distill.recipe import Recipe, TrainingRecipe
from mlff_student.model.student import PRESETS, Student

STATE_EVERY_S = 60.0
VALIDATE_EVERY = 1000  # steps
DISPLACED_EVERY = 4  # one of so many frames is also shown displaced


class Errors(NamedTuple):
    """Errors of a network over a set of frames.

    Attributes
    ----------
    energy_rmse_ev_per_atom : float
        Root mean square error of the energy per atom, eV/atom.
    force_rmse_ev_per_angstrom : float
        Root mean square error of the force components, eV/angstrom.
    force_mae_ev_per_angstrom : float
        Mean absolute error of the force components, eV/angstrom.
    force_r2 : float
        Coefficient of determination of the force components.
    """

    energy_rmse_ev_per_atom: float
    force_rmse_ev_per_angstrom: float
    force_mae_ev_per_angstrom: float
    force_r2: float


class CurvePoint(NamedTuple):
    """One row of metrics.csv, written after each validation.

    Attributes
    ----------
    step : int
        Number of steps that are done.
    seconds : float
        Time of training so far, second.
    learning_rate : float
        Learning rate of the next step.
    train_force_rmse_ev_per_angstrom : float
        Force RMSE of the training frames, running mean over about 50 steps, eV/angstrom.
    validation_energy_rmse_ev_per_atom, validation_force_rmse_ev_per_angstrom : float
        Errors of the moving average of the weights on the validation frames; see `Errors`.
    validation_force_mae_ev_per_angstrom, validation_force_r2 : float
        The same.
    """

    step: int
    seconds: float
    learning_rate: float
    train_force_rmse_ev_per_angstrom: float
    validation_energy_rmse_ev_per_atom: float
    validation_force_rmse_ev_per_angstrom: float
    validation_force_mae_ev_per_angstrom: float
    validation_force_r2: float


class Workers(NamedTuple):
    """The place of this process among the processes that `torchrun` started.

    Attributes
    ----------
    rank : int
        Number of this process, from 0.
    size : int
        Number of processes.
    device : torch.device
        Device that this process computes on.
    """

    rank: int
    size: int
    device: torch.device

    def sum_gradients(self, student: Student) -> None:
        """Add the gradients of all processes, which are parts of one mean over the whole batch.

        A process without a share of the batch has no gradients and adds zeros.
        """
        if self.size > 1:
            weights = list(student.parameters())
            parts = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
            flat = torch.cat([part.flatten() for part in parts])
            dist.all_reduce(flat)
            for weight, part in zip(weights, flat.split([w.numel() for w in weights]), strict=True):
                weight.grad = part.view_as(weight)

    def broadcast_from_rank0(self, numbers: Sequence[float]) -> list[float]:
        """Return the numbers of the first process, so that all processes decide the same.

        Their own numbers may differ by rounding.
        """
        values = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        if self.size > 1:
            dist.broadcast(values, 0)
        return values.tolist()


def keep_freed_memory() -> None:
    """Ask glibc to reuse large blocks of memory and not to return them to the system.

    Each step allocates the same edge arrays. With new pages for each of them, energy and forces of
    1000 atoms took 2.6 times as long (128 channels, 52,000 edges). Without glibc this does nothing.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


@contextmanager
def started_workers() -> Iterator[Workers]:
    """Join the other processes of `torchrun`, if there are any; use CUDA if it is available."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    on_cuda = torch.cuda.is_available()
    device = torch.device("cpu")
    if on_cuda:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if size > 1:
        dist.init_process_group("nccl" if on_cuda else "gloo")
    try:
        yield Workers(rank, size, device)
    finally:
        if size > 1:
            dist.destroy_process_group()


def validation_errors(
    network: Network, graphs: Graphs, device: torch.device | str = "cpu", batch: int = 32
) -> Errors:
    """Measure the errors of a network over all frames.

    Parameters
    ----------
    network : callable
        `Student.network`.
    graphs : Graphs
        The frames.
    device : torch.device or str
        Device to compute on.
    batch : int
        Number of frames that are computed at once.
    """
    energy, force, label = [], [], []
    with torch.no_grad():
        for first in range(0, len(graphs.energies), batch):
            chosen = list(range(first, min(first + batch, len(graphs.energies))))
            part = make_batch(graphs, chosen).to(torch.device(device))
            predicted = predict(network, part)
            energy.append((predicted.energies - part.energies) / part.atoms)
            force.append((predicted.forces - part.forces).flatten())
            label.append(part.forces.flatten())
    energy_error, force_error, target = torch.cat(energy), torch.cat(force), torch.cat(label)
    return Errors(
        energy_rmse_ev_per_atom=float(energy_error.square().mean().sqrt()),
        force_rmse_ev_per_angstrom=float(force_error.square().mean().sqrt()),
        force_mae_ev_per_angstrom=float(force_error.abs().mean()),
        force_r2=float(1.0 - force_error.square().sum() / (target - target.mean()).square().sum()),
    )


def shuffled(frames: int, batch: int, seed: int, step: int) -> Iterator[list[int]]:
    """Draw batches from step `step` on; the draw is the same if training was interrupted.

    Parameters
    ----------
    frames : int
        Number of frames.
    batch : int
        Number of frames in a batch.
    seed : int
        Random seed.
    step : int
        Number of steps that are done.

    Yields
    ------
    list of int
        Frames of the next batch; in an epoch each frame occurs at most once.
    """
    per_epoch = max(1, frames // batch)
    while True:
        epoch, within = divmod(step, per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(frames).tolist()
        for k in range(within, per_epoch):
            yield order[k * batch : (k + 1) * batch]
            step += 1


def loss_of(
    network: Network, batch: Batch, settings: TrainingRecipe, frames: int, atoms: int
) -> tuple[Tensor, Tensor]:
    """Compute the loss of one process's share of a batch.

    The terms and their weights are described in `TrainingRecipe`.

    Parameters
    ----------
    network : callable
        `Student.network`.
    batch : Batch
        The share of this process.
    settings : TrainingRecipe
        Weights of the terms.
    frames, atoms : int
        Numbers of frames and atoms of the whole batch, by which the terms are divided.

    Returns
    -------
    loss : Tensor
        () the loss.
    squared : Tensor
        () sum of the squared errors of the force components, (eV/angstrom)^2.
    """
    energies, forces, virials = predict(network, batch)
    excess_energy = (energies - batch.energies) / batch.atoms
    energy = torch.where(batch.displaced, 0.0, excess_energy).square().sum() / frames
    unlabelled = batch.displaced[batch.frame, None]  # (N, 1)
    residual = torch.where(unlabelled, 0.0, forces - batch.forces)
    force = residual.square()
    if settings.huber:
        excess = (residual.abs() - settings.huber).clamp(min=0.0)
        force = force - excess.square()
    loss = settings.energy_weight * energy + force.sum() / (3 * atoms)
    labelled = batch.virials.isfinite()
    virial = torch.where(labelled, virials - batch.virials, 0.0) / batch.atoms[:, None, None]
    loss = loss + settings.virial_weight * virial.square().sum() / (9 * frames)
    below = torch.where(batch.displaced, -excess_energy, 0.0).clamp(min=0.0)
    loss = loss + settings.displaced_weight * torch.log1p(below).sum() / frames
    return loss, residual.detach().square().sum()


def make_optimizers(student: Student, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Make the optimisers: Muon for the matrices of the layers, AdamW for the other weights.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) takes a step of the same
    size along every singular direction of a matrix. Its steps are scaled to those of AdamW (Liu et
    al. 2025, arXiv:2502.16982), so that both use one learning rate. With 4,000 steps of 16 frames,
    tiny reached a validation force RMSE of 0.237 eV/angstrom, and 0.324 with AdamW alone; a step
    takes 18 % longer.

    Parameters
    ----------
    student : Student
        Student to train.
    learning_rate : float
        Highest learning rate.

    Raises
    ------
    MissingDependencyError
        Torch is older than 2.9, the first version with Muon.
    """
    if not hasattr(torch.optim, "Muon"):
        raise MissingDependencyError(
            f"training needs torch 2.9 or later (torch.optim.Muon), this is {torch.__version__}; "
            "pip install 'torch>=2.9'"
        )
    layers = [weight for weight in student.blocks.parameters() if weight.ndim == 2]
    chosen = set(map(id, layers))
    others = [weight for weight in student.parameters() if id(weight) not in chosen]
    return [
        torch.optim.Muon(
            layers, lr=learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=learning_rate, weight_decay=0.0),
    ]


def train(
    recipe: Recipe,
    model: str,
    dataset: Path,
    folder: Path,
    *,
    compiled: bool = True,
    extra: Sequence[Path] = (),
    initial: Path | None = None,
    structures: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train one preset, or resume its training from the state in `folder`.

    Parameters
    ----------
    recipe : Recipe
        Says how the preset is trained.
    model : str
        Name of a preset with a section in the recipe.
    dataset : Path
        HDF5 file that `label` writes, or is still writing. If it has grown since the state was
        saved, or the settings of the recipe have changed, training continues with the new data and
        settings, and the history in the checkpoint says from which step.
    folder : Path
        Folder that receives state.pt (to resume), metrics.csv and tensorboard/ (the learning
        curve), and model.pt (the result).
    compiled : bool
        Whether torch.compile fuses the training step. With one thread and 16 frames of 11 atoms on
        average, a step then takes 57 and not 94 ms (original), or 13 and not 37 ms (tiny), after a
        minute of compiling.
    extra : sequence of Path
        Other datasets whose training frames are added, such as those of `relabel`.
    initial : Path, optional
        Checkpoint of the same preset to start from; without it the weights are random. Its
        reference energies are fitted anew, so it may be of another teacher.
    structures : int
        Number of structures to train on, drawn with the random seed of the recipe, for a learning
        curve in the size of the data; 0 trains on all.
    quiet : bool
        Whether to show no progress bar.

    Returns
    -------
    dict
        The checkpoint that was written to model.pt, with the moving average of the weights at the
        best validation.

    Raises
    ------
    InputError
        There is no such preset, a split is empty, the state or the initial checkpoint is of another
        preset, or the loss is not finite any more; the last saved state then stays.
    ArchiveError
        `initial` is no checkpoint.
    MissingDependencyError
        Torch is older than 2.9.
    """
    if model not in recipe.training or model not in PRESETS:
        raise InputError(f"no preset {model!r} in the recipe; it has {', '.join(recipe.training)}")
    with started_workers() as workers:
        training = _Training(recipe, model, dataset, folder, workers, extra, initial, structures)
        return training.run(compiled, quiet)


class _Training:
    """One training: its weights, optimisers, data and learning curve."""

    def __init__(
        self,
        recipe: Recipe,
        model: str,
        dataset: Path,
        folder: Path,
        workers: Workers,
        extra: Sequence[Path],
        initial: Path | None,
        structures: int,
    ) -> None:
        keep_freed_memory()
        self.model, self.folder, self.workers = model, folder, workers
        self.settings, self.seed = recipe.training[model], recipe.seed
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(recipe.seed)
        self.student = Student(PRESETS[model]).to(workers.device)
        self.student.limits[1] = -math.inf  # a bounded energy has no gradient below its bound
        self.average = torch.optim.swa_utils.AveragedModel(
            self.student, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(self.settings.ema)
        )
        self.optimizers = make_optimizers(self.student, self.settings.learning_rate)
        self.schedules = [
            torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
            for optimizer in self.optimizers
        ]
        self.done, self.elapsed, self.running = 0, 0.0, 0.0
        self.curve: list[CurvePoint] = []
        self.best: dict[str, Tensor] = {}
        self.history: list[dict[str, Any]] = []
        self.updating = False  # while True the state is not saved, because a step is half done
        frames = _read_nonempty(dataset, "train", structures, recipe.seed)
        if (folder / "state.pt").exists():
            self._load()
        else:
            if initial:
                start, config = load_student(initial)
                # Repulsion and bounds are not learned; the preset gives them.
                fixed = ("repulsion_reach", "shortest", "lowest")
                of_preset = {name: getattr(PRESETS[model], name) for name in fixed}
                if replace(config, **of_preset) != PRESETS[model]:
                    raise InputError(
                        f"{initial} is no {model}, it has {config}; give a checkpoint of {model}"
                    )
                # References are fitted to what the network does not explain; of a molecule of 40
                # atoms it explains 10 eV.
                references, (explained, _) = start.references.clone(), predict_frames(start, frames)
                fit_references(frames._replace(energies=frames.energies - explained), start)
                start.references += references
                self.student.load_state_dict(start.state_dict())
            else:
                fit_references(frames, self.student)
            self.average.module.load_state_dict(self.student.state_dict())
        on_cpu = Student(PRESETS[model])  # only its references and repulsion are used
        on_cpu.references.copy_(self.student.references)
        added = [_read_nonempty(path, "train") for path in extra]
        self.sets = [build_graphs(labelled, on_cpu) for labelled in (frames, *added)]
        self.sizes = [len(graphs.energies) for graphs in self.sets]
        if workers.broadcast_from_rank0(self.sizes) != self.sizes:
            raise InputError(f"{dataset} grew while the processes read it; start them again")
        self.validation = build_graphs(_read_nonempty(dataset, "validation"), on_cpu)
        data: dict[str, Any] = {
            "dataset_sha256": [dataset_sha256(path) for path in (dataset, *extra)],
            "settings": asdict(self.settings),
        }
        known = self.history and data.items() <= self.history[-1].items()
        if not known and self.done < self.settings.steps:
            data |= {"from_step": self.done, "frames": sum(self.sizes)}
            self.history.append(data | {"molecules": len(set(frames.identities))})

    def _rate(self, step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, self.settings.warmup))
        return warm * (0.5 + 0.5 * math.cos(math.pi * min(1.0, step / self.settings.steps)))

    def _load(self) -> None:
        state = torch.load(
            self.folder / "state.pt", weights_only=True, map_location=self.workers.device
        )
        if state["model"] != self.model:
            raise InputError(
                f"{self.folder} holds the state of {state['model']}, not {self.model}; "
                "give another folder"
            )
        self.student.load_state_dict(state["student"])
        self.average.load_state_dict(state["average"])
        # The recipe may have changed since: its learning rate and steps are used.
        rate = self.settings.learning_rate * self._rate(state["step"])
        saved = zip(state["optimizers"], state["schedules"], strict=True)
        for optimizer, schedule, (optimizer_state, schedule_state) in zip(
            self.optimizers, self.schedules, saved, strict=True
        ):
            optimizer.load_state_dict(optimizer_state)
            schedule.load_state_dict(schedule_state)
            schedule.base_lrs = [self.settings.learning_rate]
            optimizer.param_groups[0]["lr"] = rate
        self.done, self.elapsed, self.running = state["step"], state["elapsed_s"], state["running"]
        self.curve = [CurvePoint(*row) for row in state["curve"]]
        self.best, self.history = state["best"], state["history"]

    def _save(self) -> None:
        if self.workers.rank == 0:
            with atomic_write(self.folder / "state.pt") as temporary:
                torch.save(
                    {
                        "model": self.model,
                        "student": self.student.state_dict(),
                        "average": self.average.state_dict(),
                        "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                        "schedules": [schedule.state_dict() for schedule in self.schedules],
                        "step": self.done,
                        "elapsed_s": self.elapsed,
                        "running": self.running,
                        "curve": [tuple(point) for point in self.curve],
                        "best": self.best,
                        "history": self.history,
                    },
                    temporary,
                )

    def run(self, compiled: bool, quiet: bool) -> dict[str, Any]:
        network = self.student.network
        if compiled:
            network = torch.compile(network, dynamic=True)
        settings, workers = self.settings, self.workers
        batches = shuffled(sum(self.sizes), settings.batch, self.seed, self.done)
        last_save = clock = time.monotonic()
        columns = (*Progress.get_default_columns(), TextColumn("{task.fields[info]}"))
        with Progress(*columns, disable=quiet or workers.rank > 0) as progress:
            bar = progress.add_task(
                f"training {self.model}", total=settings.steps, completed=self.done, info=""
            )
            try:
                while True:
                    if self._due():
                        error = self._validate().validation_force_rmse_ev_per_angstrom
                        progress.update(bar, info=f"validation force RMSE {error:.4f} eV/A")
                    if self.done >= settings.steps or self._stalled():
                        break
                    self._step(network, next(batches))
                    now = time.monotonic()
                    self.elapsed, clock = self.elapsed + now - clock, now
                    if now - last_save > STATE_EVERY_S:
                        self._save()
                        last_save = now
                    progress.update(bar, completed=self.done)
            finally:  # also when interrupted
                if not self.updating:
                    self._save()
        return self._finish()

    def _due(self) -> bool:
        """Return whether a validation is due, also if an interrupted run had begun it."""
        last = self.curve[-1].step if self.curve else 0
        ended = self.done >= self.settings.steps
        return self.done > last and (ended or self.done % VALIDATE_EVERY == 0)

    def _step(self, network: Network, chosen: list[int]) -> None:
        share = chosen[self.workers.rank :: self.workers.size]
        whole = self._batch(chosen)
        atoms = len(whole.species)
        self.student.zero_grad()
        error = 0.0
        if share:  # a batch may be smaller than the number of processes
            part = whole if len(share) == len(chosen) else self._batch(share)
            if self.settings.displaced_weight:
                part = join_batches([part, *self._displaced(chosen, share)])
            loss, squared = loss_of(
                network, part.to(self.workers.device), self.settings, len(chosen), atoms
            )
            loss.backward()
            error = float(squared) / (3 * int(part.atoms[: len(share)].sum()))
        self.workers.sum_gradients(self.student)
        norm = torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.settings.clip)
        self.updating = True
        if not (math.isfinite(error) and math.isfinite(float(norm))):
            raise InputError(
                f"the loss is not finite any more at step {self.done + 1}; lower training."
                f"{self.model}.learning_rate, or check the data with `mlff-student distill check`"
            )
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
        self.average.update_parameters(self.student)
        self.done += 1
        self.running = 0.98 * self.running + 0.02 * error if self.running else error
        self.updating = False

    def _batch(self, chosen: list[int]) -> Batch:
        """Join the chosen frames, which are counted over all datasets."""
        ends = list(accumulate(self.sizes))
        parts = [
            make_batch(graphs, members)
            for graphs, end, size in zip(self.sets, ends, self.sizes, strict=True)
            if (members := [k - end + size for k in chosen if end - size <= k < end])
        ]
        return join_batches(parts)

    def _displaced(self, chosen: list[int], share: list[int]) -> list[Batch]:
        """Displace one in four of the frames of a step, if it is in the share of this process."""
        members = [k for k in chosen[::DISPLACED_EVERY] if k in share and k < self.sizes[0]]
        seeds = [[self.seed, self.done, k] for k in members]
        return displaced_batch(self.sets[0], members, seeds, self.student.cutoff)

    def _validate(self) -> CurvePoint:
        average = cast(Student, self.average.module)
        errors = validation_errors(average.network, self.validation, self.workers.device)
        errors = Errors(*self.workers.broadcast_from_rank0(errors))
        best = min(
            (point.validation_force_rmse_ev_per_angstrom for point in self.curve), default=math.inf
        )
        if errors.force_rmse_ev_per_angstrom < best:
            weights = self.average.module.state_dict()
            self.best = {name: value.clone() for name, value in weights.items()}
        rate = self.schedules[0].get_last_lr()[0]
        point = CurvePoint(self.done, self.elapsed, rate, math.sqrt(self.running), *errors)
        self.curve.append(point)
        if self.workers.rank == 0:
            write_curve(self.curve, self.folder / "metrics.csv")
            _write_tensorboard(point, self.folder / "tensorboard")
        return point

    def _stalled(self) -> bool:
        """Return whether the last `patience` validations were no better than one before."""
        values = [point.validation_force_rmse_ev_per_angstrom for point in self.curve]
        patience = self.settings.patience
        return bool(patience and values) and len(values) - 1 - int(np.argmin(values)) >= patience

    def _finish(self) -> dict[str, Any]:
        checkpoint = {
            "config": PRESETS[self.model].as_dict(),
            "weights": {name: value.cpu() for name, value in self.best.items()},
            "training": {
                "steps": self.done,
                "seconds": round(self.elapsed),
                "processes": self.workers.size,
                "device": self.workers.device.type,
                "history": self.history,
            },
        }
        result = self.folder / "model.pt"
        if result.exists():  # it is not written again, because its bytes could differ
            written = torch.load(result, weights_only=True)
            if written["training"] == checkpoint["training"]:
                return written
        if self.workers.rank == 0:
            write_curve(self.curve, self.folder / "metrics.csv")
            with atomic_write(result) as temporary:
                torch.save(checkpoint, temporary)
        return checkpoint


def _read_nonempty(dataset: Path, split: str, structures: int = 0, seed: int = 0) -> LabelledFrames:
    frames = read_frames(dataset, split, structures=structures, seed=seed)
    if not len(frames.energies):
        raise InputError(f"{dataset} has no {split} frames; see structures.held_out of the recipe")
    return frames


def write_curve(curve: list[CurvePoint], path: Path) -> None:
    """Write metrics.csv anew, so that a resumed training does not repeat rows.

    Parameters
    ----------
    curve : list of CurvePoint
        All rows.
    path : Path
        CSV file.
    """
    with atomic_write(path) as temporary, open(temporary, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(CurvePoint._fields)
        writer.writerows([point.step, *(f"{value:.6g}" for value in point[1:])] for point in curve)


def _write_tensorboard(point: CurvePoint, folder: Path) -> None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # metrics.csv has the same numbers
        return
    with SummaryWriter(str(folder), purge_step=point.step) as board:
        for name, value in point._asdict().items():
            if name != "step":
                board.add_scalar(name, value, point.step)
