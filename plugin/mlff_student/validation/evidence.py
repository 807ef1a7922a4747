"""Compute the hashes of recipe, protocol and thresholds behind the evidence of a student."""

from pathlib import Path

import yaml

from mlff_student.archive.evidence import content_sha256
from mlff_student.core.figures import THRESHOLDS
from mlff_student.distill.chemistry import CHEMISTRY, chemistry_sha256
from mlff_student.distill.evaluate import recipe_content_sha256
from mlff_student.distill.recipe import ORGANIC_RECIPE
from mlff_student.validation.protocol import PROTOCOLS

CAMPAIGN = PROTOCOLS / "campaign.yaml"


def evidence_inputs(model: str) -> dict[str, str]:
    """Return the present hashes of the files that the evidence of a shipped student is made from.

    Parameters
    ----------
    model : str
        Name of a shipped student.

    Returns
    -------
    dict[str, str]
        SHA-256 by the name of the file.
    """
    return {
        ORGANIC_RECIPE.name: recipe_content_sha256(ORGANIC_RECIPE, model),
        CAMPAIGN.name: protocol_sha256(CAMPAIGN),
        THRESHOLDS.name: thresholds_sha256(THRESHOLDS),
        CHEMISTRY.name: chemistry_sha256(),
    }


def protocol_sha256(path: Path) -> str:
    """Return the hash of what a protocol runs: its steps and boxes, without its description.

    Parameters
    ----------
    path : Path
        YAML file of the protocol.

    Returns
    -------
    str
        SHA-256.
    """
    values = yaml.safe_load(path.read_text())
    return content_sha256({key: values.get(key) for key in ("steps", "boxes")})


def thresholds_sha256(path: Path) -> str:
    """Return the hash of the limits in a table of thresholds, without their sources and units.

    Parameters
    ----------
    path : Path
        YAML file of the thresholds.

    Returns
    -------
    str
        SHA-256.
    """
    table = yaml.safe_load(path.read_text())
    words = ("source", "unit")
    return content_sha256(
        {
            name: {key: value for key, value in row.items() if key not in words}
            for name, row in table.items()
        }
    )
