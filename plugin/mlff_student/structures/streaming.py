"""Streaming a trajectory with MDTraj."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mdtraj


def iterate_frames(
    path: Path, topology: mdtraj.Topology, chunk: int
) -> Iterator[mdtraj.Trajectory]:
    """Chunks of at most `chunk` frames by `mdtraj.iterload`, whose DCD reader prints to stdout."""
    frames = mdtraj.iterload(str(path), top=topology, chunk=chunk)
    while True:
        with _silent_stdout():
            part = next(frames, None)
        if part is None:
            return
        yield part


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """Send file descriptor 1, which C code writes to, nowhere."""
    sys.stdout.flush()
    kept = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # C keeps back what it prints to a file or a pipe
        os.dup2(kept, 1)
        os.close(kept)
