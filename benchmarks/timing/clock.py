"""Seconds over repeats, and tables of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd


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
        return float(np.median(self.values))

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
    """Seconds of the clock in use."""
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


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    frame = pd.DataFrame(rows).astype(object)
    shown = frame.apply(lambda column: column.map(_shown))
    return str(shown.to_markdown(index=False))


def _shown(value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if value < 100 else f"{value:,.0f}"
    return str(value)
