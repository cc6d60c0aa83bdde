"""Causal attention of whole windows, by the fastest way that the device has.

On CPUs torch's fused attention reaches a fraction of what its matrix products reach. Here those
products are made, of blocks of queries and a few heads at a time, so that their weights stay in
the caches; nothing above the diagonal is computed but within a block. Torch's fused attention takes
over where it is the better: where weights, which are kept for the gradients, would be many, and
with several threads, which would have to wait for each other after each product, at length where
another process has one of their cores. It has no fused form with dropout.

Shapes by letter: B windows, H heads of a window, N = B * H, T bars, K width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
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

FEW_THREADS, LONG_WINDOW = 2, 128
"""Threads with which blocks were measured to be faster without gradients, a fifth to a third, and
bars of a window from which on: of few heads, all in one block. With more, of short windows, torch's
fused attention takes half the time."""


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor, dropout: float = 0.0) -> Tensor:
    """Attention of each bar over itself and the bars before it.

    Parameters
    ----------
    queries, keys, values
        Shape (..., H, T, K).
    dropout
        Share of the attention's weights that are left out.

    Returns
    -------
    Tensor
        Shape (..., H, T, K).
    """
    H, T, K = queries.shape[-3:]
    heads = queries.shape[:-2].numel()
    if _by_blocks(heads, T, K, dropout) and plain_on_cpu(queries, keys, values):
        split = torch.stack((queries * K**-0.5, keys, values))
        split = split.view(3, heads // H, H, T, K)
        return _attend_by_blocks(split, dropout).transpose(1, 2).view(queries.shape)
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
    B, T, _, H, K = heads.shape
    if _by_blocks(B * H, T, K, dropout) and plain_on_cpu(heads):
        split: Tensor = _Split.apply(heads, *rotary)
        return _attend_by_blocks(split, dropout)
    queries, keys, values = heads.permute(2, 0, 3, 1, 4)
    y = causal_attention(rotate(queries, rotary), rotate(keys, rotary), values, dropout)
    return y.transpose(1, 2)


def _by_blocks(heads: int, T: int, K: int, dropout: float) -> bool:
    """Whether blocks are the faster way for so many heads in all, and hold what they may."""
    if dropout > 0:
        return True
    threads = torch.get_num_threads()
    if torch.is_grad_enabled():
        return threads == 1 and T <= BARS_PER_CHANNEL * K
    few = heads <= HEADS * threads and T > LONG_WINDOW
    return threads == 1 or (threads == FEW_THREADS and few)


def _attend_by_blocks(split: Tensor, dropout: float) -> Tensor:
    """Attention (B, T, H, K) of scaled queries, keys and values, in that order, (3, B, H, T, K)."""
    heads_at_once = HEADS * torch.get_num_threads()
    if not torch.is_grad_enabled():
        return _attend(split, dropout, heads_at_once)
    out: Tensor = _Blocks.apply(split, dropout, heads_at_once)
    return out


def _blocks(N: int, T: int, size: int) -> Iterator[tuple[slice, slice, slice]]:
    """Heads, `size` at a time, queries, and the keys that these may see, of each block."""
    for head in range(0, N, size):
        for start in range(0, T, BLOCK):
            end = min(start + BLOCK, T)
            yield slice(head, head + size), slice(start, end), slice(end)


def _attend(
    split: Tensor, dropout: float, heads_at_once: int, kept: list[Tensor] | None = None
) -> Tensor:
    """The same, of so many heads at once.

    What gradients take of each block is added to `kept`: its weights before dropout, and with
    dropout the shares by which they went.
    """
    q, k, v = split.flatten(1, 2)
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
    return out.view(split.shape[1:]).transpose(1, 2).contiguous()


class _Blocks(torch.autograd.Function):
    """The same with its gradients.

    These, which another thread may take, are of the blocks that were made. What it gives is kept
    for them as it is: so the layer behind, which keeps it too, takes no more memory.
    """

    @staticmethod
    def forward(ctx: Any, split: Tensor, dropout: float, heads_at_once: int) -> Tensor:
        kept: list[Tensor] = []
        out = _attend(split, dropout, heads_at_once, kept)
        ctx.save_for_backward(split, out, *kept)
        ctx.dropout, ctx.heads_at_once = dropout, heads_at_once
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        split, out, *kept = ctx.saved_tensors
        q, k, v = split.flatten(1, 2)
        to_split = torch.empty_like(split)
        to_q, to_k, to_v = to_split.flatten(1, 2)
        to_split[1:] = 0.0
        along = (gradient * out).sum(dim=-1).transpose(1, 2).reshape(*q.shape[:2], 1)
        of_heads = gradient.transpose(1, 2).reshape(q.shape)
        parts = iter(kept)
        for heads, rows, seen in _blocks(len(q), q.shape[1], ctx.heads_at_once):
            weights = next(parts)
            of_rows = of_heads[heads, rows].contiguous()
            if ctx.dropout > 0:
                scale = dropout_scale(next(parts), ctx.dropout, weights)
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
        return to_split, None, None


class _Split(torch.autograd.Function):
    """Heads (B, T, 3, H, K) as products take them: (3, B, H, T, K), rotated, queries scaled."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        B, T, _, H, K = heads.shape
        ctx.save_for_backward(cosines, sines)
        split = heads.new_empty(3, B, H, T, K)
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)
        rotate_into(split[0], queries, (cosines * K**-0.5, sines * K**-0.5))
        rotate_into(split[1], keys, (cosines, sines))
        split[2] = values
        return split

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cosines, sines = ctx.saved_tensors
        _, B, H, T, K = gradient.shape
        # Rotated back in one piece: straight to where they go takes longer.
        back = torch.empty_like(gradient[:2])
        rotate_into(back[0], gradient[0], (cosines * K**-0.5, sines * -(K**-0.5)))
        rotate_into(back[1], gradient[1], (cosines, -sines))
        to_heads = gradient.new_empty(B, T, 3, H, K)
        to_heads[:, :, :2] = back.permute(1, 3, 0, 2, 4)
        to_heads[:, :, 2] = gradient[2].transpose(1, 2)
        return to_heads, None, None
