"""Layers' weights at hand for the compiled kernels, which take one new bar of a single path.

The kernels are there where numba is: on CPUs, in float32, without gradients.

Shapes by letter: D width of the model, H heads, K width of a head, I and O widths in and out.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

    from darts_kronos.nn.layers import LayerCache


THREADS_OUTDONE = 2
"""Threads up to which torch was measured to be slower than the kernels, which use one."""

BYTES_OF_A_CALL = 2**18
"""Bytes that a kernel reads in the time that a call of torch costs."""


@lru_cache(maxsize=1)
def row_kernels() -> ModuleType | None:
    """The module of the kernels; None where there is no numba, or it may not compile."""
    try:
        from numba import config

        if getattr(config, "DISABLE_JIT", False):
            return None
        from darts_kronos.nn import row_kernels
    except ImportError:
        return None
    return row_kernels


def is_row(x: Tensor) -> bool:
    """Whether this is a single row, of any number of dimensions."""
    return x.numel() == x.shape[-1]


def _array(x: Tensor) -> np.ndarray:
    """A row, (1, ..., D), as an array (D,)."""
    return x.reshape(-1).contiguous().numpy()


class _Weights:
    """Weights as arrays of numpy, which share the memory of the tensors, and the kernels."""

    CALLS: ClassVar[int]
    """Calls of torch that a kernel stands for."""

    @classmethod
    def of(cls, *weights: Tensor | None) -> Self | None:
        """The weights, or None where the kernels are not there or not the faster way.

        They take float32 on CPUs. With more than ``THREADS_OUTDONE`` threads, which share the
        reading of weights, they are the faster way if the weights are few for the calls.
        """
        given = [one for one in weights if one is not None]
        if any(one.dtype != torch.float32 or one.device.type != "cpu" for one in given):
            return None
        many = torch.get_num_threads() > THREADS_OUTDONE
        if many and sum(one.nbytes for one in given) > cls.CALLS * BYTES_OF_A_CALL:
            return None
        kernels = row_kernels()
        return None if kernels is None else cls(kernels, *weights)

    def __init__(self, kernels: ModuleType, *weights: Tensor | None):
        self.kernels = kernels
        self.arrays = [
            kernels.NONE if one is None else one.detach().contiguous().numpy() for one in weights
        ]


class RowProduct(_Weights):
    """The product of one row with weights (O, I), and a bias (O,) or None."""

    CALLS = 1

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs (..., O) of a row (..., I)."""
        out = x.new_empty(*x.shape[:-1], len(self.arrays[0]))
        self.kernels.product(*self.arrays, _array(x), out.view(-1).numpy())
        return out


class RowBlock(_Weights):
    """A block of the transformer, given its weights in the order that the kernel names."""

    CALLS = 30

    def __call__(
        self,
        row: np.ndarray,
        eps: float,
        cosines: np.ndarray,
        sines: np.ndarray,
        cache: LayerCache,
        capacity: int,
    ) -> None:
        """Replace the new bar's state, (D,), by the output; the bar is added to the cache."""
        keys, values = cache.of_row(capacity)
        seen = cache.seen
        place = (keys, values, seen.start, seen.stop)
        self.kernels.block(row, *self.arrays, eps, *place, cosines, sines)
        cache.length += 1


class RowHeads(_Weights):
    """What comes after the predictor's blocks, given its weights in the order of the kernels.

    These are the norm's, those of the s2 conditioning, ``key_value`` and ``out`` with biases and
    its norm's, and those of the s2 head.
    """

    CALLS = 25

    def hidden(self, x: Tensor, eps: float, cache: LayerCache, capacity: int) -> Tensor:
        """The hidden state of the blocks' output, (1, 1, 1, D), which the cache keeps."""
        norm, *key_value = self.arrays[:3]
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        row, result = _array(x), out.view(-1).numpy()
        place = (*cache.of_row(capacity), cache.seen.stop)
        self.kernels.keep(row, norm, eps, *key_value, *place, result)
        cache.length += 1
        return out

    def s2_logits(self, hidden: Tensor, queries: Tensor, eps: float, cache: LayerCache) -> Tensor:
        """Logits (1, 1, V2) of the hidden state, (1, 1, D), and the chosen s1's queries."""
        *conditioning, head, bias = self.arrays[3:]
        logits = hidden.new_empty(1, 1, len(head))
        row, query, result = _array(hidden), _array(queries), logits.view(-1).numpy()
        keys, values = (one[0].numpy() for one in cache.joined)
        place = (keys, values, cache.seen.start, cache.seen.stop)
        self.kernels.s2_logits(row, query, *conditioning, eps, head, bias, *place, result)
        return logits
