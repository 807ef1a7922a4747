"""Check energy and bonds in a run of another program.

Here the run is made with OpenMM and the AMBER force field. `mlff-student analyze` takes any run
with a trajectory that MDTraj reads, a PDB file of its atoms, and a log of OpenMM, LAMMPS or ASE.

    python examples/drift_of_a_dcd.py
"""

import argparse
import shlex
import subprocess
from pathlib import Path

from openmm import LangevinMiddleIntegrator, VerletIntegrator
from openmm.app import DCDReporter, ForceField, PDBFile, Simulation, StateDataReporter

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--output", type=Path, default=Path("runs/examples/amber"))
parser.add_argument("--short", action="store_true", help="5 ps instead of 20")
options = parser.parse_args()
options.output.mkdir(parents=True, exist_ok=True)
topology, trajectory, log = (options.output / name for name in ("run.pdb", "run.dcd", "run.csv"))

# The run of the other program.
pdb = PDBFile(str(Path(__file__).with_name("ace_ala_nme.pdb")))
system = ForceField("amber14-all.xml").createSystem(pdb.topology)
warm = Simulation(pdb.topology, system, LangevinMiddleIntegrator(300, 10, 0.0005))
warm.context.setPositions(pdb.positions)
warm.minimizeEnergy()
warm.step(4000)
simulation = Simulation(pdb.topology, system, VerletIntegrator(0.0005))
simulation.context.setState(warm.context.getState(positions=True, velocities=True))
simulation.reporters.append(DCDReporter(str(trajectory), 20))
columns = {"time": True, "potentialEnergy": True, "kineticEnergy": True, "temperature": True}
simulation.reporters.append(StateDataReporter(str(log), 20, totalEnergy=True, **columns))
simulation.step(10_000 if options.short else 40_000)
minimised = warm.context.getState(positions=True).getPositions()
with topology.open("w") as file:
    PDBFile.writeFile(pdb.topology, minimised, file)

command = ["mlff-student", "analyze", trajectory, "--top", topology, "--log", log]
command = [str(word) for word in command]
print(shlex.join(command), flush=True)
raise SystemExit(subprocess.run(command).returncode)
