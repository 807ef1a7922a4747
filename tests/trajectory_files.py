"""Trajectories in one piece, and the figures of a run that fail."""

from pathlib import Path

import numpy as np

from mlff_student.analysis import stream_frames
from mlff_student.core.figures import figures_of, load_thresholds
from mlff_student.reporting.verdict import judge
from mlff_student.structures.trajectories import Frames, read_topology


def everything(trajectory: Path, topology: Path, **options) -> Frames:
    parts = list(stream_frames(trajectory, read_topology(topology), **options))
    joined = {
        key: None if value is None else np.concatenate([vars(part)[key] for part in parts])
        for key, value in vars(parts[0]).items()
    }
    return Frames(**joined)


def failures(record: dict) -> set[str]:
    checks = judge(figures_of(record), load_thresholds(), record["ensemble"])
    return {check.key for check in checks if not check.passed}
