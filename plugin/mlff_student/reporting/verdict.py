"""Figures held against the one table of thresholds, and the table a user reads."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text

from mlff_student.core.errors import InputError
from mlff_student.core.figures import Threshold

# Rows of the drift table: key in a record, what it is, unit.
FIGURES = (
    ("drift_mev_per_atom_ps", "energy drift", "meV/atom/ps"),
    ("drift_kt_per_ns_per_dof", "energy drift", "kT/ns/dof"),
    ("heating_percent", "heating by the drift", "% of T"),
    ("drift_percent", "last - first energy", "%"),
    ("max_drift_percent", "largest excursion", "%"),
    ("energy_fluctuation_mev_per_atom", "energy fluctuation", "meV/atom"),
    ("conservation_ratio", "std total / std kinetic", ""),
    ("temperature_k", "temperature", "K"),
    ("temperature_std_k", "its fluctuation", "K"),
    ("bond_deviation_angstrom", "largest bond deviation", "angstrom"),
    ("bond_deviation_atoms", "of the bond", ""),
    ("nonfinite_rows", "rows that are not finite", ""),
    ("duration_ps", "duration", "ps"),
    ("frames", "frames", ""),
    ("atoms", "atoms", ""),
)

# Judged of runs with a thermostat alone: a molecule by itself at constant energy keeps its angular
# momentum, and with it a rotational temperature of its own.
CANONICAL = ("equipartition_sigma",)


class Check(NamedTuple):
    """One figure held against its threshold.

    Attributes
    ----------
    stderr : of the figure; NaN where none is known.
    noise : what sampling alone makes of the figure, where that was measured (`noise_of`); NaN else.
    resolved : False where the run is too short to say on which side of the threshold the figure
        is: that is no pass.
    """

    name: str
    value: float
    limit: float
    unit: str
    passed: bool
    source: str
    stderr: float = np.nan
    noise: float = np.nan
    resolved: bool = True

    def __str__(self) -> str:
        text = f"{self.name} is {with_error(self.value, self.stderr)}"
        if self.resolved:
            return text
        spread = np.fmax(self.stderr, self.noise)
        why = f"noise of {spread:.2g} {self.unit}" if np.isfinite(spread) else "error not known"
        return f"{text}, not resolved: {why}, run longer"


def verdict(record: Mapping[str, Any], thresholds: Mapping[str, Threshold]) -> list[Check]:
    """One check for each threshold whose figure is in the record, passed at or below the limit.

    A figure that is not finite fails. Standard errors have no say; in `judge` they have.

    Raises
    ------
    InputError : the record has none of the figures; nothing would be judged.
    """
    checks = []
    for name, (limit, unit, source) in thresholds.items():
        if name in CANONICAL and record.get("ensemble") == "nve":
            continue
        if name in record:
            value = float(record[name])
            checks.append(Check(name, value, limit, unit, abs(value) <= limit, source))
    if not checks:
        raise InputError(f"none of the figures {', '.join(thresholds)} is there to judge")
    return checks


def judge(record: Mapping[str, Any], thresholds: Mapping[str, Threshold]) -> list[Check]:
    """The checks of `verdict`, of which those do not pass either that the run cannot tell
    (`Check.resolved`): within one standard error of the threshold, on either side; beyond it by no
    more than the noise; or within it with a standard error that is not known.

    Raises
    ------
    InputError : as of `verdict`.
    """
    checks = []
    for check in verdict(record, thresholds):
        stderr, noise = stderr_of(record, check.name), noise_of(record, check.name)
        if check.passed:
            known = _stderr_key(record, check.name) is None or np.isfinite(stderr)
            unresolved = not known or abs(check.value) + stderr > check.limit
        else:
            excess = abs(check.value) - check.limit
            unresolved = bool(np.isfinite(excess) and np.fmax(stderr, noise) >= excess)
        checks.append(
            check._replace(
                passed=check.passed and not unresolved,
                stderr=stderr,
                noise=noise,
                resolved=not unresolved,
            )
        )
    return checks


def stderr_of(record: Mapping[str, Any], name: str) -> float:
    """Standard error of a figure, whose name is the figure's with `_stderr` in it; NaN if none."""
    value = record.get(_stderr_key(record, name))
    return np.nan if value is None else float(value)


def _stderr_key(record: Mapping[str, Any], name: str) -> str | None:
    keys = (key for key in record if "_stderr" in key and key.replace("_stderr", "") == name)
    return next(keys, None)


def noise_of(record: Mapping[str, Any], name: str) -> float:
    """What sampling alone makes of an error, which has `_noise` for `_error`; NaN if none."""
    value = record.get(name.replace("_error_", "_noise_")) if "_error_" in name else None
    return np.nan if value is None else float(value)


def drift_table(
    records: Mapping[str, Mapping[str, Any]], checks: Mapping[str, list[Check]]
) -> Table:
    """Table with one column a run and one row a figure; records and checks by the run's label."""
    table = Table("figure", "unit")
    for label in records:
        table.add_column(Text(label), justify="right")
    outcome = {(label, c.name): c for label, of_run in checks.items() for c in of_run}
    for key, title, unit in FIGURES:
        cells = []
        for label, record in records.items():
            stderr = stderr_of(record, key)
            text = Text(with_error(record[key], stderr) if key in record else "-")
            if (label, key) in outcome:
                text.append_text(mark(outcome[label, key]))
            cells.append(text)
        table.add_row(title, unit, *cells)
    table.add_section()
    table.add_row(
        "verdict", "", *(mark_of(all(c.passed for c in checks[label])) for label in records)
    )
    return table


def mark(check: Check) -> Text:
    """A check's outcome in a word."""
    return mark_of(check.passed) if check.resolved else Text(" NOT RESOLVED", style="bold yellow")


def mark_of(passed: bool) -> Text:
    """A word for an outcome."""
    return Text(" pass", style="green") if passed else Text(" FAIL", style="bold red")


def with_error(value: float | str, stderr: float = np.nan) -> str:
    """Number as text, to two digits of its standard error where it has one."""
    if isinstance(value, str):
        return value
    if np.isfinite(value) and np.isfinite(stderr) and stderr > 0:
        decimals = max(0, 1 - int(np.floor(np.log10(stderr))))
        return f"{value:.{decimals}f} ± {stderr:.{decimals}f}"
    return f"{value:.4g}"
