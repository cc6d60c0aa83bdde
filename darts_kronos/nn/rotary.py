"""Rotary positions (arXiv 2104.09864): queries and keys turned by where their bar stands.

Shapes by letter: T bars, K width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from darts_kronos.nn.kernel_modules import gpu_layers

ROTARY_BASE = 10000.0

Rotary = tuple[Tensor, Tensor]


def rotary_frequencies(head_width: int, device: torch.device | None = None) -> Tensor:
    """Angle per bar of each pair of channels, (K / 2,), float32."""
    exponents = torch.arange(0, head_width, 2, device=device, dtype=torch.float32)
    return 1.0 / (ROTARY_BASE ** (exponents / head_width))


def rotary_table(length: int, head_width: int, device: torch.device) -> Rotary:
    """Cosines and sines that rotate a head's halves.

    Always computed in float32: half precision cannot tell distant positions apart.

    Parameters
    ----------
    length
        T, the number of positions, from 0.
    head_width
        K, an even number.
    device
        Where the tables are made.

    Returns
    -------
    tuple of Tensor
        Cosines, and sines with the first half's negated as ``rotate`` wants them; each of shape
        (T, K), float32.
    """
    positions = torch.arange(length, device=device, dtype=torch.float32)
    angles = torch.outer(positions, rotary_frequencies(head_width, device))
    cosines, sines = angles.cos(), angles.sin()
    return torch.cat((cosines, cosines), dim=-1), torch.cat((-sines, sines), dim=-1)


class _Rotate(torch.autograd.Function):
    """A rotation, whose gradient is the rotation back: nothing of `x` is kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        ctx.save_for_backward(cosines, sines)
        return _rotated(x, cosines, sines)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cosines, sines = ctx.saved_tensors
        return _rotated(gradient, cosines, sines, back=True), None, None


def _rotated(x: Tensor, cosines: Tensor, sines: Tensor, back: bool = False) -> Tensor:
    # In one piece, as attention takes it.
    kernels = gpu_layers(x) if x.ndim == 4 else None
    if kernels is not None:
        by_kernel: Tensor = kernels.rotate(x, cosines, sines, back)
        return by_kernel
    sines = -sines if back else sines
    out = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, cosines.dtype), device=x.device)
    return rotate_into(out, x, (cosines, sines)).to(x.dtype)


def rotate_into(out: Tensor, x: Tensor, rotary: Rotary) -> Tensor:
    """Write queries or keys `x`, (..., T, K), to `out`, rotated, without gradients."""
    cosines, sines = rotary
    half = x.shape[-1] // 2
    torch.mul(x, cosines, out=out)
    out[..., :half].addcmul_(x[..., half:], sines[..., :half])
    out[..., half:].addcmul_(x[..., :half], sines[..., half:])
    return out


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate queries or keys of shape (..., T, K) by their positions."""
    if not torch.is_grad_enabled():
        return _rotated(x, *rotary)
    rotated: Tensor = _Rotate.apply(x, *rotary)
    return rotated
