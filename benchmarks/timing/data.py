"""Windows cut from many series, and how a training step's time grows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from darts_kronos import KronosModel
from darts_kronos.datasets import KronosTrainingDataset, WindowRules
from timing import machine
from timing.backtest import candle_frame, series_of
from timing.clock import Plan, Seconds, now, row
from timing.training import NOTHING_VARIED, StepTimes

CONTEXT, HORIZON, BARS = 512, 49, 5000
STEPS, BATCH = 5, 4

LENGTHS = (96, 192, 384, 768)
COUNTS = (1, 10, 100)
SIZES = ("nano", "mini", "small")


def windows(count: int, repeats: int) -> dict[str, Any]:
    """Seconds of one window of `count` series, and the memory that the windows add to these."""
    series = [series_of(candle_frame(BARS, seed)) for seed in range(count)]
    held = sum(one.all_values(copy=False).nbytes for one in series)
    rules = WindowRules(
        components=list(series[0].components),
        input_chunk_length=(CONTEXT, CONTEXT),
        output_chunk_length=HORIZON,
        with_stamps=True,
        positive_prices=True,
    )
    before = machine.memory_now()
    dataset = KronosTrainingDataset(series, rules)
    added = machine.memory_now() - before
    order = np.random.default_rng(0).permutation(len(dataset))[:20_000].tolist()
    values = []
    for _ in range(repeats):
        start = now()
        for i in order:
            dataset[i]
        values.append((now() - start) / len(order))
    return row(
        f"one window of {count} series of {BARS} bars",
        Seconds(values),
        **{
            "series MB": held / 1e6,
            # Of the stamps: five numbers a bar, where a bar has six.
            "added by the windows MB": added / 1e6,
        },
    )


def step(size: str, length: int, count: int) -> tuple[Seconds, int]:
    """Seconds of a training step of the predictor, and the model's parameters."""
    times = StepTimes()
    horizon = length // 8
    model = KronosModel(
        input_chunk_length=length - horizon,
        output_chunk_length=horizon,
        size=size,
        n_epochs=1,
        n_epochs_tokenizer=1,
        batch_size=BATCH,
        tokenizer_batch_size=BATCH,
        tokenizer_trainer_kwargs={"limit_train_batches": 1},
        pl_trainer_kwargs={
            "accelerator": "cpu",
            "limit_train_batches": STEPS,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [times],
        },
        **NOTHING_VARIED,
    )
    bars = length + STEPS * BATCH
    model.fit([series_of(candle_frame(bars, seed)) for seed in range(count)])
    parameters = sum(p.numel() for p in model.model.predictor.parameters())
    return Seconds(times.of[0][1:]), parameters


def growth(found: Mapping[float, Seconds]) -> float:
    """The exponent b of ``seconds = a * x**b``, fitted on logarithms."""
    seconds = [one.median for one in found.values()]
    return float(np.polyfit(np.log(list(found)), np.log(seconds), 1)[0])


def run(plan: Plan) -> list[dict[str, Any]]:
    """Rows of the windows and of the steps."""
    rows = [windows(100 if plan.quick else 1000, plan.repeats)]
    lengths, sizes = (LENGTHS[:3], SIZES[:2]) if plan.quick else (LENGTHS, SIZES)
    by_length, by_count, by_size = {}, {}, {}
    for length in lengths:
        by_length[length], _ = step("mini", length, 1)
    for count in COUNTS:
        by_count[count], _ = step("nano", 96, count)
    for size in sizes:
        seconds, parameters = step(size, 96, 1)
        by_size[parameters] = seconds
    for name, found in (
        ("mini, window of {} bars", by_length),
        ("nano, window of 96 bars, {} series", by_count),
        ("{:,} parameters, window of 96 bars", by_size),
    ):
        exponent = growth(found)
        for x, seconds in found.items():
            rows.append(row("step: " + name.format(x), seconds, **{"fitted exponent": exponent}))
    return rows
