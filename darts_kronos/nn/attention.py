"""Causal attention in training, by the fastest way that the device has.

On CPUs torch's fused attention reaches a fraction of what its matrix products reach. Here those
products are made, of blocks of queries and a few heads at a time, so that their weights stay in
the caches; nothing above the diagonal is computed but within a block. The weights are kept for the
gradients, which torch's fused attention computes again; so where they are many, it takes over.

Shapes by letter: N heads of all windows, T bars, K width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 64
"""Queries in a block."""

HEADS = 16
"""Heads in a block."""

MOST_KEPT = 2**28
"""Bytes of weights that are kept for gradients; with dropout torch keeps more than that itself."""


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor, dropout: float = 0.0) -> Tensor:
    """Attention of each bar over itself and the bars before it, with gradients.

    Parameters
    ----------
    queries, keys, values
        Shape (..., T, K).
    dropout
        Share of the attention's weights that are left out.

    Returns
    -------
    Tensor
        Shape (..., T, K).
    """
    kept = queries.shape[:-1].numel() * queries.shape[-2] / 2 * queries.itemsize
    if (dropout > 0 or kept <= MOST_KEPT) and _in_training(queries, keys, values):
        flat = (one.flatten(0, -3).contiguous() for one in (queries, keys, values))
        out: Tensor = _Blocks.apply(*flat, dropout)
        return out.view(queries.shape)
    return F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, is_causal=True)


def _in_training(*tensors: Tensor) -> bool:
    """Whether there are gradients, of float32 on a CPU."""
    return (
        torch.is_grad_enabled()
        and all(one.dtype == torch.float32 and one.device.type == "cpu" for one in tensors)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _blocks(N: int, T: int) -> Iterator[tuple[slice, slice, slice]]:
    """Heads, queries, and the keys that these may see, of each block."""
    for head in range(0, N, HEADS):
        for start in range(0, T, BLOCK):
            end = min(start + BLOCK, T)
            yield slice(head, head + HEADS), slice(start, end), slice(end)


class _Blocks(torch.autograd.Function):
    """Attention of queries, keys and values (N, T, K)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        N, T, K = q.shape
        q = q * K**-0.5
        out = torch.empty_like(q)
        ahead = q.new_full((BLOCK, BLOCK), float("-inf")).triu(1)
        kept = []
        for heads, rows, seen in _blocks(N, T):
            scores = torch.bmm(q[heads, rows], k[heads, seen].mT)
            size = scores.shape[1]
            scores[:, :, rows] += ahead[:size, :size]
            weights = scores.softmax(dim=-1)
            kept.append(weights)
            if dropout > 0:
                # How much of each weight counts: 0, or enough for those that are left out.
                scale = torch.empty_like(weights).bernoulli_(1 - dropout).div_(1 - dropout)
                kept.append(scale)
                weights = weights * scale
            out[heads, rows] = torch.bmm(weights, v[heads, seen])
        ctx.save_for_backward(q, k, v, out, *kept)
        ctx.dropped = dropout > 0
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, *kept = ctx.saved_tensors
        N, T, K = q.shape
        to_q, to_k, to_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        along = (gradient * out).sum(dim=-1, keepdim=True)
        parts = iter(kept)
        for heads, rows, seen in _blocks(N, T):
            weights = next(parts)
            scale = next(parts) if ctx.dropped else None
            of_rows = gradient[heads, rows].contiguous()
            used = weights if scale is None else weights * scale
            to_v[heads, seen].baddbmm_(used.mT, of_rows)
            if scale is None:
                to_scores = torch.baddbmm(along[heads, rows], of_rows, v[heads, seen].mT, beta=-1)
            else:
                to_scores = torch.bmm(of_rows, v[heads, seen].mT).mul_(scale)
                to_scores -= along[heads, rows]
            to_scores *= weights
            to_q[heads, rows] = torch.bmm(to_scores, k[heads, seen])
            to_k[heads, seen].baddbmm_(to_scores.mT, q[heads, rows])
        return to_q.mul_(K**-0.5), to_k, to_v, None
