"""Labelled frames of many molecules in one HDF5 file, split by molecule."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from ..errors import InputError

SPLITS = ("train", "validation", "test")


class Frames(NamedTuple):
    """Frames laid end to end: M molecules, T frames, A atoms in all frames together."""

    names: list[str]  # (M,)
    kinds: list[str]  # (M,)
    molecule: Tensor  # (T,) int64, index into names
    start: Tensor  # (T + 1,) int64, first atom of each frame
    atomic_numbers: Tensor  # (A,) int64
    positions: Tensor  # (A, 3) float32, angstrom
    forces: Tensor  # (A, 3) float32, eV/angstrom
    energies: Tensor  # (T,) float64, eV
    temperatures: Tensor  # (T,) float64, kelvin


def read_split(path: Path, split: str) -> Frames:
    """All frames of one split in memory."""
    if not path.is_file():
        raise InputError(f"no dataset {path}; run `mlff-student distill sample` first")
    with h5py.File(path) as file:
        group = file[split]
        return Frames(
            names=list(group["names"].asstr()),
            kinds=list(group["kinds"].asstr()),
            molecule=torch.from_numpy(group["molecule"][:]),
            start=torch.from_numpy(group["start"][:]),
            atomic_numbers=torch.from_numpy(group["atomic_numbers"][:].astype(np.int64)),
            positions=torch.from_numpy(group["positions"][:]),
            forces=torch.from_numpy(group["forces"][:]),
            energies=torch.from_numpy(group["energies"][:]),
            temperatures=torch.from_numpy(group["temperatures"][:]),
        )


def sha256(path: Path) -> str:
    """Hash of a file, as `sha256sum` prints it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
