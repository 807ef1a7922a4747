"""All figures of a finished run, from its trajectory, topology and log."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from ase.calculators.calculator import Calculator
from numpy.typing import NDArray

from mlff_student.analysis.bonds import check_order
from mlff_student.analysis.drift import Drift, fit_drift
from mlff_student.analysis.ensemble import (
    Equipartition,
    KineticEnergies,
    equipartition,
    fluctuates,
    kinetic_energies,
    unknown_kinetic_energies,
)
from mlff_student.analysis.forces import (
    TrajectoryForceErrors,
    evaluate_trajectory,
    trajectory_force_errors,
)
from mlff_student.analysis.rdf import Rdf, RdfError, compare_rdf, measure_suitable_rdf
from mlff_student.analysis.same_run import (
    FrameSeries,
    check_energies,
    check_same_run,
    frame_spacing,
    logged_degrees_of_freedom,
    same_model,
)
from mlff_student.analysis.spectrum import (
    Spectrum,
    SpectrumError,
    compare_spectra,
    measure_spectrum,
)
from mlff_student.analysis.stability import Stability, measure_stability
from mlff_student.analysis.thermo import Thermo, read_thermo
from mlff_student.analysis.transport import Density, Diffusion, measure_density, measure_diffusion
from mlff_student.core.errors import InputError
from mlff_student.core.figures import Figure, Measured
from mlff_student.engines.protocol import ENSEMBLES
from mlff_student.structures.reading import Structure
from mlff_student.structures.trajectories import (
    Frames,
    between_frames,
    every_nth,
    read_topology,
    stream_frames,
)

FRAMES_FOR_ENERGY = 20  # checked against the log
# 5 ps, less a row: a thermostat of some 1/ps and more has by then given a box enough independent
# kinetic energies to test; a run with fewer heats or cools, or is coupled too weakly to tell.
MIN_THERMOSTAT_TEST_PS = 4.9


@dataclass(frozen=True)
class Reference:
    """A run of the teacher of the same atoms, that a student's run is compared with.

    Attributes
    ----------
    trajectory : Path
        In the same order of atoms.
    log : Path | None
        Of that run, to know the time between frames where the trajectory does not; None: then there
        is no spectrum.
    """

    trajectory: Path
    log: Path | None = None


@dataclass(frozen=True)
class Analysis(Measured):
    """All figures of one run; `as_record` is what --json writes. None is what was not measured:
    `notes` says why, where the files would let one expect it. `volumes` (F,) are of the box in each
    frame, angstrom^3, where the trajectory has one.
    """

    thermo: Thermo
    ensemble: str
    drift: Drift
    stability: Stability
    rows: int
    atoms: int
    degrees_of_freedom: int
    duration_ps: float
    stable_ps: float
    kinetic: KineticEnergies | None = None
    equipartition: Equipartition | None = None
    density: Density | None = None
    forces: TrajectoryForceErrors | None = None
    rdf: Rdf | None = None
    teacher_rdf: Rdf | None = None
    rdf_error: RdfError | None = None
    diffusion: Diffusion | None = None
    spectrum: Spectrum | None = None
    teacher_spectrum: Spectrum | None = None
    spectrum_error: SpectrumError | None = None
    notes: tuple[str, ...] = ()
    volumes: NDArray[np.float64] = field(default_factory=lambda: np.empty(0), repr=False)

    @property
    def sections(self) -> list[Measured]:
        """What was measured beside the energy."""
        sections = (
            self.stability,
            self.kinetic,
            self.equipartition,
            self.density,
            self.forces,
            self.rdf_error,
            self.diffusion,
            self.spectrum_error,
        )
        return [section for section in sections if section is not None]

    def figures(self) -> list[Figure]:
        """All figures; of the energy only of a run at constant energy."""
        return [
            *(self.drift.of_energy() if self.ensemble == "nve" else []),
            *self.drift.of_log(),
            *(figure for section in self.sections for figure in section.figures()),
            Figure("rows", self.rows),
            Figure("atoms", self.atoms),
            Figure("degrees_of_freedom", self.degrees_of_freedom),
            Figure("duration", self.duration_ps, "ps"),
            Figure("stable", self.stable_ps, "ps"),
        ]

    def facts(self) -> dict[str, str]:
        """The ensemble, and what the sections say in words."""
        facts = {"ensemble": self.ensemble}
        for section in self.sections:
            facts |= section.facts()
        return facts


def analyze(
    trajectory: Path,
    topology: Path,
    log: Path,
    *,
    degrees_of_freedom: int | None = None,
    ensemble: str = "nve",
    temperature_K: float | None = None,
    lammps_units: str | None = None,
    timestep_fs: float | None = None,
    teacher: Calculator | None = None,
    calculator: Calculator | None = None,
    teacher_frames: int = 50,
    reference: Reference | None = None,
) -> Analysis:
    """Figures of the run that wrote these three files.

    Parameters
    ----------
    trajectory : Path
        Any format that `stream_frames` reads.
    topology : Path
        Structure file with the trajectory's atoms in its order; its coordinates are the reference
        for bonds, its cell says whether the run is periodic.
    log : Path
        Any that `read_thermo` reads.
    degrees_of_freedom : int | None
        Unless given, those by which the log has a temperature and a kinetic energy, and 3N - 3
        where it has one of them.
    ensemble : str
        "nve" (drift is judged), "nvt" or "npt".
    temperature_K : float | None
        Of the thermostat, that the kinetic energies of "nvt" and "npt" are held against.
    lammps_units : str | None
        What a LAMMPS log or dump does not say.
    timestep_fs : float | None
        What a LAMMPS log or dump does not say.
    teacher : Calculator | None
        Whose forces the run's are compared with, on `teacher_frames` evenly spaced frames.
    calculator : Calculator | None
        The run's own, for its forces where the trajectory has none; its energies of some frames
        must be those in the log.
    reference : Reference | None
        Run of the teacher, for radial distribution functions and the spectrum.

    Raises
    ------
    InputError
        A file that cannot be used, or files of different runs.
    """
    if ensemble not in ENSEMBLES:
        raise InputError(f"unknown ensemble {ensemble!r}; known: {', '.join(ENSEMBLES)}")
    if ensemble != "nve" and temperature_K is None:
        raise InputError(f"ensemble {ensemble} needs the bath's temperature: --temperature-K")
    if temperature_K is not None and not temperature_K > 0.0:
        raise InputError(f"the bath's temperature must be positive, got {temperature_K:g} K")
    if teacher_frames < 1:
        raise InputError(f"teacher_frames must be positive, got {teacher_frames}")
    for kind, path in (("log", log), ("topology", topology), ("trajectory", trajectory)):
        if not Path(path).is_file():
            raise InputError(f"no {kind} file {path}")
    structure = read_topology(topology)
    atoms = len(structure.atoms)
    dof = 3 * atoms - 3 if degrees_of_freedom is None else degrees_of_freedom
    thermo = read_thermo(
        log, degrees_of_freedom=dof, lammps_units=lammps_units, timestep_fs=timestep_fs
    )
    notes: tuple[str, ...] = ()
    logged = logged_degrees_of_freedom(thermo)
    if degrees_of_freedom is None and logged >= 1.0 and round(logged) != dof:
        notes = (f"{round(logged)} degrees of freedom, as the log has them, not 3N - 3 = {dof}",)
        dof = round(logged)
    run = _Run(Path(trajectory), Path(log), structure, thermo, lammps_units or "metal")
    drift = fit_drift(thermo, atoms, degrees_of_freedom=dof)
    series = run.series
    stability = measure_stability(series.follow(run.frames(), structure), structure, run.trajectory)
    check_same_run(thermo, run.log, series, run.trajectory, atoms=atoms)
    analysis = Analysis(
        thermo=thermo,
        ensemble=ensemble,
        drift=drift,
        stability=stability,
        rows=len(thermo.time_ps),
        atoms=atoms,
        degrees_of_freedom=dof,
        duration_ps=float(thermo.time_ps[-1] - thermo.time_ps[0]),
        stable_ps=stability.stable_frames * run.frame_ps,
        notes=notes,
        volumes=np.array(series.volume_angstrom3),
    )
    if calculator is not None:  # what came apart may be beyond the calculator
        _check_model(run, calculator, stability.stable_frames)
    if stability.stable_frames < stability.frames:
        return _noted(analysis, "nothing but drift and stability of a run that came apart")
    analysis = _with_ensemble(analysis, run, temperature_K)
    if teacher is not None:
        forces = _compare_forces(run, teacher, calculator, teacher_frames)
        analysis = replace(analysis, forces=forces)
    if reference is not None:
        analysis = _with_reference(analysis, run, reference)
    return analysis


@dataclass(frozen=True)
class _Run:
    """Files of a run, and what was read of them."""

    trajectory: Path
    log: Path
    structure: Structure
    thermo: Thermo
    lammps_units: str
    series: FrameSeries = field(default_factory=FrameSeries)

    def frames(self, path: Path | None = None, every: int = 1) -> Iterator[Frames]:
        """Of the run, or of another with the same atoms."""
        parts = stream_frames(
            path or self.trajectory, self.structure, lammps_units=self.lammps_units
        )
        return every_nth(parts, every) if every > 1 else parts

    @property
    def frame_ps(self) -> float:
        """Time between frames."""
        return frame_spacing(self.thermo, self.series.frames)


def _noted(analysis: Analysis, note: str) -> Analysis:
    return replace(analysis, notes=(*analysis.notes, note))


def _with_ensemble(analysis: Analysis, run: _Run, temperature_K: float | None) -> Analysis:
    """Kinetic energies, equipartition, density and diffusion, as far as the run has them."""
    thermo, structure = run.thermo, run.structure
    if temperature_K is not None and analysis.ensemble != "nve":
        try:
            kinetic = kinetic_energies(
                thermo.kinetic_ev,
                degrees_of_freedom=analysis.degrees_of_freedom,
                temperature_K=temperature_K,
            )
            analysis = replace(analysis, kinetic=kinetic)
        except InputError as error:  # too few that are independent, or none to test
            analysis = _noted(analysis, f"no test of kinetic energies: {error}")
            # It heats, or its energy is held: what cannot be tested is no pass.
            if analysis.duration_ps >= MIN_THERMOSTAT_TEST_PS or not fluctuates(thermo.kinetic_ev):
                analysis = replace(analysis, kinetic=unknown_kinetic_energies())
    if run.series.kinetic_ev:
        analysis = replace(analysis, equipartition=equipartition(run.frames(), structure))
    if analysis.ensemble == "npt":
        time, volume = thermo.time_ps, thermo.volume_angstrom3
        if volume is None:  # the frames have it
            volume = analysis.volumes
            time = run.frame_ps * np.arange(len(volume), dtype=np.float64)
        if len(volume) and np.ptp(volume) > 0:
            mass = float(structure.atoms.get_masses().sum())
            try:
                analysis = replace(analysis, density=measure_density(time, volume, mass))
            except InputError as error:  # too few frames
                analysis = _noted(analysis, f"no density: {error}")
        else:
            analysis = _noted(analysis, "no density: neither log nor trajectory has the volume")
    if structure.atoms.pbc.all():
        try:
            diffusion = measure_diffusion(run.frames(), structure, frame_ps=run.frame_ps)
            analysis = replace(analysis, diffusion=diffusion)
        except InputError as error:  # too few frames
            analysis = _noted(analysis, f"no diffusion: {error}")
    return analysis


def _check_model(run: _Run, calculator: Calculator, frames: int) -> None:
    """Refuse a log whose potential energies are not the model's on a few of the first `frames`."""
    if not frames:
        return
    every = -(-frames // FRAMES_FOR_ENERGY)
    parts = between_frames(run.frames(every=every), 0, -(-frames // every))
    energies = np.concatenate([evaluate_trajectory(x, run.structure, calculator)[0] for x in parts])
    check_energies(
        run.thermo.potential_ev,
        run.series.frames,
        every * np.arange(len(energies)),
        energies,
        "potential energy",
        run.log,
        run.trajectory,
        same_model(run.trajectory),
    )


def _compare_forces(
    run: _Run, teacher: Calculator, calculator: Calculator | None, teacher_frames: int
) -> TrajectoryForceErrors:
    """Errors of the run's forces on some of its frames."""
    every = -(-run.series.frames // teacher_frames)
    forces, of_teacher = [], []
    for part in run.frames(every=every):
        of_teacher.append(evaluate_trajectory(part, run.structure, teacher)[1])
        if calculator is not None:
            forces.append(evaluate_trajectory(part, run.structure, calculator)[1])
        elif part.forces is None:
            raise InputError(
                f"{run.trajectory} has no forces; give the model that made it to compute them"
            )
        else:
            forces.append(part.forces)
    numbers = run.structure.atoms.numbers
    return trajectory_force_errors(np.concatenate(forces), np.concatenate(of_teacher), numbers)


def _with_reference(analysis: Analysis, run: _Run, reference: Reference) -> Analysis:
    """Radial distribution functions and spectrum against the teacher's run."""
    structure, path = run.structure, Path(reference.trajectory)
    if path.exists() and path.samefile(run.trajectory):
        raise InputError(f"{path} is the run itself; give the teacher's own trajectory")
    check_order(path, structure, next(run.frames(path)))
    series = FrameSeries()
    student = measure_suitable_rdf(run.frames(), structure)
    teacher = measure_suitable_rdf(series.follow(run.frames(path), structure), structure)
    error = compare_rdf(student, teacher)
    analysis = replace(analysis, rdf=student, teacher_rdf=teacher, rdf_error=error)
    if error.rdf_error_percent <= error.rdf_noise_percent:
        analysis = _noted(
            analysis,
            f"the g(r) of {error.rdf_error_pair} is no farther off than two runs of one potential "
            "as long as these would be: longer runs would tell more",
        )
    try:
        teacher_ps = _frame_ps(path, reference.log, series, len(structure.atoms))
        spectra = [
            measure_spectrum(run.frames(one), structure, frame_ps=frame_ps)
            for one, frame_ps in ((run.trajectory, run.frame_ps), (path, teacher_ps))
        ]
        return replace(
            analysis,
            spectrum=spectra[0],
            teacher_spectrum=spectra[1],
            spectrum_error=compare_spectra(*spectra),
        )
    except InputError as error:  # time unknown, frames too far apart, or too few
        return _noted(analysis, f"no spectrum: {error}")


def _frame_ps(path: Path, log: Path | None, series: FrameSeries, atoms: int) -> float:
    """Time between the frames of the teacher's run, whose `series` was read."""
    if log is not None:
        thermo = read_thermo(log, degrees_of_freedom=3 * atoms - 3)
        check_same_run(thermo, log, series, path, atoms=atoms)
        return frame_spacing(thermo, series.frames)
    if len(series.time_ps) > 1:
        return (series.time_ps[-1] - series.time_ps[0]) / (len(series.time_ps) - 1)
    raise InputError(f"{path} does not tell the time between frames; give its log")
