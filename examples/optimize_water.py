"""Relax distorted water until the forces are below 0.01 eV/angstrom.

python examples/optimize_water.py
"""

from ase.build import molecule
from ase.optimize import BFGS

from mlff_student import StudentForceFieldCalculator

atoms = molecule("H2O")
atoms.set_distance(0, 1, 1.15, fix=0)
atoms.set_angle(1, 0, 2, 90.0)
atoms.calc = StudentForceFieldCalculator("original")


def describe(when: str) -> None:
    """Print bonds, angle and energy."""
    bonds = atoms.get_distances(0, [1, 2])
    print(
        f"{when}: O-H {bonds[0]:.3f} and {bonds[1]:.3f} angstrom, H-O-H "
        f"{atoms.get_angle(1, 0, 2):.1f} degrees, energy {atoms.get_potential_energy():.4f} eV"
    )


describe("before")
converged = BFGS(atoms).run(fmax=0.01, steps=100)
describe("after ")
raise SystemExit(0 if converged else 1)
