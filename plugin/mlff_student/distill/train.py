"""Training of one student on energies, forces and virials.

This module needs torch, numpy, h5py, yaml and rich only. Under `torchrun` each process computes its
share of each batch, and the sum of the gradients is the same as with one process.
"""

import csv
import ctypes
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from mlff_student.archive.registry import load_student
from mlff_student.core.errors import InputError
from mlff_student.core.files import atomic_write
from mlff_student.distill.dataset import LabelledFrames, dataset_sha256, read_frames
from mlff_student.distill.graphs import (
    Graphs,
    Network,
    build_graphs,
    fit_references,
    join_graphs,
    make_batch,
    predict,
    predict_frames,
    relative_to_mean,
)
from mlff_student.distill.molecule_energies import molecule_energies
from mlff_student.distill.recipe import Recipe
from mlff_student.distill.step import Step
from mlff_student.model.student import PRESETS, Student

STATE_EVERY_S = 60.0
VALIDATE_EVERY = 1000  # steps
STATE_KEYS = {
    *("model", "student", "average", "optimizers", "step", "elapsed_s", "running", "curve"),
    *("best", "history", "molecule_energies"),
}
CHECK_EVERY = {"cpu": 1, "cuda": 100}  # steps; a GPU is not asked after each step


class Errors(NamedTuple):
    """Errors of a network over a set of frames.

    Attributes
    ----------
    energy_rmse_ev_per_atom : float
        Root mean square error of the energy per atom, eV/atom. With `free_molecule_energies`, the
        mean error of the frames of each structure is subtracted before.
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

    def sum_over_processes(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.size > 1:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            dist.all_reduce(flat)
            parts = flat.split([tensor.numel() for tensor in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

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


@contextmanager
def progress_bar(title: str, quiet: bool) -> Iterator[Callable[[float, str], None]]:
    """Show the progress of a long computation by rich, or line by line where that is missing.

    Parameters
    ----------
    title : str
        What is computed.
    quiet : bool
        Whether to show nothing.

    Yields
    ------
    callable
        Takes the part that is done, from 0 to 1, and a text, which stays if it is empty.
    """
    try:
        from rich.progress import Progress, TextColumn
    except ImportError:

        def write(done: float, text: str) -> None:
            if text and not quiet:
                print(f"{title}: {done:.0%}, {text}", flush=True)

        yield write
        return
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[info]}"))
    with Progress(*columns, disable=quiet) as progress:
        bar = progress.add_task(title, total=1000, info="")

        def show(done: float, text: str) -> None:
            progress.update(bar, completed=int(1000 * done))
            if text:
                progress.update(bar, info=text)

        yield show


def validation_errors(
    network: Network,
    graphs: Graphs,
    chosen: Sequence[int] | None = None,
    batch: int = 32,
    relative: bool = False,
) -> Errors:
    """Measure the errors of a network over frames, on their device.

    Parameters
    ----------
    network : callable
        `Student.network`.
    graphs : Graphs
        The frames.
    chosen : sequence of int, optional
        Frames to use; all of them if not given.
    batch : int
        Number of frames that are computed at once.
    relative : bool
        Whether the mean error of the frames of each structure is subtracted from energies.
    """
    chosen = range(len(graphs.energies)) if chosen is None else chosen
    energy, owner, atoms, force, label = [], [], [], [], []
    with torch.no_grad():
        for first in range(0, len(chosen), batch):
            part = make_batch(graphs, chosen[first : first + batch])
            predicted = predict(network, part)
            energy.append(predicted.energies - part.energies)
            owner.append(part.structures)
            atoms.append(part.atoms)
            force.append((predicted.forces - part.forces).flatten())
            label.append(part.forces.flatten())
    energy_error = torch.cat(energy)
    if relative:
        energy_error = relative_to_mean(energy_error, torch.cat(owner))
    energy_error = energy_error / torch.cat(atoms)
    force_error, target = torch.cat(force), torch.cat(label)
    return Errors(
        energy_rmse_ev_per_atom=float(energy_error.square().mean().sqrt()),
        force_rmse_ev_per_angstrom=float(force_error.square().mean().sqrt()),
        force_mae_ev_per_angstrom=float(force_error.abs().mean()),
        force_r2=float(1.0 - force_error.square().sum() / (target - target.mean()).square().sum()),
    )


def shuffled(
    edges: Sequence[int],
    batch: int,
    limit: int,
    seed: int,
    step: int,
    structures: np.ndarray | None = None,
) -> Iterator[list[int]]:
    """Draw batches from step `step` on; the draw is the same if training was interrupted.

    Parameters
    ----------
    edges : sequence of int
        Number of edges of each frame.
    batch : int
        Largest number of frames in a batch.
    limit : int
        Largest number of edges in a batch with more than one frame; 0: no limit.
    seed : int
        Random seed.
    step : int
        Number of steps that are done.
    structures : ndarray, optional
        (T,) number of the structure of each frame; with it, frames are drawn in pairs of one
        structure. The last frame of an odd number is drawn alone.

    Yields
    ------
    list of int
        Frames of the next batch; in an epoch each frame occurs at most once.
    """
    for epoch in count():
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(edges))
        drawn = order[:, None].tolist() if structures is None else _pairs(order, structures, rng)
        batches: list[list[int]] = []
        total = 0
        for group in drawn:
            size = sum(edges[k] for k in group)
            full = not batches or len(batches[-1]) + len(group) > batch
            if full or (limit and total + size > limit):
                batches.append([])
                total = 0
            batches[-1] += group
            total += size
        if len(batches) > 1 and len(batches[-1]) < batch:
            del batches[-1]  # a smaller batch has noisier gradients
        yield from batches[step:]
        step = max(0, step - len(batches))


def _pairs(order: np.ndarray, structures: np.ndarray, rng: np.random.Generator) -> list[list[int]]:
    """Return frames in pairs of one structure, in random order; `order` says who is paired."""
    grouped = order[np.argsort(structures[order], kind="stable")]
    owner = structures[grouped]
    first = np.searchsorted(owner, owner)  # place of the first frame of the structure
    starts = np.flatnonzero((np.arange(len(grouped)) - first) % 2 == 0)
    pairs = [part.tolist() for part in np.split(grouped, starts[1:])]
    return [pairs[k] for k in rng.permutation(len(pairs))]


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
    minutes: float = 0.0,
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
    minutes : float
        Time of training, minute, into which the schedule of the learning rate is fitted in place of
        the number of steps of the recipe; 0: the steps of the recipe. The time of earlier runs in
        the same folder counts; compiling and validation do too.
    quiet : bool
        Whether to show no progress bar.

    Returns
    -------
    dict
        The checkpoint that was written to model.pt, with the moving average of the weights at the
        best validation: that of the smallest squared error of forces plus `energy_weight` times
        that of energies; see `Errors`.

    Raises
    ------
    InputError
        There is no such preset, a split is empty, the state or the initial checkpoint is of another
        preset, the loss is not finite any more, or the GPU fails; the last saved state then stays.
    ArchiveError
        `initial` is no checkpoint.
    MissingDependencyError
        Torch is older than 2.9.
    """
    if model not in recipe.training or model not in PRESETS:
        raise InputError(f"no preset {model!r} in the recipe; it has {', '.join(recipe.training)}")
    with started_workers() as workers:
        training = _Training(
            recipe, model, dataset, folder, workers, extra, initial, structures, minutes, compiled
        )
        return training.run(quiet)


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
        structures: int = 0,
        minutes: float = 0.0,
        compiled: bool = False,
    ) -> None:
        keep_freed_memory()
        self.model, self.folder, self.workers = model, folder, workers
        self.settings, self.seed = recipe.training[model], recipe.seed
        self.time_s = 60.0 * minutes
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(recipe.seed)
        self.student = Student(PRESETS[model]).to(workers.device)
        self.student.limits[1] = -math.inf  # a bounded energy has no gradient below its bound
        self.average = deepcopy(self.student)
        self.done, self.elapsed = 0, 0.0
        self.curve: list[CurvePoint] = []
        self.best: dict[str, Tensor] = {}
        self.history: list[dict[str, Any]] = []
        frames = _read_nonempty(dataset, "train", structures, recipe.seed)
        state = self._read_state() if (folder / "state.pt").exists() else None
        if state:
            self.student.load_state_dict(state["student"])
            self.average.load_state_dict(state["average"])
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
                references = start.references.clone()
                explained = predict_frames(start, frames).energies
                fit_references(frames._replace(energies=frames.energies - explained), start)
                start.references += references
                self.student.load_state_dict(start.state_dict())
            else:
                fit_references(frames, self.student)
            self.average.load_state_dict(self.student.state_dict())
        on_cpu = Student(PRESETS[model])  # only its references and repulsion are used
        on_cpu.references.copy_(self.student.references)
        added = [_read_nonempty(path, "train") for path in extra]
        graphs = [build_graphs(labelled, on_cpu) for labelled in (frames, *added)]
        sizes = [len(part.energies) for part in graphs]
        if workers.broadcast_from_rank0(sizes) != sizes:
            raise InputError(f"{dataset} grew while the processes read it; start them again")
        self.graphs = join_graphs(graphs).to(workers.device)
        self.step = Step(
            self.student,
            self.average,
            torch.compile(self.student.network, dynamic=True) if compiled else self.student.network,
            self.graphs,
            self.settings,
            rank=workers.rank,
            size=workers.size,
            sum_over_processes=workers.sum_over_processes,
            seed=self.seed,
            molecules=molecule_energies((frames, *added), workers.device)
            if self.settings.free_molecule_energies
            else None,
        )
        if state:
            self._restore(state)
        self.validation = build_graphs(_read_nonempty(dataset, "validation"), on_cpu).to(
            workers.device
        )
        data: dict[str, Any] = {
            "dataset_sha256": [dataset_sha256(path) for path in (dataset, *extra)],
            "settings": asdict(self.settings),
        }
        known = self.history and data.items() <= self.history[-1].items()
        if not known and self._progress() < 1.0:
            data |= {"from_step": self.done, "frames": sum(sizes)}
            self.history.append(data | {"molecules": len(set(frames.identities))})

    def _progress(self) -> float:
        """Return the part of the training that is done, from 0 to 1."""
        if self.time_s:
            (elapsed,) = self.workers.broadcast_from_rank0([self.elapsed])
            return min(1.0, elapsed / self.time_s)
        return min(1.0, self.done / self.settings.steps)

    def _learning_rate(self) -> float:
        """Return the learning rate of the next step."""
        warm = min(1.0, (self.done + 1) / max(1, self.settings.warmup))
        cosine = 0.5 + 0.5 * math.cos(math.pi * self._progress())
        return self.settings.learning_rate * warm * cosine

    def _energy_ramp(self) -> float:
        """Return the factor of the weights of the energies in the next step."""
        return self.settings.energy_ramp ** (1.0 - self._progress())

    def _read_state(self) -> dict[str, Any]:
        path = self.folder / "state.pt"
        state = read_checkpoint_file(path, self.workers.device)
        if set(state) != STATE_KEYS:
            raise InputError(
                f"{path} is damaged or of another version; move it away to begin the training anew"
            )
        if state["model"] != self.model:
            raise InputError(
                f"{self.folder} holds the state of {state['model']}, not {self.model}; "
                "give another folder"
            )
        return state

    def _restore(self, state: dict[str, Any]) -> None:
        self.step.optimizers.load_state_dict(state["optimizers"])
        self.step.running.fill_(state["running"])
        if self.step.molecules:
            self.step.molecules.load_state_dict(state["molecule_energies"])
        self.done, self.elapsed = state["step"], state["elapsed_s"]
        self.curve = [CurvePoint(*row) for row in state["curve"]]
        self.best, self.history = state["best"], state["history"]

    def _save(self) -> None:
        self._check()
        if self.workers.rank == 0:
            with atomic_write(self.folder / "state.pt") as temporary:
                torch.save(
                    {
                        "model": self.model,
                        "student": self.student.state_dict(),
                        "average": self.average.state_dict(),
                        "optimizers": self.step.optimizers.state_dict(),
                        "step": self.done,
                        "elapsed_s": self.elapsed,
                        "running": float(self.step.running),
                        "curve": [tuple(point) for point in self.curve],
                        "best": self.best,
                        "history": self.history,
                        "molecule_energies": self.step.molecules.state_dict()
                        if self.step.molecules
                        else {},
                    },
                    temporary,
                )

    def run(self, quiet: bool) -> dict[str, Any]:
        settings, workers = self.settings, self.workers
        edges = self.graphs.edge_counts.tolist()
        structures = self.graphs.structures.cpu().numpy() if settings.difference_weight else None
        batches = shuffled(edges, settings.batch, settings.edges, self.seed, self.done, structures)
        last_save = clock = time.monotonic()
        with progress_bar(f"training {self.model}", quiet or workers.rank > 0) as show:
            try:
                while True:
                    if self._due():
                        error = self._validate().validation_force_rmse_ev_per_angstrom
                        show(self._progress(), f"validation force RMSE {error:.4f} eV/A")
                    if self._progress() >= 1.0 or self._stalled():
                        break
                    self._step(next(batches))
                    now = time.monotonic()
                    self.elapsed, clock = self.elapsed + now - clock, now
                    if now - last_save > STATE_EVERY_S:
                        self._save()
                        last_save = now
                    show(self._progress(), "")
            except (torch.AcceleratorError, torch.OutOfMemoryError) as error:
                self.step.updating = True  # the weights may be lost; the state on the disk stays
                reason = str(error).splitlines()[0]
                raise InputError(
                    f"the GPU failed in step {self.done + 1}: {reason}; run the same command "
                    f"again, which resumes from {self.folder / 'state.pt'}, or lower "
                    f"training.{self.model}.edges if the memory is too small"
                ) from error
            finally:  # also when interrupted
                if not self.step.updating:
                    self._save()
        return self._finish()

    def _due(self) -> bool:
        """Return whether a validation is due, also if an interrupted run had begun it."""
        last = self.curve[-1].step if self.curve else 0
        ended = self._progress() >= 1.0
        return self.done > last and (ended or self.done % VALIDATE_EVERY == 0)

    def _step(self, chosen: list[int]) -> None:
        self.step(chosen, self.done, self._learning_rate(), self._energy_ramp())
        self.done += 1
        if self.done % CHECK_EVERY[self.workers.device.type] == 0:
            self._check()
        self.step.updating = False

    def _check(self) -> None:
        """Stop if a step has failed; the state on the disk is then from before it."""
        if failed := self.step.failed_step():
            self.step.updating = True  # so that the state on the disk stays
            raise InputError(
                f"the loss is not finite any more at step {failed}; lower training."
                f"{self.model}.learning_rate, or check the data with `mlff-student distill check`"
            )

    def _validate(self) -> CurvePoint:
        errors = validation_errors(
            self.average.network, self.validation, relative=self.settings.free_molecule_energies
        )
        errors = Errors(*self.workers.broadcast_from_rank0(errors))
        trained = math.sqrt(float(self.step.running))
        point = CurvePoint(self.done, self.elapsed, self._learning_rate(), trained, *errors)
        if self._score(point) < min(map(self._score, self.curve), default=math.inf):
            weights = self.average.state_dict()
            self.best = {name: value.clone() for name, value in weights.items()}
        self.curve.append(point)
        if self.workers.rank == 0:
            write_curve(self.curve, self.folder / "metrics.csv")
            _write_tensorboard(point, self.folder / "tensorboard")
        return point

    def _score(self, point: CurvePoint) -> float:
        """Return the loss of a validation with the final weight of the energies."""
        energy = self.settings.energy_weight * point.validation_energy_rmse_ev_per_atom**2
        return point.validation_force_rmse_ev_per_angstrom**2 + energy

    def _stalled(self) -> bool:
        """Return whether the last `patience` validations were no better than one before."""
        values = [*map(self._score, self.curve)]
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
            written = read_checkpoint_file(result)
            if written.get("training") == checkpoint["training"]:
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


def read_checkpoint_file(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a file of tensors and plain values; an empty dictionary if it is damaged.

    Parameters
    ----------
    path : Path
        File that `torch.save` wrote.
    device : torch.device or str
        Device of the tensors.
    """
    try:
        content = torch.load(path, weights_only=True, map_location=device)
    except Exception:  # torch raises errors of any kind for a damaged file
        return {}
    return content if isinstance(content, dict) else {}


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
