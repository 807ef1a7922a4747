"""Figures of one run, and of the comparison of several."""

from pathlib import Path

import mdtraj
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from emt_runs import run_of

from mlff_student.core.figures import load_thresholds
from mlff_student.core.results import write_json
from mlff_student.core.units import KB, KJ_PER_MOL
from mlff_student.engines.protocol import RunFolder
from mlff_student.structures.checks import perceive_bonds
from mlff_student.structures.reading import Structure, make_topology, write_topology
from mlff_student.validation.measure import (
    _longest_rest,
    compare_densities,
    compare_liquids,
    compare_vaporisation,
    compare_vibrations,
    density_change,
    measure_run,
)
from mlff_student.validation.summary import summarise


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
    assert found.value == pytest.approx(100.0 * ((10 / 12) ** 3 - 1), abs=0.01)
    assert 0.0 <= found.standard_error < 0.1
    temperature = 300.0 + np.random.default_rng(1).normal(size=100)
    frames = np.tile(water.positions, (100, 1, 1))
    run = write_run(tmp_path / "run", structure, frames, 1.0, temperature)
    with mdtraj.formats.DCDTrajectoryFile(str(run.trajectory), "w", force_overwrite=True) as file:
        for edge in edges:
            box = {"cell_lengths": np.full((1, 3), edge), "cell_angles": np.full((1, 3), 90.0)}
            file.write(water.positions[None].astype(np.float32), **box)
    record, _ = measure_run(run_of(ensemble="npt", model="gfn2-xtb", engine="openmm"), run)
    assert record["density_change_percent"] == pytest.approx(found.value, abs=0.1)


def chain_of(folder: Path, edges: np.ndarray, potential: np.ndarray) -> RunFolder:
    """Files of a run of two waters with these edges of the box (F,) and energies (F,)."""
    waters = molecule("H2O", cell=[10.0] * 3, pbc=True)
    waters += Atoms("OH2", waters.positions + np.array([3.0, 0.0, 0.0]))
    structure = Structure(waters, make_topology(waters, perceive_bonds(waters)))
    frames = np.tile(waters.positions, (len(edges), 1, 1))
    run = write_run(folder, structure, frames, 10.0, np.full(len(edges), 300.0))
    with mdtraj.formats.DCDTrajectoryFile(str(run.trajectory), "w", force_overwrite=True) as file:
        for edge in edges:
            box = {"cell_lengths": np.full((1, 3), edge), "cell_angles": np.full((1, 3), 90.0)}
            file.write(waters.positions[None].astype(np.float32), **box)
    log = np.genfromtxt(run.thermo, delimiter=",", names=True)
    log["potential_ev"] = potential
    log["total_ev"] = potential + log["kinetic_ev"]
    np.savetxt(run.thermo, log, delimiter=",", header=",".join(log.dtype.names), comments="")
    write_json(run.settings, {"temperature_K": 300.0})
    return run


def test_density_and_vaporisation_are_compared_with_the_teachers(tmp_path):
    """The student's box is 1 % longer: 2.94 % less dense. Its liquid binds 0.1 eV a molecule less.
    The first fifth of each run, in which the box is twice as long, is left out.
    """
    noise = np.tile([1e-3, -1e-3], 50)
    early = np.arange(100) < 20
    runs = {}
    for name, edge, liquid in (("student", 10.1, -0.8), ("a", 10.0, -1.0), ("b", 10.0, -1.0)):
        edges = np.where(early, 2.0, 1.0) * edge + noise
        runs[name] = chain_of(tmp_path / name, edges, np.where(early, 5.0, liquid) + noise)
    gas = chain_of(tmp_path / "gas", np.full(100, 10.0), 0.2 + noise)
    chains = [runs["a"], runs["b"]]
    record, series = compare_densities([runs["student"]], chains, 2.0, with_rdf=True)
    assert record["density_error_percent"] == pytest.approx(100 * (1.01**-3 - 1), abs=1e-3)
    assert record["density_teacher_g_per_cm3"] == pytest.approx(
        2 * 18.015 / 6.02214e23 / 1e-21, rel=1e-4
    )
    assert 0.0 <= record["density_error_stderr_percent"] < 0.1
    assert record["rdf_error_pair"] and series["r_angstrom"]
    without, series = compare_densities([runs["student"]], chains, 2.0, with_rdf=False)
    assert "rdf_error_percent" not in without and not series
    figures = compare_vaporisation([runs["student"], gas], [*chains, gas], 2.0, molecules=2)
    student, teacher, difference = (figure.value * KJ_PER_MOL for figure in figures)
    assert student == pytest.approx(0.2 + 0.4 + KB * 300.0, abs=1e-6)
    assert teacher == pytest.approx(0.2 + 0.5 + KB * 300.0, abs=1e-6)
    assert difference == pytest.approx(-0.1, abs=1e-6)


def test_single_chain_that_rests_for_a_block_has_no_error(tmp_path):
    """Ten blocks of ten moves; the box rests for thirty moves."""
    edges = 10.0 + 0.01 * np.sin(np.arange(100))
    edges[30:60] = edges[30]
    chain = chain_of(tmp_path / "chain", edges, -1.0 + edges)
    student = chain_of(tmp_path / "run", 10.0 + 0.01 * np.cos(np.arange(100)), -edges)
    record, _ = compare_densities([student], [chain], 0.0, with_rdf=False)
    assert np.isnan(record["density_error_stderr_percent"])
    record, _ = compare_densities([student], [chain, chain], 0.0, with_rdf=False)
    assert record["density_error_stderr_percent"] > 0.0


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


def test_rest_of_the_teachers_moves_is_told(tmp_path):
    moved = np.array([True, False, False, True, False, False, False])
    assert _longest_rest(moved) == 3 and _longest_rest(np.array([True])) == 0
