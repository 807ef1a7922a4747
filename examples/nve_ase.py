"""Run a thousand steps at constant energy in ASE, and measure the energy drift.

python examples/nve_ase.py
"""

import argparse
from pathlib import Path

import numpy as np
from ase import units
from ase.io import read
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

from mlff_student import StudentForceFieldCalculator
from mlff_student.reporting.plots import single_figure

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="original")
parser.add_argument("--output", type=Path, default=Path("runs/examples"))
parser.add_argument("--short", action="store_true", help="200 steps instead of 1000")
options = parser.parse_args()
options.output.mkdir(parents=True, exist_ok=True)

atoms = read(Path(__file__).with_name("ethanol.xyz"))
atoms.calc = StudentForceFieldCalculator(options.model, enable_timing=True)
BFGS(atoms, logfile=None).run(fmax=0.05, steps=200)
rng = np.random.default_rng(1)
thermalize_momenta(atoms, temperature_K=300, rng=rng)
bath = Langevin(
    atoms, 0.5 * units.fs, temperature_K=300, friction=0.05 / units.fs, rng=rng, fixcm=False
)
bath.run(200 if options.short else 1000)
Stationary(atoms)
atoms.calc.reset_timing()

rows = []
dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
dynamics.attach(
    lambda: rows.append((atoms.get_potential_energy(), atoms.get_kinetic_energy())), interval=1
)
dynamics.run(200 if options.short else 1000)

potential, kinetic = 1e3 * np.array(rows).T / len(atoms)  # meV/atom
total = potential + kinetic
time_ps = 5e-4 * np.arange(len(total))
slope, _ = np.polyfit(time_ps, total, 1)
dof = 3 * len(atoms) - 3
temperature = 2e-3 * kinetic.mean() * len(atoms) / (dof * units.kB)
print(f"{len(total) - 1} steps of 0.5 fs, mean temperature {temperature:.0f} K")
print(f"fluctuation of the total energy {total.std():.3f} meV/atom")
print(f"             of the kinetic energy {kinetic.std():.3f} meV/atom")
print(f"drift {slope:.3f} meV/atom/ps")
print(f"median {atoms.calc.get_timing_stats()['median_ms']:.2f} ms for energy and forces")

figure = options.output / "nve_ase.png"
with single_figure(figure, "time (ps)", "energy - mean (meV/atom)") as axes:
    for energy, label in ((potential, "potential"), (kinetic, "kinetic"), (total, "total")):
        axes.plot(time_ps, energy - energy.mean(), label=label)
print(f"wrote {figure}")
