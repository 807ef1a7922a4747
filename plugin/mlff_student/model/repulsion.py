"""Short-range repulsion between nuclei (Ziegler-Biersack-Littmark), zero at bonding distances.

It keeps a learned potential from collapsing at distances for which there are no training data.
"""

import torch
from torch import Tensor, nn

from mlff_student.model.elements import ELEMENTS

# Universal screening function: J. F. Ziegler, J. P. Biersack, U. Littmark, "The Stopping and Range
# of Ions in Matter", Pergamon, New York (1985).
SCREENING_WEIGHTS = (0.1818, 0.5099, 0.2802, 0.02817)
SCREENING_RATES = (3.2, 0.9423, 0.4029, 0.2016)
BOHR = 0.529177210903  # angstrom, CODATA 2018
HARTREE = 27.211386245988  # eV, CODATA 2018
SCREENING_LENGTH = 0.8854 * BOHR  # angstrom
SCREENING_POWER = 0.23
COULOMB = HARTREE * BOHR  # e^2 / (4 pi epsilon_0), eV angstrom


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
    elements : tuple[str, ...]
        Chemical symbols, in the order of the species indices.
    reach : float
        Distance from which the repulsion is zero, divided by the sum of the two covalent radii.
    """

    charges: Tensor
    lengths: Tensor
    ranges: Tensor
    weights: Tensor
    rates: Tensor

    def __init__(self, elements: tuple[str, ...], reach: float) -> None:
        super().__init__()
        z, radii = torch.tensor([ELEMENTS[symbol] for symbol in elements], dtype=torch.float64).T
        power = z**SCREENING_POWER
        self.register_buffer("charges", COULOMB * z[:, None] * z, persistent=False)  # (S, S)
        self.register_buffer(
            "lengths", SCREENING_LENGTH / (power[:, None] + power), persistent=False
        )
        self.register_buffer("ranges", reach * (radii[:, None] + radii), persistent=False)
        self.register_buffer(
            "weights", torch.tensor(SCREENING_WEIGHTS, dtype=torch.float64), persistent=False
        )
        self.register_buffer(
            "rates", torch.tensor(SCREENING_RATES, dtype=torch.float64), persistent=False
        )

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
