"""Evidence of a model: the figures that were measured of its weights, kept in its summary.json."""

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
DIGITS = 6  # significant digits of a figure in the file


class Observation(NamedTuple):
    """A figure and the conditions under which it was measured.

    Attributes
    ----------
    figure : Figure
        The measured figure.
    where : Mapping
        Conditions, for example engine, structure and temperature_K; only plain numbers and text.
    """

    figure: Figure
    where: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Evidence:
    """The figures of one measurement, with the command and the inputs that made them.

    Attributes
    ----------
    what : str
        Name of the measurement; it occurs once in the summary of a model.
    command : str
        Command that repeats the measurement, called at the top of a checkout.
    date : str
        Day of the measurement, YYYY-MM-DD.
    figures : list[Observation]
        Measured figures.
    versions : Mapping
        Version of each package that the figures depend on.
    machine : str
        Machine that the measurement ran on; empty if it is not known or does not matter.
    made_from : Mapping
        SHA-256 of each recipe, protocol, table of thresholds and dataset, by its file name. Of a
        YAML file it is the `content_sha256` of the values that influence the figures, without
        comments and prose.
    note : str
        Further remark for the reader.
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
    """A piece of evidence, and the inputs that have changed since it was made.

    Attributes
    ----------
    evidence : Evidence
        The piece of evidence.
    changed : list of str
        Names in `Evidence.made_from` whose content is different now.
    """

    evidence: Evidence
    changed: list[str]


@dataclass(frozen=True)
class ModelState:
    """Result of `check_evidence` for one model.

    Attributes
    ----------
    inconsistent : list of str
        One clause for each contradiction between weights, card and summary.
    evidence : list[EvidenceState]
        State of each piece of evidence in the summary.
    """

    inconsistent: list[str]
    evidence: list[EvidenceState]


def content_sha256(value: Any) -> str:
    """Return the SHA-256 of parsed YAML or JSON.

    It depends only on the values: comments, the order of keys and the way a number is written
    (1 or 1.0) do not change it.

    Parameters
    ----------
    value : Any
        Dictionaries, lists, numbers and text.
    """
    text = json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"))
    return sha256(text.encode()).hexdigest()


def _canonical(value: Any) -> Any:
    """Return the value with text keys and with numbers as float, so that 1 and 1.0 are the same."""
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def read_evidence(folder: Path) -> list[Evidence]:
    """Read the evidence of a checkpoint.

    Parameters
    ----------
    folder : Path
        Checkpoint folder.

    Returns
    -------
    list of Evidence
        Evidence in the summary.json; empty if there is no such file.

    Raises
    ------
    InputError
        The file is damaged or not a summary.
    """
    content = _read(folder)
    try:
        return [_evidence(**entry) for entry in content.get("evidence", [])]
    except (TypeError, AttributeError) as error:
        raise InputError(f"{folder / SUMMARY} is damaged: {error}") from error


def add_evidence(folder: Path, model: str, evidence: Iterable[Evidence]) -> list[Evidence]:
    """Write evidence into a checkpoint's summary.json.

    Evidence with the same `what` is replaced. If the summary belongs to other weights, all of its
    evidence is removed.

    Parameters
    ----------
    folder : Path
        Checkpoint folder.
    model : str
        Name of the model.
    evidence : Iterable[Evidence]
        Evidence to write.

    Returns
    -------
    list of Evidence
        All evidence in the summary afterwards.

    Raises
    ------
    InputError
        The existing summary cannot be read, or the file cannot be written.
    """
    weights = file_sha256(folder / "model.pt")
    kept = read_evidence(folder) if _read(folder).get("weights_sha256") == weights else []
    merged = {each.what: each for each in [*kept, *evidence]}
    content = {"format": FORMAT, "model": model, "weights_sha256": weights}
    with atomic_write(folder / SUMMARY) as temporary:
        temporary.write_text(_text(content, merged.values()))
    return list(merged.values())


def check_evidence(folder: Path, card: Mapping[str, Any], inputs: Mapping[str, str]) -> ModelState:
    """Check that weights, card and summary belong together, and which evidence is current.

    Parameters
    ----------
    folder : Path
        Checkpoint folder.
    card : Mapping
        Content of the checkpoint's card.json.
    inputs : Mapping
        Present hashes of the inputs that evidence can be made from, in the form of
        `Evidence.made_from`. Inputs that are missing here are not compared.

    Raises
    ------
    InputError
        The summary is damaged.
    """
    content, weights = _read(folder), file_sha256(folder / "model.pt")
    claims = {"card.json": card.get("model_sha256")}
    if content:
        claims[SUMMARY] = content.get("weights_sha256")
    inconsistent = [
        f"{name} belongs to weights with the hash {str(claim)[:12]}, model.pt has {weights[:12]}"
        for name, claim in claims.items()
        if claim != weights
    ]
    if not content:
        inconsistent.append(f"there is no {SUMMARY}")
    elif content.get("model") != folder.name:
        inconsistent.append(
            f"{SUMMARY} belongs to the model {content.get('model')!r}, not {folder.name!r}"
        )
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
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path} is not a summary of evidence in format {FORMAT}")
    return content


def _evidence(figures: list[dict[str, Any]], **facts: Any) -> Evidence:
    """Make a piece of evidence from its JSON object."""
    observations = [
        Observation(Figure(**{k: v for k, v in row.items() if k != "where"}), row.get("where", {}))
        for row in figures
    ]
    return Evidence(figures=observations, **facts)


def _text(head: Mapping[str, Any], evidence: Iterable[Evidence]) -> str:
    """Return the JSON with one line for each figure, which keeps differences in git small."""
    blocks = []
    for each in evidence:
        needed = {"what": each.what, "command": each.command, "date": each.date}
        facts = needed | {key: vars(each)[key] for key in OPTIONAL if vars(each)[key]}
        inner = json.dumps(facts, indent=2)[2:-2].replace("\n", "\n    ")
        rows = [_row(*item) for item in each.figures if isfinite(item.figure.value)]
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
