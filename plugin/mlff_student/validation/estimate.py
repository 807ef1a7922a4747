"""Estimate the time of a campaign from a few evaluations of each model on each structure."""

import time
from collections.abc import Iterable
from functools import cache

from ase import Atoms
from ase.calculators.calculator import Calculator

from mlff_student.core.errors import StudentError
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.structures.reading import read_structure
from mlff_student.teachers.registry import is_teacher, make_teacher
from mlff_student.validation.tasks import RunTask, Task

LEAST_S = 0.2  # evaluations are repeated for this time, and at least twice
MOVE = 0.01  # angstrom; atoms move by this between evaluations
# Time of a step beyond that of a call through ASE, which itself adds 0.25 ms to the forces.
ENGINE_MS = {"openmm": -0.1, "lammps": -0.2, "ase": 0.1}
START_S = 5.0  # imports of a worker and start of the engine
MINIMISE_STEPS = 200
COMPARISON_S = 5.0


class Estimate:
    """Expected time of tasks on this machine. Evaluation times are measured once and kept."""

    def __init__(self) -> None:
        self._seconds = cache(seconds_per_evaluation)

    def __call__(self, task: Task) -> float:
        """Return the expected time of a task alone on a core, s."""
        if not isinstance(task, RunTask):
            return COMPARISON_S
        settings = task.settings
        per_step = self._seconds(task.proposal_model or settings.model, settings.structure)
        steps = settings.steps + settings.thermalise_steps + MINIMISE_STEPS
        seconds = START_S + steps * max(0.0, per_step + 1e-3 * ENGINE_MS[settings.engine])
        if task.proposal_model:
            moves = settings.steps / settings.every
            seconds += moves * self._seconds(settings.model, settings.structure)
        if task.teacher:
            seconds += task.teacher_frames * self._seconds(task.teacher, settings.structure)
        return seconds

    def wall(self, tasks: Iterable[Task], workers: int) -> float:
        """Return the expected time of all tasks together, s.

        Parameters
        ----------
        tasks : Iterable[Task]
            Tasks, which are run in the order of decreasing time.
        workers : int
            Number of tasks that run at the same time.

        Returns
        -------
        float
            Time until the last task ends, s.
        """
        busy = [0.0] * workers
        for seconds in sorted(map(self, tasks), reverse=True):
            busy[busy.index(min(busy))] += seconds
        return max(busy)


def seconds_per_evaluation(model: str, source: str) -> float:
    """Measure the time that a model needs for energy and forces of a structure.

    Parameters
    ----------
    model : str
        Shipped name, checkpoint, archive, or name of a teacher.
    source : str
        Structure that `read_structure` reads.

    Returns
    -------
    float
        Time of an evaluation, s. It is 0 if the calculator fails; the run then reports the failure.
    """
    atoms = read_structure(source).atoms
    calculator: Calculator = (
        make_teacher(model) if is_teacher(model) else StudentForceFieldCalculator(model=model)
    )
    try:
        return measured_seconds(atoms, calculator, LEAST_S)
    except StudentError:
        raise
    except Exception:  # a calculator may raise anything
        return 0.0


def measured_seconds(atoms: Atoms, calculator: Calculator, least_s: float) -> float:
    """Measure the mean time of a calculator for energy and forces.

    Atoms move before each call, so that no result is cached.

    Parameters
    ----------
    atoms : Atoms
        Structure, which is not changed.
    calculator : Calculator
        ASE calculator.
    least_s : float
        Calls are repeated for this time, s, and at least twice.

    Returns
    -------
    float
        Mean time of a call, s.
    """
    atoms = atoms.copy()
    atoms.calc = calculator
    atoms.get_forces()  # the first call compiles and takes memory
    began, calls = time.perf_counter(), 0
    while calls < 2 or time.perf_counter() - began < least_s:
        atoms.rattle(MOVE, seed=calls)
        atoms.get_forces()
        calls += 1
    return (time.perf_counter() - began) / calls


def duration_text(seconds: float) -> str:
    """Return a time in s as text, such as "2.5 hours".

    Parameters
    ----------
    seconds : float
        Time, s.

    Returns
    -------
    str
        Time in days, hours, minutes or seconds.
    """
    for size, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
