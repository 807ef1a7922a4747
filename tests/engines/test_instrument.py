"""The instrument proved: every known defect fails the verdict, each by the figure that is about it,
and the same molecule without a defect passes.
"""

from pathlib import Path

import mdtraj
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes

from mlff_student.core.errors import InputError, InterruptedRunError
from mlff_student.core.figures import load_thresholds
from mlff_student.engines.protocol import MDSettings, RunFolder
from mlff_student.engines.run import run_md
from mlff_student.structures.checks import perceive_bonds
from mlff_student.structures.reading import read_structure
from mlff_student.validation import nve
from mlff_student.validation.harness import judge_nve
from mlff_student.validation.measure import measure_comparison
from mlff_student.validation.protocol import CONVERGENCE_PS
from mlff_student.validation.tasks import CompareTask

ETHANOL = molecule("CH3CH2OH")
DEPTH, WIDTH = 4.5, 2.0  # eV and 1/angstrom, of a Morse bond; C-H vibrates at 3000 cm^-1
ANGLE = 10.0  # eV/angstrom^2 between atoms two bonds apart
CUTOFF, WELL = (
    2.75,
    0.05,
)  # angstrom and eV: ethanol's atoms three bonds apart cross it all the time


class Springs(Calculator):
    """A molecule of Morse bonds, springs across angles, and a dispersion that ends at a cutoff.

    Parameters
    ----------
    jump : whether the dispersion's energy ends there at once.
    curl : eV/angstrom^2 of a force around the z axis, which is no energy's gradient.
    pull : eV/angstrom that pulls the O-H bond apart, by a potential of its own.
    """

    implemented_properties = ("energy", "forces")

    def __init__(self, reference: Atoms, jump=False, curl=0.0, pull=0.0) -> None:
        super().__init__()
        self.jump, self.curl, self.pull = jump, curl, pull
        bonds = perceive_bonds(reference)
        near = [
            {j for pair in bonds if i in pair for j in pair} - {i} for i in range(len(reference))
        ]
        angles = {(i, k) for one in near for i in one for k in one if i < k}
        everyone = {(i, k) for i in range(len(reference)) for k in range(i)}
        far = {(k, i) for i, k in everyone} - angles - set(bonds)
        self.bonds, self.angles, self.far = (np.array(sorted(x)) for x in (bonds, angles, far))
        self.lengths = [
            self._distances(reference.positions, x)[0] for x in (self.bonds, self.angles)
        ]
        self.hydroxyl = next(
            k for k, (i, j) in enumerate(bonds) if set(reference.numbers[[i, j]]) == {1, 8}
        )

    @staticmethod
    def _distances(positions, pairs):
        vectors = positions[pairs[:, 1]] - positions[pairs[:, 0]]
        distances = np.linalg.norm(vectors, axis=1)
        return distances, vectors / distances[:, None]

    def calculate(self, atoms=None, properties=None, system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        x = self.atoms.positions
        forces = self.curl * np.cross([0.0, 0.0, 1.0], x - x.mean(0))
        energy = 0.0

        def add(pairs, directions, slopes):
            np.add.at(forces, pairs[:, 0], slopes[:, None] * directions)
            np.add.at(forces, pairs[:, 1], -slopes[:, None] * directions)

        r, directions = self._distances(x, self.bonds)
        decay = np.exp(-WIDTH * (r - self.lengths[0]))
        energy += (DEPTH * (1.0 - decay) ** 2).sum() - self.pull * r[self.hydroxyl]
        slopes = 2.0 * DEPTH * WIDTH * decay * (1.0 - decay)
        slopes[self.hydroxyl] -= self.pull
        add(self.bonds, directions, slopes)
        r, directions = self._distances(x, self.angles)
        energy += 0.5 * ANGLE * ((r - self.lengths[1]) ** 2).sum()
        add(self.angles, directions, ANGLE * (r - self.lengths[1]))
        r, directions = self._distances(x, self.far)
        inside = r < CUTOFF
        if self.jump:
            energy -= WELL * inside.sum()
        else:  # ends with two continuous derivatives
            gap = np.where(inside, CUTOFF - r, 0.0)
            energy -= WELL * (gap**3).sum()
            add(self.far, directions, 3.0 * WELL * gap**2)
        self.results = {"energy": float(energy), "forces": forces}


def springs_of_run() -> Springs:
    return Springs(read_structure("CCO").atoms)


def short_run(folder: Path, ensemble: str = "nve", seed: int = 1) -> RunFolder:
    """One picosecond of ethanol in a folder."""
    settings = MDSettings(
        engine="ase", model="springs", structure="CCO", steps=2000, timestep_fs=0.5,
        temperature_K=300.0, ensemble=ensemble, every=4, thermalise_steps=1000,
        friction_per_ps=10.0, seed=seed, threads=1,
    )  # fmt: skip
    run_md(settings, folder, quiet=True, calculator=springs_of_run())
    return RunFolder(folder)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> RunFolder:
    """A run without a defect, for those tests that spoil its files."""
    return short_run(tmp_path_factory.mktemp("sound") / "run")


def test_sound_molecule_passes():
    result = nve(ETHANOL, Springs(ETHANOL), ps=1)
    assert result.passed, result
    assert 200.0 < result.record["temperature_k"] < 400.0  # a molecule of nine, 300 K, one run


@pytest.mark.parametrize("calls", [3, 400])
def test_calculator_that_raises_fails_its_run(calls):
    """As torch's models do: while it is minimised or thermalised, and in production."""

    class Stops(Springs):
        def calculate(self, *arguments, **options):
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls > calls:
                raise RuntimeError("SCF did not converge")
            super().calculate(*arguments, **options)

    result = nve(ETHANOL, Stops(ETHANOL), ps=0.2, thermalise_ps=0.05)
    assert not result.passed
    assert "SCF did not converge" in str(result)


def test_full_disk_is_no_failure_of_the_calculator():
    class Full(Springs):
        def calculate(self, *arguments, **options):
            raise OSError(28, "No space left on device")

    with pytest.raises(InterruptedRunError, match="No space left"):
        nve(ETHANOL, Full(ETHANOL), ps=0.2)


def test_forces_without_energy():
    result = nve(ETHANOL, Springs(ETHANOL, curl=0.002), ps=1)
    assert "drift_mev_per_atom_ps" in result.failed, result
    assert result.record["drift_mev_per_atom_ps"] > 0, "a curl does work on what turns with it"


def test_energy_jump_at_cutoff():
    result = nve(ETHANOL, Springs(ETHANOL, jump=True), ps=1)
    assert "exchange_ratio" in result.failed, result


@pytest.mark.parametrize("jump", [False, True])
def test_energy_jump_breaks_the_second_order(jump, tmp_path):
    """From one state, 0.3 ps at three timesteps, as a ladder of validate."""
    runs = []
    for timestep_fs in (0.125, 0.25, 0.5):
        settings = MDSettings(
            engine="ase", model="springs", structure="CCO", steps=round(300.0 / timestep_fs),
            timestep_fs=timestep_fs, temperature_K=300.0, ensemble="nve",
            every=round(2.0 / timestep_fs), thermalise_steps=800, friction_per_ps=10.0, seed=1,
            threads=1, thermalise_timestep_fs=0.25,
        )  # fmt: skip
        calculator = Springs(read_structure("CCO").atoms, jump=jump)
        runs.append(RunFolder(tmp_path / f"{timestep_fs}"))
        run_md(settings, runs[-1].path, quiet=True, calculator=calculator)
    task = CompareTask(
        "springs/ase/ladder/ethanol", "ladder", "ethanol", "convergence", ("", "", ""),
        window_ps=CONVERGENCE_PS, timesteps_fs=(0.125, 0.25, 0.5), atoms=9,
    )  # fmt: skip
    record, _ = measure_comparison(task, runs, [])
    limit = load_thresholds()["convergence_deviation"].value
    assert (record["convergence_deviation"] > limit) is jump, record


def test_long_timestep():
    result = nve(ETHANOL, Springs(ETHANOL), ps=4, timestep_fs=2.0, thermalise_ps=1.0)
    assert "exchange_ratio" in result.failed, result


def test_thermostat_left_on(tmp_path):
    result = judge_nve(short_run(tmp_path / "run", ensemble="nvt"))
    assert "exchange_ratio" in result.failed, result
    # The total energy wanders as much as the kinetic one; an integrator's error is far less.
    assert result.record["exchange_ratio"] > 0.5


def test_molecule_that_falls_apart():
    result = nve(ETHANOL, Springs(ETHANOL, pull=6.0), ps=0.5)
    assert "bond_deviation_angstrom" in result.failed, result
    limit = load_thresholds()["drift_mev_per_atom_ps"].value
    assert abs(result.record["drift_mev_per_atom_ps"]) < limit, "it falls apart at constant energy"


def test_permuted_topology(sound, tmp_path):
    trajectory = mdtraj.load(str(sound.trajectory), top=str(sound.topology))
    order = np.random.default_rng(1).permutation(trajectory.n_atoms)
    run = copy_of(sound, tmp_path)
    trajectory.xyz = trajectory.xyz[:, order]
    trajectory.save_dcd(str(run.trajectory))
    with pytest.raises(InputError, match="another order"):
        judge_nve(run)


def test_log_of_another_trajectory(sound, tmp_path):
    """Of the same molecule, as long, from another seed: only the energies of its frames tell."""
    other = short_run(tmp_path / "other", seed=2)
    run = copy_of(sound, tmp_path)
    run.thermo.write_bytes(other.thermo.read_bytes())
    assert judge_nve(run).passed, "each file by itself is sound"
    with pytest.raises(InputError, match="different runs"):
        judge_nve(run, springs_of_run())


def copy_of(run: RunFolder, folder: Path) -> RunFolder:
    copy = RunFolder(folder)
    for name in ("topology", "trajectory", "thermo", "settings"):
        getattr(copy, name).write_bytes(getattr(run, name).read_bytes())
    return copy
