"""Binary spherical quantization (arXiv 2406.07548).

Shapes by letter: ... any leading shape, Q bits of a code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce

LOG_EPS = 1e-8


def bits_to_ids(code: Tensor) -> Tensor:
    """Token ids of signs of shape (..., Q): bit i is set where sign i is positive."""
    powers = 2 ** torch.arange(code.shape[-1], device=code.device)
    return ((code > 0) * powers).sum(dim=-1)


def ids_to_bits(ids: Tensor, n_bits: int) -> Tensor:
    """Signs, -1.0 or 1.0, of shape (..., `n_bits`), of token ids of shape (...)."""
    powers = 2 ** torch.arange(n_bits, device=ids.device)
    return ((ids.unsqueeze(-1) & powers) != 0).float() * 2.0 - 1.0


def binary_entropy(p: Tensor) -> Tensor:
    """Entropy in nats of a bit that is set with probability `p`."""
    q = 1.0 - p
    return -(p * (p + LOG_EPS).log() + q * (q + LOG_EPS).log())


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean of `x` over all processes that train together, with its gradient."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return x
    total: Tensor = all_reduce(x.contiguous())
    return total / distributed.get_world_size()


def weighted_mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of losses (B, T) times weights (B, T) over bars whose weight is not 0."""
    if weights is None:
        return losses.mean()
    return (losses * weights).sum() / (weights != 0).sum().clamp(min=1)


class BinarySphericalQuantizer(nn.Module):
    """Maps a vector to the nearest corner of a cube that is inscribed in the unit sphere.

    Parameters
    ----------
    beta
        Weight of the distance between a vector and its corner (commitment).
    gamma0
        Weight of the mean entropy of a vector's bits: low when each code is certain.
    gamma
        Weight of the entropy of the mean bits, which is rewarded: high when the whole codebook is
        in use. It is why the loss may be negative.
    zeta
        Weight of both entropies together.
    """

    def __init__(self, *, beta: float, gamma0: float, gamma: float, zeta: float):
        super().__init__()
        self.beta = beta
        self.gamma0 = gamma0
        self.gamma = gamma
        self.zeta = zeta

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize `z` of shape (..., Q).

        Returns
        -------
        tuple of Tensor
            The corners, (..., Q), each entry -1/sqrt(Q) or 1/sqrt(Q), with the gradient passed
            straight through the sign; and the unit vectors that they stand for, (..., Q).
        """
        unit = F.normalize(z.float(), dim=-1)
        signs = torch.where(unit > 0, 1.0, -1.0)
        straight_through = unit + (signs - unit).detach()
        return straight_through * z.shape[-1] ** -0.5, unit

    def loss(self, code: Tensor, unit: Tensor, weights: Tensor | None = None) -> Tensor:
        """The loss, a scalar that may be negative, of what ``forward`` gives.

        The entropy of the codebook is that of all processes' bars. With `weights`, of the shape
        that comes before Q, bars count as much as theirs say.
        """
        n_bits = unit.shape[-1]
        commitment = weighted_mean(((code.detach() - unit) ** 2).sum(dim=-1), weights)
        p = torch.sigmoid(-4.0 * unit * n_bits**-0.5)
        per_sample = weighted_mean(binary_entropy(p).sum(dim=-1), weights)
        if weights is None:
            codebook = binary_entropy(mean_over_ranks(p.flatten(0, -2).mean(dim=0))).sum()
        else:
            total = mean_over_ranks(weights.sum())
            used = mean_over_ranks((p * weights.unsqueeze(-1)).flatten(0, -2).sum(dim=0))
            used = used / total.clamp(min=torch.finfo(p.dtype).tiny)
            # As all else, it is worth as much as the bars that count weigh in the mean.
            counted = mean_over_ranks(weights.count_nonzero().to(p.dtype))
            codebook = binary_entropy(used).sum() * total / counted.clamp(min=1.0)
        entropy = self.gamma0 * per_sample - self.gamma * codebook
        return self.beta * commitment + self.zeta * entropy
