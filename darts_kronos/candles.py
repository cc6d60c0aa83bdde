"""Candles in and out: CSV, Parquet and DataFrames to TimeSeries on the bar clock, and back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from numbers import Real
from os import PathLike
from typing import Any, Literal

import numpy as np
import pandas as pd
from darts import TimeSeries
from darts.utils.utils import generate_index
from pandas.tseries.frequencies import to_offset
from pandas.tseries.offsets import BusinessHour

from darts_kronos.candle_times import (
    TIME_COLUMNS,
    column_named,
    in_zone,
    parse_timestamps,
    read_timestamps,
)
from darts_kronos.candle_values import (
    TOLERANCE,
    OnInvalid,
    check_candles,
    check_times,
    read_values,
    warn_of_splits,
)
from darts_kronos.components import CANDLE, PRICES, canonical, has_prices
from darts_kronos.trading_calendar import (
    CALENDAR,
    ZONE,
    TradingCalendar,
    calendar_of,
    timestamps,
    warn_past_calendar,
)

__all__ = [
    "TIME_COLUMNS",
    "TOLERANCE",
    "append",
    "concat",
    "from_dataframe",
    "read_csv",
    "read_parquet",
    "timestamps",
    "to_dataframe",
]

SYMBOL = "symbol"
"""Column that names the asset of a row, and its key in the metadata of a series."""

_LEAST_MONTH = pd.Timedelta(days=28)

_SPLIT_CONTEXT = 200
"""Bars before new ones that tell how large a usual step is."""


def read_csv(path: str | PathLike[str], **kwargs: Any) -> TimeSeries | list[TimeSeries]:
    """Read candles from a CSV file.

    Parameters
    ----------
    path
        The file, in UTF-8, with commas, semicolons or tabs between columns and points in numbers;
        see :func:`from_dataframe` for what it holds.
    **kwargs
        See :func:`from_dataframe`.

    Examples
    --------
    >>> from darts_kronos import candles
    >>> series = candles.read_csv("HK_09988_5min.csv", calendar="XHKG")
    """
    try:
        df = _csv(path)
    except UnicodeDecodeError as error:
        utf_16 = error.object[:2] in (b"\xff\xfe", b"\xfe\xff")
        encoding = "utf-16" if utf_16 else "gbk"
        raise ValueError(
            f"The file is not in UTF-8 but, it seems, in {encoding.upper()} or another encoding: "
            f"save it as UTF-8, or read it with `pandas.read_csv(path, encoding={encoding!r})` and "
            "`candles.from_dataframe`."
        ) from error
    return from_dataframe(df, **kwargs)


def _csv(path: str | PathLike[str]) -> pd.DataFrame:
    """The frame of a CSV file, its symbols as text, separated by commas, semicolons or tabs."""
    header, separator = pd.read_csv(path, nrows=0), ","
    if len(header.columns) == 1:
        separator = next((one for one in ";\t" if one in header.columns[0]), ",")
        header = pd.read_csv(path, nrows=0, sep=separator)
    symbol = column_named(header, SYMBOL)
    options: dict[str, Any] = {
        "sep": separator,
        # Symbols are text: 00700 keeps its zeros, and NA is a company.
        "converters": None if symbol is None else {symbol: str.strip},
        "float_precision": "round_trip",
    }
    df = pd.read_csv(path, **options)
    last = df.iloc[:, -1]
    if not isinstance(df.index, pd.RangeIndex) and (last.isna() | (last == "")).all():
        # Rows end with a separator, the header does not: pandas takes the first column for the
        # index, and an empty one for the last.
        df = pd.read_csv(path, index_col=False, **options)
    return df


def read_parquet(path: str | PathLike[str], **kwargs: Any) -> TimeSeries | list[TimeSeries]:
    """Read candles from a Parquet file; see :func:`from_dataframe` for what it holds.

    Parameters
    ----------
    path
        The file. pandas needs pyarrow to read it.
    **kwargs
        See :func:`from_dataframe`.
    """
    return from_dataframe(pd.read_parquet(path), **kwargs)


def from_dataframe(
    df: pd.DataFrame,
    *,
    calendar: str | None = None,
    timezone: str | None = None,
    time_format: str | None = None,
    future_timestamps: Sequence[Any] | pd.DatetimeIndex | None = None,
    on_invalid: OnInvalid = "raise",
    sort: bool = False,
) -> TimeSeries | list[TimeSeries]:
    """Candles of a DataFrame as a series of six components.

    Bars at regular times, such as those of a market that never closes, keep them as a
    DatetimeIndex. Other bars are numbered (a RangeIndex), and a trading calendar in the series'
    metadata says when the bar of a number was made or will be; :func:`timestamps` and
    :func:`to_dataframe` look it up, for forecasts too.

    Nothing is changed silently. A change of price that looks like a split of shares is warned of.

    Parameters
    ----------
    df
        Columns open, high, low, close and, optional, volume and amount, in any order and case;
        others are ignored. Timestamps are in a column named in ``TIME_COLUMNS`` or in the index:
        datetimes, text such as ``2019/11/26 9:35``, dates such as 20191126, or seconds or
        milliseconds since 1970. Where they are missing, ``vol`` is volume and ``amt`` amount.
        Without volume, volume and amount are 0; without amount, it is volume times the mean of the
        four prices; both are warned of where a column such as ``turnover`` is ignored. With a
        column ``symbol``, or a level of the index of this name, each symbol's rows become a series
        of their own. Of columns with two levels, such as yfinance has, one may name the asset, if
        it is one.
    calendar
        Name of an exchange's calendar, such as "XNYS" or "XHKG" (package ``exchange_calendars``):
        bars to come are made on its sessions. None: they follow the pattern that the bars show.
    timezone
        Zone of timestamps that have none, and to which others are converted. Of an hour that its
        clocks have twice, the order of the bars tells which is meant.
    time_format
        Format of timestamps that are text, as of ``pandas.to_datetime``; None finds it.
    future_timestamps
        Timestamps of the bars after the last, where they are known beforehand.
    on_invalid
        What is done about a bar whose values are wrong: "raise" refuses the frame. "repair" moves
        a high or low to the extreme price of its bar, and a volume or amount that is missing or
        below 0 to 0; it refuses a price that is missing or not above 0. "drop" leaves such bars
        out. Both warn of what they did.
    sort
        Whether rows are sorted by time.

    Returns
    -------
    TimeSeries or list of TimeSeries
        Components open, high, low, close, volume, amount; float64. A list, in the order in which
        symbols first appear, if there is a column or level ``symbol``.

    Raises
    ------
    ValueError
        If a column is missing or not numeric, timestamps are missing, repeated or unsorted or
        cannot be read, a value is not finite, a price is not above 0, a volume or amount is below
        0, a bar is no candle (high below or low above another price, by more than a relative
        1e-6), or the bars do not lie on the exchange's sessions. The message names the first rows.
    """
    if df.empty:
        raise ValueError("The frame has no rows.")
    df = _levels_as_columns(_with_one_header(df))
    times = read_timestamps(df, time_format, converted=timezone is not None)
    values = read_values(df)
    options: dict[str, Any] = {
        "timezone": timezone,
        "calendar": calendar,
        "future_timestamps": future_timestamps,
        "on_invalid": on_invalid,
        "sort": sort,
    }
    column = column_named(df, SYMBOL)
    if column is None:
        return _series(values, times, **options)
    symbols = df[column]
    missing = symbols.isna() | (symbols.astype(str).str.strip() == "")
    if missing.any():
        raise ValueError(f"Row {int(np.argmax(missing))} has no symbol.")
    series = []
    for symbol, rows in df.groupby(symbols.to_numpy(), sort=False).indices.items():
        try:
            one = _series(values.iloc[rows], times[rows], symbol=str(symbol), **options)
        except ValueError as error:
            raise ValueError(f"Symbol {symbol!r}, rows counted within it: {error}") from error
        series.append(one.with_metadata({**(one.metadata or {}), SYMBOL: str(symbol)}))
    return series


def _with_one_header(df: pd.DataFrame) -> pd.DataFrame:
    """`df` with columns of one level, where the other names the one asset that all are of.

    Raises
    ------
    ValueError
        If there are several assets, or more levels.
    """
    columns = df.columns
    if columns.nlevels == 1:
        return df
    levels = [columns.get_level_values(level) for level in range(columns.nlevels)]
    candle = [has_prices(map(str, names)) for names in levels]
    if len(levels) > 2 or True not in candle:
        raise ValueError(
            f"The columns have {len(levels)} levels, {list(columns.names)}: give them one, with "
            f"{', '.join(PRICES)}."
        )
    of_assets = 1 - candle.index(True)
    # What was a level of the index has no asset.
    assets = [name for name in levels[of_assets].unique() if name != ""]
    if len(assets) > 1:
        raise ValueError(
            f"The columns have two levels, one of {len(assets)} assets: pick one of them, as with "
            f"`df.xs({assets[0]!r}, axis=1, level={of_assets})`."
        )
    return df.set_axis(levels[1 - of_assets], axis=1)


def _levels_as_columns(df: pd.DataFrame) -> pd.DataFrame:
    """`df` with the levels of its index that hold symbols, or timestamps beside them, as columns.

    Raises
    ------
    ValueError
        If the index has several levels, and none of them or of the columns is of symbols.
    """
    names = [str(name).strip().lower() for name in df.index.names]
    several = len(names) > 1
    if several and SYMBOL not in names and column_named(df, SYMBOL) is None:
        unknown = [level for level in range(len(names)) if names[level] not in TIME_COLUMNS]
        if unknown:
            # They may be assets, whose bars must not become one series.
            raise ValueError(
                f"The index has the levels {list(df.index.names)}: call that of the assets "
                f"{SYMBOL!r} (`df.index.set_names({SYMBOL!r}, level={unknown[0]})`), or drop those "
                "that are no timestamps (`df.droplevel`)."
            )
    wanted = (SYMBOL, *TIME_COLUMNS) if several else (SYMBOL,)
    levels = [
        level
        for level, name in enumerate(names)
        if name in wanted and column_named(df, name) is None
    ]
    return df.reset_index(level=levels) if levels else df


def _series(
    values: pd.DataFrame,
    times: pd.DatetimeIndex,
    *,
    symbol: str | None = None,
    timezone: str | None,
    calendar: str | None,
    future_timestamps: Sequence[Any] | pd.DatetimeIndex | None,
    on_invalid: OnInvalid,
    sort: bool,
) -> TimeSeries:
    times = in_zone(times, timezone)
    if sort:
        order = np.argsort(times.asi8, kind="stable")
        values, times = values.iloc[order], times[order]
    check_times(times)
    values, kept = check_candles(values, times, on_invalid, symbol)
    times = times[kept]
    warn_of_splits(values, times, symbol=symbol)
    metadata = {}
    index: pd.Index
    freq = None if calendar or future_timestamps is not None else _regular_freq(times)
    if freq is not None:
        index = pd.DatetimeIndex(times.tz_localize(None), freq=freq)
        if times.tz is not None:
            metadata[ZONE] = str(times.tz)
    else:
        planned = None
        if future_timestamps is not None:
            planned = _planned(future_timestamps, times)
        clock = TradingCalendar(times, calendar, planned)
        if calendar is not None:
            clock.warn_off_sessions(symbol)
        index = pd.RangeIndex(len(times))
        metadata[CALENDAR] = clock.to_json()
    return TimeSeries(
        times=index.rename("timestamps"),
        values=values.to_numpy(),
        components=pd.Index(CANDLE),
        metadata=metadata or None,
        copy=False,
    )


def _planned(
    future_timestamps: Sequence[Any] | pd.DatetimeIndex, times: pd.DatetimeIndex
) -> pd.DatetimeIndex:
    """Planned timestamps, in the time zone of the bars."""
    try:
        planned = parse_timestamps(pd.Series(future_timestamps), converted=times.tz is not None)
        return planned if times.tz is None else in_zone(planned, times.tz)
    except ValueError as error:
        raise ValueError(f"`future_timestamps`: {error}") from error


def _regular_freq(times: pd.DatetimeIndex) -> str | None:
    """Frequency with which a DatetimeIndex without time zone holds the bars and those to come."""
    wall = times.tz_localize(None)
    clocks_change = times.tz is not None and times.tz.utcoffset(None) is None
    if len(wall) < 3 or (clocks_change and np.diff(wall).min() < _LEAST_MONTH):
        # Where clocks change, wall-clock times are not regular, or will not be; but months are.
        return None
    freq = pd.infer_freq(wall)
    # Hours of business days are regular to pandas alone.
    return None if freq is None or isinstance(to_offset(freq), BusinessHour) else freq


def append(series: TimeSeries, new_bars: TimeSeries | pd.DataFrame) -> TimeSeries:
    """`series` with new bars at its end, the calendar kept right.

    Darts' own ``append`` keeps the first calendar alone, and so forgets when the new bars were
    made.

    Parameters
    ----------
    series
        T bars; its last bar is the last that its calendar knows, or the new bars are those that
        the calendar has after it.
    new_bars
        Candles after them: a series, or a frame as :func:`from_dataframe` reads.

    Returns
    -------
    TimeSeries
        All bars, with the components, data type and metadata of `series`.

    Raises
    ------
    ValueError
        If the new bars have other components, do not come after the last bar, are not candles, or
        leave a gap in a DatetimeIndex.
    """
    if isinstance(new_bars, pd.DataFrame):
        if new_bars.empty:
            return series
        read = from_dataframe(new_bars)
        if isinstance(read, list) and len(read) > 1:
            raise ValueError(f"The new bars must be of one asset, not of {len(read)} symbols.")
        new_bars = read[0] if isinstance(read, list) else read
    if not isinstance(new_bars, TimeSeries):
        raise ValueError(f"New bars are a TimeSeries or a DataFrame, not {type(new_bars)}.")
    values = _in_order(new_bars, series)
    times = timestamps(new_bars)
    if times is None:
        raise ValueError("The new bars have no timestamps: neither a DatetimeIndex nor a calendar.")
    _warn_of_split_between(series, values[0], times[0])
    metadata = dict(series.metadata or {})
    calendar = calendar_of(series)
    if series.has_datetime_index:
        _check_regular(series, times)
    elif calendar is None:
        raise ValueError("The series has no trading calendar: read it with candles.from_dataframe.")
    elif series.freq != 1:
        raise ValueError(
            f"The series has every {series.freq}th bar only: append to the whole one, then slice."
        )
    else:
        start = int(series.end_time()) + 1
        metadata[CALENDAR] = _extended(calendar, start, times).to_json()
    return TimeSeries(
        times=generate_index(
            start=series.start_time(),
            length=len(series) + len(new_bars),
            freq=series.freq,
            name=series.time_dim,
        ),
        values=np.concatenate((series.all_values(copy=False), values.astype(series.dtype))),
        components=series.components,
        static_covariates=series.static_covariates,
        hierarchy=series.hierarchy,
        metadata=metadata or None,
        copy=False,
    )


def concat(series: Sequence[TimeSeries | pd.DataFrame]) -> TimeSeries:
    """Series of one asset, one after the other in time, as one; see :func:`append`.

    Parameters
    ----------
    series
        At least one; the first says components, data type and rule for bars to come.

    Raises
    ------
    ValueError
        If there is none, the first is no series, they are of different symbols, or one does not
        come after those before it.
    """
    if not len(series) or not isinstance(series[0], TimeSeries):
        raise ValueError("`concat` takes a sequence of at least one series.")
    return reduce(append, series[1:], series[0])


def _in_order(new_bars: TimeSeries, series: TimeSeries) -> np.ndarray:
    """Values of new bars, in the order of the components of `series`."""
    own, new = ([canonical(name) for name in one.components] for one in (series, new_bars))
    missing = sorted(set(own) - set(new))
    if missing:
        raise ValueError(f"The new bars lack {', '.join(missing)}; they have {', '.join(new)}.")
    symbols = [(one.metadata or {}).get(SYMBOL) for one in (series, new_bars)]
    if None not in symbols and symbols[0] != symbols[1]:
        raise ValueError(f"The new bars are of {symbols[1]}, the series of {symbols[0]}.")
    if new_bars.n_samples != series.n_samples:
        raise ValueError(
            f"The new bars have {new_bars.n_samples} samples, the series {series.n_samples}."
        )
    values = new_bars.all_values(copy=False)[:, [new.index(name) for name in own]]
    if not np.isfinite(values).all():
        raise ValueError("The new bars hold values that are missing or infinite.")
    return values


def _warn_of_split_between(series: TimeSeries, bar: np.ndarray, time: pd.Timestamp) -> None:
    """Warn if the step from the last bar to the first new one, (C, S), looks like a split."""
    if has_prices(series.components) and series.n_samples == 1:
        tail = series[-_SPLIT_CONTEXT:]
        names = [canonical(name) for name in tail.components]
        frame = pd.DataFrame(np.vstack((tail.values(copy=False), bar[:, 0])), columns=names)
        symbol = (series.metadata or {}).get(SYMBOL)
        warn_of_splits(frame, [None] * len(tail) + [time], since=len(tail), symbol=symbol)


def _check_regular(series: TimeSeries, times: pd.DatetimeIndex) -> None:
    zone = (series.metadata or {}).get(ZONE)
    _check_zone(times, zone, "series")
    wall = times if zone is None else times.tz_convert(zone).tz_localize(None)
    expected = pd.date_range(series.end_time() + series.freq, periods=len(wall), freq=series.freq)
    differ = np.asarray(wall != expected)
    if differ.any():
        at = int(np.argmax(differ))
        raise ValueError(
            f"The series' bars are regular ({series.freq_str}): the next is of {expected[at]}, "
            f"the new bars have {wall[at]}. Read all bars anew with candles.from_dataframe to "
            "have them numbered."
        )


def _check_zone(times: pd.DatetimeIndex, zone: str | None, of: str) -> None:
    if (times.tz is None) != (zone is None):
        how = "of timestamps without time zone" if zone is None else f"with `timezone={zone!r}`"
        raise ValueError(
            f"The new bars have the time zone {times.tz}, the {of} {zone}: read them with "
            f"candles.from_dataframe first, {how}."
        )


def _extended(calendar: TradingCalendar, start: int, times: pd.DatetimeIndex) -> TradingCalendar:
    """The calendar with new bars, the first of which has the number `start`."""
    _check_zone(times, calendar.timezone, "calendar")
    if start > calendar.n_known:
        raise ValueError(
            f"The series ends {start - calendar.n_known} bars past its calendar, so that it is "
            "not known when its last bars were made."
        )
    known = calendar.known[start:]
    both = min(len(known), len(times))
    differ = np.asarray(known[:both] != times[:both])
    if differ.any():
        at = int(np.argmax(differ))
        raise ValueError(
            f"The calendar knows the bar after the series as of {known[at]}; the new bars have "
            f"{times[at]}."
        )
    return calendar.extended(times[both:])


def to_dataframe(
    series: TimeSeries | Sequence[TimeSeries],
    *,
    quantiles: Sequence[float] | None = None,
    paths: Literal["long", "wide"] | None = None,
    time_as_index: bool = True,
) -> pd.DataFrame:
    """Candles as a frame with their timestamps, those of a forecast too.

    Parameters
    ----------
    series
        One or several series. Without `quantiles` and `paths`, samples are averaged.
    quantiles
        Probabilities, such as ``[.05, .5, .95]``: a column for each component and quantile, named
        as Darts does (``close_q0.050``). They are marginal: the columns of one quantile are no
        candle.
    paths
        "long": a row for each bar and sample path, the column ``path`` counts them from 0.
        "wide": a column for each component and path, ``close_s0``.
    time_as_index
        Whether timestamps are the index or the first column; their name is ``timestamps``. Bars
        without timestamps have their numbers.

    Returns
    -------
    pandas.DataFrame
        A row for each bar. If the candles were read with a symbol, the column ``symbol`` comes
        first.

    Raises
    ------
    ValueError
        If both `quantiles` and `paths` are given, or one of them is not valid.
    """
    if quantiles is not None and paths is not None:
        raise ValueError("Ask for `quantiles` or for `paths`, not for both.")
    if paths not in (None, "long", "wide"):
        raise ValueError(f"`paths` must be 'long', 'wide' or None, got {paths!r}.")
    if quantiles is not None:
        inside = all(isinstance(q, Real) and 0 <= q <= 1 for q in quantiles)
        if not inside or len({f"{q:.3f}" for q in quantiles}) < len(quantiles):
            raise ValueError(
                "`quantiles` must lie in [0, 1] and differ by 0.001 at least, got "
                f"{list(quantiles)}."
            )
    if not isinstance(series, TimeSeries):
        if not len(series):
            raise ValueError("There is no series to make a frame of.")
        frame = pd.concat([_frame(one, quantiles, paths) for one in series])
    else:
        frame = _frame(series, quantiles, paths)
    return frame if time_as_index else frame.reset_index()


def _frame(
    series: TimeSeries, quantiles: Sequence[float] | None, paths: str | None
) -> pd.DataFrame:
    if series.n_samples == 1:
        warn_past_calendar(series, forecast=True)
    times = timestamps(series)
    index = (series.time_index if times is None else times).rename("timestamps")
    values, names = series.all_values(copy=False), list(series.components)
    if paths == "long":
        flat = values.transpose(0, 2, 1).reshape(-1, len(names))
        frame = pd.DataFrame(flat, index=index.repeat(series.n_samples), columns=names)
        frame.insert(0, "path", np.tile(np.arange(series.n_samples), len(series)))
    elif paths == "wide":
        columns = [f"{name}_s{i}" for name in names for i in range(series.n_samples)]
        frame = pd.DataFrame(values.reshape(len(series), -1), index=index, columns=columns)
    elif quantiles is not None:
        columns = [f"{name}_q{q:.3f}" for name in names for q in quantiles]
        found = np.quantile(values, quantiles, axis=2).transpose(1, 2, 0)
        frame = pd.DataFrame(found.reshape(len(series), -1), index=index, columns=columns)
    else:
        mean = values[:, :, 0] if series.n_samples == 1 else values.mean(axis=2)
        frame = pd.DataFrame(mean, index=index, columns=names)
    symbol = (series.metadata or {}).get(SYMBOL)
    if symbol is not None:
        frame.insert(0, SYMBOL, symbol)
    return frame
