"""Is a new model worse than the last one? Two reports of `mlff-student validate`, case by case."""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlff_student.core.errors import InputError
from mlff_student.core.figures import Threshold
from mlff_student.reporting.verdict import stderr_of

SIGMAS = 3.0  # combined standard errors that a change must exceed
RELEVANT = 0.05  # of the threshold: a smaller change matters to nobody, unless it is
TIMES = 2.0  # as large as before
NOTABLE = 0.25  # of the threshold: a growth that counts where no standard error tells chance
COMPARABLE = 2.0  # as large as before, a standard error still tells what the old one did
FEWEST_CASES = 3  # that a mean change has a standard error of
CRASHES = ("failed_runs", "nonfinite_rows")  # also of cases that the verdict leaves out


class Read(NamedTuple):
    """What a report is compared by."""

    cases: dict[str, dict[str, Any]]  # records by case, the model's name left out of it
    teacher: str
    protocol: str  # digest of what was run


class Worse(NamedTuple):
    """One way in which the new model is worse."""

    figure: str
    case: str
    old: float
    new: float
    reason: str


def read_report(path: Path) -> Read:
    """What `compare` needs of a report.

    Raises
    ------
    InputError : not such a file, or one with several models.
    """
    try:
        content = json.loads(Path(path).read_text())
        if content["command"] != "validate":
            raise ValueError(f"it is of {content['command']!r}")
        records = content["results"]
        models = {one["model"] for one in records if one["judged"]}
        found = {one["case"].split("/", 1)[1]: one for one in records if one["model"] in models}
        read = Read(found, content["teacher"], content["protocol_sha256"])
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{path} is no report of mlff-student validate: {error}") from error
    if len(models) != 1:
        raise InputError(
            f"{path} has {len(models)} models ({', '.join(sorted(models))}); compare those of one"
        )
    return read


def compare(old: Read, new: Read, thresholds: Mapping[str, Threshold]) -> list[Worse]:
    """All ways in which `new` is worse than `old` beyond the uncertainty; empty if none.

    Worse is: a case that is missing; a figure that was within its threshold and is not, or was
    beyond it already and grew; a figure that grew by more than three combined standard errors, and
    by a twentieth of its threshold or to twice its size; one that has no standard error and grew to
    more than twice its size and by more than a quarter of its threshold; one that grew on average
    over three cases or more, by the scatter between the cases; a standard error so much larger than
    before that it would hide all this; and a run that breaks off and did not, also where the
    verdict does not count it.

    Raises
    ------
    InputError : the reports are of different teachers or protocols (by what is run, not by name),
        or have no case in common.
    """
    for what, before, after in (
        ("teachers", old.teacher, new.teacher),
        ("protocols", old.protocol, new.protocol),
    ):
        if before != after:
            raise InputError(
                f"the reports are of different {what}, {before[:12] or 'none'} and "
                f"{after[:12] or 'none'}; validate both models by the same"
            )
    judged = {case: one for case, one in old.cases.items() if one["judged"]}
    if not set(judged) & set(new.cases):
        raise InputError("the reports have no case in common: they are of different engines")
    found: list[Worse] = []
    changes: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for case, before in judged.items():
        if case not in new.cases:
            found.append(Worse("", case, np.nan, np.nan, "missing in the new report"))
            continue
        for name, (limit, _, _) in thresholds.items():
            after = new.cases[case]
            if name not in before and name not in after:
                continue
            a, b = _size(before, name), _size(after, name)
            if np.isfinite([a, b]).all():
                changes[name].append((a, b))
            if reason := _growth(before, after, name, limit):
                found.append(Worse(name, case, a, b, reason))
    for name, pairs in changes.items():
        growth = np.array([b - a for a, b in pairs])
        if len(growth) >= FEWEST_CASES:
            error = growth.std(ddof=1) / np.sqrt(len(growth))
            if growth.mean() > max(SIGMAS * error, RELEVANT * thresholds[name].value):
                a, b = np.mean(pairs, axis=0)
                reason = f"grew by {growth.mean():.3g} ± {error:.2g} on average"
                found.append(Worse(name, f"{len(growth)} cases", float(a), float(b), reason))
    for case, before in old.cases.items():
        after = new.cases.get(case, {})
        for name in CRASHES:
            a, b = _size(before, name), _size(after, name)
            if not before["judged"] and a == 0 and b > 0:
                found.append(Worse(name, case, a, b, "breaks off now, and did not"))
    return found


def _growth(before: dict[str, Any], after: dict[str, Any], name: str, limit: float) -> str:
    """How a figure of one case is worse now; empty if it is not."""
    a, b = _size(before, name), _size(after, name)
    if not b <= limit and (name not in before or a <= limit):
        return f"now beyond the threshold {limit:g}"
    if not np.isfinite(b):
        return "no longer measured" if np.isfinite(a) else ""
    if not np.isfinite(a):
        return ""
    error, error_now = stderr_of(before, name), stderr_of(after, name)
    if np.isfinite(error) and not error_now <= max(COMPARABLE * error, RELEVANT * limit):
        return f"its standard error, {error_now:.2g} after {error:.2g}, would hide a growth"
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


def _size(record: dict[str, Any], name: str) -> float:
    value = record.get(name)
    return np.nan if value is None else abs(float(value))
