"""Damaged files: every reader reads them, or raises an error of this project.

A worker process damages small valid files at random and reads them. Its memory and the time for a
file are limited; if a file kills the process, the next process continues behind it.
"""

import contextlib
import ctypes
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import mdtraj
import numpy as np
import torch
import yaml
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.units import fs
from rdkit import Chem
from rdkit.Chem import AllChem

from mlff_student.analysis.run import analyze
from mlff_student.analysis.thermo import read_thermo
from mlff_student.archive.archive import load_archive, save_archive
from mlff_student.archive.backends import library_path
from mlff_student.archive.evidence import read_evidence
from mlff_student.archive.registry import archive_of, load_student, model_file, read_card
from mlff_student.archive.scripting import build_archive
from mlff_student.benchmark.records import read_records
from mlff_student.core.errors import StudentError
from mlff_student.core.figures import THRESHOLDS, load_thresholds
from mlff_student.core.files import sha256
from mlff_student.distill.dataset import (
    LabelledStructure,
    open_dataset,
    read_dataset,
    read_frames,
)
from mlff_student.distill.molecules import read_library
from mlff_student.distill.packed import write_packed
from mlff_student.distill.recipe import ORGANIC_RECIPE, read_recipe
from mlff_student.distill.sources import read_generated
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.engines.ase.run import CHECKPOINT, start
from mlff_student.engines.protocol import MDSettings, RunFolder, join_segments
from mlff_student.engines.run import run_md
from mlff_student.model.student import Student, StudentConfig
from mlff_student.structures.checks import check_structure
from mlff_student.structures.reading import read_frame, read_structure, write_topology
from mlff_student.structures.trajectories import read_topology, stream_frames
from mlff_student.teachers.labelled import labelled_frames
from mlff_student.validation.campaign import MEASURES, Folder
from mlff_student.validation.compare import read_report
from mlff_student.validation.protocol import PROTOCOLS, load_protocol

SEED = 1
COUNT = 16  # damaged files of each reader
LEAST = 1000  # of all readers together
ADDRESSES = 2 * 2**30  # bytes that a reader may reserve
MEMORY = 300 * 2**20  # bytes that a reader may fill
SECONDS = 20  # processor time of a file
TIMEOUT = 600  # of a worker process, seconds
SMALL = 300  # atoms; larger structures are not evaluated
ROOT = Path(__file__).parents[2]
NUMBERS = b"0 -1 -0 1e-300 1e6 1e17 1e308 nan inf -inf 100000000 2147483648 18446744073709551616 x"
WORDS = (None, [], {}, "", "x", -1, 0, 10**30, 1e308, float("nan"), True, [[]], {"x": 1}, "9" * 400)
DEPTH = 100_000  # of nested brackets


class Reader(NamedTuple):
    """A valid file, possibly with other files beside it, and the function that reads it."""

    name: str
    path: Path
    read: Callable[[Path], Any]


# --- Damage --------------------------------------------------------------------------------------


def damaged(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Return the content of a file with one to three kinds of damage."""
    kinds = [flip, flip, cut, zero, double, drop, swap_lines, integer, number, number, not_text]
    if content[:4] == b"PK\x03\x04":
        kinds += [member, member, member, directory, directory]
    elif content[:1] in b"{[":
        kinds += [json_value] * 12
    elif b": " in content and b"\0" not in content:
        kinds += [yaml_value] * 8
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = rng.choice(kinds)(content, rng)
    if rng.random() < 0.02:
        return rng.choice([b"", *others])
    return content


def place(content: bytes, rng: random.Random) -> int:
    """Return a position, often near the begin or the end, where headers and directories are."""
    last = max(0, len(content) - 1)
    near = rng.randrange(min(last, 400) + 1)
    return rng.choice((near, last - near, rng.randint(0, last)))


def flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8)) if content else 0):
        changed[place(content, rng)] = rng.randrange(256)
    return bytes(changed)


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: place(content, rng)]


def zero(content: bytes, rng: random.Random) -> bytes:
    at = place(content, rng)
    length = min(rng.choice((4, 64, 2000)), len(content) - at)
    return content[:at] + bytes(length) + content[at + length :]


def double(content: bytes, rng: random.Random) -> bytes:
    at, length = place(content, rng), rng.choice((1, 20, 500, 5000))
    return content[: at + length] + content[at:]


def drop(content: bytes, rng: random.Random) -> bytes:
    at = place(content, rng)
    return content[:at] + content[at + rng.choice((1, 4, 80, 1000)) :]


def swap_lines(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[a], lines[b] = lines[b], lines[a]
    if rng.random() < 0.5:
        del lines[rng.randrange(len(lines))]
    return b"\n".join(lines)


def integer(content: bytes, rng: random.Random) -> bytes:
    """Set a binary number to an extreme one."""
    size, order = rng.choice((2, 4, 8)), rng.choice(("little", "big"))
    value = rng.choice((0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size) - 1, 10**8, 2**31))
    at = place(content, rng) // size * size
    return content[:at] + (value % 2 ** (8 * size)).to_bytes(size, order) + content[at + size :]


def number(content: bytes, rng: random.Random) -> bytes:
    """Set a number in a text to an extreme one."""
    words = content.split(b" ")
    places = [k for k, word in enumerate(words) if word.strip(b"\n-+.").isalnum()]
    if places:
        k = rng.choice(places[: rng.choice((3, 30, None))])
        words[k] = rng.choice(NUMBERS.split()) + (b"\n" if words[k].endswith(b"\n") else b"")
    return b" ".join(words)


def not_text(content: bytes, rng: random.Random) -> bytes:
    """Insert bytes that are no UTF-8, a byte order mark, or an end of line of another system."""
    at = place(content, rng)
    return (
        content[:at]
        + rng.choice((b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\0", b"\xc3"))
        + content[at:]
    )


def member(content: bytes, rng: random.Random) -> bytes:
    """Damage a member of a zip file and store it with its right checksum."""
    try:
        with zipfile.ZipFile(BytesIO(content)) as file:
            members = {info.filename: file.read(info) for info in file.infolist()}
    except Exception:  # this file is damaged already
        return content
    names = [name for name in members if "weight" not in name or name.endswith(".safetensors")]
    name = rng.choice(names)
    action = rng.random()
    if action < 0.1:
        del members[name]
    elif action < 0.2:
        members[name + rng.choice(("x", "/../x", "é"))] = members.pop(name)
    else:
        damaged_member = rng.choice(
            [k for k in names if k.endswith((".json", ".pkl", ".npy", ".safetensors"))] or names
        )
        members[damaged_member] = damaged(members[damaged_member], [b""], rng)
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return buffer.getvalue()


def directory(content: bytes, rng: random.Random) -> bytes:
    """Set offsets, sizes, names or checksums in the directory of a zip file."""
    begin = content.find(b"PK\x01\x02")
    if begin < 0:
        return content
    at = rng.randrange(begin, len(content))
    if rng.random() < 0.7:  # the fields of fixed length of an entry, or of the end
        entry = content.rfind(b"PK", 0, at)
        at = max(entry, begin) + rng.choice((8, 10, 16, 20, 24, 28, 30, 32, 34, 42))
    return content[:at] + integer(content[at : at + 8], rng) + content[at + 8 :]


def json_value(content: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.05:
        return b"[" * DEPTH
    try:
        return json.dumps(changed_value(json.loads(content), rng)).encode()
    except (ValueError, RecursionError):
        return content


def yaml_value(content: bytes, rng: random.Random) -> bytes:
    try:
        return yaml.safe_dump(changed_value(yaml.safe_load(content), rng)).encode()
    except (yaml.YAMLError, ValueError, RecursionError):
        return content


def changed_value(value: Any, rng: random.Random) -> Any:
    """Replace a value in nested dictionaries and lists, or remove or rename a key."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return rng.choice(WORDS)
    key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    action = rng.random()
    if action < 0.12:
        del value[key]
    elif action < 0.2 and isinstance(value, dict):
        value[str(key) + "x"] = value.pop(key)
    else:
        value[key] = changed_value(value[key], rng)
    return value


# --- Valid files ---------------------------------------------------------------------------------


def readers(folder: Path) -> Iterator[Reader]:
    """Write the valid files, and yield their readers."""
    folder.mkdir(parents=True, exist_ok=True)
    yield from structure_readers(folder / "structures")
    yield from trajectory_readers(folder / "trajectories")
    yield from log_readers(folder / "logs")
    yield from model_readers(folder / "models")
    yield from data_readers(folder / "data")
    yield from settings_readers(folder / "settings")
    yield from run_readers(folder / "runs")


def box() -> Any:
    atoms = molecule("CH3CH2OH", cell=[9.0, 9.5, 10.0], pbc=True)
    atoms.positions += [2.0, 2.0, 2.0]
    return atoms


def structure_readers(folder: Path) -> Iterator[Reader]:
    calculator = None

    def use(structure: Any) -> None:
        nonlocal calculator
        check_structure(structure.atoms)
        if len(structure.atoms) < SMALL:
            if calculator is None:
                calculator = StudentForceFieldCalculator("ultra_tiny")
            structure.atoms.calc = calculator
            structure.atoms.get_potential_energy()
        write_topology(structure, folder / "written.pdb")

    def read(path: Path) -> None:
        use(read_structure(str(path)))

    folder.mkdir()
    atoms = box()
    ethanol = atoms.copy()
    ethanol.pbc, ethanol.cell = False, None
    for name in (
        "xyz",
        "extxyz",
        "pdb",
        "cif",
        "gro",
        "traj",
        "json",
        "vasp",
        "gen",
        "xsf",
        "cube",
        "in",
    ):
        path = folder / f"ase.{ {'lammps-data': 'data'}.get(name, name) }"
        kind = {"gro": "gromacs", "pdb": "proteindatabank", "in": "aims", "gen": "dftb"}.get(
            name, name
        )
        (ethanol if name == "xyz" else atoms).write(path, format=kind)
        yield Reader(f"structure {name}", path, read)
    path = folder / "mdtraj.pdb"
    write_topology(read_structure(str(folder / "ase.extxyz")), path)
    yield Reader("structure pdb with bonds", path, read)
    topology = path
    path = folder / "macromolecule.cif"
    path.write_text(MMCIF)
    yield Reader("structure mmcif", path, read)
    ethanol_3d = Chem.AddHs(Chem.MolFromSmiles("CCO"))
    AllChem.EmbedMolecule(ethanol_3d, randomSeed=1)
    for name, text in (
        ("sdf", Chem.MolToMolBlock(ethanol_3d) + "$$$$\n"),
        ("sdf V3000", Chem.MolToV3KMolBlock(ethanol_3d) + "$$$$\n"),
        ("mol", Chem.MolToMolBlock(ethanol_3d)),
    ):
        path = folder / f"{name.replace(' ', '_')}.{'mol' if name == 'mol' else 'sdf'}"
        path.write_text(text)
        yield Reader(f"structure {name}", path, read)

    trajectory = mdtraj.load(str(topology))
    for suffix in ("pdb", "xyz", "dcd", "xtc", "nc", "h5"):
        path = folder / f"frame.{suffix}"
        trajectory.save(str(path))
        yield Reader(
            f"frame {suffix}",
            path,
            lambda path: use(
                read_frame(
                    str(path), str(topology) if path.suffix not in (".pdb", ".h5") else "", -1
                )
            ),
        )
    for name, text in (
        ("ethanol", "CCO"),
        ("drug", "O=C(N[C@H](CO)[C@H](O)c1ccc([N+](=O)[O-])cc1)C(Cl)Cl"),
    ):
        path = folder / f"{name}.smi"
        path.write_text(text)
        yield Reader(
            f"SMILES {name}",
            path,
            lambda path: use(
                read_structure(os.fsdecode(path.read_bytes().replace(b"\0", b"")[:200]))
            ),
        )


def frames_of(count: int) -> list[Any]:
    rng = np.random.default_rng(1)
    images = []
    for k in range(count):
        atoms = box()
        atoms.positions += 0.01 * k
        atoms.set_velocities(rng.standard_normal((len(atoms), 3)))
        atoms.set_momenta(atoms.get_momenta() * (ROWS[k][2] / atoms.get_kinetic_energy()) ** 0.5)
        atoms.calc = SinglePointCalculator(
            atoms, energy=-1.0 * k, forces=rng.standard_normal((len(atoms), 3)), stress=np.ones(6)
        )
        images.append(atoms)
    return images


def trajectory_readers(folder: Path) -> Iterator[Reader]:
    folder.mkdir()
    images = frames_of(12)
    write(folder / "start.xyz", images[0], format="extxyz")
    structure = read_structure(str(folder / "start.xyz"))
    topology = folder / "run.pdb"
    write_topology(structure, topology)
    reference = read_topology(topology)

    def read(path: Path) -> None:
        for part in stream_frames(path, reference, chunk=5):
            np.isfinite(part.positions).all()

    write(folder / "ase.traj", images)
    write(folder / "ase.extxyz", images, format="extxyz")
    frames = mdtraj.Trajectory(
        np.array([atoms.positions for atoms in images]) / 10.0,
        structure.topology,
        unitcell_lengths=np.tile(images[0].cell.lengths() / 10.0, (12, 1)),
        unitcell_angles=np.full((12, 3), 90.0),
        time=np.arange(12) * 0.01,
    )
    suffixes = ("traj", "extxyz", "dcd", "xtc", "trr", "nc", "h5", "xyz", "lammpstrj", "pdb", "gro")
    for suffix in suffixes:
        path = folder / (f"ase.{suffix}" if suffix in ("traj", "extxyz") else f"mdtraj.{suffix}")
        if not path.exists():
            frames.save(str(path))
        yield Reader(f"trajectory {suffix}", path, read)
    (folder / "lammps.dump").write_text("".join(dump(k, atoms) for k, atoms in enumerate(images)))
    yield Reader("trajectory dump", folder / "lammps.dump", read)
    (folder / "run.csv").write_text(CSV)
    dcd = folder / "mdtraj.dcd"
    log = folder / "run.csv"
    yield Reader(
        "topology",
        topology,
        lambda path: list(stream_frames(dcd, path)),
    )
    yield Reader(
        "analysis of a dump", folder / "lammps.dump", lambda path: analyze(path, topology, log)
    )
    yield Reader("analysis of a log", log, lambda path: analyze(dcd, topology, path))


def dump(step: int, atoms: Any) -> str:
    bounds = "".join(f"0.0 {length:.6f}\n" for length in atoms.cell.lengths())
    rows = "".join(
        f"{k + 1} 1 {symbol} {' '.join(f'{x:.6f}' for x in (*position, *velocity))}\n"
        for k, (symbol, position, velocity) in enumerate(
            zip(atoms.symbols, atoms.positions, atoms.get_velocities() * 1e3 * fs, strict=True)
        )
    )
    return (
        f"ITEM: UNITS\nmetal\nITEM: TIMESTEP\n{step}\nITEM: NUMBER OF ATOMS\n{len(atoms)}\n"
        f"ITEM: BOX BOUNDS pp pp pp\n{bounds}ITEM: ATOMS id type element x y z vx vy vz\n{rows}"
    )


ROWS = [
    (0.01 * k, -10.0 + 0.001 * (k % 3), 0.31 - 0.001 * (k % 3), 300.0 - k % 3) for k in range(12)
]
CSV = "time_ps,potential_ev,kinetic_ev,total_ev,temperature_k\n" + "".join(
    f"{t:.4f},{p:.6f},{k:.6f},{p + k:.6f},{T:.3f}\n" for t, p, k, T in ROWS
)
OPENMM = '#"Step","Time (ps)","Potential Energy (kJ/mole)","Kinetic Energy (kJ/mole)"'
OPENMM += ',"Temperature (K)"\n'
OPENMM += "".join(f"{k},{t:.4f},{p:.6f},{e:.6f},{T:.3f}\n" for k, (t, p, e, T) in enumerate(ROWS))
ASE_LOG = "Time[ps]      Etot[eV]     Epot[eV]     Ekin[eV]    T[K]\n" + "".join(
    f"{t:.4f} {p + k:.6f} {p:.6f} {k:.6f} {T:.3f}\n" for t, p, k, T in ROWS
)
COLUMNS = "Step Time PotEng KinEng TotEng Temp"
TABLE = [f"{k} {t:.4f} {p:.6f} {e:.6f} {p + e:.6f} {T:.3f}" for k, (t, p, e, T) in enumerate(ROWS)]
HEAD = "LAMMPS (22 Jul 2025)\nunits metal\ntimestep 0.001\nthermo_style custom step\nrun 12\n"
MEMORY_LINE = "Per MPI rank memory allocation (min/avg/max) = 3 | 3 | 3 Mbytes\n"
LOOP = "Loop time of 0.1 on 1 procs for 12 steps with 9 atoms\n"
LAMMPS = HEAD + MEMORY_LINE + COLUMNS + "\n" + "\n".join(TABLE) + "\n" + LOOP
LAMMPS_TWICE = LAMMPS + LAMMPS.removeprefix("LAMMPS (22 Jul 2025)\n")
LAMMPS_MULTI = (
    HEAD
    + MEMORY_LINE
    + "".join(
        f"------------ Step {k:14d} ----- CPU = {t:12.6f} (sec) -------------\n"
        f"TotEng   = {p + e:14.4f} KinEng   = {e:14.4f} Temp     = {T:14.4f}\n"
        f"PotEng   = {p:14.4f} E_bond   = {0:14.4f} Time     = {t:14.4f}\n"
        for k, (t, p, e, T) in enumerate(ROWS)
    )
    + LOOP
)
LAMMPS_YAML = (
    HEAD + MEMORY_LINE + "---\nkeywords: ['" + "', '".join(COLUMNS.split()) + "', ]\ndata:\n"
)
LAMMPS_YAML += "".join(f"  - [{', '.join(row.split())}, ]\n" for row in TABLE) + "...\n" + LOOP
MMCIF = """data_x
loop_
_atom_site.group_PDB
_atom_site.id
_atom_site.type_symbol
_atom_site.label_atom_id
_atom_site.label_alt_id
_atom_site.label_comp_id
_atom_site.label_asym_id
_atom_site.label_entity_id
_atom_site.label_seq_id
_atom_site.Cartn_x
_atom_site.Cartn_y
_atom_site.Cartn_z
_atom_site.occupancy
_atom_site.B_iso_or_equiv
_atom_site.auth_seq_id
_atom_site.auth_asym_id
HETATM 1 O O . HOH A 1 1 0.000 0.000 0.000 1.0 0.0 1 A
HETATM 2 H H1 . HOH A 1 1 0.960 0.000 0.000 1.0 0.0 1 A
HETATM 3 H H2 . HOH A 1 1 -0.240 0.930 0.000 1.0 0.0 1 A
"""


def log_readers(folder: Path) -> Iterator[Reader]:
    folder.mkdir()
    for name, text in {
        "csv": CSV,
        "csv of OpenMM": OPENMM,
        "log of ASE": ASE_LOG,
        "log of LAMMPS": LAMMPS,
        "log of LAMMPS with two runs": LAMMPS_TWICE,
        "log of LAMMPS, multi": LAMMPS_MULTI,
        "log of LAMMPS, yaml": LAMMPS_YAML,
    }.items():
        path = folder / f"{name.replace(' ', '_')}.log"
        path.write_text(text)
        yield Reader(name, path, read_thermo)


def model_readers(folder: Path) -> Iterator[Reader]:
    folder.mkdir()
    torch.manual_seed(1)
    config = StudentConfig(channels=16, layers=1, radial_functions=4)
    student = Student(config)
    checkpoint = folder / "checkpoint" / "model.pt"
    checkpoint.parent.mkdir()
    torch.save({"config": config.as_dict(), "weights": student.state_dict()}, checkpoint)
    card = json.loads((ROOT / "checkpoints" / "tiny" / "card.json").read_text())
    card["domain"].pop("neighbourhoods", None)
    card["model_sha256"] = sha256(checkpoint)
    (checkpoint.parent / "card.json").write_text(json.dumps(card))
    archive = folder / "archive.pt"
    save_archive(build_archive(student, config, "random", {}), archive)
    yield Reader("archive", archive, lambda path: load_archive(path))
    yield Reader("checkpoint with a card", checkpoint, load_student)
    alone = folder / "alone" / "model.pt"
    alone.parent.mkdir()
    shutil.copy(checkpoint, alone)
    yield Reader("checkpoint", alone, load_student)
    yield Reader(
        "card", checkpoint.parent / "card.json", lambda path: read_card(path.with_name("model.pt"))
    )
    yield Reader("model", archive, lambda path: archive_of(path))
    summary = folder / "summary" / "summary.json"
    summary.parent.mkdir()
    shutil.copy(ROOT / "checkpoints" / "tiny" / "summary.json", summary)

    yield Reader("evidence", summary, lambda path: read_evidence(path.parent))
    yield from core_readers(folder)


def core_readers(folder: Path) -> Iterator[Reader]:
    """The core reads an archive for C, LAMMPS and Python; more of this is in check_open.cpp."""
    path = library_path()
    if not path.is_file():
        return
    core = ctypes.CDLL(str(path))
    core.mlff_student_open.restype = ctypes.c_void_p
    core.mlff_student_error.restype = ctypes.c_char_p

    def read(path: Path) -> None:
        model = core.mlff_student_open(bytes(path))
        core.mlff_student_close(ctypes.c_void_p(model))
        if not model:
            raise StudentError(core.mlff_student_error().decode())

    copy = folder / "core.pt"
    shutil.copy(folder / "archive.pt", copy)
    yield Reader("archive in the core", copy, read)


def data_readers(folder: Path) -> Iterator[Reader]:
    folder.mkdir()
    images = frames_of(3)
    for suffix in ("extxyz", "traj", "xyz"):
        path = folder / f"labelled.{suffix}"
        write(path, images, **({} if suffix == "traj" else {"format": "extxyz"}))
        yield Reader(f"labels {suffix}", path, labelled_frames)
    path = folder / "structures.extxyz"
    shutil.copy(folder / "labelled.extxyz", path)
    yield Reader("structures of a recipe", path, read_generated)
    path = folder / "molecules.smi"
    path.write_text("# SMILES, name, class\nCCO\tethanol\talcohol\nO\twater\twater\n")
    yield Reader("molecules", path, read_library)

    rng = np.random.default_rng(1)
    labelled = LabelledStructure(
        name="water",
        identity="O",
        kind="water",
        split="train",
        attempted=2,
        failure="",
        atomic_numbers=np.array([8, 1, 1], "u1"),
        methods=["md", "md"],
        positions=rng.random((2, 3, 3), dtype="f4"),
        forces=rng.random((2, 3, 3), dtype="f4"),
        energies=rng.random(2),
        temperatures=np.full(2, 300.0, "f4"),
        cells=np.zeros((2, 3, 3), "f4"),
        pbc=np.zeros((2, 3), bool),
        stresses=np.full((2, 6), np.nan, "f4"),
    )
    with open_dataset(folder / "dataset.h5", teacher="none") as writer:
        writer.append(labelled)
    yield Reader("dataset", folder / "dataset.h5", lambda path: read_dataset(path))
    write_packed(folder / "packed.npz", {"train": read_frames(folder / "dataset.h5", "train")})
    yield Reader("packed dataset", folder / "packed.npz", read_frames)
    shutil.copy(folder / "dataset.h5", folder / "open.h5")

    with (
        contextlib.suppress(InterruptedError),  # the shard is not packed
        open_dataset(folder / "open.h5", teacher="none") as writer,
    ):
        writer.append(labelled._replace(name="other"))
        raise InterruptedError
    shard = next((folder / "open.h5.shards").glob("*.npz"))
    yield Reader("shard", shard, lambda path: read_dataset(folder / "open.h5"))


def settings_readers(folder: Path) -> Iterator[Reader]:
    folder.mkdir()
    for name, source, read in (
        ("recipe", ORGANIC_RECIPE, read_recipe),
        ("protocol", PROTOCOLS / "standard.yaml", lambda path: load_protocol(str(path))),
        ("thresholds", THRESHOLDS, load_thresholds),
    ):
        path = folder / f"{name}.yaml"
        shutil.copy(source, path)
        yield Reader(name, path, read)
    records = folder / "records.json"
    records.write_text(
        json.dumps(
            {
                "command": "benchmark steps",
                "version": "0",
                "model": "tiny",
                "machine": {"cores": 1},
                "settings": {},
                "results": [{"model": "tiny", "atoms": 3, "ms": 1.0}],
            }
        )
    )
    yield Reader("benchmark records", records, lambda path: read_records(path, "benchmark steps"))
    report = folder / "report.json"
    report.write_text(
        json.dumps(
            {
                "command": "validate",
                "teacher": "none",
                "protocol_sha256": "0",
                "results": [
                    {
                        "model": "tiny",
                        "judged": True,
                        "case": "tiny/a",
                        "drift_mev_per_atom_ps": 0.1,
                    }
                ],
            }
        )
    )
    yield Reader("report", report, read_report)


def run_readers(folder: Path) -> Iterator[Reader]:
    settings = MDSettings("ase", "ultra_tiny", "CCO", 10, 0.5, 300.0, "nve", 1, 10, 1.0, 1)
    folder.mkdir()
    identity = asdict(settings) | {"model_sha256": sha256(model_file("ultra_tiny"))}
    for name in ("settings", "run"):
        output = folder / name
        output.mkdir()
        (output / "settings.json").write_text(json.dumps(identity))
        (output / "run.json").write_text(
            json.dumps(identity | {"atoms": 9, "ms_per_step": 1.0, "ns_per_day": 1.0})
        )
        yield Reader(
            f"{name} of a run",
            output / f"{name}.json",
            lambda path: run_md(settings, path.parent, quiet=True),
        )
    output = folder / "checkpoint"
    output.mkdir()
    atoms = box()
    generator = np.random.Generator(np.random.PCG64(1))
    np.savez(
        output / CHECKPOINT,
        step=3,
        positions=atoms.positions,
        momenta=atoms.positions,
        randomness=json.dumps(generator.bit_generator.state),
    )
    yield Reader(
        "checkpoint of a run",
        output / CHECKPOINT,
        lambda path: start(settings, box(), RunFolder(path.parent)),
    )
    output = folder / "segments"
    output.mkdir()
    run = RunFolder(output)
    source = folder.parent / "trajectories"
    shutil.copy(source / "run.pdb", run.topology)
    first = run.segment(0)
    shutil.copy(source / "mdtraj.dcd", first.trajectory)
    shutil.copy(source / "run.csv", first.thermo)
    for file in (first.trajectory, first.thermo):
        yield Reader(
            f"segment {file.suffix}",
            file,
            lambda path: join_segments(RunFolder(path.parent), 1, True),
        )
    result = folder / "campaign" / "results" / "a.json"
    result.parent.mkdir(parents=True)
    result.write_text(
        json.dumps({"measures": MEASURES, "record": {"a": 1}, "series": {"b": [1.0]}})
    )
    yield Reader("result of a campaign", result, lambda path: Folder(folder / "campaign").read("a"))


# --- The worker process --------------------------------------------------------------------------


def work(folder: Path, seed: int, count: int, first: int, wanted: str) -> None:
    """Damage and read files from number `first` on; print a line of JSON before and after each.

    If `first` is negative, the valid files are read before, which also loads all libraries.
    """
    logging.disable()
    warnings.simplefilter("ignore")

    output = os.fdopen(os.dup(1), "w")  # C libraries write to standard output and error
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    shutil.rmtree(folder / "files", ignore_errors=True)
    every = list(readers(folder / "files"))
    valid = [reader.path.read_bytes() for reader in every]
    chosen = [k for k, reader in enumerate(every) if wanted in reader.name]
    if first < 0:
        for reader in every:
            if wanted in reader.name:
                print(json.dumps([-1, reader.name, "begun"]), file=output, flush=True)
                try:
                    reader.read(reader.path)
                except Exception as error:
                    print(
                        json.dumps([-1, reader.name, "valid: " + described(error)]),
                        file=output,
                        flush=True,
                    )
        print(json.dumps([-1, "", "ready"]), file=output, flush=True)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESSES, used + ADDRESSES))
    for k in range(max(first, 0), len(chosen) * count):
        reader = every[chosen[k // count]]
        content = valid[chosen[k // count]]
        rng = random.Random(f"{seed} {reader.name} {k % count}")
        reader.path.write_bytes(damaged(content, rng.sample(valid, 2), rng))
        print(json.dumps([k, reader.name, "begun", str(reader.path)]), file=output, flush=True)
        before = peak()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # its signal ends the process
        try:
            reader.read(reader.path)
            outcome = "read"
        except StudentError:
            outcome = "refused"
        except BaseException as error:
            outcome = described(error)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if (grown := peak() - before) > MEMORY:
            outcome = f"resident memory grew by {grown} bytes; {outcome}"
        print(json.dumps([k, reader.name, outcome]), file=output, flush=True)
        if outcome not in ("read", "refused"):
            keep(reader.path, folder, k)
        reader.path.write_bytes(content)
    print(json.dumps([-1, "", "done"]), file=output, flush=True)


def keep(path: Path, folder: Path, k: int) -> None:
    kept = folder / "kept"
    kept.mkdir(exist_ok=True)
    shutil.copy(path, kept / f"{k:06d}_{path.name}")


def peak() -> int:
    """Return the largest memory that this process has filled so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def described(error: BaseException) -> str:
    """Return type, message and place of an error."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "mlff_student" in f.filename or "openmm_integration" in f.filename]
    place = own[-1] if own else frames[-1]
    text = (str(error).splitlines() or [""])[0][:150]
    return (
        f"{type(error).__name__} [{Path(place.filename).name}:{place.lineno} {place.name}] {text}"
    )


# --- The test ------------------------------------------------------------------------------------


def fuzz(
    folder: Path, seed: int = SEED, count: int = COUNT, wanted: str = ""
) -> dict[str, Counter[str]]:
    """Return how often each outcome occurred, by the names of the readers that contain `wanted`."""
    first, log = -1, folder / "log"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    log.write_bytes(b"")
    while True:
        command = [sys.executable, __file__, str(folder), str(seed), str(count), str(first), wanted]
        with log.open("ab") as output:
            status = subprocess.run(
                command, stdout=output, env=environment, timeout=TIMEOUT, check=False
            ).returncode
        number, name, outcome, *path = json.loads(log.read_bytes().splitlines()[-1])
        if outcome == "done":
            return outcomes(log)
        end = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        assert number >= 0, f"the worker ended with {end} after {name} {outcome}"
        keep(Path(*path), folder, number)
        with log.open("a") as output:
            print(json.dumps([number, name, end]), file=output)
        first = number + 1


def outcomes(log: Path) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {}
    for line in log.read_bytes().splitlines():
        _, name, outcome, *_ = json.loads(line)
        if outcome not in ("begun", "ready", "done"):
            counts.setdefault(name, Counter())[outcome] += 1
    return counts


def test_damaged_files_are_read_or_refused(tmp_path: Path):
    counts = fuzz(tmp_path)
    assert sum(counts.values(), Counter()).total() >= LEAST
    faults = {
        f"{name}: {outcome}": number
        for name, of_reader in counts.items()
        for outcome, number in of_reader.items()
        if outcome not in ("read", "refused")
    }
    assert not faults, f"{json.dumps(faults, indent=2)}; the files are in {tmp_path / 'kept'}"


if __name__ == "__main__":
    work(Path(sys.argv[1]), *map(int, sys.argv[2:5]), sys.argv[5])
