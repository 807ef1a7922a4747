"""What limits the students: data, steps, width, curvature, labels of a larger student.

    python checkpoints/data/studies/run.py runs/studies

trains short variations of the shipped recipe on the shipped data and writes results.csv and
results.png beside this file. Each training goes on where a killed run stopped.
"""

import csv
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlff_student.archive.registry import available_models, load_student
from mlff_student.core.files import atomic_write
from mlff_student.distill.dataset import read_frames
from mlff_student.distill.evaluate import evaluate_frames
from mlff_student.distill.recipe import ORGANIC_RECIPE, read_recipe
from mlff_student.distill.relabel import relabel
from mlff_student.distill.train import train
from mlff_student.reporting.plots import single_figure

HERE = Path(__file__).parent
DATASET = HERE.with_name("organic.h5")
SHORT = {"steps": 6000, "displaced_weight": 0.0}
COPIES = 1  # of each frame, labelled by the original

# study, name, preset, changes of its settings, structures (0: all), with the original's labels
STUDIES: list[tuple[str, str, str, dict[str, Any], int, bool]] = [
    ("reference", "reference", "ultra_tiny", {}, 0, False),
    ("data", "data_325", "ultra_tiny", {}, 325, False),
    ("data", "data_1300", "ultra_tiny", {}, 1300, False),
    ("steps", "steps_2000", "ultra_tiny", {"steps": 2000}, 0, False),
    ("steps", "steps_18000", "ultra_tiny", {"steps": 18000}, 0, False),
    ("curvature", "curvature", "ultra_tiny", {"hessian_weight": 0.01}, 0, False),
    ("curvature", "curvature_lightly", "ultra_tiny", {"hessian_weight": 3e-4}, 0, False),
    ("ladder", "ladder", "ultra_tiny", {}, 0, True),
    ("width", "width_64", "tiny", {}, 0, False),
    ("width", "width_128", "original", {}, 0, False),
]


def main(folder: Path) -> None:
    """Train and measure all of them; rows are written as they come."""
    recipe = read_recipe(ORGANIC_RECIPE)
    test = read_frames(DATASET, "test")
    rows: list[dict[str, Any]] = []
    for study, name, preset, changes, structures, climbs in STUDIES:
        settings = replace(recipe.training[preset], **SHORT | changes)
        extra = folder / "relabelled.h5" if climbs else None
        if extra:
            larger = available_models()["original"] / "model.pt"
            options = {"copies": COPIES, "largest_force": recipe.largest_force, "seed": recipe.seed}
            relabel(larger, DATASET, extra, **options)
        checkpoint = train(
            replace(recipe, training={preset: settings}),
            preset,
            DATASET,
            folder / name,
            extra=[extra] if extra else [],
            structures=structures,
        )
        student, config = load_student(folder / name / "model.pt")
        errors = evaluate_frames(student, test)
        rows.append(
            {
                "study": study,
                "model": preset,
                "channels": config.channels,
                "steps": settings.steps,
                "structures": structures or len(read_frames(DATASET, "train").names),
                "frames": checkpoint["training"]["history"][-1]["frames"],
                "hessian_weight": settings.hessian_weight,
            }
            | {key: errors[key] for key in ("force_rmse_ev_per_angstrom", "force_r2")}
        )
        with atomic_write(HERE / "results.csv") as temporary, open(temporary, "w") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    plot(rows)


def plot(rows: list[dict[str, Any]]) -> None:
    """Force errors against what was varied, relative to the reference."""
    reference = rows[0]
    with single_figure(HERE / "results.png", "times the reference", "force RMSE (eV/Å)") as axes:
        axes.set_xscale("log")
        for study, key in (("data", "structures"), ("steps", "steps"), ("width", "channels")):
            some = sorted(
                (row for row in rows if row["study"] in (study, "reference")),
                key=lambda row, key=key: row[key],
            )
            axes.plot(
                [row[key] / reference[key] for row in some],
                [row["force_rmse_ev_per_angstrom"] for row in some],
                marker="o",
                label=key,
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
