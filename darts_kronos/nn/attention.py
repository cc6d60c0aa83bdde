"""Causal attention of whole windows, by the fastest way that the device has.

On CPUs torch's fused attention reaches a fraction of what its matrix products reach. Here those
products are made, of blocks of queries and a few heads at a time, so that their weights stay in
the caches; nothing above the diagonal is computed but within a block. Torch's fused attention takes
over where it is the better: where weights, which are kept for the gradients, would be many, and
with several threads, which would have to wait for each other after each product, at length where
another process has one of their cores. It has no fused form with dropout.

Shapes by letter: B windows, H heads of a window, N heads of all windows, T bars, K width of a head.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from darts_kronos.nn.kernels import draw_shares, dropout_scale, plain_on_cpu
from darts_kronos.nn.rotary import Rotary, rotate, rotate_into

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
    if _by_blocks(T, K, dropout) and plain_on_cpu(queries, keys, values):
        scaled = queries * K**-0.5
        flat = (one.flatten(0, -3).contiguous() for one in (scaled, keys, values))
        attend: Any = _Blocks.apply if torch.is_grad_enabled() else _attend
        out: Tensor = attend(*flat, dropout, _heads_at_once())
        return out.view(queries.shape)
    return F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, is_causal=True)


def self_attention(heads: Tensor, rotary: Rotary, dropout: float = 0.0) -> Tensor:
    """The same of rotated queries and keys.

    Parameters
    ----------
    heads
        Queries, keys and values of each bar, in that order, (B, T, 3, H, K).
    rotary
        What rotates queries and keys, each (T, K).
    dropout
        Share of the attention's weights that are left out.

    Returns
    -------
    Tensor
        Shape (B, T, H, K).
    """
    T, K = heads.shape[1], heads.shape[-1]
    if _by_blocks(T, K, dropout) and plain_on_cpu(heads):
        if not torch.is_grad_enabled():
            return _self_attend(heads, rotary, dropout, _heads_at_once())[0]
        out: Tensor = _SelfBlocks.apply(heads, *rotary, dropout, _heads_at_once())
        return out
    queries, keys, values = heads.permute(2, 0, 3, 1, 4)
    y = causal_attention(rotate(queries, rotary), rotate(keys, rotary), values, dropout)
    return y.transpose(1, 2)


def _by_blocks(T: int, K: int, dropout: float) -> bool:
    """Whether blocks are the faster way, and hold no more than they may."""
    if dropout > 0:
        return True
    many = torch.is_grad_enabled() and T > BARS_PER_CHANNEL * K
    return not many and torch.get_num_threads() == 1


def _heads_at_once() -> int:
    """Heads in a block. Gradients, which another thread may take, ask for the same."""
    return HEADS * torch.get_num_threads()


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

    What gradients take of each block is added to `kept`: its weights before dropout, and with
    dropout the shares by which they went.
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
            shares = draw_shares(weights)
            weights = dropout_scale(shares, dropout, weights).mul_(weights)
            if kept is not None:
                kept.append(shares)
        out[heads, rows] = torch.bmm(weights, v[heads, seen])
    return out


def _gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    along: Tensor,
    gradient: Tensor,
    how: tuple[float, int],
    kept: Iterable[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the same, for its gradient, (N, T, K), and this one's products with what it gave.

    `how` is its dropout, and its heads at once.
    """
    dropout, heads_at_once = how
    to_q, to_k, to_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    parts = iter(kept)
    for heads, rows, seen in _blocks(len(q), q.shape[1], heads_at_once):
        weights = next(parts)
        of_rows = gradient[heads, rows].contiguous()
        if dropout > 0:
            scale = dropout_scale(next(parts), dropout, weights)
            to_scores = torch.bmm(of_rows, v[heads, seen].mT).mul_(scale)
            to_scores -= along[heads, rows]
            used = scale.mul_(weights)
        else:
            to_scores = torch.baddbmm(along[heads, rows], of_rows, v[heads, seen].mT, beta=-1)
            used = weights
        to_v[heads, seen].baddbmm_(used.mT, of_rows)
        to_scores *= weights
        to_q[heads, rows] = torch.bmm(to_scores, k[heads, seen])
        to_k[heads, seen].baddbmm_(to_scores.mT, q[heads, rows])
    return to_q, to_k, to_v


class _Blocks(torch.autograd.Function):
    """The same with its gradients."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, dropout: float, heads_at_once: int
    ) -> Tensor:
        kept: list[Tensor] = []
        ctx.how = dropout, heads_at_once
        out = _attend(q, k, v, dropout, heads_at_once, kept)
        ctx.save_for_backward(q, k, v, out, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, out, *kept = ctx.saved_tensors
        along = (gradient * out).sum(dim=-1, keepdim=True)
        return *_gradients(q, k, v, along, gradient, ctx.how, kept), None, None


def _self_attend(
    heads: Tensor,
    rotary: Rotary,
    dropout: float,
    heads_at_once: int,
    kept: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """``self_attention``, and queries, keys and values, (3, N, T, K), as its products take them."""
    B, T, _, H, K = heads.shape
    own = heads.new_empty(3, B, H, T, K)
    queries, keys, values = heads.permute(2, 0, 3, 1, 4)
    rotate_into(own[0], queries, _scaled(rotary, K**-0.5))
    rotate_into(own[1], keys, rotary)
    own[2] = values
    own = own.flatten(1, 2)
    q, k, v = own
    out = _attend(q, k, v, dropout, heads_at_once, kept).view(B, H, T, K)
    return out.transpose(1, 2).contiguous(), own


def _scaled(rotary: Rotary, factor: float) -> Rotary:
    cosines, sines = rotary
    return cosines * factor, sines * factor


def _back(rotary: Rotary) -> Rotary:
    cosines, sines = rotary
    return cosines, -sines


class _SelfBlocks(torch.autograd.Function):
    """The same with its gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        heads: Tensor,
        cosines: Tensor,
        sines: Tensor,
        dropout: float,
        heads_at_once: int,
    ) -> Tensor:
        kept: list[Tensor] = []
        ctx.how = dropout, heads_at_once
        out, own = _self_attend(heads, (cosines, sines), dropout, heads_at_once, kept)
        ctx.save_for_backward(own, cosines, sines, out, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        own, cosines, sines, out, *kept = ctx.saved_tensors
        B, T, H, K = out.shape
        along = (gradient * out).sum(dim=-1).transpose(1, 2).reshape(B * H, T, 1)
        of_heads = gradient.transpose(1, 2).reshape(B * H, T, K)
        q, k, v = own
        to_q, to_k, to_v = _gradients(q, k, v, along, of_heads, ctx.how, kept)
        # Of both back, into one piece: straight to where they go takes longer.
        turned = torch.empty_like(own[:2])
        back = _back((cosines, sines))
        rotate_into(turned[0], to_q, _scaled(back, K**-0.5))
        rotate_into(turned[1], to_k, back)
        to_heads = out.new_empty(B, T, 3, H, K)
        for to, one in zip(to_heads.permute(2, 0, 3, 1, 4), (*turned, to_v), strict=True):
            to.copy_(one.view(B, H, T, K))
        return to_heads, None, None, None, None
