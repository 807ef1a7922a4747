"""Networks of other packages with random weights and the size of a student, as forces of OpenMM.

TensorNet and MACE run through their potentials in openmm-ml, as their users run them. ANI runs
through the ASE calculator of TorchANI, because openmm-ml takes only the published weights of ANI.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator
from torch import nn

from mlff_student.core.errors import InputError, MissingDependencyError
from mlff_student.model.elements import ELEMENTS

CUTOFF = 5.0  # angstrom, as in the students
NEIGHBOURS = 15.0  # number of neighbours of an atom, by which MACE divides its sums
# The published shape for molecules: Simeon and De Fabritiis 2023, arXiv:2306.06482.
TENSORNET = {
    "model": "tensornet",
    "output_model": "Scalar",
    "num_layers": 2,
    "num_rbf": 32,
    "rbf_type": "expnorm",
    "trainable_rbf": False,
    "activation": "silu",
    "precision": 32,
    "cutoff_lower": 0.0,
    "cutoff_upper": CUTOFF,
    "max_z": 36,
    "max_num_neighbors": 64,
    "equivariance_invariance_group": "O(3)",
    "static_shapes": True,
    "derivative": False,
    "atom_filter": -1,
    "prior_model": None,
    "reduce_op": "add",
    "remove_ref_energy": False,
    "coulomb_cutoff": None,
    "check_errors": False,
    "compatibility_load": False,
}
ANI_2X = ("H", "C", "N", "O", "S", "F", "Cl")


class Architecture(NamedTuple):
    """An architecture whose size depends on a width.

    Attributes
    ----------
    build : callable
        Makes a network of a given width.
    step : int
        Difference between allowed widths.
    elements : tuple of str
        Chemical symbols that the network knows.
    module : str
        Module that is imported to see whether the package is installed.
    package : str
        Name of the package for pip.
    """

    build: Callable[[int], nn.Module]
    step: int
    elements: tuple[str, ...]
    module: str
    package: str


class Rival(NamedTuple):
    """A network with random weights.

    Attributes
    ----------
    architecture : str
        Key of `ARCHITECTURES`.
    network : Module
        The network.
    width : int
        Its width.
    """

    architecture: str
    network: nn.Module
    width: int

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return _count(self.network)

    def calculator(self) -> Calculator | None:
        """Return the ASE calculator through which OpenMM runs the network, if there is one."""
        return self.network.ase() if self.architecture == "ani" else None

    def create_system(self, topology: Any, atoms: Atoms) -> Any:
        """Make a System of openmm-ml whose only force is the network."""
        from openmmml import MLPotential

        with TemporaryDirectory() as folder:
            path = Path(folder) / "random.model"
            if self.architecture == "mace":
                name = "mace"
                torch.save(self.network, path)
            else:
                name = "torchmdnet"
                weights = {
                    f"model.{key}": value for key, value in self.network.state_dict().items()
                }
                settings = TENSORNET | {"embedding_dimension": self.width}
                torch.save({"hyper_parameters": settings, "state_dict": weights}, path)
            potential = MLPotential(name, modelPath=str(path))
            return potential.createSystem(topology, removeCMMotion=False)


def make_rival(name: str, parameters: int, atoms: Atoms) -> Rival:
    """Make a network of an architecture with about a given number of parameters.

    Parameters
    ----------
    name : str
        Key of `ARCHITECTURES`.
    parameters : int
        Wanted number of parameters.
    atoms : Atoms
        Molecule whose elements the network must know.

    Raises
    ------
    InputError
        There is no such architecture, or it does not know an element of the molecule.
    MissingDependencyError
        The package of the architecture is not installed.
    """
    if name not in ARCHITECTURES:
        raise InputError(f"no architecture {name!r}; there are {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[name]
    if unknown := sorted(set(atoms.symbols) - set(architecture.elements)):
        known = ", ".join(architecture.elements)
        raise InputError(f"{name} is built for {known}, not for {', '.join(unknown)}")
    try:
        import_module(architecture.module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{name} does not load ({error}); pip install {architecture.package}"
        ) from error
    torch.manual_seed(0)
    low, high = architecture.step, 2 * architecture.step
    while _count(architecture.build(high)) < parameters:
        low, high = high, 2 * high
    while high - low > architecture.step:
        middle = (low + high) // (2 * architecture.step) * architecture.step
        if _count(architecture.build(middle)) < parameters:
            low = middle
        else:
            high = middle
    rivals = [Rival(name, architecture.build(width), width) for width in (low, high)]
    return min(rivals, key=lambda rival: abs(rival.parameters - parameters))


def _count(network: nn.Module) -> int:
    return sum(weights.numel() for weights in network.parameters())


def _tensornet(width: int) -> nn.Module:
    import warp
    from torchmdnet.models.model import create_model

    warp.config.log_level = warp.LOG_WARNING  # by default it prints the name of each kernel
    return create_model(TENSORNET | {"embedding_dimension": width})


def _mace(width: int) -> nn.Module:
    """Make a network of the shape of MACE-OFF23(S).

    It has two layers with scalar features and a correlation of three neighbours (Kovacs et al.
    2023, arXiv:2312.15211).
    """
    from mace.modules import ScaleShiftMACE, interaction_classes

    irreps = import_module("e3nn.o3").Irreps  # after mace, which lets it load its tables
    return ScaleShiftMACE(
        r_max=CUTOFF,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls_first=interaction_classes["RealAgnosticInteractionBlock"],
        interaction_cls=interaction_classes["RealAgnosticResidualInteractionBlock"],
        num_interactions=2,
        num_elements=len(ELEMENTS),
        hidden_irreps=irreps(f"{width}x0e"),
        MLP_irreps=irreps("16x0e"),
        gate=nn.functional.silu,
        atomic_energies=np.zeros(len(ELEMENTS)),
        avg_num_neighbors=NEIGHBOURS,
        atomic_numbers=[number for number, _ in ELEMENTS.values()],
        correlation=3,
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )


def _ani(width: int) -> nn.Module:
    """Make a network for each element on the features of ANI-2x.

    The hidden layers are as those of hydrogen in ANI-2x (Devereux et al. 2020,
    doi:10.1021/acs.jctc.0c00121).
    """
    from torchani.aev import AEVComputer
    from torchani.arch import ANI
    from torchani.nn import ANINetworks, AtomicNetwork
    from torchani.sae import SelfEnergy

    features = AEVComputer.like_2x()
    layers = (features.out_dim, width, -(-3 * width // 4), -(-5 * width // 8), 1)
    networks = {symbol: AtomicNetwork(layers, "celu", bias=True) for symbol in ANI_2X}
    return ANI(ANI_2X, features, ANINetworks(networks), SelfEnergy(ANI_2X, [0.0] * len(ANI_2X)))


ARCHITECTURES = {
    "tensornet": Architecture(_tensornet, 2, tuple(ELEMENTS), "torchmdnet", "torchmd-net"),
    "mace": Architecture(_mace, 4, tuple(ELEMENTS), "mace", "mace-torch"),
    "ani": Architecture(_ani, 1, ANI_2X, "torchani", "torchani"),
}
