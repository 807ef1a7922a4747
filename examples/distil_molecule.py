"""Train a student for a molecule of your own: label, train, measure and export.

It does the same as `mlff-student distill quick --molecule CCO --preset ultra_tiny`, and takes half
an hour. The same command resumes a killed run.

    python examples/distil_molecule.py
"""

import argparse
from pathlib import Path

import yaml

from mlff_student import StudentForceFieldCalculator
from mlff_student.distill.quick import QUICK_RECIPE, quick
from mlff_student.structures.reading import read_structure

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--molecule", default="CCO", help="SMILES or structure file")
parser.add_argument("--preset", default="ultra_tiny")
parser.add_argument("--output", type=Path, default=Path("runs/examples/mine"))
parser.add_argument(
    "--short", action="store_true", help="quick try: too few frames and steps for a good student"
)


def main() -> None:
    """Label, train, measure and export; in a function because the teacher starts processes."""
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    recipe = yaml.safe_load(QUICK_RECIPE.read_text())
    if options.short:
        short_md = {"temperatures_K": [300], "frames": 2, "interval": 2, "equilibration": 2}
        recipe["sampling"] = {
            "molecule": {"starts": True, "md": short_md},
            "held_out": {"md": short_md},
        }
        recipe["training"][options.preset] |= {"steps": 20, "batch": 8}
    changed = options.output / "recipe.yaml"
    changed.write_text(yaml.safe_dump(recipe))
    card = quick(
        options.molecule,
        options.preset,
        "gfn2-xtb",
        options.output,
        workers=2,
        compiled=not options.short,
        recipe=changed,
    )
    errors = card["accuracy"]["held_out_molecules"]
    print(f"force RMSE on held-out trajectories: {errors['force_rmse_ev_per_angstrom']:.4f}")

    atoms = read_structure(options.molecule).atoms
    atoms.calc = StudentForceFieldCalculator(options.output / f"{options.preset}.pt")
    print(f"{atoms.calc}\nenergy {atoms.get_potential_energy():.4f} eV")


if __name__ == "__main__":
    main()
