"""Paths through the predictor, bar by bar, compiled by numba for this processor.

A step of a few paths reads every weight once and does little with it. Torch calls some thirty
small operations for each block, which cost as much as the products, and shares each product among
threads, which wait for each other after it. Here a step of all blocks is one piece of machine code,
and each thread has paths of its own. A plain loop over the rows of a weight, which lies output by
output, reads nearly all that memory gives; with pairs of paths it makes four fifths of the products
that the processor can. Between such loops even an interpreter's few lines are slow, since the
weights have driven them out of the processor's caches: so many bars are one call.

Arrays are contiguous, and all but tokens, addresses and numbers of windows float32.

Shapes by letter: B windows, T bars of a window, R paths that are written together, C bars that
each has room for, n new bars, D width of the model, H heads, K width of a head (D = H * K), F width
of the feed-forward, N blocks, V entries of a codebook, V1 of the coarse and V2 of the fine one, I
and O widths in and out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import boolean, carray, float32, float64, int64
from numba.core import types

from darts_kronos.nn.compiling import (
    CUBE,
    IN_ORDER,
    MATRIX,
    ROW,
    SIZE,
    Array,
    compiled,
    exponentials,
    pointer,
    prefetch,
)
from darts_kronos.nn.layer_kernels import gate, normed, rotate

ADDRESSES, TOKENS, WINDOWS = int64[:, ::1], int64[:, :, ::1], int64[::1]
SAMPLING = types.Tuple((float64, int64, float64))
KEPT = types.UniTuple(float32[:, :, :, ::1], 4)
OF_BLOCK = types.Tuple((ROW, MATRIX, ROW, MATRIX, ROW, ROW, MATRIX, MATRIX))
TABLES, ROTARY = types.Tuple((MATRIX, MATRIX, MATRIX, CUBE)), types.UniTuple(MATRIX, 2)
AFTER = types.Tuple((ROW, MATRIX, ROW, MATRIX, ROW, ROW, MATRIX, ROW, MATRIX, ROW))
NETWORK = types.Tuple((TABLES, ADDRESSES, AFTER, ROTARY, types.UniTuple(int64, 3), float64))
MEMORY = types.Tuple((WINDOWS, ADDRESSES, types.UniTuple(int64, 3)))

LINE = 16
"""Numbers in a cache line."""

NONE = np.empty(0, dtype=np.float32)
"""The bias of a layer without one."""


@compiled(MATRIX, ROW, ROW)
def dots(weight: Array, x: Array, out: Array) -> None:
    """``out = weight @ x``, (O,), of weights (O, I) and x (I,)."""
    for o in range(weight.shape[0]):
        total = np.float32(0)
        for i in range(weight.shape[1]):
            total += weight[o, i] * x[i]
        out[o] = total


@compiled(MATRIX, ROW, MATRIX, MATRIX)
def product(weight: Array, bias: Array, x: Array, out: Array) -> None:
    """``out = x @ weight.T + bias``, (R, O), of weights (O, I), x (R, I), a bias (O,) or NONE."""
    (outputs, inputs), R = weight.shape, len(x)
    fours = outputs - outputs % 4 if R > 1 else 0
    # Cache lines of four outputs' weights, shared out among the pairs of rows.
    lines = -(-8 * inputs // (LINE * (R + R % 2)))
    for o in range(0, fours, 4):
        coming = (o + 4) * inputs
        for pair in range(0, R, 2):
            # Memory gives four rows at a time slowly: the next are on their way meanwhile.
            end = min(coming + lines * LINE, weight.size)
            for at in range(coming, end, LINE):
                prefetch(weight.ctypes.data + SIZE * at)
            coming = end
            # Each number that is read serves two sums or four, and all eight stay in registers.
            # Where the last row is alone, the one before it is done again.
            r = min(pair, R - 2)
            a = b = c = d = e = f = g = h = np.float32(0)
            for i in range(inputs):
                a += weight[o, i] * x[r, i]
                b += weight[o + 1, i] * x[r, i]
                c += weight[o + 2, i] * x[r, i]
                d += weight[o + 3, i] * x[r, i]
                e += weight[o, i] * x[r + 1, i]
                f += weight[o + 1, i] * x[r + 1, i]
                g += weight[o + 2, i] * x[r + 1, i]
                h += weight[o + 3, i] * x[r + 1, i]
            out[r, o], out[r, o + 1], out[r, o + 2], out[r, o + 3] = a, b, c, d
            r += 1
            out[r, o], out[r, o + 1], out[r, o + 2], out[r, o + 3] = e, f, g, h
    for r in range(R):
        dots(weight[fours:], x[r], out[r, fours:])
        for o in range(bias.size):
            out[r, o] += bias[o]


@compiled(MATRIX, ROW, ROW)
def _add_weighted(values: Array, weights: Array, out: Array) -> None:
    """Add ``weights[: L] @ values`` to `out`, (K,), of values (L, K)."""
    L, K = values.shape
    fours = L - L % 4
    for i in range(0, fours, 4):
        a, b, c, d = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
        for k in range(K):
            ab = a * values[i, k] + b * values[i + 1, k]
            out[k] += ab + c * values[i + 2, k] + d * values[i + 3, k]
    for i in range(fours, L):
        for k in range(K):
            out[k] += weights[i] * values[i, k]


@compiled(CUBE, KEPT, WINDOWS, int64, int64, CUBE)
def attend(queries: Array, kept: Any, windows: Any, first: int, end: int, out: Array) -> None:
    """Attention of each path's newest bar.

    Parameters
    ----------
    queries
        Of those bars, (R, H, K).
    kept
        Keys and values of all windows, each (B, H, T, K), and of all paths' own bars, each
        (R, H, C, K).
    windows
        Each path's window, (R,).
    first, end
        The bars that are attended to, counted from the window's first.
    out
        The attention's results, (R, H, K).
    """
    window_keys, window_values, own_keys, own_values = kept
    _, H, T, K = window_keys.shape
    scale = np.float32(1) / np.sqrt(np.float32(K))
    weights = np.empty(end - first, dtype=np.float32)
    own = slice(max(first - T, 0), end - T)
    own_weights = weights[max(T - first, 0) :]
    for h in range(H):
        # Paths of one window after each other find its keys in the cache.
        for r, window in enumerate(windows):
            dots(window_keys[window, h, first:], queries[r, h], weights)
            dots(own_keys[r, h, own], queries[r, h], own_weights)
            highest = np.float32(-np.inf)
            for i in range(weights.size):
                highest = max(highest, weights[i])
            for i in range(weights.size):
                weights[i] = (weights[i] - highest) * scale
            exponentials(weights)
            total = np.float32(0)
            for i in range(weights.size):
                total += weights[i]
            for k in range(K):
                out[r, h, k] = np.float32(0)
            _add_weighted(window_values[window, h, first:], weights, out[r, h])
            _add_weighted(own_values[r, h, own], own_weights, out[r, h])
            for k in range(K):
                out[r, h, k] /= total


@compiled(ROW, ROW)
def _copy(row: Array, out: Array) -> None:
    # Assignments of whole rows take numba ten times as long to compile.
    for i in range(row.size):
        out[i] = row[i]


@compiled(MATRIX, MATRIX)
def _add(x: Array, out: Array) -> None:
    """Add `x` to `out`, both (R, D)."""
    for r in range(len(x)):
        for d in range(x.shape[1]):
            out[r, d] += x[r, d]


@compiled(MATRIX, OF_BLOCK, float64, WINDOWS, KEPT, int64, int64, ROW, ROW)
def block(
    x: Array,
    weights: Any,
    eps: float,
    windows: Any,
    kept: Any,
    first: int,
    at: int,
    cosines: Array,
    sines: Array,
) -> None:
    """A block's outputs for the newest bar of each path.

    Parameters
    ----------
    x
        The bars' states, (R, D); what the block makes of them is written there.
    weights
        The block's, each as in ``layers.Block``: the first norm's, those of ``qkv`` and ``out``,
        each with a bias, the second norm's, and those of ``gate_value`` and ``down``.
    eps
        Of both norms.
    windows
        Each path's window, (R,).
    kept
        See ``attend``; the new bars' keys and values are written there.
    first, at
        The oldest bar that is attended to, and the new one, counted from the window's first.
    cosines, sines
        Of the new bars' position, (K,).
    """
    attn_norm, qkv, qkv_bias, out, out_bias, ffn_norm, gate_value, down = weights
    window_keys, _, own_keys, own_values = kept
    _, H, T, K = window_keys.shape
    (R, D), F = x.shape, down.shape[1]
    row = np.empty((R, D), dtype=np.float32)
    scales = np.empty(R, dtype=np.float32)
    normed(0, R, x, attn_norm, eps, row, scales)
    heads, attended = np.empty((R, 3, H, K), np.float32), np.empty((R, H, K), np.float32)
    product(qkv, qkv_bias, row, heads.reshape(R, 3 * D))
    queries, one = np.empty((R, H, K), dtype=np.float32), np.float32(1)
    for r in range(R):
        for h in range(H):
            rotate(heads[r, 0, h], cosines, sines, one, queries[r, h])
            rotate(heads[r, 1, h], cosines, sines, one, own_keys[r, h, at - T])
            _copy(heads[r, 2, h], own_values[r, h, at - T])
    attend(queries, kept, windows, first, at + 1, attended)
    product(out, out_bias, attended.reshape(R, D), row)
    _add(row, x)

    normed(0, R, x, ffn_norm, eps, row, scales)
    hidden, none = np.empty((R, 2 * F), dtype=np.float32), np.empty(0, dtype=np.float32)
    product(gate_value, none, row, hidden)
    gated = np.empty((R, F), dtype=np.float32)
    gate(0, R, hidden, gated)
    product(down, none, gated, row)
    _add(row, x)


@compiled(int64, ADDRESSES, int64, int64, returns=OF_BLOCK)
def _block_weights(n: int, places: Any, D: int, F: int) -> Any:
    """The weights of block `n`, for ``block``."""
    return (
        carray(pointer(places[n, 0]), (D,)),
        carray(pointer(places[n, 1]), (3 * D, D)),
        carray(pointer(places[n, 2]), (3 * D,)),
        carray(pointer(places[n, 3]), (D, D)),
        carray(pointer(places[n, 4]), (D,)),
        carray(pointer(places[n, 5]), (D,)),
        carray(pointer(places[n, 6]), (2 * F, D)),
        carray(pointer(places[n, 7]), (D, F)),
    )


@compiled(int64, MEMORY, int64, int64, returns=KEPT)
def _kept(n: int, memory: Any, H: int, D: int) -> Any:
    """What ``attend`` is to know of block `n`, of `H` heads and a width of `D` together."""
    windows, places, (B, T, C) = memory
    of_windows, of_paths = (B, H, T, D // H), (len(windows), H, C, D // H)
    return (
        carray(pointer(places[n, 0]), of_windows),
        carray(pointer(places[n, 1]), of_windows),
        carray(pointer(places[n, 2]), of_paths),
        carray(pointer(places[n, 3]), of_paths),
    )


@compiled(int64, TOKENS, NETWORK, MEMORY, int64, MATRIX, MATRIX)
def extend(
    i: int, tokens: Any, network: Any, memory: Any, most: int, hidden: Array, logits: Array
) -> None:
    """Read the paths' new bar `i`.

    The hidden states, (R, D), and the logits, (R, V1), of the next bars' coarse tokens are written
    to `hidden` and `logits`; for the rest see ``write``.
    """
    (s1_table, s2_table, _, times), weights, after, (cosines, sines), sizes, eps = network
    norm, key_value, key_value_bias, _, _, _, s1_head, s1_head_bias, _, _ = after
    windows, _, (_, T, _) = memory
    H, s2_heads, F = sizes
    R, D = hidden.shape
    at = T + i
    first = max(0, at + 1 - most)
    x = np.empty((R, D), dtype=np.float32)
    for r in range(R):
        s1, s2 = tokens[0, r, i], tokens[1, r, i]
        for d in range(D):
            x[r, d] = s1_table[s1, d] + s2_table[s2, d]
        if times.size > 0:
            for d in range(D):
                x[r, d] += times[windows[r], i, d]
    for n in range(len(weights)):
        of_block, kept = _block_weights(n, weights, D, F), _kept(n, memory, H, D)
        block(x, of_block, eps, windows, kept, first, at, cosines[at], sines[at])
    normed(0, R, x, norm, eps, hidden, np.empty(R, dtype=np.float32))
    both = np.empty((R, 2, s2_heads, D // s2_heads), dtype=np.float32)
    product(key_value, key_value_bias, hidden, both.reshape(R, 2 * D))
    _, _, keys, values = _kept(len(weights), memory, s2_heads, D)
    for r in range(R):
        for h in range(s2_heads):
            _copy(both[r, 0, h], keys[r, h, i])
            _copy(both[r, 1, h], values[r, h, i])
    product(s1_head, s1_head_bias, hidden, logits)


@compiled(int64, TOKENS, NETWORK, MEMORY, int64, MATRIX, MATRIX)
def s2_logits(
    i: int, tokens: Any, network: Any, memory: Any, most: int, hidden: Array, logits: Array
) -> None:
    """``logits``, (R, V2): of bar `i`'s fine tokens, given its coarse ones and hidden states.

    For the rest see ``write``.
    """
    (_, _, queries, _), weights, after, _, (_, H, _), eps = network
    _, _, _, out, out_bias, norm, _, _, head, head_bias = after
    windows, _, (_, T, _) = memory
    R, D = hidden.shape
    end = T + i
    kept = _kept(len(weights), memory, H, D)
    row, attended = np.empty((R, D), dtype=np.float32), np.empty((R, H, D // H), dtype=np.float32)
    for r in range(R):
        _copy(queries[tokens[0, r, i]], row[r])
    attend(row.reshape(R, H, D // H), kept, windows, max(0, end - most), end, attended)
    product(out, out_bias, attended.reshape(R, D), row)
    _add(hidden, row)
    normed(0, R, row, norm, eps, row, np.empty(R, dtype=np.float32))
    product(head, head_bias, row, logits)


@compiled(ROW, float32, returns=types.Tuple((float64, int64)))
def _above(weights: Array, value: np.float32) -> Any:
    """The sum and the number of weights above a value."""
    total: Any = 0.0
    count = np.int32(0)
    # In two loops the compiler takes many at once.
    for i in range(weights.size):
        total += weights[i] if weights[i] > value else np.float32(0)
    for i in range(weights.size):
        count += np.int32(weights[i] > value)
    return total, np.int64(count)


@compiled(ROW, int64, float64, returns=float32)
def _least(weights: Array, top_k: int, most: float) -> np.float32:
    """The least number in [0, 1] with fewer weights than `top_k` above it, of a sum up to `most`.

    If it is not 0 it is one of the weights. Floats from 0 on are ordered as their bits are: 30
    looks at all weights, many at once, are several times as fast as a sort.
    """
    bits = np.ones(1, dtype=np.float32).view(np.int32)
    value = bits.view(np.float32)
    too_low, enough = -1, int(bits[0])
    while enough - too_low > 1:
        middle = (too_low + enough) // 2
        bits[0] = middle
        total, count = _above(weights, value[0])
        if count < top_k and total <= most:
            enough = middle
        else:
            too_low = middle
    bits[0] = enough
    return value[0]


@compiled(ROW, int64, float64, fastmath=IN_ORDER)
def limit(weights: Array, top_k: int, top_p: float) -> None:
    """Replace by 0 what ``generation.Sampling`` leaves out of weights in [0, 1]."""
    top_k = min(top_k, weights.size)
    least: Any = np.float32(0) if top_k == weights.size else _least(weights, top_k, np.inf)
    above, count = _above(weights, least)
    if top_p < 1:
        most = top_p * (above + (top_k - count) * least)
        least = _least(weights, top_k, most)
        above, count = _above(weights, least)
    equal: Any = top_k - count
    if top_p < 1 and least > 0:  # the quotient is less than the number of equals
        equal = min(equal, 1 + int((most - above) / least))
    for i in range(weights.size):
        if weights[i] == least:
            equal -= 1
        if weights[i] < least or (weights[i] == least and equal < 0):
            weights[i] = np.float32(0)


@compiled(ROW, SAMPLING, float64, returns=int64, fastmath=IN_ORDER)
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


@compiled(int64, int64, CUBE, MATRIX, SAMPLING, TOKENS, returns=boolean)
def _draw_all(
    level: int, i: int, uniforms: Array, logits: Array, sampling: Any, tokens: Any
) -> bool:
    """Draw the coarse (0) or the fine (1) tokens of bar `i`; whether all logits were finite."""
    for r in range(len(logits)):
        tokens[level, r, i] = draw(logits[r], sampling, uniforms[r, i, level])
        if tokens[level, r, i] < 0:
            return False
    return True


@compiled(
    *(int64, int64, TOKENS, CUBE, SAMPLING, int64, NETWORK, MEMORY, MATRIX, MATRIX), returns=int64
)
def write(
    start: int,
    stop: int,
    tokens: Any,
    uniforms: Any,
    sampling: Any,
    most: int,
    network: Any,
    memory: Any,
    hidden: Array,
    logits: Array,
) -> int:
    """Write bars of several paths, each after a window.

    The result is `stop`, or the bar whose logits are NaN or infinite.

    Parameters
    ----------
    start, stop
        Which of the paths' new bars to write; those before have been written.
    tokens
        The new bars' coarse and fine tokens, (2, R, n), which are written there.
    uniforms
        Numbers in [0, 1) that draw them, (R, n, 2).
    sampling
        See ``draw``.
    most
        Bars that a bar sees at most, itself included; not less than those of a window.
    network
        Six things:

        - rows to add for the tokens, (V1, D) and (V2, D), the s2 queries of all coarse tokens,
          (V1, D), and rows to add for the calendar stamps of each window's new bars,
          (B, n - 1, D), or (0, 0, 0);
        - where each block's weights are, (N, 8), in the order of ``block``;
        - the weights after the blocks: the norm's, those of the s2 conditioning, ``key_value``
          and ``out``, each with a bias, and its norm's, and the s1 head's and the s2 head's, each
          with a bias;
        - cosines and sines of all positions, (T + n - 1, K) or more;
        - H, the heads of the s2 attention, and F;
        - eps of all norms.
    memory
        Three things: each path's window, (R,); where keys and values are, (N + 1, 4), of each
        block and, last, of the s2 attention, in the order of ``attend``; B, T and C.
    hidden
        States of the windows' newest bars, (R, D); those of the paths' are written there.
    logits
        Those of the first new bars' coarse tokens, (R, V1); the next are written there.
    """
    _, _, (_, _, _, _, _, _, _, _, s2_head, _), _, _, _ = network
    of_s2 = np.empty((len(hidden), len(s2_head)), dtype=np.float32)
    for i in range(start, stop):
        if i > 0:
            extend(i - 1, tokens, network, memory, most, hidden, logits)
        if not _draw_all(0, i, uniforms, logits, sampling, tokens):
            return i
        s2_logits(i, tokens, network, memory, most, hidden, of_s2)
        if not _draw_all(1, i, uniforms, of_s2, sampling, tokens):
            return i
    return stop
