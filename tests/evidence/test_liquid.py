"""The density of a small box of liquid at constant pressure, from a box packed at random."""

import json
import subprocess
import sys
from pathlib import Path

import mdtraj
import numpy as np
import pytest

from mlff_student.core.errors import InputError
from mlff_student.core.figures import load_thresholds
from mlff_student.validation.campaign import Campaign
from mlff_student.validation.protocol import Protocol, known_liquids, liquid_protocol
from mlff_student.validation.tasks import CampaignTarget

SHORT = {"molecules": 6, "equilibrate_ps": 1.0, "ps": 1.5}


def campaign_of(protocol: Protocol, folder: Path, engine: str = "openmm") -> Campaign:
    return Campaign(protocol, CampaignTarget(("ultra_tiny",), (engine,)), folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, dict]:
    """Folder of the command's run, and its record; the exit status says whether it passed."""
    folder = tmp_path_factory.mktemp("liquid") / "methanol"
    command = [
        sys.executable, "-m", "mlff_student", "liquid", "methanol", "--model", "ultra_tiny",
        "--molecules", "6", "--equilibrate-ps", "1", "--ps", "1.5", "-o", str(folder),
        "--json", str(folder.parent / "liquid.json"),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    report = json.loads((folder / "report-ultra_tiny.json").read_text())
    assert result.returncode == (0 if report["passed"] else 1), result.stderr
    assert report["reproduce"].startswith("mlff-student liquid methanol --model ultra_tiny")
    assert "g/cm³, experiment 0.786" in result.stdout
    (record,) = json.loads((folder.parent / "liquid.json").read_text())["results"]
    return folder, record


def test_figures_are_of_the_run(finished):
    """The density is the mean over the frames after equilibration, and the barostat works."""
    folder, record = finished
    run = folder / "runs" / record["case"]
    run = mdtraj.load(run / "run.dcd", top=run / "run.pdb")
    assert (run.n_frames, run.n_residues, run.n_atoms) == (25, 6, 36)
    density = 6 * 32.042 / 6.02214e23 / (run.unitcell_volumes[10:] * 1e-21)
    # The trajectory keeps single precision.
    assert record["density_g_per_cm3"] == pytest.approx(density.mean(), rel=1e-5)
    assert np.ptp(density) > 0.0
    experiment = known_liquids()["methanol"].density_g_per_cm3
    assert record["experiment_g_per_cm3"] == experiment
    assert record["density_deviation_percent"] == pytest.approx(
        100.0 * (density.mean() / experiment - 1.0), abs=1e-2
    )
    settings = {"liquid": "methanol", "molecules": 6, "equilibrate_ps": 1.0, "ps": 1.5, "seed": 1}
    assert {key: record[key] for key in settings} == settings


def test_report_shows_the_density_and_judges_it(finished):
    folder, _ = finished
    page = (folder / "comparison.html").read_text()
    assert "Density at constant pressure" in page and "Dashed: the experiment" in page
    report = json.loads((folder / "report-ultra_tiny.json").read_text())
    judged = {check["name"] for check in report["checks"] if check["judged"]}
    assert {"density_deviation_percent", "bond_deviation_angstrom", "hydrogens_lost"} <= judged


def test_a_finished_run_is_not_run_again_and_another_is_refused(finished):
    folder, record = finished
    campaign = campaign_of(liquid_protocol("methanol", **SHORT), folder)
    assert campaign.pending() == []
    assert campaign.results()[record["case"]]["record"].items() <= record.items()
    for other in ({"seed": 2}, {"molecules": 8}, {"ps": 2.0}):
        with pytest.raises(InputError, match="holds another campaign"):
            campaign_of(liquid_protocol("methanol", **SHORT | other), folder)
    with pytest.raises(InputError, match="holds another campaign"):
        campaign_of(liquid_protocol("water", **SHORT), folder)


def test_molecules_that_the_student_does_not_know_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not know Si"):
        campaign_of(liquid_protocol("C[SiH3]", **SHORT), tmp_path / "run")
    assert not (tmp_path / "run" / "campaign.json").exists()


def test_ase_has_no_barostat(tmp_path):
    with pytest.raises(InputError, match="npt runs in openmm and lammps"):
        campaign_of(liquid_protocol("methanol", **SHORT), tmp_path / "run", "ase")


@pytest.mark.slow
def test_barostats_of_both_engines_give_one_density(tmp_path):
    """Monte Carlo in OpenMM, Martyna, Tobias and Klein in LAMMPS: 16 methanols at 5 kbar,
    which keeps them a liquid whatever the student makes of their cohesion.
    """
    densities = []
    for engine in ("openmm", "lammps"):
        protocol = liquid_protocol(
            "methanol", molecules=16, equilibrate_ps=15.0, ps=40.0, pressure_bar=5000.0
        )
        campaign = campaign_of(protocol, tmp_path / engine, engine)
        campaign.run(1, quiet=True)
        (result,) = campaign.results().values()
        record = result["record"]
        assert (
            record["bond_deviation_angstrom"] < load_thresholds()["bond_deviation_angstrom"].value
        )
        densities.append((record["density_g_per_cm3"], record["density_stderr_g_per_cm3"]))
    (monte_carlo, error), (dynamics, other_error) = densities
    assert max(error, other_error) < 0.02 * monte_carlo
    assert abs(monte_carlo - dynamics) < 4.0 * np.hypot(error, other_error), densities
