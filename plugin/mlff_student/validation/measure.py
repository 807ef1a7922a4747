"""What is measured of a run, and of several runs together: the analysis applied to a task."""

from typing import Any

import numpy as np

from ..analysis import analyze
from ..drift import read_thermo
from ..md import RunFolder
from .tasks import CompareTask, RunTask

POINTS = 400  # of a series kept for plots
Measured = tuple[dict[str, Any], dict[str, list[float]]]


def measure_run(task: RunTask, run: RunFolder) -> Measured:
    """Record of figures and series for plots, of one finished run."""
    raise NotImplementedError


def measure_comparison(
    task: CompareTask, runs: list[RunFolder], references: list[RunFolder]
) -> Measured:
    raise NotImplementedError
