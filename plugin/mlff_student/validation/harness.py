"""Is energy conserved? In three lines of Python, for any ASE calculator.

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
from mlff_student.core.errors import InputError, StudentError
from mlff_student.core.figures import load_thresholds
from mlff_student.engines.protocol import MDSettings, RunFolder
from mlff_student.engines.run import run_md
from mlff_student.reporting.verdict import Check, drift_table, judge
from mlff_student.validation.measure import measure_nve

FRAMES = 500
WIDTH = 120  # characters, of the table


@dataclass(frozen=True)
class NVEResult:
    """Figures of a constant-energy run, held against the thresholds.

    Attributes
    ----------
    record : flat, units in the keys; empty where the run broke off.
    checks : of the figures that have a threshold.
    failure : why the run broke off; empty where it did not.
    """

    record: dict[str, Any]
    checks: list[Check]
    failure: str = ""

    @property
    def passed(self) -> bool:
        """Whether the run came to its end with every figure within its threshold."""
        return not self.failure and all(check.passed for check in self.checks)

    @property
    def failed(self) -> list[str]:
        """Names of the figures beyond their thresholds."""
        return [check.name for check in self.checks if not check.passed]

    def __str__(self) -> str:
        if self.failure:
            return f"the run broke off: {self.failure}"
        console = Console(file=StringIO(), width=WIDTH)
        console.print(drift_table({"NVE": self.record}, {"NVE": self.checks}))
        return "\n" + console.file.getvalue()


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
    """Minimise, thermalise and run at constant energy in ASE; hold the run against the thresholds.

    Parameters
    ----------
    atoms : open or fully periodic; left as it is. Bonds are perceived from its distances.
    calculator : gives energy and forces; it must be no other atoms' at the time.
    ps, thermalise_ps : lengths of production and of Langevin dynamics before. The error of a drift
        falls as ps^-1.5: a run too short for its energy noise fails by it, which is no proof
        against the calculator.
    folder : keeps the run's files (run.dcd, run.pdb, run.csv); nothing is kept if None.

    Raises
    ------
    InputError : no atoms, lengths that are no run, or a folder that holds one already.
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
            f"{len(atoms)} atoms for {ps} ps of {timestep_fs} fs: a run has an atom and "
            f"{FEWEST_ROWS} steps or more"
        )
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if (folder / "run").exists():  # of other atoms or another calculator, for all one can tell
            raise InputError(f"{folder} holds a run already; give another folder, or none")
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
        except InputError:
            raise
        except StudentError as error:
            return NVEResult({}, [], str(error))
        return judge_nve(RunFolder(folder / "run"), calculator)


def judge_nve(run: RunFolder, calculator: Calculator | None = None) -> NVEResult:
    """Figures of a finished run that claims constant energy, held against the thresholds.

    Parameters
    ----------
    calculator : what its forces came from: its energies must be the log's.

    Raises
    ------
    InputError : files that cannot be one run's: a log of another, atoms in another order.
    """
    record = measure_nve(run, calculator)
    return NVEResult(record, judge(record, load_thresholds()))
