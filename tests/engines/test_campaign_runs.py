"""Campaigns of short runs in ASE: one writer, what is measured again, what is a failure."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.lj import LennardJones
from emt_runs import run_of, settings

from mlff_student.analysis.thermo import read_thermo
from mlff_student.archive.registry import checkpoint_path
from mlff_student.core.errors import InputError, InterruptedRunError, StudentError
from mlff_student.core.figures import record_of
from mlff_student.core.files import only_writer
from mlff_student.engines.protocol import RunFolder
from mlff_student.engines.run import run_md
from mlff_student.structures.reading import Structure, make_topology, write_topology
from mlff_student.structures.trajectories import read_topology
from mlff_student.validation.campaign import Campaign, perform
from mlff_student.validation.estimate import seconds_per_evaluation
from mlff_student.validation.measure import (
    MEASURES,
    compare_pressures,
)
from mlff_student.validation.protocol import Protocol, load_protocol
from mlff_student.validation.tasks import CampaignTarget, CompareTask


def test_pressures_are_compared(tmp_path):
    """A well of the Lennard-Jones potential a tenth deeper makes the virial a tenth larger, after
    the burn-in of 0.1 of 0.4 ps; the kinetic part of the pressure is the same. Here both are given
    one run, so that on the teacher's frames and in the student's ensemble it is off by as much.
    """
    box = Atoms("Ar8", 3.8 * np.indices((2, 2, 2)).reshape(3, 8).T, cell=[7.6] * 3, pbc=True)
    write_topology(Structure(box, make_topology(box, [])), tmp_path / "box.pdb")
    teacher, student = (LennardJones(sigma=3.4, epsilon=e, rc=7.0) for e in (0.010, 0.011))
    chosen = settings(structure=str(tmp_path / "box.pdb"), ensemble="nvt", steps=400, timestep_fs=1)
    run_md(chosen, tmp_path / "run", quiet=True, calculator=teacher)
    run = RunFolder(tmp_path / "run")
    log = read_thermo(run.thermo)
    late = log.time_ps > 0.1
    ideal = 2.0 / 3.0 * log.kinetic_ev / box.get_volume() / units.GPa
    both = ([run], [run])
    record = record_of(compare_pressures(*both, read_topology(run.topology), student, 0.1, np.inf))
    assert record["pressure_teacher_gpa"] == pytest.approx(log.pressure_gpa[late].mean())
    virial = (log.pressure_gpa - ideal)[late].mean()
    assert abs(virial) > 1e-3
    for name in ("pressure_error", "virial_error_on_teacher_frames"):
        assert record[f"{name}_gpa"] == pytest.approx(0.1 * virial, rel=1e-3)
    on_frames = record["virial_error_on_teacher_frames_stderr_gpa"]
    assert 0.0 < 5.0 * on_frames < record["pressure_error_stderr_gpa"], "frames are the same there"


CALCULATORS = """
from ase.calculators.calculator import CalculationFailed
from ase.calculators.emt import EMT

class Stops(EMT):
    words, calls = "no convergence", 0

    def calculate(self, *arguments, **options):
        self.calls += 1
        if self.calls > 20:
            raise CalculationFailed(self.words)
        super().calculate(*arguments, **options)

class Refuses(Stops):
    # as a student does of atoms that came too close
    def calculate(self, *arguments, **options):
        from mlff_student.core.errors import InputError

        if self.calls > 15:
            raise InputError("atoms 0 and 1 are 0.1 angstrom apart: no convergence")
        super().calculate(*arguments, **options)

class Raises(Stops):
    # as a torch model does
    def calculate(self, *arguments, **options):
        if self.calls > 15:
            raise RuntimeError("shapes do not match: no convergence")
        super().calculate(*arguments, **options)

class Never(Stops):
    def calculate(self, *arguments, **options):
        raise TypeError("no such element")

class NoSpace(Stops):
    words = "[Errno 28] No space left on device"
"""


@pytest.fixture
def calculators(tmp_path, monkeypatch) -> None:
    (tmp_path / "stopping_calculators.py").write_text(CALCULATORS)
    monkeypatch.syspath_prepend(tmp_path)


def result_of(folder: Path) -> dict | None:
    path = folder / "results" / "emt" / "ase" / "nve" / "water.json"
    return json.loads(path.read_text())["record"] if path.exists() else None


def test_estimate_leaves_failures_to_the_run(calculators):
    assert seconds_per_evaluation("python:stopping_calculators:Never", "O") == 0.0


def test_task_that_raises_anything_stops_no_other(tmp_path):
    """A run's settings were cut short: the other run is made all the same."""
    step = "structures: [water], ps: 0.02, thermalise_ps: 0.01, frames: 20"
    path = tmp_path / "two.yaml"
    path.write_text(f"steps: [{{step: a, {step}}}, {{step: b, {step}}}]")
    emt = "python:ase.calculators.emt:EMT"
    campaign = Campaign(
        load_protocol(str(path)), CampaignTarget((emt,), ("ase",)), tmp_path / "out"
    )
    damaged = campaign.folder.run(campaign.runs()[0].name)
    damaged.path.mkdir(parents=True)
    damaged.settings.write_text("{")
    with pytest.raises(StudentError, match=r"1 task.*/a/.*settings.json is not JSON"):
        campaign.run(1, quiet=True)
    assert [name.split("/")[2] for name in campaign.results()] == ["b"]


SHORT = "ps: 0.02, thermalise_ps: 0.01, frames: 20"


@pytest.fixture
def shipped(tmp_path) -> tuple[Protocol, CampaignTarget]:
    """A short run of water, in a file, by a copy of a student."""
    molecule("H2O").write(tmp_path / "mine.xyz")
    shutil.copy(checkpoint_path("ultra_tiny"), tmp_path / "mine.pt")
    path = tmp_path / "one.yaml"
    path.write_text(f"steps: [{{step: a, structures: [{tmp_path}/mine.xyz], {SHORT}}}]")
    return load_protocol(str(path)), CampaignTarget((str(tmp_path / "mine.pt"),), ("ase",))


def test_campaign_of_other_weights_or_structures_is_refused(tmp_path, shipped):
    out = tmp_path / "out"
    campaign = Campaign(*shipped, out)
    shutil.copy(checkpoint_path("tiny"), tmp_path / "mine.pt")
    with pytest.raises(InputError, match="changed while the campaign ran"):
        campaign.run(1, quiet=True)
    assert not campaign.results()
    with pytest.raises(InputError, match="models differ"):
        Campaign(*shipped, out)
    shutil.copy(checkpoint_path("ultra_tiny"), tmp_path / "mine.pt")
    Campaign(*shipped, out)
    molecule("CH4").write(tmp_path / "mine.xyz")
    with pytest.raises(InputError, match="structures differ"):
        Campaign(*shipped, out)
    (out / "campaign.json").unlink()
    with pytest.raises(InputError, match=r"no campaign\.json"):
        Campaign(*shipped, out)


def test_campaign_is_run_by_one_process_and_measured_anew_where_that_changed(tmp_path, shipped):
    out = tmp_path / "out"
    campaign = Campaign(*shipped, out)
    with (
        only_writer(out / "campaign.json", ""),
        pytest.raises(InputError, match="another process"),
    ):
        campaign.run(1, quiet=True)
    campaign.run(1, quiet=True)
    (task,) = campaign.tasks
    result, run = out / f"results/{task.name}.json", out / f"runs/{task.name}/run.dcd"
    content, before = json.loads(result.read_text()), run.stat().st_mtime_ns
    assert campaign.pending() == []
    result.write_text(json.dumps(content | {"measures": MEASURES - 1, "record": {}}))
    assert campaign.pending() == [task] and campaign.results() == {}
    campaign.run(1, quiet=True)
    assert json.loads(result.read_text()) == content
    assert run.stat().st_mtime_ns == before, "the run itself is not repeated"


@pytest.mark.parametrize("name", ["Stops", "Refuses", "Raises"])
def test_failure_of_the_calculator_is_a_result_with_its_identity(name, tmp_path, calculators):
    perform(run_of(model=f"python:stopping_calculators:{name}"), tmp_path / "out")
    record = result_of(tmp_path / "out")
    assert record["failed_runs"] == 1 and "no convergence" in record["failure"]
    expected = {"ensemble": "nve", "atoms": 3, "target_temperature_k": 300.0, "timestep_fs": 0.5}
    assert {key: record[key] for key in expected} == expected
    assert record["duration_ps"] == pytest.approx(0.02)
    comparison = CompareTask(
        "emt/ase/nve/both", "nve", "water", "convergence", ("emt/ase/nve/water",)
    )
    perform(comparison, tmp_path / "out")
    both = json.loads((tmp_path / "out/results/emt/ase/nve/both.json").read_text())["record"]
    assert both["failed_runs"] == 1 and "no convergence" in both["failure"]


def test_failure_of_the_machine_is_no_result(tmp_path, calculators):
    with pytest.raises(InterruptedRunError, match="No space left"):
        perform(run_of(model="python:stopping_calculators:NoSpace"), tmp_path / "out")
    assert result_of(tmp_path / "out") is None


def test_files_that_are_gone_are_no_result(tmp_path):
    perform(run_of(), tmp_path)
    assert result_of(tmp_path)["failed_runs"] == 0
    run = RunFolder(tmp_path / "runs" / "emt/ase/nve/water")
    run.trajectory.unlink()
    (tmp_path / "results/emt/ase/nve/water.json").unlink()
    with pytest.raises(InterruptedRunError, match="is missing"):
        perform(run_of(), tmp_path)
    assert result_of(tmp_path) is None
