"""Logs and dumps in the forms in which users have them; the values are known."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.io import write

from mlff_student.analysis import read_thermo
from mlff_student.analysis.log_files import read_log
from mlff_student.core.errors import InputError
from mlff_student.core.units import KJ_PER_MOL
from mlff_student.structures.trajectories import Frames, read_steps, read_topology, stream_frames

# --- CSV ------------------------------------------------------------------------------------------

NAMES = [
    "Progress (%)",
    "Step",
    "Time (ps)",
    "Potential Energy (kJ/mole)",
    "Kinetic Energy (kJ/mole)",
    "Total Energy (kJ/mole)",
    "Temperature (K)",
    "Speed (ns/day)",
]


def openmm_rows(first: int, count: int) -> list[list[str]]:
    return [
        [f"{k}.0%", f"{10 * k}", f"{0.01 * k:.2f}", f"{-100 - k}", f"{20 + k}", "-80", "300", "--"]
        for k in range(first, first + count)
    ]


def openmm_text(separator: str, rows: list[list[str]], quote: str = '"', mark: str = "#") -> str:
    header = mark + separator.join(f"{quote}{name}{quote}" for name in NAMES)
    return "\n".join([header, *(separator.join(row) for row in rows)]) + "\n"


@pytest.mark.parametrize("separator", [",", "\t", ";", " ", " | ", ", "])
def test_csv_may_have_any_separator(tmp_path: Path, separator: str) -> None:
    log = tmp_path / "state.csv"
    log.write_text(openmm_text(separator, openmm_rows(1, 12)))
    thermo = read_thermo(log)
    np.testing.assert_allclose(thermo.time_ps, 0.01 * np.arange(1, 13))
    np.testing.assert_allclose(thermo.kinetic_ev, (20 + np.arange(1, 13)) * KJ_PER_MOL)
    np.testing.assert_allclose(thermo.potential_ev + thermo.kinetic_ev, thermo.total_ev)
    if separator in ",\t;":  # as a spreadsheet or pandas saves it
        log.write_text(
            "Simulation\nstarted\n\n" + openmm_text(separator, openmm_rows(1, 12), "", "")
        )
        np.testing.assert_array_equal(np.stack(read_thermo(log)[:5]), np.stack(thermo[:5]))
    for encoding in ("utf-16", "utf-8-sig"):
        log.write_text(openmm_text(separator, openmm_rows(1, 12)), encoding=encoding)
        np.testing.assert_array_equal(np.stack(read_thermo(log)[:5]), np.stack(thermo[:5]))
    log.write_bytes(gzip.compress(openmm_text(separator, openmm_rows(1, 12)).encode()))
    np.testing.assert_array_equal(np.stack(read_thermo(log)[:5]), np.stack(thermo[:5]))


def test_header_may_be_repeated_where_a_run_goes_on(tmp_path: Path) -> None:
    log, whole = tmp_path / "state.csv", tmp_path / "whole.csv"
    whole.write_text(openmm_text(",", openmm_rows(1, 24)))
    expected = np.stack(read_thermo(whole)[:5])
    log.write_text(openmm_text(",", openmm_rows(1, 12)) + openmm_text(",", openmm_rows(13, 12)))
    np.testing.assert_allclose(np.stack(read_thermo(log)[:5]), expected)
    # Killed after row 14 and restarted from row 12, which the log has twice.
    log.write_text(openmm_text(",", openmm_rows(1, 14)) + openmm_text(",", openmm_rows(12, 13)))
    np.testing.assert_allclose(np.stack(read_thermo(log)[:5]), expected)
    # Other columns, in another order.
    tail = "Time (ps),Temperature (K),Total Energy (kJ/mole),Kinetic Energy (kJ/mole)\n" + "".join(
        f"{row[2]},{row[6]},{row[5]},{row[4]}\n" for row in openmm_rows(13, 12)
    )
    head = openmm_text(",", openmm_rows(1, 12)).replace('"Step"', '"Count"')
    log.write_text(head + tail)
    np.testing.assert_allclose(np.stack(read_thermo(log)[:5]), expected)


def test_run_that_begins_anew_is_another_run(tmp_path: Path) -> None:
    """Without a trajectory, the last is read; the rows of the first must not be joined to it."""
    second = [[*row[:3], "-90", "10", "-80", "150", "--"] for row in openmm_rows(1, 12)]
    log = tmp_path / "state.csv"
    log.write_text(openmm_text(",", openmm_rows(1, 20)) + openmm_text(",", second))
    assert len(read_log(log).tables) == 2
    thermo = read_thermo(log)
    assert len(thermo.time_ps) == 12 and (thermo.temperature_k == 150).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"hello\nworld\n", "its first line is 'hello'. Give a log of"),
        (bytes(range(256)) * 20, "lacks the column"),
        (b"\x28\xb5\x2f\xfd" + bytes(50), "zstd -d"),
        (b"\x1f\x8b" + bytes(50), "cannot read"),
        (b"LAMMPS (1 Jan 2026)\nunits metal\n", "has no table of a run"),
        (b"LAMMPS (1 Jan 2026)\nunits metal\nStep Temp PotEng\n1 2 3\n", "without|lacks|rows"),
    ],
)
def test_files_that_are_no_log_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    log = tmp_path / "run.log"
    log.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_thermo(log)


# --- dumps ----------------------------------------------------------------------------------------

PLACES = np.array([[0.5, 0.5, 0.5], [2.0, 0.5, 0.5], [0.5, 2.5, 0.5]])
CELL = np.array([[9.0, 0.0, 0.0], [1.5, 8.0, 0.0], [-2.0, 1.0, 7.0]])
ORIGIN = np.array([-1.0, 2.0, 0.5])
BOUNDS = {
    "triclinic": "xy xz yz pp pp pp\n-3.0 9.5 1.5\n2.0 11.0 -2.0\n0.5 7.5 1.0",
    "general": "abc origin pp pp pp\n9 0 0 -1\n1.5 8 0 2\n-2 1 7 0.5",
    "old": "xy xz yz\n-3.0 9.5 1.5\n2.0 11.0 -2.0\n0.5 7.5 1.0",
}


def dump_text(
    columns: str, values: np.ndarray, *, step: int = 0, box: str = "triclinic", before: str = ""
) -> str:
    rows = "".join(f"{' '.join(f'{value:.10g}' for value in row)}\n" for row in values)
    return (
        f"{before}ITEM: TIMESTEP\n{step}\nITEM: NUMBER OF ATOMS\n{len(values)}\n"
        f"ITEM: BOX BOUNDS {BOUNDS[box]}\nITEM: ATOMS {columns}\n{rows}"
    )


def read_dump(folder: Path, text: str, name: str = "run.dump", **options) -> Frames:
    path, top = folder / name, folder / "top.extxyz"
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    write(top, Atoms("OHH", PLACES, cell=CELL, pbc=True))
    (frames,) = list(stream_frames(path, read_topology(top), **options))
    return frames


def test_dumps_have_the_columns_that_users_ask_for(tmp_path: Path) -> None:
    ids = np.array([[30], [10], [20]])  # atoms of a group, in the order of a processor
    order = [1, 2, 0]
    scaled = (PLACES - ORIGIN) @ np.linalg.inv(CELL)
    speeds = np.arange(9.0).reshape(3, 3)
    for box in BOUNDS:
        for columns, values in {
            "id type x y z": (ids, np.ones((3, 1)), PLACES),
            "id x y z": (ids, PLACES),
            "id type xs ys zs": (ids, np.ones((3, 1)), scaled),
            "xsu ysu zsu id": (scaled + np.array([0, 1, -1]), ids),
            "id xu yu zu mol type q": (ids, PLACES, np.full((3, 1), 140), ids, ids),
        }.items():
            text = dump_text(columns, np.hstack(values), box=box)
            shift = [0, 1, -1] @ CELL if "xsu" in columns else 0.0
            for name in ("run.dump", "run.lammpstrj.gz"):
                frames = read_dump(tmp_path, text, name)
                np.testing.assert_allclose(frames.positions[0], PLACES[order] + shift, atol=1e-8)
                np.testing.assert_allclose(frames.cells[0], CELL)
                assert frames.velocities is None and frames.forces is None
    text = dump_text("vx vy vz id x y z fx fy", np.hstack([speeds, ids, PLACES, speeds[:, :2]]))
    for style, factor in (("metal", 1.0), ("real", 1e3)):
        frames = read_dump(tmp_path, text, lammps_units=style)
        np.testing.assert_allclose(frames.velocities[0], factor * speeds[order], rtol=1e-6)
        assert frames.forces is None  # one of three components is missing
    forces = dump_text("fx fy fz x y z", np.hstack([speeds, PLACES]), before="ITEM: UNITS\nreal\n")
    frames = read_dump(tmp_path, forces)  # without ids, in the order of the file
    np.testing.assert_allclose(frames.positions[0], PLACES)
    np.testing.assert_allclose(frames.forces[0], speeds * units.kcal / units.mol, rtol=1e-4)


def test_elements_of_a_dump_are_checked_unless_they_are_the_default(tmp_path: Path) -> None:
    text = dump_text("id x y z", np.hstack([np.array([[1], [2], [3]]), PLACES]))
    with_elements = text.replace("ATOMS id", "ATOMS element id")
    for names in ("CCC", "OHH", ["OW", "HW", "HW"]):  # LAMMPS's default, right, types of a user
        lines = with_elements.splitlines()
        lines[-3:] = [f"{name} {line}" for name, line in zip(names, lines[-3:], strict=True)]
        assert len(read_dump(tmp_path, "\n".join(lines) + "\n")) == 1
    lines[-3:] = [f"N {line.split(maxsplit=1)[1]}" for line in lines[-3:]]
    with pytest.raises(InputError, match="atom 0 is N, the topology says O"):
        read_dump(tmp_path, "\n".join(lines) + "\n")


def test_frames_that_were_cut_off_are_counted_and_left_out(tmp_path: Path) -> None:
    values = np.hstack([np.array([[1], [2], [3]]), PLACES])
    frames = [dump_text("id x y z", values, step=step) for step in (0, 10, 20, 30)]
    # Killed in a line of step 10, and in the header of step 20; each time the dump was appended to.
    text = frames[0] + frames[1][:-9] + frames[1] + frames[2][:30] + frames[2] + frames[3]
    assert len(read_dump(tmp_path, text)) == 4
    steps = read_steps(tmp_path / "run.dump")
    assert steps.steps.tolist() == [0, 10, 20, 30] and steps.cut_off == 2
    for cut in range(1, len(frames[3]), 7):
        assert len(read_dump(tmp_path, text[:-cut])) == 3
        assert read_steps(tmp_path / "run.dump").cut_off in (
            2,
            3,
        )  # 2 if nothing but "ITEM" is left
    packed = gzip.compress("".join(frames).encode(), 0)
    (tmp_path / "cut.gz").write_bytes(packed[:-60])
    assert read_steps(tmp_path / "cut.gz").steps.tolist() == [0, 10, 20]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("NUMBER OF ATOMS\n3", "NUMBER OF ATOMS\n2"), "has 3 lines for 2 atoms; the file is dam"),
        (("NUMBER OF ATOMS\n3", "NUMBER OF ATOMS\n100000000"), "has no frames|no whole frame"),
        (("NUMBER OF ATOMS\n3", "NUMBER OF ATOMS\n-3"), "has 3 lines for -3 atoms"),
        (("ATOMS id x", "ATOMS id a"), "the columns are id a y z; expected positions"),
        (("2 2 0.5", "1 2 0.5"), "two atoms have the same id"),
        (("2 2 0.5", "2 two 0.5"), "step 0: could not convert string 'two'"),
        (("TIMESTEP\n0", "TIMESTEP\nzero"), "a frame begins with 'zero, 3"),
    ],
)
def test_damaged_dumps_are_refused_by_what_is_wrong(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    text = dump_text("id x y z", np.hstack([np.array([[1], [2], [3]]), PLACES]))
    assert change[0] in text
    with pytest.raises(InputError, match=message):
        read_dump(tmp_path, text.replace(*change))


def test_steps_of_xyz_are_those_in_its_comments(tmp_path: Path) -> None:
    for comment, expected in (
        (" Atoms. Timestep: {}", [0, 50]),
        ("Timestep={} Time=1.0", [0, 50]),
        ("step {}", None),
    ):
        path = tmp_path / "run.xyz"
        path.write_text("".join(f"1\n{comment.format(step)}\nH 0 0 0\n" for step in (0, 50)))
        steps = read_steps(path)
        assert (None if steps is None else steps.steps.tolist()) == expected
