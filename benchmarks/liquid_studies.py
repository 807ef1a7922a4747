"""Train short variations of `tiny` on liquids, to see what limits their accuracy there."""

import csv
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from mlff_student.archive.registry import load_student
from mlff_student.cli import run
from mlff_student.core.errors import InputError
from mlff_student.core.files import atomic_write
from mlff_student.distill.dataset import SPLITS, LabelledFrames, read_frames
from mlff_student.distill.evaluate import evaluate_student
from mlff_student.distill.packed import write_packed
from mlff_student.distill.recipe import CONDENSED_RECIPE, Recipe, read_recipe
from mlff_student.distill.train import train
from mlff_student.model.student import PRESETS, parameter_count

PRESET = "tiny"
OF_ATOMS = ("atomic_numbers", "positions", "forces")  # columns of LabelledFrames
OF_FRAMES = ("molecule", "energies", "temperatures", "cells", "pbc", "stresses")
FIGURES = (
    "frames",
    "energy_rmse_ev_per_atom",
    "force_rmse_ev_per_angstrom",
    "force_r2",
    "pressure_error_gpa",
    "pressure_rmse_gpa",
)


@dataclass(frozen=True)
class Study:
    """A training that differs from the reference in one way.

    Attributes
    ----------
    name : str
        Name of the training and of its folder.
    network : dict
        Changed attributes of `StudentConfig`.
    training : dict
        Changed attributes of `TrainingRecipe`.
    """

    name: str
    network: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


STUDIES = (
    Study("reference"),
    Study("cutoff_6", network={"cutoff": 6.0}),
    Study("layers_3", network={"layers": 3}),
    Study("cutoff_6_layers_3", network={"cutoff": 6.0, "layers": 3}),
    Study("channels_128", network={"channels": 128}),
    Study("no_virials", training={"virial_weight": 0.0}),
    Study("virials_10_times", training={"virial_weight": 1000.0}),
    Study("energies_rising", training={"energy_weight": 1000.0, "energy_ramp": 1e-4}),
    Study("differences", training={"difference_weight": 30.0}),
)


def main(
    dataset: Annotated[Path, typer.Argument(help="Dataset (HDF5) with periodic boxes.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for the trainings and results.csv.")
    ] = Path("studies"),
    recipe: Annotated[
        Path, typer.Option(help="Recipe of the dataset; the shipped one if not given.")
    ] = CONDENSED_RECIPE,
    steps: Annotated[int, typer.Option(min=3, help="Number of steps of each training.")] = 3000,
    batch: Annotated[int, typer.Option(min=1, help="Number of boxes in a step.")] = 2,
    only: Annotated[
        str, typer.Option(help="Names of trainings, separated by commas; all if not given.")
    ] = "",
) -> None:
    """Train variations of `tiny` on the boxes of a dataset, and compare them on unseen liquids.

    All trainings have the same batches. The same command resumes after a kill.

    Example: mlff-student distill sample condensed.yaml --data runs/condensed &&
    python benchmarks/liquid_studies.py runs/condensed/dataset.h5 -o runs/liquid_studies
    """
    names = only.split(",") if only else [study.name for study in STUDIES]
    if unknown := set(names) - {study.name for study in STUDIES}:
        raise InputError(
            f"no study {min(unknown)!r}; there are {', '.join(study.name for study in STUDIES)}"
        )
    output.mkdir(parents=True, exist_ok=True)
    boxes = output / "boxes.npz"
    if not boxes.exists():
        splits = {name: boxes_of(read_frames(dataset, name), name == "test") for name in SPLITS}
        if not all(len(frames.energies) for frames in splits.values()):
            raise InputError(f"{dataset} has a split without periodic boxes; label more structures")
        write_packed(boxes, splits)
    settings = read_recipe(recipe)
    rows = []
    for study in (study for study in STUDIES if study.name in names):
        rows.append(measure(study, settings, boxes, steps, batch, output))
        print(rows[-1], flush=True)
        with atomic_write(output / "results.csv") as temporary, temporary.open("w") as stream:
            writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def boxes_of(frames: LabelledFrames, at_300_K: bool) -> LabelledFrames:
    """Return the frames of periodic boxes, or of their MD at 300 K only."""
    chosen = frames.pbc.all(1)
    if at_300_K:
        chosen &= frames.temperatures == 300.0
    kept = chosen.nonzero()[:, 0]
    counts = frames.start.diff()[kept]
    rows = torch.cat([torch.arange(*frames.start[k : k + 2]) for k in kept.tolist()] or [kept])
    return frames._replace(
        methods=[frames.methods[k] for k in kept.tolist()],
        start=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        **{name: getattr(frames, name)[rows] for name in OF_ATOMS},
        **{name: getattr(frames, name)[kept] for name in OF_FRAMES},
    )


def measure(
    study: Study, recipe: Recipe, boxes: Path, steps: int, batch: int, output: Path
) -> dict[str, Any]:
    """Train one variation and measure it on the test split; return a row of the table."""
    PRESETS[study.name] = config = replace(PRESETS[PRESET], **study.network)
    settings = replace(
        recipe.training[PRESET],
        **{"steps": steps, "batch": batch, "edges": 0, "displaced_weight": 0.0} | study.training,
    )
    folder = output / study.name
    training = replace(recipe, training={study.name: settings})
    checkpoint = train(training, study.name, boxes, folder)
    student, _ = load_student(folder / "model.pt")
    test = evaluate_student(student, read_frames(boxes, "test"))
    return {
        "study": study.name,
        "parameters": parameter_count(student),
        "cutoff_angstrom": config.cutoff,
        "layers": config.layers,
        "virial_weight": settings.virial_weight,
        "energy_weight": settings.energy_weight,
        "difference_weight": settings.difference_weight,
        "steps": checkpoint["training"]["steps"],
        "seconds": checkpoint["training"]["seconds"],
        **{key: test[key] for key in FIGURES},
    }


if __name__ == "__main__":
    run(lambda: typer.run(main))
