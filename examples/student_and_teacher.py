"""Compare errors and times of students with their teacher GFN2-xTB.

python examples/student_and_teacher.py
"""

import argparse
import time
from pathlib import Path

import numpy as np
from ase.io import read

from mlff_student import StudentForceFieldCalculator
from mlff_student.reporting.plots import single_figure
from mlff_student.teachers.registry import make_teacher

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--output", type=Path, default=Path("runs/examples"))
parser.add_argument("--short", action="store_true", help="5 frames instead of 50")
options = parser.parse_args()
options.output.mkdir(parents=True, exist_ok=True)

equilibrium = read(Path(__file__).with_name("ethanol.xyz"))
rng = np.random.default_rng(1)
frames = []
for _ in range(5 if options.short else 50):
    frames.append(equilibrium.copy())
    # Random displacements: these are not frames of a run.
    frames[-1].positions += 0.05 * rng.standard_normal(equilibrium.positions.shape)


def evaluate(calculator) -> tuple[np.ndarray, np.ndarray, float]:
    """Return energies (F,) and forces (F, N, 3) of the frames, and the time per frame in ms."""
    calculator.get_property("energy", equilibrium)  # the first call takes longer
    start = time.perf_counter()
    forces = np.array([calculator.get_property("forces", frame).copy() for frame in frames])
    milliseconds = 1e3 * (time.perf_counter() - start) / len(frames)
    energies = np.array([calculator.get_property("energy", frame) for frame in frames])
    return energies, forces, milliseconds


energies, forces, milliseconds = evaluate(make_teacher("gfn2-xtb"))
print("             force RMSE       energy RMSE     time")
print("             (eV/angstrom)    (meV/atom)      (ms)")
print(f"gfn2-xtb                                    {milliseconds:6.2f}")
forces_of_students = {}
for model in ("original", "tiny", "ultra_tiny"):
    e, f, milliseconds = evaluate(StudentForceFieldCalculator(model))
    forces_of_students[model] = f
    difference = (e - e.mean()) - (energies - energies.mean())  # relative energies
    print(
        f"{model:12} {np.sqrt(np.mean((f - forces) ** 2)):10.3f} "
        f"{1e3 * difference.std() / len(equilibrium):16.2f} {milliseconds:12.2f}"
    )

figure = options.output / "student_and_teacher.png"
x, y = "force by GFN2-xTB (eV/angstrom)", "student - GFN2-xTB (eV/angstrom)"
with single_figure(figure, x, y) as axes:
    axes.axhline(0.0, color="black", linewidth=0.8)
    for model, f in reversed(forces_of_students.items()):
        axes.plot(forces.ravel(), (f - forces).ravel(), ".", markersize=4, label=model)
print(f"wrote {figure}")
