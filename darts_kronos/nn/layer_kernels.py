"""What layers do between their products, each in one pass over memory, compiled by numba.

Shapes by letter: N rows, D width of the model, F width of the feed-forward, K width of a head.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float32, float64, int64, uint32
from numba.core import types

from darts_kronos.nn.compiling import MATRIX, ROW, Array, compiled, exponentials

DROPOUT = types.Tuple((uint32, uint32))


@compiled(*(int64, int64, MATRIX, MATRIX))
def gate(first: int, end: int, gate_value: Array, out: Array) -> None:
    """Some rows of ``silu(gate) * value``, (N, F), of both in one, (N, 2 F), in that order."""
    F = out.shape[1]
    powers = np.empty(F, dtype=np.float32)
    for n in range(first, end):
        for f in range(F):
            powers[f] = -gate_value[n, f]
        exponentials(powers)
        for f in range(F):
            out[n, f] = gate_value[n, f] * gate_value[n, F + f] / (np.float32(1) + powers[f])


@compiled(*(int64, int64, MATRIX, MATRIX, MATRIX))
def to_gate(first: int, end: int, gate_value: Array, gradient: Array, out: Array) -> None:
    """Some rows of its gradient, (N, 2 F), given that of the results, (N, F)."""
    F = gradient.shape[1]
    powers = np.empty(F, dtype=np.float32)
    one = np.float32(1)
    for n in range(first, end):
        for f in range(F):
            powers[f] = -gate_value[n, f]
        exponentials(powers)
        for f in range(F):
            gate, share = gate_value[n, f], one / (one + powers[f])
            of_row = gradient[n, f] * share
            out[n, f] = of_row * gate_value[n, F + f] * (one + gate * (one - share))
            out[n, F + f] = of_row * gate


@compiled(*(int64, int64, MATRIX, ROW, float64, MATRIX, ROW))
def normed(
    first: int, end: int, x: Array, weight: Array, eps: float, out: Array, scales: Array
) -> None:
    """Some rows of `x`, (N, D), over their root mean squares, times `weight`.

    The factor of each row is written to `scales`, (N,).
    """
    D = x.shape[1]
    for n in range(first, end):
        squares = np.float32(0)
        for d in range(D):
            squares += x[n, d] * x[n, d]
        scale = np.float32(1) / np.sqrt(squares / np.float32(D) + np.float32(eps))
        scales[n] = scale
        for d in range(D):
            out[n, d] = x[n, d] * scale * weight[d]


@compiled(*(int64, int64, MATRIX, ROW, ROW, MATRIX, MATRIX, ROW))
def to_normed(
    first: int,
    end: int,
    x: Array,
    weight: Array,
    scales: Array,
    gradient: Array,
    out: Array,
    to_weight: Array,
) -> None:
    """Some rows of its gradient, (N, D); what they add to the weight's is added to `to_weight`."""
    D = x.shape[1]
    for n in range(first, end):
        along, scale = np.float32(0), scales[n]
        for d in range(D):
            product = gradient[n, d] * x[n, d]
            along += product * weight[d]
            to_weight[d] += product * scale
        along *= scale * scale * scale / np.float32(D)
        for d in range(D):
            out[n, d] = gradient[n, d] * weight[d] * scale - x[n, d] * along


@compiled(ROW, ROW, ROW, float32, ROW, inline="always")
def rotate(head: Array, cosines: Array, sines: Array, scale: float, out: Array) -> None:
    """Write a head of queries or keys, (K,), scaled and rotated, as ``nn.rotary`` does."""
    half = head.size // 2
    for k in range(half):
        first, second = head[k] * scale, head[k + half] * scale
        out[k] = first * cosines[k] + second * sines[k]
        out[k + half] = second * cosines[k + half] + first * sines[k + half]


@compiled(uint32, returns=uint32)
def _mixed(x: Any) -> Any:
    """A number whose bits look as if they were drawn, by `x` (lowbias32 of C. Wellons)."""
    x = np.uint32(x ^ (x >> np.uint32(16)))
    x = np.uint32(x * np.uint32(0x7FEB352D))
    x = np.uint32(x ^ (x >> np.uint32(15)))
    x = np.uint32(x * np.uint32(0x846CA68B))
    return np.uint32(x ^ (x >> np.uint32(16)))


@compiled(MATRIX, int64, DROPOUT)
def draw_shares(out: Array, first: int, dropout: Any) -> None:
    """Fill rows, (N, D), with 0 for what is left out, and with what makes up for it.

    Parameters
    ----------
    out
        The rows.
    first
        Number of the first among all rows.
    dropout
        A number that draws, and how many of 2**32 entries are left out.
    """
    seed, left_out = dropout
    share = np.float32(1 / (1 - left_out / 2**32))
    for n in range(len(out)):
        start = _mixed(np.uint32(_mixed(np.uint32(first + n)) ^ seed))
        for d in range(out.shape[1]):
            bits = _mixed(np.uint32(start + np.uint32(np.uint32(d) * np.uint32(0x9E3779B9))))
            out[n, d] = share if bits >= left_out else np.float32(0)


@compiled(*(int64, int64, MATRIX, DROPOUT, MATRIX))
def drop(first: int, end: int, x: Array, dropout: Any, out: Array) -> None:
    """Some rows of `x`, (N, D), or of their gradient, with entries left out."""
    for n in range(first, end):
        draw_shares(out[n : n + 1], n, dropout)
        for d in range(x.shape[1]):
            out[n, d] *= x[n, d]
