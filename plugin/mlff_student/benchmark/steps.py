"""`benchmark openmm`: time of a step by size, interface, backend, platform and threads."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from mlff_student.archive.archive import Archive
from mlff_student.archive.backends import evaluator
from mlff_student.archive.registry import archive_of
from mlff_student.benchmark import MOLECULE
from mlff_student.benchmark.measure import STEPS, STILL_PS, software
from mlff_student.benchmark.records import Progress, Record, RecordFile, no_progress
from mlff_student.benchmark.settings import check_atoms, check_cores, check_models, check_positive
from mlff_student.benchmark.structures import archive_arguments, thermal_structure
from mlff_student.benchmark.timing import in_turns, using_threads
from mlff_student.core.errors import InputError, MissingDependencyError
from mlff_student.core.units import KJ_PER_MOL, NM
from mlff_student.engines.openmm import openmm_module
from mlff_student.engines.protocol import ns_per_day
from mlff_student.structures.reading import Structure, make_topology, read_structure
from mlff_student.teachers.registry import make_teacher

COMMAND = "benchmark openmm"


@dataclass(frozen=True)
class StepSettings:
    """Settings of `benchmark openmm`; each combination of the tuples is measured.

    Attributes
    ----------
    models : tuple[str, ...]
        Names of shipped models, or paths of checkpoints or archives.
    molecule : str
        Structure file or SMILES string, measured with students and teachers; empty for none.
    atoms : tuple[int, ...]
        Numbers of atoms of thermal structures, measured with the students.
    interfaces : tuple[str, ...]
        OpenMM forces: TorchForce, PythonForce.
    backends : tuple[str, ...]
        Compute backends: native, portable.
    platforms : tuple[str, ...]
        Platforms of OpenMM.
    threads : tuple[int, ...]
        Numbers of threads of the kernels and of the CPU platform of OpenMM.
    also : tuple[str, ...]
        Names of teachers that are run on the molecule through a PythonForce.
    timestep_fs : float
        Timestep for the figure ns/day, fs.
    seconds : float
        Least time for each structure and number of threads, s; there are three rounds at least.
    """

    models: tuple[str, ...]
    molecule: str = MOLECULE
    atoms: tuple[int, ...] = (100, 1000)
    interfaces: tuple[str, ...] = ("TorchForce", "PythonForce")
    backends: tuple[str, ...] = ("native", "portable")
    platforms: tuple[str, ...] = ("Reference", "CPU")
    threads: tuple[int, ...] = (1,)
    also: tuple[str, ...] = ()
    timestep_fs: float = 0.5
    seconds: float = 5.0

    def __post_init__(self) -> None:
        check_models(self.models)
        check_cores("threads", self.threads)
        check_atoms(self.atoms)
        if not self.molecule and not self.atoms:
            raise InputError("no molecule and no atoms to measure; give --molecule or --atoms")
        if self.also and not self.molecule:
            raise InputError(f"no molecule to measure {', '.join(self.also)} on; give --molecule")
        for name in ("timestep_fs", "seconds"):
            check_positive(name, getattr(self, name))


class StepJob(NamedTuple):
    """One measurement of `benchmark openmm`.

    Attributes
    ----------
    structure : str
        "molecule" or "thermal".
    atoms : int
        Number of atoms.
    threads : int
        Number of threads.
    """

    structure: str
    atoms: int
    threads: int

    def __str__(self) -> str:
        return f"{self.structure}, {self.atoms} atoms, threads: {self.threads}"


class Alternative(NamedTuple):
    """Another potential that is measured on the molecule.

    Attributes
    ----------
    name : str
        Name in the records.
    parameters : int, optional
        Number of parameters.
    calculator : Calculator, optional
        ASE calculator; if there is one, it is also timed outside OpenMM.
    create_system : callable
        Makes an OpenMM System from an OpenMM topology and ASE atoms.
    """

    name: str
    parameters: int | None
    calculator: Calculator | None
    create_system: Callable[[Any, Atoms], Any]


def benchmark_steps(
    settings: StepSettings,
    output: Path | None = None,
    progress: Progress = no_progress,
    *,
    command: str = COMMAND,
    alternatives: Sequence[Alternative] = (),
) -> list[Record]:
    """Measure steps that are so short that the atoms do not move; the potentials take turns.

    Such steps can also be measured with random weights, with which long dynamics is not possible.

    Parameters
    ----------
    settings : StepSettings
        What to measure.
    output : Path, optional
        JSON file, written after each structure and number of threads. An existing file is resumed
        if it was begun on this machine with the same settings and libraries.
    progress : callable
        Called with the name of the job, the number of jobs done and the number of jobs.
    command : str
        Command that is named in the file.
    alternatives : sequence of Alternative
        Other potentials to measure on the molecule.

    Returns
    -------
    list of dict
        Flat records. `kernel_ms` is the time of energy and forces outside OpenMM (null if they can
        be computed in OpenMM only), and `overhead_ms` the rest of a step.

    Raises
    ------
    InputError
        A platform or interface is unknown, or the output cannot be written or is of another
        benchmark.
    ArchiveError
        There is no such model.
    MissingDependencyError
        OpenMM, an interface, a backend or a calculator cannot be used.
    """
    archives = {model: archive_of(model) for model in settings.models}
    structures = {(label, len(atoms)): atoms for label, atoms in _structures(settings)}
    file = RecordFile(output, command, settings, versions())
    teachers = [from_calculator(name, None, make_teacher(name)) for name in settings.also]
    jobs = [StepJob(*key, threads) for key, threads in product(structures, settings.threads)]

    def measured(job: StepJob) -> list[Record]:
        others = [*teachers, *alternatives] if job.structure == "molecule" else []
        atoms = structures[job.structure, job.atoms]
        with using_threads(job.threads):
            return _measure(settings, job, atoms, archives, others)

    return file.measure(jobs, measured, progress)


def versions() -> dict[str, str]:
    """Return the versions of OpenMM, torch and the native kernels, which times depend on.

    Raises
    ------
    MissingDependencyError
        OpenMM does not load.
    """
    try:
        from openmm import Platform
    except ImportError as error:
        raise MissingDependencyError(
            f"OpenMM does not load ({error}); pip install 'mlff-student[openmm]'"
        ) from error
    return {"openmm": Platform.getOpenMMVersion()} | software()


def from_calculator(name: str, parameters: int | None, calculator: Calculator) -> Alternative:
    """Make an alternative of an ASE calculator; a PythonForce is the only force of its System.

    Parameters
    ----------
    name : str
        Name in the records.
    parameters : int, optional
        Number of parameters.
    calculator : Calculator
        ASE calculator.
    """

    def create_system(topology: Any, atoms: Atoms) -> Any:
        import openmm

        system_without_student = openmm_module("system").system_without_student
        moving = atoms.copy()

        def compute(state: openmm.State) -> tuple[float, np.ndarray]:
            moving.positions = state.getPositions(asNumpy=True)._value * NM
            results = _calculated(calculator, moving)
            return results["energy"] / KJ_PER_MOL, results["forces"] * (NM / KJ_PER_MOL)

        system = system_without_student(topology)
        system.addForce(openmm.PythonForce(compute))
        return system

    return Alternative(name, parameters, calculator, create_system)


@contextmanager
def quietly() -> Iterator[None]:
    """Hide the messages of other packages while they compile."""
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _structures(settings: StepSettings) -> Iterator[tuple[str, Atoms]]:
    if settings.molecule:
        yield "molecule", read_structure(settings.molecule).atoms
    archive = archive_of(settings.models[0])
    for count in settings.atoms:
        elements, cutoff = archive.metadata["elements"], archive.metadata["cutoff"]
        yield "thermal", thermal_structure(count, elements, cutoff)


def _measure(
    settings: StepSettings,
    job: StepJob,
    atoms: Atoms,
    archives: dict[str, Archive],
    alternatives: list[Alternative],
) -> list[Record]:
    """Measure one structure with one number of threads."""
    create_system = openmm_module().create_system
    find_platform = openmm_module("run").find_platform
    openmm_topology = openmm_module("topology").openmm_topology
    topology = openmm_topology(Structure(atoms, make_topology(atoms, [])))
    calls: dict[str, Callable[[], object]] = {}
    heads: list[tuple[str, str, Record]] = []  # key of the step, key of the kernel, facts

    def add(kernel: str, system: Any, head: Record) -> None:
        for name in settings.platforms:
            (platform,) = find_platform(name)
            key = f"{kernel} {head['interface']} {name}"
            calls[key] = _stepping(system, atoms, platform, job.threads)
            heads.append((key, kernel, head | {"platform": name}))

    with quietly():
        for (model, archive), backend in product(archives.items(), settings.backends):
            student = evaluator(archive, backend, threads=job.threads)
            kernel = f"{model} {backend}"
            calls[kernel] = _repeated(student.evaluate, *archive_arguments(atoms))
            head = {
                "model": model,
                "parameters": archive.metadata["parameters"],
                "backend": backend,
            }
            for interface in settings.interfaces:
                system = create_system(topology, model, interface=interface, backend=backend)
                add(kernel, system, head | {"interface": interface})
        for name, parameters, calculator, create in alternatives:
            kernel = f"{name} {parameters}"
            if calculator:
                calls[kernel] = _repeated(_calculated, calculator, atoms)
            head = {"model": name, "parameters": parameters, "backend": ""}
            add(kernel, create(topology, atoms), head | {"interface": "PythonForce"})
        for call in calls.values():
            for _ in range(2):  # TorchScript compiles in the second call
                call()
    times = in_turns(calls, settings.seconds)
    common = job._asdict() | {"periodic": bool(atoms.pbc.all())}
    records = []
    for key, kernel, head in heads:
        step = times[key].ms / STEPS
        alone = times[kernel].ms / STEPS if kernel in times else None
        records.append(
            head
            | common
            | {
                "ms_per_step": step,
                "ms_per_step_iqr": times[key].ms_iqr / STEPS,
                "kernel_ms": alone,
                "overhead_ms": None if alone is None else step - alone,
                "timestep_fs": settings.timestep_fs,
                "ns_per_day": ns_per_day(settings.timestep_fs, step),
            }
        )
    return records


def _repeated(function: Callable[..., object], *arguments: object) -> Callable[[], object]:
    return lambda: [function(*arguments) for _ in range(STEPS)]


def _calculated(calculator: Calculator, atoms: Atoms) -> dict[str, Any]:
    """Compute energy and forces, also if the calculator has results for the structure."""
    calculator.calculate(atoms, ["energy", "forces"], all_changes)
    return calculator.results


def _stepping(system: Any, atoms: Atoms, platform: Any, threads: int) -> Callable[[], object]:
    """Return a call that makes some steps in a new Context."""
    from openmm import Context, VerletIntegrator, unit

    integrator = VerletIntegrator(STILL_PS * unit.picosecond)
    options = {"Threads": str(threads)} if platform.getName() == "CPU" else {}
    context = Context(system, integrator, platform, options)
    context.setPositions(atoms.positions * unit.angstrom)
    return lambda: (integrator.step(STEPS), context)  # the Context lives as long as the call
