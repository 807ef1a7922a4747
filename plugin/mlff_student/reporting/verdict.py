"""The one verdict: figures compared with thresholds, and the table a user reads."""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text

from mlff_student.core.errors import InputError
from mlff_student.core.figures import Figure, Threshold, figures_of, known_figures

# Rows of the drift table.
DRIFT_ROWS = (
    "drift_mev_per_atom_ps",
    "drift_kt_per_ns_per_dof",
    "heating_percent",
    "drift_percent",
    "max_drift_percent",
    "energy_fluctuation_mev_per_atom",
    "conservation_ratio",
    "temperature_k",
    "temperature_std_k",
    "bond_deviation_angstrom",
    "nonfinite_rows",
    "duration_ps",
    "frames",
    "atoms",
)


class Outcome(StrEnum):
    """What a judgement ends in; a figure that is not resolved does not pass either."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_RESOLVED = "not resolved"


class Check(NamedTuple):
    """One figure compared with its threshold."""

    figure: Figure
    threshold: Threshold
    outcome: Outcome

    @property
    def key(self) -> str:
        """Of the figure, in a record."""
        return self.figure.key

    @property
    def passed(self) -> bool:
        """Whether the figure is within its threshold for certain."""
        return self.outcome is Outcome.PASSED

    @property
    def resolved(self) -> bool:
        """Whether the run is long enough to say on which side of the threshold the figure is."""
        return self.outcome is not Outcome.NOT_RESOLVED

    def as_record(self) -> dict[str, Any]:
        """As `mlff-student validate` writes it."""
        figure, threshold = self.figure, self.threshold
        return {
            "name": figure.key,
            "value": figure.value,
            "limit": threshold.value,
            "unit": threshold.unit,
            "passed": self.passed,
            "source": threshold.source,
            "stderr": figure.standard_error,
            "noise": figure.noise,
            "resolved": self.resolved,
        }

    def __str__(self) -> str:
        text = f"{self.key} is {self.figure}"
        if self.resolved:
            return text
        spread = _largest(self.figure.standard_error, self.figure.noise)
        why = f"noise of {spread:.2g} {self.threshold.unit}" if spread >= 0 else "error not known"
        return f"{text}, not resolved: {why}, run longer"


def judge(
    figures: Iterable[Figure], thresholds: Mapping[str, Threshold], ensemble: str = ""
) -> list[Check]:
    """One check for each threshold that has its figure among those given.

    Parameters
    ----------
    figures : Iterable[Figure]
        Iterable of Figure Of one run; those without a threshold are left out.
    thresholds : Mapping[str, Threshold]
        Mapping of str to Threshold By the figures' keys.
    ensemble : str
        "nve", "nvt" or "npt": thresholds of other ensembles are left out. Empty: all apply.

    Raises
    ------
    InputError
        If none of the figures is there: nothing would be judged.
    """
    by_key = {figure.key: figure for figure in figures}
    checks = [
        judge_figure(by_key[key], threshold)
        for key, threshold in thresholds.items()
        if key in by_key
        and (not (threshold.ensembles and ensemble) or ensemble in threshold.ensembles)
    ]
    if not checks:
        raise InputError(f"none of the figures {', '.join(thresholds)} is there to judge")
    return checks


def judge_figure(figure: Figure, threshold: Threshold) -> Check:
    """Whether a figure passes, fails, or is not resolved.

    It passes at the limit or within it by one standard error, and fails where it is not finite, or
    beyond the limit by more than `Threshold.errors_to_fail` standard errors and by more than its
    noise. Between these it is not resolved, nor within the limit with a standard error that is not
    known.
    """
    margin, error = threshold.margin(figure.value), figure.standard_error
    if margin >= 0:
        resolved = error is None or error <= margin
        return Check(figure, threshold, Outcome.PASSED if resolved else Outcome.NOT_RESOLVED)
    error = None if error is None else threshold.errors_to_fail * error
    unresolved = np.isfinite(margin) and _largest(error, figure.noise) >= -margin
    return Check(figure, threshold, Outcome.NOT_RESOLVED if unresolved else Outcome.FAILED)


def overall(checks: Iterable[Check]) -> Outcome:
    """Of several checks: failed where one of them failed, else not resolved where one is not."""
    outcomes = {check.outcome for check in checks}
    for outcome in (Outcome.FAILED, Outcome.NOT_RESOLVED):
        if outcome in outcomes:
            return outcome
    return Outcome.PASSED


def drift_table(
    records: Mapping[str, Mapping[str, Any]], checks: Mapping[str, list[Check]]
) -> Table:
    """Table with one column a run and one row a figure; records and checks by the run's label."""
    table = Table("figure", "unit")
    for label in records:
        table.add_column(Text(label), justify="right")
    figures = {label: {one.key: one for one in figures_of(run)} for label, run in records.items()}
    outcomes = {label: {one.key: one.outcome for one in of_run} for label, of_run in checks.items()}
    for key in DRIFT_ROWS:
        cells = []
        for label, of_run in figures.items():
            text = Text(str(of_run[key]) if key in of_run else "-")
            if key in outcomes[label]:
                text.append_text(mark(outcomes[label][key]))
            cells.append(text)
        known = known_figures()[key]
        table.add_row(known.title, known.unit, *cells)
    bonds = (Text(record.get("bond_deviation_atoms", "-")) for record in records.values())
    table.add_row("bond that deviates", "", *bonds)
    table.add_section()
    table.add_row("verdict", "", *(mark(overall(checks[label])) for label in records))
    return table


def mark(outcome: Outcome) -> Text:
    """A word for an outcome, with its colour."""
    return {
        Outcome.PASSED: Text(" pass", style="green"),
        Outcome.FAILED: Text(" FAIL", style="bold red"),
        Outcome.NOT_RESOLVED: Text(" NOT RESOLVED", style="bold yellow"),
    }[outcome]


def _largest(*numbers: float | None) -> float:
    """NaN where none is known."""
    return float(np.fmax.reduce([np.nan if one is None else one for one in numbers]))
