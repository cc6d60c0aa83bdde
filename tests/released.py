"""Folders of weights as the original's own code writes them, and its forecasts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import reference
from darts import TimeSeries
from factories import TINY
from kronos_finance._vendor.kronos_model import KronosPredictor

from darts_kronos import KronosModel

QUIET = TINY["pl_trainer_kwargs"]

SMALL_PREDICTOR = reference.MINI_PREDICTOR | {
    "n_layers": 8,
    "d_model": 512,
    "n_heads": 8,
    "ff_dim": 1024,
}
SIZES: dict[str, tuple[dict, dict]] = {
    "tiny": ({}, {}),
    "odd": (
        {"d_model": 48, "n_heads": 2, "ff_dim": 80, "s1_bits": 6, "s2_bits": 6, "group_size": 3},
        {"d_model": 48, "n_heads": 2, "ff_dim": 80, "s1_bits": 6, "s2_bits": 6, "learn_te": False},
    ),
    "mini": (reference.RELEASED_TOKENIZER | {"group_size": 5}, reference.MINI_PREDICTOR),
    "small": (reference.RELEASED_TOKENIZER, SMALL_PREDICTOR),
}


def write(folder: Path, size: str = "tiny", seed: int = 0) -> tuple[Any, Any]:
    """Write a random tokenizer and predictor to `folder`; the originals are returned."""
    of_tokenizer, of_predictor = SIZES[size]
    tokenizer, _ = reference.tokenizers(seed, **of_tokenizer)
    predictor, _ = reference.predictors(seed, **of_predictor)
    tokenizer.save_pretrained(folder / "tokenizer", config=reference.TINY_TOKENIZER | of_tokenizer)
    predictor.save_pretrained(folder / "predictor", config=reference.TINY_PREDICTOR | of_predictor)
    return tokenizer, predictor


def model_of(folder: Path, **changes: Any) -> KronosModel:
    """A model with the weights in `folder` that forecasts as the original's greedy one does."""
    params = {
        "input_chunk_length": 24,
        "output_chunk_length": 6,
        "local_dir": folder,
        "top_k": 1,
        "valid_candles": False,
        "random_state": 0,
        "pl_trainer_kwargs": QUIET,
    }
    return KronosModel(**params | changes)


def greedy(
    original: tuple[Any, Any], frames: list[pd.DataFrame], n: int, max_context: int = 512
) -> list[pd.DataFrame]:
    """The original's greedy forecasts of hourly frames of equal length."""
    tokenizer, predictor = original
    asked = KronosPredictor(predictor, tokenizer, device="cpu", max_context=max_context)
    known = [pd.Series(frame.index) for frame in frames]
    ahead = [
        pd.Series(pd.date_range(frame.index[-1], periods=n + 1, freq=frame.index.freq)[1:])
        for frame in frames
    ]
    options: dict[str, Any] = {"top_k": 1, "sample_count": 1, "verbose": False}
    if len(frames) == 1:
        return [asked.predict(frames[0], known[0], ahead[0], n, **options)]
    return asked.predict_batch(frames, known, ahead, n, **options)


def as_series(frame: pd.DataFrame) -> TimeSeries:
    """The frame as Darts' series."""
    return TimeSeries.from_dataframe(frame)


def assert_equal_forecasts(forecast: TimeSeries, expected: pd.DataFrame) -> None:
    """Within 1e-4 of each other, relative, in the components that the forecast has."""
    names = list(forecast.components)
    np.testing.assert_allclose(forecast.values(), expected[names].to_numpy(), rtol=1e-4)
    assert list(forecast.time_index) == list(expected.index)
