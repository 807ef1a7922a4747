"""Is a new model worse than the last one? Two reports of `mlff-student validate`, case by case."""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..verdict import Threshold

SIGMAS = 3.0  # standard errors that a change must exceed
RELEVANT = 0.05  # of the threshold: a smaller change matters to nobody
FEWEST_CASES = 3  # that a mean change has a standard error of


class Worse(NamedTuple):
    """One way in which the new model is worse."""

    figure: str
    case: str
    old: float
    new: float
    reason: str


def read_report(path: Path) -> dict[str, dict[str, Any]]:
    """Records of a report by case, the model's name left out of it.

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
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{path} is no report of mlff-student validate: {error}") from error
    if len(models) != 1:
        raise InputError(
            f"{path} has {len(models)} models ({', '.join(sorted(models))}); compare those of one"
        )
    return found


def compare(
    old: dict[str, dict[str, Any]],
    new: dict[str, dict[str, Any]],
    thresholds: dict[str, Threshold],
) -> list[Worse]:
    """All ways in which `new` is worse than `old` beyond the uncertainty; empty if none.

    Worse is: a case that is missing; a figure that was within its threshold and is not; a figure
    that grew by more than three of its standard errors and a twentieth of its threshold; and one
    that grew so on average over three cases or more, by the scatter between the cases.

    Raises
    ------
    InputError : the reports have no case in common.
    """
    judged = {case: one for case, one in old.items() if one["judged"]}
    if not set(judged) & set(new):
        raise InputError("the reports have no case in common: they are of different protocols")
    found: list[Worse] = []
    changes: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for case, before in judged.items():
        if case not in new:
            found.append(Worse("", case, np.nan, np.nan, "missing in the new report"))
            continue
        after = new[case]
        for name, (limit, _, _) in thresholds.items():
            if name not in before and name not in after:
                continue
            a, b = _size(before, name), _size(after, name)
            if not b <= limit and (name not in before or a <= limit):
                found.append(Worse(name, case, a, b, f"now beyond the threshold {limit:g}"))
                continue
            if not np.isfinite([a, b]).all():
                if np.isfinite(a):
                    found.append(Worse(name, case, a, b, "no longer measured"))
                continue
            changes[name].append((a, b))
            error = np.hypot(stderr_of(before, name), stderr_of(after, name))
            if b - a > max(SIGMAS * error, RELEVANT * limit) and np.isfinite(error):
                found.append(
                    Worse(name, case, a, b, f"grew by {(b - a) / error:.1f} standard errors")
                )
    for name, pairs in changes.items():
        growth = np.array([b - a for a, b in pairs])
        if len(growth) >= FEWEST_CASES:
            error = growth.std(ddof=1) / np.sqrt(len(growth))
            if growth.mean() > max(SIGMAS * error, RELEVANT * thresholds[name].value):
                a, b = np.mean(pairs, axis=0)
                reason = f"grew by {growth.mean():.3g} ± {error:.2g} on average"
                found.append(Worse(name, f"{len(growth)} cases", float(a), float(b), reason))
    return found


def _size(record: dict[str, Any], name: str) -> float:
    value = record.get(name)
    return np.nan if value is None else abs(float(value))


def stderr_of(record: Mapping[str, Any], name: str) -> float:
    """Standard error of a figure, whose name is the figure's with `_stderr` in it; NaN if none."""
    for key, value in record.items():
        if "_stderr" in key and key.replace("_stderr", "") == name and value is not None:
            return float(value)
    return np.nan
