"""Causal attention of whole windows, by the fastest way that the device has.

On CPUs torch's fused attention reaches a fraction of what its matrix products reach. Here those
products are made, of blocks of queries and a few heads at a time, so that their weights stay in
the caches; nothing above the diagonal is computed but within a block. Torch's fused attention takes
over where it is the better: where weights, which are kept for the gradients, would be many, and
with several threads, which would have to wait for each other after each product, at length where
another process has one of their cores. It has no fused form with dropout.

Shapes by letter: N heads of all windows, T bars, K width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from darts_kronos.nn.kernels import entries_kept, plain_on_cpu

BLOCK = 64
"""Queries in a block."""

HEADS = 16
"""Heads in a block, for each thread."""

BARS_PER_CHANNEL = 16
"""Bars of a window for each channel of a head up to which blocks are made: their weights, which are
kept for gradients, are then fewer than what the other layers keep. With dropout torch keeps them
itself."""


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor, dropout: float = 0.0) -> Tensor:
    """Attention of each bar over itself and the bars before it.

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
    T, K = queries.shape[-2:]
    with_gradients = torch.is_grad_enabled()
    many = with_gradients and T > BARS_PER_CHANNEL * K
    fused = dropout == 0 and (many or torch.get_num_threads() > 1)
    if not fused and plain_on_cpu(queries, keys, values):
        scaled = queries * K**-0.5
        flat = (one.flatten(0, -3).contiguous() for one in (scaled, keys, values))
        attend: Any = _Blocks.apply if with_gradients else _attend
        out: Tensor = attend(*flat, dropout, HEADS * torch.get_num_threads())
        return out.view(queries.shape)
    return F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, is_causal=True)


def _blocks(N: int, T: int, size: int) -> Iterator[tuple[slice, slice, slice]]:
    """Heads, `size` at a time, queries, and the keys that these may see, of each block."""
    for head in range(0, N, size):
        for start in range(0, T, BLOCK):
            end = min(start + BLOCK, T)
            yield slice(head, head + size), slice(start, end), slice(end)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout: float,
    heads_at_once: int,
    kept: list[Tensor] | None = None,
) -> Tensor:
    """Attention of scaled queries, keys and values, each (N, T, K).

    What gradients take is added to `kept`: weights, and with dropout how much of each counts.
    """
    out = torch.empty_like(q)
    ahead = q.new_full((BLOCK, BLOCK), float("-inf")).triu(1)
    for heads, rows, seen in _blocks(len(q), q.shape[1], heads_at_once):
        scores = torch.bmm(q[heads, rows], k[heads, seen].mT)
        size = scores.shape[1]
        scores[:, :, rows] += ahead[:size, :size]
        weights = scores.softmax(dim=-1)
        if kept is not None:
            kept.append(weights)
        if dropout > 0:
            # 0, or enough for those that are left out.
            of_weights, factor = entries_kept(weights, dropout)
            scale = of_weights.to(weights.dtype).mul_(factor)
            weights = weights * scale
            if kept is not None:
                kept.append(scale)
        out[heads, rows] = torch.bmm(weights, v[heads, seen])
    return out


class _Blocks(torch.autograd.Function):
    """The same with its gradients."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, dropout: float, heads_at_once: int
    ) -> Tensor:
        kept: list[Tensor] = []
        out = _attend(q, k, v, dropout, heads_at_once, kept)
        ctx.save_for_backward(q, k, v, out, *kept)
        ctx.blocks = list(_blocks(len(q), q.shape[1], heads_at_once))
        ctx.dropped = dropout > 0
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, out, *kept = ctx.saved_tensors
        to_q, to_k, to_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        along = (gradient * out).sum(dim=-1, keepdim=True)
        parts = iter(kept)
        for heads, rows, seen in ctx.blocks:
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
        return to_q, to_k, to_v, None, None
