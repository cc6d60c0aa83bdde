"""Layers' weights at hand for the compiled kernels, which take one new bar of a single path.

The kernels are there where numba is: on CPUs, in float32, without gradients.

Shapes by letter: D width of the model, H heads, K width of a head, I and O widths in and out.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from darts_kronos.nn.layers import LayerCache


THREADS_OUTDONE = 2
"""Threads up to which torch was measured to be slower than the kernels, which use one."""

SMALL = 2**22
"""Bytes of weights that torch's many threads cannot gain on, as each of its calls has its cost."""


@lru_cache(maxsize=1)
def row_kernels() -> ModuleType | None:
    """The module of the kernels; None where there is no numba, or it may not compile."""
    try:
        from numba import config

        from darts_kronos.nn import row_kernels
    except ImportError:
        return None
    return None if getattr(config, "DISABLE_JIT", False) else row_kernels


def kernels_for(*weights: Tensor | None) -> ModuleType | None:
    """The kernels, if they are there and the faster way for single rows through these weights."""
    given = [one for one in weights if one is not None]
    if any(one.dtype != torch.float32 or one.device.type != "cpu" for one in given):
        return None
    many = torch.get_num_threads() > THREADS_OUTDONE
    return None if many and sum(one.nbytes for one in given) > SMALL else row_kernels()


def is_row(x: Tensor) -> bool:
    """Whether this is a single row, of any number of dimensions."""
    return x.numel() == x.shape[-1]


class _Weights:
    """Weights as arrays of numpy, which share the memory of the tensors, and the kernels."""

    def __init__(self, kernels: ModuleType, *weights: Tensor | None):
        self.kernels = kernels
        self.arrays = [
            kernels.NONE if one is None else one.detach().contiguous().numpy() for one in weights
        ]


class RowProduct(_Weights):
    """The product of one row with weights (O, I), and a bias (O,) or None."""

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs (..., O) of a row (..., I)."""
        out = x.new_empty(*x.shape[:-1], len(self.arrays[0]))
        self.kernels.product(*self.arrays, x.reshape(-1).numpy(), out.view(-1).numpy())
        return out


class RowBlock(_Weights):
    """A block of the transformer, given its weights in the order that the kernel names."""

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

    def hidden(self, x: Tensor, eps: float, cache: LayerCache, capacity: int) -> Tensor:
        """The hidden state of the blocks' output, (1, 1, 1, D), which the cache keeps."""
        norm, *key_value = self.arrays[:3]
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        row, result = (one.view(-1).numpy() for one in (x, out))
        place = (*cache.of_row(capacity), cache.seen.stop)
        self.kernels.keep(row, norm, eps, *key_value, *place, result)
        cache.length += 1
        return out

    def s2_logits(self, hidden: Tensor, queries: Tensor, eps: float, cache: LayerCache) -> Tensor:
        """Logits (1, 1, V2) of the hidden state, (1, 1, D), and the chosen s1's queries."""
        *conditioning, head, bias = self.arrays[3:]
        logits = hidden.new_empty(1, 1, len(head))
        row, query, result = (one.reshape(-1).numpy() for one in (hidden, queries, logits))
        keys, values = (one[0].numpy() for one in cache.joined)
        place = (keys, values, cache.seen.start, cache.seen.stop)
        self.kernels.s2_logits(row, query, *conditioning, eps, head, bias, *place, result)
        return logits
