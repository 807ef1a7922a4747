"""Logs of LAMMPS with several tables have the figures of the same run in one table."""

import gzip
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from mlff_student.analysis import analyze, read_thermo
from mlff_student.core.errors import InputError
from mlff_student.engines.lammps.plugin import lammps_executable

BEGIN = """\
units metal
atom_style atomic
lattice fcc 5.3
region box block 0 2 0 2 0 2
create_box 1 box
create_atoms 1 box
mass 1 39.948
pair_style lj/cut 5.0
pair_modify shift yes
pair_coeff 1 1 0.0103 3.4
displace_atoms all random 0.1 0.1 0.1 1
velocity all create 80.0 1 loop geom
timestep 0.002
fix 1 all nve
thermo_style custom step temp pe ke etotal vol
thermo_modify format float %.12g
thermo 5
"""
# A log has a minimisation and an equilibration before the run.
BEFORE = "minimize 0 0 5 5\nvelocity all create 80.0 2 loop geom\nrun 205\n"
RESET = f"{BEFORE}reset_timestep 0\n"
DUMP = "dump d all custom 10 {}.dump id type x y z vx vy vz\n"
# Commands, and the tables that are used with their first and last step.
SAME_RUNS = {
    "two": (RESET, "run 100\nrun 100", "2 tables, steps 0 to 200"),
    "continued": (BEFORE, "run 100\nrun 100", "2 tables, steps 210 to 410"),
    "every": (RESET, 'run 200 every 50 "print hello"', "4 tables, steps 0 to 200"),
    "no_setup": (RESET, "run 0\nrun 60\nrun 140 pre no", "2 tables, steps 0 to 200"),
    "minimise": (RESET, "run 200\nminimize 0 0 50 50", "1 table, steps 0 to 200"),
    "rerun": (
        RESET,
        "run 200\nundump d\nrerun rerun.dump dump x y z vx vy vz",
        "1 table, steps 0 to 200",
    ),
    "columns": (
        RESET,
        "run 100\nthermo_style one\nthermo_modify format float %.12g\nrun 50\n"
        "thermo_style custom step pe etotal\nthermo_modify colname pe 'E pot' colname -1 total "
        "format float %.12g\nrun 50",
        "3 tables, steps 0 to 200",
    ),
    "layouts": (
        RESET,
        "thermo_modify line multi format float %.12g\nrun 100\n"
        "thermo_modify line yaml colname ke 'K E'\nrun 100",
        "2 tables, steps 0 to 200",
    ),
}


def run_lammps(folder: Path, cases: dict[str, str]) -> None:
    """Run LAMMPS once; each case has its own log NAME.log, and the topology is top.extxyz."""
    script = "".join(f"log {name}.log\nclear\n{text}\n" for name, text in cases.items())
    (folder / "in").write_text(script)
    environment = os.environ | {"LAMMPS_PLUGIN_PATH": ""}
    subprocess.run(
        [lammps_executable(), "-in", "in"],
        cwd=folder, check=True, capture_output=True, env=environment,
    )  # fmt: skip
    write(folder / "top.extxyz", bulk("Ar", cubic=True, a=5.3).repeat(2))


def measured(folder: Path, trajectory: str, log: str, **options):
    return analyze(folder / trajectory, folder / "top.extxyz", folder / log, **options)


def assert_same_figures(ours: dict, reference: dict) -> None:
    assert set(ours) == set(reference)
    for key, value in reference.items():
        if isinstance(value, float | int):
            assert ours[key] == pytest.approx(value, rel=2e-5, abs=1e-9), key


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    cases = {"first": f"{BEGIN}{RESET}log plain.log\n{DUMP.format('plain')}run 200"}
    for name, (before, commands, _) in SAME_RUNS.items():
        cases[name] = f"{BEGIN}{before}{DUMP.format(name)}{commands}"
    run_lammps(folder, cases)
    return folder


@pytest.fixture(scope="module")
def plain(logs: Path) -> dict:
    """Figures of the run in one table, in a log without units, timestep and other tables."""
    found = measured(logs, "plain.dump", "plain.log", lammps_units="metal", timestep_fs=2.0)
    assert found.log_used == "1 table, steps 0 to 200"
    return found.as_record()


@pytest.mark.parametrize("name", SAME_RUNS)
def test_all_tables_of_the_run_are_used(logs: Path, plain: dict, name: str) -> None:
    dof = plain["degrees_of_freedom"]
    found = measured(logs, f"{name}.dump", f"{name}.log", degrees_of_freedom=dof)
    assert found.log_used.startswith(SAME_RUNS[name][2])
    assert "minimisation" in found.log_used
    assert_same_figures(found.as_record(), plain)


def test_log_without_tables_names_the_file_that_continues_it(logs: Path) -> None:
    (logs / "head.log").write_text("LAMMPS (1 Jan 2026)\nunits metal\nlog plain.log\n")
    with pytest.raises(InputError, match=r"no table of a run; LAMMPS continued its log in plain"):
        read_thermo(logs / "head.log")
    with pytest.raises(InputError, match="give the option --units metal or real"):
        read_thermo(logs / "plain.log")
    with pytest.raises(InputError, match="--timestep-fs"):
        read_thermo(logs / "plain.log", lammps_units="metal")
    with pytest.raises(InputError, match="timestep of 2 fs, but --timestep-fs is 1"):
        measured(logs, "two.dump", "two.log", timestep_fs=1.0)


TIMED = "thermo_style custom step {} temp pe ke etotal\nthermo_modify format float %.12g\n"
OTHER_TIMES = {
    "slower": "run 60\ntimestep 0.001\nrun 100\ntimestep 0.002\nrun 40",
    "adaptive": "fix 2 all dt/reset 1 NULL 0.001 0.005 emax 0.00004 units box\nrun 200",
}


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs whose timestep changes, with times in the log, in the dump, and in neither."""
    folder = tmp_path_factory.mktemp("timed")
    cases = {}
    for name, commands in OTHER_TIMES.items():
        for kind, style in (("log", "time"), ("dump", ""), ("none", "")):
            case = f"{name}_{kind}"
            modify = "dump_modify d time yes units yes\n" if kind == "dump" else ""
            dump = DUMP.format(case) + modify
            cases[case] = f"{BEGIN}{RESET}{TIMED.format(style)}{dump}{commands}"
    run_lammps(folder, cases)
    return folder


@pytest.mark.parametrize("name", OTHER_TIMES)
def test_times_are_right_where_the_timestep_changes(timed: Path, name: str) -> None:
    truth = measured(timed, f"{name}_log.dump", f"{name}_log.log")
    expected = truth.thermo.time_ps - truth.thermo.time_ps[0]
    assert abs(expected[-1] - 0.4) > 0.05  # not 200 steps of 2 fs
    # Rows between two frames have interpolated times where the timestep differs at each step.
    tolerance = {"slower": 1e-9, "adaptive": 3e-3}[name]
    of_dump = measured(timed, f"{name}_dump.dump", f"{name}_dump.log")
    time = of_dump.thermo.time_ps - of_dump.thermo.time_ps[0]
    np.testing.assert_allclose(time, expected, atol=tolerance)
    np.testing.assert_allclose(time[::2], expected[::2], atol=1e-9)  # rows at frames
    text = (timed / f"{name}_dump.log").read_text()  # begun by a command, so without its head
    (timed / "no_head.log").write_text(text[text.index("reset_timestep") :])
    no_head = measured(timed, f"{name}_dump.dump", "no_head.log")
    np.testing.assert_allclose(no_head.thermo.time_ps, of_dump.thermo.time_ps, atol=1e-9)
    assert of_dump.stable_ps == pytest.approx(truth.stable_ps, abs=1e-6)
    assert any("must be evenly spaced" in note for note in truth.notes)  # no diffusion
    if name == "slower":
        steps_only = measured(timed, "slower_none.dump", "slower_none.log")
        np.testing.assert_allclose(steps_only.thermo.time_ps, expected, atol=1e-9)
        assert_same_figures(steps_only.as_record(), truth.as_record())
    else:
        with pytest.raises(InputError, match=r"fix dt/reset changed .*dump_modify ID time yes"):
            measured(timed, "adaptive_none.dump", "adaptive_none.log")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs in which more than one run has the timesteps of a trajectory."""
    folder = tmp_path_factory.mktemp("several")
    again = "reset_timestep 0\nvelocity all create 80.0 3 loop geom\n"
    positions = "dump {0} all atom 10 {0}.dump\n"
    cases = {
        # An equilibration with the length of the run.
        "twins": f"{BEGIN}run 200\n{again}{DUMP.format('twins')}{positions.format('places')}"
        "dump c all dcd 10 twins.dcd\ndump x all xtc 10 twins.xtc\nrun 200",
        "between": f"{BEGIN}{DUMP.format('between')}run 100\nminimize 0 0 7 7\nrun 100",
        "warmed": f"{BEGIN}{DUMP.format('warmed')}run 100\nvelocity all scale 90\nrun 100",
        "goes_back": f"{BEGIN}{DUMP.format('goes_back')}run 100\nundump d\n{again}"
        f"{DUMP.format('goes_back')}dump_modify d append yes\nrun 100",
        "after": f"{BEGIN}{DUMP.format('after')}dump c all dcd 10 after.dcd\nminimize 0 0 7 7\n"
        "run 200",
    }
    run_lammps(folder, cases)
    return folder


def test_the_run_of_a_dump_is_known_by_its_commands_or_its_energies(several: Path) -> None:
    named = measured(several, "twins.dump", "twins.log")
    assert named.log_used == "1 table, steps 0 to 200, 1 other run left out"
    # Two folders with the same name: the text of the log is changed, LAMMPS wrote one of them.
    text = (several / "twins.log").read_text()
    first = text.index("run 200")
    elsewhere = f"{text[:first]}dump e all custom 10 first/places.dump id x y z\n{text[first:]}"
    (several / "folders.log").write_text(elsewhere.replace("reset_time", "undump e\nreset_time"))
    (several / "first").mkdir()
    shutil.copy(several / "places.dump", several / "first")
    assert measured(several, "places.dump", "folders.log").drift == named.drift
    assert measured(several, "first/places.dump", "folders.log").drift != named.drift
    for other in ("places.dump", "twins.dcd", "twins.xtc"):
        same = measured(several, other, "twins.log")
        assert same.log_used == named.log_used
        assert same.drift == named.drift
        copy = "copy" + Path(other).suffix
        shutil.copy(several / other, several / copy)
        with pytest.raises(InputError, match=r"more than one run .*0 to 200 and steps 0 to 200"):
            measured(several, copy, "twins.log")
    shutil.copy(several / "twins.dump", several / "copy.dump")
    assert measured(several, "copy.dump", "twins.log").drift == named.drift


def test_dcd_may_be_compressed_or_cut_off(several: Path) -> None:
    whole = measured(several, "twins.dcd", "twins.log")
    content = (several / "twins.dcd").read_bytes()
    (several / "twins.dcd.gz").write_bytes(gzip.compress(content))
    packed = measured(several, "twins.dcd.gz", "twins.log")
    assert_same_figures(packed.as_record(), whole.as_record())
    (several / "cut").mkdir()
    (several / "cut" / "twins.dcd").write_bytes(content[:-100])
    cut = measured(several, "cut/twins.dcd", "twins.log")
    assert (cut.stability.frames, whole.stability.frames) == (20, 21)
    assert any("cut off" in note for note in cut.notes)


@pytest.mark.parametrize("name", ["between", "warmed", "goes_back"])
def test_frames_of_two_runs_are_refused_with_what_to_do(several: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"frames of more than one run .*Analyze one at a time"):
        measured(several, f"{name}.dump", f"{name}.log")


def test_one_of_two_runs_is_analysed_with_its_table_alone(several: Path) -> None:
    text = (several / "between.log").read_text()
    first = text.index("minimize")
    (several / "part.log").write_text(text[:first])
    found = measured(several, "between.dump", "part.log")
    assert found.log_used == "1 table, steps 0 to 100" and found.stability.frames == 11
    assert any("frames are left out" in note for note in found.notes)


def test_frames_of_a_minimisation_before_the_run_are_left_out(several: Path) -> None:
    found = measured(several, "after.dump", "after.log")
    minimised = int(found.thermo.step[0])
    assert 0 < minimised < 10 and found.thermo.step[-1] == minimised + 200
    assert found.stability.frames == 20  # steps 10 to 200, not 0, and not the end of minimize
    assert found.stable_ps == pytest.approx(20 * 0.02)
    with pytest.raises(InputError, match="written during a minimisation too"):
        measured(several, "after.dcd", "after.log")


def test_restarted_run_replaces_what_it_repeats(tmp_path: Path) -> None:
    """Killed after step 140 and restarted from step 100, log and dump appended."""
    run = f"{BEGIN}{DUMP.format('whole')}run 100\nwrite_restart r\nrun 100"
    restarted = (
        f"units metal\nread_restart r\npair_style lj/cut 5.0\npair_modify shift yes\n"
        "pair_coeff 1 1 0.0103 3.4\nfix 1 all nve\nthermo 5\n"
        "thermo_style custom step temp pe ke etotal vol\nthermo_modify format float %.12g\n"
        f"{DUMP.format('end')}run 100"
    )
    run_lammps(tmp_path, {"whole": run, "end": restarted})
    whole, end = ((tmp_path / f"{name}.log").read_text() for name in ("whole", "end"))
    killed = whole[: whole.index("\n", whole.rindex("       140 ")) + 12]  # and half a row
    (tmp_path / "run.log").write_text(f"{killed}\nLAMMPS (1 Jan 2026)\n{end}")
    frames, rest = ((tmp_path / f"{name}.dump").read_text() for name in ("whole", "end"))
    cut = frames[: frames.index("ITEM: TIMESTEP\n150\n") - 100]  # half of the frame of step 140
    (tmp_path / "run.dump").write_text(cut + rest)
    found = measured(tmp_path, "run.dump", "run.log")
    np.testing.assert_array_equal(found.thermo.step, 5.0 * np.arange(41))
    assert any("cut off" in note for note in found.notes)
    assert any("restarted" in note for note in found.notes)
    assert_same_figures(
        found.as_record(), measured(tmp_path, "whole.dump", "whole.log").as_record()
    )


def test_restart_after_an_equilibration_with_the_same_steps(tmp_path: Path) -> None:
    """Logs and dumps of the run and of its restart, one after the other."""
    again = "reset_timestep 0\nvelocity all create 80.0 3 loop geom\n"
    begun = f"{BEGIN}run 200\n{again}{DUMP.format('begun')}run 100\nwrite_restart r"
    whole = f"{BEGIN}run 200\n{again}{DUMP.format('whole')}run 100\nrun 100"
    restarted = (
        "units metal\nread_restart r\npair_style lj/cut 5.0\npair_modify shift yes\n"
        "pair_coeff 1 1 0.0103 3.4\nfix 1 all nve\ntimestep 0.002\nthermo 5\n"
        "thermo_style custom step temp pe ke etotal vol\nthermo_modify format float %.12g\n"
        f"{DUMP.format('end')}run 100"
    )
    run_lammps(tmp_path, {"whole": whole, "begun": begun, "end": restarted})
    begin, end = ((tmp_path / f"{name}.log").read_text() for name in ("begun", "end"))
    (tmp_path / "run.log").write_text(f"{begin}\nLAMMPS (1 Jan 2026)\n{end}")
    (tmp_path / "run.dump").write_bytes(
        b"".join((tmp_path / f"{name}.dump").read_bytes() for name in ("begun", "end"))
    )
    found = measured(tmp_path, "run.dump", "run.log")
    np.testing.assert_array_equal(found.thermo.step, 5.0 * np.arange(41))
    assert_same_figures(
        found.as_record(), measured(tmp_path, "whole.dump", "whole.log").as_record()
    )


def test_a_timestep_that_the_log_does_not_show_is_unknown(tmp_path: Path) -> None:
    """Printed text is no command, and the speed after a run shows a command without echo."""
    printed = "print 'timestep 7'\nprint \"timestep 0.5 fs\"\nrun 100"
    run_lammps(
        tmp_path,
        {
            "plain": f"{BEGIN}{DUMP.format('plain')}run 100",
            "printed": f"{BEGIN}{DUMP.format('printed')}{printed}",
            "hidden": f"{BEGIN}{DUMP.format('hidden')}echo none\ntimestep 0.001\nrun 3000",
        },
    )
    found, plain = (measured(tmp_path, f"{n}.dump", f"{n}.log") for n in ("printed", "plain"))
    assert_same_figures(found.as_record(), plain.as_record())
    with pytest.raises(InputError, match=r"--timestep-fs"):
        measured(tmp_path, "hidden.dump", "hidden.log")


def test_a_trajectory_that_cannot_be_read_is_refused_also_beside_several_runs(
    several: Path,
) -> None:
    for step in range(0, 201, 10):
        (several / f"c.{step}.cfg").write_text("Number of particles = 32\n")
    with pytest.raises(InputError, match=r"cannot read the trajectory .*c.0.cfg"):
        measured(several, "c.0.cfg", "twins.log")


@pytest.mark.parametrize("name", ["two", "layouts"])
def test_killed_runs_are_read_up_to_where_log_and_dump_end(
    logs: Path, tmp_path: Path, name: str
) -> None:
    shutil.copy(logs / "top.extxyz", tmp_path)
    text, frames = (logs / f"{name}.log").read_text(), (logs / f"{name}.dump").read_bytes()
    (tmp_path / "run.log").write_text(text)
    cut = tmp_path / f"{name}.dump"
    cut.write_bytes(frames[: frames.index(b"ITEM: TIMESTEP\n160\n") - 40])
    packed = tmp_path / "renamed.gz"
    packed.write_bytes(gzip.compress(frames)[:-4000])
    for dump in (cut, packed):
        found = measured(tmp_path, dump.name, "run.log")
        last = 10 * (found.stability.frames - 1)
        assert 20 < last < 160
        assert last <= found.thermo.step[-1] < last + 10
        assert any("1 frame(s) that were cut off" in note for note in found.notes)
        assert any("of the log are left out" in note for note in found.notes)
    row = text.rindex("  - [150," if name == "layouts" else "       150 ")
    (tmp_path / "run.log").write_text(text[: row + 30])
    cut.write_bytes(frames)
    found = measured(tmp_path, cut.name, "run.log")
    assert found.thermo.step[-1] == 145 and found.stability.frames == 15
    assert any("6 of 21 frames are left out" in note for note in found.notes)


def test_log_without_commands_has_no_default_timestep(tmp_path: Path) -> None:
    """With `echo none`, a timestep of 2 fs would be taken for the default of 1 fs."""
    run_lammps(tmp_path, {"run": f"{BEGIN}{DUMP.format('run')}echo none\nrun 200"})
    text = (tmp_path / "run.log").read_text()
    silent = "LAMMPS (1 Jan 2026)\n" + text[text.index("Per MPI rank") :]
    (tmp_path / "silent.log").write_text(silent)
    with pytest.raises(InputError, match="give --timestep-fs"):
        measured(tmp_path, "run.dump", "silent.log", lammps_units="metal")
    known = {"lammps_units": "metal", "timestep_fs": 2.0}
    expected = measured(tmp_path, "run.dump", "run.log").as_record()
    assert_same_figures(measured(tmp_path, "run.dump", "silent.log", **known).as_record(), expected)
    before = "module load lammps\nWARNING: no GPU\n" + text
    for encoding in ("utf-16", "utf-8-sig", "latin-1"):
        (tmp_path / "other.log").write_text(before + "# \xe5ngstr\xf6m\n", encoding=encoding)
        other = measured(tmp_path, "run.dump", "other.log").as_record()
        assert_same_figures(other, expected)
