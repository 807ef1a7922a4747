"""Relabelling: a larger student labels many more frames for a smaller student."""

from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from mlff_student.archive.registry import load_student
from mlff_student.core.errors import InputError
from mlff_student.core.files import sha256
from mlff_student.distill.dataset import (
    LabelledFrames,
    LabelledStructure,
    dataset_sha256,
    open_dataset,
    read_frames,
)
from mlff_student.distill.graphs import predict_frames

RATTLES = (0.01, 0.1)  # angstrom, smallest and largest standard deviation of a displacement


def relabel(
    larger: Path, dataset: Path, output: Path, *, copies: int, largest_force: float, seed: int
) -> int:
    """Label rattled copies of a dataset's training frames by a student.

    Parameters
    ----------
    larger : Path
        Checkpoint of the student that labels.
    dataset : Path
        HDF5 file whose training frames are the starting points.
    output : Path
        HDF5 file to write, for `train(extra=...)`; a killed run resumes.
    copies : int
        Number of copies of each frame. The standard deviation of the displacements of a copy is
        drawn between 0.01 and 0.1 angstrom, evenly in its logarithm.
    largest_force : float
        Largest force component of a copy that is kept, eV/angstrom.
    seed : int
        Random seed of the displacements.

    Returns
    -------
    int
        Number of frames in the output.

    Raises
    ------
    InputError
        The dataset has no training frames, or the output was made by another student or from
        another dataset.
    ArchiveError
        `larger` is no checkpoint.
    """
    student, _ = load_student(larger)
    frames = read_frames(dataset, "train")
    if not len(frames.energies):
        raise InputError(f"{dataset} has no training frames; see structures.held_out of the recipe")
    first = np.searchsorted(frames.molecule.numpy(), np.arange(len(frames.names) + 1))
    attributes = {
        "teacher": sha256(larger),
        "seed": seed,
        "source": dataset_sha256(dataset),
        "copies": copies,
        "largest_force": largest_force,
    }
    with open_dataset(output, **attributes) as writer:
        for k in track(range(len(frames.names)), description="labelling by the student"):
            if frames.names[k] not in writer.names and first[k] < first[k + 1]:
                generator = torch.Generator().manual_seed(seed + k)
                rattled = _rattled(frames, int(first[k]), int(first[k + 1]), copies, generator)
                energies, forces, _ = predict_frames(student, rattled)
                writer.append(_labelled(rattled, energies, forces, largest_force), k)
        return writer.frames


def _rattled(
    frames: LabelledFrames, first: int, last: int, copies: int, generator: torch.Generator
) -> LabelledFrames:
    """Return displaced copies of the frames first ... last - 1, which are of one structure."""
    structure = int(frames.molecule[first])
    originals = torch.arange(first, last).repeat_interleave(copies)
    atoms = int(frames.start[first + 1] - frames.start[first])
    rows = (frames.start[originals][:, None] + torch.arange(atoms)).flatten()
    narrow, wide = np.log(RATTLES)
    drawn = torch.rand(len(originals), generator=generator)
    widths = torch.exp(narrow + (wide - narrow) * drawn).repeat_interleave(atoms)
    displacements = torch.randn((len(rows), 3), generator=generator) * widths[:, None]
    return LabelledFrames(
        names=[frames.names[structure]],
        identities=[frames.identities[structure]],
        kinds=[frames.kinds[structure]],
        molecule=torch.zeros_like(originals),
        methods=["relabelled"] * len(originals),
        start=torch.arange(len(originals) + 1) * atoms,
        atomic_numbers=frames.atomic_numbers[rows],
        positions=frames.positions[rows] + displacements,
        forces=torch.zeros(len(rows), 3),
        energies=torch.zeros(len(originals), dtype=torch.float64),
        temperatures=torch.full((len(originals),), torch.nan),
        cells=frames.cells[originals],
        pbc=frames.pbc[originals],
        stresses=torch.full((len(originals), 6), torch.nan),
    )


def _labelled(
    frames: LabelledFrames, energies: torch.Tensor, forces: torch.Tensor, largest_force: float
) -> LabelledStructure:
    shape = (len(energies), -1, 3)
    kept = (forces.reshape(shape).abs().amax((1, 2)) <= largest_force).numpy()

    def per_atom(values: torch.Tensor) -> np.ndarray:
        return values.reshape(shape).float().numpy()[kept]

    return LabelledStructure(
        name=frames.names[0],
        identity=frames.identities[0],
        kind=frames.kinds[0],
        split="train",
        attempted=len(kept),
        failure="" if kept.all() else f"force above {largest_force:g} eV/angstrom",
        atomic_numbers=frames.atomic_numbers[: int(frames.start[1])].numpy().astype(np.uint8),
        methods=[method for method, keep in zip(frames.methods, kept, strict=True) if keep],
        positions=per_atom(frames.positions),
        forces=per_atom(forces),
        energies=energies.numpy()[kept],
        temperatures=frames.temperatures.numpy()[kept],
        cells=frames.cells.numpy()[kept],
        pbc=frames.pbc.numpy()[kept],
        stresses=frames.stresses.numpy()[kept],
    )
