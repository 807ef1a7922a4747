"""Evidence of a model: what was measured of its weights, kept in the summary.json beside them."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from mlff_student.core.errors import InputError
from mlff_student.core.figures import Figure
from mlff_student.core.files import atomic_write
from mlff_student.core.files import sha256 as file_sha256

FORMAT = 1
SUMMARY = "summary.json"  # beside model.pt
OPTIONAL = ("note", "machine", "versions", "made_from")  # left out of the file where they are empty
DIGITS = 6  # significant digits of a figure that is kept


class Observation(NamedTuple):
    """A figure and the circumstances under which it was measured.

    Attributes
    ----------
    figure : Figure
    where : Mapping
        For example engine, structure, temperature_K; only plain numbers and text.
    """

    figure: Figure
    where: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Evidence:
    """The figures of one measurement, and what made them.

    Attributes
    ----------
    what : str
        Names the measurement; a model has each once.
    command : str
        Makes it anew, from the top of a checkout.
    date : str
        Day it was made, YYYY-MM-DD.
    versions : Mapping
        Version of each package that the figures depend on.
    machine : str
        What it ran on; empty if that is not known or does not matter.
    made_from : Mapping
        SHA-256 of each recipe, protocol, table of thresholds and dataset, by its file name. Of a
        YAML file it is `content_sha256` of what counts in it: comments do not.
    figures : list[Observation]
        List of Observation.
    note : str
        What a reader must know besides.
    """

    what: str
    command: str
    date: str
    figures: list[Observation]
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: str = ""
    made_from: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class EvidenceState:
    """Whether a piece of evidence is of today's recipe, protocol and thresholds.

    Attributes
    ----------
    evidence : Evidence
    changed : list of str
        Names in `Evidence.made_from` whose content is another one now.
    """

    evidence: Evidence
    changed: list[str]


@dataclass(frozen=True)
class ModelState:
    """What `check_evidence` says of a model.

    Attributes
    ----------
    inconsistent : list of str
        One sentence for each contradiction between weights, card and summary.
    evidence : list[EvidenceState]
        List of EvidenceState.
    """

    inconsistent: list[str]
    evidence: list[EvidenceState]


def content_sha256(value: Any) -> str:
    """Hash of parsed YAML or JSON: the same for the same values, however they are written."""
    text = json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"))
    return sha256(text.encode()).hexdigest()


def _canonical(value: Any) -> Any:
    """A whole number is the same number with or without a decimal point."""
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def read_evidence(folder: Path) -> list[Evidence]:
    """Evidence of the checkpoint in a folder; empty without a summary.json.

    Raises
    ------
    InputError
        If the file is not such a summary.
    """
    content = _read(folder)
    try:
        return [_evidence(**entry) for entry in content.get("evidence", [])]
    except (TypeError, AttributeError) as error:
        raise InputError(f"{folder / SUMMARY} is damaged: {error}") from error


def add_evidence(folder: Path, model: str, evidence: Iterable[Evidence]) -> list[Evidence]:
    """Write evidence into a checkpoint's summary.json, in the place of what it replaces.

    Evidence of the same `what` is replaced, and all of it where the summary is of other weights.

    Returns
    -------
    list of Evidence
        All that the summary now holds.

    Raises
    ------
    InputError
        If the summary that is there cannot be read, or cannot be written.
    """
    weights = file_sha256(folder / "model.pt")
    kept = read_evidence(folder) if _read(folder).get("weights_sha256") == weights else []
    merged = {each.what: each for each in [*kept, *evidence]}
    content = {"format": FORMAT, "model": model, "weights_sha256": weights}
    with atomic_write(folder / SUMMARY) as temporary:
        temporary.write_text(_text(content, merged.values()))
    return list(merged.values())


def check_evidence(folder: Path, card: Mapping[str, Any], inputs: Mapping[str, str]) -> ModelState:
    """Whether weights, card and summary belong together, and which evidence is current.

    Parameters
    ----------
    folder : Path
        Checkpoint folder.
    card : Mapping
        Its card.
    inputs : Mapping
        Today's hashes of what evidence may be made from, as `Evidence.made_from`; what it does not
        name is not compared.

    Raises
    ------
    InputError
        If the summary is damaged.
    """
    content, weights = _read(folder), file_sha256(folder / "model.pt")
    claims = {"card.json": card.get("model_sha256")}
    if content:
        claims[SUMMARY] = content.get("weights_sha256")
    inconsistent = [
        f"{name} is of the weights {str(claim)[:12]}, model.pt has {weights[:12]}"
        for name, claim in claims.items()
        if claim != weights
    ]
    if not content:
        inconsistent.append(f"there is no {SUMMARY}")
    elif content.get("model") != folder.name:
        inconsistent.append(f"{SUMMARY} is of the model {content.get('model')!r}")
    return ModelState(
        inconsistent,
        [
            EvidenceState(
                each, [n for n, digest in each.made_from.items() if inputs.get(n, digest) != digest]
            )
            for each in read_evidence(folder)
        ],
    )


def _read(folder: Path) -> dict[str, Any]:
    path = folder / SUMMARY
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path} is no summary of format {FORMAT}")
    return content


def _evidence(figures: list[dict[str, Any]], **facts: Any) -> Evidence:
    """Evidence of its JSON object."""
    observations = [
        Observation(Figure(**{k: v for k, v in row.items() if k != "where"}), row.get("where", {}))
        for row in figures
    ]
    return Evidence(figures=observations, **facts)


def _text(head: Mapping[str, Any], evidence: Iterable[Evidence]) -> str:
    """JSON with a line for each figure, so that a change of a figure is a change of a line."""
    blocks = []
    for each in evidence:
        needed = {"what": each.what, "command": each.command, "date": each.date}
        facts = needed | {key: vars(each)[key] for key in OPTIONAL if vars(each)[key]}
        inner = json.dumps(facts, indent=2)[2:-2].replace("\n", "\n    ")
        rows = [_row(*each_row) for each_row in each.figures if isfinite(each_row.figure.value)]
        lines = ",\n".join(f"        {json.dumps(row)}" for row in rows)
        blocks.append(f'    {{\n    {inner},\n      "figures": [\n{lines}\n      ]\n    }}')
    start = json.dumps(head, indent=2)[:-2]
    return start + ',\n  "evidence": [\n' + ",\n".join(blocks) + "\n  ]\n}\n"


def _row(figure: Figure, where: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"name": figure.name, "value": _short(figure.value), "unit": figure.unit}
    for key in ("standard_error", "noise"):
        number = getattr(figure, key)
        if number is not None and isfinite(number):
            row[key] = _short(number)
    return row | ({"where": dict(where)} if where else {})


def _short(number: float) -> float:
    return float(f"{number:.{DIGITS}g}")
