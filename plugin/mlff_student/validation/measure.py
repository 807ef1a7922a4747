"""Measure the figures of a task: those of a run, or those of several runs together."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
from ase import units
from ase.calculators.calculator import Calculator
from numpy.typing import NDArray

from mlff_student.analysis import Analysis, analyze
from mlff_student.analysis.blocks import BLOCKS, Estimate, mean_of_blocks, mean_of_runs
from mlff_student.analysis.ensemble import convergence
from mlff_student.analysis.rdf import RdfError, compare_rdf, measure_suitable_rdf
from mlff_student.analysis.spectrum import HIGHEST, compare_spectra, measure_spectrum
from mlff_student.analysis.thermo import FEWEST_ROWS, read_thermo
from mlff_student.analysis.transport import G_PER_CM3, Density, measure_density
from mlff_student.core.errors import InputError
from mlff_student.core.figures import Figure, record_of
from mlff_student.core.results import read_json
from mlff_student.core.units import KB, KJ_PER_MOL
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
from mlff_student.validation.protocol import known_liquids
from mlff_student.validation.tasks import CompareTask, RunTask

MEASURES = 2  # raise it if what is measured changes; older results are then computed again
POINTS = 400  # most points of a series that is kept for plots
PRESSURES = 400  # frames of a student's run whose pressure is computed
Record = dict[str, Any]
Series = dict[str, list[float]]


def measure_run(task: RunTask, run: RunFolder) -> tuple[Record, Series]:
    """Measure a finished run.

    Parameters
    ----------
    task : RunTask
        Task of the run.
    run : RunFolder
        Files of the run.

    Returns
    -------
    tuple[Record, Series]
        Figures with units in the keys, and series for plots.

    Raises
    ------
    InputError
        If the files are of different runs, or cannot be used.
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
    course = _course(analysis)
    further: list[Figure] = []
    facts: dict[str, str] = {}
    if of_student and settings.ensemble == "nve":
        further.append(Figure("seed_drift", analysis.drift.drift_percent, "% of |E|"))
    if task.proposal_model:  # each move draws new momenta, so there is no diffusion
        analysis = replace(analysis, diffusion=None)
    elif settings.ensemble != "nve" and analysis.diffusion:  # friction slows diffusion
        further.append(Figure("diffusion_friction", settings.friction_per_ps, "1/ps"))
    if analysis.density:
        packed = read_topology(run.topology)
        density = equilibrium_density(task, analysis, packed)
        analysis = replace(analysis, density=density)
        further.append(density_change(analysis.volumes, packed))
        if task.experiment:
            experiment = known_liquids()[task.experiment]
            further += density_deviation(density, experiment.density_g_per_cm3)
            facts["experiment_source"] = experiment.source
    if analysis.notes:
        facts["notes"] = "; ".join(analysis.notes)
    return analysis.as_record() | record_of(further) | facts, course


def equilibrium_density(task: RunTask, analysis: Analysis, structure: Structure) -> Density:
    """Measure the density and its trend after the equilibration of a run.

    Parameters
    ----------
    task : RunTask
        Task of the run, with the length of the equilibration.
    analysis : Analysis
        Analysis of the run.
    structure : Structure
        Structure of the same atoms.

    Returns
    -------
    Density
        Mean density and its trend.
    """
    time_ps = analysis.thermo.time_ps
    counted = _counted(time_ps, task.equilibrate_ps, np.inf)
    mass = float(structure.atoms.get_masses().sum())
    return measure_density(time_ps[counted], analysis.volumes[counted], mass)


def density_deviation(density: Density, experiment_g_per_cm3: float) -> list[Figure]:
    """Return the experimental density, and the deviation of a run's density from it.

    Parameters
    ----------
    density : Density
        Density of the run.
    experiment_g_per_cm3 : float
        Experimental density, g/cm^3.

    Returns
    -------
    list[Figure]
        Experimental density, g/cm^3, and deviation with its standard error, percent.
    """
    scale = 100.0 / experiment_g_per_cm3
    deviation = scale * density.density_g_per_cm3 - 100.0
    return [
        Figure("experiment", experiment_g_per_cm3, "g/cm^3"),
        Figure("density_deviation", deviation, "%", scale * density.density_stderr_g_per_cm3),
    ]


def density_change(volume: NDArray[np.float64], packed: Structure) -> Figure:
    """Return the change of the density from the packed box to the second half of a run.

    Parameters
    ----------
    volume : NDArray[np.float64]
        Volume of each frame of a run at constant pressure, (F,), angstrom^3.
    packed : Structure
        The box in which the molecules were packed.

    Returns
    -------
    Figure
        Change in percent of the density of the packed box. A gas has -100.
    """
    ratio = mean_of_blocks(packed.atoms.get_volume() / volume[len(volume) // 2 :])
    return Figure("density_change", 100.0 * (ratio.value - 1.0), "%", 100.0 * ratio.stderr)


def measure_nve(run: RunFolder, calculator: Calculator | None = None) -> Analysis:
    """Measure a run at constant energy.

    Parameters
    ----------
    run : RunFolder
        Files of the run.
    calculator : Calculator | None
        Model of the run, whose energies must be those in the log. None: no comparison.

    Returns
    -------
    Analysis
        All figures of the run.

    Raises
    ------
    InputError
        If the files are of different runs, or cannot be used.
    """
    return analyze(run.trajectory, run.topology, run.thermo, calculator=calculator)


def _course(analysis: Analysis) -> Series:
    """Return the series of a run, thinned for plots."""
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
    """Compare several finished runs.

    Parameters
    ----------
    task : CompareTask
        Task of the comparison.
    runs, references : list[RunFolder]
        Files of the student's runs and of the teacher's runs.

    Returns
    -------
    tuple[Record, Series]
        Figures with units in the keys, and series for plots.

    Raises
    ------
    InputError
        If the runs cannot be compared.
    """
    if task.kind == "rdf":
        archive = runs[0].archive
        calculator = StudentForceFieldCalculator(model=archive) if archive.exists() else None
        return compare_liquids(runs, references, task.burn_in_ps, task.window_ps, calculator)
    if task.kind == "spectrum":
        return compare_vibrations(runs[0], references[0])
    if task.kind == "density":
        return compare_densities(runs, references, task.burn_in_ps, with_rdf=task.with_rdf)
    if task.kind == "vaporisation":
        figures = compare_vaporisation(runs, references, task.burn_in_ps, task.molecules)
        return record_of(figures), {}
    energies = {}
    for timestep_fs, run in zip(task.timesteps_fs, runs, strict=True):
        log = read_thermo(run.thermo)
        counted = log.time_ps <= task.window_ps
        if counted.sum() < FEWEST_ROWS:
            raise InputError(
                f"{run.thermo} has {counted.sum()} rows in the {task.window_ps:g} ps that are "
                f"compared, expected {FEWEST_ROWS} or more; raise frames in the protocol's step"
            )
        energies[timestep_fs] = (log.time_ps[counted], log.total_ev[counted])
    return convergence(energies, atoms=task.atoms).as_record(), {}


def compare_vibrations(run: RunFolder, reference: RunFolder) -> tuple[Record, Series]:
    """Compare the vibrational spectrum of a run with that of the teacher's run.

    Parameters
    ----------
    run, reference : RunFolder
        Files of the student's run and of the teacher's run.

    Returns
    -------
    tuple[Record, Series]
        Figures of the comparison, and the two spectra.

    Raises
    ------
    InputError
        If the frames are too far apart, or a run is too short for a spectrum.
    """
    structure = read_topology(run.topology)
    spectra = []
    for folder in (run, reference):
        time = read_thermo(folder.thermo).time_ps
        frame_ps = float(time[-1] - time[0]) / (len(time) - 1)
        frames = stream_frames(folder.trajectory, structure)
        spectra.append(measure_spectrum(frames, structure, frame_ps=frame_ps))
    frequency = spectra[1].frequency_per_cm
    shown = frequency <= HIGHEST
    series = {"frequency_per_cm": [float(f"{x:.6g}") for x in frequency[shown]]}
    for name, spectrum in zip(("student", "teacher"), spectra, strict=True):
        power = np.interp(frequency[shown], spectrum.frequency_per_cm, spectrum.power)
        series[f"power_{name}"] = [float(f"{x:.4g}") for x in power]
    return compare_spectra(*spectra).as_record(), series


def compare_liquids(
    runs: list[RunFolder],
    references: list[RunFolder],
    burn_in_ps: float,
    window_ps: float,
    calculator: Calculator | None = None,
) -> tuple[Record, Series]:
    """Compare the radial distribution functions and pressures of a liquid with the teacher's.

    Parameters
    ----------
    runs, references : list[RunFolder]
        Files of all replicas of the student and of the teacher.
    burn_in_ps : float
        Length at the start of each run that is left out, ps.
    window_ps : float
        Length of each run after `burn_in_ps` that is compared, ps. It is the same for student and
        teacher, because both start from the same packed box and forget it with time.
    calculator : Calculator | None
        The student, for its pressure. None: pressures are not compared.

    Returns
    -------
    tuple[Record, Series]
        Figures of the comparison, and the radial distribution functions.

    Raises
    ------
    InputError
        If the runs cannot be compared.
    """
    structure = read_topology(runs[0].topology)
    error, series = _compare_rdf(runs, references, structure, burn_in_ps, window_ps)
    figures = [*error.figures(), *_lengths(runs, references, burn_in_ps, window_ps)]
    of_teacher = [read_thermo(run.thermo) for run in references]
    if calculator and all(log.pressure_gpa is not None for log in of_teacher):
        figures += compare_pressures(runs, references, structure, calculator, burn_in_ps, window_ps)
    return record_of(figures) | error.facts(), series


def _compare_rdf(
    runs: list[RunFolder],
    references: list[RunFolder],
    structure: Structure,
    burn_in_ps: float,
    window_ps: float,
) -> tuple[RdfError, Series]:
    """Compare g(r) of the runs with those of the references; return also both for plots."""
    student, teacher = (
        measure_suitable_rdf(
            chain.from_iterable(_window(run, structure, burn_in_ps, window_ps) for run in folders),
            structure,
        )
        for folders in (runs, references)
    )
    series = {"r_angstrom": thinned(student.r)}
    for k, pair in enumerate(student.pairs):
        series[f"g_student_{pair}"] = thinned(student.g[k])
        series[f"g_teacher_{pair}"] = thinned(teacher.g[k])
    return compare_rdf(student, teacher), series


def _lengths(
    runs: list[RunFolder], references: list[RunFolder], burn_in_ps: float, window_ps: float
) -> list[Figure]:
    """Return what is compared of the runs, and how many moves of the references were accepted."""
    logs, of_teacher = (
        [read_thermo(run.thermo) for run in folders] for folders in (runs, references)
    )
    moved = [np.diff(log.potential_ev) != 0.0 for log in of_teacher]
    longest = max(float(log.time_ps[-1]) for log in logs)
    longest_of_teacher = max(float(log.time_ps[-1]) for log in of_teacher)
    return [
        Figure("burn_in", burn_in_ps, "ps"),
        Figure("window", min(window_ps, longest - burn_in_ps), "ps"),
        Figure("teacher_window", min(window_ps, longest_of_teacher - burn_in_ps), "ps"),
        Figure("replicas", len(references)),
        # The lowest acceptance of a replica, and the most moves rejected in a row. MD has 1 and 0.
        Figure("teacher_acceptance", float(min(accepted.mean() for accepted in moved))),
        Figure("teacher_longest_rest", max(map(_longest_rest, moved))),
    ]


def compare_densities(
    runs: list[RunFolder], references: list[RunFolder], burn_in_ps: float, *, with_rdf: bool
) -> tuple[Record, Series]:
    """Compare the density of a liquid at constant pressure with the teacher's.

    Parameters
    ----------
    runs, references : list[RunFolder]
        Files of the student's run and of all chains of the teacher, at the same pressure.
    burn_in_ps : float
        Length at the start of each run that is left out, ps.
    with_rdf : bool
        Whether radial distribution functions are compared too, each at its own density.

    Returns
    -------
    tuple[Record, Series]
        Density of the teacher, g/cm^3, and error of the student's, percent, with standard errors;
        with `with_rdf`, also the radial distribution functions.

    Raises
    ------
    InputError
        If the runs cannot be compared.
    """
    structure = read_topology(runs[0].topology)
    mass = float(structure.atoms.get_masses().sum())

    def densities(run: RunFolder) -> NDArray[np.float64]:
        frames = _window(run, structure, burn_in_ps, np.inf)
        cells = np.concatenate([part.cells for part in frames if part.cells is not None])
        return mass * G_PER_CM3 / np.abs(np.linalg.det(cells))

    student = mean_of_runs([densities(run) for run in runs])
    teacher = mean_of_chains([densities(run) for run in references])
    ratio = student.value / teacher.value
    error = ratio * np.hypot(student.stderr / student.value, teacher.stderr / teacher.value)
    figures = [
        Figure("density_teacher", teacher.value, "g/cm^3", teacher.stderr),
        Figure("density_error", 100.0 * (ratio - 1.0), "%", 100.0 * float(error)),
        *_lengths(runs, references, burn_in_ps, np.inf),
    ]
    if not with_rdf:
        return record_of(figures), {}
    rdf, series = _compare_rdf(runs, references, structure, burn_in_ps, np.inf)
    return record_of([*rdf.figures(), *figures]) | rdf.facts(), series


def compare_vaporisation(
    runs: list[RunFolder], references: list[RunFolder], burn_in_ps: float, molecules: int
) -> list[Figure]:
    """Compare the enthalpy of vaporisation, U(gas) - U(box) / n + RT, with the teacher's.

    The volume of the liquid is neglected (at 1 bar, P V is 0.002 kJ/mol for water).

    Parameters
    ----------
    runs, references : list[RunFolder]
        Files of the runs of the student and of the teacher at constant pressure, and, last in each
        list, of a run of a single molecule.
    burn_in_ps : float
        Length at the start of each run at constant pressure that is left out, ps.
    molecules : int
        Number of molecules in the box.

    Returns
    -------
    list[Figure]
        Enthalpies of vaporisation of student and teacher, and their difference, kJ/mol.

    Raises
    ------
    InputError
        If a log cannot be read.
    """
    enthalpies = []
    for *boxes, gas in (runs, references):
        logs = [read_thermo(run.thermo) for run in boxes]
        energies = [
            log.potential_ev[_counted(log.time_ps, burn_in_ps, np.inf)] / molecules for log in logs
        ]
        liquid = mean_of_chains(energies)
        of_gas = mean_of_blocks(read_thermo(gas.thermo).potential_ev)
        temperature_K = read_json(gas.settings)["temperature_K"]
        value = of_gas.value - liquid.value + KB * temperature_K
        enthalpies.append(Estimate(value, float(np.hypot(of_gas.stderr, liquid.stderr))))
    student, teacher = (
        Estimate(estimate.value / KJ_PER_MOL, estimate.stderr / KJ_PER_MOL)
        for estimate in enthalpies
    )
    error = float(np.hypot(student.stderr, teacher.stderr))
    return [
        Figure("vaporisation", student.value, "kJ/mol", student.stderr),
        Figure("vaporisation_teacher", teacher.value, "kJ/mol", teacher.stderr),
        Figure("vaporisation_error", student.value - teacher.value, "kJ/mol", error),
    ]


def mean_of_chains(
    values: list[NDArray[np.float64]], moving: list[NDArray[np.float64]] | None = None
) -> Estimate:
    """Return the mean over chains of Monte Carlo.

    Parameters
    ----------
    values : list[NDArray[np.float64]]
        A series (rows,) for each chain.
    moving : list[NDArray[np.float64]] | None
        A series (rows,) for each chain that changes with every accepted move. None: the values do.

    Returns
    -------
    Estimate
        Mean and standard error, in the unit of the series. The error is NaN if a single chain
        rejected moves for longer than a block.
    """
    mean = mean_of_runs(values)
    rest = _longest_rest(np.diff((moving or values)[0]) != 0.0)
    if len(values) == 1 and BLOCKS * rest > len(values[0]):
        return mean._replace(stderr=np.nan)
    return mean


def compare_pressures(
    runs: list[RunFolder],
    references: list[RunFolder],
    structure: Structure,
    calculator: Calculator,
    burn_in_ps: float,
    window_ps: float,
) -> list[Figure]:
    """Compare the pressures of student and teacher at the same density and temperature.

    The kinetic parts are equal, so only the virials are compared.

    Parameters
    ----------
    runs, references : list[RunFolder]
        Files of all replicas of the student and of the teacher.
    structure : Structure
        Structure of the same atoms, with the cell.
    calculator : Calculator
        The student.
    burn_in_ps, window_ps : float
        Length that is left out at the start of each run, and length that is compared, ps.

    Returns
    -------
    list[Figure]
        Pressure of the teacher in its own ensemble; difference of the student's pressure in the
        student's ensemble; and error of the student's virial on the teacher's frames. All in GPa.
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
        assert log.pressure_gpa is not None  # `compare_liquids` checks it
        pressures.append(log.pressure_gpa[counted])
        virials.append(pressures[-1] - kinetic)
        of_student: list[float] = []
        for part in _window(run, structure, burn_in_ps, window_ps):
            of_student += map(virial, part.positions)
        errors.append(of_student - virials[-1])
    student, teacher = mean_of_runs(own), mean_of_chains(virials, pressures)
    own_pressure, virial_error = mean_of_runs(pressures), mean_of_runs(errors)
    difference = student.value - teacher.value
    error = float(np.hypot(student.stderr, teacher.stderr))
    return [
        Figure("pressure_teacher", own_pressure.value, "GPa", own_pressure.stderr),
        Figure("pressure_error", difference, "GPa", error),
        Figure("virial_error_on_teacher_frames", virial_error.value, "GPa", virial_error.stderr),
    ]


def _longest_rest(moved: NDArray[np.bool_]) -> int:
    """Return the largest number of rejected moves in a row."""
    accepted = np.flatnonzero(np.concatenate([[True], moved, [True]]))
    return int(np.diff(accepted).max()) - 1


def _window(
    run: RunFolder, structure: Structure, burn_in_ps: float, window_ps: float
) -> Iterator[Frames]:
    """Yield the frames after the burn-in, up to the end of the window."""
    counted = _counted(read_thermo(run.thermo).time_ps, burn_in_ps, window_ps)
    frames = stream_frames(run.trajectory, structure)
    return between_frames(frames, counted.start, counted.stop)


def _counted(time_ps: NDArray[np.float64], burn_in_ps: float, window_ps: float) -> slice:
    """Return the slice of the rows in the window. A log has a row for each frame."""
    ends = (burn_in_ps, burn_in_ps + window_ps)
    return slice(*(int((time_ps <= end * (1.0 + 1e-9)).sum()) for end in ends))


def thinned(values: NDArray[np.float64]) -> list[float]:
    """Return at most 400 evenly spaced values of a series, the last included, for plots.

    Parameters
    ----------
    values : NDArray[np.float64]
        Series, (rows,).

    Returns
    -------
    list[float]
        Values with six digits.
    """
    chosen = np.linspace(0, len(values) - 1, min(POINTS, len(values))).round().astype(int)
    return [float(f"{value:.6g}") for value in values[chosen]]
