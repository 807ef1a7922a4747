"""The verdict over all results of a campaign, and what a model is good for by them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mlff_student.analysis.run import TELLING_PS
from mlff_student.core.errors import InputError
from mlff_student.core.figures import Threshold
from mlff_student.reporting.verdict import Check, judge

Record = Mapping[str, Any]
# Figures that a full validation has, and what is needed to measure them.
EXPECTED = {
    "drift_mev_per_atom_ps": "runs at constant energy",
    "heating_percent": "runs at constant energy",
    "exchange_ratio": "runs at constant energy",
    "bond_deviation_angstrom": "any run",
    "force_rmse_ev_per_angstrom": "a teacher (--teacher)",
    "convergence_deviation": "a ladder of timesteps",
    "kinetic_mean_percent": "a liquid box at constant temperature, for 5 ps or more",
    "density_g_per_cm3": "a liquid box at constant pressure",
    "density_change_percent": "a liquid box at constant pressure",
    "rdf_error_percent": "a liquid box and a teacher's run of it",
    "pressure_error_gpa": "a liquid box and a run of it by a teacher that has stresses",
    "spectrum_overlap_percent": "a spectrum_teacher_ps of the protocol",
    "equipartition_sigma": "velocities in the trajectory, as mlff-student analyze reads them",
}
# Figures that every finished run of an ensemble has: one that is missing fails.
OF_NVE = ("drift_mev_per_atom_ps", "heating_percent", "exchange_ratio")
OF_NVE += ("bond_deviation_angstrom", "nonfinite_rows")
OF_THERMOSTAT = ("kinetic_mean_percent", "kinetic_width_percent")  # of runs of `TELLING_PS`
OF_BAROSTAT = ("density_change_percent",)  # of these, at constant pressure, as well
NEEDED = {"rdf": ("rdf_error_percent",), "convergence": ("convergence_deviation",)}


class CaseCheck(NamedTuple):
    """A figure of one case held against its threshold."""

    case: str
    model: str
    engine: str
    judged: bool
    check: Check
    failure: str = ""  # why the case has no such figure

    def __str__(self) -> str:
        return self.failure or str(self.check)


class Advice(NamedTuple):
    """What the evidence says a model is for, what not, and what it cannot say; sentences."""

    use_for: list[str]
    not_for: list[str]
    not_resolved: list[str]


class Reason(NamedTuple):
    """Why a case does not pass."""

    text: str
    resolved: bool  # False: its run is too short to say

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Summary:
    """Verdict of a campaign.

    Attributes
    ----------
    checks : every figure with a threshold, of every case.
    not_measured : figure and what it would have needed.
    advice : by model.
    """

    checks: list[CaseCheck]
    not_measured: dict[str, str]
    advice: dict[str, Advice]

    @property
    def passed(self) -> bool:
        """Whether all that the verdict counts is within the thresholds."""
        return not self.failures

    @property
    def verdict(self) -> str:
        """passed, failed, or not resolved, where nothing fails that was resolved."""
        if self.passed:
            return "passed"
        return "failed" if any(one.check.resolved for one in self.failures) else "not resolved"

    @property
    def failures(self) -> list[CaseCheck]:
        """What the verdict counts and is not within its threshold."""
        return [one for one in self.checks if one.judged and not one.check.passed]

    def worst(self, model: str, engine: str) -> dict[str, CaseCheck]:
        """The figure farthest up of those the verdict counts, by name; what does not pass first."""
        found: dict[str, CaseCheck] = {}
        for one in self.checks:
            if (one.model, one.engine) == (model, engine) and one.judged:
                name = one.check.name
                if name not in found or _badness(one) > _badness(found[name]):
                    found[name] = one
        return found


def _badness(one: CaseCheck) -> tuple[bool, float]:
    value = abs(one.check.value)
    return not one.check.passed, np.inf if np.isnan(value) else value


def summarise(records: Iterable[Record], thresholds: Mapping[str, Threshold]) -> Summary:
    """Verdict over the records of a campaign's results.

    Raises
    ------
    InputError : no record that the verdict counts.
    """
    records = list(records)
    checks = [
        CaseCheck(one["case"], one["model"], one["engine"], one["judged"], check, _why(one, check))
        for one in records
        for check in judge(_numbers(one), thresholds)
    ]
    if not any(one.judged for one in checks):
        raise InputError("no result that a verdict could be made of")
    measured = {key for one in records if one["judged"] for key in one}
    missing = {name: what for name, what in EXPECTED.items() if name not in measured}
    models = dict.fromkeys(one.model for one in checks if one.judged)
    advice = {model: _advice(model, records, checks, missing) for model in models}
    return Summary(checks, missing, advice)


def _why(record: Record, check: Check) -> str:
    """Why a case has no figure, where its record says so."""
    if record["failure"] or not np.isnan(check.value) or not record.get("notes"):
        return record["failure"]
    return f"{check.name} is not there: {record['notes']}"


def _numbers(record: Record) -> Record:
    """The record with null, which is how JSON has NaN, as NaN, and with NaN for figures that such a
    run must have and that are not there.
    """
    numbers = {key: np.nan if value is None else value for key, value in record.items()}
    return dict.fromkeys(_needed(record), np.nan) | numbers


def _needed(record: Record) -> tuple[str, ...]:
    """Figures that a record must have."""
    if record["failed_runs"]:
        return ()
    ensemble = record.get("ensemble")
    if ensemble in ("nvt", "npt"):
        if record["duration_ps"] < TELLING_PS:
            return ()
        return OF_THERMOSTAT + (OF_BAROSTAT if ensemble == "npt" else ())
    return OF_NVE if ensemble == "nve" else NEEDED.get(record.get("kind", ""), ())


def _advice(
    model: str, records: list[Record], checks: list[CaseCheck], missing: Mapping[str, str]
) -> Advice:
    failed = _reasons(checks)
    mine = [one for one in records if one["model"] == model]
    runs = [one for one in mine if one.get("ensemble") == "nve"]
    use, avoid, unclear = [], [], []
    kept = [one for one in runs if one["judged"] and one["case"] not in failed]
    if kept:
        use.append(
            f"constant-energy MD of {_sizes(kept)}{_measured(kept)}: {len(kept)} of "
            f"{sum(one['judged'] for one in runs)} runs held, the longest "
            f"{max(one['duration_ps'] for one in kept):.0f} ps"
        )
    for key, unit, what in (
        ("target_temperature_k", "K", "temperature"),
        ("timestep_fs", "fs", "timestep"),
        ("atoms", "atoms", "size"),
    ):
        rungs = [one for one in runs if one["step"] == f"{what}_ladder"]
        held, doubtful, broke = _ladder(rungs, key, failed)
        if held is not None and what != "size":
            top = [one for one in rungs if one[key] == held]
            heat = _measured(top, "the last: ") if what == "temperature" else ""
            span = _span([one[key] for one in rungs if one[key] <= held])
            use.append(f"{what} of {span} {unit}{heat}: all held up to this")
        elif held is not None:
            sizes = _sizes([one for one in rungs if one["atoms"] <= held])
            use.append(f"sizes of {sizes}: all held up to this")
        if doubtful is not None:
            value, why = doubtful
            unclear.append(f"{what} of {value:g} {unit}: {why}")
        if broke is not None:
            value, why = broke
            avoid.append(f"{what} of {value:g} {unit} and more: {why}")
    for line in _liquids(mine, failed):
        (use if line.reason is None else avoid if line.reason.resolved else unclear).append(
            line.text
        )
    single = [one for one in runs if one["judged"] and not one["step"].endswith("_ladder")]
    single += [one for one in mine if one.get("kind") in ("convergence", "spectrum")]
    for one in single:
        if reason := failed.get(one["case"]):
            where = ", ".join(filter(None, (one["engine"], one.get("kind"))))
            line = f"{one['structure']} ({where}): {reason}"
            (avoid if reason.resolved else unclear).append(line)
    if "force_rmse_ev_per_angstrom" in missing:
        avoid.append("anything that depends on the teacher's forces: not compared")
    return Advice(*(list(dict.fromkeys(lines)) for lines in (use, avoid, unclear)))


class _Line(NamedTuple):
    text: str
    reason: Reason | None  # None: it held


def _liquids(records: list[Record], failed: Mapping[str, Reason]) -> list[_Line]:
    """What a model did with liquids: by box and engine what held, and each run that did not."""
    liquid = [
        one for one in records if one.get("ensemble") in ("nvt", "npt") or one.get("kind") == "rdf"
    ]
    if not liquid:
        return [_Line("liquids: not tested", Reason("", resolved=True))]
    lines = []
    for name, engine in dict.fromkeys((one["structure"], one["engine"]) for one in liquid):
        of_box = [one for one in liquid if (one["structure"], one["engine"]) == (name, engine)]
        bad = [one for one in of_box if one["case"] in failed]
        for one in bad:
            why = failed[one["case"]]
            what = one.get("ensemble") or "g(r)"
            lines.append(_Line(f"liquids such as {name} ({engine}, {what}): {why}", why))
        if not bad:
            lengths = ", ".join(
                f"{one['duration_ps']:.0f} ps {one['ensemble']}{_density(one)}"
                for one in of_box
                if "ensemble" in one
            )
            size = f"{of_box[0]['molecules']} molecules, {of_box[0]['atoms']} atoms"
            against = "" if any(one.get("kind") == "rdf" for one in of_box) else NO_RDF
            lines.append(
                _Line(f"liquids such as {name} ({engine}): {size}, {lengths}{against}", None)
            )
    return lines


def _density(record: Record) -> str:
    value = record.get("density_g_per_cm3")
    return "" if value is None else f" at {value:.2f} g/cm³"


NO_RDF = "; its structure was not held against the teacher's"


def _reasons(checks: list[CaseCheck]) -> dict[str, Reason]:
    """Why each case that does not pass does not: the first figure that is beyond its threshold by a
    number, where there is one; else one that is no number, else one that is not resolved.
    """
    bad = [one for one in checks if not one.check.passed]
    reasons: dict[str, Reason] = {}
    for one in sorted(bad, key=lambda one: (not one.check.resolved, np.isnan(one.check.value))):
        reasons.setdefault(one.case, Reason(str(one), one.check.resolved))
    return reasons


def _sizes(records: list[Record]) -> str:
    """Atoms of runs, and which of them were in boxes of several molecules, in words."""
    boxes = [one["atoms"] for one in records if one["molecules"] > 1]
    among = f", those of {_span(boxes)} several molecules in a box" if boxes else ""
    return f"{_span([one['atoms'] for one in records])} atoms{among}"


def _measured(records: list[Record], of: str = "") -> str:
    """Mean temperatures that runs had, in words; those asked for are no measurement."""
    means = [one["temperature_k"] for one in records if one.get("temperature_k") is not None]
    if not means:
        return ""
    low, high = round(min(means)), round(max(means))
    return f" ({of}mean temperature {low if low == high else f'{low} to {high}'} K)"


_Rung = tuple[float, Reason]


def _ladder(
    rungs: list[Record], key: str, failed: Mapping[str, Reason]
) -> tuple[float | None, _Rung | None, _Rung | None]:
    """Highest rung up to which all held; the next, with why, where it is not resolved; and the
    lowest that did not hold.
    """
    held: float | None = None
    doubtful: _Rung | None = None
    for value in sorted({one[key] for one in rungs}):
        bad = [failed[one["case"]] for one in rungs if one[key] == value and one["case"] in failed]
        if broken := [reason for reason in bad if reason.resolved]:
            return held, doubtful, (value, broken[0])
        if bad:
            doubtful = doubtful or (value, bad[0])
        elif doubtful is None:
            held = value
    return held, doubtful, None


def _span(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
