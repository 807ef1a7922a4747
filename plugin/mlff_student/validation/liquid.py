"""A small box of a liquid at constant pressure: does a student keep its density?"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from mlff_student.analysis.same_run import FrameSeries
from mlff_student.analysis.stability import measure_stability
from mlff_student.analysis.transport import G_PER_CM3, measure_density
from mlff_student.archive.registry import archive_of
from mlff_student.core.errors import InputError
from mlff_student.core.results import write_json
from mlff_student.engines.protocol import MDSettings, RunFolder
from mlff_student.engines.run import run_md
from mlff_student.reporting.plots import single_figure
from mlff_student.structures.checks import check_structure
from mlff_student.structures.smiles import embed
from mlff_student.structures.trajectories import read_topology, stream_frames
from mlff_student.validation.tasks import write_box

LIQUIDS = Path(__file__).with_name("liquids.yaml")
FRAME_PS = 0.1
SHORTEST_PS = 1.0
FRICTION_PER_PS = 5.0
THERMALISE_PS = 2.0  # in the box as it was packed


@dataclass(frozen=True)
class LiquidSettings:
    """What decides a run.

    Attributes
    ----------
    liquid : name in liquids.yaml, or SMILES.
    model : shipped name, or path of a checkpoint or archive.
    engine : "openmm" or "lammps".
    molecules : in the box.
    equilibrate_ps, ps : at constant pressure; the second is what is measured.
    seed : of packing, velocities, thermostat and barostat.
    """

    liquid: str
    model: str
    engine: str = "openmm"
    molecules: int = 60
    equilibrate_ps: float = 20.0
    ps: float = 50.0
    timestep_fs: float = 0.5
    temperature_K: float = 298.15
    pressure_bar: float = 1.0
    seed: int = 1

    def __post_init__(self) -> None:
        if self.molecules < 2:
            raise InputError(f"a liquid has two molecules or more, got {self.molecules}")
        if not 0 < self.timestep_fs < math.inf:
            raise InputError(f"timestep_fs must be positive, got {self.timestep_fs}")
        if not 0 <= self.equilibrate_ps < math.inf:
            raise InputError(f"equilibrate_ps must not be negative, got {self.equilibrate_ps}")
        if not SHORTEST_PS <= self.ps < math.inf:
            raise InputError(f"ps must be {SHORTEST_PS:g} or more, got {self.ps}")

    @property
    def smiles(self) -> str:
        """Of the molecule."""
        return known_liquids().get(self.liquid, {"smiles": self.liquid})["smiles"]

    def box(self) -> dict[str, Any]:
        """What `write_box` packs."""
        return {"smiles": self.smiles, "count": self.molecules, "seed": self.seed}

    def md(self, box: Path) -> MDSettings:
        """The run of a packed box."""
        every = max(1, round(1e3 * FRAME_PS / self.timestep_fs))
        frames = round((self.equilibrate_ps + self.ps) / FRAME_PS)
        return MDSettings(
            engine=self.engine,
            model=self.model,
            structure=str(box),
            steps=frames * every,
            timestep_fs=self.timestep_fs,
            temperature_K=self.temperature_K,
            ensemble="npt",
            every=every,
            thermalise_steps=round(1e3 * THERMALISE_PS / self.timestep_fs),
            friction_per_ps=FRICTION_PER_PS,
            seed=self.seed,
            pressure_bar=self.pressure_bar,
        )


def run_liquid(settings: LiquidSettings, folder: Path, quiet: bool = False) -> dict[str, Any]:
    """Pack a box at random and run it at constant pressure; go on where a killed run stopped.

    Parameters
    ----------
    folder : receives box.pdb, box.json (what is in it), density.png and the files of
        `mlff_student.engines.protocol`.

    Returns
    -------
    Flat record: settings; mean density, its trend and the standard errors, after equilibration;
        what became of the bonds, at any time; and, for a liquid of the table, the experiment's
        density and the deviation from it in percent.

    Raises
    ------
    InputError : a molecule that the model does not know, or a folder that holds another run.
    ArchiveError : no such model.
    """
    run, box = RunFolder(folder), folder / "box.pdb"
    settings.md(box)  # refuses what no run can have
    elements = archive_of(settings.model).metadata["elements"]
    check_structure(embed(settings.smiles, settings.seed)[0], elements)
    content, packed = folder / "box.json", settings.box()
    if not box.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(content, packed)
        write_box(**packed, path=box)
    elif not content.exists() or json.loads(content.read_text()) != packed:
        raise InputError(f"{box} is of another liquid, number or seed; choose another --output")
    run_md(settings.md(box), folder, quiet)
    structure = read_topology(run.topology)
    series = FrameSeries()
    frames = series.follow(stream_frames(run.trajectory, structure), structure)
    stability = measure_stability(frames, structure, run.trajectory)
    volume = np.array(series.volume_angstrom3)
    time = FRAME_PS * np.arange(1, len(volume) + 1)
    after = time > settings.equilibrate_ps + 0.5 * FRAME_PS
    mass = structure.atoms.get_masses().sum()
    density = measure_density(time[after], volume[after], mass)
    record = asdict(settings) | {"atoms": len(structure.atoms)}
    record |= density.as_record() | stability.as_record()
    if known := known_liquids().get(settings.liquid):
        experiment = known["density_g_per_cm3"]
        deviation = 100.0 * (density.density_g_per_cm3 / experiment - 1.0)
        error = density.density_stderr_g_per_cm3
        record |= {
            "experiment_g_per_cm3": experiment,
            "experiment_source": known["source"],
            "density_deviation_percent": deviation,
            "density_deviation_stderr_percent": 100.0 * error / experiment,
        }
    plot_density(time, mass * G_PER_CM3 / volume, record, folder)
    return record


def known_liquids() -> dict[str, dict[str, Any]]:
    """The table: SMILES, density and source by name."""
    return yaml.safe_load(LIQUIDS.read_text())


def plot_density(
    time: NDArray[np.float64], density: NDArray[np.float64], record: dict[str, Any], folder: Path
) -> None:
    """PNG of the density (g/cm^3) over time (ps), with its mean and the experiment's.

    Raises
    ------
    InputError : the folder cannot be written to.
    """
    with single_figure(folder / "density.png", "time (ps)", "density (g/cm³)") as axes:
        axes.plot(time, density, linewidth=0.8)
        mean, error = record["density_g_per_cm3"], record["density_stderr_g_per_cm3"]
        axes.plot(
            [record["equilibrate_ps"], time[-1]],
            [mean, mean],
            linewidth=2.0,
            label=f"{record['liquid']}, {record['model']}: {mean:.3f} ± {error:.3f}",
        )
        if "experiment_g_per_cm3" in record:
            axes.axhline(record["experiment_g_per_cm3"], color="black", label="experiment")
