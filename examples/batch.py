"""Compute four molecules at once: H2O, CO2, NH3 and CH4 in a single graph.

python examples/batch.py
"""

from ase.build import molecule

from mlff_student import StudentForceFieldCalculator

calculator = StudentForceFieldCalculator("original")
names = ("H2O", "CO2", "NH3", "CH4")
structures = [molecule(name) for name in names]
together = calculator.calculate_batch(structures)

print("molecule   atoms   energy (eV)   largest force (eV/angstrom)   difference from single calls")
for name, atoms, result in zip(names, structures, together, strict=True):
    single = calculator.get_property("energy", atoms)
    print(
        f"{name:8} {len(atoms):7} {result['energy']:13.4f} {abs(result['forces']).max():18.4f}"
        f" {abs(result['energy'] - single):27.1e} eV"
    )
