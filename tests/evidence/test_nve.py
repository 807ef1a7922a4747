"""Ten picoseconds at constant energy of molecules that no student has seen: pytest -m slow.

`mlff-student distill stability checkpoints/<name> --runs runs/nve/<name>` runs twenty a model.
"""

from pathlib import Path

import pytest

from mlff_student.archive.registry import available_models
from mlff_student.validation.campaign import Campaign
from mlff_student.validation.protocol import stability_protocol
from mlff_student.validation.report import write_reports
from mlff_student.validation.tasks import CampaignTarget

MOLECULES = 3  # of each model's test set: the shortest SMILES, the longest, and one between


@pytest.mark.slow
@pytest.mark.parametrize("model", available_models())
def test_energy_is_kept_and_bonds_hold(model: str, tmp_path: Path):
    protocol = stability_protocol(molecules=MOLECULES)
    campaign = Campaign(protocol, CampaignTarget((model,), protocol.engines), tmp_path)
    campaign.run(1, quiet=True)
    assert len(campaign.results()) == MOLECULES
    summary = write_reports(campaign).summary
    assert summary.passed, [str(failure) for failure in summary.failures]
