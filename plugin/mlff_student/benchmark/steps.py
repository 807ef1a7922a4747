"""How long a step takes in OpenMM: by size, interface, kernels, platform and number of threads, and
with any ASE calculator in the student's place.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator

from ..archive import Archive
from ..calculator import evaluate
from ..checkpoints import archive_of
from ..errors import InputError, MissingDependencyError
from ..md import ns_per_day
from ..native import with_backend
from ..results import machine_facts
from ..structure import Structure, make_topology, read_structure
from ..teachers import make_teacher
from ..units import KJ_PER_MOL, NM
from .measure import STEPS, STILL_PS
from .record_file import Record
from .thermal import thermal_structure
from .timing import in_turns

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
    others : names that `mlff_student.teachers.make_teacher` takes, run through a PythonForce.
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
        for name in ("timestep_fs", "seconds"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} must be positive, got {getattr(self, name)}")


def benchmark_steps(
    settings: StepSettings,
    progress: Callable[[str, int, int], None] = lambda job, done, jobs: None,
) -> list[Record]:
    """Measure steps so short that the structure stays, all of a structure's in turns.

    Returns
    -------
    Flat records. `kernel_ms` is energy and forces outside OpenMM, `overhead_ms` what a step takes
    beyond.

    Raises
    ------
    InputError : settings that cannot be measured.
    ArchiveError : no such model.
    MissingDependencyError : OpenMM, an interface, kernels or another calculator cannot be used.
    """
    archives = {model: archive_of(model) for model in settings.models}
    others = {name: make_teacher(name) for name in settings.others}
    jobs = list(product(_structures(settings), settings.threads))
    records: list[Record] = []
    threads_before = torch.get_num_threads()
    try:
        for done, ((label, atoms), threads) in enumerate(jobs):
            progress(f"{label}, threads: {threads}", done, len(jobs))
            torch.set_num_threads(threads)
            records += _measure(
                settings, atoms, label, threads, archives, others if label == "molecule" else {}
            )
        progress("done", len(jobs), len(jobs))
    finally:
        torch.set_num_threads(threads_before)
    return records


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
    others: dict[str, Calculator],
) -> list[Record]:
    """All records of one structure and number of threads."""
    try:
        from openmm_integration import create_system
        from openmm_integration.run import find_platform
        from openmm_integration.topology import openmm_topology
    except ImportError as error:
        raise MissingDependencyError(
            f"OpenMM does not load ({error}); pip install 'mlff-student[openmm]'"
        ) from error
    topology = openmm_topology(Structure(atoms, make_topology(atoms, [])))
    calls: dict[str, Callable[[], object]] = {}
    heads: list[tuple[str, str, Record]] = []  # of the step, of the kernel alone

    def add(kernel: str, system: Any, head: Record) -> None:
        for name in settings.platforms:
            (platform,) = find_platform(name)
            key = f"{kernel} {head['interface']} {name}"
            calls[key] = _stepping(system, atoms, platform, threads)
            heads.append((key, kernel, head | {"platform": name}))

    for (model, archive), backend in product(archives.items(), settings.backends):
        chosen = with_backend(archive, backend)
        kernel = f"{model} {backend}"
        calls[kernel] = _repeated(evaluate, chosen, atoms)
        for interface in settings.interfaces:
            system = create_system(topology, model, interface=interface, backend=backend)
            add(kernel, system, {"model": model, "interface": interface, "backend": backend})
    for name, calculator in others.items():
        calls[name] = _repeated(_forces, calculator, atoms)
        system = _system_of(calculator, atoms, topology)
        add(name, system, {"model": name, "interface": "PythonForce", "backend": ""})
    for call in calls.values():
        for _ in range(2):  # TorchScript compiles
            call()
    times = in_turns(calls, settings.seconds)
    common = {"structure": label, "atoms": len(atoms), "periodic": bool(atoms.pbc.all())}
    made = []
    for key, kernel, head in heads:
        step, alone = times[key].ms / STEPS, times[kernel].ms / STEPS
        made.append(
            head
            | common
            | {
                "threads": threads,
                "ms_per_step": step,
                "ms_per_step_iqr": times[key].ms_iqr / STEPS,
                "kernel_ms": alone,
                "overhead_ms": step - alone,
                "timestep_fs": settings.timestep_fs,
                "ns_per_day": ns_per_day(settings.timestep_fs, step),
            }
        )
    return made


def _repeated(function: Callable[..., object], *arguments: object) -> Callable[[], object]:
    return lambda: [function(*arguments) for _ in range(STEPS)]


def _forces(calculator: Calculator, atoms: Atoms) -> np.ndarray:
    calculator.reset()  # else it remembers the structure
    return calculator.get_property("forces", atoms)


def _system_of(calculator: Calculator, atoms: Atoms, topology: Any) -> Any:
    """System whose only force is an ASE calculator, through a PythonForce."""
    import openmm

    from openmm_integration.system import system_without_student

    moving = atoms.copy()

    def compute(state: openmm.State) -> tuple[float, np.ndarray]:
        moving.positions = state.getPositions(asNumpy=True)._value * NM
        forces = _forces(calculator, moving)
        return calculator.results["energy"] / KJ_PER_MOL, forces * (NM / KJ_PER_MOL)

    system = system_without_student(topology)
    system.addForce(openmm.PythonForce(compute))
    return system


def _stepping(system: Any, atoms: Atoms, platform: Any, threads: int) -> Callable[[], object]:
    """Call that makes some steps in a Context of its own."""
    from openmm import Context, VerletIntegrator, unit

    integrator = VerletIntegrator(STILL_PS * unit.picosecond)
    options = {"Threads": str(threads)} if platform.getName() == "CPU" else {}
    context = Context(system, integrator, platform, options)
    context.setPositions(atoms.positions * unit.angstrom)
    return lambda: (integrator.step(STEPS), context)  # the Context lives as long as the call
