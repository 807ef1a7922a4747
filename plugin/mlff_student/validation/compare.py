"""Compare two reports of `mlff-student validate` to find out whether a new model is worse."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlff_student.core.errors import InputError
from mlff_student.core.figures import Threshold, figure_of
from mlff_student.core.results import read_json

SIGMAS = 3.0  # a change must exceed this many combined standard errors
RELEVANT = 0.05  # a change smaller than this share of the threshold does not matter, unless the
TIMES = 2.0  # figure is this many times as large as before
NOTABLE = 0.25  # without a standard error, a growth must exceed this share of the threshold
COMPARABLE = 2.0  # a standard error may be at most this many times as large as before
FEWEST_CASES = 3  # cases that the standard error of a mean change needs
CRASHES = ("failed_runs", "nonfinite_rows")  # compared also in cases that are not judged


class Read(NamedTuple):
    """The parts of a report that are compared.

    Attributes
    ----------
    cases : dict[str, dict[str, Any]]
        Records by case. The name of the model is left out of the case.
    teacher : str
        Name of the teacher.
    protocol : str
        SHA-256 of what was run.
    """

    cases: dict[str, dict[str, Any]]
    teacher: str
    protocol: str


class Worse(NamedTuple):
    """A way in which the new model is worse.

    Attributes
    ----------
    figure : str
        Key of the figure. Empty for a missing case.
    case : str
        Case in which it is worse.
    old, new : float
        Absolute values of the figure in the two reports, in the unit of the figure's key.
    reason : str
        Why this counts as worse.
    """

    figure: str
    case: str
    old: float
    new: float
    reason: str


def read_report(path: Path) -> Read:
    """Read a JSON report for `compare`.

    Parameters
    ----------
    path : Path
        A report-MODEL.json of `mlff-student validate`.

    Returns
    -------
    Read
        Records, teacher and protocol.

    Raises
    ------
    InputError
        If it is no such file, or a report of several models.
    """
    content = read_json(Path(path))
    try:
        if content["command"] != "validate":
            raise ValueError(f"it is a file of the command {content['command']!r}")
        records = content["results"]
        models = {record["model"] for record in records if record["judged"]}
        cases = {
            record["case"].split("/", 1)[1]: record
            for record in records
            if record["model"] in models
        }
        read = Read(cases, content["teacher"], content["protocol_sha256"])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{path} is no report of mlff-student validate: {error}") from error
    if len(models) != 1:
        raise InputError(
            f"{path} has {len(models)} models ({', '.join(sorted(map(str, models)))}); "
            "give a report of a single model"
        )
    return read


def compare(old: Read, new: Read, thresholds: Mapping[str, Threshold]) -> list[Worse]:
    """Return all ways in which a new report is worse than an old one beyond the uncertainty.

    Each of these counts as worse:

    - a case is missing;
    - a figure was within its threshold and is not any more, or was beyond it and grew;
    - a figure grew by more than three combined standard errors, and by more than a twentieth of its
      threshold or to more than twice its size;
    - a figure without a standard error grew to more than twice its size and by more than a quarter
      of its threshold;
    - a figure grew on average over three cases or more, by more than three standard errors from the
      scatter between the cases and by more than a twentieth of its threshold;
    - a standard error became so large that it would hide a growth;
    - a run stops with an error that did not before, also if it is not judged.

    Parameters
    ----------
    old, new : Read
        The two reports, from `read_report`.
    thresholds : Mapping[str, Threshold]
        Thresholds by the keys of the figures.

    Returns
    -------
    list[Worse]
        Every way in which the new report is worse. Empty if it is not worse.

    Raises
    ------
    InputError
        If the reports are of different teachers or protocols (by what is run, not by name), or have
        no case in common.
    """
    for what, before, after in (
        ("teachers", old.teacher, new.teacher),
        ("protocols", old.protocol, new.protocol),
    ):
        if before != after:
            raise InputError(
                f"the reports are of different {what}, {before[:12] or 'none'} and "
                f"{after[:12] or 'none'}; validate both models with the same"
            )
    judged = {case: record for case, record in old.cases.items() if record["judged"]}
    if not set(judged) & set(new.cases):
        raise InputError("the reports have no case in common; give reports of the same engine")
    worse: list[Worse] = []
    changes: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for case, before in judged.items():
        if case not in new.cases:
            worse.append(Worse("", case, np.nan, np.nan, "missing in the new report"))
            continue
        for name, threshold in thresholds.items():
            after = new.cases[case]
            if name not in before and name not in after:
                continue
            a, b = _size(before, name), _size(after, name)
            if np.isfinite([a, b]).all():
                changes[name].append((a, b))
            if reason := _growth(before, after, name, threshold.value):
                worse.append(Worse(name, case, a, b, reason))
    for name, pairs in changes.items():
        growth = np.array([b - a for a, b in pairs])
        if len(growth) >= FEWEST_CASES:
            error = growth.std(ddof=1) / np.sqrt(len(growth))
            if growth.mean() > max(SIGMAS * error, RELEVANT * thresholds[name].value):
                a, b = np.mean(pairs, axis=0)
                reason = f"grew by {growth.mean():.3g} ± {error:.2g} on average"
                worse.append(Worse(name, f"{len(growth)} cases", float(a), float(b), reason))
    for case, before in old.cases.items():
        after = new.cases.get(case, {})
        for name in CRASHES:
            a, b = _size(before, name), _size(after, name)
            if not before["judged"] and a == 0 and b > 0:
                worse.append(Worse(name, case, a, b, "stops with an error now, and did not before"))
    return worse


def _growth(before: dict[str, Any], after: dict[str, Any], name: str, limit: float) -> str:
    """Return why a figure of a case is worse now, or an empty text if it is not."""
    a, b = _size(before, name), _size(after, name)
    if not b <= limit and (name not in before or a <= limit):
        return f"is now beyond the threshold {limit:g}"
    if not np.isfinite(b):
        return "is not measured any more" if np.isfinite(a) else ""
    if not np.isfinite(a):
        return ""
    error, error_now = _error(before, name), _error(after, name)
    if np.isfinite(error) and not error_now <= max(COMPARABLE * error, RELEVANT * limit):
        return (
            f"has a standard error of {error_now:.2g}, before {error:.2g}, which may hide a growth"
        )
    combined = float(np.hypot(error, min(error_now, COMPARABLE * error)))
    least = RELEVANT * max(limit, a)
    if a > limit and b - a > np.fmax(SIGMAS * combined, least):
        return f"was beyond the threshold {limit:g} and grew"
    if np.isnan(combined):
        notable = b > TIMES * a and b - a > NOTABLE * limit
        return "grew to more than twice its size, and has no standard error" if notable else ""
    if b - a > SIGMAS * combined and (b - a > least or b > TIMES * a):
        return f"grew by {(b - a) / combined:.1f} standard errors"
    return ""


def _size(record: dict[str, Any], key: str) -> float:
    """Return the absolute value of a figure, or NaN if the record does not have it."""
    figure = figure_of(record, key)
    return np.nan if figure is None else abs(float(figure.value))


def _error(record: dict[str, Any], key: str) -> float:
    """Return the standard error of a figure, or NaN if there is none or it is not known."""
    figure = figure_of(record, key)
    return np.nan if figure is None or figure.standard_error is None else figure.standard_error
