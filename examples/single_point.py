"""Compute energy and forces of a molecule.

python examples/single_point.py
"""

from pathlib import Path

from ase.io import read

from mlff_student import StudentForceFieldCalculator

atoms = read(Path(__file__).with_name("ethanol.xyz"))
atoms.calc = StudentForceFieldCalculator("original", enable_timing=True)

print(atoms.calc)
print(f"energy  {atoms.get_potential_energy():.4f} eV")
print("atom    share of the energy (eV)    force (eV/angstrom)")
for symbol, share, force in zip(
    atoms.symbols, atoms.get_potential_energies(), atoms.get_forces(), strict=True
):
    print(f"{symbol:4} {share:18.4f}            {force[0]:8.4f} {force[1]:8.4f} {force[2]:8.4f}")
print(f"calculated {atoms.calc.get_timing_stats()['count']} time(s) for all of this")
