"""One step of the training: the loss of a batch, its gradient, and the update of the weights.

On a GPU everything that a step needs is in its memory, and a step is two CUDA graphs: the batch
with forward and backward pass, and the update. An eager step of a few hundred kernels takes ten
times as long to launch as to compute. On a CPU the same functions run as they are.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mlff_student.distill.graphs import (
    LARGEST_DISPLACED,
    Batch,
    Displacements,
    Graphs,
    Network,
    Shape,
    displaced_batch,
    draw_displacements,
    join_batches,
    make_batch,
    predict,
)
from mlff_student.distill.molecule_energies import MoleculeEnergies
from mlff_student.distill.muon import Muon
from mlff_student.distill.recipe import TrainingRecipe
from mlff_student.model.student import Student

WARM_UP_STEPS = 3  # steps before a CUDA graph is recorded; they compile and allocate
DISPLACED_EVERY = 4  # one of so many frames is also shown displaced
SPARE = 1.1  # factor of the largest batch so far when a graph is recorded again


class Loss(NamedTuple):
    """The loss of one process's share of a batch.

    Attributes
    ----------
    total : Tensor
        () the loss.
    squared : Tensor
        () sum of the squared errors of the force components, (eV/angstrom)^2.
    components : Tensor
        () number of these components.
    energy_errors : Tensor
        (B,) predicted energies minus the energies of the batch, eV.
    """

    total: Tensor
    squared: Tensor
    components: Tensor
    energy_errors: Tensor


def loss_of(
    network: Network,
    batch: Batch,
    settings: TrainingRecipe,
    frames: int | Tensor,
    atoms: int | Tensor,
    ramp: float | Tensor,
) -> Loss:
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
    frames, atoms : int or Tensor
        Numbers of labelled frames and of their atoms in the whole batch, by which the terms are
        divided.
    ramp : float or Tensor
        Factor of the weights of energies, virials and energy differences at this step.
    """
    energies, forces, virials = predict(network, batch)
    count = batch.atoms.clamp(min=1)
    labelled = (batch.atoms > 0) & ~batch.displaced
    excess_energy = (energies - batch.energies) / count
    energy = torch.where(labelled, excess_energy, 0.0).square().sum() / frames
    # Padding atoms are in a frame of their own, without a label.
    of_atom = torch.cat([labelled, labelled.new_zeros(1)])[batch.frame, None]  # (N, 1)
    residual = torch.where(of_atom, forces - batch.forces, 0.0)
    force = residual.square()
    if settings.huber:
        excess = (residual.abs() - settings.huber).clamp(min=0.0)
        force = force - excess.square()
    extra = settings.energy_weight * energy
    if settings.difference_weight:
        error = energies - batch.energies
        pair = labelled[1:] & labelled[:-1] & (batch.structures[1:] == batch.structures[:-1])
        change = (error[1:] - error[:-1]).square() / count[1:]
        difference = torch.where(pair, change, 0.0).sum() / frames
        extra = extra + settings.difference_weight * difference
    with_virial = batch.virials.isfinite() & labelled[:, None, None]
    virial = torch.where(with_virial, virials - batch.virials, 0.0) / count[:, None, None]
    extra = extra + settings.virial_weight * virial.square().sum() / (9 * frames)
    total = force.sum() / (3 * atoms) + ramp * extra
    below = torch.where(batch.displaced, -excess_energy, 0.0).clamp(min=0.0)
    total = total + settings.displaced_weight * torch.log1p(below).sum() / frames
    squared = residual.detach().square().sum()
    return Loss(total, squared, 3 * of_atom.sum(), (energies - batch.energies).detach())


class Optimizers:
    """Muon for the matrices of the layers, AdamW for the other weights.

    The steps of Muon are scaled to those of AdamW, so that both use one learning rate. With 4,000
    steps of 16 frames, tiny reached a validation force RMSE of 0.237 eV/angstrom, and 0.324 with
    AdamW alone.

    Both act with the learning rate 1 on changes that start from zero, and `step` adds the changes
    times the learning rate to the weights. So the learning rate may be a tensor, as a CUDA graph
    needs.

    Parameters
    ----------
    student : Student
        Student to train.
    """

    def __init__(self, student: Student) -> None:
        self.weights = list(student.parameters())
        self.changes = [torch.nn.Parameter(torch.zeros_like(weight)) for weight in self.weights]
        in_layers = {id(weight) for weight in student.blocks.parameters() if weight.ndim == 2}
        pairs = list(zip(self.weights, self.changes, strict=True))
        layers = [change for weight, change in pairs if id(weight) in in_layers]
        others = [change for weight, change in pairs if id(weight) not in in_layers]
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(layers, lr=1.0),
            torch.optim.AdamW(others, lr=1.0, weight_decay=0.0, capturable=others[0].is_cuda),
        ]

    @torch.no_grad()
    def step(self, rate: Tensor) -> None:
        """Update the weights by their gradients.

        Parameters
        ----------
        rate : Tensor
            () learning rate.
        """
        for weight, change in zip(self.weights, self.changes, strict=True):
            change.grad = weight.grad
        for optimizer in self.optimizers:
            optimizer.step()
        for weight, change in zip(self.weights, self.changes, strict=True):
            weight.add_(rate * change)
            change.zero_()

    def state_dict(self) -> list[Any]:
        """Return the states of both optimisers."""
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, states: list[Any]) -> None:
        """Restore the states that `state_dict` returned."""
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)


class Draw(NamedTuple):
    """All that a step needs to know, as tensors.

    Attributes
    ----------
    chosen : Tensor
        (B,) int64, frames of this process's share; -1 for padding.
    displaced : Displacements
        Displaced copies of some of them.
    numbers : Tensor
        (5,) float64: the number of the step, from 0; the numbers of frames and atoms of the whole
        batch; the learning rate; and the factor of the
        weights of the energies.
    """

    chosen: Tensor
    displaced: Displacements
    numbers: Tensor

    def tensors(self) -> list[Tensor]:
        """Return all tensors in a fixed order."""
        return [self.chosen, *self.displaced, self.numbers]

    def to(self, device: torch.device) -> "Draw":
        """Return the same draw on another device."""
        moved = [tensor.to(device) for tensor in self.tensors()]
        return Draw(moved[0], Displacements(*moved[1:-1]), moved[-1])


class Step:
    """Trains a student by one batch in each call.

    Parameters
    ----------
    student, average : Student
        Student to train, and the moving average of its weights.
    network : callable
        `student.network`, perhaps compiled.
    graphs : Graphs
        Training frames, on the device of the student.
    settings : TrainingRecipe
        How the preset is trained.
    rank, size : int
        Number of this process and number of all processes.
    sum_over_processes : callable
        Adds tensors of all processes, in place.
    seed : int
        Random seed of the displacements.
    molecules : MoleculeEnergies, optional
        Constants of the energies of the molecules, which are fitted. None: there are none.

    Attributes
    ----------
    optimizers : Optimizers
        The optimisers.
    running : Tensor
        () squared error of the force components, mean over about 50 steps, (eV/angstrom)^2.
    updating : bool
        Whether weights and optimisers may be in the middle of an update. The caller sets it to
        False when it has counted the step.
    """

    def __init__(
        self,
        student: Student,
        average: Student,
        network: Network,
        graphs: Graphs,
        settings: TrainingRecipe,
        *,
        rank: int,
        size: int,
        sum_over_processes: Callable[[list[Tensor]], None],
        seed: int,
        molecules: MoleculeEnergies | None = None,
    ) -> None:
        self.student, self.network = student, network
        self.graphs, self.settings, self.seed = graphs, settings, seed
        self.rank, self.size, self.sum_over_processes = rank, size, sum_over_processes
        self.molecules = molecules
        self.updating = False
        self.optimizers = Optimizers(student)
        self._averages = list(average.parameters())
        self.device = graphs.energies.device
        self.running = torch.zeros((), dtype=torch.float64, device=self.device)
        self._failed = torch.full((), -1.0, dtype=torch.float64, device=self.device)
        self._error = torch.zeros((), dtype=torch.float64, device=self.device)
        self._shape: Shape | None = None  # of all batches, on a GPU
        self._warm = 0  # steps since the shape is known
        self._static: Draw | None = None
        self._recorded: list[torch.cuda.CUDAGraph] = []

    def __call__(self, chosen: list[int], number: int, learning_rate: float, ramp: float) -> None:
        """Train by one batch.

        Parameters
        ----------
        chosen : list of int
            Frames of the whole batch.
        number : int
            Number of steps that are done.
        learning_rate : float
            Learning rate of this step.
        ramp : float
            Factor of the weights of energies, virials and energy differences.
        """
        share = self._share(chosen)
        if self.device.type == "cuda":
            self._make_room(share)
        draw = self._draw(chosen, share, number, learning_rate, ramp)
        if self.device.type == "cuda":
            self._on_cuda(draw, first=number == 0)
            return
        self._gradient(draw)
        self._sum_gradients()
        self.updating = True
        self._update(draw, first=number == 0)

    def _share(self, chosen: list[int]) -> list[int]:
        """Return the frames of this process; frames of one structure stay together."""
        if self.size == 1 or not self.settings.difference_weight:
            return chosen[self.rank :: self.size]
        owners = self.graphs.structures[chosen].tolist()  # waits for a GPU
        ranks = {owner: n % self.size for n, owner in enumerate(dict.fromkeys(owners))}
        return [k for k, owner in zip(chosen, owners, strict=True) if ranks[owner] == self.rank]

    def failed_step(self) -> int | None:
        """Return the number, from 1, of the first step whose loss or gradient was not finite."""
        failed = int(self._failed)
        return failed + 1 if failed >= 0 else None

    def _draw(
        self,
        chosen: list[int],
        share: list[int],
        number: int,
        learning_rate: float,
        ramp: float,
    ) -> Draw:
        own = torch.full((self._shape.frames if self._shape else len(share),), -1)
        own[: len(share)] = torch.tensor(share, dtype=torch.int64)
        members = set(share) if self.settings.displaced_weight else set()
        displaced = [k for k in chosen[::DISPLACED_EVERY] if k in members]
        atoms = int(self.graphs.atom_counts[chosen].sum())
        return Draw(
            own,
            draw_displacements(
                self.graphs, displaced, [[self.seed, number, k] for k in displaced], self._shape
            ),
            torch.tensor([number, len(chosen), atoms, learning_rate, ramp], dtype=torch.float64),
        )

    def _sum_gradients(self) -> None:
        """Add the gradients of all processes, which are parts of one mean over the whole batch.

        A process without a share of the batch has no gradients and adds zeros.
        """
        gradients = []
        for weight in self.optimizers.weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            gradients.append(weight.grad)
        if self.molecules:
            gradients.append(self.molecules.gradient)
        self.sum_over_processes(gradients)

    def _gradient(self, draw: Draw) -> None:
        """Compute the gradients of the weights."""
        for weight in self.optimizers.weights:
            if weight.grad is not None:
                weight.grad.zero_()
        if self.molecules:
            self.molecules.gradient.zero_()
        if not len(draw.chosen):  # a batch may be smaller than the number of processes
            return
        batch: Batch
        if self._shape:
            batch = make_batch(self.graphs, draw.chosen, self._shape)
        else:
            batch = make_batch(self.graphs, draw.chosen.tolist())
        if len(draw.displaced.chosen):
            moved = displaced_batch(
                self.graphs, draw.displaced, self.student.cutoff, padded=self._shape is not None
            )
            batch = join_batches([batch, moved])
        if self.molecules:
            shown = torch.cat([draw.chosen, draw.displaced.chosen])
            batch = batch._replace(energies=batch.energies + self.molecules.of(shown))
        _, frames, atoms, _, ramp = draw.numbers.float()
        loss = loss_of(self.network, batch, self.settings, frames, atoms, ramp)
        loss.total.backward()
        self._error.copy_(loss.squared / loss.components)
        if self.molecules:
            self.molecules.collect(draw.chosen, loss.energy_errors[: len(draw.chosen)])

    def _update(self, draw: Draw, first: bool) -> None:
        """Update weights, moving averages and `failed_step` by the gradients."""
        norm = torch.nn.utils.clip_grad_norm_(self.optimizers.weights, self.settings.clip)
        finite = self._error.isfinite() & norm.isfinite()
        self._failed.copy_(torch.where((self._failed < 0) & ~finite, draw.numbers[0], self._failed))
        # Once a step has failed nothing is changed any more.
        good = self._failed < 0
        for weight in self.optimizers.weights:
            if weight.grad is not None:
                weight.grad.copy_(torch.where(good, weight.grad, 0.0))
        self.optimizers.step(torch.where(good, draw.numbers[3], 0.0).float())
        if self.molecules:
            self.molecules.update(good)
        fraction = 1.0 if first else 1.0 - self.settings.ema
        with torch.no_grad():
            for mean, weight in zip(self._averages, self.optimizers.weights, strict=True):
                mean.lerp_(weight, fraction)
        new = torch.where(self.running > 0, 0.98 * self.running + 0.02 * self._error, self._error)
        self.running.copy_(torch.where(good, new, self.running))

    def _make_room(self, share: list[int]) -> None:
        """Enlarge the shape of all batches if the next does not fit; the graphs are then void."""
        counts = self.graphs.atom_counts[share], self.graphs.edge_counts[share]
        needed = len(share), int(counts[0].sum()) + 1, int(counts[1].sum())
        old = self._shape
        if old and all(n <= size for n, size in zip(needed, old[:3], strict=True)):
            return
        open_atoms = self.graphs.atom_counts[~self.graphs.periodic]
        open_atoms = open_atoms[open_atoms <= LARGEST_DISPLACED]
        per_share = -(-self.settings.batch // (DISPLACED_EVERY * self.size))
        self._shape = Shape(
            max(-(-self.settings.batch // self.size), needed[0]),
            *(
                max(math.ceil(SPARE * n), size)
                for n, size in zip(needed[1:], old[1:3] if old else (0, 0), strict=True)
            ),
            displaced=per_share if self.settings.displaced_weight and len(open_atoms) else 0,
            displaced_atoms=int(open_atoms.max(initial=0)),
        )
        self._warm, self._static, self._recorded = 0, None, []

    def _on_cuda(self, draw: Draw, first: bool) -> None:
        """Run a step eagerly at first, then record it, then repeat the record."""
        self.updating = True
        if self._static is None:
            self._static = draw.to(self.device)
        else:
            for mine, new in zip(self._static.tensors(), draw.tensors(), strict=True):
                mine.copy_(new.pin_memory(), non_blocking=True)
        if self._warm < WARM_UP_STEPS:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._gradient(self._static)
                self._sum_gradients()
                self._update(self._static, first)
            torch.cuda.current_stream().wait_stream(stream)
            self._warm += 1
            return
        if not self._recorded:
            static = self._static
            for work in (lambda: self._gradient(static), lambda: self._update(static, False)):
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    work()
                self._recorded.append(graph)
        gradient, update = self._recorded
        gradient.replay()
        self._sum_gradients()
        update.replay()
