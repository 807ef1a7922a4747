"""Muon in float32, with matrices of one shape in one batch.

`torch.optim.Muon` multiplies in bfloat16, for which most CPUs have no instructions: a step of the
427K student then takes 397 ms on one core (AMD EPYC with AVX2), and 17 ms in float32.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# Coefficients of the odd polynomial that is applied `ITERATIONS` times (Jordan et al. 2024).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MOMENTUM = 0.95
SMALLEST_NORM = 1e-7


class Muon(torch.optim.Optimizer):
    """Momentum whose update of a matrix has the same size along every singular direction.

    The method is that of Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon), with
    Nesterov momentum. Updates are scaled by 0.2 sqrt(larger dimension), so that their root mean
    square is that of AdamW (Liu et al. 2025, arXiv:2502.16982). States can be exchanged with
    `torch.optim.Muon`.

    Parameters
    ----------
    matrices : iterable of Parameter
        Weights with two dimensions.
    lr : float
        Learning rate.
    """

    def __init__(self, matrices: Iterable[torch.nn.Parameter], lr: float) -> None:
        super().__init__(matrices, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update all matrices by their gradients."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[matrix.shape].append(matrix)
            for shape, matrices in alike.items():
                updates = orthogonalized(torch.stack([*map(self._momentum, matrices)]))
                size = -group["lr"] * 0.2 * max(shape) ** 0.5
                for matrix, update in zip(matrices, updates, strict=True):
                    matrix.add_(update, alpha=size)

    def _momentum(self, matrix: Tensor) -> Tensor:
        """Add the gradient of a matrix to its momentum, and return the update (Nesterov)."""
        state, gradient = self.state[matrix], matrix.grad
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        momentum = state["momentum_buffer"].lerp_(gradient, 1.0 - MOMENTUM)
        return gradient.lerp(momentum, MOMENTUM)


def orthogonalized(matrices: Tensor) -> Tensor:
    """Return matrices with the same singular vectors and singular values between 0.5 and 1.5.

    Parameters
    ----------
    matrices : Tensor
        (M, n, m) matrices.

    Returns
    -------
    Tensor
        (M, n, m) the result of a Newton-Schulz iteration.
    """
    first, third, fifth = COEFFICIENTS
    wide = matrices.shape[1] <= matrices.shape[2]
    result = matrices if wide else matrices.mT
    result = result / result.norm(dim=(1, 2), keepdim=True).clamp(min=SMALLEST_NORM)
    for _ in range(ITERATIONS):
        gram = result @ result.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=third, alpha=fifth)
        result = torch.baddbmm(result, polynomial, result, beta=first)
    return result if wide else result.mT
