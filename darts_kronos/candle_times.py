"""Timestamps of a frame of candles, in the forms that data vendors write."""

from __future__ import annotations

import warnings
from datetime import timezone as timezone_of
from datetime import tzinfo
from typing import Any

import numpy as np
import pandas as pd

TIME_COLUMNS = ("timestamps", "timestamp", "datetime", "date", "time")
"""Names under which the timestamps of bars are looked for, in this order; then the index."""

_EPOCHS = ((1e8, 1e11, "s"), (1e11, 1e14, "ms"), (1e14, 1e17, "us"), (1e17, 1e19, "ns"))
"""From, below, unit: what the size of a number says of its unit, for the years 1973 to 2286."""

_FIRST_DATE, _LAST_DATE = 19000101, 22001231
"""Whole numbers between these are dates, such as 20191126."""

_LAST_HOUR, _LAST_MINUTE = 24, 2359
"""Whole numbers up to the first may be hours; above the second a time of day has seconds, as 93000
has, others are as 930."""

_COMPACT = {4: "%Y%m%d%H%M", 6: "%Y%m%d%H%M%S", 9: "%Y%m%d%H%M%S%f"}
"""Digits after those of the date, and what all say together, as in 201911260935. As numbers since
1970 these would be milliseconds of 1976, and years after 2570."""

_BY_YEAR = r"^\d{4}\D|\D\d{4}[-/.]\d{1,2}[-/.]\d"
"""Text of which the date begins with the year, so that the month comes second."""


def read_timestamps(
    df: pd.DataFrame, time_format: str | None = None, *, converted: bool = False
) -> pd.DatetimeIndex:
    """Timestamps of the rows of `df`, in its order, with the time zone that they tell.

    Parameters
    ----------
    df
        Timestamps in a column named in ``TIME_COLUMNS`` (a date and a time column are joined; times
        may be whole numbers, 930 or 93000 for half past nine), or in the index: datetimes, text,
        whole dates such as 20191126, with the time of the day behind them in 201911260935,
        20191126093500 or 20191126093500000, or seconds, milli-, micro- or nanoseconds since 1970,
        which are UTC.
    time_format
        Format of text, as of ``pandas.to_datetime``; None finds it.
    converted
        Whether :func:`in_zone` then brings them to a zone, so that it is no matter if their offsets
        from UTC differ.

    Raises
    ------
    ValueError
        If there are none, or they cannot be read; the message names the first row.
    """
    return parse_timestamps(_raw(df, time_format), time_format, converted=converted)


def in_zone(times: pd.DatetimeIndex, timezone: str | tzinfo | None) -> pd.DatetimeIndex:
    """`times` of one asset in `timezone`, or in their own, under a name that brings the zone back.

    Of wall-clock times that clocks have twice, those up to the step back are the first.

    Raises
    ------
    ValueError
        If the zone is unknown or has no name, or `times` have none and the clocks of this one skip
        one of them, or have it twice and the order does not tell which is meant.
    """
    if timezone is not None:
        try:
            naive = times.tz is None
            times = _on_clocks_of(times, timezone) if naive else times.tz_convert(timezone)
        except (ValueError, KeyError) as error:
            raise ValueError(f"`timezone={str(timezone)!r}` does not fit: {error}") from error
    return _in_named_zone(times)


def _on_clocks_of(times: pd.DatetimeIndex, timezone: str | tzinfo) -> pd.DatetimeIndex:
    """Wall-clock times, with the time zone whose clocks they were read from."""
    found = times.tz_localize(timezone, ambiguous="NaT", nonexistent="NaT")
    unclear = np.asarray(found.isna())
    if not unclear.any():
        return found
    summer = np.ones(len(times), dtype=bool)
    skipped = np.asarray(times.tz_localize(timezone, ambiguous=summer, nonexistent="NaT").isna())
    if not skipped.any():
        try:
            found = times.tz_localize(timezone, ambiguous="infer")
        except Exception:  # Under pandas 2 it is of pytz, and no ValueError.
            pass
        # Bars in another order may look as if the hour came twice.
        if not found.hasnans and found.is_monotonic_increasing:
            return found
    row = int(np.argmax(skipped if skipped.any() else unclear))
    what = "skip" if skipped.any() else "have twice, and the order of the bars does not tell which,"
    raise ValueError(
        f"its clocks {what} {times[row]} (row {row}). Give timestamps in UTC, or with their offset "
        "from it."
    )


def parse_timestamps(
    raw: pd.Series, time_format: str | None = None, *, converted: bool = False
) -> pd.DatetimeIndex:
    """Timestamps of a column, in any of the forms that :func:`read_timestamps` takes.

    Raises
    ------
    ValueError
        If one is missing or cannot be read.
    """
    try:
        times = _parse(raw, time_format, converted)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"The timestamps cannot be read: {error}") from error
    missing = np.flatnonzero(np.asarray(times.isna()))
    if len(missing):
        raise ValueError(f"Row {missing[0]} has no timestamp ({len(missing)} such rows in all).")
    return times


def _in_named_zone(times: pd.DatetimeIndex) -> pd.DatetimeIndex:
    """`times` in a zone that its name brings back, as a calendar is kept as text."""
    if times.tz is None:
        return times
    offset = times.tz.utcoffset(None)
    if offset is not None:
        return times.tz_convert("UTC" if not offset else timezone_of(offset))
    try:
        same = times.tz_convert(str(times.tz))
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"The time zone {times.tz!r} has no name that it can be kept by: say `timezone`, for "
            "instance 'America/New_York'."
        ) from error
    return same


def column_named(df: pd.DataFrame, name: str) -> Any:
    """The column of `df` called `name` in any case, or None.

    Raises
    ------
    ValueError
        If there are several.
    """
    found = [column for column in df.columns if str(column).strip().lower() == name]
    if len(found) > 1:
        raise ValueError(f"The columns {', '.join(map(repr, found))} have one name.")
    return found[0] if found else None


def _raw(df: pd.DataFrame, time_format: str | None) -> pd.Series:
    by_name = {name: column_named(df, name) for name in TIME_COLUMNS}
    named = [name for name in TIME_COLUMNS if by_name[name] is not None]
    if named == ["date", "time"]:
        date, time = (df[by_name[name]] for name in named)
        text = time.astype(str).str.strip()
        padded = time_format is None or "%H%M" in time_format
        if pd.api.types.is_integer_dtype(time.dtype) and len(time) and padded:
            if time_format is None and 0 < time.max() <= _LAST_HOUR:
                raise ValueError(
                    f"times such as {time.max()} may be hours or minutes: say `time_format`, for "
                    "instance '%Y%m%d %H'."
                )
            # As a number, 0930 has lost its zero.
            text = text.str.zfill(4 if time.max() <= _LAST_MINUTE else 6)
        return date.astype(str).str.strip() + " " + text
    if named:
        return df[by_name[named[0]]]
    in_index = str(df.index.name).strip().lower() in TIME_COLUMNS
    if not in_index and not isinstance(df.index, pd.DatetimeIndex):
        raise ValueError(
            f"The frame has no timestamps: neither a column {', '.join(TIME_COLUMNS)} nor a "
            f"DatetimeIndex; its columns are {list(df.columns)}. Where one of them holds the bars' "
            "times, call it 'timestamps'."
        )
    return df.index.to_series()


def _parse(raw: pd.Series, time_format: str | None, converted: bool) -> pd.DatetimeIndex:
    if pd.api.types.is_datetime64_any_dtype(raw.dtype):
        return pd.DatetimeIndex(raw)
    if time_format is not None:
        return pd.DatetimeIndex(pd.to_datetime(raw, format=time_format))
    numbers = pd.to_numeric(raw, errors="coerce")
    if len(raw) and numbers.notna().eq(raw.notna()).all():
        return _from_numbers(numbers)
    text = raw.astype(str).str.strip()
    by_year = bool(text[raw.notna()].str.contains(_BY_YEAR).all())
    day_first = not by_year and _day_first(raw)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Could not infer format")
            warnings.filterwarnings("ignore", "Parsing dates in")
            return pd.DatetimeIndex(pd.to_datetime(raw.to_numpy(), dayfirst=day_first))
    except UserWarning as error:
        raise ValueError(f"{text.iloc[0]!r} is of no known format: say `time_format`.") from error
    except ValueError as error:
        if "utc=True" in str(error):
            if not converted:
                warnings.warn(
                    "The timestamps' offsets from UTC differ, as on both sides of a change of "
                    "clocks: they are kept as UTC. Say `timezone` to have them in the market's own "
                    "time.",
                    UserWarning,
                    stacklevel=5,
                )
            return pd.DatetimeIndex(pd.to_datetime(raw.to_numpy(), dayfirst=day_first, utc=True))
        if by_year:
            # Spreadsheets leave out the time at midnight.
            return pd.DatetimeIndex(pd.to_datetime(raw.to_numpy(), format="mixed"))
        raise ValueError(f"{error} Say `time_format`.") from error


def _from_numbers(numbers: pd.Series) -> pd.DatetimeIndex:
    least, most = numbers.min(), numbers.max()
    if _FIRST_DATE <= least and most <= _LAST_DATE:
        return pd.DatetimeIndex(
            pd.to_datetime(numbers.astype("Int64").astype(str), format="%Y%m%d")
        )
    for digits, form in _COMPACT.items():
        scale = 10**digits
        if _FIRST_DATE * scale <= least and most < (_LAST_DATE + 1) * scale:
            text = numbers.astype("Int64").astype(str)
            times = pd.to_datetime(text, format=form, errors="coerce")
            wrong = times.isna() & numbers.notna()
            if not wrong.any():
                return pd.DatetimeIndex(times)
            if wrong.mean() < 0.5:
                raise ValueError(f"{text[wrong].iloc[0]} is no date and time, as others are.")
    unit: Any
    for start, end, unit in _EPOCHS:
        if start <= least and most < end:
            if numbers.dtype.kind == "f":
                # Floats of seconds tell no more than milliseconds.
                numbers, unit = (numbers * 1000, "ms") if unit == "s" else (numbers, unit)
                numbers = numbers.round()
            return pd.DatetimeIndex(pd.to_datetime(numbers, unit=unit, utc=True))
    raise ValueError(
        f"the numbers from {least} to {most} are neither dates such as 20191126 nor seconds, "
        "milli-, micro- or nanoseconds since 1970."
    )


def _day_first(raw: pd.Series) -> bool:
    """Whether dates such as 26/11/2019, wherever they stand in the text, begin with the day.

    Raises
    ------
    ValueError
        If all of them could begin with either.
    """
    read = {}
    for day_first in (False, True):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Could not infer format")
            warnings.filterwarnings("ignore", "Parsing dates in")
            try:
                read[day_first] = pd.to_datetime(raw.to_numpy(), dayfirst=day_first, utc=True)
            except (ValueError, UserWarning):
                continue
    if len(read) == 2 and not read[False].equals(read[True]):
        raise ValueError(
            f"dates such as {raw.iloc[0]!r} may begin with the day or the month: say "
            "`time_format`, for instance '%d/%m/%Y %H:%M'."
        )
    return list(read) == [True]
