"""Measure all figures of a finished run from its trajectory, topology and log."""

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
from mlff_student.analysis.run_files import RunFiles, open_run
from mlff_student.analysis.same_run import (
    FrameSeries,
    check_energies,
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
from mlff_student.analysis.thermo import Thermo
from mlff_student.analysis.transport import Density, Diffusion, measure_density, measure_diffusion
from mlff_student.core.errors import InputError
from mlff_student.core.figures import Figure, Measured
from mlff_student.engines.protocol import ENSEMBLES
from mlff_student.structures.trajectories import (
    Frames,
    between_frames,
    read_topology,
    stream_frames,
)

FRAMES_FOR_ENERGY = 20  # frames whose energy is compared with the log
# 5 ps without a row. In this time a thermostat with a friction of about 1/ps or more gives a box
# enough independent kinetic energies to test. A run with fewer heats or cools, or its thermostat is
# too weak.
MIN_THERMOSTAT_TEST_PS = 4.9


@dataclass(frozen=True)
class Reference:
    """A run of the teacher with the same atoms, with which a student's run is compared.

    Attributes
    ----------
    trajectory : Path
        Trajectory of the teacher's run, with the atoms in the same order.
    log : Path | None
        Log of the teacher's run, for the time between frames. Without it there is a spectrum only
        if the trajectory has times.
    """

    trajectory: Path
    log: Path | None = None


@dataclass(frozen=True)
class Analysis(Measured):
    """All figures of a run. The option --json writes its `as_record`.

    A part that was not measured is None.

    Attributes
    ----------
    thermo : Thermo
        Log of the run.
    ensemble : str
        "nve", "nvt" or "npt".
    drift : Drift
        How well the run conserved its energy.
    stability : Stability
        What the bonds did.
    rows : int
        Number of rows of the log.
    atoms : int
        Number of atoms.
    degrees_of_freedom : int
        Number of degrees of freedom.
    duration_ps : float
        Time from the first to the last row of the log, ps.
    stable_ps : float
        Time before a bond broke, ps.
    kinetic : KineticEnergies | None
        Test of the kinetic energies of a run with a thermostat.
    equipartition : Equipartition | None
        Temperatures of elements and kinds of motion, from velocities.
    density : Density | None
        Density of a run at constant pressure.
    forces : TrajectoryForceErrors | None
        Errors of the forces compared with a teacher.
    rdf, teacher_rdf : Rdf | None
        Radial distribution functions of the run and of the teacher's run.
    rdf_error : RdfError | None
        Difference of the two radial distribution functions.
    diffusion : Diffusion | None
        Diffusion in a periodic box.
    spectrum, teacher_spectrum : Spectrum | None
        Vibrational spectra of the run and of the teacher's run.
    spectrum_error : SpectrumError | None
        Difference of the two spectra.
    notes : tuple[str, ...]
        Why a part was not measured that the files would lead a user to expect.
    log_used : str
        Tables of the log that were used, and those that were left out, in words.
    volumes : NDArray[np.float64]
        Volume of the box in each frame, (F,), angstrom^3. Empty for an open system.
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
    log_used: str = ""
    volumes: NDArray[np.float64] = field(default_factory=lambda: np.empty(0), repr=False)

    @property
    def sections(self) -> list[Measured]:
        """The parts that were measured, without the energy drift."""
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
        """Return all figures. Those of the energy drift are left out with a thermostat."""
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
        """Return the ensemble, the tables of the log, and what the parts say in words."""
        facts = {"ensemble": self.ensemble, "log_used": self.log_used}
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
    """Measure a run from the three files that it wrote.

    Parameters
    ----------
    trajectory : Path
        Trajectory in any format that `stream_frames` reads.
    topology : Path
        Structure file with the atoms in the order of the trajectory. Its coordinates are the
        reference for bonds, and its cell says whether the run is periodic.
    log : Path
        Log in any format that `read_thermo` reads.
    degrees_of_freedom : int | None
        Number of degrees of freedom. None: the number that follows from temperature and kinetic
        energy in the log, or 3N - 3 if the log has only one of them.
    ensemble : str
        Ensemble of the run: "nve", in which drift is judged, "nvt" or "npt".
    temperature_K : float | None
        Temperature of the thermostat, K. "nvt" and "npt" need it for the test of kinetic energies.
    lammps_units : str | None
        Unit style of a LAMMPS log or dump that does not have it: "metal" or "real".
    timestep_fs : float | None
        Timestep of a log that has only steps, fs.
    teacher : Calculator | None
        Teacher whose forces the forces of the run are compared with.
    calculator : Calculator | None
        Model of the run. It computes forces that the trajectory does not have. Its energies of some
        frames must be those in the log.
    teacher_frames : int
        Number of evenly spaced frames on which forces are compared.
    reference : Reference | None
        Run of the teacher, for radial distribution functions and the spectrum.

    Returns
    -------
    Analysis
        All figures of the run.

    Raises
    ------
    InputError
        If a file cannot be used, or the files are of different runs.
    MissingDependencyError
        If physical_validation is not installed and a test of the ensemble needs it.
    """
    if ensemble not in ENSEMBLES:
        raise InputError(f"unknown ensemble {ensemble!r}; known: {', '.join(ENSEMBLES)}")
    if ensemble != "nve" and temperature_K is None:
        raise InputError(
            f"ensemble {ensemble} needs the temperature of the thermostat: give --temperature-K"
        )
    if temperature_K is not None and not temperature_K > 0.0:
        raise InputError(
            f"the temperature of the thermostat must be positive, got {temperature_K:g} K"
        )
    if teacher_frames < 1:
        raise InputError(f"teacher_frames must be positive, got {teacher_frames}")
    for kind, path in (("log", log), ("topology", topology), ("trajectory", trajectory)):
        if not Path(path).is_file():
            raise InputError(f"there is no {kind} file {path}")
    structure = read_topology(topology)
    atoms = len(structure.atoms)
    dof = 3 * atoms - 3 if degrees_of_freedom is None else degrees_of_freedom
    run = open_run(Path(trajectory), Path(log), structure, dof, lammps_units, timestep_fs)
    thermo, series, notes = run.thermo, run.series, run.notes
    logged = logged_degrees_of_freedom(thermo)
    if degrees_of_freedom is None and logged >= 1.0 and round(logged) != dof:
        notes += (f"the log implies {round(logged)} degrees of freedom, not 3N - 3 = {dof}",)
        dof = round(logged)
    drift = fit_drift(thermo, atoms, degrees_of_freedom=dof)
    stability = measure_stability(series.follow(run.frames(), structure), structure, run.trajectory)
    run.check(series)
    analysis = Analysis(
        thermo=thermo,
        ensemble=ensemble,
        drift=drift,
        stability=stability,
        rows=len(thermo.time_ps),
        atoms=atoms,
        degrees_of_freedom=dof,
        duration_ps=float(thermo.time_ps[-1] - thermo.time_ps[0]),
        stable_ps=run.time_before(stability.stable_frames),
        notes=notes,
        log_used=run.log_used,
        volumes=np.array(series.volume_angstrom3),
    )
    if calculator is not None:  # on stable frames, as a calculator may fail on broken molecules
        _check_model(run, calculator, stability.stable_frames)
    if stability.stable_frames < stability.frames:
        return _noted(analysis, "only drift and stability are measured, because the molecule broke")
    analysis = _with_ensemble(analysis, run, temperature_K)
    if teacher is not None:
        forces = _compare_forces(run, teacher, calculator, teacher_frames)
        analysis = replace(analysis, forces=forces)
    if reference is not None:
        analysis = _with_reference(analysis, run, reference)
    return analysis


def _noted(analysis: Analysis, note: str) -> Analysis:
    return replace(analysis, notes=(*analysis.notes, note))


def _with_ensemble(analysis: Analysis, run: RunFiles, temperature_K: float | None) -> Analysis:
    """Add kinetic energies, equipartition, density and diffusion, as far as the run has them."""
    thermo, structure = run.thermo, run.structure
    if temperature_K is not None and analysis.ensemble != "nve":
        try:
            kinetic = kinetic_energies(
                thermo.kinetic_ev,
                degrees_of_freedom=analysis.degrees_of_freedom,
                temperature_K=temperature_K,
            )
            analysis = replace(analysis, kinetic=kinetic)
        except InputError as error:  # too few are independent, or they are constant
            analysis = _noted(analysis, f"no test of kinetic energies: {error}")
            # The run heats, or its kinetic energy is constant: a run that cannot be tested fails.
            if analysis.duration_ps >= MIN_THERMOSTAT_TEST_PS or not fluctuates(thermo.kinetic_ev):
                analysis = replace(analysis, kinetic=unknown_kinetic_energies())
    if run.series.kinetic_ev:
        analysis = replace(analysis, equipartition=equipartition(run.frames(), structure))
    if analysis.ensemble == "npt":
        time, volume = thermo.time_ps, thermo.volume_angstrom3
        if volume is None:  # take it from the frames
            volume = analysis.volumes
            time = run.frame_times()[: len(volume)]
        if len(volume) and np.ptp(volume) > 0:
            mass = float(structure.atoms.get_masses().sum())
            try:
                analysis = replace(analysis, density=measure_density(time, volume, mass))
            except InputError as error:  # too few frames
                analysis = _noted(analysis, f"no density: {error}")
        else:
            analysis = _noted(
                analysis, "no density: neither log nor trajectory has a changing volume"
            )
    if structure.atoms.pbc.all():
        try:
            diffusion = measure_diffusion(run.frames(), structure, frame_ps=run.frame_ps())
            analysis = replace(analysis, diffusion=diffusion)
        except InputError as error:  # too few frames, or unevenly spaced
            analysis = _noted(analysis, f"no diffusion: {error}")
    return analysis


def _check_model(run: RunFiles, calculator: Calculator, frames: int) -> None:
    """Refuse a log whose potential energies are not the model's on a few of the first frames."""
    if not frames:
        return
    every = -(-frames // FRAMES_FOR_ENERGY)
    parts = between_frames(run.frames(every=every), 0, -(-frames // every))
    energies = np.concatenate(
        [evaluate_trajectory(part, run.structure, calculator)[0] for part in parts]
    )
    check_energies(
        run.thermo.potential_ev,
        run.series.frames,
        every * np.arange(len(energies)),
        energies,
        "potential energy",
        run.log,
        run.trajectory,
        same_model(run.trajectory),
        run.row_of_frame,
    )


def _compare_forces(
    run: RunFiles, teacher: Calculator, calculator: Calculator | None, teacher_frames: int
) -> TrajectoryForceErrors:
    """Return the errors of the run's forces on evenly spaced frames."""
    every = -(-run.series.frames // teacher_frames)
    forces, of_teacher = [], []
    for part in run.frames(every=every):
        of_teacher.append(evaluate_trajectory(part, run.structure, teacher)[1])
        if calculator is not None:
            forces.append(evaluate_trajectory(part, run.structure, calculator)[1])
        elif part.forces is None:
            raise InputError(f"{run.trajectory} has no forces; give the model of the run (--model)")
        else:
            forces.append(part.forces)
    numbers = run.structure.atoms.numbers
    return trajectory_force_errors(np.concatenate(forces), np.concatenate(of_teacher), numbers)


def _with_reference(analysis: Analysis, run: RunFiles, reference: Reference) -> Analysis:
    """Add radial distribution functions and spectrum, compared with the teacher's run."""
    structure, path = run.structure, Path(reference.trajectory)
    if path.exists() and path.samefile(run.trajectory):
        raise InputError(f"{path} is the run itself; give the teacher's own trajectory")
    check_order(path, structure, next(stream_frames(path, structure)))
    series = FrameSeries()
    problem = InputError(
        f"{path} does not have the time between frames; give the log of that run (--reference-log)"
    )
    of_teacher: RunFiles | None = None
    if reference.log is not None:
        try:
            dof = 3 * len(structure.atoms) - 3
            of_teacher = open_run(path, Path(reference.log), structure, dof, None, None)
            series = of_teacher.series
        except InputError as error:
            problem = error

    def teacher_frames() -> Iterator[Frames]:
        if of_teacher is not None:
            return of_teacher.frames()
        return stream_frames(path, structure, lammps_units=run.lammps_units)

    student = measure_suitable_rdf(run.frames(), structure)
    teacher = measure_suitable_rdf(series.follow(teacher_frames(), structure), structure)
    error = compare_rdf(student, teacher)
    analysis = replace(analysis, rdf=student, teacher_rdf=teacher, rdf_error=error)
    if error.rdf_error_percent <= error.rdf_noise_percent:
        analysis = _noted(
            analysis,
            f"the error of g(r) of {error.rdf_error_pair} is not larger than that between two runs "
            "of the same potential with these lengths: run longer to resolve a smaller error",
        )
    try:
        if of_teacher is not None:
            of_teacher.check(series)
            teacher_ps = of_teacher.frame_ps()
        elif reference.log is None and len(series.time_ps) > 1:
            teacher_ps = (series.time_ps[-1] - series.time_ps[0]) / (len(series.time_ps) - 1)
        else:
            raise problem
        spectra = [
            measure_spectrum(frames, structure, frame_ps=frame_ps)
            for frames, frame_ps in ((run.frames(), run.frame_ps()), (teacher_frames(), teacher_ps))
        ]
        return replace(
            analysis,
            spectrum=spectra[0],
            teacher_spectrum=spectra[1],
            spectrum_error=compare_spectra(*spectra),
        )
    except InputError as error:  # no time, or frames too far apart or too few
        return _noted(analysis, f"no spectrum: {error}")
