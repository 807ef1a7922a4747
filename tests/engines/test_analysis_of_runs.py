"""Logs and trajectories that OpenMM and LAMMPS write, read and judged."""

import subprocess
from pathlib import Path
from string import Template

import mdtraj
import numpy as np
import openmm
import pytest
from ase import units
from ase.build import bulk, molecule
from ase.io import read, write
from mdtraj.reporters import HDF5Reporter
from openmm import app, unit
from trajectory_files import everything, failures

from mlff_student.analysis import analyze, read_thermo
from mlff_student.analysis.ensemble import AMU_ANGSTROM2_PER_PS2
from mlff_student.core.errors import InputError
from mlff_student.core.units import KB, KJ_PER_MOL
from mlff_student.engines.lammps.plugin import lammps_executable
from mlff_student.structures.checks import perceive_bonds
from mlff_student.structures.reading import Structure, make_topology, write_topology

# --- OpenMM ---------------------------------------------------------------------------------------


ETHANOL = molecule("CH3CH2OH")
ROWS = 300


def run_openmm(folder: Path, integrator: openmm.Integrator) -> None:
    """Ethanol as a network of springs, 300 rows and frames 2 fs apart, in all its files."""
    structure = Structure(ETHANOL, make_topology(ETHANOL, perceive_bonds(ETHANOL)))
    write_topology(structure, folder / "top.pdb")
    system = openmm.System()
    springs = openmm.HarmonicBondForce()
    for mass in ETHANOL.get_masses():
        system.addParticle(mass)
    for i in range(9):
        for j in range(i):
            springs.addBond(i, j, ETHANOL.get_distance(i, j) / 10.0, 30_000.0)
    system.addForce(springs)
    topology = app.PDBFile(str(folder / "top.pdb")).topology
    platform = openmm.Platform.getPlatform("Reference")
    simulation = app.Simulation(topology, system, integrator, platform)
    simulation.context.setPositions(ETHANOL.positions * unit.angstrom)
    simulation.context.setVelocitiesToTemperature(600 * unit.kelvin, 1)
    every = dict.fromkeys(("time", "potentialEnergy", "kineticEnergy", "totalEnergy"), True)
    for name, options in {
        "all.csv": {"step": True, "temperature": True, "progress": True, "totalSteps": 1200}
        | every,
        "tabs.csv": {"time": True, "potentialEnergy": True, "kineticEnergy": True}
        | {"temperature": True, "separator": "\t"},
        "steps.csv": {"step": True, "potentialEnergy": True, "totalEnergy": True},
        "no_total.csv": {"time": True, "potentialEnergy": True, "temperature": True},
    }.items():
        simulation.reporters.append(app.StateDataReporter(str(folder / name), 4, **options))
    simulation.reporters += [
        app.DCDReporter(str(folder / "run.dcd"), 4),
        app.XTCReporter(str(folder / "run.xtc"), 4),
        HDF5Reporter(str(folder / "run.h5"), 4, velocities=True),
    ]
    simulation.step(4 * ROWS)
    simulation.reporters[-1].close()
    converted = mdtraj.load(str(folder / "run.h5"))
    converted.save_trr(str(folder / "run.trr"))
    converted.save_netcdf(str(folder / "run.nc"))
    converted.save_xyz(str(folder / "run.xyz"))


@pytest.fixture(scope="module")
def openmm_nve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("openmm")
    run_openmm(folder, openmm.VerletIntegrator(0.5 * unit.femtosecond))
    return folder


def test_logs_of_openmm_agree_whichever_columns_they_have(openmm_nve: Path) -> None:
    full = read_thermo(openmm_nve / "all.csv")
    lines = (openmm_nve / "all.csv").read_text().splitlines()
    names = lines[0].lstrip("#").replace('"', "").split(",")
    last = dict(zip(names, lines[-1].split(","), strict=True))
    assert full.total_ev[-1] == pytest.approx(float(last["Total Energy (kJ/mole)"]) * KJ_PER_MOL)
    assert full.time_ps[-1] == pytest.approx(0.002 * ROWS)
    np.testing.assert_allclose(full.potential_ev + full.kinetic_ev, full.total_ev)
    # OpenMM has 3N degrees of freedom where no CMMotionRemover takes three.
    np.testing.assert_allclose(full.kinetic_ev, 0.5 * 27 * KB * full.temperature_k, rtol=1e-5)

    tabs = read_thermo(openmm_nve / "tabs.csv")
    np.testing.assert_allclose(tabs.total_ev, full.total_ev, atol=1e-9)
    steps = read_thermo(openmm_nve / "steps.csv", timestep_fs=0.5, degrees_of_freedom=27)
    for ours, theirs in zip(steps[:5], full[:5], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("steps.csv", {"degrees_of_freedom": 27}, "time_ps.*--timestep-fs"),
        ("steps.csv", {"timestep_fs": 0.5}, "temperature_k"),
        ("no_total.csv", {"degrees_of_freedom": 27}, "kinetic_ev, total_ev"),
    ],
)
def test_what_a_log_does_not_tell_is_not_made_up(
    openmm_nve: Path, name: str, options: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_thermo(openmm_nve / name, **options)


@pytest.mark.parametrize(
    ("suffix", "tolerance"),  # angstrom: single precision, XTC's thousandth of a nm, text
    [("dcd", 1e-5), ("trr", 1e-5), ("nc", 1e-5), ("xtc", 6e-3), ("xyz", 2e-3)],
)
def test_all_formats_hold_the_same_frames(openmm_nve: Path, suffix: str, tolerance: float) -> None:
    reference = everything(openmm_nve / "run.h5", openmm_nve / "top.pdb")
    found = everything(openmm_nve / f"run.{suffix}", openmm_nve / "top.pdb", chunk=7)
    np.testing.assert_allclose(found.positions, reference.positions, atol=tolerance)
    assert found.cells is None
    if suffix in ("trr", "nc", "xtc"):
        np.testing.assert_allclose(found.time_ps, 0.002 * np.arange(1, ROWS + 1), rtol=1e-4)


def test_velocities_of_hdf5_have_the_kinetic_energy_in_the_log(openmm_nve: Path) -> None:
    frames = everything(openmm_nve / "run.h5", openmm_nve / "top.pdb")
    kinetic = 0.5 * AMU_ANGSTROM2_PER_PS2 * (frames.velocities**2).sum(2) @ ETHANOL.get_masses()
    thermo = read_thermo(openmm_nve / "all.csv")
    # The log's is of the full step, the file's velocities are of the half step before.
    assert kinetic.mean() == pytest.approx(thermo.kinetic_ev.mean(), rel=0.02)


def test_run_of_openmm_passes_and_with_a_thermostat_fails(openmm_nve: Path, tmp_path: Path) -> None:
    files = (openmm_nve / "run.dcd", openmm_nve / "top.pdb", openmm_nve / "all.csv")
    assert failures(analyze(*files, degrees_of_freedom=27).as_record()) == set()
    bath = openmm.LangevinMiddleIntegrator(300, 5.0, 0.5 * unit.femtosecond)
    bath.setRandomNumberSeed(1)
    run_openmm(tmp_path, bath)
    record = analyze(tmp_path / "run.dcd", tmp_path / "top.pdb", tmp_path / "all.csv").as_record()
    assert "exchange_ratio" in failures(record)
    as_nvt = analyze(
        tmp_path / "run.dcd",
        tmp_path / "top.pdb",
        tmp_path / "all.csv",
        ensemble="nvt",
        temperature_K=300.0,
    ).as_record()
    assert not {"exchange_ratio", "drift_mev_per_atom_ps"} & set(as_nvt)


@pytest.mark.parametrize(
    ("temperature", "message"),
    [
        (None, "needs the temperature of the thermostat: give --temperature-K"),
        (-300.0, "must be positive"),
    ],
)
def test_thermostat_without_a_temperature_is_refused(
    openmm_nve: Path, temperature: float | None, message: str
) -> None:
    files = (openmm_nve / "run.dcd", openmm_nve / "top.pdb", openmm_nve / "all.csv")
    with pytest.raises(InputError, match=message):
        analyze(*files, ensemble="nvt", temperature_K=temperature)


def test_trajectory_of_another_spacing_is_refused(openmm_nve: Path, tmp_path: Path) -> None:
    slow = mdtraj.load(str(openmm_nve / "run.h5"))
    slow.time = 2.0 * slow.time
    slow.save_xtc(str(tmp_path / "slow.xtc"))
    with pytest.raises(InputError, match=r"frame every 0.004 ps, but by the rows .* 0.002 ps"):
        analyze(tmp_path / "slow.xtc", openmm_nve / "top.pdb", openmm_nve / "all.csv")


# --- LAMMPS ---------------------------------------------------------------------------------------


ARGON = bulk("Ar", cubic=True, a=5.3).repeat(3)
INPUT = Template("""\
units           $units
atom_style      atomic
lattice         fcc $a
region          box block 0 3 0 3 0 3
create_box      1 box
create_atoms    1 box
mass            1 39.948
pair_style      lj/cut 7.0
pair_modify     shift yes
pair_coeff      1 1 $epsilon 3.4
velocity        all create 40.0 $seed loop geom
timestep        $timestep
minimize        0.0 0.0 3 3
$fixes
run             400
reset_timestep  0
thermo_style    $style
thermo_modify   format float %.12g
thermo          5
dump            a all custom 10 run.dump id type x y z vx vy vz
dump            b all custom 10 scaled.dump id element xs ys zs fx fy fz
dump_modify     b element Ar units yes time yes
dump            c all dcd 10 run.dcd
run             100
""")
CUSTOM = "custom step pe ke etotal temp vol density"


def run_lammps(
    folder: Path, *, style: str = CUSTOM, units_style: str = "metal", a: float = 5.3,
    seed: int = 1, fixes: str = "fix 1 all nve",
) -> Path:  # fmt: skip
    kcal = units.kcal / units.mol
    epsilon, timestep = (0.0103, 0.002) if units_style == "metal" else (0.0103 / kcal, 2.0)
    text = INPUT.substitute(
        units=units_style, a=a, epsilon=epsilon, timestep=timestep, style=style, seed=seed,
        fixes=fixes,
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "in").write_text(text)
    subprocess.run([lammps_executable(), "-in", "in"], cwd=folder, check=True, capture_output=True)
    crystal = ARGON.copy()
    crystal.set_cell(crystal.cell * (a / 5.3), scale_atoms=True)
    write(folder / "top.extxyz", crystal)
    return folder


@pytest.fixture(scope="module")
def lammps_nve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_lammps(tmp_path_factory.mktemp("lammps") / "metal")


@pytest.mark.parametrize("style", ["one", "multi", "yaml", CUSTOM, "custom time etotal pe temp"])
def test_logs_of_lammps_agree_whichever_style_they_have(
    lammps_nve: Path, tmp_path: Path, style: str
) -> None:
    """The log begins with a minimisation; the last run counts."""
    reference = read_thermo(lammps_nve / "log.lammps")
    log = run_lammps(tmp_path / "run", style=style) / "log.lammps"
    thermo = read_thermo(log, degrees_of_freedom=3 * len(ARGON) - 3)
    np.testing.assert_allclose(thermo.time_ps, 0.01 * np.arange(21), atol=1e-9)
    for ours, theirs in zip(thermo[1:5], reference[1:5], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert reference.volume_angstrom3 == pytest.approx(15.9**3)
    # A killed run's log: half a line at the end.
    whole = log.read_text()
    log.write_text(whole[: whole.index("Loop time", whole.index("reset_timestep")) - 12])
    assert len(read_thermo(log, degrees_of_freedom=321).time_ps) in (19, 20)


def test_single_point_at_the_end_of_a_log_is_left_out(lammps_nve: Path, tmp_path: Path) -> None:
    text = (lammps_nve / "log.lammps").read_text()
    last = text[text.rindex("Per MPI rank memory") :].splitlines(keepends=True)
    log = tmp_path / "log.lammps"
    log.write_text(text + "".join([*last[:3], "Loop time of 0 on 1 procs for 0 steps\n"]))
    whole = read_thermo(lammps_nve / "log.lammps")
    np.testing.assert_array_equal(np.stack(read_thermo(log)[:5]), np.stack(whole[:5]))


def test_real_units_are_the_same_run(lammps_nve: Path, tmp_path: Path) -> None:
    real = run_lammps(tmp_path / "real", units_style="real")
    logs = [read_thermo(folder / "log.lammps") for folder in (lammps_nve, real)]
    # LAMMPS's constants differ between its unit styles in the seventh digit.
    np.testing.assert_allclose(logs[1].total_ev, logs[0].total_ev, rtol=1e-5)
    np.testing.assert_allclose(logs[1].kinetic_ev, logs[0].kinetic_ev, rtol=1e-3)
    np.testing.assert_allclose(logs[1].time_ps, logs[0].time_ps, atol=1e-9)
    metal = everything(lammps_nve / "run.dump", lammps_nve / "top.extxyz")
    found = everything(real / "run.dump", lammps_nve / "top.extxyz", lammps_units="real")
    np.testing.assert_allclose(found.velocities, metal.velocities, atol=2e-3)
    # The other dump says its units itself.
    metal = everything(lammps_nve / "scaled.dump", lammps_nve / "top.extxyz")
    found = everything(real / "scaled.dump", lammps_nve / "top.extxyz")
    assert np.abs(metal.forces).max() > 0.01
    np.testing.assert_allclose(found.forces, metal.forces, atol=1e-4)


def test_other_units_than_the_logs_are_refused(lammps_nve: Path) -> None:
    with pytest.raises(InputError, match="is in units metal, but --units is real"):
        read_thermo(lammps_nve / "log.lammps", lammps_units="real")


def test_yaml_by_itself_needs_units_and_timestep(tmp_path: Path) -> None:
    text = (run_lammps(tmp_path / "run", style="yaml") / "log.lammps").read_text()
    block = text[text.rindex("---\nkeywords") : text.rindex("...") + 4]
    path = tmp_path / "thermo.yaml"
    path.write_text(block)
    with pytest.raises(
        InputError, match="units are not in the file; give the option --units metal or real"
    ):
        read_thermo(path)
    with pytest.raises(InputError, match="--timestep-fs"):
        read_thermo(path, lammps_units="metal")
    thermo = read_thermo(path, lammps_units="metal", timestep_fs=2.0)
    assert thermo.time_ps[-1] == pytest.approx(0.2)
    with pytest.raises(InputError, match="units are lj"):
        read_thermo(path, lammps_units="lj")


def test_dumps_are_whole_sorted_and_in_the_logs_units(lammps_nve: Path) -> None:
    dump = everything(lammps_nve / "run.dump", lammps_nve / "top.extxyz", chunk=3)
    kinetic = 0.5 * AMU_ANGSTROM2_PER_PS2 * 39.948 * (dump.velocities**2).sum(axis=(1, 2))
    thermo = read_thermo(lammps_nve / "log.lammps")
    np.testing.assert_allclose(kinetic, thermo.kinetic_ev[::2], rtol=1e-4)  # six digits
    np.testing.assert_allclose(dump.cells, np.tile(np.eye(3) * 15.9, (11, 1, 1)))
    for other in ("scaled.dump", "run.dcd"):
        frames = everything(lammps_nve / other, lammps_nve / "top.extxyz")
        shift = (frames.positions - dump.positions) / 15.9
        assert np.abs(shift - np.round(shift)).max() * 15.9 < 2e-3


def test_run_of_lammps_passes_and_with_a_thermostat_fails(lammps_nve: Path, tmp_path: Path) -> None:
    record = analyze(
        lammps_nve / "run.dump", lammps_nve / "top.extxyz", lammps_nve / "log.lammps"
    ).as_record()
    assert failures(record) == set()
    assert record["temperature_Ar_k"] == pytest.approx(record["temperature_k"], rel=0.01)
    bath = run_lammps(
        tmp_path / "bath", fixes="fix 1 all nve\nfix 2 all langevin 40 40 0.05 7 zero yes"
    )
    record = analyze(bath / "run.dcd", bath / "top.extxyz", bath / "log.lammps").as_record()
    assert "exchange_ratio" in failures(record)


def test_log_of_another_run_of_lammps_is_refused(lammps_nve: Path, tmp_path: Path) -> None:
    other = run_lammps(tmp_path / "seed", seed=2)
    with pytest.raises(InputError, match=r"kinetic energy of the frames .* different runs"):
        analyze(lammps_nve / "run.dump", lammps_nve / "top.extxyz", other / "log.lammps")
    # A DCD file has no velocities, but a cell.
    larger = run_lammps(tmp_path / "larger", a=5.35)
    with pytest.raises(InputError, match=r"4019.* 4134.*: they are of different runs"):
        analyze(lammps_nve / "run.dcd", lammps_nve / "top.extxyz", larger / "log.lammps")


def test_elements_in_a_trajectory_are_held_against_the_topology(
    lammps_nve: Path, tmp_path: Path
) -> None:
    crystal = read(lammps_nve / "top.extxyz")
    crystal.numbers[5] = 36
    write(tmp_path / "other.extxyz", crystal)
    with pytest.raises(InputError, match="atom 5 is Ar, the topology says Kr"):
        everything(lammps_nve / "scaled.dump", tmp_path / "other.extxyz")
    with pytest.raises(InputError, match="108 atoms, the topology has 107"):
        write(tmp_path / "fewer.extxyz", crystal[1:])
        everything(lammps_nve / "scaled.dump", tmp_path / "fewer.extxyz")


def test_pressure_changes_density(tmp_path: Path) -> None:
    box = run_lammps(tmp_path / "npt", fixes="fix 1 all npt temp 40 40 0.1 iso 1 1 1.0")
    files = (box / "run.dcd", box / "top.extxyz", box / "log.lammps")
    record = analyze(*files, ensemble="npt", temperature_K=40.0).as_record()
    thermo = read_thermo(files[2])
    assert record["density_g_per_cm3"] == pytest.approx(thermo.density_g_per_cm3.mean(), rel=1e-3)
    sign = np.sign(thermo.density_g_per_cm3[-1] - thermo.density_g_per_cm3[0])
    assert np.sign(record["density_drift_percent_per_ns"]) == sign
