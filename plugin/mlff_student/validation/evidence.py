"""Recipe, protocol and thresholds behind the evidence of the shipped students, as hashes."""

from pathlib import Path

import yaml

from mlff_student.archive.evidence import content_sha256
from mlff_student.core.figures import THRESHOLDS
from mlff_student.distill.evaluate import recipe_content_sha256
from mlff_student.distill.recipe import ORGANIC_RECIPE
from mlff_student.validation.protocol import PROTOCOLS

CAMPAIGN = PROTOCOLS / "campaign.yaml"


def evidence_inputs(model: str) -> dict[str, str]:
    """Today's hashes of what the evidence of a shipped student is made from, by file name."""
    return {
        ORGANIC_RECIPE.name: recipe_content_sha256(ORGANIC_RECIPE, model),
        CAMPAIGN.name: protocol_sha256(CAMPAIGN),
        THRESHOLDS.name: thresholds_sha256(THRESHOLDS),
    }


def protocol_sha256(path: Path) -> str:
    """Hash of what a protocol runs: its steps and their boxes, not what is said about them."""
    values = yaml.safe_load(path.read_text())
    return content_sha256({key: values.get(key) for key in ("steps", "boxes")})


def thresholds_sha256(path: Path) -> str:
    """Hash of the limits in a table of thresholds and how they apply, not of their sources."""
    table = yaml.safe_load(path.read_text())
    words = ("source", "unit")
    return content_sha256(
        {name: {k: v for k, v in row.items() if k not in words} for name, row in table.items()}
    )
