"""What is measured of a run and of several together, and which failures are a model's."""

import json
import shutil
from pathlib import Path

import mdtraj
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.lj import LennardJones

from mlff_student.analysis.thermo import read_thermo
from mlff_student.archive.registry import checkpoint_path
from mlff_student.core.errors import InputError, InterruptedRunError, StudentError
from mlff_student.core.figures import load_thresholds
from mlff_student.core.files import only_writer
from mlff_student.core.units import KB
from mlff_student.engines.protocol import MDSettings, RunFolder
from mlff_student.engines.run import run_md
from mlff_student.structures.checks import perceive_bonds
from mlff_student.structures.reading import Structure, make_topology, write_topology
from mlff_student.structures.trajectories import read_topology
from mlff_student.validation.campaign import Campaign, perform
from mlff_student.validation.estimate import seconds_per_evaluation
from mlff_student.validation.measure import (
    MEASURES,
    _longest_rest,
    compare_liquids,
    compare_pressures,
    compare_vibrations,
    density_change,
    measure_run,
)
from mlff_student.validation.protocol import Protocol, load_protocol
from mlff_student.validation.summary import summarise
from mlff_student.validation.tasks import CompareTask, RunTask, Subject


def write_run(
    folder: Path, structure: Structure, frames: np.ndarray, ps: float, temperature: np.ndarray
) -> RunFolder:
    """Files of a run with these frames (F, N, 3) and temperatures (F,)."""
    run = RunFolder(folder)
    folder.mkdir(parents=True)
    write_topology(structure, run.topology)
    cell = {}
    if structure.atoms.pbc.all():
        lengths, angles = np.split(structure.atoms.cell.cellpar(), 2)
        shape = (len(frames), 1)
        cell = {"cell_lengths": np.tile(lengths, shape), "cell_angles": np.tile(angles, shape)}
    with mdtraj.formats.DCDTrajectoryFile(str(run.trajectory), "w") as file:
        file.write(frames.astype(np.float32), **cell)
    time = ps / len(frames) * np.arange(1, len(frames) + 1)
    kinetic = 0.5 * (3 * len(structure.atoms) - 3) * KB * temperature
    total = -100.0 + 1e-6 * np.cos(np.arange(len(time)))  # the last digit of a log
    np.savetxt(
        run.thermo,
        np.stack([time, total - kinetic, kinetic, total, temperature], 1),
        delimiter=",",
        header="time_ps,potential_ev,kinetic_ev,total_ev,temperature_k",
        comments="",
    )
    return run


def settings(**changes) -> MDSettings:
    return MDSettings(
        **{
            "engine": "ase", "model": "python:ase.calculators.emt:EMT", "structure": "O",
            "steps": 40, "timestep_fs": 0.5, "temperature_K": 300.0, "ensemble": "nve", "every": 2,
            "thermalise_steps": 4, "friction_per_ps": 10.0, "seed": 1, "threads": 1,
        }
        | changes
    )  # fmt: skip


def run_of(**changes) -> RunTask:
    return RunTask("emt/ase/nve/water", "nve", "water", settings(**changes), atoms=3, molecules=1)


@pytest.mark.parametrize(("heating_k", "fails"), [(300.0, True), (0.0, False)])
def test_run_that_heats_does_not_escape_the_test_of_its_temperature(tmp_path, heating_k, fails):
    """From 300 to 600 K in 10 ps it has too few independent kinetic energies to be tested."""
    rng = np.random.default_rng(1)
    ethanol = molecule("CH3CH2OH")
    frames = ethanol.positions + 0.02 * rng.normal(size=(2000, 9, 3))
    temperature = 300.0 * (1.0 + np.sqrt(2.0 / 24.0) * rng.normal(size=2000))
    temperature += heating_k * np.linspace(0.0, 1.0, 2000)
    structure = Structure(ethanol, make_topology(ethanol, perceive_bonds(ethanol)))
    run = write_run(tmp_path / "run", structure, frames, 10.0, temperature)
    task = run_of(ensemble="nvt", model="gfn2-xtb")
    record, _ = measure_run(task, run)
    assert np.isnan(record["kinetic_mean_percent"]) == fails
    assert ("independent kinetic energies" in record.get("notes", "")) == fails
    head = {"case": task.name, "model": "emt", "engine": "ase", "step": "nve", "failure": ""}
    head |= {"structure": "water", "judged": True, "failed_runs": 0, **task.identity()}
    summary = summarise([head | record], load_thresholds())
    assert summary.passed is not fails
    advice = " ".join(summary.advice["emt"].not_for)
    assert ("independent kinetic energies" in advice) == fails


def test_density_is_held_against_the_packed_box(tmp_path):
    """A box that grows from 10 to 12 angstrom in its first half, in the figures of its run."""
    water = molecule("H2O", cell=[10.0] * 3, pbc=True)
    structure = Structure(water, make_topology(water, perceive_bonds(water)))
    edges = np.r_[np.linspace(10.0, 12.0, 50), np.full(50, 12.0) + 0.01 * np.tile([1, -1], 25)]
    found = density_change(edges**3, structure)
    assert found["density_change_percent"] == pytest.approx(100.0 * ((10 / 12) ** 3 - 1), abs=0.01)
    assert 0.0 <= found["density_change_stderr_percent"] < 0.1
    temperature = 300.0 + np.random.default_rng(1).normal(size=100)
    frames = np.tile(water.positions, (100, 1, 1))
    run = write_run(tmp_path / "run", structure, frames, 1.0, temperature)
    with mdtraj.formats.DCDTrajectoryFile(str(run.trajectory), "w", force_overwrite=True) as file:
        for edge in edges:
            box = {"cell_lengths": np.full((1, 3), edge), "cell_angles": np.full((1, 3), 90.0)}
            file.write(water.positions[None].astype(np.float32), **box)
    record, _ = measure_run(run_of(ensemble="npt", model="gfn2-xtb", engine="openmm"), run)
    assert record["density_change_percent"] == pytest.approx(
        found["density_change_percent"], abs=0.1
    )


def test_spectra_of_runs_are_compared(tmp_path):
    """A stretch at 2000 1/cm in the teacher's run, and at 2030 in the student's."""
    hydrogen = molecule("H2")
    structure = Structure(hydrogen, make_topology(hydrogen, [(0, 1)]))
    time = 0.002 * np.arange(4000)
    runs = []
    for wavenumber in (2030.0, 2000.0):
        phase = 2.0 * np.pi * 0.0299792458 * wavenumber * time  # cm/ps
        frames = hydrogen.positions + 0.05 * np.sin(phase)[:, None, None] * hydrogen.positions
        name = tmp_path / f"{wavenumber:g}"
        runs.append(write_run(name, structure, frames, 8.0, np.full(4000, 300.0)))
    record, series = compare_vibrations(*runs)
    assert record["spectrum_peak_shift_per_cm"] == pytest.approx(30.0, abs=2.0)
    assert record["spectrum_overlap_percent"] < 30.0 < record["spectrum_overlap_noise_percent"]
    peak = np.argmax(series["power_teacher"])
    assert series["frequency_per_cm"][peak] == pytest.approx(2000.0, abs=10.0)
    assert compare_vibrations(runs[1], runs[1])[0]["spectrum_overlap_percent"] > 99.9


def test_liquids_are_compared_between_molecules_and_after_the_burn_in(tmp_path):
    """Both runs settle with their molecules 4 angstrom apart, the student's after 5 of 10 ps."""
    pair = Atoms("H4", [[0, 0, 0], [0.74, 0, 0], [0, 4, 0], [0.74, 4, 0]], cell=[12] * 3, pbc=True)
    structure = Structure(pair, make_topology(pair, [(0, 1), (2, 3)]))
    rng = np.random.default_rng(1)
    jitter = 0.05 * rng.normal(size=(2, 100, 4, 3))
    settled = pair.positions + jitter
    settled[0, :50, 2:, 1] -= 1.5
    student, teacher = (
        write_run(tmp_path / name, structure, frames, 10.0, 300.0 + rng.normal(size=100))
        for name, frames in zip(("student", "teacher"), settled, strict=True)
    )
    whole, _ = compare_liquids([student], [teacher], 0.0, 10.0)
    late, series = compare_liquids([student], [teacher], 5.0, 5.0)
    assert late["window_ps"] == pytest.approx(5.0) and late["burn_in_ps"] == 5.0
    assert whole["rdf_error_percent"] > 1.5 * late["rdf_error_percent"]
    seen = np.array(series["r_angstrom"])[np.array(series["g_student_H-H"]) > 0]
    assert seen.min() > 3.0, "the bond of 0.74 angstrom is no pair of a liquid, nor is the burn-in"


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
    record = compare_pressures(*both, read_topology(run.topology), student, 0.1, np.inf)
    assert record["pressure_teacher_gpa"] == pytest.approx(log.pressure_gpa[late].mean())
    virial = (log.pressure_gpa - ideal)[late].mean()
    assert abs(virial) > 1e-3
    for name in ("pressure_error", "virial_error_on_teacher_frames"):
        assert record[f"{name}_gpa"] == pytest.approx(0.1 * virial, rel=1e-3)
    on_frames = record["virial_error_on_teacher_frames_stderr_gpa"]
    assert 0.0 < 5.0 * on_frames < record["pressure_error_stderr_gpa"], "frames are the same there"


def test_rest_of_the_teachers_moves_is_told(tmp_path):
    moved = np.array([True, False, False, True, False, False, False])
    assert _longest_rest(moved) == 3 and _longest_rest(np.array([True])) == 0


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
    campaign = Campaign(load_protocol(str(path)), Subject((emt,), ("ase",)), tmp_path / "out")
    damaged = campaign.folder.run(campaign.runs()[0].name)
    damaged.path.mkdir(parents=True)
    damaged.settings.write_text("{")
    with pytest.raises(StudentError, match=r"1 task.*/a/.*JSONDecodeError"):
        campaign.run(1, quiet=True)
    assert [name.split("/")[2] for name in campaign.results()] == ["b"]


SHORT = "ps: 0.02, thermalise_ps: 0.01, frames: 20"


@pytest.fixture
def shipped(tmp_path) -> tuple[Protocol, Subject]:
    """A short run of water, in a file, by a copy of a student."""
    molecule("H2O").write(tmp_path / "mine.xyz")
    shutil.copy(checkpoint_path("ultra_tiny"), tmp_path / "mine.pt")
    path = tmp_path / "one.yaml"
    path.write_text(f"steps: [{{step: a, structures: [{tmp_path}/mine.xyz], {SHORT}}}]")
    return load_protocol(str(path)), Subject((str(tmp_path / "mine.pt"),), ("ase",))


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
    with pytest.raises(InterruptedRunError, match="is gone"):
        perform(run_of(), tmp_path)
    assert result_of(tmp_path) is None
