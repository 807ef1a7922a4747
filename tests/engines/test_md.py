"""`mlff-student md` in both engines: complete files, conserved energy, resumed and refused runs."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mdtraj
import numpy as np
import pytest
from ase import Atoms
from ase.cell import Cell
from ase.io import write
from numpy.typing import NDArray

from mlff_student.analysis.thermo import Thermo, read_thermo
from mlff_student.archive.registry import checkpoint_path
from mlff_student.cli import main
from mlff_student.core.errors import InputError, InterruptedRunError
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.engines.lammps.run import readable_restarts
from mlff_student.engines.protocol import MDSettings, RunFolder, join_segments
from mlff_student.engines.run import run_md
from mlff_student.structures.reading import in_engine_orientation, read_structure, write_topology
from mlff_student.structures.trajectories import stream_frames

ROOT = Path(__file__).parents[2]
COMMAND = str(Path(sys.executable).with_name("mlff-student"))
ENGINES = ("openmm", "lammps")
# 0.12 ps in 100 frames. At 0.2 fs the energy fluctuates so little that the drift of this short a
# run can be told from zero.
TIMESTEP_FS, EVERY, FRAMES = 0.2, 6, 100
RUN = (
    "--timestep-fs", str(TIMESTEP_FS), "--every", str(EVERY), "--ps", "0.12",
    "--thermalise-ps", "0.05", "--quiet", "--model", "tiny",
)  # fmt: skip
PLATFORM = {"openmm": ("--platform", "Reference"), "lammps": ()}
FILES = ("run.dcd", "run.pdb", "run.csv", "run.json", "model.pt")
PATIENCE_S = 60.0


def md_command(engine: str, folder: Path) -> list[str]:
    options = ["--engine", engine, *PLATFORM[engine], *RUN, "-o", str(folder)]
    return [COMMAND, "md", "CCO", *options]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def frames_of(folder: Path) -> NDArray[np.float64]:
    """Positions (F, N, 3), angstrom."""
    with mdtraj.formats.DCDTrajectoryFile(str(folder / "run.dcd")) as file:
        return file.read()[0].astype(float)


def processes_in(folder: Path) -> list[str]:
    """Command lines of the processes that work in a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(entry / "cwd")) == folder.resolve():
                found.append((entry / "cmdline").read_text())
        except OSError:
            continue  # ended meanwhile
    return found


def wait_for_rows(process: subprocess.Popen[str], folder: Path, rows: int) -> None:
    """Return when the run has written that many rows of its log."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        written = sum(p.read_text().count("\n") - 1 for p in folder.glob("segment-*.csv"))
        if written >= rows:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError(f"no {rows} rows in {folder} after {PATIENCE_S} s")


@pytest.fixture(scope="module", params=ENGINES)
def finished(request, tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """Engine and folder of one uninterrupted run."""
    folder = tmp_path_factory.mktemp("md") / request.param
    result = run(md_command(request.param, folder))
    assert result.returncode == 0, result.stderr
    yield request.param, folder


def check_times(thermo: Thermo) -> None:
    """Every row is there, once, at its time, which starts after the first interval."""
    expected = TIMESTEP_FS * 1e-3 * EVERY * np.arange(1, FRAMES + 1)
    np.testing.assert_allclose(thermo.time_ps, expected, rtol=1e-9)  # 12 digits are written


def test_files_of_a_run(finished):
    _, folder = finished
    assert all((folder / name).is_file() for name in FILES)
    assert not list(folder.glob("segment-*"))
    header = (folder / "run.csv").read_text().splitlines()[0]
    assert header == "time_ps,potential_ev,kinetic_ev,total_ev,temperature_k"
    thermo = read_thermo(folder / "run.csv")
    check_times(thermo)
    assert frames_of(folder).shape == (FRAMES, 9, 3)
    trajectory = mdtraj.load(str(folder / "run.dcd"), top=str(folder / "run.pdb"))
    assert trajectory.unitcell_lengths is None, "an open run has no cell"
    np.testing.assert_allclose(thermo.total_ev, thermo.potential_ev + thermo.kinetic_ev, rtol=1e-10)


def test_energy_is_conserved(finished):
    thermo = read_thermo(finished[1] / "run.csv")
    # Velocity Verlet at a tenth of the stability limit exchanges 100 times more than it loses.
    assert thermo.total_ev.std() < 0.01 * thermo.kinetic_ev.std()


def test_temperature_column(finished):
    """2 K / (3N - 3) k_B in every row: the centre of mass is at rest in both engines."""
    thermo = read_thermo(finished[1] / "run.csv")
    expected = 2.0 * thermo.kinetic_ev / ((3 * 9 - 3) * 8.617333e-5)
    # LAMMPS has k_B = 8.617343e-5 eV/K, 1.2e-6 off CODATA.
    np.testing.assert_allclose(thermo.temperature_k, expected, rtol=2e-6)


def test_frames_belong_to_rows(finished, tmp_path):
    """The energy of each frame, computed again, is the potential energy of its row."""
    _, folder = finished
    atoms = read_structure("CCO").atoms
    atoms.calc = StudentForceFieldCalculator(folder / "model.pt")
    thermo = read_thermo(folder / "run.csv")
    for index in (0, 50, FRAMES - 1):
        atoms.positions = frames_of(folder)[index]
        # DCD keeps float32 positions: 1e-6 angstrom times forces of some eV/angstrom.
        assert atoms.get_potential_energy() == pytest.approx(thermo.potential_ev[index], abs=1e-4)


def test_analyze_passes(finished):
    _, folder = finished
    trajectory, topology, log = (str(folder / f"run.{end}") for end in ("dcd", "pdb", "csv"))
    result = run([COMMAND, "analyze", trajectory, "--top", topology, "--log", log])
    # The bar of the drift may be within the standard error of so short a run, which is no pass.
    rows = [line.rstrip("│ ") for line in result.stdout.splitlines() if "verdict" not in line]
    assert not [row for row in rows if row.endswith("FAIL")], result.stdout + result.stderr
    assert result.returncode == 0 or any(row.endswith("NOT RESOLVED") for row in rows)
    assert (folder / "run.analysis.json").is_file()


def settings_of(engine: str) -> MDSettings:
    """Of the run in `finished`."""
    return MDSettings(
        engine=engine,
        model="tiny",
        structure="CCO",
        steps=EVERY * FRAMES,
        timestep_fs=TIMESTEP_FS,
        temperature_K=300.0,
        ensemble="nve",
        every=EVERY,
        thermalise_steps=250,
        friction_per_ps=10.0,
        seed=1,
        platform="Reference" if engine == "openmm" else "",
    )


def test_finished_run_is_not_run_again(finished):
    engine, folder = finished
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    record = run_md(settings_of(engine), folder, quiet=True)
    assert record["atoms"] == 9
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_other_settings_are_refused(finished):
    engine, folder = finished
    other = replace(settings_of(engine), temperature_K=310.0)
    with pytest.raises(InputError, match=r"another run \(temperature_K differ\)"):
        run_md(other, folder, quiet=True)


def test_other_weights_of_the_same_name_are_refused(tmp_path):
    """A student that was trained on, in the same file: its run is not the old one's."""
    model = tmp_path / "mine.pt"
    shutil.copy(checkpoint_path("ultra_tiny"), model)
    settings = replace(settings_of("ase"), model=str(model), steps=20, every=2, thermalise_steps=2)
    run_md(settings, tmp_path / "run", quiet=True)
    shutil.copy(checkpoint_path("tiny"), model)
    with pytest.raises(InputError, match=r"another run \(model_sha256 differ\)"):
        run_md(settings, tmp_path / "run", quiet=True)


def test_files_of_others_are_not_overwritten(tmp_path):
    """A folder with a structure of the user's, of the name that the run's would have."""
    (tmp_path / "run.pdb").write_text("mine")
    with pytest.raises(InputError, match=r"run\.pdb exists"):
        run_md(settings_of("openmm"), tmp_path, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run.pdb"]
    assert (tmp_path / "run.pdb").read_text() == "mine"


def test_resume_after_kills(finished, tmp_path):
    """A run that was killed and started again is the run that was not.

    The first two kills are at its first files: when nothing but the settings is there, and before
    minimisation.
    """
    engine, whole = finished
    folder = tmp_path / "killed"
    command = md_command(engine, folder)
    for name in ("settings.json", "model.pt"):
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            while not (folder / name).exists():
                assert process.poll() is None, process.communicate()
                time.sleep(0.002)
            process.kill()
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for_rows(process, folder, 30)
        process.send_signal(signal.SIGKILL)
    assert not (folder / "run.json").exists()
    deadline = time.monotonic() + 5.0
    while processes_in(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes_in(folder), "an lmp went on by itself"

    result = run(command)
    assert result.returncode == 0, result.stderr
    resumed, expected = read_thermo(folder / "run.csv"), read_thermo(whole / "run.csv")
    check_times(resumed)
    frames, expected_frames = frames_of(folder), frames_of(whole)
    assert frames.shape == expected_frames.shape
    if engine == "openmm":
        # Checkpoints of the Reference platform keep every bit.
        np.testing.assert_array_equal(np.stack(resumed[:5]), np.stack(expected[:5]))
        np.testing.assert_array_equal(frames, expected_frames)
    else:
        # LAMMPS sorts atoms and neighbours anew, so float32 sums round differently (1e-6 eV/
        # angstrom), and 0.2 ps let that grow to less than this.
        np.testing.assert_allclose(resumed.total_ev, expected.total_ev, atol=1e-4)
        np.testing.assert_allclose(frames, expected_frames, atol=1e-3)


@pytest.mark.parametrize("engine", ENGINES)
def test_interrupt(engine, tmp_path):
    """Ctrl-C: status 130, a hint, no traceback, and no lmp left behind.

    The same command is refused while the run has not ended.
    """
    folder = tmp_path / "stopped"
    command = md_command(engine, folder)
    command[command.index("0.12")] = "120"
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background has them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            wait_for_rows(process, folder, 2)
            second = run(command)
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert second.returncode == 2
    assert f"another process is writing {folder} (process {process.pid} on " in second.stderr
    assert process.returncode == 130, output + errors
    assert "the same command resumes" in output
    assert "Traceback" not in output + errors
    assert not processes_in(folder)


NAMES = (
    """two words, it's "50 %" of $HOME & #1""",
    "new\nshell touch HACKED\nline",
    'été 🧪 """',
    os.fsdecode(b"latin\xe9"),
)


@pytest.mark.parametrize("name", NAMES, ids=("shell", "line", "unicode", "bytes"))
def test_names_of_files(name, tmp_path, monkeypatch, capsys):
    """A structure and folders of any name in all engines, and the command that is printed."""
    monkeypatch.chdir(tmp_path)
    structure = f"{name}.xyz"
    Path(structure).write_text((ROOT / "examples" / "ethanol.xyz").read_text())
    options = ["--model", "ultra_tiny", "--ps", "0.002", "--every", "2", "--thermalise-ps", "0.001"]
    for engine in ("openmm", "lammps", "ase"):
        command = ["mlff-student", "md", structure, "--engine", engine, *options]
        monkeypatch.setattr("sys.argv", command)
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0
        output = capsys.readouterr().out
        words = shlex.split(output.partition("next: ")[2])
        paths = [Path("runs", f"{name}-{engine}", f"run.{end}") for end in ("dcd", "pdb", "csv")]
        if name.isprintable() or "\n" in name:  # a terminal cannot show the bytes of the last name
            assert words == ["mlff-student", "analyze", str(paths[0]), "--top", str(paths[1]),
                             "--log", str(paths[2])]  # fmt: skip
        assert [len(part) for part in stream_frames(*paths[:2])] == [2]
        assert len(paths[2].read_text().splitlines()) == 3
    assert not list(tmp_path.rglob("HACKED*"))
    assert sorted(os.listdir(tmp_path)) == sorted(["runs", structure])


def test_damaged_segment_is_not_joined(tmp_path):
    """Files that end too early, as on a disk that was full."""
    folder = RunFolder(tmp_path)
    structure = read_structure("O")
    write_topology(structure, folder.topology)
    segment = folder.segment(0)
    segment.thermo.write_text("time_ps\n0.1\n0.2\n0.3\n")
    positions = np.repeat(structure.atoms.positions[None].astype(np.float32), 3, 0)
    with mdtraj.formats.DCDTrajectoryFile(str(segment.trajectory), "w") as file:
        file.write(positions)
    whole = segment.trajectory.read_bytes()
    assert join_segments(folder, 1, periodic=False) == 3
    for content in (whole[:-1], whole[:-60], whole[:100], b""):
        segment.trajectory.write_bytes(content)
        with pytest.raises(
            InterruptedRunError, match=r"segment-0000000000\.dcd .*remove the folder"
        ):
            join_segments(folder, 1, periodic=False)
    segment.trajectory.write_bytes(whole)
    (tmp_path / folder.segment(5).thermo.name).write_text("time_ps\n0.6\n")
    with pytest.raises(InterruptedRunError, match=r"3 of 5 frames and .* 3 of 5 rows"):
        join_segments(folder, 1, periodic=False)


@pytest.mark.parametrize("finished", ["lammps"], indirect=True)
def test_incomplete_restart_file_is_not_used(finished, tmp_path):
    """LAMMPS writes restart files in place, and was killed while it wrote the newest."""
    _, whole = finished
    older, newer = tmp_path / "restart.b", tmp_path / "restart.a"
    shutil.copy(whole / "restart.b", older)
    newer.write_bytes((whole / "restart.a").read_bytes()[:-1])
    ((path, step),) = readable_restarts(tmp_path)
    assert path == older and step > 0
    older.write_bytes(b"short")
    assert list(readable_restarts(tmp_path)) == []


def test_settings_of_a_run_are_damaged(tmp_path):
    (tmp_path / "settings.json").write_text('{"engine": ')
    with pytest.raises(InputError, match=r"settings\.json is not JSON"):
        run_md(settings_of("ase"), tmp_path, quiet=True)


def box_file(atoms: Atoms, folder: Path) -> str:
    path = folder / "box.extxyz"
    write(path, atoms)
    return str(path)


@pytest.mark.parametrize("engine", ENGINES)
def test_thermostatted_box(engine, structures, tmp_path):
    """Water at constant temperature: the cell is in every frame, and the mean is near 300 K."""
    atoms = structures["water_box"][:12]  # four molecules
    atoms.set_cell([3.1, 6.3, 6.1])
    settings = replace(
        settings_of(engine),
        structure=box_file(atoms, tmp_path),
        ensemble="nvt",
        timestep_fs=1.0,
        steps=200,
        every=10,
        thermalise_steps=200,
        platform="",
    )
    folder = RunFolder(tmp_path / "run")
    run_md(settings, folder.path, quiet=True)
    trajectory = mdtraj.load(str(folder.trajectory), top=str(folder.topology))
    assert len(trajectory) == 20
    # The cell of a DCD made by OpenMM is float32.
    np.testing.assert_allclose(
        trajectory.unitcell_lengths * 10.0, np.tile([3.1, 6.3, 6.1], (20, 1)), rtol=1e-6
    )
    np.testing.assert_allclose(trajectory.unitcell_angles, 90.0, atol=1e-4)
    # 33 degrees of freedom fluctuate by 74 K, and 0.2 ps are four correlation times of a friction
    # of 10/ps: four standard errors.
    temperature = read_thermo(folder.thermo).temperature_k.mean()
    assert temperature == pytest.approx(300.0, abs=150.0)


def reduced(a: NDArray, b: NDArray, c: NDArray) -> list[NDArray]:
    """Lattice vectors whose tilts are at most half an edge; a along x and b in the xy plane."""
    b = b - a * round(b[0] / a[0])
    c = c - b * round(c[1] / b[1])
    return [a, b, c - a * round(c[0] / a[0])]


@pytest.mark.parametrize("engine", ENGINES)
def test_triclinic_cell(engine, structures, tmp_path):
    """A turned and strongly tilted cell: reduced to the same lattice in topology and frames."""
    atoms = structures["triclinic"][:9]  # water and methanol, along the third lattice vector
    atoms.set_cell(atoms.cell.array * [[0.5], [0.5], [1.0]])
    cell = Cell(reduced(*atoms.cell.array)).cellpar()
    turn = np.linalg.qr(np.random.default_rng(4).standard_normal((3, 3)))[0]
    a, b, c = atoms.cell.array @ turn.T
    atoms.positions = atoms.positions @ turn.T
    atoms.set_cell([a, b + a, c - 2 * b])
    settings = replace(
        settings_of(engine),
        structure=box_file(atoms, tmp_path),
        steps=20,
        every=2,
        thermalise_steps=2,
        platform="",
    )
    folder = RunFolder(tmp_path / "run")
    run_md(settings, folder.path, quiet=True)
    for file in (folder.trajectory, folder.topology):
        trajectory = mdtraj.load(str(file), top=str(folder.topology))
        # PDB keeps three decimals of a length and two of an angle.
        np.testing.assert_allclose(trajectory.unitcell_lengths[0] * 10.0, cell[:3], atol=1e-3)
        np.testing.assert_allclose(trajectory.unitcell_angles[0], cell[3:], atol=0.01)
    # Neighbours across the cell's faces are where the cell says: no bond of any frame is broken.
    trajectory = mdtraj.load(str(folder.trajectory), top=str(folder.topology))
    pairs = np.array([(i.index, j.index) for i, j in trajectory.topology.bonds])
    assert len(pairs) == 2 + 5
    lengths = mdtraj.compute_distances(trajectory, pairs, periodic=True) * 10.0
    assert lengths.max() < 2.0


def test_engine_orientation_keeps_the_lattice(structures, tmp_path):
    """Same distances between periodic images before and after turning and reducing the cell."""
    atoms = structures["triclinic"]
    distances = atoms.get_all_distances(mic=True)
    turn = np.linalg.qr(np.random.default_rng(5).standard_normal((3, 3)))[0]  # det may be -1
    a, b, c = atoms.cell.array @ turn.T
    atoms.positions = atoms.positions @ turn.T
    atoms.set_cell([a, b - 3 * a, c + 2 * b])
    turned = in_engine_orientation(read_structure(box_file(atoms, tmp_path))).atoms
    assert np.triu(turned.cell.array, 1) == pytest.approx(0.0, abs=1e-9)
    assert (np.diag(turned.cell.array) > 0).all()
    assert abs(turned.cell.volume) == pytest.approx(abs(atoms.cell.volume), rel=1e-7)
    np.testing.assert_allclose(
        turned.get_all_distances(mic=True),
        distances,
        atol=1e-6,  # the file keeps eight decimals
    )
