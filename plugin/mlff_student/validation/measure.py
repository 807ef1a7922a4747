"""What is measured of a run, and of several runs together: the analysis applied to a task."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
from ase.calculators.calculator import Calculator
from numpy.typing import NDArray

from ..analysis import analyze
from ..analysis.forces import evaluate_frames, force_errors
from ..analysis.frames import Frames, read_topology, stream_frames
from ..analysis.rdf import compare_rdf, measure_rdf
from ..analysis.stability import measure_stability
from ..analysis.thermo import read_thermo
from ..analysis.transport import measure_density
from ..calculator import StudentForceFieldCalculator
from ..errors import InputError
from ..md import RunFolder
from ..structure import Structure
from ..teachers import is_teacher, make_teacher
from .tasks import CompareTask, RunTask

POINTS = 400  # of a series kept for plots
CHECKED_FRAMES = 20  # whose energy is computed again
Record = dict[str, Any]
Series = dict[str, list[float]]


def measure_run(task: RunTask, run: RunFolder) -> tuple[Record, Series]:
    """Figures of a finished run, and series for plots.

    Raises
    ------
    InputError : files that cannot be one run's.
    """
    settings = task.settings
    record: Record = {
        "ensemble": settings.ensemble,
        "target_temperature_k": settings.temperature_K,
        "timestep_fs": settings.timestep_fs,
    }
    own = settings.model
    calculator = None if is_teacher(own) else StudentForceFieldCalculator(model=run.archive)
    if settings.ensemble == "nve":
        found, series = measure_nve(run, calculator)
        if calculator:
            found["seed_drift_percent"] = found["drift_percent"]
    else:
        found, series = measure_ensemble(run, settings.ensemble, calculator)
    record |= found
    if task.teacher and calculator:
        structure = read_topology(run.topology)
        indices = spread(settings.steps // settings.every, task.teacher_frames)
        frames = pick(run, structure, indices)
        _, forces = evaluate_frames(frames, structure, calculator)
        _, wanted = evaluate_frames(frames, structure, make_teacher(task.teacher))
        errors = force_errors(forces, wanted, structure.atoms.numbers)
        record |= errors.as_record()
        time = read_thermo(run.thermo).time_ps
        series["force_time_ps"] = [float(time[k]) for k in indices]
        series["force_rmse_ev_per_angstrom"] = [float(f"{x:.5g}") for x in errors.rmse_of_frames]
    return record, series


def measure_nve(run: RunFolder, calculator: Calculator | None = None) -> tuple[Record, Series]:
    """Figures of a run at constant energy, and its course.

    Parameters
    ----------
    calculator : what the run's forces came from: its energies of some frames are held against the
        log's, which tells a log of another trajectory, or of another model.
    """
    record = analyze(run.trajectory, run.topology, run.thermo).as_record()
    thermo = read_thermo(run.thermo)
    if calculator:
        record |= log_agreement(run, calculator, thermo.potential_ev)
    return record, {
        "time_ps": thinned(thermo.time_ps),
        "energy_mev_per_atom": thinned(
            1e3 * (thermo.total_ev - thermo.total_ev[0]) / record["atoms"]
        ),
        "temperature_k": thinned(thermo.temperature_k),
    }


def measure_ensemble(
    run: RunFolder, ensemble: str, calculator: Calculator | None
) -> tuple[Record, Series]:
    """Figures of a run at constant temperature, whose total energy wanders as it should; the
    density, where the box is free.
    """
    structure = read_topology(run.topology)
    thermo = read_thermo(run.thermo)
    stability = measure_stability(stream_frames(run.trajectory, structure), structure, run.trajectory)
    record: Record = stability.as_record() | {
        "atoms": len(structure.atoms),
        "duration_ps": float(thermo.time_ps[-1] - thermo.time_ps[0]),
        "temperature_k": float(thermo.temperature_k.mean()),
        "temperature_std_k": float(thermo.temperature_k.std()),
        "nonfinite_rows": int((~np.isfinite(np.stack(thermo[:5]))).any(0).sum()),
    }
    if calculator:
        record |= log_agreement(run, calculator, thermo.potential_ev)
    series = {"time_ps": thinned(thermo.time_ps), "temperature_k": thinned(thermo.temperature_k)}
    if ensemble == "npt":
        cells = np.concatenate([part.cells for part in stream_frames(run.trajectory, structure)])
        volume = np.abs(np.linalg.det(cells))
        mass = float(structure.atoms.get_masses().sum())
        record |= measure_density(thermo.time_ps, volume, mass).as_record()
        series["density_g_per_cm3"] = thinned(record["density_g_per_cm3"] * volume.mean() / volume)
    return record, series


def log_agreement(run: RunFolder, calculator: Calculator, logged_ev: NDArray[np.float64]) -> Record:
    """How far the energies of frames, computed again, are from the log's."""
    structure = read_topology(run.topology)
    indices = spread(len(logged_ev), CHECKED_FRAMES)
    energies, _ = evaluate_frames(pick(run, structure, indices), structure, calculator)
    error = np.abs(energies - logged_ev[indices]).max() / len(structure.atoms)
    return {"frame_energy_error_mev_per_atom": 1e3 * float(error)}


def measure_comparison(
    task: CompareTask, runs: list[RunFolder], references: list[RunFolder]
) -> tuple[Record, Series]:
    """Figures of several runs together."""
    if task.kind == "rdf":
        return measure_liquid(runs, references, task.window_ps)
    return measure_convergence(runs)


def measure_liquid(
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
    found = [
        measure_rdf(
            chain.from_iterable(_window(run, structure, window_ps) for run in some),
            structure,
            r_max=0.05 * int(half / 0.05),
        )
        for some in (runs, references)
    ]
    student, teacher = found
    record = compare_rdf(student, teacher).as_record()
    series: Series = {"r_angstrom": [round(float(r), 3) for r in student.r]}
    for k, pair in enumerate(student.pairs):
        series[f"g_student_{pair}"] = [float(f"{x:.5g}") for x in student.g[k]]
        series[f"g_teacher_{pair}"] = [float(f"{x:.5g}") for x in teacher.g[k]]
    return record | {"window_ps": window_ps, "replicas": len(references)}, series


def _window(run: RunFolder, structure: Structure, window_ps: float) -> Iterator[Frames]:
    time = read_thermo(run.thermo).time_ps
    count = int((time <= window_ps * (1.0 + 1e-9)).sum())
    for part in stream_frames(run.trajectory, structure, chunk=1):
        if count <= 0:
            return
        yield part
        count -= 1


def spread(count: int, wanted: int) -> NDArray[np.int_]:
    """Indices of at most `wanted` of so many frames, evenly, the last among them."""
    wanted = min(wanted, count)
    return np.unique(np.linspace(0, count - 1, wanted + 1).round().astype(int)[1:])


def pick(run: RunFolder, structure: Structure, indices: NDArray[np.int_]) -> Frames:
    """Frames of a run by index, in order.

    Raises
    ------
    InputError : the trajectory has fewer.
    """
    positions, cells, first = [], [], 0
    for part in stream_frames(run.trajectory, structure):
        chosen = indices[(indices >= first) & (indices < first + len(part))] - first
        positions.append(part.positions[chosen])
        if part.cells is not None:
            cells.append(part.cells[chosen])
        first += len(part)
    if first <= indices[-1]:
        raise InputError(f"{run.trajectory} has {first} frames, the log {indices[-1] + 1} rows")
    return Frames(np.concatenate(positions), np.concatenate(cells) if cells else None)


def thinned(values: NDArray[np.float64]) -> list[float]:
    """At most `POINTS` values, evenly spread, the last among them."""
    chosen = np.linspace(0, len(values) - 1, min(POINTS, len(values))).round().astype(int)
    return [float(f"{value:.6g}") for value in values[chosen]]


def measure_convergence(runs: list[RunFolder]) -> tuple[Record, Series]:
    raise NotImplementedError
