"""`distill quick`: a student of one structure, from its file to an archive in one command."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from mlff_student.archive.export import export
from mlff_student.archive.registry import available_models
from mlff_student.core.errors import InputError
from mlff_student.distill.evaluate import write_checkpoint
from mlff_student.distill.label import label_sources
from mlff_student.distill.recipe import read_recipe
from mlff_student.distill.sources import Source, connectivity
from mlff_student.distill.train import train
from mlff_student.structures.checks import check_structure
from mlff_student.structures.reading import read_structure
from mlff_student.teachers import make_teacher

QUICK_RECIPE = Path(__file__).with_name("quick.yaml")
TRAJECTORIES = {"train": 12, "validation": 2, "test": 4}  # number in each split


def quick(
    molecule: str,
    preset: str,
    teacher: str,
    output: Path,
    workers: int,
    compiled: bool = True,
    recipe: Path | None = None,
) -> dict[str, Any]:
    """Distil a student for one structure: a molecule, a complex or a crystal.

    The teacher runs MD trajectories, and some of them are held out. Training starts from the
    shipped student of the same preset, which has learned organic chemistry.

    Parameters
    ----------
    molecule : str
        Structure file or SMILES string.
    preset : str
        Preset of the student, such as "tiny".
    teacher : str
        Name of the teacher.
    output : Path
        Folder that receives dataset.h5, <preset>.pt (the archive for the engines) and the
        checkpoint with its card. The same call resumes where a killed one stopped.
    workers : int
        Number of teacher processes on this machine.
    compiled : bool
        Whether torch.compile fuses the training step.
    recipe : Path, optional
        Recipe instead of quick.yaml.

    Returns
    -------
    dict
        The card; see `write_checkpoint`.

    Raises
    ------
    InputError
        The structure has elements or distances that no student can be used for, or the preset or
        the teacher is unknown.
    MissingDependencyError
        The teacher is not installed.
    """
    file = recipe or QUICK_RECIPE
    chosen = read_recipe(file)
    if preset not in chosen.training:
        raise InputError(f"no preset {preset!r}; there are {', '.join(chosen.training)}")
    chosen = replace(chosen, teacher=teacher)
    atoms = read_structure(molecule).atoms
    check_structure(atoms)
    make_teacher(teacher)  # raises now what would end the workers
    sources = [
        Source(
            name=f"{split}_{index}",
            identity=connectivity(atoms),
            kind="crystal" if atoms.pbc.any() else "molecule",
            group="molecule" if split == "train" else "held_out",
            split=split,
            starts=(atoms,),
        )
        for split, count in TRAJECTORIES.items()
        for index in range(count)
    ]
    dataset, folder = output / "dataset.h5", output / "training"
    label_sources(sources, chosen, dataset, workers, split_by="trajectory")
    shipped = available_models().get(preset)
    train(
        chosen,
        preset,
        dataset,
        folder,
        compiled=compiled,
        initial=shipped and shipped / "model.pt",
    )
    card = write_checkpoint(
        chosen, file, dataset, folder / "model.pt", output.resolve().name, output
    )
    export(output / "model.pt", output / f"{preset}.pt", "float32", verify=True)
    return card
