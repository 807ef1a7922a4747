"""What `lammps-input` writes, run by the real lmp: every script of lammps/ in both unit systems."""

import re
import subprocess
import sys
from pathlib import Path

import mdtraj
import numpy as np
import pytest
from ase import Atoms, units
from ase.io import read, write

from mlff_student.archive.export import export
from mlff_student.archive.registry import checkpoint_path
from mlff_student.core.errors import InputError
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.engines.lammps.input import templates, write_lammps_input
from mlff_student.engines.lammps.run import run_lmp
from mlff_student.structures.reading import read_frame

EV = {"metal": 1.0, "real": units.mol / units.kcal}  # in the unit of the log


@pytest.fixture(scope="module")
def shipped_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that was trained: its molecules hold together."""
    path = tmp_path_factory.mktemp("shipped") / "tiny.pt"
    export(checkpoint_path("tiny"), path, verify=False)
    return path


def run(atoms: Atoms, archive: Path, ensemble: str, folder: Path, ranks: int = 1, **options):
    """Columns of the log's tables, by heading, all runs one after another."""
    variables = {key: str(value) for key, value in options.pop("variables", {}).items()}
    written = write_lammps_input(
        atoms, str(archive), ensemble, folder, variables=variables, **options
    )
    log = run_lmp(written.script.read_text(), folder, ensemble, ranks=ranks)
    tables = re.findall(r"^ +(Step .*)\n((?: +[-+.\de ]+\n)+)", log, re.MULTILINE)
    head = tables[0][0].split()
    rows = np.array([line.split() for _, body in tables for line in body.splitlines()], float)
    return dict(zip(head, rows.T, strict=True))


def test_every_script_is_there():
    assert list(templates()) == ["melt", "minimise", "npt", "nve", "nvt", "tip3p"]


@pytest.mark.parametrize("system", ["metal", "real"])
def test_nve(system, structures, shipped_archive, tmp_path):
    """Energy is kept, and is that of ASE in the unit of the run."""
    atoms = structures["ethanol"]
    table = run(
        atoms, shipped_archive, "nve", tmp_path, units=system, variables={"steps": 200, "every": 20}
    )
    atoms.calc = StudentForceFieldCalculator(shipped_archive)
    assert table["PotEng"][0] == pytest.approx(EV[system] * atoms.get_potential_energy(), rel=1e-7)
    assert table["Time"][-1] == pytest.approx(100.0 if system == "real" else 0.1)  # fs, ps
    # At 0.5 fs velocity Verlet lets the energy of nine atoms swing by some meV.
    assert np.ptp(table["TotEng"]) < 0.05 * EV[system]
    frames = read(tmp_path / "trajectory.extxyz", ":")
    assert len(frames) == 11 and sorted(frames[-1].symbols) == sorted(atoms.symbols)


@pytest.mark.parametrize("system", ["metal", "real"])
def test_nvt(system, structures, shipped_archive, tmp_path):
    atoms = structures["triclinic"]
    table = run(
        atoms,
        shipped_archive,
        "nvt",
        tmp_path,
        units=system,
        variables={"steps": 400, "every": 10, "temperature": 500, "friction": 50},
    )
    # 36 atoms fluctuate by 14 %; 20 values that follow the bath's 20 fs scatter by 4 % about 500 K.
    assert table["Temp"][20:].mean() == pytest.approx(500.0, rel=0.2)


def test_npt(structures, shipped_archive, tmp_path):
    """A pressure in bar squeezes the box alike in both unit systems, on one rank and on two."""
    settings = {"steps": 100, "every": 50, "temperature": 1}
    settings |= {"coupling": "tri", "pressure": 20000, "pdamp": 100}
    tables = [
        run(
            structures["triclinic"],
            shipped_archive,
            "npt",
            tmp_path / system,
            ranks=ranks,
            units=system,
            variables=settings,
        )
        for system, ranks in (("metal", 1), ("real", 2))
    ]
    for key in ("Volume", "Density"):
        first, second = (table[key] for table in tables)
        # Both unit systems round their own constants: six digits.
        np.testing.assert_allclose(first, second, rtol=1e-4)
        assert abs(first[-1] / first[0] - 1.0) > 1e-3


@pytest.mark.parametrize("system", ["metal", "real"])
def test_minimise(system, structures, shipped_archive, tmp_path):
    """Down to the force that was asked for, in ASE's judgement."""
    atoms = structures["water"]
    table = run(
        atoms,
        shipped_archive,
        "minimise",
        tmp_path,
        units=system,
        variables={"force": 0.01, "every": 1},
    )
    assert (np.diff(table["PotEng"]) <= 0.0).all() and table["PotEng"][-1] < table["PotEng"][0]
    last = read(tmp_path / "final.extxyz")
    found = Atoms(last.symbols, last.positions)
    found.calc = StudentForceFieldCalculator(shipped_archive)
    # The file has six digits after the point: 1e-6 angstrom times 50 eV/angstrom^2 of a bond.
    assert np.linalg.norm(found.get_forces()) < 0.01 + 5e-4


def test_minimise_the_box(structures, shipped_archive, tmp_path):
    atoms = structures["triclinic"]
    table = run(
        atoms,
        shipped_archive,
        "minimise",
        tmp_path,
        variables={"relax": "tri", "steps": 150, "every": 10},
    )
    half = len(table["Press"]) // 2  # the pressure changes its sign from line search to line search
    assert abs(table["Press"][half:].mean()) < 0.1 * abs(table["Press"][0])
    assert table["PotEng"][-1] < table["PotEng"][half] < table["PotEng"][0]


def test_melt(structures, shipped_archive, tmp_path):
    """From the lower temperature to the higher one, which is then held."""
    table = run(
        structures["triclinic"],
        shipped_archive,
        "melt",
        tmp_path,
        variables={"steps": 300, "hold": 300, "every": 10, "temperature": 50, "hot": 600}
        | {"tdamp": 20},
    )
    assert table["Temp"][:5].mean() < 150.0
    assert table["Temp"][-25:].mean() == pytest.approx(600.0, rel=0.25)  # 36 atoms, 0.12 ps
    assert table["c_msd[4]"][-1] > table["c_msd[4]"][1]


def test_velocities_and_cell_of_any_orientation(structures, tiny_archive, tmp_path):
    """A turned cell with velocities: energies are ASE's, and velocities turn with the cell."""
    atoms = structures["triclinic"]
    atoms.rotate(50.0, (1.0, 2.0, 3.0), rotate_cell=True)
    atoms.set_velocities(0.02 * np.random.default_rng(1).standard_normal((len(atoms), 3)))
    kinetic = atoms.get_kinetic_energy()
    atoms.calc = StudentForceFieldCalculator(tiny_archive)
    potential = atoms.get_potential_energy()
    for system in ("metal", "real"):
        folder = tmp_path / system
        table = run(atoms, tiny_archive, "nve", folder, units=system, variables={"steps": 0})
        # LAMMPS and ASE take their constants from different years: five digits.
        assert table["KinEng"][0] == pytest.approx(EV[system] * kinetic, rel=1e-4)
        error = 1e-6 * EV[system] * len(atoms)
        assert table["PotEng"][0] == pytest.approx(EV[system] * potential, abs=error)
        data = read(folder / "system.data", format="lammps-data", units=system)
        found = data.get_velocities() @ data.cell.array.T
        expected = atoms.get_velocities() @ atoms.cell.array.T
        np.testing.assert_allclose(found, expected, atol=1e-5 * abs(expected).max())


def test_command_reads_what_mdtraj_reads(structures, tiny_archive, tmp_path):
    """The last frame of a DCD with its PDB, by the command; lmp runs what it wrote."""
    atoms = structures["water_box"]
    write(tmp_path / "box.pdb", atoms)
    top = mdtraj.load(str(tmp_path / "box.pdb"))
    frames = mdtraj.join([top, top])
    frames.xyz[1] += 0.01
    frames.save_dcd(str(tmp_path / "run.dcd"))
    command = [
        sys.executable, "-m", "mlff_student", "lammps-input", "run.dcd", "--top", "box.pdb",
        "--frame", "-1", "--ensemble", "npt", "--model", str(tiny_archive), "--units", "real",
        "--set", "steps=2", "--set", "temperature=250", "-o", "input",
    ]  # fmt: skip
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    log = run_lmp((tmp_path / "input/in.npt").read_text(), tmp_path / "input", "npt")
    assert re.search(r"^ +0 +0 +250 ", log, re.MULTILINE)
    found = read_frame(str(tmp_path / "run.dcd"), str(tmp_path / "box.pdb"), -1).atoms
    np.testing.assert_allclose(found.positions, 10.0 * frames.xyz[1], atol=1e-5)


@pytest.mark.parametrize(
    ("ensemble", "options", "words"),
    [
        ("npt", {}, "periodic along"),
        ("nvp", {}, "unknown key 'nvp'; did you mean 'n"),
        ("nve", {"units": "lj"}, "unknown units 'lj'; known: metal, real"),
        ("nve", {"variables": {"temprature": "1"}}, "did you mean 'temperature'"),
        ("nve", {"variables": {"steps": "many"}}, "steps must be a number, got 'many'"),
        ("nve", {"variables": {"data": "other.data"}}, "unknown key 'data'"),
        ("nve", {"variables": {"steps": "5\n"}}, r"steps must be a word, got '5\\n'"),
        ("npt", {"variables": {"coupling": 'iso" & shell'}}, "coupling must be a word"),
        ("nve", {"model": "huge"}, "no model 'huge'"),
    ],
)
def test_refusal_writes_nothing(ensemble, options, words, structures, tmp_path):
    options = {"model": "tiny"} | options
    model = options.pop("model")
    with pytest.raises(Exception, match=words) as refusal:
        write_lammps_input(structures["water"], model, ensemble, tmp_path / "run", **options)
    assert refusal.value.exit_status == 2
    assert not (tmp_path / "run").exists()


def test_masses_of_isotopes_are_refused(structures, tmp_path):
    """LAMMPS would take them for the element's."""
    heavy = structures["water"]
    heavy.set_masses([None, 2.014, None])
    with pytest.raises(InputError, match=r"atom 1 \(H\) has the mass 2.014, its element 1.008"):
        write_lammps_input(heavy, "tiny", "nve", tmp_path / "run")
    assert not (tmp_path / "run").exists()
