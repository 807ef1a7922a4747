"""Train short variations of a recipe, to see what limits the accuracy of the students."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from mlff_student.archive.registry import available_models, load_student
from mlff_student.cli import run
from mlff_student.core.errors import InputError
from mlff_student.core.files import atomic_write
from mlff_student.distill.dataset import read_frames
from mlff_student.distill.evaluate import evaluate_student
from mlff_student.distill.recipe import ORGANIC_RECIPE, Recipe, read_recipe
from mlff_student.distill.relabel import relabel
from mlff_student.distill.train import train
from mlff_student.reporting.plots import single_figure

COPIES = 1  # number of copies of each frame that the larger student labels


class Study(NamedTuple):
    """A training that differs from the reference in one setting.

    Attributes
    ----------
    study : str
        What is varied: "data", "steps", "relabelling" or "width"; "reference" if nothing.
    name : str
        Name of the training and of its folder.
    preset : str
        Preset that is trained.
    steps_factor : float
        Number of steps over that of the reference.
    structures_fraction : float
        Fraction of the structures of the dataset.
    relabelled : bool
        Whether frames that `original` has labelled are added.
    """

    study: str
    name: str
    preset: str = "ultra_tiny"
    steps_factor: float = 1.0
    structures_fraction: float = 1.0
    relabelled: bool = False


REFERENCE = Study("reference", "reference")
STUDIES = (
    REFERENCE,
    Study("data", "data_sixteenth", structures_fraction=1 / 16),
    Study("data", "data_quarter", structures_fraction=1 / 4),
    Study("steps", "steps_third", steps_factor=1 / 3),
    Study("steps", "steps_triple", steps_factor=3.0),
    Study("relabelling", "relabelled", relabelled=True),
    Study("width", "width_64", "tiny"),
    Study("width", "width_128", "original"),
)


def main(
    dataset: Annotated[Path, typer.Argument(help="Dataset (HDF5) of a recipe.")],
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", help="Folder for the trainings, results.csv and results.png."
        ),
    ] = Path("studies"),
    recipe: Annotated[
        Path, typer.Option(help="Recipe of the dataset; the shipped one if not given.")
    ] = ORGANIC_RECIPE,
    steps: Annotated[
        int, typer.Option(min=3, help="Number of steps of the reference training.")
    ] = 6000,
    only: Annotated[
        str, typer.Option(help="Names of trainings, separated by commas; all if not given.")
    ] = "",
) -> None:
    """Train short variations of a recipe, and compare their force errors on held-out molecules.

    A training takes some minutes; that of `original` takes longest. The same command resumes after
    a kill. Making the data takes hours.

    Example: mlff-student distill sample organic.yaml --data runs/organic &&
    python benchmarks/learning_studies.py runs/organic/dataset.h5 -o runs/studies
    """
    if not dataset.is_file():
        raise InputError(
            f"no dataset {dataset}; make it with: mlff-student distill sample {recipe} "
            f"--data {dataset.parent}"
        )
    names = only.split(",") if only else [study.name for study in STUDIES]
    if unknown := set(names) - {study.name for study in STUDIES}:
        raise InputError(
            f"no study {min(unknown)!r}; there are {', '.join(study.name for study in STUDIES)}"
        )
    output.mkdir(parents=True, exist_ok=True)
    settings = read_recipe(recipe)
    rows = []
    for study in (study for study in STUDIES if study.name in names):
        rows.append(measure(study, settings, dataset, steps, output))
        with atomic_write(output / "results.csv") as temporary, temporary.open("w") as stream:
            writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    plot(rows, output / "results.png")
    print(f"written: {output / 'results.csv'}, {output / 'results.png'}")


def measure(
    study: Study, recipe: Recipe, dataset: Path, steps: int, output: Path
) -> dict[str, Any]:
    """Train one variation and measure it on the test split; return a row of the table."""
    if study.preset not in recipe.training:
        raise InputError(
            f"the recipe has no training of {study.preset!r}, which {study.name} needs"
        )
    settings = replace(
        recipe.training[study.preset],
        steps=round(study.steps_factor * steps),
        displaced_weight=0.0,
    )
    extra = []
    if study.relabelled:
        extra = [output / "relabelled.h5"]
        relabel(
            available_models()["original"] / "model.pt",
            dataset,
            extra[0],
            copies=COPIES,
            largest_force=recipe.largest_force,
            seed=recipe.seed,
        )
    available = len(read_frames(dataset, "train").names)
    structures = max(1, round(study.structures_fraction * available))
    folder = output / study.name
    train(
        replace(recipe, training={study.preset: settings}),
        study.preset,
        dataset,
        folder,
        extra=extra,
        structures=structures if structures < available else 0,
    )
    student, config = load_student(folder / "model.pt")
    errors = evaluate_student(student, read_frames(dataset, "test"))
    return {
        "study": study.study,
        "model": study.preset,
        "channels": config.channels,
        "steps": settings.steps,
        "structures": structures,
        "force_rmse_ev_per_angstrom": errors["force_rmse_ev_per_angstrom"],
        "force_r2": errors["force_r2"],
    }


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot force errors against what was varied, relative to the first row."""
    reference = rows[0]
    with single_figure(path, "times the reference", "force RMSE (eV/Å)") as axes:
        axes.set_xscale("log")
        for study, key in (("data", "structures"), ("steps", "steps"), ("width", "channels")):
            line = sorted(
                (row[key] / reference[key], row["force_rmse_ev_per_angstrom"])
                for row in rows
                if row["study"] in (study, "reference")
            )
            if line:
                axes.plot(*zip(*line, strict=True), marker="o", label=key)


if __name__ == "__main__":
    run(lambda: typer.run(main))
