"""What sample paths and backtests hold at most, each in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch

from darts_kronos import KronosModel
from darts_kronos.generation import PATH_BYTES, Sampling, sample_paths
from timing import machine, original
from timing.backtest import candle_frame, series_of
from timing.clock import Plan
from timing.given import random_windows

CONTEXT, HORIZON = 400, 112


def _paths(windows: int, paths: int) -> tuple[int, int]:
    """Bytes that are taken while paths are drawn, and bytes of the result."""
    nets = original.networks("mini")
    context, stamps = random_windows(windows, CONTEXT, HORIZON)
    before = machine.memory_now()
    found = sample_paths(
        nets.tokenizer,
        nets.predictor,
        context,
        stamps,
        n=HORIZON,
        num_samples=paths,
        max_context=512,
        sampling=Sampling(),
    )
    return machine.peak_memory() - before, sum(one.nbytes for one in found)


def _backtest(windows: int, paths: int, last_points_only: bool) -> tuple[int, int]:
    """The same of a backtest, and the bytes that it returns."""
    context, horizon = 48, 48
    model = KronosModel(
        input_chunk_length=context,
        output_chunk_length=horizon,
        d_model=16,
        n_heads=2,
        n_layers=1,
        ff_dim=32,
        tokenizer_d_model=16,
        tokenizer_n_heads=2,
        tokenizer_n_layers=1,
        tokenizer_ff_dim=32,
        n_epochs=1,
        n_epochs_tokenizer=1,
        random_state=0,
        pl_trainer_kwargs={
            "accelerator": "cpu",
            "limit_train_batches": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    )
    series = series_of(candle_frame(context + windows + horizon - 1))
    model.fit(series)
    before = machine.memory_now()
    found = model.historical_forecasts(
        series,
        start=context,
        start_format="position",
        forecast_horizon=horizon,
        retrain=False,
        num_samples=paths,
        last_points_only=last_points_only,
    )
    found = [found] if last_points_only else found
    size = sum(one.all_values(copy=False).nbytes for one in found)
    return machine.peak_memory() - before, size


def _apart(function: Callable[..., tuple[int, int]], *args: Any) -> tuple[int, int]:
    """What a function gives in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return pool.apply(function, args)


def run(plan: Plan) -> list[dict[str, Any]]:
    """Rows of paths and of backtests."""
    rows = []
    for windows, paths in ((8, 10), (8, 100)) if plan.quick else ((8, 10), (8, 100), (8, 1000)):
        taken, result = _apart(_paths, windows, paths)
        rows.append(
            {
                "case": f"mini {CONTEXT}/{HORIZON} {windows} x {paths}",
                "taken MB": taken / 1e6,
                "result MB": result / 1e6,
                "taken beyond the result MB": (taken - result) / 1e6,
                "bound on paths drawn together MB": PATH_BYTES / 1e6,
            }
        )
    for windows, paths in ((400, 50),) if plan.quick else ((400, 50), (400, 200)):
        for last_points_only in (False, True):
            taken, result = _apart(_backtest, windows, paths, last_points_only)
            rows.append(
                {
                    "case": f"backtest {windows} windows x {paths}, "
                    f"last_points_only={last_points_only}",
                    "taken MB": taken / 1e6,
                    "result MB": result / 1e6,
                    "taken beyond the result MB": (taken - result) / 1e6,
                }
            )
    return rows
