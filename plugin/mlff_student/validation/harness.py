"""Test whether any ASE calculator conserves energy in MD, in three lines of Python.

from mlff_student.validation import nve

result = nve(atoms, calculator, ps=1)
assert result.passed, result
"""

import math
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.io import write
from rich.console import Console

from mlff_student.analysis.thermo import FEWEST_ROWS
from mlff_student.core.errors import InputError, InterruptedRunError, StudentError
from mlff_student.engines.protocol import MDSettings, RunFolder
from mlff_student.engines.run import run_md
from mlff_student.reporting.analyze import judge_run
from mlff_student.reporting.verdict import Check, Outcome, drift_table, overall
from mlff_student.validation.measure import measure_nve

FRAMES = 500
WIDTH = 120  # of the printed table, characters


@dataclass(frozen=True)
class NVEResult:
    """Figures of a run at constant energy, compared with the thresholds.

    Attributes
    ----------
    record : dict[str, Any]
        All figures, with units in the keys. Empty if the run stopped with an error.
    checks : list[Check]
        Checks of the figures that have a threshold.
    failure : str
        Why the run stopped with an error. Empty if it did not.
    """

    record: dict[str, Any]
    checks: list[Check]
    failure: str = ""

    @property
    def passed(self) -> bool:
        """Whether the run finished and every figure passes its threshold."""
        return not self.failure and overall(self.checks) is Outcome.PASSED

    @property
    def failed(self) -> list[str]:
        """The keys of the figures that do not pass."""
        return [check.key for check in self.checks if not check.passed]

    def __str__(self) -> str:
        if self.failure:
            return f"the run stopped with an error: {self.failure}"
        text = StringIO()
        Console(file=text, width=WIDTH).print(
            drift_table({"NVE": self.record}, {"NVE": self.checks})
        )
        return "\n" + text.getvalue()


def nve(
    atoms: Atoms,
    calculator: Calculator,
    *,
    ps: float = 1.0,
    timestep_fs: float = 0.5,
    temperature_K: float = 300.0,
    thermalise_ps: float = 0.5,
    seed: int = 1,
    folder: Path | None = None,
) -> NVEResult:
    """Minimise, thermalise and run atoms at constant energy in ASE, and judge the run.

    Parameters
    ----------
    atoms : Atoms
        Structure, open or fully periodic, which is not changed. Bonds are found from distances.
    calculator : Calculator
        Calculator with energy and forces. It must not be in use for other atoms at the same time.
    ps : float
        Length of the run, ps. The standard error of the drift falls as ps^-1.5: if a figure is not
        resolved, a longer run is needed.
    timestep_fs : float
        Timestep, fs.
    temperature_K : float
        Temperature of the thermalisation, K.
    thermalise_ps : float
        Length of Langevin dynamics before the run, ps.
    seed : int
        Random seed of velocities and thermostat.
    folder : Path | None
        Folder that keeps the files of the run (run.dcd, run.pdb, run.csv). None: no file is kept.

    Returns
    -------
    NVEResult
        Figures and checks of the run.

    Raises
    ------
    InputError
        If there are no atoms, a length is too short, or the folder already has a run.
    """
    for name, value in (("ps", ps), ("timestep_fs", timestep_fs), ("temperature_K", temperature_K)):
        if not 0.0 < value < math.inf:
            raise InputError(f"{name} must be positive, got {value}")
    if not 0.0 <= thermalise_ps < math.inf:
        raise InputError(f"thermalise_ps must not be negative, got {thermalise_ps}")
    steps = round(1000.0 * ps / timestep_fs)
    every = max(1, steps // FRAMES)
    if not len(atoms) or steps < FEWEST_ROWS:
        raise InputError(
            f"got {len(atoms)} atoms and {ps} ps with a timestep of {timestep_fs} fs; expected an "
            f"atom or more, and {FEWEST_ROWS} steps or more"
        )
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if (folder / "run").exists():  # it may be a run of other atoms or another calculator
            raise InputError(f"{folder} already has a run; give another folder, or none")
        folder.mkdir(parents=True, exist_ok=True)
        start = folder / "start.extxyz"
        bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        write(start, bare)
        settings = MDSettings(
            engine="ase",
            model=type(calculator).__name__,
            structure=str(start),
            steps=steps // every * every,
            timestep_fs=timestep_fs,
            temperature_K=temperature_K,
            ensemble="nve",
            every=every,
            thermalise_steps=max(2, round(1000.0 * thermalise_ps / timestep_fs)),
            friction_per_ps=10.0,
            seed=seed,
            threads=1,
        )
        try:
            run_md(settings, folder / "run", quiet=True, calculator=calculator)
        except (InputError, InterruptedRunError):  # say nothing about the model
            raise
        except StudentError as error:
            return NVEResult({}, [], str(error))
        return judge_nve(RunFolder(folder / "run"), calculator)


def judge_nve(run: RunFolder, calculator: Calculator | None = None) -> NVEResult:
    """Judge a finished run at constant energy by the thresholds.

    Parameters
    ----------
    run : RunFolder
        Files of the run.
    calculator : Calculator | None
        Model of the run, whose energies must be those in the log. None: no comparison.

    Returns
    -------
    NVEResult
        Figures and checks of the run.

    Raises
    ------
    InputError
        If the files are of different runs, or the atoms are in another order.
    """
    analysis = measure_nve(run, calculator)
    return NVEResult(analysis.as_record(), judge_run(analysis))
