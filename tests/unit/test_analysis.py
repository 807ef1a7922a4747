"""Drift, collapse and verdict of runs whose answer is known."""

import io
import shutil
from pathlib import Path

import mdtraj
import numpy as np
import pytest
from ase import units
from matplotlib.image import imread
from rich.console import Console
from scipy.signal import lfilter

from mlff_student.analysis import Reference, analyze
from mlff_student.analysis.drift import fit_drift, slope_with_error
from mlff_student.analysis.stability import Stability, measure_stability
from mlff_student.analysis.thermo import Thermo, read_thermo
from mlff_student.core.errors import InputError
from mlff_student.core.figures import Figure, figures_of, known_figures, load_thresholds
from mlff_student.core.units import KB
from mlff_student.reporting.analyze import energy_course
from mlff_student.reporting.plots import plot_drift
from mlff_student.reporting.verdict import drift_table, judge
from mlff_student.structures.trajectories import read_topology, stream_frames

ATOMS = 9
# Ethanol, angstrom, moved off the origin so that a small cell cuts through it.
SYMBOLS = "C C O H H H H H H".split()
ETHANOL = np.array(
    [
        [-0.748, -0.015, 0.024],
        [0.558, 0.420, -0.278],
        [1.293, -0.202, -0.901],
        [-1.263, 0.754, 0.600],
        [-0.699, -0.934, 0.609],
        [-1.330, -0.206, -0.878],
        [1.143, 0.613, 0.619],
        [0.509, 1.340, -0.863],
        [2.170, 0.110, -1.110],
    ]
)
BONDS = [(0, 1), (1, 2), (0, 3), (0, 4), (0, 5), (1, 6), (1, 7), (2, 8)]


def make_thermo(
    slope_mev: float = 0.0, noise_mev: float = 0.5, rows: int = 1000, atoms: int = ATOMS
) -> Thermo:
    """Log at about 300 K whose total energy drifts by `slope_mev` meV/atom/ps."""
    rng = np.random.default_rng(1)
    time = 0.01 * np.arange(rows)
    temperature = 300.0 + 60.0 * rng.normal(size=rows)
    kinetic = 0.5 * (3 * atoms - 3) * units.kB * temperature
    total = -4200.0 + 1e-3 * atoms * (slope_mev * time + noise_mev * rng.normal(size=rows))
    return Thermo(time, total - kinetic, kinetic, total, temperature)


def write_log(path: Path, thermo: Thermo) -> Path:
    columns = np.stack(thermo[:5], axis=1)
    np.savetxt(
        path, columns, "%.10g", delimiter=",", header=",".join(Thermo._fields[:5]), comments=""
    )
    return path


def write_run(
    folder: Path, frames: np.ndarray, cell: float | None = None, bonds: bool = True
) -> tuple[Path, Path]:
    """DCD of frames (F, 9, 3) angstrom, and PDB of ethanol."""
    topology = mdtraj.Topology()
    residue = topology.add_residue("ETH", topology.add_chain())
    for index, symbol in enumerate(SYMBOLS):
        element = mdtraj.element.Element.getBySymbol(symbol)
        topology.add_atom(f"{symbol}{index}", element, residue)
    for i, j in BONDS if bonds else []:
        topology.add_bond(topology.atom(i), topology.atom(j))

    def trajectory(positions: np.ndarray) -> mdtraj.Trajectory:
        box = None if cell is None else np.full((len(positions), 3), cell / 10.0)
        angles = None if cell is None else np.full((len(positions), 3), 90.0)
        return mdtraj.Trajectory(
            positions / 10.0, topology, unitcell_lengths=box, unitcell_angles=angles
        )

    trajectory(frames).save_dcd(str(folder / "run.dcd"))
    trajectory(ETHANOL[None]).save_pdb(str(folder / "run.pdb"))
    return folder / "run.dcd", folder / "run.pdb"


def thermal(frames: int, amplitude: float = 0.02) -> np.ndarray:
    rng = np.random.default_rng(2)
    return ETHANOL + amplitude * rng.normal(size=(frames, ATOMS, 3))


def ar1(rng: np.random.Generator, phi: float, rows: int) -> np.ndarray:
    """Stationary noise with correlation time -1 / log(phi) rows."""
    return lfilter([1.0], [1.0, -phi], rng.normal(size=rows + 500))[500:]


# --- drift ----------------------------------------------------------------------------------------


def test_known_slope_is_recovered_within_its_error() -> None:
    drift = fit_drift(make_thermo(slope_mev=0.3), ATOMS)
    # White noise: the textbook error of a least-squares slope.
    expected_error = 0.5 / np.sqrt(1000) / np.std(0.01 * np.arange(1000))
    assert drift.drift_stderr_mev_per_atom_ps == pytest.approx(expected_error, rel=0.3)
    assert abs(drift.drift_mev_per_atom_ps - 0.3) < 4 * expected_error
    assert drift.energy_fluctuation_mev_per_atom == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize(
    ("phi", "lowest"),
    # 1000 rows hold 26 independent stretches of the last noise, where an error bar is itself
    # uncertain; the error of white noise would cover a third.
    [(0.0, 0.91), (0.5, 0.89), (0.9, 0.82), (0.95, 0.76)],
)
def test_two_standard_errors_cover_the_true_slope_of_correlated_noise(
    phi: float, lowest: float
) -> None:
    rng = np.random.default_rng(3)
    time = 0.01 * np.arange(1000)
    covered = []
    for _ in range(300):
        slope, error = slope_with_error(time, 0.7 * time + ar1(rng, phi, 1000))
        covered.append(abs(slope - 0.7) < 2 * error)
    assert lowest < np.mean(covered) < 0.99


def test_units_of_the_drift_follow_from_the_same_energies() -> None:
    """N atoms heating by 1 kT at 300 K in each degree of freedom over 1 ns."""
    thermo = make_thermo(noise_mev=0.0)
    dof, kt = 3 * ATOMS - 3, units.kB * thermo.temperature_k.mean()
    thermo = thermo._replace(total_ev=-100.0 + dof * kt * thermo.time_ps / 1000.0)
    drift = fit_drift(thermo, ATOMS)
    assert drift.drift_kt_per_ns_per_dof == pytest.approx(1.0)
    assert drift.heating_percent == pytest.approx(0.1 * np.ptp(thermo.time_ps))
    assert drift.drift_mev_per_atom_ps == pytest.approx(dof * kt / ATOMS)
    fewer = fit_drift(thermo, ATOMS, degrees_of_freedom=dof // 2)
    assert fewer.drift_kt_per_ns_per_dof == pytest.approx(2.0)
    assert fewer.drift_mev_per_atom_ps == drift.drift_mev_per_atom_ps


def test_slow_drift_of_a_long_run_fails_by_its_heating() -> None:
    """Half of the rate that is let pass, for a nanosecond: 97 K."""
    thermo = make_thermo(noise_mev=0.0)
    time = np.linspace(0.0, 1000.0, len(thermo.time_ps))
    total = -1000.0 + 1e-3 * ATOMS * 0.025 * time
    record = fit_drift(thermo._replace(time_ps=time, total_ev=total), ATOMS).as_record()
    assert [name for name, passed in passes(record).items() if not passed] == ["heating_percent"]


def test_percentages_are_signed_last_and_absolute_largest() -> None:
    thermo = make_thermo(noise_mev=0.0)
    total = np.full(1000, -50.0)
    total[500], total[-1] = -51.0, -49.5
    drift = fit_drift(thermo._replace(total_ev=total), ATOMS)
    assert drift.drift_percent == pytest.approx(1.0)
    assert drift.max_drift_percent == pytest.approx(2.0)
    assert drift.conservation_ratio == pytest.approx(total.std() / thermo.kinetic_ev.std())


def test_energies_that_are_constant_to_their_digits_have_figures() -> None:
    thermo = make_thermo(noise_mev=0.0)
    still = fit_drift(thermo._replace(total_ev=np.full(1000, -50.0)), ATOMS)
    assert abs(still.drift_mev_per_atom_ps) < 1e-12 and still.drift_stderr_mev_per_atom_ps < 1e-12
    held = fit_drift(make_thermo()._replace(kinetic_ev=np.full(1000, 1.0)), ATOMS)
    assert np.isinf(held.exchange_ratio)


def test_no_degrees_of_freedom_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"1 atom.* 0 degrees of freedom"):
        fit_drift(make_thermo(), 1)


# --- log ------------------------------------------------------------------------------------------


def test_log_round_trip(tmp_path: Path) -> None:
    thermo = make_thermo()
    read = read_thermo(write_log(tmp_path / "run.csv", thermo))
    np.testing.assert_allclose(np.stack(read[:5]), np.stack(thermo[:5]), rtol=1e-9)


GOOD = ["time_ps,potential_ev,kinetic_ev,total_ev,temperature_k"] + [
    f"{0.1 * i:.1f},-10,1,-9,300" for i in range(12)
]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"run\.csv is empty"),
        (
            [line.rpartition(",")[0] for line in GOOD],
            r"lacks .* temperature_k, which cannot be computed",
        ),
        ([*GOOD[:5], "0.4,-10,one,-9,300", *GOOD[6:]], "line 6.*'one'"),
        ([*GOOD, "1.2,-10"], "line 14: 2 fields, expected 5"),
        (GOOD[:5], "4 rows.* at least 10"),
        ([*GOOD, "0.3,-10,1,-9,300"], r"goes from 1.1 to 0.3 in row 13"),
        ([*GOOD, "nan,-10,1,-9,300"], "goes from 1.1 to nan"),
    ],
)
def test_malformed_log_is_refused_by_what_is_wrong(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    log = tmp_path / "run.csv"
    log.write_text("\n".join(lines))
    with pytest.raises(InputError, match=message):
        read_thermo(log)


@pytest.mark.parametrize("kind", ["conserved quantity", "rounded constant"])
def test_total_energy_that_is_not_potential_plus_kinetic_is_refused(
    tmp_path: Path, kind: str
) -> None:
    """Either would pass as a run without drift, whatever the energy did."""
    thermo = make_thermo(slope_mev=5.0, noise_mev=20.0)
    total = {
        "conserved quantity": np.linspace(-4200.0, -4200.001, len(thermo.time_ps)),
        "rounded constant": np.round(thermo.total_ev, -2),
    }[kind]
    with pytest.raises(InputError, match=r"differs from potential \+ kinetic.* delete the column"):
        read_thermo(write_log(tmp_path / "run.csv", thermo._replace(total_ev=total)))


@pytest.mark.parametrize("digits", [6, 8], ids="{} digits".format)
def test_total_energy_may_be_rounded_and_have_another_zero(tmp_path: Path, digits: int) -> None:
    columns = np.stack(make_thermo(noise_mev=0.5)[:5], axis=1)
    columns[:, 3] += 1000.0
    columns[5, 1:] = np.nan  # a figure, not an error
    log, header = tmp_path / "run.csv", ",".join(Thermo._fields[:5])
    np.savetxt(log, columns, f"%.{digits}g", delimiter=",", header=header, comments="")
    assert np.isnan(read_thermo(log).total_ev).sum() == 1


def test_degrees_of_freedom_are_those_of_the_log(tmp_path: Path) -> None:
    """A sound canonical run whose eight bonds are constrained."""
    rows, dof = 1000, 3 * ATOMS - 3 - len(BONDS)
    kinetic = 0.5 * KB * 300.0 * np.random.default_rng(6).chisquare(dof, rows)
    temperature = 2.0 * kinetic / (dof * KB)
    thermo = Thermo(0.01 * np.arange(rows), kinetic - 50.0, kinetic, 2 * kinetic - 50, temperature)
    files = (*write_run(tmp_path, thermal(rows)), write_log(tmp_path / "run.csv", thermo))
    found = analyze(*files, ensemble="nvt", temperature_K=300.0)
    assert found.degrees_of_freedom == dof
    assert any("16 degrees of freedom" in note for note in found.notes)
    assert found.kinetic.kinetic_mean_sigma < 3
    free = analyze(*files, ensemble="nvt", temperature_K=300.0, degrees_of_freedom=3 * ATOMS - 3)
    assert free.kinetic.kinetic_mean_sigma > 10
    assert free.kinetic.kinetic_mean_percent == pytest.approx(-100 * 8 / 24, abs=1)


def test_missing_and_binary_logs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no log file .*none\.csv"):
        read_thermo(tmp_path / "none.csv")
    trajectory, _ = write_run(tmp_path, thermal(10))
    with pytest.raises(InputError, match="lacks the column"):
        read_thermo(trajectory)


# --- bonds ----------------------------------------------------------------------------------------


def follow(trajectory: Path, topology: Path, chunk: int | None = None) -> Stability:
    structure = read_topology(topology)
    return measure_stability(
        stream_frames(trajectory, structure, chunk=chunk), structure, trajectory
    )


@pytest.mark.parametrize("bonds", [True, False], ids=["listed", "perceived"])
@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_stretched_bond_is_found_with_atoms_value_and_frame(
    tmp_path: Path, bonds: bool, chunk: int
) -> None:
    frames = thermal(30)
    bond = ETHANOL[8] - ETHANOL[2]
    frames[17] = ETHANOL
    frames[17, 8] += 0.8 * bond / np.linalg.norm(bond)
    found = follow(*write_run(tmp_path, frames, bonds=bonds), chunk=chunk)
    assert found.bond_deviation_angstrom == pytest.approx(
        0.8, abs=2e-3
    )  # PDB rounds to 1e-3 angstrom
    assert found.bond_deviation_atoms == "ETH0-O2 ETH0-H8"
    assert (found.bond_deviation_frame, found.frames, found.bonds) == (17, 30, 8)


def test_periodic_boundary_neither_hides_nor_invents_a_stretch(tmp_path: Path) -> None:
    """Atoms wrapped one by one, so that the cell's face cuts bonds."""
    cell = 12.0
    frames = thermal(20)
    drifting = frames + 0.6 * np.arange(20)[:, None, None]
    whole = follow(*write_run(tmp_path, frames))
    wrapped = follow(*write_run(tmp_path, drifting % cell, cell=cell))
    assert wrapped.bond_deviation_angstrom == pytest.approx(whole.bond_deviation_angstrom, abs=1e-4)
    assert wrapped.bond_deviation_atoms == whole.bond_deviation_atoms
    bond = ETHANOL[3] - ETHANOL[0]
    drifting[11, [0, 3]] = (
        drifting[11, 0],
        drifting[11, 0] + bond * (1 + 0.7 / np.linalg.norm(bond)),
    )
    stretched = follow(*write_run(tmp_path, drifting % cell, cell=cell))
    assert stretched.bond_deviation_angstrom == pytest.approx(0.7, abs=2e-3)
    assert (stretched.bond_deviation_atoms, stretched.bond_deviation_frame) == (
        "ETH0-C0 ETH0-H3",
        11,
    )


def test_bounding_box_of_an_open_system_does_not_shorten_bonds(tmp_path: Path) -> None:
    """LAMMPS writes one for shrink-wrapped boundaries: here it is thinner than a bond."""
    frames = thermal(10)
    frames[5, 8] += [3.0, 0.0, 0.0]
    path, topology = write_run(tmp_path, frames)
    open_system = follow(path, topology)
    boxed = mdtraj.load(str(path), top=str(topology))
    boxed.unitcell_lengths, boxed.unitcell_angles = np.full((10, 3), 0.1), np.full((10, 3), 90.0)
    boxed.save_dcd(str(path))
    assert follow(path, topology) == open_system


def test_nan_position_is_the_largest_deviation(tmp_path: Path) -> None:
    frames = thermal(10)
    frames[4, 6] = np.nan
    frames[8, 8] += 5.0
    found = follow(*write_run(tmp_path, frames), chunk=3)
    assert np.isnan(found.bond_deviation_angstrom)
    assert (found.bond_deviation_atoms, found.bond_deviation_frame) == ("ETH0-C1 ETH0-H6", 4)


def test_other_atoms_are_refused_with_both_numbers(tmp_path: Path) -> None:
    path, topology = write_run(tmp_path, thermal(10))
    mdtraj.load(str(path), top=str(topology)).atom_slice(range(7)).save_dcd(str(path))
    with pytest.raises(InputError, match="has 7 atoms, the topology has 9"):
        follow(path, topology)


def test_permuted_atoms_are_refused_and_an_explosion_is_not(tmp_path: Path) -> None:
    reverse = thermal(10)[:, ::-1]
    with pytest.raises(InputError, match="in another order"):
        follow(*write_run(tmp_path, reverse))
    exploded = follow(*write_run(tmp_path, 3.0 * thermal(10)))
    assert exploded.bond_deviation_angstrom > 2.0


def test_missing_or_foreign_files_are_refused(tmp_path: Path) -> None:
    path, topology = write_run(tmp_path, thermal(10))
    with pytest.raises(InputError, match="no trajectory file"):
        follow(tmp_path / "none.dcd", topology)
    with pytest.raises(InputError, match="no topology file"):
        follow(path, tmp_path / "none.pdb")
    path.write_bytes(b"not a trajectory" * 20)
    with pytest.raises(InputError, match="cannot read the trajectory"):
        follow(path, topology)
    empty = tmp_path / "empty.xyz"
    empty.write_text("")
    with pytest.raises(InputError, match=r"empty\.xyz"):
        follow(empty, topology)


# --- the whole run --------------------------------------------------------------------------------


def analyze_run(folder: Path, thermo: Thermo, frames: np.ndarray):
    path, topology = write_run(folder, frames)
    return analyze(path, topology, write_log(folder / "run.csv", thermo))


def passes(record: dict) -> dict[str, bool]:
    checks = judge(figures_of(record), load_thresholds(), record.get("ensemble", ""))
    return {check.key: check.passed for check in checks}


def test_good_run_passes_every_check(tmp_path: Path) -> None:
    record = analyze_run(
        tmp_path, make_thermo(slope_mev=0.02, noise_mev=0.1), thermal(100)
    ).as_record()
    judged = passes(record)
    assert set(judged) == {
        "drift_mev_per_atom_ps",
        "heating_percent",
        "exchange_ratio",
        "bond_deviation_angstrom",
        "hydrogens_lost",
        "nonfinite_rows",
    }
    assert all(judged.values())
    assert (record["frames"], record["rows"], record["atoms"]) == (100, 1000, 9)
    assert record["duration_ps"] == pytest.approx(9.99)
    assert record["temperature_k"] == pytest.approx(300.0, abs=10.0)
    assert all(isinstance(value, float | int | str) for value in record.values())


def test_heating_and_cooling_both_fail(tmp_path: Path) -> None:
    for slope in (0.3, -0.3):
        record = analyze_run(tmp_path, make_thermo(slope), thermal(100)).as_record()
        assert not passes(record)["drift_mev_per_atom_ps"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_energy_that_is_not_finite_fails(tmp_path: Path, bad: float) -> None:
    thermo = make_thermo()
    thermo.total_ev[700:] = bad
    record = analyze_run(tmp_path, thermo, thermal(100)).as_record()
    assert record["nonfinite_rows"] == 300
    assert passes(record) == {
        "drift_mev_per_atom_ps": False,
        "heating_percent": False,
        "exchange_ratio": False,
        "bond_deviation_angstrom": True,
        "hydrogens_lost": True,
        "nonfinite_rows": False,
    }


def test_limit_itself_passes_and_the_next_number_fails() -> None:
    thresholds = load_thresholds()
    for key, threshold in thresholds.items():
        limit = threshold.value
        for value, passed in ((limit, True), (-limit, True), (np.nextafter(limit, np.inf), False)):
            (check,) = judge([known_figures()[key].figure(value)], thresholds)
            assert (check.key, check.passed, check.resolved) == (key, passed, True)


def test_record_without_a_judged_figure_is_refused() -> None:
    with pytest.raises(InputError, match="none of the figures"):
        judge([Figure("ms_per_step", 1.0)], load_thresholds())


def test_run_is_held_against_the_teachers_own(tmp_path: Path) -> None:
    """A run against itself, once with its own log and once with that of a run five times slower."""
    thermo = make_thermo(noise_mev=0.1, rows=4000)
    fast = thermo._replace(time_ps=0.2 * thermo.time_ps)  # 2 fs between rows
    trajectory, topology = write_run(tmp_path, thermal(4000))
    log = write_log(tmp_path / "run.csv", fast)
    slow_log = write_log(tmp_path / "slow.csv", thermo)
    same = Path(shutil.copy(trajectory, tmp_path / "same.dcd"))
    found = analyze(trajectory, topology, log, reference=Reference(same, log))
    assert found.rdf_error.rdf_error_percent == 0.0 < found.rdf_error.rdf_noise_percent
    assert found.spectrum_error.spectrum_overlap_percent == pytest.approx(100.0)
    assert found.spectrum_error.spectrum_overlap_noise_percent < 99.0
    assert {"rdf_error_percent", "spectrum_shift_per_cm"} <= set(found.as_record())
    aliased = analyze(trajectory, topology, log, reference=Reference(same, slow_log))
    assert aliased.spectrum_error is None
    assert any("every 10 fs" in note for note in aliased.notes)
    permuted = write_run(tmp_path, thermal(10)[:, ::-1])[0].rename(tmp_path / "permuted.dcd")
    write_run(tmp_path, thermal(4000))
    with pytest.raises(InputError, match=r"permuted\.dcd has .* another order"):
        analyze(trajectory, topology, log, reference=Reference(permuted))
    with pytest.raises(InputError, match="is the run itself"):
        analyze(trajectory, topology, log, reference=Reference(trajectory))


@pytest.mark.parametrize("rows", [100, 101, 99, 1000, 1001, 991, 50, 20])
def test_log_of_the_same_run_is_accepted(tmp_path: Path, rows: int) -> None:
    assert analyze_run(tmp_path, make_thermo(rows=rows), thermal(100)).rows == rows


@pytest.mark.parametrize("rows", [150, 250, 70, 130])
def test_log_of_another_run_is_refused(tmp_path: Path, rows: int) -> None:
    with pytest.raises(InputError, match=f"{rows} rows and .* 100 frames"):
        analyze_run(tmp_path, make_thermo(rows=rows), thermal(100))


def test_log_of_a_larger_system_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="imply 57 degrees of freedom, 9 atoms have 27"):
        analyze_run(tmp_path, make_thermo(atoms=20), thermal(100))


def test_thresholds_of_another_shape_are_refused(tmp_path: Path) -> None:
    table = tmp_path / "table.yaml"
    table.write_text("drift_mev_per_atom_ps: 0.1\n")
    with pytest.raises(InputError, match=r"cannot read thresholds from .*table\.yaml"):
        load_thresholds(table)


# --- what people see ------------------------------------------------------------------------------


def test_table_says_in_words_which_run_failed(tmp_path: Path) -> None:
    records = {
        "original": analyze_run(tmp_path, make_thermo(0.0, 0.1), thermal(100)).as_record(),
        "tiny": analyze_run(tmp_path, make_thermo(0.5, 0.1), thermal(100)).as_record(),
    }
    checks = {
        label: judge(figures_of(record), load_thresholds()) for label, record in records.items()
    }
    console = Console(file=io.StringIO(), width=120)  # no colour in a file
    console.print(drift_table(records, checks))
    lines = console.file.getvalue().splitlines()
    (drift,) = [line for line in lines if "meV/atom/ps" in line]
    assert drift.index("pass") < drift.index("FAIL")
    error = records["tiny"]["drift_stderr_mev_per_atom_ps"]
    assert f"± {error:.4f} FAIL" in drift
    assert sum("±" in line for line in lines) == 4  # two drifts, heating and temperature
    (final,) = [line for line in lines if "verdict" in line]
    assert final.index("pass") < final.index("FAIL")


@pytest.mark.parametrize("bad", [False, True], ids=["finite", "nan"])
def test_plot_is_a_png_with_something_on_it(tmp_path: Path, bad: bool) -> None:
    thermo = make_thermo(0.3)
    if bad:
        thermo.total_ev[:] = np.nan
    run = analyze_run(tmp_path, thermo, thermal(100))
    path = tmp_path / "drift.png"
    plot_drift({"tiny": energy_course(run)}, path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    image = imread(path)
    assert 600 < image.shape[0] < 3000 and 600 < image.shape[1] < 3000
    assert len(np.unique(image @ [1.0, 10.0, 100.0, 0.0][: image.shape[2]])) > 20  # colours
    assert not list(tmp_path.glob("*.part"))
