"""The student: a PaiNN message-passing network with its own hand-derived energy gradient."""

from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mlff_student.core.errors import InputError
from mlff_student.model.elements import ELEMENTS
from mlff_student.model.repulsion import ZBLRepulsion, envelope

READOUT_CHANNELS = 64
NORM_FLOOR = 1e-8  # keeps the norm of a vanishing vector feature differentiable
HEAVIEST = 118
DTYPES = {"float32": torch.float32, "float64": torch.float64}  # precisions of a student


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
        Number of Bessel functions a distance is expanded in.
    cutoff : float
        Angstrom.
    elements : tuple[str, ...]
        Chemical symbols the student knows.
    repulsion_reach : float
        Where the short-range repulsion has faded out, over the sum of covalent radii (0.75: C-C
        1.14, C-H 0.80, H-H 0.47 angstrom, below any bond at rest).
    shortest : float
        The filters take a shorter distance for nearly this one, angstrom; what happens there is
        left to the repulsion. See `squeeze_distances`.
    lowest : float
        Network energy of an atom below which it is squeezed, eV; in training it stays above -2. See
        `squeeze_energies`.
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
        """Plain values for a checkpoint or a card."""
        return asdict(self) | {"elements": list(self.elements)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "StudentConfig":
        """Inverse of `as_dict`."""
        config = cls(**values)
        return replace(config, elements=tuple(config.elements))


PRESETS = {
    "original": StudentConfig(channels=128, layers=3, radial_functions=20),  # 429K
    "tiny": StudentConfig(channels=64, layers=2, radial_functions=12),  # 76K
    "ultra_tiny": StudentConfig(channels=32, layers=2, radial_functions=10),  # 21K
}


def squeeze_distances(
    distances: Tensor, shortest: Tensor, start: float = 6.0 / 11.0
) -> tuple[Tensor, Tensor]:
    """Distances as the filters see them, and the derivative.

    The same from `shortest` up, constant below `start` of it, twice differentiable. Where no
    training data can be, a filter extrapolates to anything; a minimiser's first trial step does go
    there, and without this fell into holes of -1e8 eV.
    """
    t = (distances / shortest - start) / (1.0 - start)
    t = t.clamp(0.0, 1.0)
    t3 = t * t * t
    share = 0.5 * (1.0 - start)
    squeezed = shortest * (1.0 - share + share * t3 * t * (5.0 - t * (6.0 - 2.0 * t)))
    slope = t3 * (10.0 - t * (15.0 - 6.0 * t))
    return torch.where(distances < shortest, squeezed, distances), slope


def squeeze_energies(eps: Tensor, lowest: Tensor, depth: float = 2.0) -> tuple[Tensor, Tensor]:
    """Network energies bounded below by `lowest` - `depth`, eV, and the derivative.

    The same from `lowest` up, twice differentiable. With the repulsion, which grows without bound,
    no arrangement of atoms has an energy far below that of the molecule.
    """
    bent = torch.tanh((lowest - eps).clamp(min=0.0) / depth)
    return torch.where(eps < lowest, lowest - depth * bent, eps), 1.0 - bent * bent


def silu_with_derivative(x: Tensor) -> tuple[Tensor, Tensor]:
    """X sigmoid(x) and its derivative."""
    gate = torch.sigmoid(x)
    value = x * gate
    return value, gate + value * (1.0 - gate)


def sum_to_atoms(values: Tensor, index: Tensor, atoms: int) -> Tensor:
    """Sum of the rows of `values` that share an index: (E, ...) -> (atoms, ...)."""
    shape = [atoms] + list(values.shape[1:])  # noqa: RUF005  (TorchScript cannot unpack a list)
    total = torch.zeros(shape, dtype=values.dtype, device=values.device)
    return total.index_add(0, index, values)


def forces_from_gradient(gradient: Tensor, edge_index: Tensor, atoms: int) -> Tensor:
    """Forces (atoms, 3) from dE/dr_ij (E, 3): r_ij = x_j - x_i pulls on both ends.

    Parameters
    ----------
    gradient : Tensor
        (E, 3), dE/dr_ij, eV/angstrom.
    edge_index : Tensor
        (2, E) int64, [receiver i, sender j].
    atoms : int
        Number of atoms.
    """
    receiver, sender = edge_index[0], edge_index[1]
    return sum_to_atoms(gradient, receiver, atoms) - sum_to_atoms(gradient, sender, atoms)


def edge_virials(gradient: Tensor, edge_vectors: Tensor) -> Tensor:
    """Virial - r_ij (x) dE/dr_ij of each edge, (E, 3, 3), eV."""
    return -edge_vectors[:, :, None] * gradient[:, None]


def virial_from_gradient(gradient: Tensor, edge_vectors: Tensor) -> Tensor:
    """Sum of `edge_virials` over all edges, (3, 3), eV, which equals - volume * stress."""
    return -edge_vectors.t() @ gradient


class BesselBasis(nn.Module):
    """sin(n pi r / r_c) / r, eq. 7 of arXiv:2003.03123 (the basis of PaiNN), and its derivative."""

    frequencies: Tensor

    def __init__(self, radial_functions: int, cutoff: float, dtype: torch.dtype) -> None:
        super().__init__()
        frequencies = torch.arange(1, radial_functions + 1, dtype=torch.float64) * torch.pi / cutoff
        self.register_buffer("frequencies", frequencies.to(dtype), persistent=False)

    def forward(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        """Distances (E, 1) to the functions (E, R) and their derivatives (E, R)."""
        angle = distances * self.frequencies
        value = torch.sin(angle) / distances
        return value, (torch.cos(angle) * self.frequencies - value) / distances


class Edges(NamedTuple):
    """What every layer needs to know of the E directed edges."""

    index: Tensor  # (2, E) int64, [receiver, sender]
    unit: Tensor  # (E, 3, 1)
    radial: Tensor  # (E, R)
    radial_derivative: Tensor  # (E, R), per angstrom
    fade: Tensor  # (E, 1) envelope
    fade_derivative: Tensor  # (E, 1), per angstrom


class Tape(NamedTuple):
    """What the adjoint of a layer needs of its forward pass.

    The weights are here too, because TorchScript cannot walk a list of modules backwards: it
    compiles `blocks[::-1]` to the unreversed list, and OpenMM cannot freeze `blocks[index]`.
    """

    q_in: Tensor  # (N, F)
    mu_sender: Tensor  # (E, 3, F), empty for the first layer
    w: Tensor  # (E, 3F), the first layer's (E, 2F)
    phi: Tensor  # (E, 3F), the first layer's (E, 2F)
    v: Tensor  # (N, 3, F)
    norm: Tensor  # (N, F)
    z: Tensor  # (N, F)
    a_v: Tensor  # (N, F)
    filter_weight: Tensor  # (3F, R), the first layer's (2F, R)
    filter_bias: Tensor  # (3F,), the first layer's (2F,)
    message_weight: Tensor  # (3F, F), the first layer's (2F, F)
    mix_weight: Tensor  # (F, F)
    update_in_weight: Tensor  # (F, 2F)
    update_out_weight: Tensor  # (2F, F)


class Layer(nn.Module):
    """One PaiNN layer: message over edges, then update of each atom; see `Student`."""

    def __init__(self, channels: int, radial_functions: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm_floor = NORM_FLOOR
        self.filter = nn.Linear(radial_functions, 3 * channels, dtype=dtype)
        self.message = nn.Linear(channels, 3 * channels, dtype=dtype)
        self.mix = nn.Linear(channels, channels, bias=False, dtype=dtype)
        self.update_in = nn.Linear(2 * channels, channels, dtype=dtype)
        self.update_out = nn.Linear(channels, 2 * channels, dtype=dtype)

    def forward(
        self, q: Tensor, mu: Tensor, edges: Edges, first: bool
    ) -> tuple[Tensor, Tensor, Tape]:
        """Features q (N, F) and mu (N, 3, F) after this layer, and the tape for `layer_adjoint`.

        In the first layer mu is zero, and what would act on it is left out: 15 to 20 % of a step.
        """
        receiver, sender = edges.index[0], edges.index[1]
        atoms = q.shape[0]
        used = (2 if first else 3) * q.shape[1]
        filter_weight, filter_bias = self.filter.weight[:used], self.filter.bias[:used]
        message_weight, message_bias = self.message.weight[:used], self.message.bias[:used]

        w = torch.nn.functional.linear(edges.radial, filter_weight, filter_bias) * edges.fade
        phi = torch.nn.functional.linear(torch.nn.functional.silu(q), message_weight, message_bias)[
            sender
        ]
        x = (phi * w).split(q.shape[1], -1)  # x_q, x_u, x_mu: (E, F) each
        q_in = q
        q = q + sum_to_atoms(x[0], receiver, atoms)
        pushed = x[1][:, None] * edges.unit  # (E, 3, F)
        mu_sender = mu[:0]
        if not first:
            mu_sender = mu.index_select(0, sender)
            pushed = pushed + x[2][:, None] * mu_sender
        mu = mu + sum_to_atoms(pushed, receiver, atoms)

        v = self.mix(mu)
        norm = torch.sqrt(v.square().sum(1) + self.norm_floor)
        z = self.update_in(torch.cat([q, norm], -1))
        a_q, a_v = self.update_out(torch.nn.functional.silu(z)).chunk(2, -1)
        q = q + a_q + a_v * norm
        mu = mu + a_v[:, None] * v
        tape = Tape(
            q_in,
            mu_sender,
            w,
            phi,
            v,
            norm,
            z,
            a_v,
            filter_weight,
            filter_bias,
            message_weight,
            self.mix.weight,
            self.update_in.weight,
            self.update_out.weight,
        )
        return q, mu, tape


def layer_adjoint(
    g_q: Tensor, g_mu: Tensor, tape: Tape, edges: Edges, first: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Energy gradients with respect to a layer's inputs, from those of its outputs.

    Returns g_q (N, F), g_mu (N, 3, F), g_distance (E, 1), g_unit (E, 3). The first layer's g_q and
    g_mu are not all of the gradient: nobody needs it.
    """
    receiver, sender = edges.index[0], edges.index[1]
    atoms, channels = g_q.shape[0], g_q.shape[1]

    # update
    g_a_v = g_q * tape.norm + (g_mu * tape.v).sum(1)
    g_h = torch.cat([g_q, g_a_v], -1) @ tape.update_out_weight
    g_z = g_h * silu_with_derivative(tape.z)[1]
    g_q_update, g_norm = (g_z @ tape.update_in_weight).chunk(2, -1)
    g_norm = g_norm + g_q * tape.a_v
    g_q = g_q + g_q_update
    g_v = g_mu * tape.a_v[:, None] + tape.v * (g_norm / tape.norm)[:, None]
    g_mu = g_mu + g_v @ tape.mix_weight

    # message
    g_mu_edge = g_mu.index_select(0, receiver)  # (E, 3, F)
    x_u = tape.phi[:, channels : 2 * channels] * tape.w[:, channels : 2 * channels]
    g_unit = (g_mu_edge * x_u[:, None]).sum(-1)
    g_x = torch.cat([g_q.index_select(0, receiver), (g_mu_edge * edges.unit).sum(1)], -1)  # (E, 2F)
    if not first:
        g_x = torch.cat([g_x, (g_mu_edge * tape.mu_sender).sum(1)], -1)  # (E, 3F)
        x_mu = tape.phi[:, 2 * channels :] * tape.w[:, 2 * channels :]
        g_mu = g_mu + sum_to_atoms(g_mu_edge * x_mu[:, None], sender, atoms)
        g_phi = sum_to_atoms(g_x * tape.w, sender, atoms) @ tape.message_weight
        g_q = g_q + g_phi * silu_with_derivative(tape.q_in)[1]

    # filter: w = (radial A^T + b) fade
    g_w = g_x * tape.phi
    g_radial = g_w @ tape.filter_weight  # (E, R)
    g_fade = (g_radial * edges.radial).sum(1) + g_w @ tape.filter_bias
    g_distance = (g_radial * edges.radial_derivative).sum(1, keepdim=True) * edges.fade
    return g_q, g_mu, g_distance + g_fade[:, None] * edges.fade_derivative, g_unit


class Student(nn.Module):
    """PaiNN (Schuett, Unke, Gastegger 2021, arXiv:2102.03150) in a budget of 8 F^2 a layer.

    E = sum_i (E_ref[Z_i] + eps_i) + sum_(i<j) ZBL(r_ij), where eps_i is read from the scalar
    features q_i after all layers. One layer, with filters W(r) = (Bessel(r) A + b) envelope(r):

        q_i   <- q_i  + sum_j phi_q(q_j) W_q(r_ij)
        mu_i  <- mu_i + sum_j phi_u(q_j) W_u(r_ij) r_ij/|r_ij| + phi_mu(q_j) W_mu(r_ij) mu_j
        v_i    = V mu_i
        q_i   <- q_i  + a_q(q_i, |v_i|) + a_v(q_i, |v_i|) |v_i|
        mu_i  <- mu_i + a_v(q_i, |v_i|) v_i

    The published block costs 11 F^2 a layer. Merged or left out, 3 F^2 in all:

    - U and V are one map. It acts on three components an atom, so it is the dearest weight there
      is, and the product <U mu, V mu> it served survives as |V mu|.
    - a_sv and a_vv are one gate a_v, so that in the last layer too, where mu is not read any more,
      every gate weight acts on the energy.
    - phi is one linear map of silu(q) without a hidden layer: the update before it ends in a
      two-layer network already, and before the first layer q is an embedding.

    Two bounds keep it sane where no data can be, and change nothing where data are: W is constant
    at distances that no two nuclei have (`squeeze_distances`), and eps_i has a lower bound
    (`squeeze_energies`).

    Vector features are mixed along the channel axis alone, so the energy is invariant under
    rotation and reflection. As in the published network, phi_mu and W_mu of the first layer would
    act on mu = 0; they are weights without effect.

    Parameters
    ----------
    config : StudentConfig
        Architecture.
    dtype : torch.dtype
        Of the weights and the network's arithmetic. Displacements, repulsion, references and sums
        are always float64.
    """

    species_of: Tensor
    references: Tensor
    limits: Tensor

    def __init__(self, config: StudentConfig, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if config.channels % 16:
            raise InputError(f"channels must be a multiple of 16, got {config.channels}")
        numbers = [ELEMENTS[symbol][0] for symbol in config.elements]
        self.cutoff = config.cutoff
        self.dtype = dtype
        species = torch.full((HEAVIEST + 1,), -1, dtype=torch.int64)
        species[numbers] = torch.arange(len(numbers))
        self.register_buffer("species_of", species, persistent=False)
        self.register_buffer("references", torch.zeros(len(numbers), dtype=torch.float64))
        limits = torch.tensor([config.shortest, config.lowest], dtype=torch.float64)
        self.register_buffer("limits", limits, persistent=False)
        self.embedding = nn.Embedding(len(numbers), config.channels, dtype=dtype)
        self.basis = BesselBasis(config.radial_functions, config.cutoff, dtype)
        self.blocks = nn.ModuleList(
            Layer(config.channels, config.radial_functions, dtype) for _ in range(config.layers)
        )
        self.readout_in = nn.Linear(config.channels, READOUT_CHANNELS, dtype=dtype)
        self.readout_out = nn.Linear(READOUT_CHANNELS, 1, dtype=dtype)
        self.repulsion = ZBLRepulsion(config.elements, config.repulsion_reach)

    def network(
        self, edge_vectors: Tensor, edge_index: Tensor, species: Tensor, n_local: int
    ) -> tuple[Tensor, Tensor]:
        """Network energies and their gradient, in the dtype of the weights.

        Parameters
        ----------
        edge_vectors : Tensor
            (E, 3), angstrom.
        edge_index : Tensor
            (2, E) int64, [receiver, sender].
        species : Tensor
            (N,) int64, index into the student's elements.
        n_local : int
            The first n_local nodes carry energy; the rest only send.

        Returns
        -------
        eps : Tensor
            (n_local,), eV.
        gradient : Tensor
            (E, 3), d sum(eps) / d edge_vectors, eV/angstrom.
        """
        distances = torch.linalg.vector_norm(edge_vectors, dim=[1], keepdim=True)  # (E, 1)
        direction = edge_vectors / distances  # (E, 3)
        limits = self.limits.to(distances.dtype)
        squeezed, squeezed_derivative = squeeze_distances(distances, limits[0])
        radial, radial_derivative = self.basis(squeezed)
        fade, fade_derivative = envelope(squeezed / self.cutoff)
        edges = Edges(
            edge_index,
            direction[:, :, None],
            radial,
            radial_derivative,
            fade,
            fade_derivative / self.cutoff,
        )

        q = self.embedding(species)  # (N, F)
        mu = torch.zeros((q.shape[0], 3, q.shape[1]), dtype=q.dtype, device=q.device)
        tapes: list[Tape] = []
        for block in self.blocks:
            q, mu, tape = block(q, mu, edges, len(tapes) == 0)
            tapes.append(tape)
        h, h_derivative = silu_with_derivative(self.readout_in(q))
        eps, eps_derivative = squeeze_energies(self.readout_out(h), limits[1])  # (N, 1)

        local = (torch.arange(q.shape[0], device=q.device) < n_local)[:, None]
        g_h = eps_derivative * local * self.readout_out.weight  # (N, readout channels)
        g_q = (h_derivative * g_h) @ self.readout_in.weight
        g_mu = torch.zeros_like(mu)
        g_distance = torch.zeros_like(distances)
        g_unit = torch.zeros_like(direction)
        for depth in range(len(tapes) - 1, -1, -1):
            g_q, g_mu, g_d, g_u = layer_adjoint(g_q, g_mu, tapes[depth], edges, depth == 0)
            g_distance = g_distance + g_d
            g_unit = g_unit + g_u
        g_distance = g_distance * squeezed_derivative
        along = (g_unit * direction).sum(1, keepdim=True)
        return eps[:n_local, 0], g_distance * direction + (g_unit - along * direction) / distances

    def forward(
        self, edge_vectors: Tensor, edge_index: Tensor, species: Tensor, n_local: int
    ) -> tuple[Tensor, Tensor]:
        """Energies of the first n_local atoms and d sum(energies) / d edge_vectors.

        Parameters
        ----------
        edge_vectors : Tensor
            (E, 3) float64, r_ij = x_j - x_i of edge i <- j, angstrom, all shorter than the cutoff.
        edge_index : Tensor
            (2, E) int64, [receiver, sender].
        species : Tensor
            (N,) int64, index into the student's elements.
        n_local : int
            Number of nodes that carry energy.

        Returns
        -------
        energies : Tensor
            (n_local,) float64, eV.
        gradient : Tensor
            (E, 3) float64, eV/angstrom.
        """
        eps, gradient = self.network(edge_vectors.to(self.dtype), edge_index, species, n_local)
        distances = torch.linalg.vector_norm(edge_vectors, dim=[1])
        receiver = edge_index[0]
        # Half of a pair's repulsion belongs to each of its two directed edges.
        pair, pair_derivative = self.repulsion(distances, species[receiver], species[edge_index[1]])
        owned = (receiver < n_local).to(pair.dtype) * 0.5
        energies = eps.to(torch.float64) + self.references[species[:n_local]]
        energies = energies + sum_to_atoms(pair * owned, receiver, species.shape[0])[:n_local]
        repulsive = (pair_derivative * owned / distances)[:, None] * edge_vectors
        return energies, gradient.to(torch.float64) + repulsive


def dtype_name(dtype: torch.dtype) -> str:
    """Key of `DTYPES` of a precision."""
    return str(dtype).removeprefix("torch.")


def parameter_count(student: Student) -> int:
    """Number of trainable weights."""
    return sum(weight.numel() for weight in student.parameters())
