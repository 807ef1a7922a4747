"""Numbers of operations and bytes that energy and forces of a student take, from its shapes."""

from typing import NamedTuple

from mlff_student.model.student import READOUT_CHANNELS

FLOAT, DOUBLE, INDEX = 4, 8, 4  # bytes
GEOMETRY = 64  # bytes of an edge: its weights in the filters' tables, unit vector, knot
# A filter's value, or its slope, is the sum of six products: quintic Hermite spline, two knots.
SPLINE = 6 + 5


class Work(NamedTuple):
    """Least work of one evaluation of energy and forces.

    Attributes
    ----------
    map_flop : int
        Operations of the linear maps of atoms, forward and adjoint.
    edge_flop : int
        Operations of the messages and their adjoint.
    traffic_bytes : int
        Bytes that are read from or written to memory.
    """

    map_flop: int
    edge_flop: int
    traffic_bytes: int

    @property
    def gflop(self) -> float:
        """All counted operations, 10^9."""
        return 1e-9 * (self.map_flop + self.edge_flop)

    @property
    def flop_per_byte(self) -> float:
        """Arithmetic intensity, operations per byte; the horizontal axis of a roofline plot."""
        return 1e9 * self.gflop / self.traffic_bytes


def work(channels: int, layers: int, atoms: int, edges: int) -> Work:
    """Count the work of one evaluation by the equations of `Student` and their adjoint.

    Maps, in multiplications with an addition (two operations each) per atom and layer, with P = 2
    parts in the first layer (mu is zero there) and 3 in the others:

        forward   message P F², mix 3 F², update_in 2 F², update_out 2 F²
        adjoint   the same without the message of the first layer, whose gradient is not needed
        readout   64 F + 64 forward, 64 F adjoint

    Messages, operations per edge, channel and layer:

        filters   11 for each of P values and P slopes
        forward   q 2, u 7, mu 7: x = phi W, then added to q (1) or, times a vector, to mu (6)
        adjoint   q: by phi 2, by the distance 3
                  u: g·r 5, by phi 2, by the distance 3, by the unit vector 6
                  mu: g·mu 5, by phi 2, by the distance 3, by mu 6
                  (the first layer has no mu and needs nothing by phi)

    Other work per edge or per atom and channel (distances, activations, norms) is a few percent and
    is not counted. Work that an implementation does twice is counted once, so that it does not
    raise a rate in GFLOP/s.

    Traffic: each array that a layer reads or writes is counted once. The gathered rows of
    neighbours are counted once for each atom, not for each edge.

    Parameters
    ----------
    channels : int
        Number of channels, F.
    layers : int
        Number of layers.
    atoms : int
        Number of atoms.
    edges : int
        Number of directed edges.
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
