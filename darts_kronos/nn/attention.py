"""Causal attention of whole windows, by the fastest way that the device has.

On CPUs torch's fused attention reaches a fraction of what the processor can do. There it is made
by kernels that numba compiles, gradients included. Torch's own takes over on other devices, in
other data types, with more threads than were measured, and where weights, which are kept for the
gradients, would be many. It has no fused form with dropout, so that it is not asked for that.

Shapes by letter: B windows, H heads of a window, T bars, K width of a head.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from darts_kronos.nn.kernel_modules import attention_kernels
from darts_kronos.nn.kernels import drawn, plain_on_cpu
from darts_kronos.nn.rotary import Rotary, rotate
from darts_kronos.nn.sharing import share

THREADS_OUTDONE = 2
"""Threads up to which the kernels were measured to be faster than torch."""

LEAST_BARS = 4
"""Bars of a path from which on kernels take it: their tiles have twice as many rows."""

BARS_PER_CHANNEL = 16
"""Bars of a window for each channel of a head up to which weights are kept for the gradients: they
are fewer then than what the other layers keep. With dropout torch keeps them itself."""


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
    shape = queries.shape
    if _by_kernels(shape[-2], shape[-1], dropout) and plain_on_cpu(queries, keys, values):
        windows = shape[:-3].numel()
        split = (one.reshape(windows, *shape[-3:]) for one in (queries, keys, values))
        return _attend(dropout, None, *split).transpose(1, 2).reshape(shape)
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
    _, T, _, _, K = heads.shape
    if _by_kernels(T, K, dropout) and plain_on_cpu(heads):
        return _attend(dropout, rotary, heads)
    queries, keys, values = heads.permute(2, 0, 3, 1, 4)
    y = causal_attention(rotate(queries, rotary), rotate(keys, rotary), values, dropout)
    return y.transpose(1, 2)


def path_attention(
    queries: Tensor, window: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor]
) -> Tensor | None:
    """Attention of paths over a window that they share, and each over its own bars.

    Parameters
    ----------
    queries
        Of all the paths' bars, (B, H, S, M, K).
    window, own
        Keys and values of the window, each (B, H, T, K), and of the paths' bars, each
        (B, H, S, M, K).

    Returns
    -------
    Tensor or None
        Shape (B, H, S, M, K); None where kernels are not there, or not the faster way.
    """
    B, H, S, M, K = queries.shape
    kernels, tensors = attention_kernels(), (*window, queries, *own)
    many = torch.get_num_threads() > THREADS_OUTDONE
    if kernels is None or many or M < LEAST_BARS or not plain_on_cpu(*tensors):
        return None
    out = queries.new_empty(B, S, M, H, K).permute(0, 3, 1, 2, 4)
    split = _split(*(one.unsqueeze(2) for one in window), *tensors[2:])
    sizes, places = (H, window[0].shape[2], K), _places(*split, out)
    share(lambda first, end: kernels.follow(first, end, sizes, (S, M), places), B * H)
    return out


def _places(*tensors: Tensor) -> NDArray[np.int64]:
    """Where tensors are, and how far their axes but for the last are apart."""
    return np.array([(one.data_ptr(), *one.stride()[:-1]) for one in tensors], dtype=np.int64)


def _by_kernels(T: int, K: int, dropout: float) -> bool:
    """Whether the kernels are there, the faster way, and hold what they may."""
    if dropout == 0:
        if torch.get_num_threads() > THREADS_OUTDONE:
            return False
        if torch.is_grad_enabled() and T > BARS_PER_CHANNEL * K:
            return False
    return attention_kernels() is not None


def _attend(dropout: float, rotary: Rotary | None, *tensors: Tensor) -> Tensor:
    """Attention (B, T, H, K) of queries, keys and values, each (B, H, T, K), or of heads."""
    call = _Call(tensors[0], rotary, dropout)
    if torch.is_grad_enabled() and any(one.requires_grad for one in tensors):
        out: Tensor = _Attention.apply(call, *tensors)
        return out
    return call.attend(_split(*tensors))


def _split(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values, (B, H, T, K), of which a head's numbers of a bar lie together.

    They may be copies: kernels, which are told addresses, need them for as long as they run.
    """
    if len(tensors) == 1:
        return tensors[0].contiguous().permute(2, 0, 3, 1, 4).unbind()
    return tuple(one if one.stride(-1) == 1 else one.contiguous() for one in tensors)


class _Call:
    """The kernels, and what they are told beside tensors.

    Parameters
    ----------
    like
        Queries (B, H, T, K) or heads (B, T, 3, H, K).
    rotary
        What rotates queries and keys, if anything does.
    dropout
        Share of the weights that are left out, which torch's generator draws.
    """

    def __init__(self, like: Tensor, rotary: Rotary | None, dropout: float):
        self.kernels: Any = attention_kernels()
        axes = (0, 1, 2, 3) if like.ndim == 4 else (0, 3, 1, 4)
        self.B, self.H, self.T, self.K = (like.shape[axis] for axis in axes)
        tables = [np.empty((0, 0), dtype=np.float32)] * 2
        if rotary is not None:
            tables = [one.contiguous().numpy() for one in rotary]
        self.rotary = tuple(tables)
        self.dropout = drawn(dropout)

    def kept(self, like: Tensor) -> Tensor:
        """Room for what gradients take."""
        return like.new_empty(self.B * self.H, self.kernels.kept_of_head(self.T))

    def attend(self, split: tuple[Tensor, ...], kept: Tensor | None = None) -> Tensor:
        """Attention (B, T, H, K)."""
        out = split[0].new_empty(self.B, self.T, self.H, self.K)
        self._run(self.kernels.attend, (*split, out.transpose(1, 2)), kept)
        return out

    def write_gradients(
        self,
        split: tuple[Tensor, ...],
        kept: Tensor,
        out: Tensor,
        to_out: Tensor,
        to_split: tuple[Tensor, ...],
    ) -> None:
        """Write those of queries, keys and values, given those of results, (B, T, H, K)."""
        results = out.transpose(1, 2), to_out.contiguous().transpose(1, 2)
        self._run(self.kernels.to_attended, (*split, *results, *to_split), kept)

    def _run(self, kernel: Any, tensors: tuple[Tensor, ...], kept: Tensor | None) -> None:
        """Give each of torch's threads heads of its own."""
        sizes, count = (self.H, self.T, self.K), self.B * self.H
        places = _places(*tensors)
        address = 0 if kept is None else kept.data_ptr()

        def run(start: int, end: int) -> None:
            kernel(start, end, sizes, places, self.rotary, address, self.dropout)

        share(run, count)


class _Attention(torch.autograd.Function):
    """The same with its gradients.

    What it gives is kept for them as it is: so the layer behind, which keeps it too, takes no more
    memory.
    """

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor) -> Tensor:
        kept = call.kept(tensors[0])
        out = call.attend(_split(*tensors), kept)
        ctx.save_for_backward(kept, out, *tensors)
        ctx.call = call
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        kept, out, *tensors = ctx.saved_tensors
        found = [one.new_empty(one.shape) for one in tensors]
        ctx.call.write_gradients(_split(*tensors), kept, out, gradient, _split(*found))
        return None, *found
