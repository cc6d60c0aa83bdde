"""What layers do on a GPU between products, each in one pass over memory, compiled by Triton.

Shapes by letter: N rows, F width of the feed-forward, B windows, H heads, T bars, K width of a
head.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Numbers that a program writes, or reads of one of its two inputs."""


@triton.jit
def _gate(gate_value, out, F, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row, f = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    seen, source = f < F, gate_value + row * 2 * F + f
    gate = tl.load(source, mask=seen, other=0.0).to(tl.float32)
    value = tl.load(source + F, mask=seen, other=0.0).to(tl.float32)
    found = gate / (1.0 + tl.exp(-gate)) * value
    tl.store(out + row * F + f, found.to(out.dtype.element_ty), mask=seen)


@triton.jit
def _to_gate(gate_value, gradient, out, F, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row, f = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    seen, first = f < F, row * 2 * F + f
    gate = tl.load(gate_value + first, mask=seen, other=0.0).to(tl.float32)
    value = tl.load(gate_value + first + F, mask=seen, other=0.0).to(tl.float32)
    given = tl.load(gradient + row * F + f, mask=seen, other=0.0).to(tl.float32)
    share = 1.0 / (1.0 + tl.exp(-gate))
    to_gate = given * value * share * (1.0 + gate * (1.0 - share))
    tl.store(out + first, to_gate.to(out.dtype.element_ty), mask=seen)
    tl.store(out + first + F, (given * gate * share).to(out.dtype.element_ty), mask=seen)


@triton.jit
def turned(source, cosines, sines, at, sign, K, k, seen):  # type: ignore[no-untyped-def]
    """Numbers of a head, rotated to position `at`; with a `sign` of -1, back from it."""
    # The first half's sines are negated in the table.
    other = tl.load(source + (k + K // 2) % K, mask=seen, other=0.0).to(tl.float32)
    own = tl.load(source + k, mask=seen, other=0.0).to(tl.float32)
    turn = tl.load(cosines + at * K + k, mask=seen, other=0.0)
    return own * turn + sign * other * tl.load(sines + at * K + k, mask=seen, other=0.0)


@triton.jit(do_not_specialize=["N", "T"])
def _rotate(  # type: ignore[no-untyped-def]
    x, of_window, of_head, of_bar, cosines, sines, sign, out, N, H, T,
    K: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k, t = tl.arange(0, WIDE)[None, :], (n % T)[:, None]
    seen = (n < N)[:, None] & (k < K)
    source = x + (n // (H * T) * of_window + n // T % H * of_head)[:, None] + t * of_bar
    found = turned(source, cosines, sines, t, sign, K, k, seen)
    tl.store(out + n[:, None] * K + k, found.to(out.dtype.element_ty), mask=seen)


def gate(gate_value: Tensor) -> Tensor:
    """``silu(gate) * value``, (N, F), of both in one, (N, 2 F), in that order."""
    N, F = gate_value.shape[0], gate_value.shape[1] // 2
    out = gate_value.new_empty(N, F)
    with torch.cuda.device_of(out):
        _gate[(N, triton.cdiv(F, BLOCK))](gate_value, out, F, BLOCK=BLOCK)
    return out


def to_gate(gate_value: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of ``gate``'s input, (N, 2 F), by that of its result, (N, F)."""
    N, F = gradient.shape
    out = torch.empty_like(gate_value)
    with torch.cuda.device_of(out):
        _to_gate[(N, triton.cdiv(F, BLOCK))](gate_value, gradient, out, F, BLOCK=BLOCK)
    return out


def rotate(x: Tensor, cosines: Tensor, sines: Tensor, back: bool) -> Tensor:
    """Queries or keys `x`, (B, H, T, K), rotated as ``nn.rotary`` does, or `back`; in one piece."""
    B, H, T, K = x.shape
    x = x if x.stride(-1) == 1 else x.contiguous()
    out, wide = x.new_empty(B, H, T, K), triton.next_power_of_2(K)
    rows = max(1, BLOCK // wide)
    # Known to the compiler, the width of a head says how many of its numbers lie aligned.
    does: dict[str, Any] = {"K": K, "ROWS": rows, "WIDE": wide}
    with torch.cuda.device_of(out):
        _rotate[(triton.cdiv(B * H * T, rows),)](
            *(x, *x.stride()[:3], cosines.contiguous(), sines.contiguous(), -1.0 if back else 1.0),
            *(out, B * H * T, H, T),
            **does,
        )
    return out
