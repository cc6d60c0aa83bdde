"""What a step of paths does on a GPU between its matrix products, compiled by Triton.

Rows are the newest bars of all paths. Numbers are float32, or the products' data type where they
go into one; sums and the residual are float32 throughout.

Shapes by letter: B windows, S sample paths of a window, R = B * S rows, T bars of the window, C own
bars that a path has room for, P parts of a window, D width of the model, H heads, K width of a
head, F width of the feed-forward, V entries of a codebook, n new bars.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from darts_kronos.nn.layers import KeysValues
from darts_kronos.nn.rotary import Rotary

LARGEST_DRAWN = 8192
"""Entries of the largest codebook from which one program draws."""

PATHS_OF_A_PROGRAM = 16
"""Paths whose queries one program takes to their window: as many as a product has rows at least."""

BARS_AT_ONCE = 64
"""Bars of a window that a program looks at in one product."""

PROGRAMS = 256
"""Programs that a window's attention is divided into, if there are not as many rows."""

LOWEST = tl.constexpr(-1e30)
"""Less than any score, and finite: what the highest score so far starts with."""


@triton.jit
def _rotated(first, second, cosines, sines, at, K, d, seen):  # type: ignore[no-untyped-def]
    """Both halves of a head, rotated to position `at`."""
    turn = tl.load(cosines + at * K + d, mask=seen, other=0.0)
    # The first half's sines are negated in the table.
    rise = tl.load(sines + at * K + K // 2 + d, mask=seen, other=0.0)
    return first * turn - second * rise, second * turn + first * rise


@triton.jit
def _of_window(  # type: ignore[no-untyped-def]
    queries, query_row, keys, values, cosines, sines, place, sums, highest, totals,
    H, S, T, K, part, most, scale,
    ROTATED: tl.constexpr, HALF: tl.constexpr, PATHS: tl.constexpr, BARS: tl.constexpr,
):  # fmt: skip
    """Attention of some paths over a part of their window, not divided by its total."""
    bh, h = tl.program_id(0), tl.program_id(0) % H
    s = tl.program_id(1) * PATHS + tl.arange(0, PATHS)
    row = bh // H * S + s
    d, half = tl.arange(0, HALF), K // 2
    of_path, of_half = s < S, d < half
    seen = of_path[:, None] & of_half[None, :]
    at = T + tl.load(place)
    source = queries + row[:, None] * query_row + h * K + d[None, :]
    first = tl.load(source, mask=seen, other=0.0).to(tl.float32)
    second = tl.load(source + half, mask=seen, other=0.0).to(tl.float32)
    if ROTATED:
        first, second = _rotated(first, second, cosines, sines, at, K, d[None, :], of_half[None, :])
    first = (first * scale).to(keys.dtype.element_ty)
    second = (second * scale).to(keys.dtype.element_ty)

    best = tl.full((PATHS,), LOWEST, tl.float32)
    total = tl.zeros((PATHS,), tl.float32)
    found_first = tl.zeros((PATHS, HALF), tl.float32)
    found_second = tl.zeros((PATHS, HALF), tl.float32)
    start = tl.program_id(2) * part
    for block in range(start, tl.minimum(start + part, T), BARS):
        t = block + tl.arange(0, BARS)
        there = t < T
        turned = bh * T * K + t[None, :] * K + d[:, None]
        of_bars = of_half[:, None] & there[None, :]
        scores = tl.dot(
            first, tl.load(keys + turned, mask=of_bars, other=0.0), input_precision="tf32x3"
        )
        scores += tl.dot(
            second, tl.load(keys + turned + half, mask=of_bars, other=0.0), input_precision="tf32x3"
        )
        scores = tl.where((there & (t > at - most))[None, :], scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, axis=1))
        weights, shrink = tl.exp(scores - higher[:, None]), tl.exp(best - higher)
        total, best = total * shrink + tl.sum(weights, axis=1), higher
        weights = weights.to(values.dtype.element_ty)
        straight = bh * T * K + t[:, None] * K + d[None, :]
        of_bars = there[:, None] & of_half[None, :]
        found_first = found_first * shrink[:, None] + tl.dot(
            weights, tl.load(values + straight, mask=of_bars, other=0.0), input_precision="tf32x3"
        )
        found_second = found_second * shrink[:, None] + tl.dot(
            weights,
            tl.load(values + straight + half, mask=of_bars, other=0.0),
            input_precision="tf32x3",
        )
    # (P, R, H) and (P, R, H, K)
    to = (tl.program_id(2) * (tl.num_programs(0) // H * S) + row) * H + h
    tl.store(highest + to, best, mask=of_path)
    tl.store(totals + to, total, mask=of_path)
    tl.store(sums + to[:, None] * K + d[None, :], found_first, mask=seen)
    tl.store(sums + to[:, None] * K + half + d[None, :], found_second, mask=seen)


@triton.jit
def _of_path(  # type: ignore[no-untyped-def]
    queries, query_row, new_keys, new_values, new_row, own_keys, own_values, cosines, sines, place,
    sums, highest, totals, out,
    R, H, S, T, K, C, parts, most, scale,
    ROTATED: tl.constexpr, HALF: tl.constexpr, BARS: tl.constexpr,
):  # fmt: skip
    """Attention of a path over its own bars, and together with what it found in its window.

    The newest bar's keys and values are kept.
    """
    row, h = tl.program_id(0), tl.program_id(1)
    d, half = tl.arange(0, HALF), K // 2
    seen = d < half
    bars = tl.load(place).to(tl.int32)
    at = T + bars
    query, new = queries + row * query_row + h * K + d, row * new_row + h * K + d
    first = tl.load(query, mask=seen, other=0.0).to(tl.float32)
    second = tl.load(query + half, mask=seen, other=0.0).to(tl.float32)
    key_first = tl.load(new_keys + new, mask=seen, other=0.0).to(tl.float32)
    key_second = tl.load(new_keys + new + half, mask=seen, other=0.0).to(tl.float32)
    value_first = tl.load(new_values + new, mask=seen, other=0.0).to(tl.float32)
    value_second = tl.load(new_values + new + half, mask=seen, other=0.0).to(tl.float32)
    if ROTATED:
        first, second = _rotated(first, second, cosines, sines, at, K, d, seen)
        key_first, key_second = _rotated(key_first, key_second, cosines, sines, at, K, d, seen)
    first, second = first * scale, second * scale
    own = ((row // S * H + h) * S + row % S).to(tl.int64) * C * K
    newest = own + bars * K + d
    tl.store(own_keys + newest, key_first.to(own_keys.dtype.element_ty), mask=seen)
    tl.store(own_keys + newest + half, key_second.to(own_keys.dtype.element_ty), mask=seen)
    tl.store(own_values + newest, value_first.to(own_values.dtype.element_ty), mask=seen)
    tl.store(own_values + newest + half, value_second.to(own_values.dtype.element_ty), mask=seen)

    best = tl.sum(first * key_first + second * key_second, axis=0)
    total = best * 0.0 + 1.0
    found_first, found_second = value_first, value_second
    for block in range(tl.maximum(0, bars - most + 1) // BARS * BARS, bars, BARS):
        j = block + tl.arange(0, BARS)
        there = (j < bars) & (j > bars - most)
        places, of_bars = own + j[:, None] * K + d[None, :], there[:, None] & seen[None, :]
        scores = tl.sum(
            tl.load(own_keys + places, mask=of_bars, other=0.0).to(tl.float32) * first[None, :]
            + tl.load(own_keys + places + half, mask=of_bars, other=0.0).to(tl.float32)
            * second[None, :],
            axis=1,
        )
        scores = tl.where(there, scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, axis=0))
        weights, shrink = tl.exp(scores - higher), tl.exp(best - higher)
        total, best = total * shrink + tl.sum(weights, axis=0), higher
        values = tl.load(own_values + places, mask=of_bars, other=0.0).to(tl.float32)
        found_first = found_first * shrink + tl.sum(weights[:, None] * values, axis=0)
        values = tl.load(own_values + places + half, mask=of_bars, other=0.0).to(tl.float32)
        found_second = found_second * shrink + tl.sum(weights[:, None] * values, axis=0)
    for p in range(parts):
        of_part = (p * R + row) * H + h
        of_window = tl.load(highest + of_part)
        higher = tl.maximum(best, of_window)
        shrink, share = tl.exp(best - higher), tl.exp(of_window - higher)
        best, total = higher, total * shrink + tl.load(totals + of_part) * share
        source = sums + of_part * K + d
        found_first *= shrink
        found_second *= shrink
        found_first += tl.load(source, mask=seen, other=0.0) * share
        found_second += tl.load(source + half, mask=seen, other=0.0) * share
    to = out + (row * H + h) * K + d
    tl.store(to, (found_first / total).to(out.dtype.element_ty), mask=seen)
    tl.store(to + half, (found_second / total).to(out.dtype.element_ty), mask=seen)


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
    s1, s2 = tl.load(tokens + row * n + at), tl.load(tokens + (R + row) * n + at)
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
def _gate(gate_value, out, F, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row, f = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    seen, source = f < F, gate_value + tl.program_id(0) * 2 * F + f
    gate = tl.load(source, mask=seen, other=0.0).to(tl.float32)
    value = tl.load(source + F, mask=seen, other=0.0).to(tl.float32)
    found = gate / (1.0 + tl.exp(-gate)) * value
    tl.store(out + row * F + f, found.to(out.dtype.element_ty), mask=seen)


@triton.jit
def _draw(  # type: ignore[no-untyped-def]
    logits, logits_row, uniforms, place, temperature, tokens, which, R, V, n, WIDE: tl.constexpr
):
    """The next token of a row: the first whose sum with those before exceeds a share of all."""
    row, v = tl.program_id(0), tl.arange(0, WIDE)
    at = tl.load(place) + 1
    scores = tl.load(logits + row * logits_row + v, mask=v < V, other=float("-inf"))
    scores = scores.to(tl.float32) / temperature
    sums = tl.cumsum(tl.exp(scores - tl.max(scores, axis=0)), axis=0)
    share = tl.load(uniforms + (at * 2 + which) * R + row) * tl.max(sums, axis=0)
    drawn = tl.minimum(tl.sum((sums <= share).to(tl.int32), axis=0), V - 1)
    tl.store(tokens + (which * R + row) * n + at, drawn.to(tl.int64))


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
        turns = -(-S // PATHS_OF_A_PROGRAM)
        blocks = -(-T // BARS_AT_ONCE)
        parts = min(blocks, max(1, PROGRAMS // (B * H * turns)))
        part = -(-blocks // parts) * BARS_AT_ONCE
        parts = -(-T // part)
        sums = torch.empty(parts, R, H, K, dtype=torch.float32, device=queries.device)
        highest, totals = (sums.new_empty(parts, R, H) for _ in range(2))
        rotary = (self.place, self.place) if self.rotary is None else self.rotary
        out = torch.empty(R, H * K, dtype=self.own[0].dtype, device=queries.device)
        half = max(16, triton.next_power_of_2(K // 2))
        scale, rotated = K**-0.5, self.rotary is not None
        _of_window[(B * H, turns, parts)](
            *(queries, queries.stride(0), *self.window, *rotary, self.place),
            *(sums, highest, totals, H, S, T, K, part, self.most, scale),
            **{"ROTATED": rotated, "HALF": half},
            **{
                "PATHS": PATHS_OF_A_PROGRAM,
                "BARS": BARS_AT_ONCE if half <= 32 else 32,
                "num_stages": 2,
            },
        )
        _of_path[(R, H)](
            *(queries, queries.stride(0), keys, values, keys.stride(0), *self.own, *rotary),
            *(self.place, sums, highest, totals, out),
            *(R, H, S, T, K, C, parts, self.most, scale),
            **{"ROTATED": rotated, "HALF": half, "BARS": 16, "num_warps": 2},
        )
        return out


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


def gate(gate_value: Tensor) -> Tensor:
    """``silu(gate) * value``, (R, F), of both in one, (R, 2 F), in that order."""
    R, F = gate_value.shape[0], gate_value.shape[1] // 2
    out = torch.empty(R, F, dtype=gate_value.dtype, device=gate_value.device)
    _gate[(R, triton.cdiv(F, 1024))](gate_value, out, F, **{"BLOCK": 1024})
    return out


def draw(
    logits: Tensor,
    temperature: float,
    uniforms: Tensor,
    place: Tensor,
    tokens: Tensor,
    which: int,
) -> None:
    """Draw the next bar's coarse (`which` 0) or fine tokens (1), and write them to `tokens`.

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
        Of all new bars, (2, B, S, n).
    which
        Of a bar's two tokens.
    """
    R, V = logits.shape
    given: dict[str, Any] = {"WIDE": triton.next_power_of_2(V)}
    _draw[(R,)](
        *(logits, logits.stride(0), uniforms, place, temperature, tokens),
        *(which, R, V, tokens.shape[-1]),
        **given,
    )
