"""Make a thousand conformers with RDKit, and rank them with the student in a single call.

python examples/screen_conformers.py
"""

import argparse
import time
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.io import write
from rdkit import Chem
from rdkit.Chem import AllChem, rdMolAlign

from mlff_student import StudentForceFieldCalculator
from mlff_student.reporting.plots import single_figure

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smiles", default="CC(=O)N[C@@H](C)C(=O)NC")
parser.add_argument("--model", default="tiny")
parser.add_argument("--output", type=Path, default=Path("runs/examples"))
parser.add_argument("--best", type=int, default=10, help="number of different conformers to write")
parser.add_argument("--short", action="store_true", help="50 conformers instead of 1000")
options = parser.parse_args()
options.output.mkdir(parents=True, exist_ok=True)

molecule = Chem.AddHs(Chem.MolFromSmiles(options.smiles))
count = 50 if options.short else 1000
AllChem.EmbedMultipleConfs(molecule, numConfs=count, randomSeed=1)
AllChem.MMFFOptimizeMoleculeConfs(molecule, maxIters=200)
symbols = [atom.GetSymbol() for atom in molecule.GetAtoms()]
conformers = [Atoms(symbols, conformer.GetPositions()) for conformer in molecule.GetConformers()]

calculator = StudentForceFieldCalculator(options.model)
start = time.perf_counter()
results = calculator.calculate_batch(conformers)
seconds = time.perf_counter() - start
print(
    f"{len(conformers)} conformers of {len(symbols)} atoms in {seconds:.2f} s, "
    f"{1e3 * seconds / len(conformers):.2f} ms each"
)

energies = np.array([result["energy"] for result in results])
relative = (energies - energies.min()) / (units.kcal / units.mol)
# Many conformers are the same. Of those closer than an RMSD of 0.5 angstrom (of heavy atoms, with
# equivalent atoms exchanged), only the conformer with the lowest energy is kept.
heavy = Chem.RemoveHs(molecule)
ids = [conformer.GetId() for conformer in heavy.GetConformers()]
best: list[int] = []
for k in map(int, np.argsort(relative)):
    if len(best) == options.best:
        break
    if all(rdMolAlign.GetBestRMS(heavy, heavy, ids[k], ids[j]) > 0.5 for j in best):
        best.append(k)
write(options.output / "best.xyz", [conformers[k] for k in best])
highest = relative[best[-1]]
print(f"{len(best)} different conformers up to {highest:.1f} kcal/mol are in best.xyz")
counts = ", ".join(str((relative < limit).sum()) for limit in (1, 3, 5))
print(f"conformers within 1, 3 and 5 kcal/mol: {counts}")
figure = options.output / "screen_conformers.png"
x, y = "energy above the best (kcal/mol)", "conformers"
with single_figure(figure, x, y) as axes:
    axes.hist(relative, bins=40)
print(f"wrote {figure}")
