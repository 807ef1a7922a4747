"""How many structures a second: the ASE calculator one by one, and in batches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from ase.collections import g2

from mlff_student.archive.graph import evaluate_graph, join
from mlff_student.benchmark.measure import Record
from mlff_student.benchmark.timing import in_turns
from mlff_student.core.errors import InputError
from mlff_student.core.results import machine_facts
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
    models : names of shipped models, or paths of checkpoints or archives.
    molecule : file or SMILES string, of which conformers are evaluated.
    structures : how many, of each kind.
    backends : of `mlff_student.archive.native.with_backend`.
    threads : numbers of threads.
    memory_mb : of a batch; 0 for the calculator's choice.
    seconds : spent on a combination, beyond three rounds.
    """

    models: tuple[str, ...]
    molecule: str = "CC(=O)N[C@@H](C)C(=O)NC"
    structures: int = 1000
    backends: tuple[str, ...] = ("native", "portable")
    threads: tuple[int, ...] = (1,)
    memory_mb: float = 0.0
    seconds: float = 5.0

    def __post_init__(self) -> None:
        if not self.models:
            raise InputError("no models to measure")
        if self.structures < 1:
            raise InputError(f"structures must be 1 or more, got {self.structures}")
        cores = machine_facts()["cores"]
        if bad := [count for count in self.threads if not 1 <= count <= cores]:
            raise InputError(f"threads must be 1 to {cores}, the cores here; got {bad[0]}")
        if not 0.0 < self.seconds < float("inf"):
            raise InputError(f"seconds must be positive, got {self.seconds}")


def benchmark_batch(
    settings: BatchSettings,
    progress: Callable[[str, int, int], None] = lambda job, done, jobs: None,
) -> list[Record]:
    """Measure both ways in turns, and the kernels alone on the same graphs.

    Returns
    -------
    Flat records; times of a structure are in microseconds.

    Raises
    ------
    InputError, ArchiveError, MissingDependencyError : before anything is measured.
    """
    calculators = {
        (model, backend): StudentForceFieldCalculator(
            model, backend=backend, batch_memory_mb=settings.memory_mb or None
        )
        for model, backend in product(settings.models, settings.backends)
    }
    kinds = list(_structures(settings))
    jobs = list(product(calculators.items(), kinds, settings.threads))
    records = []
    threads_before = torch.get_num_threads()
    try:
        for done, (((model, backend), calculator), (kind, some), threads) in enumerate(jobs):
            progress(f"{model}, {backend}: {kind} of {len(some[0])} atoms", done, len(jobs))
            torch.set_num_threads(threads)
            head = {"measurement": "batch", "model": model, "backend": backend, "kind": kind}
            head |= {"atoms": len(some[0]), "structures": len(some), "threads": threads}
            records.append(head | _measure(calculator, some, settings.seconds))
        progress("done", len(jobs), len(jobs))
    finally:
        torch.set_num_threads(threads_before)
    return records


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
    some = structures[:ONE_BY_ONE]
    cutoff = calculator.archive.metadata["cutoff"]
    graphs = [join(structures[part], cutoff) for part in calculator.batches(structures)]

    def one_by_one() -> None:
        for atoms in some:
            calculator.get_property("forces", atoms)

    calls = {
        "one": one_by_one,
        "batch": lambda: calculator.calculate_batch(structures),
        "kernel": lambda: [evaluate_graph(calculator.archive, graph) for graph in graphs],
    }
    for call in calls.values():
        call()  # TorchScript compiles
    times = in_turns(calls, seconds)
    one, batch = times["one"].ms / len(some), times["batch"].ms / len(structures)
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
