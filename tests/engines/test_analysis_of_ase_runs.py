"""Logs and trajectories that ASE writes, read and judged."""

import io
import json
import shutil
import tracemalloc
from pathlib import Path

import mdtraj
import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.cluster import Octahedron
from ase.io import write
from ase.io.trajectory import Trajectory
from ase.md import MDLogger
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from rich.console import Console
from trajectory_files import everything, failures

from mlff_student.analysis import analyze, read_thermo
from mlff_student.analysis.drift import fit_drift
from mlff_student.analysis.thermo import Thermo
from mlff_student.core.errors import InputError
from mlff_student.core.figures import load_thresholds
from mlff_student.reporting.analyze import run_analysis
from mlff_student.reporting.verdict import judge
from mlff_student.structures.trajectories import read_topology

# --- ASE ------------------------------------------------------------------------------------------


def run_ase(folder: Path, seed: int = 1, friction: float = 0.0) -> Path:
    """A crystal of copper at 200 K, one row and frame a step of 4 fs."""
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", cubic=True).repeat(2)
    atoms.calc = EMT()
    write(folder / "top.extxyz", atoms)
    velocities = np.sqrt(400 * units.kB / atoms.get_masses()[0]) * rng.normal(size=(len(atoms), 3))
    atoms.set_velocities(velocities - velocities.mean(0))
    step = 4.0 * units.fs
    dynamics = (
        Langevin(atoms, step, temperature_K=200, friction=friction / units.fs, rng=rng, fixcm=False)
        if friction
        else VelocityVerlet(atoms, step)
    )
    dynamics.run(50)
    dynamics.nsteps = 0
    frames: list = []
    trajectory = Trajectory(folder / "run.traj", "w", atoms)
    dynamics.attach(trajectory.write)
    dynamics.attach(lambda: frames.append(atoms.copy()))
    dynamics.attach(MDLogger(dynamics, atoms, str(folder / "run.log"), stress=False))
    dynamics.run(200)
    trajectory.close()
    write(folder / "run.extxyz", frames)
    return folder


@pytest.fixture(scope="module")
def ase_nve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_ase(tmp_path_factory.mktemp("ase"))


def test_run_of_ase_passes_and_with_a_thermostat_fails(ase_nve: Path, tmp_path: Path) -> None:
    files = (ase_nve / "run.traj", ase_nve / "top.extxyz", ase_nve / "run.log")
    assert failures(analyze(*files).as_record()) == set()
    frames, texts = (everything(ase_nve / f"run.{kind}", files[1]) for kind in ("traj", "extxyz"))
    np.testing.assert_allclose(texts.positions, frames.positions, atol=1e-7)
    np.testing.assert_allclose(texts.velocities, frames.velocities, atol=1e-4)
    bath = run_ase(tmp_path, friction=0.01)
    record = analyze(bath / "run.traj", bath / "top.extxyz", bath / "run.log").as_record()
    assert "exchange_ratio" in failures(record)


def test_log_of_another_run_of_ase_is_refused(ase_nve: Path, tmp_path: Path) -> None:
    other = run_ase(tmp_path, seed=2)
    with pytest.raises(InputError, match=r"kinetic energy of the frames .* different runs"):
        analyze(ase_nve / "run.traj", ase_nve / "top.extxyz", other / "run.log")
    with pytest.raises(InputError, match=r"potential energy of the frames .* different runs"):
        analyze(
            bare_positions(ase_nve), ase_nve / "top.extxyz", other / "run.log", calculator=EMT()
        )


def test_model_that_did_not_make_the_run_is_refused(ase_nve: Path) -> None:
    """Nearly right, as another student of the same teacher is: a quarter of the fluctuation off."""
    files = (bare_positions(ase_nve), ase_nve / "top.extxyz", ase_nve / "run.log")
    analyze(*files, calculator=EMT())
    spread = read_thermo(files[2]).potential_ev.std()
    with pytest.raises(InputError, match=r"potential energy .* or of different models"):
        analyze(*files, calculator=NearlyEMT(0.25 * spread))


class NearlyEMT(EMT):
    """Energies that are off by a constant, eV."""

    def __init__(self, off: float) -> None:
        super().__init__()
        self.off = off

    def calculate(self, *args, **kwargs) -> None:
        super().calculate(*args, **kwargs)
        self.results["energy"] += self.off


def bare_positions(folder: Path) -> Path:
    """The frames without velocities, forces and elements."""
    path = folder / "bare.dcd"
    positions = everything(folder / "run.traj", folder / "top.extxyz").positions
    topology = read_topology(folder / "top.extxyz").topology
    mdtraj.Trajectory(positions / 10.0, topology).save_dcd(str(path))
    return path


def test_command_judges_against_a_teacher_and_its_run(ase_nve: Path, tmp_path: Path) -> None:
    """EMT is its own teacher: no error of forces, and none of the radial distribution."""
    console = Console(file=io.StringIO(), width=120)
    files = (ase_nve / "run.traj", ase_nve / "top.extxyz", ase_nve / "run.log")
    passed = run_analysis(
        *files,
        console=console,
        teacher="python:ase.calculators.emt:EMT",
        reference_trajectory=Path(shutil.copy(files[0], tmp_path / "teacher.traj")),
        json=tmp_path / "run.json",
        plot=tmp_path / "run.png",
    )
    (record,) = json.loads((tmp_path / "run.json").read_text())["results"]
    assert passed and record["passed"]
    assert record["force_rmse_ev_per_angstrom"] < 1e-6
    assert record["rdf_error_percent"] == 0.0 and record["rdf_noise_percent"] > 1.0
    assert "no spectrum" in record["notes"] and "--reference-log" in record["notes"]
    for name in ("run.png", "run.forces.png", "run.rdf.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    text = console.file.getvalue()
    assert "energy drift" in text and "FAIL" not in text

    noisy = run_analysis(
        *files, console=console, teacher=f"python:{__name__}:WrongTeacher", json=tmp_path / "b.json"
    )
    assert not noisy


class WrongTeacher(EMT):
    """Forces half an eV/angstrom off."""

    def calculate(self, *args, **kwargs) -> None:
        super().calculate(*args, **kwargs)
        self.results["forces"] = self.results["forces"] + 0.5


def test_command_without_the_model_says_so(ase_nve: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no forces; give the model"):
        run_analysis(
            bare_positions(ase_nve),
            ase_nve / "top.extxyz",
            ase_nve / "run.log",
            console=Console(file=io.StringIO()),
            teacher="python:ase.calculators.emt:EMT",
        )


@pytest.mark.parametrize(
    ("trajectory", "options", "message"),
    [
        (Path("."), {}, "is a folder"),
        ("run.traj", {"reference_log": Path("run.log")}, "also needs --reference-trajectory"),
    ],
)
def test_command_refuses_what_it_cannot_use(
    ase_nve: Path, trajectory: Path | str, options: dict, message: str
) -> None:
    path = trajectory if isinstance(trajectory, Path) else ase_nve / trajectory
    files = (path, ase_nve / "top.extxyz", ase_nve / "run.log")
    with pytest.raises(InputError, match=message):
        run_analysis(*files, console=Console(file=io.StringIO()), **options)


# --- Memory ---------------------------------------------------------------------------------------


def test_a_long_log_takes_little_more_than_its_numbers(tmp_path: Path) -> None:
    """Five doubles a row, held at most three times while they are read; lists took nine times."""
    log, rows = tmp_path / "run.csv", 50_000
    lines = (f"{0.01 * i:.2f},-10,1,-9,300.5\n" for i in range(rows))
    log.write_text("time_ps,potential_ev,kinetic_ev,total_ev,temperature_k\n" + "".join(lines))
    tracemalloc.start()
    assert len(read_thermo(log).time_ps) == rows
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 40 * rows


# --- Drift ----------------------------------------------------------------------------------------


class NoisyEMT(EMT):
    """Forces with noise are no gradient of the energy: they heat by (noise dt)^2 / 2m a step."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.noise, self.rng = noise, np.random.default_rng(4)

    def calculate(self, *args, **kwargs) -> None:
        super().calculate(*args, **kwargs)
        self.results["forces"] += self.noise * self.rng.normal(size=(len(self.atoms), 3))


@pytest.mark.parametrize(
    ("timestep_fs", "noise", "passed"),
    [(5.0, 0.0, True), (45.0, 0.0, False), (5.0, 0.05, False)],
    ids=["sound", "timestep too long", "forces that are no gradient"],
)
def test_real_dynamics_passes_only_when_it_conserves_energy(
    timestep_fs: float, noise: float, passed: bool
) -> None:
    """A copper octahedron at 300 K, whose fastest vibration takes about 140 fs."""
    atoms = Octahedron("Cu", 3, cutoff=1)
    atoms.calc = NoisyEMT(noise)
    # Twice 300 K, half of which the vibrations take up.
    width = np.sqrt(2 * 300 * units.kB / atoms.get_masses()[0])
    velocities = width * np.random.default_rng(5).normal(size=(len(atoms), 3))
    atoms.set_velocities(velocities - velocities.mean(0))
    rows = []
    with VelocityVerlet(atoms, timestep_fs * units.fs) as dynamics:
        for step in range(1000):
            dynamics.run(1)
            potential, kinetic = atoms.get_potential_energy(), atoms.get_kinetic_energy()
            temperature = 2 * kinetic / ((3 * len(atoms) - 3) * units.kB)
            rows.append(
                (1e-3 * timestep_fs * step, potential, kinetic, potential + kinetic, temperature)
            )
    drift = fit_drift(Thermo(*np.array(rows).T), len(atoms))
    assert all(check.passed for check in judge(drift.figures(), load_thresholds())) is passed
