"""What is measured of a run, and of several runs together: the analysis applied to a task."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
from ase import units
from ase.calculators.calculator import Calculator
from numpy.typing import NDArray

from mlff_student.analysis import Analysis, analyze
from mlff_student.analysis.blocks import BLOCKS, Estimate, mean_of_blocks, mean_of_runs
from mlff_student.analysis.ensemble import convergence
from mlff_student.analysis.rdf import compare_rdf, measure_suitable_rdf
from mlff_student.analysis.spectrum import HIGHEST, compare_spectra, measure_spectrum
from mlff_student.analysis.thermo import FEWEST_ROWS, read_thermo
from mlff_student.core.errors import InputError
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.engines.protocol import RunFolder
from mlff_student.structures.reading import Structure
from mlff_student.structures.trajectories import (
    Frames,
    between_frames,
    every_nth,
    read_topology,
    stream_frames,
)
from mlff_student.teachers.registry import is_teacher, make_teacher
from mlff_student.validation.tasks import CompareTask, RunTask

MEASURES = 2  # raise it where what is measured changes: older results are then made again
POINTS = 400  # of a series kept for plots
PRESSURES = 400  # frames of a student's run whose pressure is computed
OF_DIFFUSION = ("diffusion_cm2_per_s", "diffusion_stderr_cm2_per_s", "msd_exponent")
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
    record = analysis.as_record()
    if of_student and "drift_percent" in record:
        record["seed_drift_percent"] = record["drift_percent"]
    if settings.guide:  # momenta are drawn anew at each move: nothing diffuses
        record = {key: value for key, value in record.items() if key not in OF_DIFFUSION}
    elif settings.ensemble != "nve" and "diffusion_cm2_per_s" in record:  # friction slows it
        record["diffusion_friction_per_ps"] = settings.friction_per_ps
    if analysis.density:
        record |= density_change(analysis.volumes, read_topology(run.topology))
    if analysis.notes:
        record["notes"] = "; ".join(analysis.notes)
    return record, _course(analysis)


def density_change(volume: NDArray[np.float64], packed: Structure) -> Record:
    """Mean density after the first half of a run at constant pressure, in percent above that of the
    box it was packed in; a gas has -100.

    Parameters
    ----------
    volume : of each frame, angstrom^3.
    packed : with the cell of that box.
    """
    ratio = mean_of_blocks(packed.atoms.get_volume() / volume[len(volume) // 2 :])
    return {
        "density_change_percent": 100.0 * (ratio.value - 1.0),
        "density_change_stderr_percent": 100.0 * ratio.stderr,
    }


def measure_nve(run: RunFolder, calculator: Calculator | None = None) -> Record:
    """Figures of a run that claims constant energy.

    Parameters
    ----------
    calculator : what its forces came from, to tell a log that is another run's.

    Raises
    ------
    InputError : files that cannot be one run's.
    """
    return analyze(run.trajectory, run.topology, run.thermo, calculator=calculator).as_record()


def _course(analysis: Analysis) -> Series:
    """What happened in the course of a run, thinned for plots."""
    thermo = analysis.thermo
    series = {"time_ps": thermo.time_ps, "temperature_k": thermo.temperature_k}
    if analysis.ensemble == "nve":
        series["energy_mev_per_atom"] = (
            1e3 * (thermo.total_ev - thermo.total_ev[0]) / analysis.atoms
        )
    if analysis.density:
        mean = analysis.density.density_g_per_cm3 / (1.0 / analysis.volumes).mean()
        series["density_g_per_cm3"] = mean / analysis.volumes
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
        archive = runs[0].archive
        calculator = StudentForceFieldCalculator(model=archive) if archive.exists() else None
        return compare_liquids(runs, references, task.burn_in_ps, task.window_ps, calculator)
    if task.kind == "spectrum":
        return compare_vibrations(runs[0], references[0])
    energies = {}
    for timestep_fs, run in zip(task.timesteps_fs, runs, strict=True):
        log = read_thermo(run.thermo)
        counted = log.time_ps <= task.window_ps
        if counted.sum() < FEWEST_ROWS:
            raise InputError(
                f"{run.thermo} has {counted.sum()} rows in the {task.window_ps:g} ps that are "
                f"compared, expected {FEWEST_ROWS}; give the protocol's step more frames"
            )
        energies[timestep_fs] = (log.time_ps[counted], log.total_ev[counted])
    return convergence(energies, atoms=task.atoms).as_record(), {}


def compare_vibrations(run: RunFolder, reference: RunFolder) -> tuple[Record, Series]:
    """Vibrational spectrum of a run against that of the teacher's own.

    Raises
    ------
    InputError : frames too far apart, or runs too short, for a spectrum.
    """
    structure = read_topology(run.topology)
    spectra = []
    for one in (run, reference):
        time = read_thermo(one.thermo).time_ps
        frame_ps = float(time[-1] - time[0]) / (len(time) - 1)
        frames = stream_frames(one.trajectory, structure)
        spectra.append(measure_spectrum(frames, structure, frame_ps=frame_ps))
    frequency = spectra[1].frequency_per_cm
    shown = frequency <= HIGHEST
    series = {"frequency_per_cm": [float(f"{x:.6g}") for x in frequency[shown]]}
    for name, one in zip(("student", "teacher"), spectra, strict=True):
        power = np.interp(frequency[shown], one.frequency_per_cm, one.power)
        series[f"power_{name}"] = [float(f"{x:.4g}") for x in power]
    return compare_spectra(*spectra).as_record(), series


def compare_liquids(
    runs: list[RunFolder],
    references: list[RunFolder],
    burn_in_ps: float,
    window_ps: float,
    calculator: Calculator | None = None,
) -> tuple[Record, Series]:
    """Radial distributions between molecules, of all replicas against the teacher's, and the
    pressures of both.

    Parameters
    ----------
    burn_in_ps : that is left out at the start of each run.
    window_ps : of each run that counts, from there: as much of the student's as of the teacher's,
        so that both have come as far from the packing they started with.
    calculator : the student, whose pressure is compared; None leaves it out.
    """
    structure = read_topology(runs[0].topology)
    student, teacher = (
        measure_suitable_rdf(
            chain.from_iterable(_window(run, structure, burn_in_ps, window_ps) for run in some),
            structure,
        )
        for some in (runs, references)
    )
    series: dict[str, NDArray[np.float64]] = {"r_angstrom": student.r}
    for k, pair in enumerate(student.pairs):
        series |= {f"g_student_{pair}": student.g[k], f"g_teacher_{pair}": teacher.g[k]}
    record = compare_rdf(student, teacher).as_record()
    logs, of_teacher = ([read_thermo(run.thermo) for run in some] for some in (runs, references))
    moved = [np.diff(log.potential_ev) != 0.0 for log in of_teacher]
    longest = max(float(log.time_ps[-1]) for log in logs)
    record |= {
        "burn_in_ps": burn_in_ps,
        "window_ps": min(window_ps, longest - burn_in_ps),
        "teacher_window_ps": min(
            window_ps, max(float(log.time_ps[-1]) for log in of_teacher) - burn_in_ps
        ),
        "replicas": len(references),
        # Of hybrid Monte Carlo: of the replica that moved least, and its longest rest; of MD 1.
        "teacher_acceptance": float(min(one.mean() for one in moved)),
        "teacher_longest_rest": max(map(_longest_rest, moved)),
    }
    if calculator and all(log.pressure_gpa is not None for log in of_teacher):
        record |= compare_pressures(runs, references, structure, calculator, burn_in_ps, window_ps)
    return record, {name: thinned(values) for name, values in series.items()}


def compare_pressures(
    runs: list[RunFolder],
    references: list[RunFolder],
    structure: Structure,
    calculator: Calculator,
    burn_in_ps: float,
    window_ps: float,
) -> Record:
    """Pressures at one density and temperature, GPa, where the kinetic part is the same: the
    teacher's in its own ensemble; how far the student's in its own ensemble is off; and how far its
    virial is off on the teacher's frames: how right it is there, not what it would do by itself.
    """
    atoms = structure.atoms.copy()
    atoms.calc = calculator

    def virial(positions: NDArray[np.float64]) -> float:
        atoms.positions = positions
        return float(-atoms.get_stress()[:3].mean() / units.GPa)

    own: list[list[float]] = []
    for run in runs:
        own.append([])
        counted = _counted(read_thermo(run.thermo).time_ps, burn_in_ps, window_ps)
        every = max(1, (counted.stop - counted.start) // PRESSURES)
        for part in every_nth(_window(run, structure, burn_in_ps, window_ps), every):
            own[-1] += map(virial, part.positions)
    pressures, virials, errors = [], [], []
    for run in references:
        log = read_thermo(run.thermo)
        counted = _counted(log.time_ps, burn_in_ps, window_ps)
        kinetic = 2.0 / 3.0 * log.kinetic_ev[counted] / atoms.get_volume() / units.GPa
        pressures.append(log.pressure_gpa[counted])
        virials.append(pressures[-1] - kinetic)
        of_student: list[float] = []
        for part in _window(run, structure, burn_in_ps, window_ps):
            of_student += map(virial, part.positions)
        errors.append(of_student - virials[-1])
    student, teacher = mean_of_runs(own), mean_of_runs(virials)
    rest = _longest_rest(np.diff(pressures[0]) != 0.0)
    if len(references) == 1 and BLOCKS * rest > len(pressures[0]):
        teacher = teacher._replace(stderr=np.nan)  # a chain that rests for longer than a block
    found = {
        "pressure_teacher": mean_of_runs(pressures),
        "pressure_error": Estimate(
            student.value - teacher.value, float(np.hypot(student.stderr, teacher.stderr))
        ),
        "virial_error_on_teacher_frames": mean_of_runs(errors),
    }
    return {f"{name}_gpa": one.value for name, one in found.items()} | {
        f"{name}_stderr_gpa": one.stderr for name, one in found.items()
    }


def _longest_rest(moved: NDArray[np.bool_]) -> int:
    """Most rejected moves in a row."""
    accepted = np.flatnonzero(np.concatenate([[True], moved, [True]]))
    return int(np.diff(accepted).max()) - 1


def _window(
    run: RunFolder, structure: Structure, burn_in_ps: float, window_ps: float
) -> Iterator[Frames]:
    """Frames after the burn-in, up to the window's end."""
    counted = _counted(read_thermo(run.thermo).time_ps, burn_in_ps, window_ps)
    frames = stream_frames(run.trajectory, structure)
    return between_frames(frames, counted.start, counted.stop)


def _counted(time_ps: NDArray[np.float64], burn_in_ps: float, window_ps: float) -> slice:
    """Rows, which are frames, of the window."""
    ends = (burn_in_ps, burn_in_ps + window_ps)
    return slice(*(int((time_ps <= end * (1.0 + 1e-9)).sum()) for end in ends))


def thinned(values: NDArray[np.float64]) -> list[float]:
    """At most `POINTS` values, evenly spread, the last among them."""
    chosen = np.linspace(0, len(values) - 1, min(POINTS, len(values))).round().astype(int)
    return [float(f"{value:.6g}") for value in values[chosen]]
