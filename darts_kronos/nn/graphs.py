"""CUDA graphs: what a GPU does is recorded once and played again, launched as one.

A step of paths is a hundred small kernels, which take longer to be launched one by one than to run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FEWEST_STEPS = 4
"""Steps from which on it pays to record one."""

_GENERATING = threading.Lock()
"""Held while a graph is recorded: in that time torch lets no thread use its generator."""


def uniforms(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Numbers in [0, 1), float32, by torch's global generator of the device."""
    with _GENERATING:
        return torch.rand(shape, dtype=torch.float32, device=device)


class _Recorders(threading.local):
    """What a thread records with: graphs of other threads may be played at the same time."""

    def __init__(self) -> None:
        self.of_device: dict[torch.device, _Recorder] = {}

    def of(self, device: torch.device) -> _Recorder:
        """That of a device."""
        if device not in self.of_device:
            self.of_device[device] = _Recorder(device)
        return self.of_device[device]


class _Recorder:
    """Records graphs, of which one at a time is played: all work in the same memory."""

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        # Memory that no graph is left of could not be used by another one.
        self.first = self.record(lambda: torch.zeros(1, device=device))

    def record(self, function: Callable[[], Any]) -> torch.cuda.CUDAGraph:
        """A graph of what the function does."""
        graph = torch.cuda.CUDAGraph()
        self.stream.wait_stream(torch.cuda.current_stream())
        with _GENERATING, torch.cuda.stream(self.stream):
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                function()
            finally:
                graph.capture_end()
        return graph


_RECORDERS = _Recorders()


def recorded(function: Callable[[], Any], device: torch.device) -> torch.cuda.CUDAGraph:
    """A graph of what the function does on a GPU, which is not done now.

    It has to have been done once before, may not draw random numbers, and works on the same memory
    each time. Unlike ``torch.cuda.graph`` this neither collects garbage nor gives back the memory
    that torch holds, which both take longer than to record.
    """
    with torch.cuda.device(device):
        return _RECORDERS.of(device).record(function)


def played(
    step: Callable[[], Any], count: int, device: torch.device, graph: torch.cuda.CUDAGraph | None
) -> torch.cuda.CUDAGraph | None:
    """Make a step so many times, as a graph where a GPU can record it and it pays.

    Returns the graph, to be given to the next call; None if there is none.
    """
    if graph is None and device.type == "cuda" and count >= FEWEST_STEPS:
        # The first step compiles and loads what the recording needs.
        step()
        count -= 1
        graph = recorded(step, device)
    for _ in range(count):
        if graph is None:
            step()
        else:
            graph.replay()
    return graph
