"""How many structures a second: the ASE calculator one by one, and in batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.collections import g2

from mlff_student.archive.graph import evaluate_graph, join
from mlff_student.benchmark import MOLECULE
from mlff_student.benchmark.measure import software
from mlff_student.benchmark.records import Progress, Record, RecordFile, no_progress
from mlff_student.benchmark.settings import check_cores, check_models, check_positive
from mlff_student.benchmark.timing import in_turns, torch_threads
from mlff_student.core.errors import InputError
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.structures.reading import read_structure

COMMAND = "benchmark batch"
SMALL = 9  # atoms of the molecules that are all different
RATTLE = 0.03  # angstrom, root mean square: thermal motion
ONE_BY_ONE = 100  # so many are timed


@dataclass(frozen=True)
class BatchSettings:
    """What is measured: every combination of the tuples.

    Attributes
    ----------
    models : tuple[str, ...]
        Names of shipped models, or paths of checkpoints or archives.
    molecule : str
        File or SMILES string, of which conformers are evaluated.
    structures : int
        Number of structures of each kind.
    backends : tuple[str, ...]
        Backends that `mlff_student.archive.native.with_backend` takes.
    threads : tuple[int, ...]
        Numbers of threads.
    memory_mb : float
        Memory of a batch; 0 for the calculator's choice.
    seconds : float
        Time spent on a combination, beyond three rounds.
    """

    models: tuple[str, ...]
    molecule: str = MOLECULE
    structures: int = 1000
    backends: tuple[str, ...] = ("native", "portable")
    threads: tuple[int, ...] = (1,)
    memory_mb: float = 0.0
    seconds: float = 5.0

    def __post_init__(self) -> None:
        check_models(self.models)
        if self.structures < 1:
            raise InputError(f"structures must be 1 or more, got {self.structures}")
        check_cores("threads", self.threads)
        check_positive("seconds", self.seconds)


class BatchJob(NamedTuple):
    """What is measured in one go."""

    model: str
    backend: str
    kind: str  # of the structures: "molecules" or "conformers"
    atoms: int
    threads: int

    def __str__(self) -> str:
        return f"{self.model}, {self.backend}: {self.kind} of {self.atoms} atoms"


def benchmark_batch(
    settings: BatchSettings, output: Path | None = None, progress: Progress = no_progress
) -> list[Record]:
    """Measure both ways in turns, and the kernels alone on the same graphs.

    Parameters
    ----------
    settings : BatchSettings
        What to measure.
    output : Path | None
        JSON file, written after every measurement. An existing one that was begun on this machine
        with the same settings and library is resumed.
    progress : Progress
        Called with the job's name, how many are done and how many there are.

    Returns
    -------
    list[Record]
        Flat records; times of a structure are in microseconds.

    Raises
    ------
    InputError, ArchiveError, MissingDependencyError
        Before anything is measured.
    """
    calculators = {
        (model, backend): StudentForceFieldCalculator(
            model, backend=backend, batch_memory_mb=settings.memory_mb or None
        )
        for model, backend in product(settings.models, settings.backends)
    }
    kinds = {(kind, len(frames[0])): frames for kind, frames in _structures(settings)}
    file = RecordFile(output, COMMAND, settings, software())
    jobs = [
        BatchJob(*names, *kind, threads)
        for names, kind, threads in product(calculators, kinds, settings.threads)
    ]

    def measured(job: BatchJob) -> list[Record]:
        frames = kinds[job.kind, job.atoms]
        with torch_threads(job.threads):
            figures = _measure(calculators[job.model, job.backend], frames, settings.seconds)
        head = {"measurement": "batch", **job._asdict(), "structures": len(frames)}
        return [head | figures]

    return file.measure(jobs, measured, progress)


def _structures(settings: BatchSettings) -> Iterator[tuple[str, list[Atoms]]]:
    rng = np.random.default_rng(1)

    def rattled(atoms: Atoms) -> Atoms:
        copy = atoms.copy()
        copy.positions += RATTLE * rng.standard_normal(copy.positions.shape)
        return copy

    nine = [molecule(name) for name in g2.names if len(g2[name]) == SMALL]  # all closed-shell
    count = range(settings.structures)
    yield "molecules", [rattled(nine[k % len(nine)]) for k in count]
    yield "conformers", [rattled(nine[0]) for _ in count]
    atoms = read_structure(settings.molecule).atoms
    yield "conformers", [rattled(atoms) for _ in count]


def _measure(
    calculator: StudentForceFieldCalculator, structures: list[Atoms], seconds: float
) -> Record:
    first = structures[:ONE_BY_ONE]
    cutoff = calculator.archive.metadata["cutoff"]
    graphs = [join(structures[part], cutoff) for part in calculator.batches(structures)]

    def one_by_one() -> None:
        for atoms in first:
            calculator.get_property("forces", atoms)

    calls = {
        "one": one_by_one,
        "batch": lambda: calculator.calculate_batch(structures),
        "kernel": lambda: [evaluate_graph(calculator.archive, graph) for graph in graphs],
    }
    for call in calls.values():
        call()  # TorchScript compiles
    times = in_turns(calls, seconds)
    one, batch = times["one"].ms / len(first), times["batch"].ms / len(structures)
    return {
        "batches": len(graphs),
        "one_by_one_us": 1e3 * one,
        "batch_us": 1e3 * batch,
        "batch_us_iqr": 1e3 * times["batch"].ms_iqr / len(structures),
        "kernel_us": 1e3 * times["kernel"].ms / len(structures),
        "batch_speedup": one / batch,
        "batch_s": 1e-3 * times["batch"].ms,
        "structures_per_s": 1e3 / batch,
        "cores_used": times["batch"].cores,
    }
