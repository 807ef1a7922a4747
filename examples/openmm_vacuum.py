"""Simulate a molecule in vacuum at 300 K with OpenMM and a monitor.

python examples/openmm_vacuum.py
"""

import argparse
import csv
from pathlib import Path

from openmm import LangevinMiddleIntegrator, unit
from openmm.app import DCDReporter, Simulation

from openmm_integration import Monitor, create_system, load_structure

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="original")
parser.add_argument("--output", type=Path, default=Path("runs/examples"))
parser.add_argument("--short", action="store_true", help="100 steps instead of 10,000")
options = parser.parse_args()
options.output.mkdir(parents=True, exist_ok=True)

molecule = Path(__file__).with_name("alanine_dipeptide.pdb")
topology, positions = load_structure(str(molecule))
system = create_system(topology, options.model)
integrator = LangevinMiddleIntegrator(300 * unit.kelvin, 1 / unit.picosecond, 0.0005)
integrator.setRandomNumberSeed(1)
simulation = Simulation(topology, system, integrator)
simulation.context.setPositions(positions)
simulation.minimizeEnergy()
simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)
steps = 100 if options.short else 10_000
log = options.output / "openmm_vacuum.csv"
guard = Monitor(topology, positions, options.model, every=steps // 5, csv=str(log))
simulation.reporters.append(guard)
simulation.reporters.append(DCDReporter(str(options.output / "openmm_vacuum.dcd"), steps // 20))
simulation.step(steps)
print("time (ps)   total energy (eV)   temperature (K)   largest change of a bond (angstrom)")
with log.open(newline="") as file:
    for row in csv.DictReader(file):
        print(
            f"{float(row['time_ps']):9.2f} {float(row['total_ev']):19.4f} "
            f"{float(row['temperature_k']):17.0f} {float(row['bond_deviation_angstrom']):37.3f}"
        )
