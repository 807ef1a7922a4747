"""The monitor: quiet on a good run, loud on each way in which a run goes wrong."""

import csv
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import openmm
import pytest
from ase import Atoms
from openmm import app, unit
from openmm_contexts import topology_of

from mlff_student.analysis.thermo import read_thermo
from mlff_student.archive.registry import available_models, read_card
from mlff_student.core.errors import InputError, RunStoppedError
from mlff_student.core.figures import Threshold, load_thresholds
from mlff_student.core.units import KB, KJ_PER_MOL, NM
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.engines.protocol import RunFolder
from mlff_student.reporting.verdict import Outcome
from mlff_student.validation.harness import judge_nve
from openmm_integration import Monitor, create_system, load_structure
from openmm_integration.run import ThermoReporter

TIMESTEP = 0.0005  # ps


@pytest.fixture(scope="module")
def ethanol() -> tuple[app.Topology, unit.Quantity]:
    """Topology, and positions at the student's minimum."""
    topology, positions = load_structure("CCO")
    simulation = simulation_of(topology, positions, openmm.VerletIntegrator(TIMESTEP))
    simulation.minimizeEnergy()
    return topology, simulation.context.getState(positions=True).getPositions(asNumpy=True)


def simulation_of(
    topology: app.Topology,
    positions: unit.Quantity,
    integrator: openmm.Integrator,
    *forces: openmm.Force,
    temperature_K: float = 300.0,
) -> app.Simulation:
    system = create_system(topology, "tiny")
    for force in forces:
        system.addForce(force)
    platform = openmm.Platform.getPlatformByName("Reference")
    simulation = app.Simulation(topology, system, integrator, platform)
    simulation.context.setPositions(positions)
    simulation.context.setVelocitiesToTemperature(temperature_K, 2)
    return simulation


def langevin(temperature_K: float = 300.0) -> openmm.Integrator:
    integrator = openmm.LangevinMiddleIntegrator(temperature_K, 20.0, TIMESTEP)
    integrator.setRandomNumberSeed(2)
    return integrator


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_good_run(ethanol, tmp_path, caplog):
    """Constant energy: nothing to say, a log that `analyze` reads, the newest state kept."""
    log, kept = tmp_path / "run.csv", tmp_path / "good.xml"
    simulation = simulation_of(*ethanol, langevin())
    simulation.step(2000)
    state = simulation.context.getState(positions=True, velocities=True)
    simulation = simulation_of(*ethanol, openmm.VerletIntegrator(TIMESTEP))
    simulation.context.setState(state)
    simulation.context.setTime(0.0)
    monitor = Monitor(*ethanol, "tiny", every=20, action="stop", csv=log, last_good=kept)
    simulation.reporters.append(monitor)
    with caplog.at_level(logging.WARNING):
        simulation.step(1000)
    assert not caplog.records
    thermo = read_thermo(log)
    np.testing.assert_allclose(thermo.time_ps, 0.01 * np.arange(1, 51), rtol=1e-9)
    assert 100.0 < thermo.temperature_k.mean() < 500.0
    rows = rows_of(log)
    assert all(row["failed"] == "" for row in rows)
    assert rows[8]["drift_mev_per_atom_ps"] == "" != rows[9]["drift_mev_per_atom_ps"]
    assert 0.0 < float(rows[-1]["bond_deviation_angstrom"]) < 0.3
    # It is the state of the last report: a run that goes on from it begins there.
    again = simulation_of(*ethanol, openmm.VerletIntegrator(TIMESTEP))
    again.loadState(str(kept))
    newest = simulation.context.getState(positions=True).getPositions(asNumpy=True)
    found = again.context.getState(positions=True).getPositions(asNumpy=True)
    np.testing.assert_array_equal(found, newest)
    assert {path.name for path in tmp_path.iterdir()} == {"run.csv", "good.xml"}


def test_log_of_a_run_that_goes_on(ethanol, tmp_path):
    """One header, and the rows of both stretches."""
    log = tmp_path / "run.csv"
    simulation = simulation_of(*ethanol, langevin())
    for append in (False, True):
        simulation.reporters[:] = [Monitor(*ethanol, "tiny", every=2, csv=log, append=append)]
        simulation.step(4)
    assert [row["step"] for row in rows_of(log)] == ["2", "4", "6", "8"]
    simulation.reporters[:] = [Monitor(*ethanol, "tiny", every=2, csv=log)]
    assert rows_of(log) == []


def test_broken_bond_stops_the_run(ethanol, tmp_path):
    """With its name, and the state before the break in the file."""
    topology, positions = ethanol
    pull = openmm.CustomBondForce("-8000*r")  # kJ/mol/nm: more than the C-C bond holds
    pull.addBond(0, 1)
    simulation = simulation_of(topology, positions, langevin(), pull)
    kept = tmp_path / "good.xml"
    simulation.reporters.append(
        Monitor(topology, positions, "tiny", every=5, action="stop", last_good=kept)
    )
    with pytest.raises(RunStoppedError, match="bond_deviation_angstrom") as stopped:
        simulation.step(2000)
    assert "MOL1-C1 MOL1-C2" in str(stopped.value)
    assert f"last good report was at step {simulation.currentStep - 5}" in str(stopped.value)
    assert stopped.value.exit_status == 1
    simulation.loadState(str(kept))
    kept_positions = simulation.context.getState(positions=True).getPositions(asNumpy=True)
    lengths = [
        np.linalg.norm((x[0] - x[1]).value_in_unit(unit.angstrom))
        for x in (kept_positions, positions)
    ]
    assert abs(lengths[0] - lengths[1]) < 0.5


def test_warnings_are_given_once(ethanol, tmp_path, caplog):
    """Each time a figure begins to fail; the rows of the log name it as long as it does."""
    simulation = simulation_of(*ethanol, langevin(3000.0), temperature_K=3000.0)
    log = tmp_path / "run.csv"
    # Bonds too go, at that temperature; here only the temperature is to.
    table = {
        name: replace(threshold, value=1e9) if name == "bond_deviation_angstrom" else threshold
        for name, threshold in load_thresholds().items()
    }
    simulation.reporters.append(
        Monitor(*ethanol, "tiny", every=5, csv=log, temperature_K=300.0, thresholds=table)
    )
    with caplog.at_level(logging.WARNING):
        simulation.step(50)
    rows = rows_of(log)
    failing = ["temperature_sigma" in row["failed"].split() for row in rows]
    begins = [now and not before for before, now in zip([False, *failing], failing, strict=False)]
    assert len(rows) == 10
    assert 0 < sum(begins) < sum(failing)
    warned = [record for record in caplog.records if "temperature_sigma" in record.message]
    assert len(warned) == sum(begins)


@pytest.mark.parametrize(("kelvin", "loud"), [(400.0, False), (8000.0, True)])
def test_hotter_than_any_training_data(kelvin, loud, ethanol, tmp_path):
    """Without a thermostat's temperature, what counts is the hottest of the training data."""
    simulation = simulation_of(*ethanol, langevin(kelvin), temperature_K=kelvin)
    log = tmp_path / "run.csv"
    simulation.reporters.append(Monitor(*ethanol, "tiny", every=2, csv=log))
    simulation.step(6)
    assert any("temperature_sigma" in row["failed"] for row in rows_of(log)) == loud


def heating() -> openmm.Integrator:
    """Velocities that grow by 1e-4 a step: some meV/atom/ps."""
    integrator = openmm.CustomIntegrator(TIMESTEP)
    for line in ("v=v+0.5*dt*f/m", "x=x+dt*v", "v=1.0001*(v+0.5*dt*f/m)"):
        integrator.addComputePerDof(line[0], line[2:])
    return integrator


@pytest.mark.parametrize(
    ("integrator", "steps", "outcome"),
    [
        (heating, 1000, Outcome.FAILED),
        (lambda: openmm.VerletIntegrator(TIMESTEP), 150, Outcome.NOT_RESOLVED),
        (lambda: openmm.VerletIntegrator(TIMESTEP), 4000, Outcome.PASSED),
    ],
    ids=["failed", "not resolved", "passed"],
)
def test_verdict_is_that_of_a_finished_run(integrator, steps, outcome, ethanol, tmp_path):
    """The files of the same run, judged as every command judges them."""
    run = RunFolder(tmp_path)
    simulation = simulation_of(*ethanol, integrator())
    monitor = Monitor(*ethanol, "tiny", every=10, csv=run.thermo, constant_energy=True)
    simulation.reporters += [monitor, app.DCDReporter(str(run.trajectory), 10)]
    simulation.step(steps)
    with run.topology.open("w") as file:
        app.PDBFile.writeFile(*ethanol, file)
    key = "drift_mev_per_atom_ps"
    (ours,) = [check for check in monitor.checks if check.key == key]
    (theirs,) = [check for check in judge_nve(run).checks if check.key == key]
    assert ours.outcome is theirs.outcome is outcome, (str(ours), str(theirs))
    assert ours.figure.value == pytest.approx(theirs.figure.value, rel=1e-4)
    assert ours.figure.standard_error == pytest.approx(theirs.figure.standard_error, rel=1e-4)
    failed = rows_of(run.thermo)[-1]["failed"]
    assert (failed == key) == (outcome is Outcome.FAILED)


def test_energy_that_drifts(ethanol, tmp_path):
    log = tmp_path / "run.csv"
    simulation = simulation_of(*ethanol, heating())
    simulation.reporters.append(Monitor(*ethanol, "tiny", every=10, csv=log, constant_energy=True))
    simulation.step(2000)
    last = rows_of(log)[-1]
    assert last["failed"] == "drift_mev_per_atom_ps"
    drift, error = (float(last[f"drift_{name}mev_per_atom_ps"]) for name in ("", "stderr_"))
    assert 3.0 < drift < 20.0 and 0.0 < error < 1.0


def test_drift_begins_anew_with_a_restored_state(ethanol, tmp_path):
    """What the run did in between, at 900 K, is forgotten."""
    log = tmp_path / "run.csv"
    simulation = simulation_of(*ethanol, openmm.VerletIntegrator(TIMESTEP))
    simulation.reporters.append(Monitor(*ethanol, "tiny", every=4, csv=log))
    simulation.step(60)
    simulation.saveState(str(tmp_path / "good.xml"))
    simulation.context.setVelocitiesToTemperature(900.0, 3)
    simulation.step(40)
    simulation.loadState(str(tmp_path / "good.xml"))
    simulation.step(60)
    errors = [row["drift_stderr_mev_per_atom_ps"] for row in rows_of(log)]
    assert len(errors) == 15 + 10 + 15
    assert [k for k, error in enumerate(errors) if error] == [*range(9, 25), *range(34, 40)]
    assert float(errors[-1]) < 0.1 * float(errors[24])


@pytest.mark.parametrize("action", ["warn", "stop"])
def test_nan_in_a_report(action, ethanol, tmp_path, caplog):
    """It has its row, is judged at once, and leaves the drift of what comes after alone."""
    log, kept = tmp_path / "run.csv", tmp_path / "good.xml"
    simulation = simulation_of(*ethanol, openmm.VerletIntegrator(TIMESTEP))
    simulation.reporters.append(
        Monitor(*ethanol, "tiny", every=1, csv=log, last_good=kept, action=action)
    )
    simulation.step(12)
    velocities = simulation.context.getState(velocities=True).getVelocities(asNumpy=True)._value
    velocities[8, 1] = np.nan
    simulation.context.setVelocities(velocities)
    if action == "stop":
        with pytest.raises(
            RunStoppedError, match=r"nonfinite_rows 1 .* good report was at step 12"
        ):
            simulation.step(1)
    else:
        simulation.step(1)
        assert "step 13: nonfinite_rows 1" in caplog.text or "; nonfinite_rows 1" in caplog.text
    row = rows_of(log)[-1]
    assert (row["step"], row["total_ev"], row["largest_force_atom"]) == ("13", "nan", "MOL1-H6")
    assert {"nonfinite_rows", "largest_force_ev_per_angstrom"} <= set(row["failed"].split())
    with pytest.raises(openmm.OpenMMException, match="NaN"):
        simulation.step(1)
    simulation.loadState(str(kept))
    simulation.step(12)
    rows = rows_of(log)
    assert [row["step"] for row in rows[12:]] == [str(step) for step in (13, *range(13, 25))]
    assert not any(row["failed"] for row in rows[13:])
    drifts = [float(row["drift_mev_per_atom_ps"] or "nan") for row in rows[13:]]
    assert np.isfinite(drifts).tolist() == [False] * 9 + [True] * 3


def test_limits_of_the_user_go_before_those_of_the_archive(ethanol, tmp_path):
    log = tmp_path / "run.csv"
    name = "largest_force_ev_per_angstrom"
    table = load_thresholds() | {name: Threshold(1e-6, "eV/angstrom", "none is allowed")}
    simulation = simulation_of(*ethanol, langevin())
    simulation.reporters.append(Monitor(*ethanol, "tiny", every=1, csv=log, thresholds=table))
    simulation.step(1)
    assert rows_of(log)[0]["failed"] == name


@pytest.mark.parametrize("periodic", [True, False])
def test_periodic_as_the_system_is(periodic, structures, tmp_path):
    """Not as the topology is: the largest force is that of the run."""
    box: Atoms = structures["water_box"]
    topology = topology_of(box)
    system = create_system(topology, "tiny", periodic=periodic)
    platform = openmm.Platform.getPlatformByName("Reference")
    simulation = app.Simulation(topology, system, openmm.VerletIntegrator(1e-9), platform)
    positions = box.positions / NM * unit.nanometer
    simulation.context.setPositions(positions)
    logs = {said: tmp_path / f"{said}.csv" for said in (None, True, False)}
    for said, log in logs.items():
        simulation.reporters.append(
            Monitor(topology, positions, "tiny", every=1, csv=log, periodic=said)
        )
    simulation.step(1)
    forces = simulation.context.getState(forces=True).getForces(asNumpy=True)._value
    expected = np.linalg.norm(forces, axis=1).max() * KJ_PER_MOL / NM
    found = {
        said: float(rows_of(log)[0]["largest_force_ev_per_angstrom"]) for said, log in logs.items()
    }
    assert found[None] == found[periodic] == pytest.approx(expected, rel=1e-5)
    assert abs(found[not periodic] / expected - 1.0) > 1e-3


@pytest.mark.parametrize("at_rest", [True, False])
def test_temperature_is_that_of_the_log(at_rest, ethanol, tmp_path):
    """Of `mlff-student md`: one run has one temperature, of 3N - 3 degrees of freedom where the
    centre of mass is at rest.
    """
    simulation = simulation_of(*ethanol, openmm.VerletIntegrator(TIMESTEP))
    if at_rest:
        masses = [simulation.system.getParticleMass(k)._value for k in range(9)]
        velocities = simulation.context.getState(velocities=True).getVelocities(asNumpy=True)._value
        simulation.context.setVelocities(velocities - np.average(velocities, 0, masses))
    log, thermo = tmp_path / "run.csv", tmp_path / "thermo.csv"
    simulation.reporters.append(Monitor(*ethanol, "tiny", every=2, csv=log))
    simulation.reporters.append(ThermoReporter(thermo, 2))
    simulation.step(8)
    rows = rows_of(log)
    assert [row["temperature_k"] for row in rows] == [
        row["temperature_k"] for row in rows_of(thermo)
    ]
    degrees = 3 * 9 - 3 * at_rest
    for row in rows:
        kelvin = 2.0 * float(row["kinetic_ev"]) / (degrees * KB)
        assert float(row["temperature_k"]) == pytest.approx(kelvin, rel=1e-9)


def test_no_drift_is_judged_where_energy_is_not_constant(ethanol, tmp_path):
    log = tmp_path / "run.csv"
    simulation = simulation_of(*ethanol, langevin())
    simulation.reporters.append(Monitor(*ethanol, "tiny", every=2, csv=log))
    simulation.step(30)
    assert {row["drift_mev_per_atom_ps"] for row in rows_of(log)} == {""}


def test_atoms_outside_the_domain_are_named(ethanol, tmp_path):
    """A molecule that is pressed together: forces that no training data have."""
    topology, positions = ethanol
    simulation = simulation_of(topology, positions * 0.68, openmm.VerletIntegrator(1e-7))
    log = tmp_path / "run.csv"
    simulation.reporters.append(Monitor(topology, positions, "tiny", every=1, csv=log))
    simulation.step(1)
    (row,) = rows_of(log)
    for figure in ("largest_force", "neighbourhood_excess"):
        assert any(name.startswith(figure) for name in row["failed"].split())
        assert row[f"{figure}_atom"].startswith("MOL1-")


def test_energies_that_the_student_squeezes_are_named(ethanol, tmp_path):
    """Atoms in a heap: to some heaps the network gives an energy that no atom has in training."""
    topology, positions = ethanol
    simulation = simulation_of(topology, positions, openmm.VerletIntegrator(1e-7))
    log = tmp_path / "run.csv"
    simulation.reporters.append(Monitor(topology, positions, "tiny", every=1, csv=log))
    rng = np.random.default_rng(0)
    for _ in range(60):
        heap = positions * 0.5 + rng.normal(0.0, 0.05, positions.shape) * unit.nanometer
        simulation.context.setPositions(heap)
        simulation.step(1)
    depths = np.array([float(row["network_depth_ev"]) for row in rows_of(log)])
    failed = ["network_depth_ev" in row["failed"].split() for row in rows_of(log)]
    assert list(depths > 3.0) == failed
    assert any(failed)
    assert not all(failed)
    assert rows_of(log)[depths.argmax()]["network_depth_atom"].startswith("MOL1-")


def test_neighbourhoods_unknown_to_the_student(ethanol, tmp_path):
    """A hydrogen that has gone far off: no force is large, and no atom of the training data is so
    alone.
    """
    topology, positions = ethanol
    far = np.array(positions.value_in_unit(unit.nanometer))
    far[8] += 5.0
    log = tmp_path / "run.csv"
    simulation = simulation_of(topology, far, openmm.VerletIntegrator(1e-7))
    simulation.reporters.append(Monitor(topology, positions, "tiny", every=1, csv=log))
    simulation.step(1)
    (row,) = rows_of(log)
    assert "neighbourhood_excess" in row["failed"].split()
    assert row["neighbourhood_excess_atom"] == "MOL1-H6"
    # It misses the one neighbour within 2 angstrom, and more beyond.
    assert 0.9 < float(row["neighbourhood_excess"]) <= 2.0
    assert "largest_force_ev_per_angstrom" not in row["failed"]


def test_nan_between_reports(ethanol, tmp_path):
    """The student refuses it before a report; the last good state is from before."""
    topology, positions = ethanol
    kept = tmp_path / "good.xml"
    simulation = simulation_of(topology, positions, langevin())
    simulation.reporters.append(Monitor(topology, positions, "tiny", every=1, last_good=kept))
    simulation.step(3)
    before = kept.read_bytes()
    broken = np.array(positions.value_in_unit(unit.nanometer))
    broken[4, 1] = np.nan
    simulation.context.setPositions(broken)
    with pytest.raises(openmm.OpenMMException, match="NaN"):
        simulation.step(1)
    assert kept.read_bytes() == before


class Off(StudentForceFieldCalculator):
    """The student, with forces that are wrong by 1 eV/angstrom in each component."""

    def calculate(self, *args, **kwargs) -> None:
        super().calculate(*args, **kwargs)
        self.results["forces"] = self.results["forces"] + 1.0


@pytest.mark.parametrize("error", [0.0, 1.0])
def test_comparison_with_a_teacher(error, ethanol, tmp_path):
    """At every second report; judged by what the card says of molecules not seen."""
    teacher = (Off if error else StudentForceFieldCalculator)("tiny")
    log = tmp_path / "run.csv"
    simulation = simulation_of(*ethanol, langevin())
    simulation.reporters.append(
        Monitor(*ethanol, "tiny", every=2, csv=log, teacher=teacher, teacher_every=2)
    )
    simulation.step(12)
    rows = rows_of(log)
    assert [row["teacher_force_rmse_ev_per_angstrom"] == "" for row in rows] == [False, True] * 3
    usual = read_card(available_models()["tiny"] / "model.pt")["accuracy"]["held_out_molecules"]
    for row in rows[::2]:
        rmse = float(row["teacher_force_rmse_ev_per_angstrom"])
        assert rmse == pytest.approx(error, abs=1e-5)  # positions in another unit, and float32
        assert float(row["teacher_force_rmse_ratio"]) == pytest.approx(
            rmse / usual["force_rmse_ev_per_angstrom"]
        )
        assert ("teacher_force_rmse_ratio" in row["failed"]) == bool(error)


def test_teacher_that_fails(ethanol, tmp_path, caplog):
    """It does not end the run; the figure counts as failed."""

    class Broken(StudentForceFieldCalculator):
        def calculate(self, *args, **kwargs) -> None:
            raise RuntimeError("SCF did not converge")

    log = tmp_path / "run.csv"
    simulation = simulation_of(*ethanol, langevin())
    simulation.reporters.append(Monitor(*ethanol, "tiny", every=2, csv=log, teacher=Broken("tiny")))
    simulation.step(2)
    (row,) = rows_of(log)
    assert row["failed"] == "teacher_force_rmse_ratio"
    assert "SCF did not converge" in caplog.text


def test_the_real_teacher(ethanol, tmp_path):
    """GFN2-xTB, by name: near its student on a molecule of the training set."""
    pytest.importorskip("tblite")
    log = tmp_path / "run.csv"
    simulation = simulation_of(*ethanol, langevin())
    simulation.reporters.append(
        Monitor(*ethanol, "tiny", every=20, csv=log, teacher="gfn2-xtb", teacher_every=1)
    )
    simulation.step(60)
    errors = [float(row["teacher_force_rmse_ev_per_angstrom"]) for row in rows_of(log)]
    assert len(errors) == 3 and 0.005 < min(errors) and max(errors) < 0.3


def test_part_of_a_periodic_system(structures, tmp_path):
    """Two of eight waters are the student's; bonds across the border of the box are whole."""
    box: Atoms = structures["water_box"]
    box.positions += 3.0
    box.wrap()
    topology = topology_of(box)
    region = [3, 4, 5, 21, 22, 23]
    system = create_system(topology, "tiny", atoms=region)
    platform = openmm.Platform.getPlatformByName("Reference")
    simulation = app.Simulation(topology, system, langevin(), platform)
    positions = box.positions / NM * unit.nanometer
    simulation.context.setPositions(positions)
    log = tmp_path / "run.csv"
    simulation.reporters.append(
        Monitor(topology, positions, "tiny", every=5, atoms=region, csv=log)
    )
    simulation.step(5)
    (row,) = rows_of(log)
    assert float(row["bond_deviation_angstrom"]) < 0.3
    energy = simulation.context.getState(energy=True).getPotentialEnergy()
    assert float(row["potential_ev"]) == pytest.approx(
        energy.value_in_unit(unit.kilojoule_per_mole) * KJ_PER_MOL, rel=1e-7
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"action": "halt"}, "unknown action 'halt'; expected warn or stop"),
        ({"every": 0}, "every and teacher_every must be at least 1, got 0 and 10"),
        ({"atoms": [0, 99]}, "atoms must be distinct indices from 0 to 8"),
        ({"teacher": "gfn3"}, "unknown teacher 'gfn3'"),
    ],
)
def test_unusable_option_is_refused(options, words, ethanol):
    with pytest.raises(InputError, match=words):
        Monitor(*ethanol, "tiny", **options)
