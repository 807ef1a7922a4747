"""The LAMMPS pair style beyond parity: derivatives, corner cases, every refusal, the plugin."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.metadata import files
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms

from mlff_student.archive.archive import METADATA, WEIGHTS, load_archive, save_archive
from mlff_student.archive.contents import read_members, write_members
from mlff_student.archive.scripting import build_archive
from mlff_student.core.errors import InterruptedRunError, StudentError
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.engines.lammps.plugin import lammps_environment, plugin_path
from mlff_student.engines.lammps.run import element_order, run_lmp, single_point, write_data
from mlff_student.model.student import Student, StudentConfig

PROGRAMS = Path(sys.executable).parent


def test_virial_is_the_derivative_by_strain(structures, tiny_archive64, tmp_path):
    """W : e = -dE/ds of positions and cell strained by 1 + s e, central difference."""
    atoms = structures["triclinic"]
    virial = single_point(atoms, tiny_archive64, tmp_path).virial
    strain = np.random.default_rng(1).standard_normal((3, 3))
    strain = 0.5 * (strain + strain.T)
    step = 1e-5  # truncation 1e-9 of the third derivative; rounding of the energy 1e-12 / 1e-5
    energies = []
    for sign in (1.0, -1.0):
        strained = atoms.copy()
        deformation = np.eye(3) + sign * step * strain
        strained.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
        energies.append(single_point(strained, tiny_archive64, tmp_path).energy)
    slope = (energies[0] - energies[1]) / (2 * step)
    assert -slope == pytest.approx(np.sum(virial * strain), abs=1e-5 * abs(virial).max())


def test_forces_are_the_slope_of_the_energy(structures, tiny_archive64, tmp_path):
    atoms = structures["water_box"]
    forces = single_point(atoms, tiny_archive64, tmp_path).forces
    direction = np.random.default_rng(2).standard_normal(forces.shape)
    step = 1e-4  # angstrom
    energies = []
    for sign in (1.0, -1.0):
        moved = atoms.copy()
        moved.positions += sign * step * direction
        energies.append(single_point(moved, tiny_archive64, tmp_path).energy)
    slope = (energies[0] - energies[1]) / (2 * step)
    assert -slope == pytest.approx(np.sum(forces * direction), abs=1e-5 * np.linalg.norm(forces))


@pytest.mark.parametrize(
    "atoms",
    [
        Atoms("O", positions=[[0.0, 0.0, 0.0]]),
        Atoms("HH", positions=[[0.0, 0.0, 0.0], [0.0, 3.0, 5.5]]),
    ],
    ids=["one atom", "two atoms beyond the cutoff"],
)
def test_atoms_alone(atoms, tiny_archive, tmp_path):
    """Atoms without neighbours have the energy that ASE gives them, and no force."""
    point = single_point(atoms, tiny_archive, tmp_path)
    atoms.calc = StudentForceFieldCalculator(tiny_archive)
    assert point.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
    assert not point.forces.any()
    assert not point.virial.any()


def test_deleted_atoms(structures, tiny_archive, tmp_path):
    """Atom numbers with gaps in them: the same as a box that never had those molecules."""
    atoms = structures["water_box"]
    gone = "group gone id 4:6 13:15\ndelete_atoms group gone compress no"
    point = single_point(atoms, tiny_archive, tmp_path, extra=gone)
    rest = atoms[[k for k in range(len(atoms)) if k not in (3, 4, 5, 12, 13, 14)]]
    rest.calc = StudentForceFieldCalculator(tiny_archive)
    # float32 sums in another order, as in test_parity.
    assert point.energy == pytest.approx(rest.get_potential_energy(), abs=1e-6 * len(rest))
    np.testing.assert_allclose(point.forces, rest.get_forces(), atol=1e-5)


def test_per_atom_energy_and_stress_sum_to_the_total(structures, tiny_archive64, tmp_path):
    atoms = structures["triclinic"]
    write_data(atoms, tmp_path / "point.data")
    log = run_lmp(
        SCRIPT.format(archive=tiny_archive64, elements=" ".join(element_order(atoms)))
        + """
compute pe all pe/atom
compute stress all stress/atom NULL virial
compute centroid all centroid/stress/atom NULL virial
compute e all reduce sum c_pe
compute s all reduce sum c_stress[*]
compute c all reduce sum c_centroid[*]
compute p all pressure NULL virial
thermo_style custom step pe c_e c_p[*] c_s[*] c_c[*] vol
run 0
variable k loop 6
print "SUM $(pe:%.15g) $(c_e:%.15g)"
label next
print "SUM $(-vol*c_p[v_k]:%.15g) $(c_s[v_k]:%.15g)"
print "SUM $(-vol*c_p[v_k]:%.15g) $(c_c[v_k]:%.15g)"
next k
jump SELF next
""",
        tmp_path,
        "sums",
    )
    rows = np.array(
        [line.split()[1:] for line in log.splitlines() if line.startswith("SUM")], float
    )
    assert len(rows) == 13
    # Off-diagonal terms of nine components differ from their mirror images until they are summed.
    scale = abs(rows[1:]).max()
    np.testing.assert_allclose(rows[0, 0], rows[0, 1], rtol=1e-12)
    np.testing.assert_allclose(rows[1:, 0], rows[1:, 1], atol=1e-9 * scale)


SCRIPT = """\
units metal
boundary p p p
read_data point.data
pair_style mlff_student
pair_coeff * * {archive} {elements}
"""
# Change to SCRIPT for methanol and water (types C H O): what is replaced, by what, words of the
# error.
REFUSALS = {
    "unknown element": ("C H O", "C H Xx", ["element 'Xx' of atom type 3", "knows H C N O"]),
    "too few elements": ("C H O", "C H", ["names 2 elements", "3 atom types"]),
    "too many elements": ("C H O", "C H O N", ["names 4 elements", "3 atom types"]),
    "no elements": (" C H O", "", ["names 0 elements", "3 atom types"]),
    "element NULL": ("C H O", "C H NULL", ["maps atom type 3 to NULL", "pair_style hybrid"]),
    "units lj": ("units metal", "units lj", ["'units metal' or 'units real'", "found 'lj'"]),
    "missing file": ("MODEL", "nowhere.pt", ["'nowhere.pt'", "export.py"]),
    "truncated archive": ("MODEL", "truncated.pt", ["truncated.pt' is not", "mlff-student export"]),
    "foreign TorchScript": ("MODEL", "foreign.pt", ["not an mlff-student archive", "no metadata"]),
    "newton off": ("boundary", "newton off\nboundary", ["needs newton_pair on", "newton on"]),
    "unknown option": (
        "pair_style mlff_student",
        "pair_style mlff_student 5.0",
        ["no option '5.0'", "[backend auto|native|portable]"],
    ),
    "option without value": (
        "pair_style mlff_student",
        "pair_style mlff_student threads",
        ["threads has no value"],
    ),
    "unknown backend": (
        "pair_style mlff_student",
        "pair_style mlff_student backend fast",
        ["backend 'fast' is unknown, expected one of auto native portable"],
    ),
    "no threads": (
        "pair_style mlff_student",
        "pair_style mlff_student threads 0",
        ["threads is 0, expected 1 or more"],
    ),
    "native on CUDA": (
        "pair_style mlff_student",
        "pair_style mlff_student backend native device cuda",
        ["native kernels run on the CPU, not on cuda", "backend portable"],
    ),
    "native in float64": (
        "pair_style mlff_student\npair_coeff * * MODEL",
        "pair_style mlff_student backend native\npair_coeff * * float64.pt",
        ["compute in float32, archive random_tiny in float64", "backend portable"],
    ),
    "rRESPA inner": (
        "pair_coeff",
        "run_style respa 2 2 inner 1 4.0 5.0 outer 2\npair_coeff",
        ["does not support rRESPA"],
    ),
    "heat flux": (
        "pair_coeff",
        "compute ke all ke/atom\ncompute pe all pe/atom\n"
        "compute stress all centroid/stress/atom NULL virial\n"
        "compute flux all heat/flux ke pe stress\npair_coeff",
        ["heat/flux", "fix ehex"],
    ),
    "type pair taken away": (
        "pair_style mlff_student\npair_coeff * * MODEL C H O",
        "pair_style hybrid mlff_student lj/cut 4.0\n"
        "pair_coeff * * mlff_student MODEL C H O\npair_coeff 1 2 lj/cut 0.01 3.0",
        ["pair_coeff 1 2 takes pairs", "hybrid/overlay"],
    ),
    "neighbors of a group": (
        "pair_coeff",
        "group some id 1:9\natom_modify first some\nneigh_modify include some\npair_coeff",
        ["neigh_modify include all"],
    ),
    "ghosts of a group": (
        "pair_coeff",
        "group some id 1:9\natom_modify first some\ncomm_modify group some\npair_coeff",
        ["comm_modify group some removes ghost atoms", "comm_modify group all"],
    ),
    "newer archive": (
        "MODEL",
        "newer.pt",
        ["newer.pt' has archive format", "the version that wrote it"],
    ),
    "older format": (
        "MODEL",
        "old.pt",
        ["old.pt' has archive format 2", "mlff-student export --checkpoint"],
    ),
    "other numbers": ("MODEL", "altered.pt", ["self-check fails: energy off by", "doctor"]),
    "other weights": ("MODEL", "exchanged.pt", ["the weights have the hash", "say 000000000000"]),
    "no metadata": ("MODEL", "bare.pt", ["not an mlff-student archive", "no metadata"]),
    "code of a stranger": (
        "pair_style mlff_student\npair_coeff * * MODEL",
        "pair_style mlff_student backend portable\npair_coeff * * strange.pt",
        ["contains code that this version", "was run"],
    ),
    "another cutoff in the metadata": ("MODEL", "cutoff.pt", ["do not belong to its cutoff"]),
    "member with another cutoff": (
        "MODEL C H O",
        "MODEL few.pt wide.pt C H O",
        ["models random_tiny and wide have the cutoffs 5 and 6 angstrom"],
    ),
    "member with other elements": (
        "MODEL C H O",
        "MODEL few.pt C H Cl",
        ["element 'Cl' of atom type 3 is unknown to model few, which knows H C N O"],
    ),
    "excluded neighbors": (
        "pair_coeff",
        "neigh_modify exclude type 1 1\npair_coeff",
        ["neigh_modify exclude type 1 1 removes neighbors", "neigh_modify exclude none"],
    ),
    "atoms on each other": (
        "pair_style",
        "displace_atoms all random 0.0 0.0 0.0 1\nset atom 1 x 1.0 y 1.0 z 1.0\n"
        "set atom 2 x 1.0 y 1.0 z 1.0\npair_style",
        ["atoms 1 and 2 coincide (0 angstrom apart) at step 0", "delete_atoms overlap"],
    ),
}


@pytest.fixture(scope="module")
def bad_files(tiny_archive, tiny_archive64, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    content = tiny_archive.read_bytes()
    shutil.copy(tiny_archive64, folder / "float64.pt")
    for name, cutoff in (("few", 5.0), ("wide", 6.0)):
        config = StudentConfig(16, 1, 4, cutoff, elements=tuple("HCNO"))
        save_archive(build_archive(Student(config), config, name, {}), folder / f"{name}.pt")
    archive, members = load_archive(tiny_archive), read_members(tiny_archive)
    torch.jit.save(archive.module, str(folder / "bare.pt"))
    check = archive.metadata["self_check"]
    for name, change in (
        ("newer", {"format_version": archive.metadata["format_version"] + 1}),
        ("altered", {"self_check": check | {"energy": check["energy"] + 0.01}}),
        ("exchanged", {"weights_sha256": "0" * 64}),
        ("cutoff", {"cutoff": 6.0}),
    ):
        metadata = json.dumps(archive.metadata | change).encode()
        (folder / f"{name}.pt").write_bytes(write_members(members | {METADATA: metadata}))
    old = json.dumps(archive.metadata | {"format_version": 2}).encode()
    old_members = {name: data for name, data in members.items() if name != WEIGHTS}
    (folder / "old.pt").write_bytes(write_members(old_members | {METADATA: old}))
    members["code/__torch__/f.py"] = b"def f(x: int=torch.seed()) -> int:\n  return x\n"
    (folder / "strange.pt").write_bytes(write_members(members))
    (folder / "truncated.pt").write_bytes(content[: len(content) // 2])
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(folder / "foreign.pt"))
    return folder


@pytest.mark.parametrize("case", REFUSALS)
def test_refusal(case, structures, tiny_archive, bad_files, tmp_path):
    """An error of LAMMPS that says what was found and what to do."""
    old, new, words = REFUSALS[case]
    write_data(structures["triclinic"], tmp_path / "point.data")
    script = SCRIPT.format(archive="MODEL", elements="C H O")
    assert script.count(old) >= 1
    script = script.replace(old, new, 1).replace("MODEL", str(tiny_archive))
    for path in bad_files.iterdir():
        script = script.replace(f" {path.name}", f" {path}")
    with pytest.raises(StudentError) as refusal:
        run_lmp(script + "run 0\n", tmp_path, "refused")
    for word in words:
        assert word in str(refusal.value)


def test_native_backend_does_not_read_code(structures, tiny_archive, bad_files, tmp_path):
    """It takes numbers alone from an archive, so that the code of a stranger changes nothing."""
    atoms = structures["triclinic"]
    energies = [
        single_point(atoms, archive, tmp_path).energy
        for archive in (tiny_archive, bad_files / "strange.pt")
    ]
    assert energies[0] == energies[1]


def test_portable_backend_is_for_one_rank(structures, tiny_archive, tiny_archive64, tmp_path):
    """Asked for, or taken because of the archive."""
    write_data(structures["water_box"], tmp_path / "point.data")
    script = SCRIPT.format(archive=tiny_archive, elements="H O")
    portable = script.replace("mlff_student", "mlff_student backend portable", 1)
    with pytest.raises(StudentError, match=r"portable runs on one MPI rank, found 2; use backend"):
        run_lmp(portable, tmp_path, "ranks", ranks=2)
    double = SCRIPT.format(archive=tiny_archive64, elements="H O")
    with pytest.raises(StudentError, match=r"random_tiny in float64\) runs on one MPI rank"):
        run_lmp(double, tmp_path, "ranks", ranks=2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_portable_backend_without_a_device(structures, tiny_archive, tmp_path):
    """Torch is asked for its devices, since the native kernels have none."""
    write_data(structures["water_box"], tmp_path / "point.data")
    script = SCRIPT.format(archive=tiny_archive, elements="H O")
    script = script.replace("mlff_student", "mlff_student device cuda", 1)
    with pytest.raises(StudentError, match=r"torch finds no CUDA device"):
        run_lmp(script, tmp_path, "cuda")


def test_log_says_what_runs_and_why(structures, tiny_archive, tiny_archive64, tmp_path):
    write_data(structures["water_box"], tmp_path / "point.data")
    model = "mlff_student: model random_tiny, 76097 parameters"
    script = SCRIPT.format(archive=tiny_archive, elements="H O")
    log = run_lmp(script, tmp_path, "auto", ranks=2)
    assert re.search(
        rf"{model}, float32, backend native on \w+ \(auto: float32 on the CPU\), 2 MPI", log
    )
    assert "2 MPI rank(s) with 1 thread(s), cutoff 5 angstrom, teacher random numbers" in log
    log = run_lmp(script.replace("mlff_student", "mlff_student threads 2", 1), tmp_path, "threads")
    assert "1 MPI rank(s) with 2 thread(s)" in log
    log = run_lmp(SCRIPT.format(archive=tiny_archive64, elements="H O"), tmp_path, "double")
    assert f"{model}, float64, backend portable on cpu (auto: native kernels compute in" in log


def test_plugin_is_found_by_a_bare_lmp(structures, tiny_archive, tmp_path):
    """`eval $(mlff-student lammps-env)`, then lmp as anyone calls it."""
    assert plugin_path().name.endswith("plugin.so")
    write_data(structures["water_box"], tmp_path / "point.data")
    script = SCRIPT.format(archive=tiny_archive, elements="H O")
    (tmp_path / "in.bare").write_text(script + "run 0\n")
    environment = {k: v for k, v in os.environ.items() if k != "LAMMPS_PLUGIN_PATH"}
    environment["PATH"] = f"{PROGRAMS}:{environment['PATH']}"
    result = subprocess.run(
        ["sh", "-c", "eval $(mlff-student lammps-env) && lmp -in in.bare"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "mlff_student: model random_tiny, 76097 parameters, float32" in result.stdout


@pytest.mark.parametrize("ranks", [1, 2])
def test_table_of_a_run(ranks, structures, tiny_archive, tmp_path):
    """The stages add up to the pair time; a ghost costs 32 F (L - 1) bytes, wherever it is from."""
    write_data(structures["triclinic"], tmp_path / "point.data")
    script = SCRIPT.format(archive=tiny_archive, elements="C H O")
    script += "fix motion all nve\ntimestep 0.0001\nneigh_modify exclude none\nrun 20\n"
    log = run_lmp(script, tmp_path, "table", ranks=ranks)
    average = {
        name: float(value)
        for name, value in re.findall(r"^(\w+) +\|[^|\n]*\| *([\d.e+-]+) *\|", log, re.MULTILINE)
    }
    stages = sum(average[name] for name in ("Edges", "Model", "Exchange", "Tally"))
    # LAMMPS's clock covers the call of the pair style and the clearing of forces before it.
    assert 0.8 * average["Pair"] < stages < 1.01 * average["Pair"]
    swaps, swapped, messages, sent = map(
        float,
        re.search(
            r"(\S+) swaps of (\S+) bytes in all, of these (\S+) messages of (\S+) bytes", log
        ).groups(),
    )
    ghosts = float(re.search(r"^Nghost: +(\S+) ave", log, re.MULTILINE).group(1))
    channels, layers = 64, 2  # of tiny
    assert swapped == pytest.approx(32 * channels * (layers - 1) * ghosts, rel=1e-3)
    if ranks == 1:
        assert messages == sent == 0.0
    else:
        # One direction of three is shared, and its ghosts include none of the others'.
        assert 0.0 < sent < swapped and 0.0 < messages < swaps
    held = float(re.search(r"^Per MPI rank memory .* = .* \| (\S+) Mbytes", log, re.M).group(1))
    # Of every node the features of three depths and their gradients: 5 x 4 F float32 at least.
    assert 1e6 * held > 5 * 4 * channels * 4 * ghosts


def test_beside_the_python_kernels(structures, tiny_archive, tmp_path):
    """The `lammps` module in a process that has loaded the native kernels for ASE."""
    pytest.importorskip("vesin")
    write_data(structures["triclinic"], tmp_path / "point.data")
    script = SCRIPT.format(archive=tiny_archive, elements="C H O")
    (tmp_path / "in.point").write_text(script.replace("point.data", str(tmp_path / "point.data")))
    program = f"""
from mlff_student.archive.backends import evaluator
from mlff_student.archive.registry import archive_of
evaluator(archive_of("tiny"), "native")
from lammps import lammps
lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
lmp.file({str(tmp_path / "in.point")!r})
lmp.command("run 0")
print(lmp.get_thermo("pe"))
"""
    mpi = next(path for path in files("mpich") if path.name == "libmpi.so").locate()
    found = subprocess.run(
        [sys.executable, "-c", program],
        env=lammps_environment() | {"LD_LIBRARY_PATH": str(Path(mpi).resolve().parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    atoms = structures["triclinic"]
    expected = single_point(atoms, tiny_archive, tmp_path).energy
    assert float(found.stdout.split()[-1]) == pytest.approx(expected, abs=1e-6 * len(atoms))


ENDLESS = """
units lj
lattice fcc 0.8
region box block 0 4 0 4 0 4
create_box 1 box
create_atoms 1 box
mass 1 1.0
pair_style zero 1.0
pair_coeff * *
fix motion all nve
run 100000000
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_run_is_not_the_fault_of_the_model(number, tmp_path):
    """A run that want of memory or a person ended says nothing of its force field."""

    def kill() -> None:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                here = (process / "cwd").resolve() == tmp_path.resolve()
                is_engine = (process / "exe").resolve().name == "lmp"
            except OSError:  # ended meanwhile, or another's
                continue
            if here and is_engine and (tmp_path / "log.endless").exists():
                os.kill(int(process.name), number)

    with pytest.raises(InterruptedRunError, match="killed"):
        run_lmp(ENDLESS, tmp_path, "endless", kill)
