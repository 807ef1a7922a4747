"""What is measured of a run, and of several runs together: the analysis applied to a task."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
from ase.calculators.calculator import Calculator
from numpy.typing import NDArray

from ..analysis import Analysis, analyze
from ..analysis.ensemble import convergence
from ..analysis.forces import evaluate_frames
from ..analysis.frames import Frames, every_nth, read_topology, stream_frames
from ..analysis.rdf import compare_rdf, measure_rdf
from ..analysis.same_run import check_energies
from ..analysis.thermo import read_thermo
from ..calculator import StudentForceFieldCalculator
from ..md import RunFolder
from ..structure import Structure
from ..teachers import is_teacher, make_teacher
from .tasks import CompareTask, RunTask

POINTS = 400  # of a series kept for plots
CHECKED_FRAMES = 20  # whose energy is computed again
BIN = 0.05  # angstrom, of radial distributions
Record = dict[str, Any]
Series = dict[str, list[float]]


def measure_run(task: RunTask, run: RunFolder) -> tuple[Record, Series]:
    """Figures of a finished run, and series for plots.

    Raises
    ------
    InputError : files that cannot be one run's.
    """
    settings = task.settings
    of_student = not is_teacher(settings.model)
    calculator = StudentForceFieldCalculator(model=run.archive) if of_student else None
    analysis = analyze(
        run.trajectory,
        run.topology,
        run.thermo,
        ensemble=settings.ensemble,
        temperature_K=settings.temperature_K,
        teacher=make_teacher(task.teacher) if task.teacher else None,
        calculator=calculator,
        teacher_frames=max(1, task.teacher_frames),
    )
    if calculator and not analysis.forces:  # where forces were compared, energies were too
        check_log(run, analysis, calculator)
    record = {
        "target_temperature_k": settings.temperature_K,
        "timestep_fs": settings.timestep_fs,
        **analysis.as_record(),
    }
    if of_student and "drift_percent" in record:
        record["seed_drift_percent"] = record["drift_percent"]
    return record, _course(analysis, run)


def measure_nve(run: RunFolder, calculator: Calculator | None = None) -> Record:
    """Figures of a run that claims constant energy.

    Parameters
    ----------
    calculator : what its forces came from, to tell a log that is another run's.

    Raises
    ------
    InputError : files that cannot be one run's.
    """
    analysis = analyze(run.trajectory, run.topology, run.thermo)
    if calculator:
        check_log(run, analysis, calculator)
    return analysis.as_record()


def check_log(run: RunFolder, analysis: Analysis, calculator: Calculator) -> None:
    """Refuse a log whose potential energies are not those of the frames (InputError)."""
    structure = read_topology(run.topology)
    frames = analysis.stability.stable_frames  # what came apart may be beyond the calculator
    every = max(1, frames // CHECKED_FRAMES)
    chosen = every * np.arange(min(CHECKED_FRAMES, frames // every))
    parts = every_nth(stream_frames(run.trajectory, structure), every)
    energies = [
        evaluate_frames(part, structure, calculator)[0] for part in _first(parts, len(chosen))
    ]
    if energies:
        check_energies(
            analysis.thermo.potential_ev,
            analysis.stability.frames,
            chosen,
            np.concatenate(energies),
            "potential energy",
            run.thermo,
            run.trajectory,
        )


def _course(analysis: Analysis, run: RunFolder) -> Series:
    """What happened in the course of a run, thinned for plots."""
    thermo = analysis.thermo
    series = {"time_ps": thermo.time_ps, "temperature_k": thermo.temperature_k}
    if analysis.ensemble == "nve":
        series["energy_mev_per_atom"] = (
            1e3 * (thermo.total_ev - thermo.total_ev[0]) / analysis.atoms
        )
    if analysis.density:
        parts = stream_frames(run.trajectory, run.topology)
        volume = np.concatenate([np.abs(np.linalg.det(part.cells)) for part in parts])
        mean = analysis.density.density_g_per_cm3 / (1.0 / volume).mean()
        series["density_g_per_cm3"] = mean / volume
    if analysis.forces:
        rmse = analysis.forces.rmse_of_frames
        series["force_rmse_ev_per_angstrom"] = rmse
        series["force_time_ps"] = np.linspace(0.0, thermo.time_ps[-1], len(rmse), endpoint=False)
    return {name: thinned(values) for name, values in series.items()}


def measure_comparison(
    task: CompareTask, runs: list[RunFolder], references: list[RunFolder]
) -> tuple[Record, Series]:
    """Figures of several runs together.

    Raises
    ------
    InputError : runs that cannot be compared.
    """
    if task.kind == "rdf":
        return compare_liquids(runs, references, task.window_ps)
    logs = [read_thermo(run.thermo) for run in runs]
    found = convergence(
        {dt: (log.time_ps, log.total_ev) for dt, log in zip(task.timesteps_fs, logs, strict=True)},
        atoms=len(read_topology(runs[0].topology).atoms),
    )
    return found.as_record(), {}


def compare_liquids(
    runs: list[RunFolder], references: list[RunFolder], window_ps: float
) -> tuple[Record, Series]:
    """Radial distributions of all replicas against the teacher's, up to half the box.

    Parameters
    ----------
    window_ps : of each run that counts, from its start: as much of the student's as of the
        teacher's, so that both have come as far from the packing they started with.
    """
    structure = read_topology(runs[0].topology)
    half = 0.5 * float(structure.atoms.cell.cellpar()[:3].min())
    student, teacher = (
        measure_rdf(
            chain.from_iterable(_window(run, structure, window_ps) for run in some),
            structure,
            r_max=BIN * int(half / BIN),
            bin_width=BIN,
        )
        for some in (runs, references)
    )
    series: dict[str, NDArray[np.float64]] = {"r_angstrom": student.r}
    for k, pair in enumerate(student.pairs):
        series |= {f"g_student_{pair}": student.g[k], f"g_teacher_{pair}": teacher.g[k]}
    record = compare_rdf(student, teacher).as_record()
    potentials = [read_thermo(run.thermo).potential_ev for run in references]
    moved = [float((np.diff(potential) != 0.0).mean()) for potential in potentials]
    record |= {
        "window_ps": min(window_ps, max(read_thermo(run.thermo).time_ps[-1] for run in runs)),
        "replicas": len(references),
        "teacher_acceptance": float(np.mean(moved)),  # of hybrid Monte Carlo; of MD it is 1
    }
    return record, {name: thinned(values) for name, values in series.items()}


def _window(run: RunFolder, structure: Structure, window_ps: float) -> Iterator[Frames]:
    time = read_thermo(run.thermo).time_ps
    count = int((time <= window_ps * (1.0 + 1e-9)).sum())
    return _first(stream_frames(run.trajectory, structure), count)


def _first(parts: Iterator[Frames], count: int) -> Iterator[Frames]:
    """So many frames at most."""
    for part in parts:
        if count <= 0:
            return
        if len(part) > count:
            cells = None if part.cells is None else part.cells[:count]
            part = Frames(part.positions[:count], cells)
        yield part
        count -= len(part)


def thinned(values: NDArray[np.float64]) -> list[float]:
    """At most `POINTS` values, evenly spread, the last among them."""
    chosen = np.linspace(0, len(values) - 1, min(POINTS, len(values))).round().astype(int)
    return [float(f"{value:.6g}") for value in values[chosen]]
