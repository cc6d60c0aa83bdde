"""Causal attention of windows, with gradients, and of their paths, compiled by numba.

A head's keys and values stay in the processor's caches, where rows of queries, ``BLOCK`` at a time,
find their weights and what these give, by tiles. Nothing above the diagonal is computed but within
tiles.

Shapes by letter: H heads of a window, T bars, K width of a head, L that width in whole ``LANES``,
R rows of a block, W width of its weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, float32, int64
from numba.core import types

from darts_kronos.nn.compiling import MATRIX, ROW, SIZE, Array, compiled, exponentials, pointer
from darts_kronos.nn.layer_kernels import DROPOUT, draw_shares, rotate
from darts_kronos.nn.tiles import LANES, ROWS, add_turned, highest, multiply, turn

BLOCK = 24
"""Rows of a block: whole tiles of any size."""

PLACES = int64[:, ::1]
SIZES, PAIR = types.UniTuple(int64, 3), types.UniTuple(int64, 2)
ROTARY = types.UniTuple(MATRIX, 2)


@compiled(int64, int64, returns=int64)
def _up(count: int, step: int) -> int:
    """The next multiple of a number."""
    return (count + step - 1) // step * step


@compiled(int64, returns=int64)
def _width(end: int) -> int:
    """W, of rows that see so many bars: whole tiles, and an odd number of cache lines.

    Rows that are a power of two apart drive each other out of the caches.
    """
    return (_up(_up(end, ROWS), LANES) // LANES | 1) * LANES


@compiled(int64, returns=int64)
def kept_of_head(T: int) -> int:
    """Numbers that are kept of a head for its gradients: scales and weights, block by block."""
    total = 0
    for start in range(0, T, BLOCK):
        total += BLOCK * (1 + _width(min(start + BLOCK, T)))
    return total


@compiled(int64, int64, int64, returns=ROW)
def _row(place: int, stride: int, K: int) -> Any:
    """A bar's numbers, of bars that are so far apart."""
    return carray(pointer(place + SIZE * stride), (K,))


@compiled(*(PAIR, PAIR, SIZES, float32, ROTARY))
def _carry(places: Any, strides: Any, sizes: Any, scale: float, rotary: Any) -> None:
    """Write the bars of a head, scaled and rotated, from one place to another."""
    cosines, sines = rotary
    _, T, K = sizes
    for t in range(T):
        row, out = _row(places[0], t * strides[0], K), _row(places[1], t * strides[1], K)
        if cosines.size > 0:
            rotate(row, cosines[t], sines[t], scale, out)
        else:
            for k in range(K):
                out[k] = row[k] * scale


@compiled(*(int64, int64, SIZES, float32, ROTARY, MATRIX))
def _read(place: int, stride: int, sizes: Any, scale: float, rotary: Any, out: Array) -> None:
    """Copy the bars of a head, scaled and rotated, to `out`, and fill it up with zeros."""
    _, T, K = sizes
    _carry((place, out.ctypes.data), (stride, out.shape[1]), sizes, scale, rotary)
    for t in range(len(out)):
        for k in range(K if t < T else 0, out.shape[1]):
            out[t, k] = np.float32(0)


@compiled(*(MATRIX, SIZES, float32, ROTARY, int64, int64))
def _write(rows: Array, sizes: Any, scale: float, rotary: Any, place: int, stride: int) -> None:
    """Copy bars, scaled and rotated, from `rows` to a head's place."""
    _carry((rows.ctypes.data, place), (rows.shape[1], stride), sizes, scale, rotary)


@compiled(MATRIX, int64, ROW, int64, int64, int64)
def _write_scaled(rows: Array, count: int, scales: Array, K: int, place: int, stride: int) -> None:
    """Write so many bars' results, each times its own number."""
    for r in range(count):
        out = _row(place, r * stride, K)
        for k in range(K):
            out[k] = rows[r, k] * scales[r]


@compiled(*(MATRIX, int64, int64, MATRIX, int64, MATRIX))
def _score(rows: Array, first: int, T: int, turned: Array, K: int, out: Array) -> None:
    """Products of some bars, (R, L), from number `first` on, and all that each sees.

    These are given in panels, ``turned``. The products, (R, W), are written to `out`; those of
    tiles that no bar sees are not.
    """
    (R, L), W = rows.shape, out.shape[1]
    zeros = np.zeros(LANES, dtype=np.float32)
    for r in range(0, R, ROWS):
        panels = _up(min(first + r + ROWS, T), LANES) // LANES
        multiply(
            *(rows[r].ctypes.data, L, turned.ctypes.data, LANES, LANES * L, panels),
            *(zeros.ctypes.data, 0, 0, out[r].ctypes.data, W, K),
        )


@compiled(*(MATRIX, int64, int64, MATRIX, MATRIX))
def _gather(weights: Array, first: int, T: int, rows: Array, out: Array) -> None:
    """The sums, (R, L), of what bars from number `first` on see of `rows`, by weights (R, W)."""
    (R, W), L = weights.shape, rows.shape[1]
    zeros = np.zeros(LANES, dtype=np.float32)
    for r in range(0, R, ROWS):
        multiply(
            *(weights[r].ctypes.data, W, rows.ctypes.data, L, LANES, L // LANES),
            *(zeros.ctypes.data, 0, 0),
            *(out[r].ctypes.data, L, min(first + r + ROWS, T)),
        )


@compiled(MATRIX, int64, ROW)
def _weigh(scores: Array, first: int, scales: Array) -> None:
    """Make scores of bars from `first` on, (R, W), weights of what each sees; others become 0.

    They are to be multiplied by `scales`, (R,), so that they sum to 1.
    """
    R, W = scores.shape
    for r in range(R):
        for w in range(first + r + 1, W):
            scores[r, w] = -np.float32(np.inf)
        most = highest(scores[r].ctypes.data, W)
        for w in range(W):
            scores[r, w] -= most
    exponentials(scores.reshape(R * W))
    for r in range(R):
        total = np.float32(0)
        for w in range(W):
            total += scores[r, w]
        scales[r] = np.float32(1) / total


@compiled(*(int64, int64, SIZES, PLACES, ROTARY, int64, DROPOUT))
def attend(
    head: int, end: int, sizes: Any, places: Any, rotary: Any, kept: int, dropout: Any
) -> None:
    """Attention of some heads.

    Parameters
    ----------
    head, end
        Which, counted through all windows.
    sizes
        H, T and K.
    places
        Of queries, keys, values and results, (4, 4): where they are, and how far windows, heads and
        bars are apart.
    rotary
        Cosines and sines, (T, K), that queries and keys are rotated by, or none, (0, 0).
    kept
        Where to keep what gradients take, ``kept_of_head`` numbers of each of all heads; 0: nothing
        is kept.
    dropout
        A number that draws, and how many of 2**32 weights are left out.
    """
    H, T, K = sizes
    long, L = _up(_up(T, ROWS), LANES), _up(K, LANES)
    queries = np.empty((long, L), dtype=np.float32)
    keys, values, turned = np.empty_like(queries), np.empty_like(queries), np.empty_like(queries)
    found = np.empty((BLOCK, L), dtype=np.float32)
    of_block = np.empty(BLOCK * (1 + _width(T)), dtype=np.float32)
    shares = np.empty(of_block.size if dropout[1] > 0 else 0, dtype=np.float32)
    scale, one = np.float32(1) / np.sqrt(np.float32(K)), np.float32(1)
    none = np.empty((0, 0), dtype=np.float32)
    for n in range(head, end):
        place = places[:, 0] + SIZE * (n // H * places[:, 1] + n % H * places[:, 2])
        _read(place[0], places[0, 3], sizes, scale, rotary, queries)
        _read(place[1], places[1, 3], sizes, one, rotary, keys)
        _read(place[2], places[2, 3], sizes, one, (none, none), values)
        turn(keys.ctypes.data, L, long, L, turned.ctypes.data)
        at = kept + SIZE * n * kept_of_head(T) if kept else of_block.ctypes.data
        for start in range(0, T, BLOCK):
            stop = min(start + BLOCK, T)
            W, R = _width(stop), _up(stop - start, ROWS)
            scales = carray(pointer(at), (BLOCK,))
            weights = carray(pointer(at + SIZE * BLOCK), (R, W))
            if kept:
                at += SIZE * BLOCK * (1 + W)
            _score(queries[start : start + R], start, T, turned, K, weights)
            _weigh(weights, start, scales)
            if shares.size > 0:
                used = shares[: R * W].reshape(R, W)
                draw_shares(used, n * T + start, dropout)
                for r in range(R):
                    for w in range(W):
                        used[r, w] *= weights[r, w]
                weights = used
            _gather(weights, start, T, values, found)
            to = place[3] + SIZE * start * places[3, 3]
            _write_scaled(found, stop - start, scales, K, to, places[3, 3])


@compiled(*(int64, int64, SIZES, PLACES, ROTARY, int64, DROPOUT))
def to_attended(
    head: int, end: int, sizes: Any, places: Any, rotary: Any, kept: int, dropout: Any
) -> None:
    """Gradients of the same.

    Parameters
    ----------
    head, end, sizes, rotary, kept, dropout
        See ``attend``.
    places
        As there, and of the gradients of results, which are given, and of queries, keys and values,
        which are written, (8, 4).
    """
    H, T, K = sizes
    long, L = _up(_up(T, ROWS), LANES), _up(K, LANES)
    queries = np.empty((long, L), dtype=np.float32)
    keys, values, turned = np.empty_like(queries), np.empty_like(queries), np.empty_like(queries)
    to_queries, to_keys = np.empty_like(queries), np.empty_like(queries)
    to_values, given = np.empty_like(queries), np.zeros((BLOCK, L), dtype=np.float32)
    back = rotary[0], -rotary[1]
    of_block, along = np.empty(BLOCK * _width(T), dtype=np.float32), np.zeros(BLOCK, np.float32)
    shares = np.empty(of_block.size if dropout[1] > 0 else 0, dtype=np.float32)
    scale, one = np.float32(1) / np.sqrt(np.float32(K)), np.float32(1)
    none = np.empty((0, 0), dtype=np.float32)
    for n in range(head, end):
        place = places[:, 0] + SIZE * (n // H * places[:, 1] + n % H * places[:, 2])
        _read(place[0], places[0, 3], sizes, scale, rotary, queries)
        _read(place[1], places[1, 3], sizes, one, rotary, keys)
        _read(place[2], places[2, 3], sizes, one, (none, none), values)
        turn(values.ctypes.data, L, long, L, turned.ctypes.data)
        to_keys[:], to_values[:] = 0, 0
        at = kept + SIZE * n * kept_of_head(T)
        for start in range(0, T, BLOCK):
            stop = min(start + BLOCK, T)
            W, R = _width(stop), _up(stop - start, ROWS)
            scales = carray(pointer(at), (BLOCK,))
            weights = carray(pointer(at + SIZE * BLOCK), (R, W))
            at += SIZE * BLOCK * (1 + W)
            for r in range(stop - start):
                result = _row(place[3], (start + r) * places[3, 3], K)
                to_result = _row(place[4], (start + r) * places[4, 3], K)
                total = np.float32(0)
                for k in range(K):
                    given[r, k] = to_result[k] * scales[r]
                    total += to_result[k] * result[k]
                along[r] = total * scales[r]
            for r in range(stop - start, R):
                # What fills the last tile up has weights, but no results.
                given[r], along[r] = 0, 0
            to_scores = of_block[: R * W].reshape(R, W)
            _score(given[:R], start, T, turned, K, to_scores)
            used = weights
            if shares.size > 0:
                used = shares[: R * W].reshape(R, W)
                draw_shares(used, n * T + start, dropout)
                for r in range(R):
                    for w in range(W):
                        to_scores[r, w] *= used[r, w]
                        used[r, w] *= weights[r, w]
            for r in range(R):
                # Beyond these nothing was computed.
                tiles = _up(min(start + _up(r + 1, ROWS), T), LANES)
                for w in range(tiles):
                    to_scores[r, w] = weights[r, w] * (to_scores[r, w] - along[r])
                for w in range(tiles, W):
                    to_scores[r, w] = 0
            _gather(to_scores, start, T, keys, to_queries[start : start + R])
            add_turned(
                *(used.ctypes.data, W, stop, given.ctypes.data, L, L // LANES),
                *(to_values.ctypes.data, L, stop - start),
            )
            add_turned(
                *(to_scores.ctypes.data, W, stop, queries[start].ctypes.data, L, L // LANES),
                *(to_keys.ctypes.data, L, stop - start),
            )
        _write(to_queries, sizes, scale, back, place[5], places[5, 3])
        _write(to_keys, sizes, one, back, place[6], places[6, 3])
        _write(to_values, sizes, one, (none, none), place[7], places[7, 3])


@compiled(*(int64, int64, SIZES, PAIR, PLACES))
def follow(head: int, end: int, sizes: Any, paths: Any, places: Any) -> None:
    """Attention of paths over a window that they share, and each over its own bars.

    Nothing is rotated.

    Parameters
    ----------
    head, end
        Which heads, counted through all windows.
    sizes
        H, T and K.
    paths
        S paths of each window, of M bars.
    places
        Of the window's keys and values, and of the paths' queries, keys, values and results,
        (6, 5): where they are, and how far windows, heads, paths and bars are apart.
    """
    (H, T, K), (S, M) = sizes, paths
    # A path's own bars come after those of the window, from the next whole panel on.
    after, L = _up(T, LANES), _up(K, LANES)
    long = after + _up(_up(M, ROWS), LANES)
    keys, values = np.empty((long, L), np.float32), np.empty((long, L), np.float32)
    turned, queries = np.empty_like(keys), np.empty((long - after, L), dtype=np.float32)
    found, scales = np.empty((BLOCK, L), np.float32), np.empty(BLOCK, np.float32)
    of_block = np.empty(BLOCK * _width(after + M), dtype=np.float32)
    scale, one = np.float32(1) / np.sqrt(np.float32(K)), np.float32(1)
    none = np.empty((0, 0), np.float32), np.empty((0, 0), np.float32)
    own = H, M, K
    for n in range(head, end):
        of_head = places[:, 0] + SIZE * (n // H * places[:, 1] + n % H * places[:, 2])
        _read(of_head[0], places[0, 4], sizes, one, none, keys[:after])
        _read(of_head[1], places[1, 4], sizes, one, none, values[:after])
        turn(keys.ctypes.data, L, after, L, turned.ctypes.data)
        for s in range(S):
            place = of_head + SIZE * s * places[:, 3]
            _read(place[2], places[2, 4], own, scale, none, queries)
            _read(place[3], places[3, 4], own, one, none, keys[after:])
            _read(place[4], places[4, 4], own, one, none, values[after:])
            turn(keys[after:].ctypes.data, L, long - after, L, turned[after:].ctypes.data)
            for start in range(0, M, BLOCK):
                stop = min(start + BLOCK, M)
                W, R = _width(after + stop), _up(stop - start, ROWS)
                weights = of_block[: R * W].reshape(R, W)
                first, last = after + start, after + M
                _score(queries[start : start + R], first, last, turned, K, weights)
                for r in range(R):
                    for w in range(T, after):
                        weights[r, w] = -np.float32(np.inf)
                _weigh(weights, first, scales)
                _gather(weights, first, last, values, found)
                to = place[5] + SIZE * start * places[5, 4]
                _write_scaled(found, stop - start, scales, K, to, places[5, 4])
