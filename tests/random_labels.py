"""Structures with random numbers for labels, and what a file of them must hold."""

from pathlib import Path

import numpy as np

from mlff_student.distill.dataset import (
    LabelledStructure,
    open_dataset,
    read_frames,
    read_summary,
)


def numbers(name: str, split: str = "train", frames: int = 3, atoms: int = 5) -> LabelledStructure:
    """A structure with random numbers as labels; equal names give equal numbers."""
    rng = np.random.default_rng(list(name.encode()))

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return LabelledStructure(
        name=name,
        identity=f"identity of {name}",
        kind="kind",
        split=split,
        attempted=frames + 1,
        failure=f"of {name}",
        atomic_numbers=rng.choice([1, 6, 8], atoms).astype(np.uint8),
        methods=["md"] * frames,
        positions=draw(frames, atoms, 3),
        forces=draw(frames, atoms, 3),
        energies=draw(frames).astype(np.float64) / 3.0,
        temperatures=draw(frames),
        cells=draw(frames, 3, 3),
        pbc=rng.random((frames, 3)) < 0.5,
        stresses=draw(frames, 6),
    )


def assert_holds(path: Path, structures: list[LabelledStructure]) -> None:
    """Assert that the file holds exactly these structures, in this order."""
    summary, frames = read_summary(path), read_frames(path)
    assert summary.names == frames.names == [structure.name for structure in structures]
    assert summary.splits == [structure.split for structure in structures]
    assert summary.failures == [structure.failure for structure in structures]
    assert summary.labelled.tolist() == [len(structure.energies) for structure in structures]
    assert summary.attempted.tolist() == [structure.attempted for structure in structures]
    assert frames.start[-1] == len(frames.positions)
    frame = 0
    for index, structure in enumerate(structures):
        for k in range(len(structure.energies)):
            rows = slice(int(frames.start[frame]), int(frames.start[frame + 1]))
            assert frames.molecule[frame] == index
            assert frames.methods[frame] == structure.methods[k]
            pairs = {
                "positions": frames.positions[rows],
                "forces": frames.forces[rows],
                "energies": frames.energies[frame],
                "temperatures": frames.temperatures[frame],
                "cells": frames.cells[frame],
                "pbc": frames.pbc[frame],
                "stresses": frames.stresses[frame],
            }
            for key, found in pairs.items():
                np.testing.assert_array_equal(found, getattr(structure, key)[k], err_msg=key)
            np.testing.assert_array_equal(frames.atomic_numbers[rows], structure.atomic_numbers)
            frame += 1
    assert frame == len(frames.energies)


STRUCTURES = [
    numbers("first", "test"),
    numbers("without frames", "train", frames=0),
    numbers("second", "train", frames=1, atoms=7),
    numbers("third", "validation", frames=4, atoms=2),
    numbers("fourth", "train"),
]


def filled(path: Path, structures: list[LabelledStructure] = STRUCTURES) -> Path:
    with open_dataset(path, teacher="random", seed=1) as writer:
        for structure in structures:
            writer.append(structure)
    return path
