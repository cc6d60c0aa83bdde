"""The machine and the versions that a measurement was made with, and the memory's bandwidth."""

from __future__ import annotations

import os
import platform
import resource
from importlib.metadata import version
from typing import Any

import torch

from timing.clock import now

BANDWIDTH_BYTES = 256 * 2**20
"""Bytes that are read once to measure the bandwidth: more than any cache holds."""


def describe(threads: int) -> dict[str, Any]:
    """Machine, versions and threads, as plain data."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "darts", "kronos-finance", "numpy", "numba")},
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor()


def bandwidth(repeats: int = 5) -> float:
    """Bytes a second that the threads in use read from memory: the best of `repeats` sums."""
    numbers = torch.ones(BANDWIDTH_BYTES // 4)
    best = float("inf")
    for _ in range(repeats):
        start = now()
        numbers.sum()
        best = min(best, now() - start)
    return BANDWIDTH_BYTES / best


def peak_memory() -> int:
    """The most bytes that this process has held so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory_now() -> int:
    """Bytes that this process holds (Linux only)."""
    with open("/proc/self/statm", encoding="utf-8") as sizes:
        return int(sizes.read().split()[1]) * resource.getpagesize()
