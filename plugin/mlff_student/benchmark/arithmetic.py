"""Arithmetic and memory traffic that the energy and forces of a student take, from its shapes."""

from typing import NamedTuple

from mlff_student.model.student import READOUT_CHANNELS

FLOAT, DOUBLE, INDEX = 4, 8, 4  # bytes
GEOMETRY = 64  # bytes of an edge: its weights in the filters' tables, unit vector, knot
# A filter's value, or its slope, is the sum of six products: quintic Hermite spline, two knots.
SPLINE = 6 + 5


class Work(NamedTuple):
    """What one evaluation of energy and forces takes at least."""

    map_flop: int  # the linear maps of atoms, forward and adjoint
    edge_flop: int  # messages and their adjoint
    traffic_bytes: int

    @property
    def gflop(self) -> float:
        """All of the counted arithmetic."""
        return 1e-9 * (self.map_flop + self.edge_flop)

    @property
    def flop_per_byte(self) -> float:
        """Arithmetic intensity, the abscissa of a roofline plot."""
        return 1e9 * self.gflop / self.traffic_bytes


def work(channels: int, layers: int, atoms: int, edges: int) -> Work:
    """Count of one evaluation, by the equations in `Student` and their adjoint.

    Maps, a multiplication and an addition being two operations, per atom and layer, with P = 2
    parts in the first layer (mu is zero there) and 3 in the others:

        forward   message P F², mix 3 F², update_in 2 F², update_out 2 F²
        adjoint   the same but for the first layer's message, whose gradient nobody needs
        readout   64 F + 64 forward, 64 F adjoint

    Messages, operations per edge, channel and layer:

        filters   11 for each of P values and P slopes
        forward   q 2, u 7, mu 7: x = phi W, then added to q (1) or, times a vector, to mu (6)
        adjoint   q: by phi 2, by the distance 3
                  u: g·r 5, by phi 2, by the distance 3, by the unit vector 6
                  mu: g·mu 5, by phi 2, by the distance 3, by mu 6
                  (the first layer has no mu and needs nothing by phi)

    Work per edge or per atom and channel that is not of these (distances, activations, norms) is
    some percent and left out, and so is what an implementation computes twice: a rate in GFLOP/s
    made of this count rewards no waste.

    Traffic: every array that a layer call reads or writes passes once, as when neither cache nor
    memory holds it twice. The gathered rows of neighbours count once an atom, not once an edge.

    Parameters
    ----------
    channels, layers : int
        F and the number of layers.
    atoms, edges : int
        N and the number of directed edges.
    """
    maps = 4 * READOUT_CHANNELS * channels + 2 * READOUT_CHANNELS
    per_edge = floats = 0
    for layer in range(layers):
        first = layer == 0
        parts = 2 if first else 3
        forward = parts + 7
        maps += 2 * channels**2 * (forward + (7 if first else forward))
        messages = 2 + 7 * (parts - 1)
        adjoint = 3 + 14 if first else 5 + 16 * (parts - 1)
        per_edge += 2 * SPLINE * parts + messages + adjoint
        # Per atom in rows of F: read q, write phi; read phi, q, mu, write q, mu; v, norm, z, a_v.
        floats += 1 + parts + parts + 1 + (0 if first else 3) + 1 + 3 + 6
        # Read g_q, g_mu, v, norm, z, a_v, write g_q, g_mu; read phi, mu, g_q, g_mu, write the next.
        floats += 4 + 6 + 4 + parts + 4 + (0 if first else 3 + 1 + 4)
    edge_bytes = layers * (2 * (GEOMETRY + INDEX) + 2 * 4 * FLOAT) + 2 * 3 * DOUBLE
    return Work(
        map_flop=atoms * maps,
        edge_flop=edges * channels * per_edge,
        traffic_bytes=atoms * channels * floats * FLOAT + edges * edge_bytes,
    )
