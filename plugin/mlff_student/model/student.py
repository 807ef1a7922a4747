"""The student, a PaiNN message-passing network whose energy gradient is derived by hand."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mlff_student.core.errors import InputError
from mlff_student.model.architecture import (
    CHANNEL_MULTIPLE,
    PRECISIONS,
    READOUT_CHANNELS,
    StudentConfig,
    derived_buffers,
    dtype_name,
)
from mlff_student.model.architecture import PRESETS as PRESETS
from mlff_student.model.repulsion import ZBLRepulsion, envelope

NORM_FLOOR = 1e-8  # keeps the norm of a vanishing vector feature differentiable
DTYPES = {name: getattr(torch, name) for name in PRECISIONS}


def squeeze_distances(
    distances: Tensor, shortest: Tensor, start: float = 6.0 / 11.0
) -> tuple[Tensor, Tensor]:
    """Return the distances that the filters are evaluated at, and their derivative.

    The function is the identity from `shortest` on, constant below `start` times `shortest`, and
    twice differentiable. At distances without training data the filters extrapolate to arbitrary
    values. The first trial step of a minimiser does reach such distances; without this function it
    fell into holes of -1e8 eV.

    Parameters
    ----------
    distances : Tensor
        Distances of any shape, angstrom.
    shortest : Tensor
        () distance from which nothing is changed, angstrom.
    start : float
        Fraction of `shortest` below which the result is constant.

    Returns
    -------
    squeezed : Tensor
        Changed distances, angstrom.
    derivative : Tensor
        Derivative of `squeezed` with respect to `distances`.
    """
    t = (distances / shortest - start) / (1.0 - start)
    t = t.clamp(0.0, 1.0)
    t3 = t * t * t
    share = 0.5 * (1.0 - start)
    squeezed = shortest * (1.0 - share + share * t3 * t * (5.0 - t * (6.0 - 2.0 * t)))
    slope = t3 * (10.0 - t * (15.0 - 6.0 * t))
    return torch.where(distances < shortest, squeezed, distances), slope


def squeeze_energies(eps: Tensor, lowest: Tensor, depth: float = 2.0) -> tuple[Tensor, Tensor]:
    """Return the network energies with a lower bound of `lowest` - `depth`, and their derivative.

    The function is the identity from `lowest` on, and twice differentiable. Because of the bound
    and of the repulsion, no arrangement of atoms has an energy far below that of the molecule.

    Parameters
    ----------
    eps : Tensor
        Network energies of any shape, eV.
    lowest : Tensor
        () energy from which nothing is changed, eV.
    depth : float
        Distance of the bound from `lowest`, eV.

    Returns
    -------
    squeezed : Tensor
        Changed energies, eV.
    derivative : Tensor
        Derivative of `squeezed` with respect to `eps`.
    """
    bent = torch.tanh((lowest - eps).clamp(min=0.0) / depth)
    return torch.where(eps < lowest, lowest - depth * bent, eps), 1.0 - bent * bent


def silu_with_derivative(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return SiLU(x) = x sigmoid(x) and its derivative.

    Parameters
    ----------
    x : Tensor
        Values of any shape.

    Returns
    -------
    value : Tensor
        SiLU(x), in the shape of x.
    derivative : Tensor
        d SiLU(x) / dx, in the shape of x.
    """
    gate = torch.sigmoid(x)
    value = x * gate
    return value, gate + value * (1.0 - gate)


def sum_to_atoms(values: Tensor, index: Tensor, atoms: int) -> Tensor:
    """Sum the rows of `values` that have the same index.

    Parameters
    ----------
    values : Tensor
        (E, ...).
    index : Tensor
        (E,) int64, atom that each row belongs to.
    atoms : int
        Number of atoms.

    Returns
    -------
    Tensor
        (atoms, ...), sum of the rows of each atom.
    """
    shape = [atoms] + list(values.shape[1:])  # noqa: RUF005  (TorchScript cannot unpack a list)
    total = torch.zeros(shape, dtype=values.dtype, device=values.device)
    return total.index_add(0, index, values)


def forces_from_gradient(gradient: Tensor, edge_index: Tensor, atoms: int) -> Tensor:
    """Return the forces that follow from the gradients dE/dr_ij with r_ij = x_j - x_i.

    Parameters
    ----------
    gradient : Tensor
        (E, 3), dE/dr_ij, eV/angstrom.
    edge_index : Tensor
        (2, E) int64, [receiver i, sender j].
    atoms : int
        Number of atoms.

    Returns
    -------
    Tensor
        (atoms, 3), forces, eV/angstrom.
    """
    receiver, sender = edge_index[0], edge_index[1]
    return sum_to_atoms(gradient, receiver, atoms) - sum_to_atoms(gradient, sender, atoms)


def edge_virials(gradient: Tensor, edge_vectors: Tensor) -> Tensor:
    """Return the virial - r_ij (x) dE/dr_ij of each edge.

    Parameters
    ----------
    gradient : Tensor
        (E, 3), dE/dr_ij, eV/angstrom.
    edge_vectors : Tensor
        (E, 3), r_ij, angstrom.

    Returns
    -------
    Tensor
        (E, 3, 3), eV.
    """
    return -edge_vectors[:, :, None] * gradient[:, None]


def virial_from_gradient(gradient: Tensor, edge_vectors: Tensor) -> Tensor:
    """Return the sum of `edge_virials` over all edges, which equals - volume * stress.

    Parameters
    ----------
    gradient : Tensor
        (E, 3), dE/dr_ij, eV/angstrom.
    edge_vectors : Tensor
        (E, 3), r_ij, angstrom.

    Returns
    -------
    Tensor
        (3, 3), eV.
    """
    return -edge_vectors.t() @ gradient


class BesselBasis(nn.Module):
    """Radial basis sin(n pi r / r_c) / r of PaiNN, with its derivative.

    Equation 7 of Gasteiger et al., arXiv:2003.03123, without the constant factor.

    Parameters
    ----------
    frequencies : Tensor
        (R,) n pi / r_c for n from 1 to R, in the precision of the functions.
    """

    frequencies: Tensor

    def __init__(self, frequencies: Tensor) -> None:
        super().__init__()
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        """Return the functions of the distances and their derivatives.

        Parameters
        ----------
        distances : Tensor
            (E, 1), angstrom.

        Returns
        -------
        value : Tensor
            (E, R), per angstrom.
        derivative : Tensor
            (E, R), per angstrom squared.
        """
        angle = distances * self.frequencies
        value = torch.sin(angle) / distances
        return value, (torch.cos(angle) * self.frequencies - value) / distances


class Edges(NamedTuple):
    """Quantities of the E directed edges that every layer uses."""

    index: Tensor  # (2, E) int64, [receiver, sender]
    unit: Tensor  # (E, 3, 1)
    radial: Tensor  # (E, R)
    radial_derivative: Tensor  # (E, R), per angstrom
    fade: Tensor  # (E, 1) envelope
    fade_derivative: Tensor  # (E, 1), per angstrom


class Tape(NamedTuple):
    """Quantities of a layer's forward pass that `layer_adjoint` uses.

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
    """One PaiNN layer: a message over the edges, then an update of each atom; see `Student`.

    Parameters
    ----------
    channels : int
        Width F of the features.
    radial_functions : int
        Number R of radial functions.
    dtype : torch.dtype
        Precision of the weights.
    """

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
        """Return the features after this layer, and the tape for `layer_adjoint`.

        In the first layer mu is zero, and the operations on it are left out, which saves 15 to 20 %
        of the time of a step.

        Parameters
        ----------
        q : Tensor
            (N, F), scalar features.
        mu : Tensor
            (N, 3, F), vector features.
        edges : Edges
            Edges of the structure.
        first : bool
            Whether this is the first layer.

        Returns
        -------
        q : Tensor
            (N, F), scalar features after this layer.
        mu : Tensor
            (N, 3, F), vector features after this layer.
        tape : Tape
            Quantities that the adjoint of this layer uses.
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
    """Return the energy gradients with respect to a layer's inputs, from those of its outputs.

    Parameters
    ----------
    g_q : Tensor
        (N, F), gradient with respect to the layer's output q.
    g_mu : Tensor
        (N, 3, F), gradient with respect to the layer's output mu.
    tape : Tape
        Quantities of the layer's forward pass.
    edges : Edges
        Edges of the structure.
    first : bool
        Whether this is the first layer.

    Returns
    -------
    g_q : Tensor
        (N, F), gradient with respect to the layer's input q; incomplete for the first layer, whose
        gradient is not used.
    g_mu : Tensor
        (N, 3, F), gradient with respect to the layer's input mu; incomplete for the first layer.
    g_distance : Tensor
        (E, 1), gradient with respect to the squeezed distances, eV/angstrom.
    g_unit : Tensor
        (E, 3), gradient with respect to the unit vectors, eV.
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
    """PaiNN network (Schuett, Unke, Gastegger 2021, arXiv:2102.03150) with 8 F^2 weights per layer.

    E = sum_i (E_ref[Z_i] + eps_i) + sum_(i<j) ZBL(r_ij), where eps_i is read from the scalar
    features q_i after all layers. One layer, with filters W(r) = (Bessel(r) A + b) envelope(r), is:

        q_i   <- q_i  + sum_j phi_q(q_j) W_q(r_ij)
        mu_i  <- mu_i + sum_j phi_u(q_j) W_u(r_ij) r_ij/|r_ij| + phi_mu(q_j) W_mu(r_ij) mu_j
        v_i    = V mu_i
        q_i   <- q_i  + a_q(q_i, |v_i|) + a_v(q_i, |v_i|) |v_i|
        mu_i  <- mu_i + a_v(q_i, |v_i|) v_i

    The published layer has 11 F^2 weights. Here 3 F^2 of them are merged or left out:

    - U and V are one map. It acts on the three components of each vector feature, so its weights
      cost most, and |V mu| takes the place of the product <U mu, V mu>.
    - a_sv and a_vv are one gate a_v. So every gate weight acts on the energy in the last layer too,
      after which mu is not used any more.
    - phi is one linear map of silu(q) without a hidden layer: the update before it already ends in
      a two-layer network, and before the first layer q is an embedding.

    Two bounds give reasonable energies where there are no training data, and change nothing where
    there are: W is constant at distances that no two nuclei have (`squeeze_distances`), and eps_i
    has a lower bound (`squeeze_energies`).

    Vector features are mixed only along the channel axis, so the energy is invariant under
    rotation and reflection. As in the published network, phi_mu and W_mu of the first layer would
    act on mu = 0; these weights have no effect.

    Parameters
    ----------
    config : StudentConfig
        Architecture.
    dtype : torch.dtype
        Precision of the weights and of the network's arithmetic. Displacements, repulsion,
        reference energies and sums are always float64.

    Raises
    ------
    InputError
        The number of channels is not a multiple of 16.
    """

    species_of: Tensor
    references: Tensor
    limits: Tensor

    def __init__(self, config: StudentConfig, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if config.channels % CHANNEL_MULTIPLE:
            raise InputError(f"channels must be a multiple of 16, got {config.channels}")
        self.cutoff = config.cutoff
        self.dtype = dtype
        derived = derived_buffers(config, dtype_name(dtype))
        buffers = {name: torch.from_numpy(values) for name, values in derived.items()}
        species = len(config.elements)
        self.register_buffer("species_of", buffers["species_of"], persistent=False)
        self.register_buffer("references", torch.zeros(species, dtype=torch.float64))
        self.register_buffer("limits", buffers["limits"], persistent=False)
        self.embedding = nn.Embedding(species, config.channels, dtype=dtype)
        self.basis = BesselBasis(buffers["basis.frequencies"])
        self.blocks = nn.ModuleList(
            Layer(config.channels, config.radial_functions, dtype) for _ in range(config.layers)
        )
        self.readout_in = nn.Linear(config.channels, READOUT_CHANNELS, dtype=dtype)
        self.readout_out = nn.Linear(READOUT_CHANNELS, 1, dtype=dtype)
        self.repulsion = ZBLRepulsion(
            {
                name.removeprefix("repulsion."): values
                for name, values in derived.items()
                if name.startswith("repulsion.")
            }
        )

    def network(
        self, edge_vectors: Tensor, edge_index: Tensor, species: Tensor, n_local: int
    ) -> tuple[Tensor, Tensor]:
        """Return the network energies and their gradient, in the precision of the weights.

        Parameters
        ----------
        edge_vectors : Tensor
            (E, 3), r_ij = x_j - x_i of edge i <- j, angstrom.
        edge_index : Tensor
            (2, E) int64, [receiver, sender].
        species : Tensor
            (N,) int64, index of each atom's element in the student's elements.
        n_local : int
            Number of atoms that have an energy. They are the first ones; the others only send.

        Returns
        -------
        eps : Tensor
            (n_local,), network energy of each atom, eV.
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
        """Return the energies of the first n_local atoms and the gradient of their sum.

        Parameters
        ----------
        edge_vectors : Tensor
            (E, 3) float64, r_ij = x_j - x_i of edge i <- j, angstrom, all shorter than the cutoff.
        edge_index : Tensor
            (2, E) int64, [receiver, sender].
        species : Tensor
            (N,) int64, index of each atom's element in the student's elements.
        n_local : int
            Number of atoms that have an energy.

        Returns
        -------
        energies : Tensor
            (n_local,) float64, energy of each atom, eV.
        gradient : Tensor
            (E, 3) float64, d sum(energies) / d edge_vectors, eV/angstrom.
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


def parameter_count(student: Student) -> int:
    """Return the number of trainable weights of a student.

    Parameters
    ----------
    student : Student
        Student to count.
    """
    return sum(weight.numel() for weight in student.parameters())
