"""Single rows and single paths by the compiled kernels.

The kernels are there where numba is: on CPUs, in float32, without gradients.

Shapes by letter: D width of the model, V1 and V2 entries of the coarse and of the fine codebook,
I and O widths in and out.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from darts_kronos.nn.layers import Cache


THREADS_OUTDONE = 2
"""Threads up to which torch was measured to be slower than the kernels, which use one."""

LONG_PATH = 40
"""Bars of a path from which on it pays to copy the weights for it."""

BARS_OF_A_CALL = 32
"""Bars that are written in one call of the kernel."""

LINE = 16
"""Numbers in a cache line."""

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

    @staticmethod
    def calls(n_weights: int) -> int:
        """Calls of torch that one of a kernel stands for, by how many weights it takes."""
        return 1

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
        if many and sum(one.nbytes for one in given) > cls.calls(len(weights)) * BYTES_OF_A_CALL:
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

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs (..., O) of a row (..., I)."""
        out = x.new_empty(*x.shape[:-1], len(self.arrays[0]))
        self.kernels.product(*self.arrays, _array(x), out.view(-1).numpy())
        return out


class RowPredictor(_Weights):
    """The predictor's weights, for single paths.

    They are given in the order of ``row_kernels.write``: those of each block, and those after.
    """

    OF_BLOCK = 8
    AFTER_BLOCKS = 10

    @staticmethod
    def calls(n_weights: int) -> int:
        """Thirty for each block, and as many for what comes after them."""
        n_blocks = (n_weights - RowPredictor.AFTER_BLOCKS) // RowPredictor.OF_BLOCK
        return 30 * (1 + n_blocks)

    @cached_property
    def laid_out(self) -> list[np.ndarray]:
        """The weights in one piece of memory.

        NumPy asks Linux for huge pages for an array as large. Weights of many small pages, which
        tensors are, cost a path that reads all of them for each bar a tenth of its time and more.
        """
        sizes = [-(-one.size // LINE) * LINE for one in self.arrays]
        parts = np.split(np.empty(sum(sizes), dtype=np.float32), np.cumsum(sizes)[:-1])
        copies = [
            part[: one.size].reshape(one.shape)
            for part, one in zip(parts, self.arrays, strict=True)
        ]
        for copy, one in zip(copies, self.arrays, strict=True):
            copy[...] = one
        return copies

    def write(
        self,
        n: int,
        hidden: Tensor,
        s1_logits: Tensor,
        tables: tuple[Tensor, ...],
        cache: Cache,
        *,
        most: int,
        sampling: tuple[float, int, float],
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        """Draw a path's next `n` bars, by torch's global generator.

        Parameters
        ----------
        n
            Bars to write, of which the last is not read.
        hidden, s1_logits
            Of the window's newest bar, (D,) and (V1,).
        tables
            Rows to add for the tokens, (V1, D) and (V2, D), the s2 queries of all coarse tokens,
            (V1, D), and rows to add for the new bars' calendar stamps, (n - 1, D) or (0, 0).
        cache
            The window, with room for `n` - 1 bars of a path, of which it has none.
        most
            Bars that a bar sees at most, itself included; not less than those of the window.
        sampling
            Temperature, `top_k` and `top_p`.
        eps
            Of all norms.

        Returns
        -------
        tuple of Tensor
            Tokens of the new bars, each (n,).

        Raises
        ------
        ValueError
            If there is no room for the bars, or logits are NaN or infinite.
        """
        if n - 1 > cache.capacity or cache.path_length > 0:
            raise ValueError(f"There is room for {cache.capacity} bars of the path, and no more.")
        kept = [
            one[0, :, 0].numpy()
            for layer in cache.layers
            for one in layer.reserve(1, cache.capacity)
        ]
        H, L, _ = kept[0].shape
        arrays = self.laid_out if n >= LONG_PATH else self.arrays
        F = arrays[self.OF_BLOCK - 1].shape[1]
        greedy = sampling[1] == 1
        draw = torch.zeros if greedy else torch.rand
        uniforms = draw(n, 2, dtype=torch.float32, device="cpu")
        s1, s2 = (np.empty(n, dtype=np.int64) for _ in range(2))
        given = (
            s1,
            s2,
            uniforms.numpy(),
            sampling,
            cache.prefix_length,
            most,
            tuple(one.contiguous().numpy() for one in tables),
            _addresses(arrays[: -self.AFTER_BLOCKS], self.OF_BLOCK),
            _addresses(kept, 2),
            (H, F, L, len(kept[-1])),
            eps,
            tuple(one.contiguous().numpy() for one in cache.rotary),
            tuple(arrays[-self.AFTER_BLOCKS :]),
            np.array(hidden),
            np.array(s1_logits),
        )
        # In between Ctrl-C is heard.
        for start in range(0, n, BARS_OF_A_CALL):
            end = min(start + BARS_OF_A_CALL, n)
            if self.kernels.write(start, end, *given) < end:
                raise ValueError(
                    "The predictor's logits are no finite numbers: its weights are spoilt."
                )
        return torch.from_numpy(s1), torch.from_numpy(s2)


def _addresses(arrays: list[np.ndarray], columns: int) -> np.ndarray:
    """Where arrays lie, so many in a row of the result."""
    return np.array([one.ctypes.data for one in arrays], dtype=np.int64).reshape(-1, columns)
