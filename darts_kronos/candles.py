"""Candles as DataFrames to TimeSeries and back, checked."""

from __future__ import annotations

from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
from darts import TimeSeries

from darts_kronos.components import CANDLE, PRICES, canonical

TIME_COLUMNS = ("timestamps", "timestamp", "datetime", "date", "time")
"""Names under which the timestamps of bars are looked for, in this order; then the index."""

TOLERANCE = 1e-6
"""Relative amount by which a high may lie below, or a low above, another price of its bar."""

_SHOWN = 5


def read_csv(path: str | PathLike[str]) -> TimeSeries:
    """Read candles from a CSV file; see :func:`from_dataframe` for what it holds."""
    return from_dataframe(pd.read_csv(path))


def from_dataframe(df: pd.DataFrame) -> TimeSeries:
    """Candles of a DataFrame as a series of six components.

    Bars at regular times keep them as a DatetimeIndex (of local time, where a time zone is
    known). Bars at irregular times, as of any market with nights, go on a RangeIndex.

    Parameters
    ----------
    df
        Columns open, high, low, close and, optional, volume and amount, in any order and case;
        timestamps in a column named in ``TIME_COLUMNS`` or in the index. Without volume, volume
        and amount are 0; without amount, it is volume times the mean of the four prices.

    Returns
    -------
    TimeSeries
        Components open, high, low, close, volume, amount; float64.

    Raises
    ------
    ValueError
        If a column is missing or not numeric, timestamps are missing, repeated or unsorted, a
        value is not finite, a price is not above 0, a volume or amount is below 0, or a bar is no
        candle (high below or low above another price, by more than a relative 1e-6). The message
        names the first rows.
    """
    if df.empty:
        raise ValueError("The frame has no rows.")
    times = _timestamps(df)
    values = _values(df)
    _check(values, times)
    local = times.tz_localize(None)
    regular = pd.infer_freq(local) if len(local) >= 3 else None
    index: pd.Index = (
        pd.DatetimeIndex(local, freq=regular) if regular else pd.RangeIndex(len(local))
    )
    return TimeSeries.from_times_and_values(index, values.to_numpy(), columns=list(CANDLE))


def to_dataframe(series: TimeSeries) -> pd.DataFrame:
    """A series' candles, one row a bar; of several samples, their mean.

    Parameters
    ----------
    series
        Any series; a forecast's samples are averaged.
    """
    values = series.all_values(copy=False).mean(axis=2)
    return pd.DataFrame(values, index=series.time_index, columns=list(series.components))


def _timestamps(df: pd.DataFrame) -> pd.DatetimeIndex:
    by_name = {str(column).strip().lower(): column for column in df.columns}
    named = [by_name[name] for name in TIME_COLUMNS if name in by_name]
    raw = df[named[0]] if named else df.index
    if not named and not isinstance(df.index, pd.DatetimeIndex):
        raise ValueError(
            f"The frame has no timestamps: neither a column {', '.join(TIME_COLUMNS)} nor a "
            f"DatetimeIndex; its columns are {list(df.columns)}."
        )
    try:
        times = pd.DatetimeIndex(pd.to_datetime(raw))
    except (ValueError, TypeError) as error:
        raise ValueError(f"The timestamps cannot be read: {error}") from error
    _refuse(np.asarray(times.isna()), times, "has no timestamp")
    _refuse(np.asarray(times.duplicated()), times, "repeats a timestamp")
    unsorted = np.zeros(len(times), dtype=bool)
    unsorted[1:] = np.asarray(times[1:] < times[:-1])
    _refuse(unsorted, times, "is earlier than the bar before it; sort the frame by time")
    return times


def _values(df: pd.DataFrame) -> pd.DataFrame:
    by_name: dict[str, Any] = {}
    for column in df.columns:
        name = canonical(str(column))
        if name in CANDLE:
            if name in by_name:
                raise ValueError(f"The columns {by_name[name]!r} and {column!r} have one name.")
            by_name[name] = column
    missing = [name for name in PRICES if name not in by_name]
    if missing:
        raise ValueError(
            f"The frame lacks {', '.join(missing)}; its columns are {list(df.columns)}."
        )
    values = pd.DataFrame(index=df.index)
    for name, column in by_name.items():
        numbers = pd.to_numeric(df[column], errors="coerce")
        text = numbers.isna() & df[column].notna()
        if text.any():
            first = int(np.argmax(text.to_numpy()))
            raise ValueError(
                f"Column {column!r} is not numeric: row {first} holds {df[column].iloc[first]!r}."
            )
        values[name] = numbers.astype(np.float64)
    if "volume" not in values:
        values["volume"] = 0.0
        values["amount"] = 0.0
    elif "amount" not in values:
        values["amount"] = values["volume"] * values[list(PRICES)].mean(axis=1)
    return values[list(CANDLE)]


def _check(values: pd.DataFrame, times: pd.DatetimeIndex) -> None:
    bars = values.to_numpy()
    prices, volumes = bars[:, :4], bars[:, 4:]
    _refuse(~np.all(np.isfinite(bars), axis=1), times, "holds a value that is missing or infinite")
    _refuse(np.any(prices <= 0, axis=1), times, "holds a price that is not above 0")
    _refuse(np.any(volumes < 0, axis=1), times, "holds a volume or amount below 0")
    below: np.ndarray = bars[:, 1] < np.max(prices, axis=1) * (1 - TOLERANCE)
    above: np.ndarray = bars[:, 2] > np.min(prices, axis=1) * (1 + TOLERANCE)
    _refuse(np.asarray(below | above), times, "is no candle (high or low is not the extreme price)")


def _refuse(wrong: np.ndarray, times: pd.DatetimeIndex, what: str) -> None:
    rows = np.flatnonzero(wrong)
    if not len(rows):
        return
    shown = ", ".join(f"{row} ({times[row]})" for row in rows[:_SHOWN])
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    raise ValueError(f"A bar {what}: row {shown}{more}.")
