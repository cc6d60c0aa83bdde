"""The calendar of bars: the stamps that tell the networks when a bar was made."""

from __future__ import annotations

import numpy as np
import pandas as pd
from darts import TimeSeries
from darts.utils.utils import generate_index

STAMP_FIELDS = ("minute", "hour", "weekday", "day", "month")
"""Fields of a bar's calendar stamp, in the order of the networks' tables."""


def stamps(index: pd.DatetimeIndex) -> np.ndarray:
    """Calendar stamps of timestamps.

    Parameters
    ----------
    index
        T timestamps.

    Returns
    -------
    numpy.ndarray
        Integers of shape (T, 5): minute 0..59, hour 0..23, weekday 0..6 (Monday 0), day 1..31,
        month 1..12.
    """
    return np.stack([np.asarray(getattr(index, field)) for field in STAMP_FIELDS], axis=1)


def stamp_series(series: TimeSeries, ahead: int) -> TimeSeries | None:
    """Calendar stamps of a series' bars and of the bars to come, as Darts' datasets take them.

    Parameters
    ----------
    series
        Any series. Its frequency tells when the bars to come are made: any pandas frequency,
        custom business days and exchange calendars' included.
    ahead
        Number of bars to come.

    Returns
    -------
    TimeSeries or None
        Five components, on the index of `series` and `ahead` bars past it; None if the series
        has no timestamps.
    """
    if not series.has_datetime_index:
        return None
    index = generate_index(
        start=series.start_time(),
        length=len(series) + ahead,
        freq=series.freq,
        name=series.time_dim,
    )
    return TimeSeries(
        times=index,
        values=stamps(index).astype(series.dtype),
        components=pd.Index(STAMP_FIELDS),
        copy=False,
    )
