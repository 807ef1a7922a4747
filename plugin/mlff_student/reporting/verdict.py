"""Compare figures with thresholds, and print the table of the verdict."""

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
    """Result of a comparison with a threshold. A figure that is not resolved does not pass."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_RESOLVED = "not resolved"


class Check(NamedTuple):
    """A figure compared with its threshold.

    Attributes
    ----------
    figure : Figure
        The measured number.
    threshold : Threshold
        The limit.
    outcome : Outcome
        The result.
    """

    figure: Figure
    threshold: Threshold
    outcome: Outcome

    @property
    def key(self) -> str:
        """The key of the figure in a record."""
        return self.figure.key

    @property
    def passed(self) -> bool:
        """Whether the figure is within its threshold by at least a standard error."""
        return self.outcome is Outcome.PASSED

    @property
    def resolved(self) -> bool:
        """Whether the run is long enough to know on which side of the threshold the figure is."""
        return self.outcome is not Outcome.NOT_RESOLVED

    def as_record(self) -> dict[str, Any]:
        """Return the check as `mlff-student validate` writes it."""
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
        why = (
            f"a standard error or noise of {spread:.2g} {self.threshold.unit}"
            if spread >= 0
            else "an unknown standard error"
        )
        return f"{text}, not resolved because of {why}: run longer"


def judge(
    figures: Iterable[Figure], thresholds: Mapping[str, Threshold], ensemble: str = ""
) -> list[Check]:
    """Compare the figures of a run with their thresholds.

    Parameters
    ----------
    figures : Iterable[Figure]
        Figures of a run. Figures without a threshold are not judged.
    thresholds : Mapping[str, Threshold]
        Thresholds by the keys of the figures.
    ensemble : str
        Ensemble of the run: "nve", "nvt" or "npt". Thresholds of other ensembles are left out.
        Empty: all thresholds apply.

    Returns
    -------
    list[Check]
        A check for each threshold whose figure was measured.

    Raises
    ------
    InputError
        If no figure has a threshold, so that nothing would be judged.
    """
    by_key = {figure.key: figure for figure in figures}
    checks = [
        judge_figure(by_key[key], threshold)
        for key, threshold in thresholds.items()
        if key in by_key
        and (not (threshold.ensembles and ensemble) or ensemble in threshold.ensembles)
    ]
    if not checks:
        raise InputError(
            "none of the figures has a threshold, so there is nothing to judge; the thresholds are "
            f"those of {', '.join(thresholds)}"
        )
    return checks


def judge_figure(figure: Figure, threshold: Threshold) -> Check:
    """Return whether a figure passes, fails, or is not resolved.

    A figure passes if it is within the limit by a standard error or more; without a standard error
    it also passes at the limit. It fails if it is not finite, or beyond the limit by more than
    `Threshold.errors_to_fail` standard errors and by more than its noise. In all other cases it is
    not resolved, such as within the limit with an unknown standard error.

    Parameters
    ----------
    figure : Figure
        The measured number.
    threshold : Threshold
        Its limit.

    Returns
    -------
    Check
        The figure with the result.
    """
    margin, error = threshold.margin(figure.value), figure.standard_error
    if margin >= 0:
        resolved = error is None or error <= margin
        return Check(figure, threshold, Outcome.PASSED if resolved else Outcome.NOT_RESOLVED)
    error = None if error is None else threshold.errors_to_fail * error
    unresolved = np.isfinite(margin) and _largest(error, figure.noise) >= -margin
    return Check(figure, threshold, Outcome.NOT_RESOLVED if unresolved else Outcome.FAILED)


def overall(checks: Iterable[Check]) -> Outcome:
    """Return the result of several checks together.

    It is failed if a check failed, else not resolved if a check is not resolved, else passed.

    Parameters
    ----------
    checks : Iterable[Check]
        The checks.

    Returns
    -------
    Outcome
        The result.
    """
    outcomes = {check.outcome for check in checks}
    for outcome in (Outcome.FAILED, Outcome.NOT_RESOLVED):
        if outcome in outcomes:
            return outcome
    return Outcome.PASSED


def drift_table(
    records: Mapping[str, Mapping[str, Any]], checks: Mapping[str, list[Check]]
) -> Table:
    """Return a table with a column for each run and a row for each figure of the drift.

    Parameters
    ----------
    records : Mapping[str, Mapping[str, Any]]
        Record of each run, by the label of the run.
    checks : Mapping[str, list[Check]]
        Checks of each run, by the label of the run.

    Returns
    -------
    Table
        Table to print on a console.
    """
    table = Table("figure", "unit")
    for label in records:
        table.add_column(Text(label), justify="right")
    figures = {
        label: {figure.key: figure for figure in figures_of(record)}
        for label, record in records.items()
    }
    outcomes = {
        label: {check.key: check.outcome for check in of_run} for label, of_run in checks.items()
    }
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
    table.add_row("bond with that deviation", "", *bonds)
    table.add_section()
    table.add_row("verdict", "", *(mark(overall(checks[label])) for label in records))
    return table


def mark(outcome: Outcome) -> Text:
    """Return the word for an outcome, with its colour.

    Parameters
    ----------
    outcome : Outcome
        Result of a check.

    Returns
    -------
    Text
        Word with its colour.
    """
    return {
        Outcome.PASSED: Text(" pass", style="green"),
        Outcome.FAILED: Text(" FAIL", style="bold red"),
        Outcome.NOT_RESOLVED: Text(" NOT RESOLVED", style="bold yellow"),
    }[outcome]


def _largest(*numbers: float | None) -> float:
    """Return the largest of the known numbers, or NaN if all are None or NaN."""
    return float(np.fmax.reduce([np.nan if number is None else number for number in numbers]))
