"""What a step of paths does on a GPU between its matrix products, compiled by Triton.

Rows are the newest bars of all paths, but for ``attend_rows``. Numbers are float32, or the
products' data type where they go into one; sums and the residual are float32 throughout.

Shapes by letter: B windows, S sample paths of a window, R = B * S rows, T bars of the window, C own
bars that a path has room for, P parts of a window, D width of the model, H heads, K width of a
head, V entries of a codebook, n new bars, N and M widths of a layer in and out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from darts_kronos.nn.gpu_layers import turned
from darts_kronos.nn.layers import KeysValues
from darts_kronos.nn.rotary import Rotary

LARGEST_DRAWN = 8192
"""Entries of the largest codebook from which one program draws."""

LEAST = 16
"""Rows and columns that a product of matrices has at least."""

BYTES_AT_ONCE, NUMBERS_AT_ONCE = 128, 4096
"""Bytes of queries for each of a head's numbers that one program takes at most, and numbers of keys
that it reads at once: what a multiprocessor has room for."""

PROGRAMS = 512
"""Programs that keep a GPU busy: so many a window's attention is divided into, if heads and paths
are fewer."""

ROWS_OF_A_PROGRAM = 4
"""Rows of weights that one program multiplies a single row with."""

LOWEST = tl.constexpr(-1e30)
"""Less than any score, and finite: what the highest score so far starts with."""


@triton.jit
def _of_window(  # type: ignore[no-untyped-def]
    queries, query_row, keys, values, cosines, sines, place, sums, highest, totals,
    H, S, T, part, most, scale,
    ROTATED: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr, PATHS: tl.constexpr,
    BARS: tl.constexpr,
):  # fmt: skip
    """Attention of some paths over a part of their window, not divided by its total."""
    bh, h = tl.program_id(0), tl.program_id(0) % H
    s, d = tl.program_id(1) * PATHS + tl.arange(0, PATHS), tl.arange(0, WIDE)
    row = bh // H * S + s
    of_path, of_head = s < S, d < K
    seen = of_path[:, None] & of_head[None, :]
    at = T + tl.load(place)
    source = queries + row[:, None] * query_row + h * K
    if ROTATED:
        query = turned(source, cosines, sines, at, 1.0, K, d[None, :], seen)
    else:
        query = tl.load(source + d[None, :], mask=seen, other=0.0).to(tl.float32)
    query = (query * scale).to(keys.dtype.element_ty)

    best = tl.full((PATHS,), LOWEST, tl.float32)
    total = tl.zeros((PATHS,), tl.float32)
    found = tl.zeros((PATHS, WIDE), tl.float32)
    start = tl.program_id(2) * part
    for block in range(start, tl.minimum(start + part, T), BARS):
        t = block + tl.arange(0, BARS)
        there, first = t < T, bh * T * K
        of_bars = of_head[:, None] & there[None, :]
        compared = tl.load(keys + first + t[None, :] * K + d[:, None], mask=of_bars, other=0.0)
        scores = tl.dot(query, compared, input_precision="tf32x3")
        scores = tl.where((there & (t > at - most))[None, :], scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, axis=1))
        weights, shrink = tl.exp(scores - higher[:, None]), tl.exp(best - higher)
        total, best = total * shrink + tl.sum(weights, axis=1), higher
        of_bars = there[:, None] & of_head[None, :]
        looked_at = tl.load(values + first + t[:, None] * K + d[None, :], mask=of_bars, other=0.0)
        weights = weights.to(values.dtype.element_ty)
        found = found * shrink[:, None] + tl.dot(weights, looked_at, input_precision="tf32x3")
    # (P, R, H) and (P, R, H, K)
    to = (tl.program_id(2) * (tl.num_programs(0) // H * S) + row) * H + h
    tl.store(highest + to, best, mask=of_path)
    tl.store(totals + to, total, mask=of_path)
    tl.store(sums + to[:, None] * K + d[None, :], found, mask=seen)


@triton.jit
def _of_path(  # type: ignore[no-untyped-def]
    queries, query_row, new_keys, new_values, new_row, own_keys, own_values, cosines, sines, place,
    sums, highest, totals, out,
    R, H, S, T, C, parts, most, scale,
    ROTATED: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr, BARS: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """Attention of a path over its own bars, and together with what it found in its window.

    The newest bar's keys and values are kept.
    """
    row, h, d = tl.program_id(0), tl.program_id(1), tl.arange(0, WIDE)
    seen, new = d < K, row * new_row + h * K
    bars = tl.load(place).to(tl.int32)
    if ROTATED:
        at = T + bars
        query = turned(queries + row * query_row + h * K, cosines, sines, at, 1.0, K, d, seen)
        key = turned(new_keys + new, cosines, sines, at, 1.0, K, d, seen)
    else:
        query = tl.load(queries + row * query_row + h * K + d, mask=seen, other=0.0).to(tl.float32)
        key = tl.load(new_keys + new + d, mask=seen, other=0.0).to(tl.float32)
    query *= scale
    value = tl.load(new_values + new + d, mask=seen, other=0.0).to(tl.float32)
    own = ((row // S * H + h) * S + row % S).to(tl.int64) * C * K
    tl.store(own_keys + own + bars * K + d, key.to(own_keys.dtype.element_ty), mask=seen)
    tl.store(own_values + own + bars * K + d, value.to(own_values.dtype.element_ty), mask=seen)

    # What was found in the window, together.
    p = tl.arange(0, PARTS)
    of_part, is_part = (p * R + row) * H + h, p < parts
    bests = tl.load(highest + of_part, mask=is_part, other=LOWEST)
    newest = tl.sum(query * key, axis=0)
    best = tl.maximum(newest, tl.max(bests, axis=0))
    shares, share = tl.exp(bests - best), tl.exp(newest - best)
    total = share + tl.sum(tl.load(totals + of_part, mask=is_part, other=0.0) * shares, axis=0)
    of_parts = is_part[:, None] & seen[None, :]
    of_window = tl.load(sums + of_part[:, None] * K + d[None, :], mask=of_parts, other=0.0)
    found = share * value + tl.sum(shares[:, None] * of_window, axis=0)

    for block in range(tl.maximum(0, bars - most + 1) // BARS * BARS, bars, BARS):
        j = block + tl.arange(0, BARS)
        there = (j < bars) & (j > bars - most)
        places, of_bars = own + j[:, None] * K + d[None, :], there[:, None] & seen[None, :]
        kept = tl.load(own_keys + places, mask=of_bars, other=0.0).to(tl.float32)
        looked_at = tl.load(own_values + places, mask=of_bars, other=0.0).to(tl.float32)
        scores = tl.where(there, tl.sum(kept * query[None, :], axis=1), float("-inf"))
        higher = tl.maximum(best, tl.max(scores, axis=0))
        weights, shrink = tl.exp(scores - higher), tl.exp(best - higher)
        total, best = total * shrink + tl.sum(weights, axis=0), higher
        found = found * shrink + tl.sum(weights[:, None] * looked_at, axis=0)
    to = out + (row * H + h) * K + d
    tl.store(to, (found / total).to(out.dtype.element_ty), mask=seen)


@triton.jit
def _normed(x, weight, eps, D, d, seen):  # type: ignore[no-untyped-def]
    scale = 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / D + eps)
    return x * scale * tl.load(weight + d, mask=seen, other=0.0)


@triton.jit
def _embed(  # type: ignore[no-untyped-def]
    tokens, s1_table, s2_table, times, place, weight, eps, x, out,
    R, S, D, n, TIMED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The newest bars as the first layer takes them, and normed."""
    row, d = tl.program_id(0), tl.arange(0, WIDE)
    seen, at = d < D, tl.load(place)
    # Those below 0 were drawn from no numbers.
    s1 = tl.maximum(tl.load(tokens + row * n + at), 0)
    s2 = tl.maximum(tl.load(tokens + (R + row) * n + at), 0)
    bar = tl.load(s1_table + s1 * D + d, mask=seen, other=0.0)
    bar += tl.load(s2_table + s2 * D + d, mask=seen, other=0.0)
    if TIMED:
        bar += tl.load(times + (row // S * (n - 1) + at) * D + d, mask=seen, other=0.0)
    tl.store(x + row * D + d, bar, mask=seen)
    normed = _normed(bar, weight, eps, D, d, seen)
    tl.store(out + row * D + d, normed.to(out.dtype.element_ty), mask=seen)


@triton.jit
def _add_and_norm(  # type: ignore[no-untyped-def]
    x, given, weight, eps, out, D, KEEPS_NORMED: tl.constexpr, WIDE: tl.constexpr
):
    """Add to rows what a layer gives, and norm them; keep the sum, or what it is normed to."""
    row, d = tl.program_id(0), tl.arange(0, WIDE)
    seen, to = d < D, tl.program_id(0) * D + d
    found = tl.load(x + to, mask=seen, other=0.0)
    found += tl.load(given + to, mask=seen, other=0.0).to(tl.float32)
    normed = _normed(found, weight, eps, D, d, seen)
    tl.store(x + to, normed if KEEPS_NORMED else found, mask=seen)
    tl.store(out + row * D + d, normed.to(out.dtype.element_ty), mask=seen)


@triton.jit
def _multiply(  # type: ignore[no-untyped-def]
    x, weight, bias, norm, eps, out, N, M,
    NORMS: tl.constexpr, BIASED: tl.constexpr, GATES: tl.constexpr, ADDS: tl.constexpr,
    ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Some numbers of a layer's result for a single row, and what comes before and after it."""
    o = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    of_layer = o < M
    found, values = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    squares = tl.zeros((WIDE,), tl.float32)
    for first in range(0, N, WIDE):
        i = first + tl.arange(0, WIDE)
        given = tl.load(x + i, mask=i < N, other=0.0).to(tl.float32)
        if NORMS:
            squares += given * given
            given *= tl.load(norm + i, mask=i < N, other=0.0)
        seen = of_layer[:, None] & (i < N)[None, :]
        weights = tl.load(weight + o[:, None] * N + i[None, :], mask=seen, other=0.0)
        found += tl.sum(weights.to(tl.float32) * given[None, :], axis=1)
        if GATES:
            weights = tl.load(weight + (M + o[:, None]) * N + i[None, :], mask=seen, other=0.0)
            values += tl.sum(weights.to(tl.float32) * given[None, :], axis=1)
    if NORMS:
        # The same for all, so that it can wait.
        scale = 1.0 / tl.sqrt(tl.sum(squares, axis=0) / N + eps)
        found *= scale
        values *= scale
    if BIASED:
        found += tl.load(bias + o, mask=of_layer, other=0.0).to(tl.float32)
    if GATES:
        found = found / (1.0 + tl.exp(-found)) * values
    if ADDS:
        found += tl.load(out + o, mask=of_layer, other=0.0)
    tl.store(out + o, found.to(out.dtype.element_ty), mask=of_layer)


@triton.jit
def _draw(  # type: ignore[no-untyped-def]
    logits, logits_row, uniforms, place, temperature, tokens, drawn, which, R, V, n,
    WIDE: tl.constexpr,
):  # fmt: skip
    """The next token of a row: the first whose sum with those before exceeds a share of all."""
    row, v = tl.program_id(0), tl.arange(0, WIDE)
    at = tl.load(place) + 1
    scores = tl.load(logits + row * logits_row + v, mask=v < V, other=float("-inf"))
    scores = scores.to(tl.float32) / temperature
    sums = tl.cumsum(tl.exp(scores - tl.max(scores, axis=0)), axis=0)
    share = tl.load(uniforms + (at * 2 + which) * R + row) * tl.max(sums, axis=0)
    token = tl.minimum(tl.sum((sums <= share).to(tl.int32), axis=0), V - 1)
    tl.store(drawn + row, token.to(tl.int64))
    finite = tl.sum((tl.abs(scores) < float("inf")).to(tl.int32), axis=0) == V
    token = tl.where(finite, token, -1)
    tl.store(tokens + (which * R + row) * n + at, token.to(tl.int64))


@triton.jit(do_not_specialize=["T", "S", "M", "left", "offset"])
def _of_rows(  # type: ignore[no-untyped-def]
    queries, keys, values, value_window, value_head, value_row, place, out,
    H, T, S, M, left, offset, scale,
    K: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, BARS: tl.constexpr,
):  # fmt: skip
    """Attention of some rows, of a window or of a path, over bars before them, of both."""
    b, h = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    d = tl.arange(0, WIDE)
    window_blocks, path_blocks = tl.cdiv(T, ROWS), tl.cdiv(M, ROWS)
    block = tl.program_id(1) - window_blocks
    of_path = block >= 0
    # The path's first row, and where this program's bars stand: a path's follow the window's.
    first = tl.where(of_path, T + block // path_blocks * M, T)
    start = tl.where(of_path, T + block % path_blocks * ROWS, tl.program_id(1) * ROWS)
    count = tl.where(of_path, T + M, T)
    bar = start + tl.arange(0, ROWS)
    row = tl.where(of_path, bar - T + first, bar)
    is_row, of_head = bar < count, d < K
    seen = is_row[:, None] & of_head[None, :]
    heads = (b * H + h) * (T + S * M) * K
    query = tl.load(queries + heads + row[:, None] * K + d[None, :], mask=seen, other=0.0)
    # In heads, so that the compiler sees how they are aligned.
    values += (b * value_window + h * value_head) * K

    at = tl.load(place).to(tl.int32)
    left_by, newest = at - left, at - offset
    end = tl.minimum(start + ROWS, tl.minimum(count, newest + 1))
    # Nobody asks for what bars find that have left, or are still to come.
    end = tl.where((start + ROWS <= left_by) | (start > newest), 0, end)
    best = tl.full((ROWS,), LOWEST, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    found = tl.zeros((ROWS, WIDE), tl.float32)
    for to in range(left_by // BARS * BARS, end, BARS):
        other = to + tl.arange(0, BARS)
        # A block may hold bars of the window and of the path.
        there = (other < end) & (other >= left_by)
        source = tl.where(other < T, other, other - T + first)
        of_bars = of_head[:, None] & there[None, :]
        places = heads + source[None, :] * K + d[:, None]
        compared = tl.load(keys + places, mask=of_bars, other=0.0)
        scores = tl.dot(query, compared, input_precision="tf32x3") * scale
        looks = there[None, :] & (other[None, :] <= bar[:, None])
        scores = tl.where(looks, scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, axis=1))
        weights, shrink = tl.exp(scores - higher[:, None]), tl.exp(best - higher)
        total, best = total * shrink + tl.sum(weights, axis=1), higher
        of_bars = there[:, None] & of_head[None, :]
        places = source.to(tl.int64)[:, None] * (value_row * K) + d[None, :]
        looked_at = tl.load(values + places, mask=of_bars, other=0.0)
        weights = weights.to(values.dtype.element_ty)
        found = found * shrink[:, None] + tl.dot(weights, looked_at, input_precision="tf32x3")
    found /= tl.where(total > 0, total, 1.0)[:, None]
    to_row = ((b * (T + S * M) + row) * H + h) * K
    tl.store(out + to_row[:, None] + d[None, :], found.to(out.dtype.element_ty), mask=seen)


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention of one layer, with keys and values that stay where they are.

    Attributes
    ----------
    window
        Keys and values of the windows, each (B, H, T, K) in one piece.
    own
        Those of the paths' own bars, each (B, H, S, C, K).
    rotary
        Table of positions, each (T + C, K), or None: queries and keys are not rotated.
    place
        Own bars of a path before its newest, (1,).
    most
        Bars that a bar sees at most, itself included.
    """

    window: KeysValues
    own: KeysValues
    rotary: Rotary | None
    place: Tensor
    most: int

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """What the newest bars find, (R, D), of their queries, keys and values, each (R, D).

        Their rows may be parts of longer ones.
        """
        B, H, T, K = self.window[0].shape
        S, C, R = self.own[0].shape[2], self.own[0].shape[3], len(queries)
        wide, bars, most_paths = _sizes(K, self.own[0].dtype)
        paths = min(max(LEAST, triton.next_power_of_2(S)), most_paths)
        turns, blocks = -(-S // paths), -(-T // bars)
        part = -(-blocks // max(1, PROGRAMS // (B * H * turns))) * bars
        parts = -(-T // part)
        sums = queries.new_empty(parts, R, H, K, dtype=torch.float32)
        highest, totals = (sums.new_empty(parts, R, H) for _ in range(2))
        rotary = (self.place, self.place) if self.rotary is None else self.rotary
        out = queries.new_empty(R, H * K, dtype=self.own[0].dtype)
        either: dict[str, Any] = {"ROTATED": self.rotary is not None, "K": K, "WIDE": wide}
        of_window = {"PATHS": paths, "BARS": bars, "num_stages": 2}
        _of_window[(B * H, turns, parts)](
            *(queries, queries.stride(0), *self.window, *rotary, self.place),
            *(sums, highest, totals, H, S, T, part, self.most, K**-0.5),
            **either,
            **of_window,
        )
        # Few programs wait for memory, many for their turn.
        few = R * H < PROGRAMS
        of_path = {"BARS": 32 if few else 16, "num_warps": 4 if few else 1}
        _of_path[(R, H)](
            *(queries, queries.stride(0), keys, values, keys.stride(0), *self.own, *rotary),
            *(self.place, sums, highest, totals, out),
            *(R, H, S, T, C, parts, self.most, K**-0.5),
            **either,
            **of_path,
            **{"PARTS": triton.next_power_of_2(parts)},
        )
        return out


def attend_rows(
    heads: tuple[Tensor, Tensor, Tensor],
    sizes: tuple[int, int, int],
    place: Tensor,
    left: int,
    offset: int,
) -> Tensor:
    """What bars of windows and of their paths find, (B, R, D), all of which are given anew.

    Here R = T + S * M: rows are the T bars of a window, and then the M bars of each of its paths,
    which follow the window's.

    Parameters
    ----------
    heads
        Queries, keys and values, each (B, H, R, K). The first two are rotated, and in one piece;
        values may be parts of rows of heads.
    sizes
        T, S and M.
    place
        A number, (1,), that grows by one with each new bar.
    left
        ``place - left`` bars have left: the oldest, which are not looked at any more.
    offset
        ``place - offset`` is where the newest bar stands, counted from the first of the window.
        Those after it are still to come: they are not looked at.

    Notes
    -----
    What is found by bars that have left, or are still to come, is finite, and means nothing.
    """
    queries, keys, values = heads
    (B, H, R, K), (T, S, M) = queries.shape, sizes
    wide, bars, rows = _sizes(K, queries.dtype)
    blocks = -(-T // rows) + S * -(-M // rows)
    out = queries.new_empty(B, R, H * K)
    _of_rows[(B * H, blocks)](
        *(queries, keys, values, *(one // K for one in values.stride()[:3]), place, out),
        *(H, T, S, M, left, offset, K**-0.5),
        **{"K": K, "WIDE": wide, "ROWS": rows, "BARS": bars, "num_stages": 2},
    )
    return out


def _sizes(K: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Of a head's blocks: numbers in a row, rows of keys, and most rows of queries."""
    wide: int = max(LEAST, triton.next_power_of_2(K))
    queries = LEAST if wide > 64 else BYTES_AT_ONCE // dtype.itemsize
    return wide, max(LEAST, NUMBERS_AT_ONCE // wide), queries


def embed(
    tokens: Tensor,
    tables: tuple[Tensor, Tensor],
    times: Tensor | None,
    place: Tensor,
    norm: tuple[Tensor, float],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The newest bars, (R, D), float32, and the same normed, of `dtype`.

    Parameters
    ----------
    tokens
        Of all new bars, (2, B, S, n).
    tables
        Rows to add for a token, (V1, D) and (V2, D).
    times
        Rows to add for the stamps of the windows' new bars, (B, n - 1, D), or None.
    place
        Number of the newest bar, (1,).
    norm
        Weight and epsilon.
    dtype
        Of what is normed.
    """
    _, B, S, n = tokens.shape
    D = tables[0].shape[1]
    x, out = (torch.empty(B * S, D, dtype=of, device=place.device) for of in (torch.float32, dtype))
    _embed[(B * S,)](
        *(tokens, *tables, place if times is None else times, place, *norm, x, out),
        *(B * S, S, D, n),
        **{"TIMED": times is not None, "WIDE": triton.next_power_of_2(D)},
    )
    return x, out


def add_and_norm(
    x: Tensor, given: Tensor, norm: tuple[Tensor, float], keeps_normed: bool = False
) -> Tensor:
    """Add rows `given`, (R, D), to `x` in place; the sum normed, in the data type of `given`.

    `norm` is weight and epsilon. With `keeps_normed`, `x` becomes what the sum is normed to.
    """
    out, (R, D) = torch.empty_like(given), x.shape
    wide = triton.next_power_of_2(D)
    _add_and_norm[(R,)](x, given, *norm, out, D, **{"KEEPS_NORMED": keeps_normed, "WIDE": wide})
    return out


def multiply(
    x: Tensor,
    layer: tuple[Tensor, Tensor | None],
    norm: tuple[Tensor, float] | None = None,
    gates: bool = False,
    to: Tensor | None = None,
) -> Tensor:
    """A linear layer's result, (1, M), for a single row, (1, N).

    Parameters
    ----------
    x
        The row.
    layer
        Weights, (M, N), and bias, (M,), or None.
    norm
        Weight and epsilon to norm the row by first.
    gates
        Whether the weights are those of a gate and of values, (2 M, N), without a bias, and the
        result is ``silu(gate) * value``.
    to
        Row, (1, M), float32, that the result is added to, in place of a new one of the weights'
        data type.
    """
    weight, bias = layer
    N, M = weight.shape[1], weight.shape[0] // (2 if gates else 1)
    out = x.new_empty(1, M, dtype=weight.dtype) if to is None else to
    of_norm, eps = (weight, 0.0) if norm is None else norm
    does: dict[str, Any] = {"NORMS": norm is not None, "BIASED": bias is not None}
    does |= {"GATES": gates, "ADDS": to is not None, "ROWS": ROWS_OF_A_PROGRAM}
    _multiply[(triton.cdiv(M, ROWS_OF_A_PROGRAM),)](
        *(x, weight, weight if bias is None else bias, of_norm, eps, out, N, M),
        **does,
        **{"WIDE": min(1024, triton.next_power_of_2(N))},
    )
    return out


def draw(
    logits: Tensor,
    temperature: float,
    uniforms: Tensor,
    place: Tensor,
    tokens: Tensor,
    which: int,
) -> Tensor:
    """Draw the next bar's coarse (`which` 0) or fine tokens (1), (R,), and write them to `tokens`.

    Parameters
    ----------
    logits
        Shape (R, V), of at most ``LARGEST_DRAWN`` entries; rows may be parts of longer ones.
    temperature
        Divides them.
    uniforms
        Numbers in [0, 1) for all new bars, (n, 2, R).
    place
        Number of the newest bar, (1,).
    tokens
        Of all new bars, (2, B, S, n). Where logits are no finite numbers, -1 is written to them.
    which
        Of a bar's two tokens.
    """
    R, V = logits.shape
    drawn, given = tokens.new_empty(R), {"WIDE": triton.next_power_of_2(V)}
    _draw[(R,)](
        *(logits, logits.stride(0), uniforms, place, temperature, tokens, drawn),
        *(which, R, V, tokens.shape[-1]),
        **given,
    )
    return drawn
