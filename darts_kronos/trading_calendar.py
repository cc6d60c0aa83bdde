"""The bar clock: bars by number, their timestamps in a calendar that travels with the series.

Darts wants a regular index, and markets are not regular. Irregular bars are numbered (a
RangeIndex), and the calendar says when the bar of a number was made, or will be. It is one JSON
string in the ``metadata`` of a TimeSeries, which Darts keeps through slicing, splitting,
transforming and forecasting; so it is cheap to compare and can be saved.
"""

from __future__ import annotations

import json
import warnings
from functools import cached_property, lru_cache

import numpy as np
import pandas as pd
from darts import TimeSeries
from darts.utils.utils import generate_index

from darts_kronos.sessions import ExchangeRule, PatternRule

STAMP_FIELDS = ("minute", "hour", "weekday", "day", "month")
"""Fields of a bar's calendar stamp, in the order of the networks' tables."""

CALENDAR = "trading_calendar"
"""Key of the calendar in a series' metadata."""

ZONE = "timezone"
"""Key of the time zone in the metadata of a series on a DatetimeIndex, which Darts cannot keep."""

_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}

_FEWEST_AHEAD = 256


class TradingCalendar:
    """When the bar of a number was made, or will be.

    The past is what the data says. Bars to come are, in this order, at the timestamps that were
    planned, on the sessions of the exchange that was named, or at the pattern that past bars show
    (see :class:`~darts_kronos.sessions.PatternRule`).

    Parameters
    ----------
    known
        Timestamps of the bars 0, 1, ...; strictly ascending, with or without a time zone.
    exchange
        Name of an exchange's calendar, such as XNYS (see the package ``exchange_calendars``), on
        whose sessions bars to come are made.
    planned
        Timestamps of the bars after those, where they are known beforehand.

    Raises
    ------
    ValueError
        If there are no bars, the timestamps do not ascend or differ in time zone, or the bars do
        not lie on the exchange's sessions.
    """

    def __init__(
        self,
        known: pd.DatetimeIndex,
        exchange: str | None = None,
        planned: pd.DatetimeIndex | None = None,
    ):
        if not len(known):
            raise ValueError("A trading calendar needs at least one bar.")
        self.exchange = exchange
        self.n_known = len(known)
        fixed = known
        if planned is not None and len(planned):
            if str(planned.tz) != str(known.tz):
                raise ValueError(
                    f"The planned timestamps have the time zone {planned.tz}, the bars {known.tz}."
                )
            fixed = _joined(known, planned)
        rising = np.diff(fixed.asi8) > 0
        if not rising.all():
            at = int(np.argmin(rising)) + 1
            raise ValueError(
                f"The timestamps must ascend: {fixed[at]} comes after {fixed[at - 1]}."
            )
        self._fixed = fixed.rename(None)
        self._coming = self._fixed[:0]
        if exchange is not None:
            _ = self._rule

    # --- plain data ---------------------------------------------------------------------------

    @staticmethod
    @lru_cache(maxsize=256)
    def from_json(text: str) -> TradingCalendar:
        """The calendar that :meth:`to_json` wrote; read once and kept.

        Raises
        ------
        ValueError
            If `text` is no such calendar.
        """
        try:
            data = json.loads(text)
            unit, zone = data["unit"], data["timezone"]
            distances, counts = np.asarray(data["steps"], dtype=np.int64).reshape(-1, 2).T
            start = np.asarray([data["start"]], dtype=np.int64)
            instants = np.concatenate((start, start + np.cumsum(np.repeat(distances, counts))))
            per_second = _UNITS[unit] // _UNITS[data["resolution"]]
            times = pd.DatetimeIndex((instants * per_second).view(f"M8[{unit}]"))
            if zone is not None:
                times = times.tz_localize("UTC").tz_convert(zone)
            known = int(data["known"])
            return TradingCalendar(times[:known], data["exchange"], times[known:])
        except (KeyError, TypeError) as error:
            raise ValueError(f"This is no trading calendar: {text[:80]!r}...") from error

    @cached_property
    def _json(self) -> str:
        instants, unit = self._fixed.asi8, self._fixed.unit
        resolution = next(
            name
            for name, per_second in _UNITS.items()
            if name == unit or not (instants % (_UNITS[unit] // per_second)).any()
        )
        instants = instants // (_UNITS[unit] // _UNITS[resolution])
        # Runs of equal distances: most sessions are a single one.
        distances = np.diff(instants)
        starts = np.flatnonzero(np.r_[True, distances[1:] != distances[:-1]][: len(distances)])
        counts = np.diff(np.r_[starts, len(distances)])
        data = {
            "start": int(instants[0]),
            "steps": np.stack((distances[starts], counts), axis=1).tolist(),
            "resolution": resolution,
            "unit": unit,
            "timezone": self.timezone,
            "known": self.n_known,
            "exchange": self.exchange,
        }
        return json.dumps(data, separators=(",", ":"))

    def to_json(self) -> str:
        """The calendar as a string."""
        return self._json

    # --- bar number <-> timestamp -------------------------------------------------------------

    @property
    def timezone(self) -> str | None:
        """Name of the time zone of the timestamps; None if they have none."""
        return None if self._fixed.tz is None else str(self._fixed.tz)

    @property
    def known(self) -> pd.DatetimeIndex:
        """Timestamps of the bars that the data has."""
        return self._fixed[: self.n_known]

    @property
    def planned(self) -> pd.DatetimeIndex:
        """Timestamps of bars to come that were given."""
        return self._fixed[self.n_known :]

    @property
    def n_fixed(self) -> int:
        """Number of bars whose timestamps are known or planned."""
        return len(self._fixed)

    @cached_property
    def _rule(self) -> ExchangeRule | PatternRule:
        if self.exchange is not None:
            return ExchangeRule(self.exchange, self.known)
        return PatternRule(self.known)

    def _until(self, count: int) -> pd.DatetimeIndex:
        """Timestamps of at least the first `count` bars."""
        # Read once: other threads may know more bars to come meanwhile, or fewer of the same.
        coming = self._coming
        missing = count - len(self._fixed) - len(coming)
        if missing > 0:
            last = coming[-1] if len(coming) else self._fixed[-1]
            more = self._rule.following(last, max(missing, len(coming), _FEWEST_AHEAD))
            if len(more) < missing:
                raise ValueError(
                    f"The calendar of {self.exchange} knows {len(coming) + len(more)} bars "
                    f"after {self._fixed[-1]}; {count - self.n_fixed} are asked for. Give "
                    "`future_timestamps` to go on."
                )
            coming = _joined(coming, more.as_unit(self._fixed.unit))
            self._coming = coming
        return self._fixed if count <= len(self._fixed) else _joined(self._fixed, coming)

    def times(self, bars: pd.Index | np.ndarray) -> pd.DatetimeIndex:
        """Timestamps of bars, past or to come.

        Parameters
        ----------
        bars
            Numbers of T bars, from 0.

        Raises
        ------
        ValueError
            If a number is below 0: the calendar starts with bar 0.
        """
        numbers = np.asarray(bars)
        if not len(numbers):
            return self._fixed[:0]
        if numbers.min() < 0:
            raise ValueError(f"The calendar starts with bar 0, so there is no bar {numbers.min()}.")
        return self._until(int(numbers.max()) + 1)[numbers]

    def bars(self, times: pd.DatetimeIndex) -> np.ndarray:
        """Numbers of the bars at timestamps, past or to come; integers of shape (T,).

        Raises
        ------
        ValueError
            If there is no bar at one of them.
        """
        times = pd.DatetimeIndex(times)
        if (times.tz is None) != (self._fixed.tz is None):
            raise ValueError(
                f"The timestamps have the time zone {times.tz}, the calendar {self.timezone}."
            )
        count = len(self._fixed)
        while len(times) and self._until(count)[-1] < times.max():
            count = len(self._until(count)) + _FEWEST_AHEAD
        numbers = self._until(count).get_indexer(times)
        if (numbers < 0).any():
            raise ValueError(f"There is no bar at {times[int(np.argmin(numbers))]}.")
        return numbers

    def extended(self, times: pd.DatetimeIndex) -> TradingCalendar:
        """The calendar with the bars at `times` after those that the data had.

        Planned timestamps up to the last of them are dropped.

        Raises
        ------
        ValueError
            If they do not come after the known bars, or differ in time zone.
        """
        if (times.tz is None) != (self._fixed.tz is None):
            raise ValueError(
                f"The new bars have the time zone {times.tz}, the calendar {self.timezone}."
            )
        if not len(times):
            return self
        if times.tz is not None:
            times = times.tz_convert(self._fixed.tz)
        if times[0] <= self.known[-1]:
            raise ValueError(
                f"New bars must come after the last bar, of {self.known[-1]}; the first is of "
                f"{times[0]}."
            )
        planned = self.planned[self.planned > times[-1]]
        return TradingCalendar(_joined(self.known, times), self.exchange, planned)

    def warn_off_sessions(self, symbol: str | None = None) -> None:
        """Warn of known bars, of an asset, that are not on the sessions of the named exchange."""
        assert isinstance(self._rule, ExchangeRule)
        odd = self.known[self._rule.off_grid(self.known)]
        if len(odd):
            of = "" if symbol is None else f"Symbol {symbol!r}: "
            warnings.warn(
                f"{of}{len(odd)} of {self.n_known} bars are not on the sessions of "
                f"{self.exchange}, the first of {odd[0]}; they stay as they are.",
                UserWarning,
                stacklevel=4,
            )


def _joined(left: pd.DatetimeIndex, right: pd.DatetimeIndex) -> pd.DatetimeIndex:
    """Both, one after the other, in the finer of their units: nothing is rounded."""
    unit = max(left.unit, right.unit, key=lambda unit: _UNITS[unit])
    return pd.DatetimeIndex(left.as_unit(unit).append(right.as_unit(unit)))


def calendar_of(series: TimeSeries) -> TradingCalendar | None:
    """The trading calendar that a series carries, if it does."""
    text = (series.metadata or {}).get(CALENDAR)
    return None if text is None else TradingCalendar.from_json(text)


def has_timestamps(series: TimeSeries) -> bool:
    """Whether the bars' times are known: from a DatetimeIndex or from a trading calendar."""
    return series.has_datetime_index or calendar_of(series) is not None


def timestamps(series: TimeSeries) -> pd.DatetimeIndex | None:
    """Timestamps of a series' bars, with their time zone; None if they are not known.

    Parameters
    ----------
    series
        Any series of T bars, a forecast too.
    """
    if series.has_datetime_index:
        zone = (series.metadata or {}).get(ZONE)
        times = series.time_index
        # Of months in a zone where clocks change, a time may be skipped, or come twice.
        first = np.ones(len(times), dtype=bool)
        return times if zone is None else times.tz_localize(zone, first, "shift_forward")
    calendar = calendar_of(series)
    return None if calendar is None else calendar.times(series.time_index)


def warn_past_calendar(series: TimeSeries, *, forecast: bool = False) -> None:
    """Warn if bars lie past the calendar, where their timestamps are guesses.

    Parameters
    ----------
    series
        Any series.
    forecast
        Whether the series may be a forecast, which lies past the calendar by nature: then only
        one that begins within it is warned of.
    """
    calendar = calendar_of(series)
    if calendar is None or series.has_datetime_index:
        return
    past = int(series.end_time()) + 1 - calendar.n_fixed
    if past > 0 and not (forecast and int(series.start_time()) >= calendar.n_known):
        warnings.warn(
            f"The last {min(past, len(series))} bars of the series lie past its trading calendar, "
            "which says only when they were to be expected. Darts' append and concatenate keep "
            "the first calendar alone: add bars with candles.append or candles.concat.",
            UserWarning,
            stacklevel=3,
        )


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
        Any series. A trading calendar tells when the bars to come are made, or the frequency of a
        DatetimeIndex: any pandas frequency, custom business days and exchange calendars' included.
    ahead
        Number of bars to come.

    Returns
    -------
    TimeSeries or None
        Five components, on the index of `series` and `ahead` bars past it; None if the series
        has no timestamps.
    """
    if not has_timestamps(series):
        return None
    index = generate_index(
        start=series.start_time(),
        length=len(series) + ahead,
        freq=series.freq,
        name=series.time_dim,
    )
    calendar = calendar_of(series)
    if series.has_datetime_index or calendar is None:
        times = index
    else:
        warn_past_calendar(series)
        times = calendar.times(index)
    return TimeSeries(
        times=index,
        values=stamps(times).astype(series.dtype),
        components=pd.Index(STAMP_FIELDS),
        copy=False,
    )
