"""`benchmark batch`: structures per second of the ASE calculator, one by one and in batches."""

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
from mlff_student.benchmark.timing import in_turns, using_threads
from mlff_student.core.errors import InputError
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.structures.reading import read_structure

COMMAND = "benchmark batch"
SMALL = 9  # number of atoms of the different molecules
RATTLE = 0.03  # angstrom, standard deviation of a coordinate, as in thermal motion
ONE_BY_ONE = 100  # number of structures that are timed one by one


@dataclass(frozen=True)
class BatchSettings:
    """Settings of `benchmark batch`; each combination of the tuples is measured.

    Attributes
    ----------
    models : tuple[str, ...]
        Names of shipped models, or paths of checkpoints or archives.
    molecule : str
        Structure file or SMILES string of the molecule whose conformers are computed.
    structures : int
        Number of structures of each kind.
    backends : tuple[str, ...]
        Compute backends: native, portable, auto.
    threads : tuple[int, ...]
        Numbers of threads.
    memory_mb : float
        Memory of a batch, MB; 0: the calculator chooses.
    seconds : float
        Least time of a combination, s; there are three rounds at least.
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
    """One measurement of `benchmark batch`.

    Attributes
    ----------
    model : str
        Shipped name or path.
    backend : str
        "native", "portable" or "auto".
    kind : str
        Kind of the structures: "molecules" or "conformers".
    atoms : int
        Number of atoms of a structure.
    threads : int
        Number of threads.
    """

    model: str
    backend: str
    kind: str
    atoms: int
    threads: int

    def __str__(self) -> str:
        return f"{self.model}, {self.backend}: {self.kind} of {self.atoms} atoms"


def benchmark_batch(
    settings: BatchSettings, output: Path | None = None, progress: Progress = no_progress
) -> list[Record]:
    """Measure structures one by one, in batches, and the kernels alone on the same graphs.

    Parameters
    ----------
    settings : BatchSettings
        What to measure.
    output : Path, optional
        JSON file, written after each measurement. An existing file is resumed if it was begun on
        this machine with the same settings and library.
    progress : callable
        Called with the name of the job, the number of jobs done and the number of jobs.

    Returns
    -------
    list of dict
        Flat records; times of a structure are in microseconds.

    Raises
    ------
    InputError
        A backend is unknown, or the output cannot be written or is of another benchmark.
    ArchiveError
        There is no such model.
    MissingDependencyError
        The native kernels cannot be used.
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
        with using_threads(job.threads):
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
        "single": one_by_one,
        "batch": lambda: calculator.calculate_batch(structures),
        "kernel": lambda: [evaluate_graph(calculator.evaluator, graph) for graph in graphs],
    }
    for call in calls.values():
        call()  # TorchScript compiles in the first calls
    times = in_turns(calls, seconds)
    single, batch = times["single"].ms / len(first), times["batch"].ms / len(structures)
    return {
        "batches": len(graphs),
        "one_by_one_us": 1e3 * single,
        "batch_us": 1e3 * batch,
        "batch_us_iqr": 1e3 * times["batch"].ms_iqr / len(structures),
        "kernel_us": 1e3 * times["kernel"].ms / len(structures),
        "batch_speedup": single / batch,
        "batch_s": 1e-3 * times["batch"].ms,
        "structures_per_s": 1e3 / batch,
        "cores_used": times["batch"].cores,
    }
