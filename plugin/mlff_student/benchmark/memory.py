"""Peak memory of one evaluation, measured in a separate process."""

import ctypes
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ase import Atoms

from mlff_student.archive.backends import evaluator
from mlff_student.archive.registry import archive_of
from mlff_student.benchmark.structures import archive_arguments, thermal_structure
from mlff_student.core.errors import StudentError
from mlff_student.teachers.registry import make_teacher

WARM_ATOMS = 70  # enough for the libraries to allocate their buffers in the first call


def peak_memory(model: str, backend: str, atoms: int) -> int:
    """Measure the memory that the first evaluation of a thermal structure needs at its peak.

    One thread is used. Code, weights and buffers of the libraries are allocated before and are not
    counted.

    Parameters
    ----------
    model : str
        Shipped name or path.
    backend : str
        "native", "portable" or "auto".
    atoms : int
        Number of atoms.

    Returns
    -------
    int
        Bytes.

    Raises
    ------
    StudentError
        The process was killed, or the system does not report memory.
    """
    return _in_own_process(_peak_here, model, backend, atoms)


def peak_memory_of_teacher(teacher: str, warm: Atoms, atoms: Atoms) -> int:
    """Measure the memory that a teacher needs at its peak for energy and forces.

    Parameters
    ----------
    teacher : str
        Name of the teacher.
    warm : Atoms
        Structure that is computed before, so that the libraries have their buffers.
    atoms : Atoms
        Structure to measure.

    Returns
    -------
    int
        Bytes.

    Raises
    ------
    StudentError
        The process was killed, or the system does not report memory.
    """
    return _in_own_process(_peak_of_teacher_here, teacher, warm, atoms)


def _in_own_process(function: Callable[..., int], *arguments: Any) -> int:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise StudentError("killed, most likely because memory ran out") from error
        except OSError as error:
            raise StudentError(f"memory cannot be measured here: {error}") from error


def available_memory() -> int:
    """Return the bytes of memory that are available without swapping; see proc_meminfo(5).

    Raises
    ------
    OSError
        The system does not report it.
    """
    return _entry("/proc/meminfo", "MemAvailable")


def _peak_here(model: str, backend: str, atoms: int) -> int:
    archive = archive_of(model)
    elements, cutoff = archive.metadata["elements"], archive.metadata["cutoff"]
    small = archive_arguments(thermal_structure(WARM_ATOMS, elements, cutoff))
    arguments = archive_arguments(thermal_structure(atoms, elements, cutoff))
    warm = evaluator(archive, backend, threads=1)
    for _ in range(3):  # TorchScript compiles on the second
        warm.evaluate(*small)
    # Native kernels keep their memory, so new ones are made, which have none yet.
    fresh = evaluator(archive, backend, threads=1)
    return _peak_of(lambda: fresh.evaluate(*arguments))


def _peak_of_teacher_here(teacher: str, warm: Atoms, atoms: Atoms) -> int:
    calculator = make_teacher(teacher)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    calculator.get_property("forces", warm)
    return _peak_of(lambda: calculator.get_property("forces", atoms))


def _peak_of(call: Callable[[], object]) -> int:
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to the present memory
    before = _entry("/proc/self/status", "VmRSS")
    call()
    return _entry("/proc/self/status", "VmHWM") - before


def _entry(file: str, name: str) -> int:
    for line in Path(file).read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"{file} has no {name}")
