"""A small box of a liquid at constant pressure: does a student keep its density?"""

import csv
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from ase import Atoms, units
from numpy.typing import NDArray
from openmm import LangevinMiddleIntegrator, LocalEnergyMinimizer, MonteCarloBarostat, unit
from openmm.app import PDBFile, Simulation

from mlff_student.analysis.bonds import bond_lengths
from mlff_student.analysis.drift import slope_with_error
from mlff_student.checkpoints import archive_of
from mlff_student.distill.molecules import embed
from mlff_student.distill.structures import LIQUID_PACKING, liquid_box, molecular_volume
from mlff_student.errors import InputError
from mlff_student.files import atomic_write
from mlff_student.md import ATOMS_FOR_THREADS
from mlff_student.plots import single_figure
from mlff_student.results import write_json
from mlff_student.structure import Structure, check_structure, make_topology

from .run import MINIMISE_TOLERANCE, find_platform
from .system import create_system
from .thermo import degrees_of_freedom, thermo_row
from .topology import openmm_topology

LIQUIDS = Path(__file__).with_name("liquids.yaml")
COLUMNS = (
    "time_ps",
    "density_g_per_cm3",
    "potential_ev",
    "temperature_k",
    "bond_deviation_angstrom",
)
ROW_PS = 0.1
ROWS_A_CHECKPOINT = 10
FRICTION_PER_PS = 5.0
BAROSTAT_STEPS = 20
BLOCKS = 5  # whose means give the standard error of the density
Row = dict[str, Any]


class Box(NamedTuple):
    """Molecules as they are packed."""

    atoms: Atoms
    pairs: NDArray[np.int64]  # (B, 2), bonded
    lengths: NDArray[np.float64]  # (B,), angstrom


@dataclass(frozen=True)
class LiquidSettings:
    """What decides a run.

    Attributes
    ----------
    liquid : name in liquids.yaml, or SMILES.
    model : shipped name, or path of a checkpoint or archive.
    molecules : in the box.
    equilibrate_ps, ps : at constant pressure; the second is what is measured.
    timestep_fs : of which hydrogens of `hydrogen_mass` (amu) allow more than 0.5.
    temperature_K, pressure_bar : of thermostat and barostat.
    seed : of packing, velocities, thermostat and barostat.
    platform : of OpenMM.
    """

    liquid: str
    model: str
    molecules: int = 60
    equilibrate_ps: float = 20.0
    ps: float = 50.0
    timestep_fs: float = 1.0
    hydrogen_mass: float = 3.0
    temperature_K: float = 298.15
    pressure_bar: float = 1.0
    seed: int = 1
    platform: str = "CPU"

    def __post_init__(self) -> None:
        for name in ("molecules", "timestep_fs", "hydrogen_mass", "temperature_K", "seed"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.equilibrate_ps < math.inf:
            raise InputError(f"equilibrate_ps must not be negative, got {self.equilibrate_ps}")
        if not 2 * BLOCKS * ROW_PS <= self.ps < math.inf:
            raise InputError(f"ps must be {2 * BLOCKS * ROW_PS:g} or more, got {self.ps}")

    @property
    def rows(self) -> tuple[int, int]:
        """Of the log: in all, and those of equilibration among them."""
        before = round(self.equilibrate_ps / ROW_PS)
        return before + round(self.ps / ROW_PS), before


def run_liquid(
    settings: LiquidSettings,
    folder: Path,
    progress: Callable[[int, int], None] = lambda row, rows: None,
) -> dict[str, Any]:
    """Pack a box at random, minimise, run at constant pressure; go on where a killed run stopped.

    Parameters
    ----------
    folder : receives density.csv, density.png, end.pdb and liquid.json, and keeps what a restart
        needs.
    progress : called with how many rows of the log are written, and of how many.

    Returns
    -------
    Flat record: settings, density and its deviation from experiment; see `measure`.

    Raises
    ------
    InputError : an unknown platform, a molecule that the model does not know, or a folder that
        holds another run.
    ArchiveError : no such model.
    """
    summary = folder / "liquid.json"
    _claim(folder, settings)
    if summary.exists():
        return json.loads(summary.read_text())
    box = _pack(settings)
    simulation = _simulation(box, settings)
    checkpoint, log = folder / "checkpoint.bin", folder / "density.csv"
    rows: list[Row] = []
    every = round(ROW_PS * 1e3 / settings.timestep_fs)
    if checkpoint.exists():
        simulation.loadCheckpoint(str(checkpoint))
        rows = read_rows(log)[: simulation.currentStep // every]
    else:
        _begin(simulation, box, settings)
    whole, _ = settings.rows
    while len(rows) < whole:
        progress(len(rows), whole)
        simulation.step(every)
        rows.append(_row(simulation, box))
        if len(rows) % ROWS_A_CHECKPOINT == 0 or len(rows) == whole:
            _write_rows(rows, log)  # before the checkpoint: a restart drops what it has too much
            with atomic_write(checkpoint) as temporary:
                simulation.saveCheckpoint(str(temporary))
    progress(whole, whole)
    state = simulation.context.getState(positions=True)
    topology = simulation.topology
    topology.setPeriodicBoxVectors(state.getPeriodicBoxVectors())
    with atomic_write(folder / "end.pdb") as temporary, temporary.open("w") as file:
        PDBFile.writeFile(topology, state.getPositions(), file)
    record = asdict(settings) | {"atoms": len(box.atoms)} | measure(rows, settings)
    plot_density(rows, record, folder / "density.png")
    write_json(summary, record)
    return record


def measure(rows: list[Row], settings: LiquidSettings) -> Row:
    """Flat record of the rows after equilibration.

    Returns
    -------
    Mean density and its standard error, from the means of five blocks; its trend with the standard
    error of that; mean temperature; the largest deviation of a bond, at any time; and, for a liquid
    of the table, the experiment's density and the deviation from it in percent.
    """
    _, before = settings.rows
    time, density, _, temperature, _ = np.array([list(row.values()) for row in rows[before:]]).T
    blocks = [block.mean() for block in np.array_split(density, BLOCKS)]
    trend, trend_error = slope_with_error(time, density)
    record = {
        "density_g_per_cm3": float(density.mean()),
        "density_stderr_g_per_cm3": float(np.std(blocks, ddof=1) / math.sqrt(BLOCKS)),
        "density_trend_g_per_cm3_ps": trend,
        "density_trend_stderr_g_per_cm3_ps": trend_error,
        "mean_temperature_k": float(temperature.mean()),
        "bond_deviation_angstrom": max(row["bond_deviation_angstrom"] for row in rows),
    }
    if known := known_liquids().get(settings.liquid):
        experiment = known["density_g_per_cm3"]
        deviation = 100.0 * (record["density_g_per_cm3"] / experiment - 1.0)
        record |= {
            "experiment_g_per_cm3": experiment,
            "experiment_source": known["source"],
            "density_deviation_percent": deviation,
        }
    return record


def known_liquids() -> dict[str, dict[str, Any]]:
    """The table: SMILES, density and source by name."""
    return yaml.safe_load(LIQUIDS.read_text())


def plot_density(rows: list[Row], record: Row, path: Path) -> None:
    """PNG of the density over time, with its mean and the experiment's.

    Raises
    ------
    InputError : `path` cannot be written.
    """
    time = [row["time_ps"] for row in rows]
    with single_figure(path, "time (ps)", "density (g/cm³)") as axes:
        axes.plot(time, [row["density_g_per_cm3"] for row in rows], linewidth=0.8)
        mean, error = record["density_g_per_cm3"], record["density_stderr_g_per_cm3"]
        axes.plot(
            [record["equilibrate_ps"], time[-1]],
            [mean, mean],
            linewidth=2.0,
            label=f"{record['liquid']}, {record['model']}: {mean:.3f} ± {error:.3f}",
        )
        if "experiment_g_per_cm3" in record:
            axes.axhline(record["experiment_g_per_cm3"], color="black", label="experiment")


def read_rows(path: Path) -> list[Row]:
    """Rows of density.csv."""
    with path.open() as file:
        return [{key: float(row[key]) for key in COLUMNS} for row in csv.DictReader(file)]


def _claim(folder: Path, settings: LiquidSettings) -> None:
    """Make the folder, or find that it holds this run."""
    path = folder / "settings.json"
    archive = archive_of(settings.model)
    wanted = asdict(settings) | {"weights_sha256": archive.metadata["weights_sha256"]}
    if path.exists():
        found = json.loads(path.read_text())
        if changed := [key for key in wanted | found if found.get(key) != wanted.get(key)]:
            raise InputError(
                f"{folder} holds another run ({', '.join(changed)} differ); "
                "choose another folder or remove that one"
            )
        return
    find_platform(settings.platform)
    check_structure(embed(_smiles(settings), settings.seed)[0], archive.metadata["elements"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, wanted)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}") from error


def _smiles(settings: LiquidSettings) -> str:
    return known_liquids().get(settings.liquid, {"smiles": settings.liquid})["smiles"]


def _pack(settings: LiquidSettings) -> Box:
    smiles = _smiles(settings)
    molecule, bonds = embed(smiles, settings.seed)
    count = settings.molecules
    volume = count * molecular_volume(smiles) / LIQUID_PACKING
    atoms = liquid_box([molecule] * count, volume, np.random.default_rng(settings.seed))
    pairs = np.concatenate([np.array(bonds) + k * len(molecule) for k in range(count)])
    lengths = bond_lengths(atoms.positions[None], atoms.cell.array[None], pairs)[0]
    return Box(atoms, pairs, lengths)


def _simulation(box: Box, settings: LiquidSettings) -> Simulation:
    pairs = [tuple(map(int, pair)) for pair in box.pairs]
    topology = openmm_topology(Structure(box.atoms, make_topology(box.atoms, pairs)))
    # Threads that wait for each other cost a small box more than they give.
    system = create_system(
        topology,
        settings.model,
        hydrogen_mass=settings.hydrogen_mass,
        threads=1 if len(box.atoms) < ATOMS_FOR_THREADS else None,
    )
    temperature = settings.temperature_K * unit.kelvin
    barostat = MonteCarloBarostat(settings.pressure_bar * unit.bar, temperature, BAROSTAT_STEPS)
    barostat.setRandomNumberSeed(settings.seed)
    system.addForce(barostat)
    integrator = LangevinMiddleIntegrator(
        temperature, FRICTION_PER_PS / unit.picosecond, settings.timestep_fs * unit.femtosecond
    )
    integrator.setRandomNumberSeed(settings.seed)
    return Simulation(topology, system, integrator, *find_platform(settings.platform))


def _begin(simulation: Simulation, box: Box, settings: LiquidSettings) -> None:
    """From the packed box to a minimum, with velocities of the temperature."""
    context = simulation.context
    context.setPositions(box.atoms.positions * unit.angstrom)
    LocalEnergyMinimizer.minimize(context, MINIMISE_TOLERANCE)
    context.setVelocitiesToTemperature(settings.temperature_K * unit.kelvin, settings.seed)


def _row(simulation: Simulation, box: Box) -> Row:
    state = simulation.context.getState(energy=True, positions=True)
    thermo = thermo_row(state, degrees_of_freedom(simulation.system))
    cell = np.array(state.getPeriodicBoxVectors().value_in_unit(unit.angstrom))
    positions = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
    found = bond_lengths(positions[None], cell[None], box.pairs, float(box.lengths.max()))[0]
    grams = box.atoms.get_masses().sum() / units.kg * 1e3
    return {
        "time_ps": thermo["time_ps"],
        "density_g_per_cm3": grams / (np.linalg.det(cell) * 1e-24),
        "potential_ev": thermo["potential_ev"],
        "temperature_k": thermo["temperature_k"],
        "bond_deviation_angstrom": float(np.abs(found - box.lengths).max()),
    }


def _write_rows(rows: list[Row], path: Path) -> None:
    with atomic_write(path) as temporary, temporary.open("w") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
