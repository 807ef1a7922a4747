"""How long a campaign will take, from a few evaluations of each model on each structure."""

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

LEAST_S = 0.2  # spent on an evaluation's time, but at least two are made
MOVE = 0.01  # angstrom, between evaluations: none is the same structure again
# A step beyond a call through ASE, which itself adds 0.25 ms to the forces.
ENGINE_MS = {"openmm": -0.1, "lammps": -0.2, "ase": 0.1}
START_S = 5.0  # a worker's imports and the engine's start
MINIMISE_STEPS = 200
COMPARISON_S = 5.0


class Estimate:
    """Expected seconds of tasks on this machine, now."""

    def __init__(self) -> None:
        self._seconds = cache(seconds_per_evaluation)

    def __call__(self, task: Task) -> float:
        """Of one task alone on a core."""
        if not isinstance(task, RunTask):
            return COMPARISON_S
        settings = task.settings
        per_step = self._seconds(settings.guide or settings.model, settings.structure)
        steps = settings.steps + settings.thermalise_steps + MINIMISE_STEPS
        seconds = START_S + steps * max(0.0, per_step + 1e-3 * ENGINE_MS[settings.engine])
        if settings.guide:
            moves = settings.steps / settings.every
            seconds += moves * self._seconds(settings.model, settings.structure)
        if task.teacher:
            seconds += task.teacher_frames * self._seconds(task.teacher, settings.structure)
        return seconds

    def wall(self, tasks: Iterable[Task], workers: int) -> float:
        """Of all tasks on so many workers, longest first."""
        busy = [0.0] * workers
        for seconds in sorted(map(self, tasks), reverse=True):
            busy[busy.index(min(busy))] += seconds
        return max(busy)


def seconds_per_evaluation(model: str, source: str) -> float:
    """Time of energy and forces of a structure, by a student or teacher, moved every time; 0 where
    a calculator fails, which is its run's to say.
    """
    atoms = read_structure(source).atoms
    calculator: Calculator = (
        make_teacher(model) if is_teacher(model) else StudentForceFieldCalculator(model=model)
    )
    try:
        return measured_seconds(atoms, calculator, LEAST_S)
    except StudentError:
        raise
    except Exception:  # a calculator's may be anything
        return 0.0


def measured_seconds(atoms: Atoms, calculator: Calculator, least_s: float) -> float:
    """Mean time of energy and forces; atoms move before each call, so that no call is cached."""
    atoms = atoms.copy()
    atoms.calc = calculator
    atoms.get_forces()  # compiles, searches neighbours, gets its memory
    began, calls = time.perf_counter(), 0
    while calls < 2 or time.perf_counter() - began < least_s:
        atoms.rattle(MOVE, seed=calls)
        atoms.get_forces()
        calls += 1
    return (time.perf_counter() - began) / calls


def duration_text(seconds: float) -> str:
    """Seconds as a person says them."""
    for size, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
