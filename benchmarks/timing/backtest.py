"""``historical_forecasts`` against the original's ``predict_batch`` on the same windows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from darts import TimeSeries
from kronos_finance._vendor.kronos_model import KronosPredictor as OriginalPredictor

from darts_kronos import KronosModel
from darts_kronos.module import KronosModule
from timing import original
from timing.clock import Plan, Seconds, WrongAnswer, now, row

CONTEXT, HORIZON, WINDOWS, PATHS = 96, 12, 200, 100
COMPONENTS = ["open", "high", "low", "close", "volume", "amount"]

CHECKED_WINDOWS = 3
"""Windows whose greedy forecasts are compared."""


def candle_frame(bars: int, seed: int = 0) -> pd.DataFrame:
    """A random walk of hourly candles."""
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(rng.normal(0, 0.01, bars).cumsum())
    open_ = np.concatenate(([100.0], close[:-1]))
    high = np.maximum(open_, close) * np.exp(np.abs(rng.normal(0, 0.004, bars)))
    low = np.minimum(open_, close) * np.exp(-np.abs(rng.normal(0, 0.004, bars)))
    volume = np.exp(rng.normal(10, 0.5, bars))
    values = np.stack((open_, high, low, close, volume, volume * close), axis=1)
    index = pd.date_range("2024-01-01", periods=bars, freq="h")
    return pd.DataFrame(values, index=index, columns=COMPONENTS)


def series_of(frame: pd.DataFrame) -> TimeSeries:
    """The frame as Darts takes it."""
    return TimeSeries.from_times_and_values(frame.index, frame.to_numpy(), columns=COMPONENTS)


def model_of(nets: original.Networks, series: TimeSeries, **kwargs: Any) -> KronosModel:
    """A fitted model with the weights of `nets`."""
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    model = KronosModel(
        input_chunk_length=CONTEXT,
        output_chunk_length=HORIZON,
        size=nets.size,
        representation="window",
        valid_candles=False,
        n_epochs=1,
        n_epochs_tokenizer=1,
        pl_trainer_kwargs={**quiet, "limit_train_batches": 1},
        batch_size=4,
        tokenizer_batch_size=4,
        **kwargs,
    )
    model.fit(series)
    model.model.tokenizer.load_state_dict(nets.tokenizer.state_dict())
    model.model.predictor.load_state_dict(nets.predictor.state_dict())
    return model


def _original_inputs(frame: pd.DataFrame, windows: int) -> dict[str, list[Any]]:
    starts = range(windows)
    times = frame.index.to_series()
    return {
        "df_list": [frame.iloc[i : i + CONTEXT] for i in starts],
        "x_timestamp_list": [times.iloc[i : i + CONTEXT] for i in starts],
        "y_timestamp_list": [times.iloc[i + CONTEXT : i + CONTEXT + HORIZON] for i in starts],
    }


def check(model: KronosModel, reference: OriginalPredictor, frame: pd.DataFrame) -> None:
    """Compare greedy forecasts.

    Raises
    ------
    WrongAnswer
        If a bar differs.
    """
    expected = reference.predict_batch(
        **_original_inputs(frame, CHECKED_WINDOWS),
        pred_len=HORIZON,
        top_k=1,
        sample_count=1,
        verbose=False,
    )
    before = model.sampling
    model.set_sampling(top_k=1, point_forecast="sample")
    found = backtest(model, frame, CHECKED_WINDOWS, 1)
    model.set_sampling(**before)
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        scale = frame.iloc[i : i + CONTEXT].std().to_numpy()
        gap = np.abs(one.values() - other.to_numpy()) / scale
        if not gap.max() < 1e-3:
            raise WrongAnswer(f"window {i}: a bar is {gap.max():.3g} deviations from theirs.")


def backtest(
    model: KronosModel, frame: pd.DataFrame, windows: int, paths: int, **kwargs: Any
) -> Any:
    """Ours, on the first `windows` windows."""
    series = series_of(frame.iloc[: CONTEXT + windows + HORIZON - 1])
    kwargs = {"last_points_only": False, **kwargs}
    return model.historical_forecasts(
        series,
        start=CONTEXT,
        start_format="position",
        forecast_horizon=HORIZON,
        stride=1,
        retrain=False,
        num_samples=paths,
        predict_kwargs={"batch_size": 32},
        **kwargs,
    )


def run(plan: Plan) -> list[dict[str, Any]]:
    """The row of the table."""
    windows, paths = (40, 100) if plan.quick else (WINDOWS, PATHS)
    frame = candle_frame(CONTEXT + windows + HORIZON - 1)
    nets = original.networks("mini")
    model = model_of(nets, series_of(frame), random_state=0)
    reference = OriginalPredictor(
        nets.original_predictor, nets.original_tokenizer, device="cpu", max_context=512
    )
    check(model, reference, frame)

    inside = [0.0]
    step = KronosModule.predict_step

    def timed(self: KronosModule, *args: Any, **kwargs: Any) -> Any:
        start = now()
        found = step(self, *args, **kwargs)
        inside[0] += now() - start
        return found

    KronosModule.predict_step = timed
    measured_paths = 10 if plan.quick else 50
    ours, theirs, outside = [], [], []
    for _ in range(plan.repeats):
        inside[0] = 0.0
        start = now()
        found = backtest(model, frame, windows, paths)
        ours.append(now() - start)
        outside.append(1 - inside[0] / ours[-1])
        assert len(found) == windows
        start = now()
        reference.predict_batch(
            **_original_inputs(frame, 2),
            pred_len=HORIZON,
            top_p=1.0,
            sample_count=measured_paths,
            verbose=False,
        )
        theirs.append((now() - start) * windows / 2 * paths / measured_paths)
    KronosModule.predict_step = step
    part = f"2 of {windows} windows, {measured_paths} of {paths} paths"
    return [
        row(
            f"mini {CONTEXT}/{HORIZON} {windows} windows x {paths}",
            Seconds(ours),
            Seconds(theirs, part),
            **{"share outside torch": float(np.median(outside))},
        )
    ]
