"""SO3LR as a teacher: the published weights, with electrostatics that do not depend on a cutoff.

SO3LR is a So3krates network plus three physical terms: a short-range repulsion, dispersion between
atoms, and the electrostatics of partial charges that the network predicts, the sum of
q_i q_j erf(r / 4 angstrom) / r over all pairs.

The calculator of `so3krates-torch` 0.2.1 cuts that sum off at 12 angstrom by default and shifts
each pair by its value at the cutoff, but it leaves out the self term -v(r_c) / 2 sum_i q_i^2 that
belongs to the shift (Wolf et al. 1999, doi:10.1063/1.478738). The charges depend on the geometry,
so the forces are wrong as well. This adapter does without a cutoff: open structures sum over all
pairs, periodic structures over the reciprocal lattice. erf(a r) / r is exactly the reciprocal part
of an Ewald sum (Ewald 1921, doi:10.1002/andp.19213690304), here with a = 1/4 per angstrom, so that
a few hundred vectors are enough. Dispersion still ends at 12 angstrom in periodic structures.

Energies of different compositions or total charges are not comparable. The constant that the
published model adds to each atom of any element, -163.618 eV, is left out here.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray
from torch import Tensor
from vesin import NeighborList

from mlff_student.core.errors import InputError, MissingDependencyError

ELEMENTS = ("H", "C", "N", "O", "F", "P", "S", "Cl")  # those of the training data
ELEMENT_COUNT = 118  # of the network's one-hot encoding
COULOMB = 14.399645351950548  # eV angstrom / e^2, as in so3krates-torch
DISPERSION_CUTOFF = 12.0  # angstrom, of periodic structures; the default of so3krates-torch
DISPERSION_FADE = 2.0  # angstrom below the cutoff over which dispersion fades
RECIPROCAL_ACCURACY = 1e-10  # the smallest Gaussian factor exp(-k^2 / 4 a^2) that is summed
EDGES_PER_BATCH = 8000  # short-range edges evaluated at once: what one core's cache holds


class Labels(NamedTuple):
    """What the teacher says of one structure."""

    energy: float  # eV
    forces: NDArray[np.float64]  # (N, 3), eV/angstrom
    stress: NDArray[np.float64] | None  # (3, 3), eV/angstrom^3; None of an open structure
    charges: NDArray[np.float64]  # (N,), elementary charges


class SO3LR(Calculator):
    """ASE calculator of SO3LR with the corrected electrostatics.

    The total charge and the spin multiplicity are read from `atoms.info["charge"]` (0 by default)
    and `atoms.info["spin"]` (2S + 1; 1 by default).

    Parameters
    ----------
    dtype : str
        "float64" (the default) or "float32".
    device : str
        Device of torch.
    """

    implemented_properties = ["energy", "forces", "stress", "charges"]  # noqa: RUF012

    def __init__(self, dtype: str = "float64", device: str = "cpu") -> None:
        super().__init__()
        self.dtype = getattr(torch, dtype)
        self.device = device
        self._model = _load_model(self.dtype, device)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] | None = None,
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Energy, forces, partial charges and, of a periodic structure, stress.

        Raises
        ------
        InputError
            A structure that SO3LR cannot answer for (see `check_structure`).
        """
        super().calculate(atoms, properties, system_changes)
        (labels,) = evaluate(self._model, [self.atoms])
        self.results = {
            "energy": labels.energy,
            "free_energy": labels.energy,
            "forces": labels.forces,
            "charges": labels.charges,
        }
        if labels.stress is not None:
            self.results["stress"] = full_3x3_to_voigt_6_stress(labels.stress)

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last call; ASE itself does not look at charge and spin."""
        changes = super().check_state(atoms, tol)
        if self.atoms is not None and _charge_and_spin(atoms) != _charge_and_spin(self.atoms):
            changes.append("initial_charges")
        return changes

    def label(self, structures: Sequence[Atoms]) -> list[Labels]:
        """Labels of many structures, many of them at once in the network.

        Raises
        ------
        InputError
            As `calculate`.
        """
        return label_structures(structures, str(self.dtype).removeprefix("torch."), self.device)


def label_structures(
    structures: Sequence[Atoms], dtype: str = "float64", device: str = "cpu"
) -> list[Labels]:
    """Labels of many structures, evaluated in batches of about `EDGES_PER_BATCH` edges.

    Parameters
    ----------
    structures : Sequence[Atoms]
        Sequence of Atoms Open or fully periodic, in any mixture.
    dtype : str
        "float64" or "float32".
    device : str
        Device of torch.

    Returns
    -------
    list of Labels
        In the order of the structures.

    Raises
    ------
    InputError
        A structure that SO3LR cannot answer for (see `check_structure`).
    """
    model = _load_model(getattr(torch, dtype), device)
    labels: list[Labels | None] = [None] * len(structures)
    for batch in _batches(structures):
        for index, label in zip(
            batch, evaluate(model, [structures[k] for k in batch]), strict=True
        ):
            labels[index] = label
    return labels  # type: ignore[return-value]


def check_structure(atoms: Atoms) -> None:
    """Refuse a structure that SO3LR would give a meaningless number for.

    Raises
    ------
    InputError
        No atoms; an element that SO3LR was not trained on (it accepts all without a warning);
        positions that are not finite; periodic along one or two directions only; a cell without
        volume; a charge and spin multiplicity that the number of electrons does not allow.
    """
    if not len(atoms):
        raise InputError("the structure has no atoms")
    if unknown := sorted(set(atoms.symbols) - set(ELEMENTS)):
        raise InputError(
            f"SO3LR was trained on {', '.join(ELEMENTS)}; the structure has {', '.join(unknown)}"
        )
    if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
        raise InputError("the positions or the cell are not finite")
    if atoms.pbc.any() and not atoms.pbc.all():
        raise InputError(
            f"periodic along {atoms.pbc.tolist()}: SO3LR is used for open and for fully periodic "
            "structures; make a slab or wire periodic along all directions, with vacuum"
        )
    if atoms.pbc.all() and abs(atoms.cell.volume) < 1e-3:
        raise InputError(f"the cell {atoms.cell.array.tolist()} has no volume")
    charge, multiplicity = _charge_and_spin(atoms)
    electrons = int(atoms.numbers.sum()) - round(charge)
    if charge != round(charge) or multiplicity != round(multiplicity) or multiplicity < 1:
        raise InputError(
            f"charge {charge} and spin multiplicity {multiplicity} must be whole numbers, the "
            "multiplicity 1 or more"
        )
    if electrons % 2 == multiplicity % 2:
        raise InputError(
            f"{electrons} electrons cannot have the spin multiplicity {multiplicity:g}; give the "
            'charge and the multiplicity as atoms.info["charge"] and atoms.info["spin"]'
        )


def evaluate(model: torch.nn.Module, structures: Sequence[Atoms]) -> list[Labels]:
    """Labels of structures that are all open or all periodic, in one call of the network.

    Parameters
    ----------
    model : Module
        As `_load_model` returns it.
    structures : Sequence[Atoms]
        Sequence of Atoms All open or all fully periodic.

    Raises
    ------
    InputError
        See `check_structure`.
    """
    for atoms in structures:
        check_structure(atoms)
    periodic = bool(structures[0].pbc.all())
    graph = _graph(structures, model.r_max, periodic, next(model.parameters()))
    model.r_max_lr = DISPERSION_CUTOFF if periodic else None
    model.electrostatic_potential.graph = graph
    output = model(graph, compute_stress=periodic)
    ends = np.cumsum([len(atoms) for atoms in structures])[:-1]
    energies = output["energy"].detach().double().cpu().numpy()
    forces = np.split(output["forces"].detach().double().cpu().numpy(), ends)
    charges = np.split(output["partial_charges"].detach().double().cpu().numpy(), ends)
    stresses = (
        output["stress"].detach().double().cpu().numpy() if periodic else [None] * len(forces)
    )
    return [
        Labels(float(energies[k]), forces[k], stresses[k], charges[k])
        for k in range(len(structures))
    ]


class ErfCoulomb(torch.nn.Module):
    """Sum of q_i q_j erf(a r) / r over all pairs, without a cutoff.

    Open graphs: over the pairs themselves. Periodic ones: over the reciprocal lattice,

        E = K (2 pi / V) sum_k exp(-k^2 / 4 a^2) / k^2 |S(k)|^2 - K a / sqrt(pi) sum_i q_i^2,

    S(k) = sum_i q_i exp(i k r_i), without k = 0, for which the surroundings conduct and a net
    charge is spread evenly. The second term takes out what the first holds of each atom with
    itself; an atom with its own images stays in.

    It takes the place of `ElectrostaticInteraction` of so3krates-torch, with the same arguments;
    `graph` must be set to the dictionary that `network` is called with: both hold positions and
    cells under the strain that stress is the derivative to.
    """

    graph: dict[str, Tensor]

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self._network = (network,)  # a tuple, or the network would contain itself

    def forward(
        self,
        partial_charges: Tensor,
        senders_lr: Tensor,
        receivers_lr: Tensor,
        lengths_lr: Tensor,
        num_nodes: int,
        cutoff_lr: float | None = None,
        electrostatic_energy_scale: float = 4.0,
    ) -> Tensor:
        """Energy of each atom, (N, 1), eV. The last argument is 1 / a, angstrom."""
        charges = partial_charges.reshape(-1)
        if cutoff_lr is None:
            length = lengths_lr.reshape(-1)
            pairs = torch.erf(length / electrostatic_energy_scale) / length
            pairs = 0.5 * COULOMB * charges[receivers_lr] * charges[senders_lr] * pairs
            return charges.new_zeros(num_nodes).index_add(0, receivers_lr, pairs)[:, None]
        a = 1.0 / electrostatic_energy_scale
        cells = self._network[0].cell.view(-1, 3, 3)
        ends = self.graph["ptr"].tolist()
        energies = [
            reciprocal_energies(charges[i:j], self.graph["positions"][i:j], cell, a)
            for i, j, cell in zip(ends[:-1], ends[1:], cells, strict=True)
        ]
        return COULOMB * torch.cat(energies)[:, None]


def reciprocal_energies(charges: Tensor, positions: Tensor, cell: Tensor, a: float) -> Tensor:
    """Energies (N,) of charges in a periodic cell, e^2/angstrom; see `ErfCoulomb`."""
    longest = 2.0 * a * np.sqrt(-np.log(RECIPROCAL_ACCURACY))
    reach = np.ceil(longest * cell.detach().norm(dim=1).cpu().numpy() / (2.0 * np.pi)).astype(int)
    grid = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), -1)
    grid = grid.reshape(-1, 3)[grid.size // 6 + 1 :]  # one of each pair k, -k; without 0
    indices = torch.tensor(grid, dtype=cell.dtype, device=cell.device)
    waves = 2.0 * np.pi * indices @ torch.linalg.inv(cell).T  # (K, 3), per angstrom
    square = (waves**2).sum(1)
    near = square.detach() <= longest**2
    waves, square = waves[near], square[near]
    # Twice, for k and -k.
    weights = 8.0 * np.pi / torch.linalg.det(cell).abs() * torch.exp(-square / (4 * a * a)) / square
    phases = positions @ waves.T  # (N, K)
    cosines, sines = torch.cos(phases), torch.sin(phases)
    of_all = weights * torch.stack([charges @ cosines, charges @ sines])  # (2, K)
    potentials = cosines @ of_all[0] + sines @ of_all[1]
    return charges * (0.5 * potentials - a / np.sqrt(np.pi) * charges)


def _graph(
    structures: Sequence[Atoms], cutoff: float, periodic: bool, like: Tensor
) -> dict[str, Any]:
    """Input of the network; its `edge_index` has the receiver first."""
    parts: dict[str, list[NDArray[Any]]] = {"": [], "_lr": []}
    first = 0
    for atoms in structures:
        for name, reach in (("", cutoff), ("_lr", DISPERSION_CUTOFF if periodic else np.inf)):
            parts[name].append(_edges(atoms, reach, first))
        first += len(atoms)
    numbers = np.concatenate([atoms.numbers for atoms in structures])
    sizes = [len(atoms) for atoms in structures]
    real = {"dtype": like.dtype, "device": like.device}

    def whole(values: Any) -> Tensor:
        return torch.as_tensor(np.asarray(values), dtype=torch.long, device=like.device)

    charge, multiplicity = np.array([_charge_and_spin(atoms) for atoms in structures]).T
    cells = torch.tensor(np.stack([atoms.cell.array for atoms in structures]), **real)
    atomic = whole(numbers)
    graph: dict[str, Any] = {
        "positions": torch.tensor(np.concatenate([a.positions for a in structures]), **real),
        "atomic_numbers": atomic,
        "node_attrs": torch.nn.functional.one_hot(atomic - 1, ELEMENT_COUNT).to(like.dtype),
        "cell": cells.reshape(-1, 3),
        "batch": whole(np.repeat(np.arange(len(structures)), sizes)),
        "ptr": whole(np.concatenate([[0], np.cumsum(sizes)])),
        "head": whole(np.zeros(len(structures))),
        "total_charge": torch.tensor(charge, **real),
        "total_spin": torch.tensor((multiplicity - 1.0) / 2.0, **real),
    }
    for name, edges in parts.items():
        index, shifts = (np.concatenate(column, axis=-1) for column in zip(*edges, strict=True))
        graph[f"edge_index{name}"] = whole(index)
        graph[f"unit_shifts{name}"] = torch.tensor(shifts.T, **real)
        owner = graph["batch"][graph[f"edge_index{name}"][0]]
        graph[f"shifts{name}"] = torch.einsum(
            "ei,eij->ej", graph[f"unit_shifts{name}"], cells[owner]
        )
    return graph


def _edges(atoms: Atoms, reach: float, first: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Edges (2, E) [receiver, sender] shorter than `reach`, counted from `first`, and the cell
    shifts (3, E) of the senders.
    """
    if not np.isfinite(reach):
        index = np.array(np.nonzero(~np.eye(len(atoms), dtype=bool)))
        return index + first, np.zeros((3, index.shape[1]), dtype=np.int64)
    search = NeighborList(cutoff=reach, full_list=True, n_threads=1)
    receivers, senders, shifts = search.compute(
        points=atoms.positions, box=atoms.cell.array, periodic=atoms.pbc, quantities="ijS"
    )
    return np.stack([receivers, senders]).astype(np.int64) + first, shifts.T.astype(np.int64)


def _batches(structures: Sequence[Atoms]) -> Iterator[list[int]]:
    """Indices of structures that go into the network together: all open or all periodic, of
    similar sizes.
    """
    order = sorted(
        range(len(structures)), key=lambda k: (structures[k].pbc.all(), len(structures[k]))
    )
    batch: list[int] = []
    edges = 0
    for k in order:
        size = len(structures[k])
        expected = size * min(size - 1, 45)  # about 45 neighbours within 4.5 angstrom in a liquid
        mixed = batch and structures[batch[0]].pbc.all() != structures[k].pbc.all()
        if batch and (mixed or edges + expected > EDGES_PER_BATCH):
            yield batch
            batch, edges = [], 0
        batch.append(k)
        edges += expected
    if batch:
        yield batch


def _charge_and_spin(atoms: Atoms) -> tuple[float, float]:
    """Total charge and spin multiplicity of a structure."""
    return float(atoms.info.get("charge", 0)), float(atoms.info.get("spin", 1))


@cache
def _load_model(dtype: torch.dtype, device: str) -> torch.nn.Module:
    """The published network with `ErfCoulomb`, and without the constant energy of each atom."""
    try:
        path = resources.files("so3krates_torch") / "pretrained" / "so3lr" / "so3lr.model"
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "SO3LR needs its package: pip install 'mlff-student[so3lr]'"
        ) from error
    with resources.as_file(path) as file:
        # The package's own pickle, which holds its classes.
        model = torch.load(file, map_location=device, weights_only=False)
    model = model.to(dtype).eval().requires_grad_(False)
    model.atomic_energy_output_block.energy_shifts.data.zero_()  # -163.618 eV, of every element
    model.dispersion_energy_cutoff_lr_damping = DISPERSION_FADE
    model.electrostatic_potential = ErfCoulomb(model)
    return model
