"""Simulate a solute by the student in TIP3P water with OpenMM and openmm-ml (ML/MM).

python examples/openmm_mixed.py
"""

import argparse
from pathlib import Path

from openmm import LangevinMiddleIntegrator, Vec3, unit
from openmm.app import PME, ForceField, HBonds, Modeller, PDBFile, Simulation
from openmmml import MLPotential

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="original")
parser.add_argument("--short", action="store_true", help="20 steps instead of 2000")
options = parser.parse_args()

pdb = PDBFile(str(Path(__file__).with_name("ace_ala_nme.pdb")))
force_field = ForceField("amber14-all.xml", "amber14/tip3p.xml")
solution = Modeller(pdb.topology, pdb.positions)
solution.addSolvent(force_field, boxSize=Vec3(2.4, 2.4, 2.4) * unit.nanometer)
mm = force_field.createSystem(
    solution.topology, nonbondedMethod=PME, nonbondedCutoff=0.9 * unit.nanometer, constraints=HBonds
)
solute = [atom.index for atom in next(solution.topology.chains()).atoms()]
mixed = MLPotential(f"mlff-student-{options.model}").createMixedSystem(
    solution.topology, mm, solute
)
print(f"{len(solute)} atoms by {options.model}, {mm.getNumParticles() - len(solute)} by TIP3P")

integrator = LangevinMiddleIntegrator(300 * unit.kelvin, 1 / unit.picosecond, 0.0005)
integrator.setRandomNumberSeed(1)
simulation = Simulation(solution.topology, mixed, integrator)
simulation.context.setPositions(solution.positions)
simulation.minimizeEnergy(maxIterations=20 if options.short else 200)
simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)
steps = 20 if options.short else 2000
print("   step   potential energy (kJ/mol)")
for _ in range(4):
    simulation.step(steps // 4)
    state = simulation.context.getState(energy=True)
    energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    print(f"{simulation.currentStep:7} {energy:17.1f}")
