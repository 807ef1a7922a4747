"""How long a step takes in OpenMM: by size, interface, kernels, platform and number of threads, and
with what else a user could run in the student's place.
"""

import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from mlff_student.archive.archive import Archive
from mlff_student.archive.native import library_path, with_backend
from mlff_student.archive.registry import archive_of
from mlff_student.benchmark.architectures import ARCHITECTURES, check_elements, make_rival
from mlff_student.benchmark.measure import STEPS, STILL_PS
from mlff_student.benchmark.records import Record, RecordFile
from mlff_student.benchmark.thermal import thermal_structure
from mlff_student.benchmark.timing import in_turns
from mlff_student.core.errors import InputError, MissingDependencyError
from mlff_student.core.files import require_writable
from mlff_student.core.results import machine_facts
from mlff_student.core.units import KJ_PER_MOL, NM
from mlff_student.engines.ase.calculator import evaluate
from mlff_student.engines.openmm import openmm_module
from mlff_student.engines.protocol import ns_per_day
from mlff_student.structures.reading import Structure, make_topology, read_structure
from mlff_student.teachers.registry import make_teacher

COMMAND = "benchmark openmm"


@dataclass(frozen=True)
class StepSettings:
    """What is measured: every combination of the tuples.

    Attributes
    ----------
    models : names of shipped models, or paths of checkpoints or archives.
    molecule : file or SMILES string, measured with the students and the others; empty for none.
    atoms : sizes of thermal structures, measured with the students.
    interfaces, backends : of `openmm_integration.student_force`.
    platforms : of OpenMM.
    threads : numbers of threads, of the kernels and of OpenMM's CPU platform.
    others : run through a PythonForce on the molecule: names that
        `mlff_student.teachers.registry.make_teacher` takes, and "tensornet", "mace" or "ani": networks of
        that architecture with random weights, one about as large as each model.
    timestep_fs : that ns/day are counted with.
    seconds : spent on a structure and number of threads, beyond three rounds.
    """

    models: tuple[str, ...]
    molecule: str = "CC(=O)N[C@@H](C)C(=O)NC"
    atoms: tuple[int, ...] = (100, 1000)
    interfaces: tuple[str, ...] = ("TorchForce", "PythonForce")
    backends: tuple[str, ...] = ("native", "portable")
    platforms: tuple[str, ...] = ("Reference", "CPU")
    threads: tuple[int, ...] = (1,)
    others: tuple[str, ...] = ()
    timestep_fs: float = 0.5
    seconds: float = 5.0

    def __post_init__(self) -> None:
        cores = machine_facts()["cores"]
        if bad := [count for count in self.threads if not 1 <= count <= cores]:
            raise InputError(f"threads must be 1 to {cores}, the cores here; got {bad[0]}")
        if bad := [count for count in self.atoms if count < 2]:
            raise InputError(f"atoms must be 2 or more, got {bad[0]}")
        if not self.molecule and not self.atoms:
            raise InputError("no molecule and no atoms to measure")
        if self.others and not self.molecule:
            raise InputError(f"no molecule to measure {', '.join(self.others)} on")
        for name in ("timestep_fs", "seconds"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} must be positive, got {getattr(self, name)}")


class Other(NamedTuple):
    """What is measured in a student's place."""

    name: str
    parameters: int | None
    calculator: Calculator | None
    create_system: Callable[[Any, Atoms], Any]  # of an OpenMM topology


def benchmark_steps(
    settings: StepSettings,
    output: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda job, done, jobs: None,
) -> list[Record]:
    """Measure steps so short that the structure stays, all of a structure's in turns. Random
    weights, too, can be measured so, with which no dynamics is possible.

    Parameters
    ----------
    output : JSON file, written after every structure and number of threads. One that is there
        already and was begun on this machine with the same settings and libraries is gone on with.
    progress : called with the job's name, how many are done and how many there are.

    Returns
    -------
    Flat records. `kernel_ms` is energy and forces outside OpenMM, where they can be had there, and
    `overhead_ms` what a step takes beyond.

    Raises
    ------
    InputError : settings that cannot be measured; an output that cannot be written or is of another
        benchmark.
    ArchiveError : no such model.
    MissingDependencyError : OpenMM, an interface, kernels, a calculator or another network's
        package cannot be used.
    """
    archives = {model: archive_of(model) for model in settings.models}
    structures = list(_structures(settings))
    if output:
        require_writable(output)
    file = RecordFile(output, COMMAND, settings, versions())
    jobs = [
        (label, atoms, threads)
        for (label, atoms), threads in product(structures, settings.threads)
        if not any(
            (one["structure"], one["atoms"], one["threads"]) == (label, len(atoms), threads)
            for one in file.records
        )
    ]
    made = len(structures) * len(settings.threads) - len(jobs)
    progress("packages", made, made + len(jobs))
    with _quietly():
        others = list(_others(settings, archives, structures)) if jobs else []
    threads_before = torch.get_num_threads()
    try:
        for done, (label, atoms, threads) in enumerate(jobs, made):
            progress(f"{label}, {len(atoms)} atoms, threads: {threads}", done, made + len(jobs))
            torch.set_num_threads(threads)
            beside = others if label == "molecule" else []
            file.add(_measure(settings, atoms, label, threads, archives, beside))
        progress("done", made + len(jobs), made + len(jobs))
    finally:
        torch.set_num_threads(threads_before)
    return file.records


def versions() -> dict[str, str]:
    """What a step's time depends on, beside the machine.

    Raises
    ------
    MissingDependencyError : OpenMM does not load.
    """
    try:
        from openmm import Platform
    except ImportError as error:
        raise MissingDependencyError(
            f"OpenMM does not load ({error}); pip install 'mlff-student[openmm]'"
        ) from error
    library = library_path()
    found = library.read_bytes() if library.is_file() else b""
    return {
        "openmm": Platform.getOpenMMVersion(),
        "torch": torch.__version__,
        "library_sha256": hashlib.sha256(found).hexdigest(),
    }


def _others(
    settings: StepSettings, archives: dict[str, Archive], structures: list[tuple[str, Atoms]]
) -> Iterator[Other]:
    molecules = [atoms for label, atoms in structures if label == "molecule"]
    sizes = {archive.metadata["parameters"] for archive in archives.values()}
    for name in settings.others:
        if name not in ARCHITECTURES:
            yield _from_calculator(name, None, make_teacher(name))
            continue
        for atoms in molecules:
            check_elements(name, atoms)
        for parameters in sorted(sizes, reverse=True):
            rival = make_rival(name, parameters)
            if calculator := rival.calculator():
                yield _from_calculator(name, rival.parameters, calculator)
            else:
                yield Other(name, rival.parameters, None, rival.create_system)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what other packages say while they compile, and what barostats would need."""
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
    atoms: Atoms,
    label: str,
    threads: int,
    archives: dict[str, Archive],
    others: list[Other],
) -> list[Record]:
    """All records of one structure and number of threads."""
    create_system = openmm_module().create_system
    find_platform = openmm_module("run").find_platform
    openmm_topology = openmm_module("topology").openmm_topology
    topology = openmm_topology(Structure(atoms, make_topology(atoms, [])))
    calls: dict[str, Callable[[], object]] = {}
    heads: list[tuple[str, str, Record]] = []  # of the step, of the kernel alone

    def add(kernel: str, system: Any, head: Record) -> None:
        for name in settings.platforms:
            (platform,) = find_platform(name)
            key = f"{kernel} {head['interface']} {name}"
            calls[key] = _stepping(system, atoms, platform, threads)
            heads.append((key, kernel, head | {"platform": name}))

    with _quietly():
        for (model, archive), backend in product(archives.items(), settings.backends):
            chosen = with_backend(archive, backend)
            kernel = f"{model} {backend}"
            calls[kernel] = _repeated(evaluate, chosen, atoms)
            head = {
                "model": model,
                "parameters": archive.metadata["parameters"],
                "backend": backend,
            }
            for interface in settings.interfaces:
                system = create_system(topology, model, interface=interface, backend=backend)
                add(kernel, system, head | {"interface": interface})
        for other in others:
            name, parameters, calculator, _ = other
            kernel = f"{name} {parameters}"
            if calculator:
                calls[kernel] = _repeated(_calculated, calculator, atoms)
            head = {"model": name, "parameters": parameters, "backend": ""}
            add(kernel, other.create_system(topology, atoms), head | {"interface": "PythonForce"})
        for call in calls.values():
            for _ in range(2):  # TorchScript compiles
                call()
    times = in_turns(calls, settings.seconds)
    common = {"structure": label, "atoms": len(atoms), "periodic": bool(atoms.pbc.all())}
    made = []
    for key, kernel, head in heads:
        step = times[key].ms / STEPS
        alone = times[kernel].ms / STEPS if kernel in times else None
        made.append(
            head
            | common
            | {
                "threads": threads,
                "ms_per_step": step,
                "ms_per_step_iqr": times[key].ms_iqr / STEPS,
                "kernel_ms": alone,
                "overhead_ms": None if alone is None else step - alone,
                "timestep_fs": settings.timestep_fs,
                "ns_per_day": ns_per_day(settings.timestep_fs, step),
            }
        )
    return made


def _repeated(function: Callable[..., object], *arguments: object) -> Callable[[], object]:
    return lambda: [function(*arguments) for _ in range(STEPS)]


def _calculated(calculator: Calculator, atoms: Atoms) -> dict[str, Any]:
    """Energy and forces, of a structure that the calculator remembers too."""
    calculator.calculate(atoms, ["energy", "forces"], all_changes)
    return calculator.results


def _from_calculator(name: str, parameters: int | None, calculator: Calculator) -> Other:
    """An ASE calculator as a PythonForce, the only force of a System."""

    def create_system(topology: Any, atoms: Atoms) -> Any:
        import openmm

        system_without_student = openmm_module("system").system_without_student
        moving = atoms.copy()

        def compute(state: openmm.State) -> tuple[float, np.ndarray]:
            moving.positions = state.getPositions(asNumpy=True)._value * NM
            found = _calculated(calculator, moving)
            return found["energy"] / KJ_PER_MOL, found["forces"] * (NM / KJ_PER_MOL)

        system = system_without_student(topology)
        system.addForce(openmm.PythonForce(compute))
        return system

    return Other(name, parameters, calculator, create_system)


def _stepping(system: Any, atoms: Atoms, platform: Any, threads: int) -> Callable[[], object]:
    """Call that makes some steps in a Context of its own."""
    from openmm import Context, VerletIntegrator, unit

    integrator = VerletIntegrator(STILL_PS * unit.picosecond)
    options = {"Threads": str(threads)} if platform.getName() == "CPU" else {}
    context = Context(system, integrator, platform, options)
    context.setPositions(atoms.positions * unit.angstrom)
    return lambda: (integrator.step(STEPS), context)  # the Context lives as long as the call
