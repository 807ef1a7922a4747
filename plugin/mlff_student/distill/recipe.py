"""The recipe: one YAML file that says which molecules, which teacher, how much MD, how to train."""

from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError

FIRST_RECIPE = Path(__file__).with_name("first.yaml")


@dataclass(frozen=True)
class SamplingRecipe:
    """Teacher MD that makes the data.

    Attributes
    ----------
    molecules : how many molecules of the library, drawn class by class.
    largest : most atoms a molecule may have.
    always : names that must be in the training set.
    temperatures_K : one stretch of Langevin MD each, in this order.
    frames : frames kept in each stretch.
    interval : MD steps between frames.
    equilibration : MD steps before the first frame of a stretch.
    timestep_fs, friction_per_fs : of the Langevin integrator.
    largest_force : frames with a larger force component are dropped, eV/angstrom.
    held_out : fractions of the molecules for validation and for test.
    """

    molecules: int
    largest: int
    always: list[str]
    temperatures_K: list[float]
    frames: int
    interval: int
    equilibration: int
    timestep_fs: float
    friction_per_fs: float
    largest_force: float
    held_out: dict[str, float]


@dataclass(frozen=True)
class TrainingRecipe:
    """Optimisation of one preset.

    Attributes
    ----------
    steps, batch : optimiser steps and frames a step.
    learning_rate : peak of a linear warm-up and cosine decay.
    warmup : steps.
    energy_weight : of the squared energy error an atom (eV^2) against that of a force component
        (eV^2/angstrom^2).
    clip : largest gradient norm.
    ema : decay of the weights' moving average, which is what is validated and kept.
    """

    steps: int
    batch: int
    learning_rate: float
    warmup: int
    energy_weight: float
    clip: float
    ema: float


@dataclass(frozen=True)
class Recipe:
    """A whole distillation."""

    teacher: str
    seed: int
    sampling: SamplingRecipe
    training: dict[str, TrainingRecipe]


def read_recipe(path: Path) -> Recipe:
    """Recipe of a YAML file.

    Raises
    ------
    InputError : file missing, not YAML, or a key misspelt or missing (names the nearest right one).
    """
    if not path.is_file():
        raise InputError(f"no recipe file {path}")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {error}") from error
    values = _checked(Recipe, values, "recipe")
    values["sampling"] = SamplingRecipe(**_checked(SamplingRecipe, values["sampling"], "sampling"))
    held_out = values["sampling"].held_out
    _checked_keys(held_out, ["validation", "test"], "sampling.held_out")
    if not isinstance(values["training"], dict):
        raise InputError("training must be a mapping from presets to their settings")
    values["training"] = {
        preset: TrainingRecipe(**_checked(TrainingRecipe, settings, f"training.{preset}"))
        for preset, settings in values["training"].items()
    }
    return Recipe(**values)


def _checked(kind: type, values: Any, where: str) -> dict[str, Any]:
    known = [field.name for field in fields(kind)]
    return _checked_keys(values, known, where)


def _checked_keys(values: Any, known: list[str], where: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise InputError(f"{where} must be a mapping with the keys {', '.join(known)}")
    for key in values:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise InputError(f"{where}: unknown key {key!r}; {hint}")
    missing = [name for name in known if name not in values]
    if missing:
        raise InputError(f"{where}: missing {', '.join(missing)}")
    return values
