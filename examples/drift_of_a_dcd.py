"""Did energy stay and did bonds hold, in a run that this package had no part in?

The run here is OpenMM's, with the AMBER force field. Any other will do: `mlff-student analyze`
wants a trajectory that MDTraj reads, a PDB of the same atoms, and a CSV of time and energies.

    python examples/drift_of_a_dcd.py
"""

import argparse
import csv
import subprocess
from pathlib import Path

from openmm import LangevinMiddleIntegrator, VerletIntegrator
from openmm.app import DCDReporter, ForceField, PDBFile, Simulation, StateDataReporter

from mlff_student.units import KJ_PER_MOL

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--output", type=Path, default=Path("runs/examples/amber"))
parser.add_argument("--short", action="store_true", help="5 ps instead of 20")
options = parser.parse_args()
options.output.mkdir(parents=True, exist_ok=True)
topology, trajectory, log = (options.output / name for name in ("run.pdb", "run.dcd", "run.csv"))

# The other program.
pdb = PDBFile(str(Path(__file__).with_name("ace_ala_nme.pdb")))
system = ForceField("amber14-all.xml").createSystem(pdb.topology)
warm = Simulation(pdb.topology, system, LangevinMiddleIntegrator(300, 10, 0.0005))
warm.context.setPositions(pdb.positions)
warm.minimizeEnergy()
warm.step(4000)
simulation = Simulation(pdb.topology, system, VerletIntegrator(0.0005))
simulation.context.setState(warm.context.getState(positions=True, velocities=True))
simulation.reporters.append(DCDReporter(str(trajectory), 20))
facts = {"time": True, "potentialEnergy": True, "kineticEnergy": True, "temperature": True}
raw = str(options.output / "openmm.csv")
simulation.reporters.append(StateDataReporter(raw, 20, totalEnergy=True, **facts))
simulation.step(10_000 if options.short else 40_000)
minimised = warm.context.getState(positions=True).getPositions()
with topology.open("w") as file:
    PDBFile.writeFile(pdb.topology, minimised, file)

# Its log in ps, eV and K, by the names that `analyze` reads.
columns = {
    "time_ps": ("Time (ps)", 1.0),
    "potential_ev": ("Potential Energy (kJ/mole)", KJ_PER_MOL),
    "kinetic_ev": ("Kinetic Energy (kJ/mole)", KJ_PER_MOL),
    "total_ev": ("Total Energy (kJ/mole)", KJ_PER_MOL),
    "temperature_k": ("Temperature (K)", 1.0),
}
with open(raw, newline="") as source, log.open("w", newline="") as target:
    rows = csv.DictReader(line.lstrip("#") for line in source)
    writer = csv.writer(target)
    writer.writerow(columns)
    for row in rows:
        writer.writerow([float(row[name]) * factor for name, factor in columns.values()])

command = f"mlff-student analyze {trajectory} --top {topology} --log {log}"
print(command, flush=True)
raise SystemExit(subprocess.run(command.split()).returncode)
