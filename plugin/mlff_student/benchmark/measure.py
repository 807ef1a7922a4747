"""Time, arithmetic rate and memory of one model at one size and number of threads."""

import hashlib
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from ase import Atoms

from mlff_student.archive.archive import Archive
from mlff_student.archive.backends import evaluator, library_path
from mlff_student.archive.registry import archive_of
from mlff_student.benchmark.arithmetic import work
from mlff_student.benchmark.memory import available_memory, peak_memory
from mlff_student.benchmark.records import Record, is_of
from mlff_student.benchmark.structures import (
    archive_arguments,
    edge_lengths,
    thermal_structure,
)
from mlff_student.benchmark.timing import in_turns
from mlff_student.core.errors import MissingDependencyError, StudentError
from mlff_student.core.results import package_versions
from mlff_student.engines.openmm import openmm_module

MOLECULE = 22  # number of atoms of the step in OpenMM
STEPS = 10  # number of steps in a call
STILL_PS = 1e-9  # ps, a timestep so short that the atoms do not move
PROBE = 200  # number of atoms from which the memory of the portable backend is predicted
MEMORY_SHARE = 0.7  # part of the available memory that it may take
# Matrix product for the highest rate of the machine: features of 1,000 atoms times the largest map
# of `original`. A product takes a millisecond, so that a busy machine interrupts few of them.
SGEMM_ROWS, SGEMM_INPUTS, SGEMM_OUTPUTS = 1000, 128, 384
COPY_FLOATS = 1 << 25  # 128 MiB, far more than the caches hold
# Figures of a record; null if they were not measured.
FIGURES = (
    "ms",
    "ms_iqr",
    "ms_with_search",
    "calls",
    "cores_used",
    "us_per_atom",
    "gflop_per_s",
    "sgemm_fraction",
    "ratio_to_portable",
    "speedup_by_threads",
    "peak_memory_mb",
    "peak_memory_kb_per_atom",
)


class KernelJob(NamedTuple):
    """One measurement of `benchmark kernels`, which gives a record for each backend.

    Attributes
    ----------
    measurement : str
        "kernels" or "openmm_step".
    model : str
        Shipped name or path.
    atoms : int
        Number of atoms.
    threads : int
        Number of threads.
    """

    measurement: str
    model: str
    atoms: int
    threads: int

    def __str__(self) -> str:
        where = " in OpenMM" if self.measurement == "openmm_step" else ""
        return f"{self.model}{where}: {self.atoms} atoms, threads: {self.threads}"


def measure(
    job: KernelJob, archive: Archive, seconds: float, records: list[Record]
) -> list[Record]:
    """Measure one job.

    Parameters
    ----------
    job : KernelJob
        What to measure.
    archive : Archive
        Model of the job, float32.
    seconds : float
        Least time of the measurement, s.
    records : list of dict
        Records of earlier jobs; their memory is not measured again.

    Returns
    -------
    list of dict
        Flat records, one for each backend. A figure that was not measured is null, and `note` says
        why.
    """
    if job.measurement == "openmm_step":
        return [_openmm_step(job, archive, seconds)]
    return _kernels(job, archive, seconds, records)


def _kernels(
    job: KernelJob, archive: Archive, seconds: float, records: list[Record]
) -> list[Record]:
    structure, edges = _structure(job.atoms, archive)
    arguments = archive_arguments(structure)
    native = evaluator(archive, "native", threads=job.threads)
    native.evaluate(*arguments)  # searches neighbours and allocates its memory
    calls = _roofs() | {"native": lambda: native.evaluate(*arguments)}
    note = too_large_for_portable(job.model, job.atoms, edges)
    if not note:
        portable = evaluator(archive, "portable")
        small = archive_arguments(_structure(MOLECULE, archive)[0])
        for _ in range(3):  # TorchScript compiles in the second call
            portable.evaluate(*small)
        calls["portable"] = lambda: portable.evaluate(*arguments)
    times = in_turns(calls, seconds)

    count = work(archive.metadata["channels"], archive.metadata["layers"], job.atoms, edges)
    sgemm = 2e-6 * SGEMM_ROWS * SGEMM_INPUTS * SGEMM_OUTPUTS / times["sgemm"].ms
    measured_records = []
    for backend in ("native", "portable"):
        record: Record = job._asdict() | {"backend": backend, "edges": edges}
        record |= {
            "periodic": bool(structure.pbc.all()),
            "gflop": count.gflop,
            "flop_per_byte": count.flop_per_byte,
            "sgemm_gflop_per_s": sgemm,
            "copy_gb_per_s": 2 * 4e-6 * COPY_FLOATS / times["copy"].ms,
            **dict.fromkeys(FIGURES),
            "note": note if backend == "portable" else "",
        }
        if backend in times:
            measured = times[backend]
            rate = 1e3 * count.gflop / measured.ms
            record |= {
                "ms": measured.ms,
                "ms_iqr": measured.ms_iqr,
                "ms_with_search": measured.ms,  # the portable one searches in every call
                "calls": len(measured.seconds),
                "cores_used": measured.cores,
                "us_per_atom": 1e3 * measured.ms / job.atoms,
                "gflop_per_s": rate,
                "sgemm_fraction": rate / sgemm,
            }
            if "portable" in times:
                record["ratio_to_portable"] = times["portable"].ms / measured.ms
            if single := _find(records, backend, job._replace(threads=1)):
                record["speedup_by_threads"] = single["ms"] / measured.ms
            record |= _memory(job, backend, records)
        measured_records.append(record)
    # All atoms move by more than half a skin and back, so that each call searches neighbours.
    positions, *rest = arguments
    places = (positions + 1.0, positions)
    searches = {"both": lambda: [native.evaluate(place, *rest) for place in places]}
    measured_records[0]["ms_with_search"] = in_turns(searches, 0.0)["both"].ms / len(places)
    return measured_records


def _openmm_step(job: KernelJob, archive: Archive, seconds: float) -> Record:
    structure, edges = _structure(job.atoms, archive)
    record: Record = job._asdict() | {"backend": "native", "edges": edges, "periodic": False}
    record |= {"ms": None, "kernel_ms": None, "overhead_ms": None, "note": ""}
    try:
        from openmm import Context, Platform, VerletIntegrator, unit
        from openmm.app import Element, Topology

        topology = Topology()
        residue = topology.addResidue("UNK", topology.addChain())
        for atom in structure:
            topology.addAtom(atom.symbol, Element.getBySymbol(atom.symbol), residue)
        system = openmm_module().create_system(topology, job.model, backend="native")
    except (ImportError, MissingDependencyError) as error:
        return record | {"note": f"no OpenMM: {error}"}
    integrator = VerletIntegrator(STILL_PS * unit.picosecond)
    platform = Platform.getPlatformByName("CPU")
    context = Context(system, integrator, platform, {"Threads": str(job.threads)})
    context.setPositions(structure.positions * unit.angstrom)
    native = evaluator(archive, "native", threads=job.threads)
    arguments = archive_arguments(structure)
    times = in_turns(
        {
            "kernel": lambda: [native.evaluate(*arguments) for _ in range(STEPS)],
            "steps": lambda: integrator.step(STEPS),
        },
        seconds,
    )
    step, kernel = times["steps"].ms / STEPS, times["kernel"].ms / STEPS
    return record | {"ms": step, "kernel_ms": kernel, "overhead_ms": step - kernel}


def _structure(count: int, archive: Archive) -> tuple[Atoms, int]:
    """Return a thermal structure and its number of directed edges."""
    cutoff = archive.metadata["cutoff"]
    atoms = thermal_structure(count, archive.metadata["elements"], cutoff)
    return atoms, len(edge_lengths(atoms, cutoff))


def _roofs() -> dict[str, Callable[[], object]]:
    """Return calls that show the limits of the machine: a matrix product and a copy of memory."""
    import torch

    a, b = torch.ones(SGEMM_ROWS, SGEMM_INPUTS), torch.ones(SGEMM_INPUTS, SGEMM_OUTPUTS)
    product = torch.empty(SGEMM_ROWS, SGEMM_OUTPUTS)
    source, target = torch.zeros(COPY_FLOATS), torch.zeros(COPY_FLOATS)
    return {"copy": lambda: target.copy_(source), "sgemm": lambda: torch.mm(a, b, out=product)}


def software() -> dict[str, str]:
    """Return the version of torch and the SHA-256 of the native kernels, which times depend on."""
    library = library_path()
    content = library.read_bytes() if library.is_file() else b""
    versions = package_versions()
    return {
        "torch": versions.get("torch", "of no package"),
        "library_sha256": hashlib.sha256(content).hexdigest(),
    }


def too_large_for_portable(model: str, atoms: int, edges: int) -> str:
    """Say why a structure is too large for the portable backend; empty if it is not.

    Parameters
    ----------
    model : str
        Shipped name or path.
    atoms : int
        Number of atoms.
    edges : int
        Number of directed edges.
    """
    if atoms <= PROBE:
        return ""
    try:
        needed = _portable_bytes_per_edge(model) * edges
        available = available_memory()
    except (OSError, StudentError) as error:
        return f"not measured: its memory cannot be predicted ({error})"
    if needed < MEMORY_SHARE * available:
        return ""
    return (
        f"not measured: it would need {1e-9 * needed:.1f} GB, "
        f"and {1e-9 * available:.1f} GB are available"
    )


@cache
def _portable_bytes_per_edge(model: str) -> float:
    return peak_memory(model, "portable", PROBE) / _structure(PROBE, archive_of(model))[1]


def _memory(job: KernelJob, backend: str, records: list[Record]) -> Record:
    for threads in range(1, job.threads):  # memory does not depend on the number of threads
        if earlier := _find(records, backend, job._replace(threads=threads)):
            return {name: earlier[name] for name in ("peak_memory_mb", "peak_memory_kb_per_atom")}
    try:
        peak = peak_memory(job.model, backend, job.atoms)
    except StudentError as error:
        return {"note": f"memory not measured: {error}"}
    return {"peak_memory_mb": 1e-6 * peak, "peak_memory_kb_per_atom": 1e-3 * peak / job.atoms}


def _find(records: list[Record], backend: str, job: KernelJob) -> Record | None:
    """Return the record of a job that was measured."""
    records_of_job = (
        record
        for record in records
        if is_of(record, job) and record["backend"] == backend and record["ms"]
    )
    return next(records_of_job, None)
