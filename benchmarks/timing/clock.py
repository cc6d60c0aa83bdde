"""Seconds over repeats, and rows of tables of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


class WrongAnswer(Exception):
    """Ours and the original do not agree, so their times cannot be compared."""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes
    ----------
    quick
        Whether fewer and smaller cases are measured.
    repeats
        How often each is measured.
    limit
        Seconds above which the original is measured on a part and scaled.
    only
        Parts of names of the cases to measure; None: all.
    """

    quick: bool
    repeats: int
    limit: float
    only: Sequence[str] | None = None

    def wants(self, name: str) -> bool:
        """Whether the case of this name is to be measured."""
        return self.only is None or any(part in name for part in self.only)


@dataclass(frozen=True)
class Seconds:
    """Repeats of one measurement.

    Attributes
    ----------
    values
        Seconds of each repeat.
    part
        What part was measured and scaled up; empty if it was measured whole.
    """

    values: Sequence[float]
    part: str = ""

    @property
    def median(self) -> float:
        """The median over repeats."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Largest less smallest, over the median."""
        return (max(self.values) - min(self.values)) / self.median


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""By name. Seconds of the process itself, "cpu", leave out what else a shared machine does; with
one thread on a machine of one's own both are the same."""

_clock = ["wall"]


def use(name: str) -> None:
    """Choose the clock that everything is measured with."""
    _clock[0] = name


def now() -> float:
    """Seconds of the clock in use, when a GPU has done what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return CLOCKS[_clock[0]]()


def seconds_of(function: Callable[[], Any]) -> float:
    """Seconds that one call takes."""
    start = now()
    function()
    return now() - start


def row(name: str, ours: Seconds, original: Seconds | None = None, **more: Any) -> dict[str, Any]:
    """A row of the table: both times, their ratio, and the spread over repeats."""
    out: dict[str, Any] = {"case": name, "ours s": ours.median, "spread": ours.spread}
    if original is not None:
        out |= {
            "original s": original.median,
            "original spread": original.spread,
            "ratio": original.median / ours.median,
            # Both sides at their best: what other work on the machine disturbs least.
            "ratio of the least": min(original.values) / min(ours.values),
            "original measured": original.part or "whole",
        }
    return out | {"repeats": len(ours.values)} | more
