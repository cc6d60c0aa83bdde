"""One bar of one path through the predictor's layers, compiled by numba for this processor.

A step of a single path reads every weight once and does little with it. Torch calls some thirty
small operations for each block, and its products of one row reach a third to two thirds of the
memory's bandwidth; a plain loop over the rows of a weight, which lies output by output, reaches
nearly all of it. All arrays are float32 and contiguous. Kernels are compiled when this module is
imported; the machine code is kept for later processes where numba finds a folder for it.

Shapes by letter: D width of the model, H heads, K width of a head (D = H * K), F width of the
feed-forward, L bars that a cache holds, I and O widths in and out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import float32, float64, int64, njit, void
from numpy.typing import NDArray

Array = NDArray[np.float32]

Kernel = Callable[..., None]

ROW, MATRIX, HEADS = float32[::1], float32[:, ::1], float32[:, :, ::1]

REORDERED = {"reassoc", "contract", "nsz"}
"""What the compiler may do to sums: add in another order. NaN and infinity stay what they are."""

NONE = np.empty(0, dtype=np.float32)
"""The bias of a layer without one."""


def _compiled(*types: Any) -> Callable[[Kernel], Kernel]:
    """Compile for arguments of these types, or load what was compiled before."""
    signature = void(*types)
    options: dict[str, Any] = {"fastmath": REORDERED, "error_model": "numpy", "nogil": True}

    def compiled(function: Kernel) -> Kernel:
        try:
            return njit(signature, cache=True, **options)(function)
        except Exception:  # noqa: BLE001
            # No folder can be written, the disk is full, or what lies there cannot be read: the
            # kernels are compiled for this process. An error that has another cause comes again.
            return njit(signature, **options)(function)

    return compiled


@_compiled(MATRIX, ROW, ROW, ROW)
def product(weight: Array, bias: Array, x: Array, out: Array) -> None:
    """``out = weight @ x + bias``, (O,), of weights (O, I), x (I,) and a bias (O,) or NONE."""
    for o in range(weight.shape[0]):
        total = np.float32(0)
        for i in range(weight.shape[1]):
            total += weight[o, i] * x[i]
        out[o] = total
    for o in range(bias.size):
        out[o] += bias[o]


@_compiled(ROW, ROW, float64, ROW)
def normed(x: Array, weight: Array, eps: float, out: Array) -> None:
    """``out``, (D,): `x` over its root mean square, times `weight`."""
    squares = np.float32(0)
    for i in range(x.size):
        squares += x[i] * x[i]
    factor = np.float32(1) / np.sqrt(squares / np.float32(x.size) + np.float32(eps))
    for i in range(x.size):
        out[i] = x[i] * factor * weight[i]


@_compiled(MATRIX, HEADS, HEADS, int64, int64, MATRIX)
def attend(queries: Array, keys: Array, values: Array, first: int, end: int, out: Array) -> None:
    """``out``, (H, K): attention of queries (H, K) over bars `first` to `end` of (H, L, K)."""
    H, _, K = keys.shape
    scale = np.float32(1) / np.sqrt(np.float32(K))
    weights = np.empty(end - first, dtype=np.float32)
    for h in range(H):
        highest = np.float32(-np.inf)
        for at in range(first, end):
            score = np.float32(0)
            for k in range(K):
                score += queries[h, k] * keys[h, at, k]
            weights[at - first] = score * scale
            highest = max(highest, weights[at - first])
        total = np.float32(0)
        for i in range(end - first):
            weights[i] = np.exp(weights[i] - highest)
            total += weights[i]
        for k in range(K):
            out[h, k] = np.float32(0)
        for at in range(first, end):
            weight = weights[at - first]
            for k in range(K):
                out[h, k] += weight * values[h, at, k]
        for k in range(K):
            out[h, k] /= total


@_compiled(ROW, ROW, ROW, ROW)
def _rotate(head: Array, cosines: Array, sines: Array, out: Array) -> None:
    """``out``, (K,): a head of queries or keys, rotated as ``layers.rotate`` does."""
    half = head.size // 2
    for k in range(half):
        first, second = head[k], head[k + half]
        out[k] = first * cosines[k] + second * sines[k]
        out[k + half] = second * cosines[k + half] + first * sines[k + half]


@_compiled(ROW, ROW)
def _copy(row: Array, out: Array) -> None:
    # Assignments of whole rows take numba ten times as long to compile.
    for i in range(row.size):
        out[i] = row[i]


@_compiled(
    *(ROW, ROW, MATRIX, ROW, MATRIX, ROW, ROW, MATRIX, MATRIX, float64),
    *(HEADS, HEADS, int64, int64, ROW, ROW),
)
def block(
    x: Array,
    attn_norm: Array,
    qkv: Array,
    qkv_bias: Array,
    out: Array,
    out_bias: Array,
    ffn_norm: Array,
    gate_value: Array,
    down: Array,
    eps: float,
    keys: Array,
    values: Array,
    first: int,
    at: int,
    cosines: Array,
    sines: Array,
) -> None:
    """A block's output for the newest bar of a path.

    Parameters
    ----------
    x
        The bar's state, (D,); what the block makes of it is written there.
    attn_norm, qkv, qkv_bias, out, out_bias, ffn_norm, gate_value, down
        The block's weights, each as in ``layers.Block``.
    eps
        Of both norms.
    keys, values
        Of the window and of the path, (H, L, K). The new bar's are written at `at`.
    first, at
        The oldest bar that is attended to, and the new one.
    cosines, sines
        Of the new bar's position, (K,).
    """
    H, _, K = keys.shape
    D, F = x.size, down.shape[1]
    row = np.empty(D, dtype=np.float32)
    normed(x, attn_norm, eps, row)
    heads = np.empty((3, H, K), dtype=np.float32)
    product(qkv, qkv_bias, row, heads.reshape(3 * D))
    queries, attended = np.empty((H, K), dtype=np.float32), np.empty((H, K), dtype=np.float32)
    for h in range(H):
        _rotate(heads[0, h], cosines, sines, queries[h])
        _rotate(heads[1, h], cosines, sines, keys[h, at])
        _copy(heads[2, h], values[h, at])
    attend(queries, keys, values, first, at + 1, attended)
    product(out, out_bias, attended.reshape(D), row)
    for i in range(D):
        x[i] += row[i]

    normed(x, ffn_norm, eps, row)
    hidden, none = np.empty(2 * F, dtype=np.float32), np.empty(0, dtype=np.float32)
    product(gate_value, none, row, hidden)
    for i in range(F):
        hidden[i] = hidden[i] / (np.float32(1) + np.exp(-hidden[i])) * hidden[F + i]
    product(down, none, hidden[:F], row)
    for i in range(D):
        x[i] += row[i]


@_compiled(ROW, ROW, float64, MATRIX, ROW, HEADS, HEADS, int64, ROW)
def keep(
    x: Array,
    norm: Array,
    eps: float,
    key_value: Array,
    key_value_bias: Array,
    keys: Array,
    values: Array,
    at: int,
    hidden: Array,
) -> None:
    """``hidden``, (D,): the last block's output `x`, normalised; the s2 attention keeps it.

    Its key and value are written to bar `at` of (H, L, K). Weights are those of
    ``predictor.KronosPredictor.norm`` and ``predictor.S2Conditioning``.
    """
    H, _, K = keys.shape
    normed(x, norm, eps, hidden)
    both = np.empty((2, H, K), dtype=np.float32)
    product(key_value, key_value_bias, hidden, both.reshape(2 * H * K))
    for h in range(H):
        _copy(both[0, h], keys[h, at])
        _copy(both[1, h], values[h, at])


@_compiled(
    *(ROW, ROW, MATRIX, ROW, ROW, float64, MATRIX, ROW),
    *(HEADS, HEADS, int64, int64, ROW),
)
def s2_logits(
    hidden: Array,
    queries: Array,
    out: Array,
    out_bias: Array,
    norm: Array,
    eps: float,
    head: Array,
    head_bias: Array,
    keys: Array,
    values: Array,
    first: int,
    end: int,
    logits: Array,
) -> None:
    """``logits``, (O,): of the fine token, given a hidden state, (D,), and the coarse token.

    `queries`, (D,), are the coarse token's; bars `first` to `end` of the keys and values,
    (H, L, K), are attended to. Weights are those of ``predictor.S2Conditioning`` and of the head.
    """
    H, _, K = keys.shape
    attended, row = np.empty((H, K), dtype=np.float32), np.empty(H * K, dtype=np.float32)
    attend(queries.reshape(H, K), keys, values, first, end, attended)
    product(out, out_bias, attended.reshape(H * K), row)
    for i in range(row.size):
        row[i] += hidden[i]
    conditioned = np.empty(row.size, dtype=np.float32)
    normed(row, norm, eps, conditioned)
    product(head, head_bias, conditioned, logits)
