"""Draw the small sample of held-out frames that tests use from the dataset of the students."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from mlff_student.cli import run
from mlff_student.core.errors import InputError
from mlff_student.distill.dataset import (
    LabelledFrames,
    LabelledStructure,
    open_dataset,
    read_dataset,
)

FRAMES = 4  # number of frames of each structure


def main(
    source: Annotated[Path, typer.Argument(help="Dataset (HDF5) of the students.")],
    output: Annotated[Path, typer.Argument(help="Dataset (HDF5) to write.")],
) -> None:
    """Draw the small sample of held-out frames that tests use from the dataset of the students.

    The sample has four frames of each structure of the test split, evenly spread over its frames.
    For molecules these are two frames of MD at 300 K and two at 600 K.

    Example: python benchmarks/draw_held_out.py runs/organic/dataset.h5 tests/data/held_out.h5
    """
    print(f"{draw(source, output)} frames in {output}")


def draw(source: Path, output: Path) -> int:
    """Write the sample, and return its number of frames.

    Raises
    ------
    InputError
        The output exists, or the source cannot be read.
    """
    if output.exists():
        raise InputError(f"{output} exists; remove it to draw it again")
    summary, frames = read_dataset(source)
    total = 0
    with open_dataset(output, **summary.attributes) as writer:
        for row, split in enumerate(summary.splits):
            rows = np.flatnonzero(frames.molecule.numpy() == row)
            if split == "test" and len(rows):
                spread = np.linspace(0, len(rows) - 1, min(FRAMES, len(rows))).round().astype(int)
                writer.append(structure_of(frames, row, rows[spread]))
                total += len(spread)
    return total


def structure_of(frames: LabelledFrames, row: int, chosen: np.ndarray) -> LabelledStructure:
    """Return chosen frames of a structure of the test split."""
    atoms = [np.arange(*frames.start[k : k + 2].tolist()) for k in chosen]
    return LabelledStructure(
        name=frames.names[row],
        identity=frames.identities[row],
        kind=frames.kinds[row],
        split="test",
        attempted=len(chosen),
        failure="",
        atomic_numbers=frames.atomic_numbers[atoms[0]].numpy().astype(np.uint8),
        methods=[frames.methods[k] for k in chosen],
        positions=frames.positions[np.stack(atoms)].numpy(),
        forces=frames.forces[np.stack(atoms)].numpy(),
        energies=frames.energies[chosen].numpy(),
        temperatures=frames.temperatures[chosen].numpy(),
        cells=frames.cells[chosen].numpy(),
        pbc=frames.pbc[chosen].numpy(),
        stresses=frames.stresses[chosen].numpy(),
    )


if __name__ == "__main__":
    run(lambda: typer.run(main))
