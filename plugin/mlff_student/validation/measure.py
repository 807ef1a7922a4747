"""What is measured of a run, and of several runs together: the analysis applied to a task."""

from typing import Any

import numpy as np

from ..analysis import analyze
from ..analysis.drift import read_thermo
from ..md import RunFolder
from .tasks import CompareTask, RunTask

POINTS = 400  # of a series kept for plots
Measured = tuple[dict[str, Any], dict[str, list[float]]]


def measure_nve(run: RunFolder) -> Measured:
    """Figures of a run at constant energy, and its course."""
    record = analyze(run.trajectory, run.topology, run.thermo).as_record()
    thermo = read_thermo(run.thermo)
    series = {
        "time_ps": thermo.time_ps,
        "energy_mev_per_atom": 1e3 * (thermo.total_ev - thermo.total_ev[0]) / record["atoms"],
        "temperature_k": thermo.temperature_k,
    }
    return record, {name: thinned(values) for name, values in series.items()}


def thinned(values: np.ndarray) -> list[float]:
    """At most `POINTS` values, evenly spread, the last among them."""
    chosen = np.linspace(0, len(values) - 1, min(POINTS, len(values))).round().astype(int)
    return [float(f"{value:.6g}") for value in values[chosen]]


def measure_run(task: RunTask, run: RunFolder) -> Measured:
    """Record of figures and series for plots, of one finished run."""
    return measure_nve(run)


def measure_comparison(
    task: CompareTask, runs: list[RunFolder], references: list[RunFolder]
) -> Measured:
    raise NotImplementedError
