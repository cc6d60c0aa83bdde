"""Series and small models that several test modules use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from darts import TimeSeries

from darts_kronos import KronosModel

COMPONENTS = ["open", "high", "low", "close", "volume", "amount"]

TINY_NETWORKS = {
    "d_model": 16,
    "n_heads": 2,
    "n_layers": 1,
    "ff_dim": 32,
    "s1_bits": 4,
    "s2_bits": 3,
    "tokenizer_d_model": 16,
    "tokenizer_n_heads": 2,
    "tokenizer_n_layers": 1,
    "tokenizer_ff_dim": 32,
}

TINY = {
    "input_chunk_length": 24,
    "output_chunk_length": 6,
    **TINY_NETWORKS,
    "n_epochs": 1,
    "n_epochs_tokenizer": 1,
    "num_point_samples": 8,
    "random_state": 0,
    "pl_trainer_kwargs": {
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
}

GREEDY = {"top_k": 1, "point_forecast": "sample"}
"""Forecasts without anything random."""


def candle_frame(bars: int = 120, seed: int = 0, freq: Any = "h") -> pd.DataFrame:
    """A random walk of valid candles."""
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(rng.normal(0, 0.01, bars).cumsum())
    open_ = np.concatenate(([100.0], close[:-1])) * np.exp(rng.normal(0, 0.002, bars))
    high = np.maximum(open_, close) * np.exp(np.abs(rng.normal(0, 0.004, bars)))
    low = np.minimum(open_, close) * np.exp(-np.abs(rng.normal(0, 0.004, bars)))
    volume = np.exp(rng.normal(10, 0.5, bars))
    values = np.stack((open_, high, low, close, volume, volume * close), axis=1)
    index = pd.date_range("2024-01-30 10:00", periods=bars, freq=freq)
    return pd.DataFrame(values, index=index, columns=COMPONENTS)


def candles(bars: int = 120, seed: int = 0, freq: Any = "h") -> TimeSeries:
    """A random walk of valid candles on a DatetimeIndex of `freq`, or a RangeIndex (None)."""
    frame = candle_frame(bars, seed, "h" if freq is None else freq)
    if freq is None:
        frame.index = pd.RangeIndex(bars)
    return TimeSeries.from_times_and_values(frame.index, frame.to_numpy(), columns=COMPONENTS)


def tiny_model(**changes: Any) -> KronosModel:
    """A model that trains in a second."""
    return KronosModel(**(TINY | changes))
