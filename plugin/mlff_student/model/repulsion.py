"""Short-range repulsion between nuclei (Ziegler-Biersack-Littmark), zero at bonding distances.

It keeps a learned potential from collapsing at distances for which there are no training data.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


def envelope(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the polynomial that falls from 1 at x = 0 to 0 at x >= 1, and its derivative.

    u(x) = 1 - 28 x^6 + 48 x^7 - 21 x^8, whose first and second derivatives vanish at x = 1: eq. 8
    of Gasteiger et al., "Directional message passing for molecular graphs", arXiv:2003.03123, with
    p = 6.

    Parameters
    ----------
    x : Tensor
        Distances divided by the cutoff, of any shape.

    Returns
    -------
    value : Tensor
        u(x), in the shape of x.
    derivative : Tensor
        du/dx, in the shape of x.
    """
    inside = x < 1.0
    x = torch.where(inside, x, torch.ones_like(x))
    x5 = x * x * x * x * x
    return 1.0 - x5 * x * (28.0 - x * (48.0 - 21.0 * x)), -168.0 * x5 * (1.0 - x) * (1.0 - x)


class ZBLRepulsion(nn.Module):
    """Pair energy Z_i Z_j e^2 / (4 pi eps_0 r) phi(r / a_ij), multiplied by `envelope`.

    phi is the universal screening function and a_ij = 0.8854 a_0 / (Z_i^0.23 + Z_j^0.23) the
    screening length of Ziegler, Biersack and Littmark (1985).

    Parameters
    ----------
    tables : Mapping[str, NDArray[np.float64]]
        "charges", "lengths" and "ranges" (S, S) of each pair of species, "weights" and "rates" (4,)
        of the screening function; see `model.architecture.derived_buffers`.
    """

    charges: Tensor
    lengths: Tensor
    ranges: Tensor
    weights: Tensor
    rates: Tensor

    def __init__(self, tables: Mapping[str, NDArray[np.float64]]) -> None:
        super().__init__()
        for name, values in tables.items():
            self.register_buffer(name, torch.from_numpy(values), persistent=False)

    def forward(self, distances: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return the energy of each pair and its derivative with respect to the distance.

        Parameters
        ----------
        distances : Tensor
            (E,) float64, distance of the two atoms of each pair, angstrom.
        first, second : Tensor
            (E,) int64, species indices of the two atoms of each pair.

        Returns
        -------
        energies : Tensor
            (E,) float64, eV.
        derivatives : Tensor
            (E,) float64, eV/angstrom.
        """
        charge = self.charges[first, second]
        length = self.lengths[first, second]
        reach = self.ranges[first, second]
        terms = self.weights * torch.exp(-self.rates * (distances / length)[:, None])  # (E, 4)
        screening = terms.sum(1)
        screening_derivative = -(terms * self.rates).sum(1) / length
        fade, fade_derivative = envelope(distances / reach)
        bare = charge / distances
        energies = bare * screening * fade
        derivatives = (
            bare * (screening_derivative * fade + screening * fade_derivative / reach)
            - energies / distances
        )
        return energies, derivatives
