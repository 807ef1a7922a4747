"""Settings and tasks of short runs by ASE's potential EMT."""

from mlff_student.engines.protocol import MDSettings
from mlff_student.validation.tasks import RunTask


def settings(**changes) -> MDSettings:
    return MDSettings(
        **{
            "engine": "ase", "model": "python:ase.calculators.emt:EMT", "structure": "O",
            "steps": 40, "timestep_fs": 0.5, "temperature_K": 300.0, "ensemble": "nve", "every": 2,
            "thermalise_steps": 4, "friction_per_ps": 10.0, "seed": 1, "threads": 1,
        }
        | changes
    )  # fmt: skip


def run_of(**changes) -> RunTask:
    return RunTask("emt/ase/nve/water", "nve", "water", settings(**changes), atoms=3, molecules=1)
