"""Sample paths against the original's, and the share of the memory's bandwidth that is reached."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from darts_kronos.generation import Paths, Sampling, sample_paths
from darts_kronos.nn.predictor import KronosPredictor
from darts_kronos.nn.rows import THREADS_OUTDONE
from timing import machine, original
from timing.clock import Plan, Seconds, WrongAnswer, now, row, seconds_of
from timing.given import NEARLY_GREEDY, random_windows, weight_bytes

CHECKED_BARS = 12
"""New bars of each window that are compared token by token; of the first window, all."""

MAX_CONTEXT = 512

STEPS_MEASURED = 7
"""Runs of one path whose steps are compared with the memory's bandwidth."""


@dataclass(frozen=True)
class Case:
    """What is generated: a size, bars of context and horizon, windows and paths of each."""

    size: str
    context: int
    horizon: int
    windows: int
    paths: int
    sliding: str = "exact"

    @property
    def name(self) -> str:
        """What the table calls it."""
        slides = self.context + self.horizon > MAX_CONTEXT
        text = f"{self.size} {self.context}/{self.horizon} {self.windows} x {self.paths}"
        return f"{text}, sliding {self.sliding}" if slides else text


FITTING = [
    Case(size, 400, 112, windows, paths)
    for size in ("mini", "small")
    for windows, paths in ((1, 1), (1, 10), (8, 10))
]
LARGE = [Case("mini", 400, 112, 8, 100)]
SLIDING = [
    Case(size, MAX_CONTEXT, 120, 1, 10, sliding)
    for size in ("mini", "small")
    for sliding in ("exact", "cached")
]
CASES = FITTING + LARGE + SLIDING
QUICK = [*FITTING[:4], SLIDING[0], SLIDING[1]]


def _ours(
    nets: original.Networks, case: Case, inputs: tuple[Tensor, Tensor], sampling: Sampling
) -> Paths:
    context, stamps = inputs
    return sample_paths(
        nets.tokenizer,
        nets.predictor,
        context,
        stamps,
        n=case.horizon,
        num_samples=case.paths,
        max_context=MAX_CONTEXT,
        sampling=sampling,
        sliding=case.sliding,
    )


def check(nets: original.Networks, case: Case, inputs: tuple[Tensor, Tensor], bars: int) -> None:
    """Compare the greedy tokens of all paths with the original's.

    Parameters
    ----------
    bars
        New bars of the first window to compare.

    Raises
    ------
    WrongAnswer
        If one token of one path differs.
    """
    ours = _ours(nets, case, inputs, NEARLY_GREEDY)
    context, stamps = inputs
    few = min(CHECKED_BARS, bars)
    for windows, n in ((slice(0, 1), bars), (slice(1, None), few)):
        if len(context[windows]) == 0:
            continue
        upto = case.context + n
        s1, s2 = original.greedy(nets, context[windows], stamps[windows, :upto], n, MAX_CONTEXT)
        for mine, theirs in ((ours.s1, s1), (ours.s2, s2)):
            same = mine[:, windows, :n] == theirs
            if not same.all():
                path, window, bar = (~same).nonzero()[0].tolist()
                raise WrongAnswer(
                    f"{case.name}: window {window}, path {path}: the token of new bar {bar} is "
                    "not the original's."
                )


def kept_bytes(nets: original.Networks, case: Case) -> float:
    """Bytes of keys and values that one step of one path reads, in the mean over the horizon."""
    config = nets.predictor.config
    bars = case.context + case.horizon / 2
    return (
        bars * (config.n_layers + 1) * 2 * config.d_model * nets.predictor.s1_head.weight.itemsize
    )


@dataclass(frozen=True)
class Step:
    """One step of one path: its seconds, and the bytes a second that memory gave around it."""

    seconds: float
    bandwidth: float


def steps(nets: original.Networks, inputs: tuple[Tensor, Tensor], case: Case) -> list[Step]:
    """The mean step of each of several runs: what writes the bars, without reading the window."""
    own, spent = KronosPredictor.write, []

    def write(*args: Any, **kwargs: Any) -> Any:
        start = now()
        written = own(*args, **kwargs)
        if written is None or written.shape[-1] < case.horizon:
            raise ValueError(
                "Its steps cannot be measured: torch takes them, or the window slides."
            )
        spent.append(now() - start)
        return written

    found = []
    with patch.object(KronosPredictor, "write", write):
        for _ in range(STEPS_MEASURED):
            before = machine.bandwidth()
            _ours(nets, case, inputs, Sampling())
            rate = max(before, machine.bandwidth())
            # The first bar is drawn from what was read, the last is not read.
            found.append(Step(spent[-1] / (case.horizon - 1), rate))
    return found


def measure(case: Case, plan: Plan) -> dict[str, Any]:
    """A row of the table."""
    most_rows, checked = (10, CHECKED_BARS) if plan.quick else (80, case.horizon)
    nets = original.networks(case.size)
    inputs = random_windows(case.windows, case.context, case.horizon)
    if case.sliding == "exact":
        check(nets, case, inputs, checked)
    run = lambda: _ours(nets, case, inputs, Sampling())  # noqa: E731
    run()
    arguments = (nets, *inputs, case.horizon, MAX_CONTEXT, case.paths)
    ours, theirs, part = [], [], ""
    for _ in range(plan.repeats):
        ours.append(seconds_of(run))
        estimate, part = original.scaled_seconds(*arguments, most_rows)
        theirs.append(estimate)
    if max(theirs) <= plan.limit:
        whole = max(1, min(plan.repeats, int(plan.limit / max(theirs))))
        theirs, part = [], ""
        for _ in range(whole):
            theirs.append(original.sampled_seconds(*arguments))
            ours.append(seconds_of(run))
    tokens = case.windows * case.paths * case.horizon
    more: dict[str, Any] = {"bars/s": tokens / Seconds(ours).median}
    if case.windows * case.paths == 1 and torch.get_num_threads() <= THREADS_OUTDONE:
        found, of_weights = steps(nets, inputs, case), weight_bytes(nets.predictor)
        whole = of_weights + kept_bytes(nets, case)
        more |= {
            "step ms": 1e3 * float(np.median([one.seconds for one in found])),
            "memory GB/s": float(np.median([one.bandwidth for one in found])) / 1e9,
        }
        for name, read in (("weights", of_weights), ("all that is read", whole)):
            shares = [read / one.seconds / one.bandwidth for one in found]
            more[f"{name}: MB"] = read / 1e6
            more[f"{name}: share of bandwidth"] = float(np.median(shares))
    return row(case.name, Seconds(ours), Seconds(theirs, part), **more)


def run(plan: Plan) -> list[dict[str, Any]]:
    """Rows of all cases."""
    rows = []
    for case in QUICK if plan.quick and plan.only is None else CASES:
        if plan.wants(case.name):
            started = time.perf_counter()
            rows.append(measure(case, plan))
            print(f"  {case.name}: {time.perf_counter() - started:.0f} s", flush=True)
    return rows
