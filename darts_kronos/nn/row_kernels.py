"""One path through the predictor, bar by bar, compiled by numba for this processor.

A step of a single path reads every weight once and does little with it. Torch calls some thirty
small operations for each block, and its products of one row reach a third to two thirds of the
memory's bandwidth; a plain loop over the rows of a weight, which lies output by output, reaches
nearly all of it. Between such loops even an interpreter's few lines are slow, since the weights
have driven them out of the processor's caches: so many bars are one call. Arrays are contiguous,
and all but tokens and addresses float32. Kernels are compiled when this module is imported; the
machine code is kept for later processes where numba finds a folder for it.

Shapes by letter: D width of the model, H heads, K width of a head (D = H * K), F width of the
feed-forward, L bars that a cache holds, N blocks, V entries of a codebook, V1 of the coarse and V2
of the fine one, n new bars, I and O widths in and out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, float32, float64, int64, njit, void
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

Array = NDArray[np.float32]

Kernel = Callable[..., Any]

ROW, MATRIX, HEADS = float32[::1], float32[:, ::1], float32[:, :, ::1]

ADDRESSES = int64[:, ::1]

TOKENS, UNIFORMS, SAMPLING = int64[::1], float32[:, ::1], types.Tuple((float64, int64, float64))

TABLES, ROTARY, SIZES = (types.UniTuple(*one) for one in ((MATRIX, 4), (MATRIX, 2), (int64, 4)))

AFTER = types.Tuple((ROW, MATRIX, ROW, MATRIX, ROW, ROW, MATRIX, ROW, MATRIX, ROW))

REORDERED = {"reassoc", "contract", "nsz"}
"""What the compiler may do to sums: add in another order. NaN and infinity stay what they are."""

IN_ORDER = REORDERED - {"reassoc"}

NONE = np.empty(0, dtype=np.float32)
"""The bias of a layer without one."""


def _compiled(
    *arguments: Any, returns: Any = void, fastmath: set[str] = REORDERED
) -> Callable[[Kernel], Kernel]:
    """Compile for arguments of these types, or load what was compiled before."""
    signature = returns(*arguments)
    options: dict[str, Any] = {"fastmath": fastmath, "error_model": "numpy", "nogil": True}

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


@_compiled(ROW, fastmath=IN_ORDER)
def exponentials(x: Array) -> None:
    """Replace each entry by its exponential; above 88 by that of 88, below -87 by 0.

    The power of two next to it times a series of seven terms, whose error is below float32's. The
    library's function takes one entry at a time; this takes as many as the processor can.
    """
    powers = np.empty(x.size, dtype=np.int32)
    factors = powers.view(np.float32)
    for i in range(x.size):
        exponent = np.float32(88) if x[i] > np.float32(88) else x[i]
        n = np.floor(exponent * np.float32(1.44269504) + np.float32(0.5))
        # log(2) in two parts, of which the first times n is exact.
        rest = exponent - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
        series = rest * np.float32(1 / 5040) + np.float32(1 / 720)
        series = series * rest + np.float32(1 / 120)
        series = series * rest + np.float32(1 / 24)
        series = series * rest + np.float32(1 / 6)
        series = series * rest + np.float32(0.5)
        series = series * rest + np.float32(1)
        series = series * rest + np.float32(1)
        powers[i] = (np.int32(n) + np.int32(127)) << np.int32(23)
        x[i] = np.float32(0) if x[i] < np.float32(-87) else series * factors[i]


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
        for i in range(weights.size):
            weights[i] -= highest
        exponentials(weights)
        total = np.float32(0)
        for i in range(weights.size):
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
    inverse = np.empty(F, dtype=np.float32)
    for i in range(F):
        inverse[i] = -hidden[i]
    exponentials(inverse)
    for i in range(F):
        hidden[i] = hidden[i] / (np.float32(1) + inverse[i]) * hidden[F + i]
    product(down, none, hidden[:F], row)
    for i in range(D):
        x[i] += row[i]


def _as_pointer(typing: Any, address: Any) -> Any:
    """How numba is to compile ``_pointer``."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(float32)(int64), build


_pointer: Any = intrinsic(_as_pointer)
"""An address as a pointer to float32."""


@_compiled(
    *(int64, int64, int64, TABLES, ADDRESSES, ADDRESSES, SIZES, float64),
    *(int64, int64, ROTARY, AFTER, ROW, ROW),
)
def extend(
    i: int,
    s1: int,
    s2: int,
    tables: Any,
    weights: Any,
    kept: Any,
    sizes: Any,
    eps: float,
    first: int,
    at: int,
    rotary: Any,
    after: Any,
    hidden: Array,
    logits: Array,
) -> None:
    """Read a path's bar `i`, whose position is `at`; bars from `first` on are attended to.

    `s1` and `s2` are its tokens. Its hidden state, (D,), and the logits, (V1,), of the next bar's
    coarse token are written to `hidden` and `logits`; for the rest see ``write``.
    """
    s1_table, s2_table, _, times = tables
    cosines, sines = rotary
    norm, key_value, key_value_bias, _, _, _, s1_head, s1_head_bias, _, _ = after
    H, F, L, s2_heads = sizes
    D = hidden.size
    s2_width = D // s2_heads
    x = np.empty(D, dtype=np.float32)
    for d in range(D):
        x[d] = s1_table[s1, d] + s2_table[s2, d]
    if times.size > 0:
        for d in range(D):
            x[d] += times[i, d]
    for n in range(weights.shape[0]):
        block(
            x,
            carray(_pointer(weights[n, 0]), (D,)),
            carray(_pointer(weights[n, 1]), (3 * D, D)),
            carray(_pointer(weights[n, 2]), (3 * D,)),
            carray(_pointer(weights[n, 3]), (D, D)),
            carray(_pointer(weights[n, 4]), (D,)),
            carray(_pointer(weights[n, 5]), (D,)),
            carray(_pointer(weights[n, 6]), (2 * F, D)),
            carray(_pointer(weights[n, 7]), (D, F)),
            eps,
            carray(_pointer(kept[n, 0]), (H, L, D // H)),
            carray(_pointer(kept[n, 1]), (H, L, D // H)),
            first,
            at,
            cosines[at],
            sines[at],
        )
    normed(x, norm, eps, hidden)
    both = np.empty((2, s2_heads, s2_width), dtype=np.float32)
    product(key_value, key_value_bias, hidden, both.reshape(2 * D))
    keys = carray(_pointer(kept[-1, 0]), (s2_heads, L, s2_width))
    values = carray(_pointer(kept[-1, 1]), (s2_heads, L, s2_width))
    for h in range(s2_heads):
        _copy(both[0, h], keys[h, at])
        _copy(both[1, h], values[h, at])
    product(s1_head, s1_head_bias, hidden, logits)


@_compiled(int64, TABLES, ADDRESSES, SIZES, float64, int64, int64, AFTER, ROW, ROW)
def s2_logits(
    s1: int,
    tables: Any,
    kept: Any,
    sizes: Any,
    eps: float,
    first: int,
    end: int,
    after: Any,
    hidden: Array,
    logits: Array,
) -> None:
    """``logits``, (V2,): of the next bar's fine token, given its coarse one and a hidden state.

    Bars from `first` to `end` are attended to; for the rest see ``write``.
    """
    _, _, queries, _ = tables
    _, _, _, out, out_bias, norm, _, _, head, head_bias = after
    _, _, L, H = sizes
    D = hidden.size
    keys = carray(_pointer(kept[-1, 0]), (H, L, D // H))
    values = carray(_pointer(kept[-1, 1]), (H, L, D // H))
    attended, row = np.empty((H, D // H), dtype=np.float32), np.empty(D, dtype=np.float32)
    attend(queries[s1].reshape(H, D // H), keys, values, first, end, attended)
    product(out, out_bias, attended.reshape(D), row)
    for i in range(D):
        row[i] += hidden[i]
    conditioned = np.empty(D, dtype=np.float32)
    normed(row, norm, eps, conditioned)
    product(head, head_bias, conditioned, logits)


@_compiled(ROW, int64, float64, fastmath=IN_ORDER)
def limit(weights: Array, top_k: int, top_p: float) -> None:
    """Replace by 0 what ``generation.Sampling`` leaves out, given `top_k` and `top_p`."""
    ordered = np.sort(weights)
    total, fewest = 0.0, max(0, weights.size - top_k)
    for i in range(fewest, weights.size):
        total += ordered[i]
    reached, i = 0.0, weights.size
    while i > fewest and (i == weights.size or top_p >= 1 or reached <= top_p * total):
        i -= 1
        reached += ordered[i]
    least, equal = ordered[i], 0
    while i < weights.size and ordered[i] == least:
        equal += 1
        i += 1
    for i in range(weights.size):
        if weights[i] == least:
            equal -= 1
        if weights[i] < least or (weights[i] == least and equal < 0):
            weights[i] = np.float32(0)


@_compiled(ROW, SAMPLING, float64, returns=int64, fastmath=IN_ORDER)
def draw(logits: Array, sampling: Any, uniform: float) -> int:
    """A token, drawn from `logits`, (V,), by a number `uniform` in [0, 1).

    `sampling` are a temperature, `top_k` and `top_p`. The result is -1 if a logit is NaN, or
    infinity.
    """
    temperature, top_k, top_p = sampling
    token, total = 0, 0.0
    for i in range(logits.size):
        total += abs(logits[i])
        if logits[i] > logits[token]:
            token = i
    if not total < np.inf:
        return -1
    if top_k == 1:
        return token
    weights = np.empty(logits.size, dtype=np.float32)
    for i in range(logits.size):
        weights[i] = np.float32((logits[i] - logits[token]) / temperature)
    exponentials(weights)
    if top_k < logits.size or top_p < 1:
        limit(weights, top_k, top_p)
    total = 0.0
    for i in range(weights.size):
        total += weights[i]
    reached, place = 0.0, uniform * total
    for i in range(weights.size):
        reached += weights[i]
        if reached > place:
            return i
    return token


@_compiled(
    *(int64, int64, TOKENS, TOKENS, UNIFORMS, SAMPLING, int64, int64, TABLES, ADDRESSES, ADDRESSES),
    *(SIZES, float64, ROTARY, AFTER, ROW, ROW),
    returns=int64,
)
def write(
    start: int,
    stop: int,
    s1: Any,
    s2: Any,
    uniforms: Any,
    sampling: Any,
    known: int,
    most: int,
    tables: Any,
    weights: Any,
    kept: Any,
    sizes: Any,
    eps: float,
    rotary: Any,
    after: Any,
    hidden: Array,
    logits: Array,
) -> int:
    """Write bars of a path after a window.

    The result is `stop`, or the bar whose logits are NaN or infinite.

    Parameters
    ----------
    start, stop
        Which of the path's new bars to write; those before have been written.
    s1, s2
        The new bars' tokens, (n,), which are written there.
    uniforms
        Numbers in [0, 1) that draw them, (n, 2).
    sampling
        See ``draw``.
    known
        Bars of the window.
    most
        Bars that a bar sees at most, itself included; not less than `known`.
    tables
        Rows to add for the tokens, (V1, D) and (V2, D), the s2 queries of all coarse tokens,
        (V1, D), and rows to add for each new bar's calendar stamp, (n - 1, D), or (0, 0).
    weights
        Where each block's weights are, (N, 8), in the order of ``block``.
    kept
        Where keys and values are, each (H, L, K): of each block and, last, of the s2 attention,
        (N + 1, 2). Those of the new bars come after the window's.
    sizes
        H, F, L, and the heads of the s2 attention.
    eps
        Of all norms.
    rotary
        Cosines and sines of all positions, (L, K).
    after
        The weights after the blocks: the norm's, those of the s2 conditioning, ``key_value`` and
        ``out``, each with a bias, and its norm's, and the s1 head's and the s2 head's, each with
        a bias.
    hidden
        State of the window's newest bar, (D,); that of the path's is written there.
    logits
        Those of the first new bar's coarse token, (V1,); the next are written there.
    """
    of_s2 = np.empty(after[8].shape[0], dtype=np.float32)
    for i in range(start, stop):
        end = known + i
        first = max(0, end - most)
        if i > 0:
            extend(
                i - 1,
                s1[i - 1],
                s2[i - 1],
                tables,
                weights,
                kept,
                sizes,
                eps,
                first,
                end - 1,
                rotary,
                after,
                hidden,
                logits,
            )
        s1[i] = draw(logits, sampling, uniforms[i, 0])
        if s1[i] < 0:
            return i
        s2_logits(s1[i], tables, kept, sizes, eps, first, end, after, hidden, of_s2)
        s2[i] = draw(of_s2, sampling, uniforms[i, 1])
        if s2[i] < 0:
            return i
    return stop
