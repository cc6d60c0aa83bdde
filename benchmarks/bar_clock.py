"""What the bar clock costs: reading 500,000 bars, and a backtest against one on plain numbers.

    python benchmarks/bar_clock.py

Reading: a CSV of 500,000 one-minute bars of a market with nights and weekends, to a series on the
bar clock, and back to a frame. Backtest: 489 forecasts over 20,000 five-minute bars of the Hong
Kong exchange, with its calendar, against the same bars on a RangeIndex without one; networks small
enough that what Darts and the clock cost shows. Both are run in turns, and the shortest times
compared.
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import exchange_calendars
import numpy as np
import pandas as pd
from darts import TimeSeries
from darts.metrics import mae

from darts_kronos import KronosModel, candles

ROWS, BARS, FORECASTS, HORIZON, CONTEXT, TURNS = 500_000, 20_000, 489, 48, 96, 3


def random_candles(times: pd.DatetimeIndex) -> pd.DataFrame:
    """A random walk of candles at the given times."""
    rng = np.random.default_rng(0)
    close = 100 * np.exp(rng.normal(0, 1e-4, len(times)).cumsum())
    open_ = np.r_[100.0, close[:-1]]
    spread = np.abs(rng.normal(0, 1e-4, (2, len(times))))
    return pd.DataFrame(
        {
            "open": open_,
            "high": np.maximum(open_, close) * (1 + spread[0]),
            "low": np.minimum(open_, close) * (1 - spread[1]),
            "close": close,
            "volume": rng.lognormal(10, 0.5, len(times)),
        },
        index=times.rename("timestamps"),
    )


def seconds(action: Callable[[], object]) -> float:
    """How long `action` takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def read() -> None:
    """Print how long it takes to read bars, and to make a frame of them."""
    times = pd.date_range("2015-01-01", periods=6 * ROWS, freq="min", tz="UTC")
    times = times[(times.hour >= 9) & (times.hour < 16) & (times.weekday < 5)][:ROWS]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "candles.csv"
        random_candles(times).to_csv(path)
        from_csv = min(seconds(lambda: candles.read_csv(path)) for _ in range(TURNS))
        parsed = min(seconds(lambda: pd.read_csv(path)) for _ in range(TURNS))
        series = candles.read_csv(path)
    assert len(series) == ROWS and candles.timestamps(series)[-1] == times[-1]
    back = min(seconds(lambda: candles.to_dataframe(series)) for _ in range(TURNS))
    print(f"read_csv of {ROWS:,} bars: {from_csv:.2f} s (pandas alone {parsed:.2f} s)")
    print(f"to_dataframe of them: {back:.3f} s")


def hong_kong(n: int) -> pd.DatetimeIndex:
    """The first `n` five-minute bars of the Hong Kong exchange from 2023 on."""
    schedule = exchange_calendars.get_calendar(
        "XHKG", start="2023-01-01", end="2024-12-31"
    ).schedule
    parts = []
    for _, session in schedule.iterrows():
        whole = pd.date_range(session["open"], session["close"], freq="5min", inclusive="right")
        lunch = (whole > session["break_start"]) & (whole <= session["break_end"])
        parts.append(whole[~lunch])
    return parts[0].append(parts[1:])[:n].tz_convert("Asia/Hong_Kong")


def backtest() -> None:
    """Print how long a backtest takes on the bar clock, over one on plain numbers."""
    on_clock = candles.from_dataframe(random_candles(hong_kong(BARS)), calendar="XHKG")
    plain = on_clock.with_metadata(None)
    stride = (BARS - CONTEXT - HORIZON) // (FORECASTS - 1)
    start = BARS - HORIZON - (FORECASTS - 1) * stride

    def model(series: TimeSeries) -> KronosModel:
        fitted = KronosModel(
            CONTEXT,
            HORIZON,
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
            point_forecast="sample",
            random_state=0,
            pl_trainer_kwargs={"accelerator": "cpu", "enable_progress_bar": False},
        )
        return fitted.fit(series[:1000])

    def run(fitted: KronosModel, series: TimeSeries) -> float:
        def action() -> None:
            errors = fitted.backtest(
                series,
                start=start,
                start_format="position",
                forecast_horizon=HORIZON,
                stride=stride,
                retrain=False,
                last_points_only=False,
                metric=mae,
                reduction=None,
            )
            assert len(errors) == FORECASTS

        return seconds(action)

    models = {"clock": (model(on_clock), on_clock), "plain": (model(plain), plain)}
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(TURNS):
        for name, (fitted, series) in models.items():
            times[name].append(run(fitted, series))
    clock, numbers = min(times["clock"]), min(times["plain"])
    print(
        f"backtest of {FORECASTS} forecasts over {BARS:,} bars: {clock:.2f} s on the bar clock, "
        f"{numbers:.2f} s on plain numbers: {clock / numbers:.2f} times"
    )


if __name__ == "__main__":
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="The series have no timestamps")
    read()
    backtest()
