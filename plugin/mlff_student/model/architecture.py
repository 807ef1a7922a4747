"""Sizes and constants of a student: its configuration, the shapes of its weights, derived buffers.

This file needs no torch. The names are those of the `state_dict` of `model.student.Student`.
"""

from dataclasses import asdict, dataclass, replace
from math import isfinite, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlff_student.model.elements import ELEMENTS

READOUT_CHANNELS = 64
CHANNEL_MULTIPLE = 16  # SIMD
HEAVIEST = 118  # largest atomic number that `species_of` has an entry for
PRECISIONS = ("float32", "float64")  # of a student
POSITIVE = ("channels", "layers", "radial_functions", "cutoff", "shortest")

# Universal screening function: J. F. Ziegler, J. P. Biersack, U. Littmark, "The Stopping and Range
# of Ions in Matter", Pergamon, New York (1985).
SCREENING_WEIGHTS = (0.1818, 0.5099, 0.2802, 0.02817)
SCREENING_RATES = (3.2, 0.9423, 0.4029, 0.2016)
BOHR = 0.529177210903  # angstrom, CODATA 2018
HARTREE = 27.211386245988  # eV, CODATA 2018
SCREENING_LENGTH = 0.8854 * BOHR  # angstrom
SCREENING_POWER = 0.23
COULOMB = HARTREE * BOHR  # e^2 / (4 pi epsilon_0), eV angstrom

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class StudentConfig:
    """Architecture of a student.

    Attributes
    ----------
    channels : int
        Width F of the scalar and vector features, a multiple of 16 (SIMD).
    layers : int
        Number of message-passing layers.
    radial_functions : int
        Number R of Bessel functions in which a distance is expanded.
    cutoff : float
        Cutoff, angstrom.
    elements : tuple[str, ...]
        Chemical symbols of the elements that the student knows.
    repulsion_reach : float
        Distance from which the short-range repulsion is zero, divided by the sum of the covalent
        radii (0.75: C-C 1.14, C-H 0.80, H-H 0.47 angstrom, below any bond at rest).
    shortest : float
        Distance below which the filters become constant, angstrom; at shorter distances the
        repulsion acts. See `model.student.squeeze_distances`.
    lowest : float
        Network energy of an atom below which it is bounded, eV; in training it stays above -2 eV.
        See `model.student.squeeze_energies`.
    """

    channels: int
    layers: int
    radial_functions: int
    cutoff: float = 5.0
    elements: tuple[str, ...] = tuple(ELEMENTS)
    repulsion_reach: float = 0.75
    shortest: float = 0.88
    lowest: float = -3.0

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes as plain values, for a checkpoint or a card."""
        return asdict(self) | {"elements": list(self.elements)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "StudentConfig":
        """Make a configuration from the values that `as_dict` returns."""
        config = cls(**values)
        return replace(config, elements=tuple(config.elements))


PRESETS = {
    "original": StudentConfig(channels=128, layers=3, radial_functions=20),  # 429K
    "tiny": StudentConfig(channels=64, layers=2, radial_functions=12),  # 76K
    "ultra_tiny": StudentConfig(channels=32, layers=2, radial_functions=10),  # 21K
}


def dtype_name(dtype: Any) -> str:
    """Return the name of a precision, for example "float32" for torch.float32.

    Parameters
    ----------
    dtype : Any
        Precision of torch or NumPy, or its name.
    """
    return str(dtype).removeprefix("torch.")


def weight_shapes(config: StudentConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each trained array of a student by its name.

    Parameters
    ----------
    config : StudentConfig
        Architecture of the student.
    """
    f, r, species = config.channels, config.radial_functions, len(config.elements)
    layer = {
        **{"filter.weight": (3 * f, r), "filter.bias": (3 * f,)},
        **{"message.weight": (3 * f, f), "message.bias": (3 * f,)},
        "mix.weight": (f, f),
        **{"update_in.weight": (f, 2 * f), "update_in.bias": (f,)},
        **{"update_out.weight": (2 * f, f), "update_out.bias": (2 * f,)},
    }
    return {
        "references": (species,),
        "embedding.weight": (species, f),
        **{f"blocks.{k}.{name}": s for k in range(config.layers) for name, s in layer.items()},
        **{"readout_in.weight": (READOUT_CHANNELS, f), "readout_in.bias": (READOUT_CHANNELS,)},
        **{"readout_out.weight": (1, READOUT_CHANNELS), "readout_out.bias": (1,)},
    }


def parameters_of(config: StudentConfig) -> int:
    """Return the number of trainable weights of a student; reference energies are none.

    Parameters
    ----------
    config : StudentConfig
        Architecture of the student.
    """
    shapes = weight_shapes(config)
    return sum(prod(shape) for name, shape in shapes.items() if name != "references")


def derived_buffers(config: StudentConfig, dtype: str = "float32") -> Arrays:
    """Return the arrays of a student that follow from its architecture, by their names.

    Parameters
    ----------
    config : StudentConfig
        Architecture of the student.
    dtype : str
        Precision of the weights, "float32" or "float64".

    Returns
    -------
    Arrays
        "species_of" (119,) index of an atomic number in the elements, or -1; "limits" (2,) as in
        `StudentConfig`; "basis.frequencies" (R,) n pi / cutoff; and for S elements "repulsion."
        with "charges" (S, S) in eV angstrom, "lengths" (S, S) and "ranges" (S, S) in angstrom,
        "weights" (4,) and "rates" (4,) of `model.repulsion.ZBLRepulsion`.
    """
    numbers, radii = zip(*(ELEMENTS[symbol] for symbol in config.elements), strict=True)
    species = np.full(HEAVIEST + 1, -1, dtype=np.int64)
    species[list(numbers)] = np.arange(len(numbers))
    z, radius = np.array(numbers, dtype=np.float64), np.array(radii)
    # By Python's power, whose last bit does not depend on the instruction set.
    power = np.array([number**SCREENING_POWER for number in numbers])
    orders = np.arange(1, config.radial_functions + 1, dtype=np.float64)
    return {
        "species_of": species,
        "limits": np.array([config.shortest, config.lowest], dtype=np.float64),
        "basis.frequencies": (orders * np.pi / config.cutoff).astype(dtype),
        "repulsion.charges": COULOMB * z[:, None] * z,
        "repulsion.lengths": SCREENING_LENGTH * (1.0 / (power[:, None] + power)),
        "repulsion.ranges": config.repulsion_reach * (radius[:, None] + radius),
        "repulsion.weights": np.array(SCREENING_WEIGHTS),
        "repulsion.rates": np.array(SCREENING_RATES),
    }


def checked_config(values: Any, weights: Arrays) -> StudentConfig:
    """Return the configuration of weights, after checking both.

    Parameters
    ----------
    values : Any
        Architecture, as `StudentConfig.as_dict` returns it.
    weights : Arrays
        Arrays by their names in the `state_dict` of a student; there may be others.

    Raises
    ------
    ValueError
        The architecture is not possible, the arrays have other shapes, or a weight is not finite.
    """
    try:
        config = StudentConfig.from_dict(values)
        _check_values(config)
        for name, size in _sizes(weights).items():
            claimed = len(config.elements) if name == "elements" else getattr(config, name)
            if claimed != size:
                raise ValueError(f"{name} is {claimed}, but the weights have {size}")
        if unknown := set(config.elements) - ELEMENTS.keys():
            raise ValueError(f"the element {sorted(unknown)[0]!r:.80} is unknown")
        shapes = weight_shapes(config)
    except (TypeError, AttributeError, LookupError) as error:
        raise ValueError(f"it is not the architecture of a student: {error}") from error
    if config.channels % CHANNEL_MULTIPLE:
        raise ValueError(f"channels must be a multiple of 16, got {config.channels}")
    for name, shape in shapes.items():
        if name not in weights:
            raise ValueError(f"there is no tensor {name}")
        if weights[name].shape != shape:
            raise ValueError(f"{name} has the shape {weights[name].shape}, expected {shape}")
        if unusable := int((~np.isfinite(weights[name])).sum()):
            raise ValueError(f"{unusable} of the {prod(shape)} numbers of {name} are not finite")
    return config


def _sizes(weights: Arrays) -> dict[str, int]:
    """Return the sizes that the arrays have, so that no memory is taken for sizes that they lack.

    Raises
    ------
    LookupError
        An array is missing.
    """
    elements, channels = weights["embedding.weight"].shape
    _, radial_functions = weights["blocks.0.filter.weight"].shape
    layers = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
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
                raise ValueError(f"elements is {value!r:.80}")
            continue
        kinds = int if name in ("channels", "layers", "radial_functions") else int | float
        if (
            not isinstance(value, kinds)
            or isinstance(value, bool)
            or not isfinite(value)
            or (name in POSITIVE and value <= 0)
        ):
            raise ValueError(f"{name} is {value!r:.80}")
