"""Packed frames: a dataset in one small file, which NumPy alone reads.

Positions are rounded to 1/16384 angstrom and forces to 1/2048 eV/angstrom, which is a hundredth of
a student's error, and stored as integers by byte, so that the empty high bytes take no room.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlff_student.core.errors import InputError
from mlff_student.core.files import atomic_write
from mlff_student.distill.dataset import SPLITS, LabelledFrames

FORMAT = 1
STEPS = {"positions": 2.0**-14, "forces": 2.0**-11}  # angstrom, eV/angstrom
ARRAYS = ("molecule", "start", "energies", "temperatures", "cells", "pbc", "stresses")
TEXTS = ("names", "identities", "kinds", "methods")


def write_packed(path: Path, splits: dict[str, LabelledFrames]) -> None:
    """Write a packed dataset.

    Parameters
    ----------
    path : Path
        File to write, with the suffix .npz.
    splits : dict of str to LabelledFrames
        Frames of each split.

    Raises
    ------
    InputError
        A position or force is too large for the integers or not finite, or the file cannot be
        written.
    """
    arrays: dict[str, Any] = {"format": np.array(FORMAT)}
    for split, frames in splits.items():
        columns: dict[str, Any] = {name: np.array(getattr(frames, name)) for name in TEXTS}
        columns |= {name: getattr(frames, name).numpy() for name in ARRAYS}
        columns["atomic_numbers"] = frames.atomic_numbers.numpy().astype(np.uint8)
        for name, step in STEPS.items():
            steps = np.round(getattr(frames, name).numpy().astype(np.float64) / step)
            if not (np.abs(steps) < 2**31).all():
                raise InputError(f"the {name} are not finite or too large; find them by `check`")
            columns[name] = _bytes(steps.astype("<i4"))
        arrays |= {f"{split}/{name}": column for name, column in columns.items()}
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_packed(path: Path, split: str | None) -> LabelledFrames:
    """Read the frames of one split, or of all.

    Parameters
    ----------
    path : Path
        File that `write_packed` wrote.
    split : str or None
        One of `SPLITS`; None reads all.

    Raises
    ------
    InputError
        The file is no packed dataset, or is damaged.
    """
    try:
        with np.load(path) as file:
            if int(file["format"]) != FORMAT:
                raise InputError(f"{path} has format {int(file['format'])}, expected {FORMAT}")
            parts = [
                _columns(file, name)
                for name in ([split] if split else SPLITS)
                if f"{name}/start" in file
            ]
        return _joined(parts)
    except Exception as error:  # zipfile, zlib, numpy and torch raise errors of any kind
        raise InputError(
            f"{path} is no packed dataset or is damaged ({error}); make it again with "
            "`mlff-student distill bundle`"
        ) from error


def _joined(parts: list[dict[str, np.ndarray]]) -> LabelledFrames:
    first, *others = parts
    for other in others:
        molecules, atoms = len(first["names"]), first["start"][-1]
        other["molecule"] = other["molecule"] + molecules
        other["start"] = (other["start"] + atoms)[1:]
        first = {name: np.concatenate([first[name], other[name]]) for name in first}
    return LabelledFrames(
        **{name: first[name].tolist() for name in TEXTS},
        **{name: torch.from_numpy(first[name]) for name in (*ARRAYS, *STEPS)},
        atomic_numbers=torch.from_numpy(first["atomic_numbers"]).long(),
    )


def _columns(file: Any, split: str) -> dict[str, np.ndarray]:
    names = (*TEXTS, *ARRAYS, "atomic_numbers")
    columns = {name: file[f"{split}/{name}"] for name in names}
    for name, step in STEPS.items():
        integers = file[f"{split}/{name}"].T.copy().view("<i4").reshape(-1, 3)
        columns[name] = (integers * step).astype(np.float32)
    return columns


def _bytes(integers: np.ndarray) -> np.ndarray:
    """Return (4, M) bytes of integers of 4 bytes, the lowest byte of all of them first."""
    return np.ascontiguousarray(integers.reshape(-1, 1).view(np.uint8).T)
