"""Judge all results of a campaign, and say what a model can be used for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mlff_student.analysis.run import MIN_THERMOSTAT_TEST_PS
from mlff_student.core.errors import InputError
from mlff_student.core.figures import Figure, Threshold, figures_of, known_figures
from mlff_student.reporting.verdict import Check, Outcome, judge, overall

Record = Mapping[str, Any]
# Figures that a full validation has, and what is needed to measure each.
EXPECTED = {
    "drift_mev_per_atom_ps": "runs at constant energy",
    "heating_percent": "runs at constant energy",
    "exchange_ratio": "runs at constant energy",
    "bond_deviation_angstrom": "any run",
    "force_rmse_ev_per_angstrom": "a teacher (--teacher)",
    "convergence_deviation": "runs with several timesteps",
    "kinetic_mean_percent": "a liquid box at constant temperature for 5 ps or more",
    "density_g_per_cm3": "a liquid box at constant pressure",
    "density_change_percent": "a liquid box at constant pressure",
    "rdf_error_percent": "a liquid box and a run of the teacher of the same box",
    "pressure_error_gpa": "a liquid box and a run of it by a teacher that computes stresses",
    "density_error_percent": "a liquid step with teacher_npt_ps in the protocol",
    "vaporisation_error_kj_per_mol": "a liquid step with teacher_npt_ps and gas_ps",
    "spectrum_overlap_percent": "a step with spectrum_teacher_ps in the protocol",
    "equipartition_sigma": "a trajectory with velocities and mlff-student analyze",
}
# Figures that every finished run of an ensemble must have. A missing figure fails.
OF_NVE = ("drift_mev_per_atom_ps", "heating_percent", "exchange_ratio")
OF_NVE += ("bond_deviation_angstrom", "nonfinite_rows")
# Runs with a thermostat must have them from `MIN_THERMOSTAT_TEST_PS` on.
OF_THERMOSTAT = ("kinetic_mean_percent", "kinetic_width_percent")
OF_BAROSTAT = ("density_change_percent",)
NEEDED = {"rdf": ("rdf_error_percent",), "convergence": ("convergence_deviation",)}
NEEDED |= {"density": ("density_error_percent",)}
NEEDED |= {"vaporisation": ("vaporisation_error_kj_per_mol",)}
OF_LIQUIDS = ("rdf", "density", "vaporisation")  # comparisons of liquids


class CaseCheck(NamedTuple):
    """A figure of a case compared with its threshold.

    Attributes
    ----------
    case : str
        Name of the task.
    model, engine : str
        Model and MD engine of the case.
    judged : bool
        Whether the verdict counts the case.
    check : Check
        Figure, threshold and result.
    failure : str
        Why the case does not have the figure. Empty if it does.
    """

    case: str
    model: str
    engine: str
    judged: bool
    check: Check
    failure: str = ""

    def __str__(self) -> str:
        return self.failure or str(self.check)


class Advice(NamedTuple):
    """What a model can be used for by the results of a campaign.

    Attributes
    ----------
    use_for : list[str]
        Uses that the runs support, each with the reason.
    not_for : list[str]
        Uses that the runs speak against, each with the reason.
    not_resolved : list[str]
        Uses that the runs are too short to decide about, each with the reason.
    """

    use_for: list[str]
    not_for: list[str]
    not_resolved: list[str]

    def lists(self) -> list[tuple[str, list[str]]]:
        """Return the three lists, each with the sentence that introduces it in a report."""
        return [
            ("The runs show that the model can be used for:", self.use_for),
            ("The runs do not support its use for:", self.not_for),
            ("The runs are too short to decide about:", self.not_resolved),
        ]


class Reason(NamedTuple):
    """Why a case does not pass.

    Attributes
    ----------
    text : str
        The figure with its value, or the error of the run.
    resolved : bool
        Whether the run is long enough to decide.
    """

    text: str
    resolved: bool

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Summary:
    """Verdict of a campaign.

    Attributes
    ----------
    checks : list[CaseCheck]
        Checks of all figures with a threshold in all cases.
    not_measured : dict[str, str]
        What is needed to measure a figure, by the key of each figure that was not measured.
    advice : dict[str, Advice]
        What each model can be used for, by the name of the model.
    """

    checks: list[CaseCheck]
    not_measured: dict[str, str]
    advice: dict[str, Advice]

    @property
    def passed(self) -> bool:
        """Whether all judged figures pass."""
        return not self.failures

    @property
    def verdict(self) -> Outcome:
        """The result of all judged figures together."""
        return overall(case.check for case in self.checks if case.judged)

    @property
    def failures(self) -> list[CaseCheck]:
        """The judged figures that do not pass."""
        return [case for case in self.checks if case.judged and not case.check.passed]

    def worst(self, model: str, engine: str) -> dict[str, CaseCheck]:
        """Return the worst judged case of each figure.

        A case that does not pass is worse than one that passes. Among equal cases, the one with the
        smaller margin to the threshold is worse.

        Parameters
        ----------
        model, engine : str
            Model and MD engine.

        Returns
        -------
        dict[str, CaseCheck]
            Worst case by the key of the figure.
        """
        worst: dict[str, CaseCheck] = {}
        for case in self.checks:
            if (case.model, case.engine) == (model, engine) and case.judged:
                key = case.check.key
                if key not in worst or _badness(case) > _badness(worst[key]):
                    worst[key] = case
        return worst


def _badness(case: CaseCheck) -> tuple[bool, float]:
    margin = case.check.threshold.margin(case.check.figure.value)
    return not case.check.passed, np.inf if np.isnan(margin) else -margin


def summarise(records: Iterable[Record], thresholds: Mapping[str, Threshold]) -> Summary:
    """Judge the records of a campaign.

    Parameters
    ----------
    records : Iterable[Record]
        Records of the finished tasks.
    thresholds : Mapping[str, Threshold]
        Thresholds by the keys of the figures.

    Returns
    -------
    Summary
        Checks, verdict and advice.

    Raises
    ------
    InputError
        If no record is judged.
    """
    records = list(records)
    checks = [
        CaseCheck(
            record["case"],
            record["model"],
            record["engine"],
            record["judged"],
            check,
            _why(record, check),
        )
        for record in records
        for check in judge(_figures(record), thresholds, record.get("ensemble", ""))
    ]
    if not any(case.judged for case in checks):
        raise InputError("there is no result to judge")
    measured = {key for record in records if record["judged"] for key in record}
    missing = {name: need for name, need in EXPECTED.items() if name not in measured}
    models = dict.fromkeys(case.model for case in checks if case.judged)
    advice = {model: _advice(model, records, checks, missing) for model in models}
    return Summary(checks, missing, advice)


def _why(record: Record, check: Check) -> str:
    """Return why a case does not have a figure, if its record says so."""
    if record["failure"] or not np.isnan(check.figure.value) or not record.get("notes"):
        return record["failure"]
    return f"{check.key} was not measured: {record['notes']}"


def _figures(record: Record) -> list[Figure]:
    """Return the figures of a record, with NaN for figures that are required and missing."""
    missing = [key for key in _needed(record) if key not in record]
    return figures_of(record) + [known_figures()[key].figure(np.nan) for key in missing]


def _needed(record: Record) -> tuple[str, ...]:
    """Return the keys of the figures that a record must have."""
    if record["failed_runs"]:
        return ()
    ensemble = record.get("ensemble")
    if ensemble in ("nvt", "npt"):
        if record["duration_ps"] < MIN_THERMOSTAT_TEST_PS:
            return ()
        return OF_THERMOSTAT + (OF_BAROSTAT if ensemble == "npt" else ())
    return OF_NVE if ensemble == "nve" else NEEDED.get(record.get("kind", ""), ())


def _advice(
    model: str, records: list[Record], checks: list[CaseCheck], missing: Mapping[str, str]
) -> Advice:
    failed = _reasons(checks)
    own = [record for record in records if record["model"] == model]
    runs = [record for record in own if record.get("ensemble") == "nve"]
    use, avoid, unclear = [], [], []
    passed = [record for record in runs if record["judged"] and record["case"] not in failed]
    if passed:
        use.append(
            f"MD at constant energy of {_sizes(passed)}{_measured(passed)}: {len(passed)} of "
            f"{sum(record['judged'] for record in runs)} runs pass, and the longest has "
            f"{max(record['duration_ps'] for record in passed):.0f} ps"
        )
    for key, unit, quantity in (
        ("target_temperature_k", "K", "temperature"),
        ("timestep_fs", "fs", "timestep"),
        ("atoms", "atoms", "size"),
    ):
        series = [record for record in runs if record["step"] == f"{quantity}_ladder"]
        highest, doubtful, lowest_failed = _limits(series, key, failed)
        if highest is not None:
            good = [record for record in series if record[key] <= highest]
            if quantity == "size":
                use.append(f"a size of {_sizes(good)}: all runs pass")
            else:
                top = [record for record in good if record[key] == highest]
                mean = _measured(top, " in the hottest runs") if quantity == "temperature" else ""
                span = _span([record[key] for record in good])
                use.append(f"a {quantity} of {span} {unit}{mean}: all runs pass")
        if doubtful is not None:
            value, reason = doubtful
            unclear.append(f"a {quantity} of {value:g} {unit}: {reason}")
        if lowest_failed is not None:
            value, reason = lowest_failed
            avoid.append(f"a {quantity} of {value:g} {unit} or more: {reason}")
    for line in _liquids(own, failed):
        (use if line.reason is None else avoid if line.reason.resolved else unclear).append(
            line.text
        )
    single = [
        record for record in runs if record["judged"] and not record["step"].endswith("_ladder")
    ]
    single += [record for record in own if record.get("kind") in ("convergence", "spectrum")]
    for record in single:
        if reason := failed.get(record["case"]):
            where = ", ".join(filter(None, (record["engine"], record.get("kind"))))
            text = f"{record['structure']} ({where}): {reason}"
            (avoid if reason.resolved else unclear).append(text)
    if "force_rmse_ev_per_angstrom" in missing:
        avoid.append("work that needs the teacher's forces: they were not compared")
    return Advice(*(list(dict.fromkeys(lines)) for lines in (use, avoid, unclear)))


class _Line(NamedTuple):
    text: str
    reason: Reason | None  # None: all runs pass


def _liquids(records: list[Record], failed: Mapping[str, Reason]) -> list[_Line]:
    """Return a line for each box and engine that passes, and for each case that does not."""
    liquid = [
        record
        for record in records
        if (record["molecules"] > 1 or record["judged"])  # not a molecule in the gas
        and (record.get("ensemble") in ("nvt", "npt") or record.get("kind") in OF_LIQUIDS)
    ]
    if not liquid:
        return [_Line("liquids: they were not tested", Reason("", resolved=True))]
    lines = []
    boxes = dict.fromkeys((record["structure"], record["engine"]) for record in liquid)
    for name, engine in boxes:
        of_box = [
            record for record in liquid if (record["structure"], record["engine"]) == (name, engine)
        ]
        bad = [record for record in of_box if record["case"] in failed]
        for record in bad:
            reason = failed[record["case"]]
            kind = record.get("ensemble") or record["kind"].replace("rdf", "g(r)")
            lines.append(_Line(f"liquids such as {name} ({engine}, {kind}): {reason}", reason))
        if not bad:
            lengths = ", ".join(
                f"{record['duration_ps']:.0f} ps {record['ensemble']}{_density(record)}"
                for record in of_box
                if "ensemble" in record
            )
            size = f"{of_box[0]['molecules']} molecules ({of_box[0]['atoms']} atoms)"
            rdf = "" if any("rdf_error_percent" in record for record in of_box) else NO_RDF
            text = f"liquids such as {name} ({engine}): runs of {size} pass, {lengths}{rdf}"
            lines.append(_Line(text, None))
    return lines


def _density(record: Record) -> str:
    value = record.get("density_g_per_cm3")
    return "" if value is None else f" at {value:.2f} g/cm³"


NO_RDF = "; radial distribution functions were not compared with the teacher's"


def _reasons(checks: list[CaseCheck]) -> dict[str, Reason]:
    """Return the reason of each case that does not pass.

    It is the first figure with a number that fails, else a figure that is NaN, else a figure that
    is not resolved.
    """
    bad = [case for case in checks if not case.check.passed]
    bad.sort(key=lambda case: (not case.check.resolved, np.isnan(case.check.figure.value)))
    reasons: dict[str, Reason] = {}
    for case in bad:
        reasons.setdefault(case.case, Reason(str(case), case.check.resolved))
    return reasons


def _sizes(records: list[Record]) -> str:
    """Return the numbers of atoms in words, and those of boxes of several molecules."""
    boxes = [record["atoms"] for record in records if record["molecules"] > 1]
    in_boxes = f", including boxes of {_span(boxes)} atoms" if boxes else ""
    return f"{_span([record['atoms'] for record in records])} atoms{in_boxes}"


def _measured(records: list[Record], where: str = "") -> str:
    """Return the measured mean temperatures in words."""
    means = [
        record["temperature_k"] for record in records if record.get("temperature_k") is not None
    ]
    if not means:
        return ""
    low, high = round(min(means)), round(max(means))
    return f" (mean temperature {low if low == high else f'{low} to {high}'} K{where})"


_Limit = tuple[float, Reason]


def _limits(
    series: list[Record], key: str, failed: Mapping[str, Reason]
) -> tuple[float | None, _Limit | None, _Limit | None]:
    """Return up to where all runs of a series pass, and the first values that are not resolved and
    that fail, with their reasons.
    """
    highest: float | None = None
    doubtful: _Limit | None = None
    for value in sorted({record[key] for record in series}):
        cases = [record["case"] for record in series if record[key] == value]
        bad = [failed[case] for case in cases if case in failed]
        if resolved := [reason for reason in bad if reason.resolved]:
            return highest, doubtful, (value, resolved[0])
        if bad:
            doubtful = doubtful or (value, bad[0])
        elif doubtful is None:
            highest = value
    return highest, doubtful, None


def _span(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
