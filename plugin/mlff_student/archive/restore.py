"""Make a student of the values and tensors of a file, after checking them."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from mlff_student.model.student import Student, StudentConfig

POSITIVE = ("channels", "layers", "radial_functions", "cutoff", "shortest")


def restore_student(
    values: Any, tensors: Mapping[str, Tensor], dtype: torch.dtype
) -> tuple[Student, StudentConfig]:
    """Make a student, ready for inference.

    Parameters
    ----------
    values : Any
        Architecture, as `StudentConfig.as_dict` returns it.
    tensors : Mapping[str, Tensor]
        Weights by their names in the `state_dict` of a student; there may be others.
    dtype : torch.dtype
        Precision of the student.

    Returns
    -------
    student : Student
        Student in evaluation mode, whose weights need no gradients.
    config : StudentConfig
        Architecture of the student.

    Raises
    ------
    ValueError
        The architecture is not possible, the tensors have other shapes, or a weight is not finite.
    """
    try:
        if not all(isinstance(value, Tensor) for value in tensors.values()):
            raise ValueError("a weight is no tensor")
        config = StudentConfig.from_dict(values)
        _check_values(config)
        actual = _sizes(tensors)
        for name, size in actual.items():
            claimed = len(config.elements) if name == "elements" else getattr(config, name)
            if claimed != size:
                raise ValueError(f"{name} is {claimed}, but the weights have {size}")
        student = Student(config, dtype)
    except (TypeError, AttributeError, LookupError, RuntimeError) as error:
        raise ValueError(f"it is not the architecture of a student: {error}") from error
    expected = student.state_dict()
    for name, value in expected.items():
        if name not in tensors:
            raise ValueError(f"there is no tensor {name}")
        shape = tuple(tensors[name].shape)
        if shape != tuple(value.shape):
            raise ValueError(f"{name} has the shape {shape}, expected {tuple(value.shape)}")
        if unusable := int((~tensors[name].isfinite()).sum()):
            raise ValueError(f"{unusable} of the {value.numel()} numbers of {name} are not finite")
    student.load_state_dict({name: tensors[name] for name in expected})
    return student.eval().requires_grad_(False), config


def _sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the sizes that the tensors have, so that no memory is taken for sizes that they lack.

    Raises
    ------
    LookupError
        A tensor is missing.
    """
    elements, channels = tensors["embedding.weight"].shape
    _, radial_functions = tensors["blocks.0.filter.weight"].shape
    layers = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    return {
        "channels": channels,
        "radial_functions": radial_functions,
        "layers": len(layers),
        "elements": elements,
    }


def _check_values(config: StudentConfig) -> None:
    for name, value in vars(config).items():
        if name == "elements":
            if len(set(value)) < len(value) or not value:
                raise ValueError(f"elements is {value}")
            continue
        kinds = int if name in ("channels", "layers", "radial_functions") else int | float
        if not isinstance(value, kinds) or not isfinite(value) or (name in POSITIVE and value <= 0):
            raise ValueError(f"{name} is {value!r:.80}")
