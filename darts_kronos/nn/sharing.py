"""Work of compiled kernels, shared out among as many threads as torch has."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch

PARTS_OF_A_THREAD = 4
"""Parts that each thread takes, one after the other: another process may have one of the cores."""


@lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads that wait for work; a process that was forked has none of its parent's."""
    return ThreadPoolExecutor(threads)


def share(work: Callable[[int, int], None], count: int, step: int = 1) -> None:
    """Do so much work, in parts from one number to another, multiples of `step` but for the end.

    `work` is to let go of the interpreter while it is at it.
    """
    steps = -(-count // step)
    threads = min(torch.get_num_threads(), steps)
    if threads <= 1:
        return work(0, count)
    count_of_parts = min(steps, PARTS_OF_A_THREAD * threads)
    ends = [min(count, step * (steps * i // count_of_parts)) for i in range(count_of_parts + 1)]
    parts = iter(list(zip(ends, ends[1:], strict=False)))

    def take() -> None:
        for start, end in parts:
            work(start, end)

    # This thread works, too: others may be late, where another process has their core.
    others = [_pool(threads - 1, os.getpid()).submit(take) for _ in range(threads - 1)]
    try:
        take()
    finally:
        for other in others:
            other.result()
