"""What a bundle runs: training of all presets of its recipe within a number of minutes.

This module needs torch and NumPy only.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlff_student.core.files import atomic_write
from mlff_student.core.settings import parse_settings
from mlff_student.distill.graphs import build_graphs
from mlff_student.distill.packed import read_packed
from mlff_student.distill.recipe import Recipe
from mlff_student.distill.train import train, validation_errors
from mlff_student.model.student import PRESETS, Student


def main(folder: Path, arguments: Sequence[str] | None = None) -> None:
    """Train the presets of a bundle, and write their errors on the test frames.

    Parameters
    ----------
    folder : Path
        Folder of the bundle. Each preset gets a folder in it with model.pt, metrics.csv and
        errors.json.
    arguments : sequence of str, optional
        Arguments of the command line; those of the process if not given.
    """
    parser = argparse.ArgumentParser(
        description="Train the students of this folder, on a GPU if there is one. The same command "
        "resumes after a kill.",
        epilog="Example: python train.py --minutes 8",
    )
    parser.add_argument(
        "--minutes", type=float, required=True, help="time for all presets together"
    )
    parser.add_argument("--models", nargs="+", help="presets to train; all if not given")
    parser.add_argument("--no-compile", action="store_true", help="do not use torch.compile")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    options = parser.parse_args(arguments)
    recipe = parse_settings(Recipe, json.loads((folder / "recipe.json").read_text()))
    models = options.models or list(recipe.training)
    if unknown := set(models) - set(recipe.training):
        parser.error(f"no preset {', '.join(unknown)}; there are {', '.join(recipe.training)}")
    shares = {model: recipe.training[model].share for model in models}
    for model in models:
        checkpoint = train(
            recipe,
            model,
            folder / "data.npz",
            folder / model,
            compiled=not options.no_compile,
            minutes=options.minutes * shares[model] / sum(shares.values()),
            quiet=options.quiet,
        )
        errors = test_errors(model, checkpoint, folder / "data.npz")
        with atomic_write(folder / model / "errors.json") as temporary:
            temporary.write_text(json.dumps(errors, indent=1))
        print(model, json.dumps(errors["all"]))


def test_errors(model: str, checkpoint: dict[str, Any], data: Path) -> dict[str, dict[str, float]]:
    """Measure the errors of a trained student on the test frames, by kind of structure.

    Parameters
    ----------
    model : str
        Name of the preset.
    checkpoint : dict
        What `train` returns.
    data : Path
        Packed dataset.

    Returns
    -------
    dict
        For "all" and for each kind: number of frames, and the fields of `Errors`.
    """
    student = Student(PRESETS[model])
    student.load_state_dict(checkpoint["weights"])
    frames = read_packed(data, "test")
    graphs = build_graphs(frames, student)
    kinds = np.array(frames.kinds)[frames.molecule.numpy()]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network, graphs = student.to(device).network, graphs.to(device)
    groups = {"all": np.arange(len(kinds))}
    groups |= {str(kind): np.flatnonzero(kinds == kind) for kind in sorted(set(kinds))}
    return {
        name: {"frames": len(rows), **validation_errors(network, graphs, rows.tolist())._asdict()}
        for name, rows in groups.items()
        if len(rows)
    }
