"""Single rows, and paths bar by bar, by the compiled kernels.

The kernels are there where numba is: on CPUs, in float32, without gradients.

Shapes by letter: B windows, S sample paths of a window, n new bars, D width of the model, V1 and V2
entries of the coarse and of the fine codebook, I and O widths in and out.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from darts_kronos.nn.kernel_modules import row_kernels
from darts_kronos.nn.strata import drawing

if TYPE_CHECKING:
    from darts_kronos.nn.layers import Cache


THREADS_OUTDONE = 2
"""Threads up to which the kernels were measured to be faster than torch, for any weights."""

LONG_PATH = 40
"""Bars of paths from which on it pays to copy the weights for them."""

BARS_OF_A_CALL = 128
"""Bars of all its paths that are written in one call of the kernel: it does not hear Ctrl-C."""

PATHS_OF_A_CALL = 20
"""Most paths that one thread writes together: their numbers stay in its caches."""

BYTES_OF_A_CALL = 2**18
"""Bytes that a kernel reads in the time that a call of torch costs."""

SPOILT = "The predictor's logits are no finite numbers: its weights are spoilt."
"""What is said of weights that cannot draw paths."""


def is_row(x: Tensor) -> bool:
    """Whether this is a single row, of any number of dimensions."""
    return x.numel() == x.shape[-1]


class _Weights:
    """Weights as arrays of numpy, which share the memory of the tensors, and the kernels."""

    @staticmethod
    def calls(n_weights: int) -> int:
        """Calls of torch that one of a kernel stands for, by how many weights it takes."""
        return 1

    @classmethod
    def of(cls, *weights: Tensor | None) -> Self | None:
        """The weights, or None where the kernels are not there or not the faster way.

        They take float32 on CPUs. With more than ``THREADS_OUTDONE`` threads, which in torch share
        the reading of weights, they are used if the weights are few for the calls that they save:
        so a single path was reckoned; several were not measured there.
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
        row = x.reshape(1, -1).contiguous()
        self.kernels.product(*self.arrays, row.numpy(), out.view(1, -1).numpy())
        return out


class RowPredictor(_Weights):
    """The predictor's weights, for paths that are written bar by bar.

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
        line = self.kernels.LINE
        sizes = [-(-one.size // line) * line for one in self.arrays]
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
        num_samples: int,
        hidden: Tensor,
        s1_logits: Tensor,
        tables: tuple[Tensor, ...],
        cache: Cache,
        *,
        most: int,
        sampling: tuple[float, int, float],
        eps: float,
    ) -> Tensor:
        """Draw the next `n` bars of each path, by numbers that ``drawing`` gives.

        As many threads as torch has each write paths of their own.

        Parameters
        ----------
        n
            Bars to write, of which the last is not read.
        num_samples
            S, paths of each window.
        hidden, s1_logits
            Of the windows' newest bars, (B, D) and (B, V1).
        tables
            Rows to add for the tokens, (V1, D) and (V2, D), the s2 queries of all coarse tokens,
            (V1, D), and rows to add for the calendar stamps of each window's new bars,
            (B, n - 1, D) or (0, 0, 0).
        cache
            The windows; it is read only.
        most
            Bars that a bar sees at most, itself included; not less than those of a window.
        sampling
            Temperature, `top_k` and `top_p`.
        eps
            Of all norms.

        Returns
        -------
        Tensor
            Coarse and fine tokens of the new bars, (2, B, S, n).

        Raises
        ------
        ValueError
            If the cache has no room for the bars, or logits are NaN or infinite.
        """
        if n - 1 > cache.capacity:
            raise ValueError(f"There is room for {cache.capacity} bars of the path, and no more.")
        windows = [one.numpy() for layer in cache.layers for one in layer.prefix]
        B, H, T, _ = windows[0].shape
        arrays = self.laid_out if n >= LONG_PATH else self.arrays
        F = arrays[self.OF_BLOCK - 1].shape[1]
        network = (
            tuple(one.contiguous().numpy() for one in tables),
            _addresses(arrays[: -self.AFTER_BLOCKS], self.OF_BLOCK),
            tuple(arrays[-self.AFTER_BLOCKS :]),
            tuple(one.contiguous().numpy() for one in cache.rotary),
            (H, windows[-1].shape[1], F),
            eps,
        )
        numbers = drawing(n, B, num_samples, torch.device("cpu"), greedy=sampling[1] == 1)
        uniforms = numbers.permute(2, 0, 1).contiguous().numpy()
        first_states, first_logits = hidden.numpy(), s1_logits.numpy()

        def prepare(paths: np.ndarray) -> tuple[Any, ...]:
            """What the kernel is given for some of the paths."""
            of_path = paths // num_samples
            own = np.empty((len(windows), len(paths), n * first_states.shape[1]), dtype=np.float32)
            places = np.hstack((_addresses(windows, 2), _addresses(list(own), 2)))
            memory = of_path, places, (B, T, n)
            tokens = np.empty((2, len(paths), n), dtype=np.int64)
            given = tokens, uniforms[paths], sampling, most, network, memory
            # Last, what lies at the addresses: a thread may outlive this call.
            return *given, first_states[of_path], first_logits[of_path], (own, windows)

        parts = _shared_out(B * num_samples, torch.get_num_threads())
        given = [prepare(paths) for paths in parts]
        at_once = max(1, BARS_OF_A_CALL // max(len(paths) for paths in parts))

        def write_part(start: int, one: tuple[Any, ...]) -> bool:
            stop = min(start + at_once, n)
            return self.kernels.write(start, stop, *one[:-1]) == stop

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            # In between Ctrl-C is heard.
            for start in range(0, n, at_once):
                if not all(pool.map(partial(write_part, start), given)):
                    raise ValueError(SPOILT)
        tokens = np.concatenate([one[0] for one in given], axis=1)
        return torch.from_numpy(tokens).view(2, B, num_samples, n)


def _shared_out(count: int, threads: int) -> list[np.ndarray]:
    """Numbers of `count` paths in parts of ``PATHS_OF_A_CALL`` at most.

    All threads have as many parts, unless there are fewer paths than threads.
    """
    rounds = -(-count // (threads * PATHS_OF_A_CALL))
    return np.array_split(np.arange(count, dtype=np.int64), min(count, rounds * threads))


def _addresses(arrays: list[np.ndarray], columns: int) -> np.ndarray:
    """Where arrays lie, so many in a row of the result."""
    return np.array([one.ctypes.data for one in arrays], dtype=np.int64).reshape(-1, columns)
