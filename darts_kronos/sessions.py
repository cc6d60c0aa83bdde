"""When bars to come are made: an exchange's sessions, or the pattern that past bars show.

All times here are DatetimeIndexes: with a time zone if the data has one, else wall-clock times.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import tzinfo
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from exchange_calendars import ExchangeCalendar

DAY = pd.Timedelta(days=1)

RECENT = pd.Timedelta(days=42)
"""Past that tells how the future goes: long enough to outvote holidays, short enough to follow a
market that moves its hours."""

FEWEST_RECENT_BARS = 60
"""Bars that are looked at in any case, for bars longer than a day."""

LEAST_ON_GRID = 0.9
"""Share of recent bars that a rule must explain to be used."""

_STEPS_TRIED = 3

_SHORTEST = pd.Timedelta(seconds=1)

_LEAST_DAILY = 0.5
"""Share of sessions that daily bars must have, so as not to be weekly ones."""

_MOST_DAILY = 1.5
"""Bars of a date that has any, on average, below which there is one bar in a session."""

_LEAST_F1 = 0.1
"""Agreement of bars with steps within sessions, below which the steps are far finer than they."""

_MOST_MISSING = 0.02
"""Share of bars that may be missing of a market that never closes."""

Zone = tzinfo | str

Slots = Callable[[pd.DataFrame], pd.DatetimeIndex]
"""Of the sessions of an exchange's schedule, the times (UTC) of their bars, ascending."""


def recent(times: pd.DatetimeIndex) -> pd.DatetimeIndex:
    """The last of `times`, from which rules are inferred."""
    start = int(times.searchsorted(times[-1] - RECENT))
    return times[min(start, max(0, len(times) - FEWEST_RECENT_BARS)) :]


def bar_step(times: pd.DatetimeIndex) -> pd.Timedelta:
    """The most frequent distance of neighbouring bars; of equally frequent ones the least."""
    distances, counts = np.unique(np.diff(times.as_unit("ns").asi8), return_counts=True)
    return pd.Timedelta(int(distances[np.argmax(counts)]), unit="ns")


# --- an exchange's calendar --------------------------------------------------------------------


@lru_cache(maxsize=32)
def _exchange(name: str, first_year: int, last_year: int) -> ExchangeCalendar:
    try:
        import exchange_calendars
    except ImportError as error:
        raise ImportError(
            "An exchange calendar needs the package exchange_calendars: "
            "pip install 'darts-kronos[calendars]'."
        ) from error
    try:
        usual = exchange_calendars.get_calendar(name)
        # Some calendars know their holidays only up to a year.
        start, end = pd.Timestamp(f"{first_year}-01-01"), pd.Timestamp(f"{last_year}-12-31")
        least, most = usual.bound_min(), usual.bound_max()
        start = start if least is None else max(start, least)
        end = end if most is None else min(end, most)
        return exchange_calendars.get_calendar(name, start=start, end=end)
    except exchange_calendars.errors.InvalidCalendarName as error:
        names = ", ".join(sorted(exchange_calendars.get_calendar_names(include_aliases=False)))
        raise ValueError(f"There is no exchange calendar {name!r}; there are {names}.") from error
    except ValueError as error:
        raise ValueError(
            f"The calendar {name} does not know the years of the bars: {error}"
        ) from error


def _schedule(name: str, start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    """Sessions from the date of `start` to that of `end`: open, break_start, break_end, close.

    Those that the calendar does not know of are left out.
    """
    start, end = (pd.Timestamp(day.date()) for day in (start, end))
    calendar = _exchange(name, start.year, end.year)
    return calendar.schedule.loc[start:end]


class _Fit(NamedTuple):
    """Slots of bars whose times are of a zone, and how well equal steps explain them.

    A bar belongs to a slot that is not farther than `reach`.
    """

    slots: Slots | None
    zone: Zone
    even_score: float
    reach: pd.Timedelta


class ExchangeRule:
    """The bars of an exchange's sessions: its days, hours, breaks and half days.

    Where in a session the bars are made is what past bars say: at the start or at the end of
    equal steps from the opening and from the end of a break, or at the times of day that recent
    sessions had. Times without a zone are taken for the exchange's own, or for UTC, whichever
    fits.

    Parameters
    ----------
    name
        A name of ``exchange_calendars``, such as XNYS or XHKG.
    known
        Past bars, in ascending order.

    Raises
    ------
    ValueError
        If there is no such calendar, or the bars do not lie on its sessions.
    """

    def __init__(self, name: str, known: pd.DatetimeIndex):
        self.name = name
        self.zone = known.tz
        tail = recent(known)
        first, last = tail[0], tail[-1]
        self.exchange_zone: Zone = _exchange(name, first.year, last.year).tz
        # Sessions may begin on the day before their date, and zones differ by a day at most.
        sessions = _schedule(name, first - DAY, last + DAY)
        zones = [self.zone] if self.zone is not None else [self.exchange_zone, "UTC"]
        fits = [self._fit(tail, zone, sessions) for zone in zones]
        best = max(fits, key=lambda fit: (fit.even_score, fit.slots is not None))
        if best.slots is None:
            step = bar_step(tail) if len(tail) > 1 else DAY
            if step > DAY:
                raise ValueError(
                    f"The bars are {step} apart: an exchange calendar is for daily and shorter "
                    "bars. Leave `calendar` out; such bars follow the pattern that they show."
                )
            raise ValueError(
                f"The bars do not lie on the sessions of {name}: the last are "
                f"{', '.join(map(str, tail[-3:]))}, its last sessions "
                f"{_sessions_in_words(sessions, self.exchange_zone)}."
            )
        self.slots, self.bars_zone, self.reach = best.slots, best.zone, best.reach

    def _fit(self, tail: pd.DatetimeIndex, zone: Zone, sessions: pd.DataFrame) -> _Fit:
        """The slots that explain the bars best, if their times are of `zone`."""
        bars = self._in_utc(tail, zone)
        local = bars.tz_convert(self.exchange_zone).tz_localize(None)
        # Days are no multiple of a step within them, where clocks or closes change.
        is_daily = len(bars) < _MOST_DAILY * local.normalize().nunique() or not len(sessions)
        steps = [] if is_daily else _possible_steps(bars, sessions)
        even = [_even_slots(step, at_end) for step in steps for at_end in (False, True)]
        # Midnight marks a date, in the bars' own zone; other times of day are the exchange's.
        dates = (_time_of_day(bars.tz_convert(zone)) == pd.Timedelta(0)).all()
        zones = (zone, self.exchange_zone) if dates else (self.exchange_zone, zone)
        daily = [_daily_slots(bars, one) for one in zones]
        if len(sessions):
            daily += [_bound_slots(bars, sessions, bound) for bound in ("close", "open")]
        seen = [_seen_slots(bars, sessions, self.exchange_zone)] if steps else []
        best: Slots | None = None
        score = even_score = 0.0
        for slots in daily + even + seen:
            grid = slots(sessions)
            grid = grid[(grid >= bars[0]) & (grid <= bars[-1])]
            common = len(bars.intersection(grid))
            if common < LEAST_ON_GRID * len(bars):
                continue
            if slots in daily and common < _LEAST_DAILY * len(grid):
                continue
            f1 = 2 * common / (len(bars) + len(grid))
            if slots not in daily and f1 < _LEAST_F1:
                continue
            if f1 > score + 1e-9:
                best, score = slots, f1
                even_score = even_score if slots in seen else f1
        if best is None and is_daily:
            best = _nearest(daily, bars, sessions)
        return _Fit(best, zone, even_score, DAY / 2 if best in daily else pd.Timedelta(0))

    def off_grid(self, times: pd.DatetimeIndex) -> np.ndarray:
        """Which of `times` are at no bar of a session; booleans of shape (T,)."""
        bars = self._in_utc(times, self.bars_zone)
        grid = self.slots(_schedule(self.name, times[0] - DAY, times[-1] + DAY))
        if not self.reach:
            return np.asarray(~bars.isin(grid))
        return _nearest_slot(bars, grid, self.reach) < 0

    def following(self, last: pd.Timestamp, count: int) -> pd.DatetimeIndex:
        """The next `count` bars after `last`; fewer if the calendar knows no more."""
        after = self._in_utc(pd.DatetimeIndex([last]), self.bars_zone)[0]
        start, reach, n_sessions = last - DAY, 14 * DAY, -1
        while True:
            sessions = _schedule(self.name, start, last + reach)
            grid = self.slots(sessions)
            # A daily bar that was timed early has had its session.
            coming = grid[grid > after + self.reach]
            if len(coming) >= count or len(sessions) == n_sessions:
                break
            n_sessions = len(sessions)
            # Twice as far, and by what the bars found so far say.
            reach *= max(2, min(100, count // max(1, len(coming))))
        coming = coming[:count].tz_convert(self.bars_zone)
        return coming.tz_localize(None) if self.zone is None else coming

    @staticmethod
    def _in_utc(times: pd.DatetimeIndex, zone: Zone) -> pd.DatetimeIndex:
        return (times if times.tz is not None else _localize(times, zone)).tz_convert("UTC")


def _daily_slots(bars: pd.DatetimeIndex, zone: Zone) -> Slots:
    """One bar a session, at one time of day in `zone`, dated as the session."""
    time_of_day = _usual(_time_of_day(bars.tz_convert(zone)))

    def slots(sessions: pd.DataFrame) -> pd.DatetimeIndex:
        return _localize(pd.DatetimeIndex(sessions.index + time_of_day), zone).tz_convert("UTC")

    return slots


def _bound_slots(bars: pd.DatetimeIndex, sessions: pd.DataFrame, bound: str) -> Slots:
    """One bar a session, at one distance from its open or close, which need not be at one time."""
    bounds = pd.DatetimeIndex(sessions[bound])
    distance = _usual(bars - bounds[bounds.get_indexer(bars, method="nearest")])

    def slots(sessions: pd.DataFrame) -> pd.DatetimeIndex:
        return pd.DatetimeIndex(sessions[bound]) + distance

    return slots


def _usual(distances: pd.TimedeltaIndex) -> pd.Timedelta:
    """The median; if most are equal, what they are."""
    values = np.sort(distances.as_unit("ns").asi8)
    return pd.Timedelta(int(values[(len(values) - 1) // 2]), unit="ns")


def _nearest(daily: list[Slots], bars: pd.DatetimeIndex, sessions: pd.DataFrame) -> Slots | None:
    """Of one bar a session, the slots that bars of varying times are nearest to.

    None if the bars are not of sessions of their own, or of too few for daily bars.
    """
    best, least = None, np.inf
    for slots in daily:
        grid = slots(sessions)
        at = _nearest_slot(bars, grid, DAY / 2)
        own = np.unique(at[at >= 0])
        if len(own) < LEAST_ON_GRID * len(bars) or len(own) < _LEAST_DAILY * (own[-1] - own[0] + 1):
            continue
        distances = (bars[at >= 0] - grid[at[at >= 0]]).as_unit("ns").asi8
        distance = np.abs(distances).mean()
        if distance < least:
            best, least = slots, distance
    return best


def _nearest_slot(
    bars: pd.DatetimeIndex, grid: pd.DatetimeIndex, reach: pd.Timedelta
) -> np.ndarray:
    """The slot of each bar, by position, not farther than `reach`; -1 where there is none."""
    return np.asarray(grid.get_indexer(bars, method="nearest", tolerance=reach))


def _possible_steps(bars: pd.DatetimeIndex, sessions: pd.DataFrame) -> list[pd.Timedelta]:
    """What may be the distance of bars within a session.

    Frequent distances of neighbours and their divisor, and frequent distances from the opening:
    of long bars the last of a session is a short one, and no neighbours are a whole step apart.
    """
    times, opens = bars.as_unit("ns").asi8, _nanoseconds(sessions["open"])
    at = np.searchsorted(opens, times) - 1
    divisor = int(np.gcd.reduce(np.diff(times)))
    tried = [*_frequent(np.diff(times)), divisor, *_frequent((times - opens[at])[at >= 0])]
    steps = [pd.Timedelta(step, unit="ns") for step in dict.fromkeys(tried)]
    return [step for step in steps if _SHORTEST <= step < DAY]


def _frequent(distances: np.ndarray) -> list[int]:
    """The most frequent distances; of equally frequent ones the least first."""
    found, counts = np.unique(distances, return_counts=True)
    return [int(one) for one in found[np.argsort(-counts, kind="stable")][:_STEPS_TRIED]]


def _even_slots(step: pd.Timedelta, at_end: bool) -> Slots:
    """Equal steps from the start of each part of a session; a bar is timed at its start or end."""
    length = step.as_unit("ns").value

    def slots(sessions: pd.DataFrame) -> pd.DatetimeIndex:
        bounds = {name: _nanoseconds(sessions[name]) for name in sessions}
        split = sessions["break_start"].notna().to_numpy()
        starts = np.concatenate((bounds["open"], bounds["break_end"][split]))
        ends = np.concatenate(
            (np.where(split, bounds["break_start"], bounds["close"]), bounds["close"][split])
        )
        counts = -(-(ends - starts) // length)
        part = np.repeat(np.arange(len(starts)), counts)
        number = np.arange(len(part)) - np.repeat(np.cumsum(counts) - counts, counts)
        times = starts[part] + number * length
        if at_end:
            times = np.minimum(times + length, ends[part])
        return _utc(np.sort(times))

    return slots


def _seen_slots(bars: pd.DatetimeIndex, sessions: pd.DataFrame, zone: Zone) -> Slots:
    """The times of day that at least half of the whole sessions had; half days end early."""
    local = bars.tz_convert(zone).tz_localize(None)
    days = local.normalize()
    whole = np.asarray((days != days[0]) & (days != days[-1]))
    if not whole.any():
        whole[:] = True
    counts = (local[whole] - days[whole]).value_counts()
    seen = counts.index[counts >= 0.5 * days[whole].nunique()].sort_values()
    closes = sessions["close"].dt.tz_convert(zone).dt.tz_localize(None)
    usual_close = (closes - closes.dt.normalize()).mode().iloc[0]
    extended, at_end = bool((seen > usual_close).any()), bool((seen == usual_close).any())

    def slots(sessions: pd.DataFrame) -> pd.DatetimeIndex:
        wall = np.add.outer(sessions.index.to_numpy(), seen.to_numpy()).ravel()
        first = np.ones(len(wall), dtype=bool)
        times = pd.DatetimeIndex(wall).tz_localize(zone, first, "shift_forward").tz_convert("UTC")
        if extended:
            return times
        closes = pd.DatetimeIndex(np.repeat(sessions["close"], len(seen)))
        return times[times <= closes] if at_end else times[times < closes]

    return slots


def _nanoseconds(times: pd.Series) -> np.ndarray:
    return pd.DatetimeIndex(times).as_unit("ns").asi8


def _utc(nanoseconds: np.ndarray) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(pd.to_datetime(nanoseconds, unit="ns", utc=True))


def _sessions_in_words(sessions: pd.DataFrame, zone: Zone) -> str:
    words = []
    for _, session in sessions.tail(2).iterrows():
        start, end = (session[name].tz_convert(zone) for name in ("open", "close"))
        words.append(f"{start:%Y-%m-%d %H:%M} to {end:%H:%M}")
    return f"{' and '.join(words)} ({zone})"


# --- the pattern of past bars ------------------------------------------------------------------


class PatternRule:
    """The session pattern that past bars show, weekday by weekday.

    A weekday trades if at least half of its recent dates had bars, at those times of day that at
    least half of these dates had. So nights, lunch breaks and early Fridays are kept, and
    holidays and half days are outvoted. Weekdays that the data does not reach are as the nearest
    one from Monday to Friday, and weekends that it does not reach are closed. Bars around the
    clock, and bars that no such pattern explains, follow at equal steps.

    Parameters
    ----------
    known
        Past bars, in ascending order.
    """

    def __init__(self, known: pd.DatetimeIndex):
        tail = recent(known)
        self.step = bar_step(tail) if len(tail) > 1 else DAY
        self.slots = _weekday_slots(tail)
        at = pd.MultiIndex.from_arrays([tail.weekday, _time_of_day(tail)])
        pattern = pd.MultiIndex.from_tuples(
            [(day, time) for day, times in enumerate(self.slots) for time in times]
            or [(-1, pd.Timedelta(0))]
        )
        on_pattern = at.isin(pattern).mean()
        span = tail[-1] - tail[0]
        complete = self.step < DAY <= span and len(tail) >= (1 - _MOST_MISSING) * (
            span // self.step + 1
        )
        every_day = all(len(times) * self.step >= DAY for times in self.slots)
        around_the_clock = complete or (self.step < DAY and every_day)
        self.even = around_the_clock or bool(on_pattern < LEAST_ON_GRID)
        if self.even and not around_the_clock and len(tail) > 1:
            distances = np.diff(tail.as_unit("ns").asi8)
            self.step = pd.Timedelta(int(np.median(distances)), unit="ns")

    def following(self, last: pd.Timestamp, count: int) -> pd.DatetimeIndex:
        """The next `count` bars after `last`."""
        if self.even:
            return last + self.step * pd.RangeIndex(1, count + 1)
        day, parts, found = last.tz_localize(None).normalize(), [], 0
        while found < count:
            times = pd.DatetimeIndex(day + self.slots[day.weekday()])
            if last.tz is not None:
                times = _localize(times, last.tz)
            times = times[times > last]
            parts.append(times)
            found += len(times)
            day += DAY
        return pd.DatetimeIndex(parts[0].append(parts[1:])[:count])


def _weekday_slots(tail: pd.DatetimeIndex) -> list[pd.TimedeltaIndex]:
    """Times of day of the bars of each weekday, Monday first."""
    times = _time_of_day(tail)
    days = tail.tz_localize(None).normalize()
    dates = days.unique()
    if len(dates) <= 2:
        # No date is surely whole: whatever was seen, on every weekday that may trade.
        every = pd.TimedeltaIndex(times.unique()).sort_values()
        return [every if day < 5 or day in dates.weekday else every[:0] for day in range(7)]
    # The first and the last date may have only a part of their bars.
    whole = dates[1:-1]
    span = pd.date_range(whole[0], whole[-1])
    slots: list[pd.TimedeltaIndex | None] = []
    for weekday in range(7):
        mine = whole[whole.weekday == weekday]
        occurred = int((span.weekday == weekday).sum())
        if occurred == 0:
            slots.append(None)
            continue
        counts = times[days.isin(mine)].value_counts()
        usual = pd.TimedeltaIndex(counts.index[counts >= 0.5 * len(mine)]).sort_values()
        slots.append(usual if len(mine) >= 0.5 * occurred else usual[:0])
    seen = [weekday for weekday in range(5) if slots[weekday] is not None]
    filled = []
    for weekday, own in enumerate(slots):
        if own is None and weekday < 5 and seen:
            own = slots[min(seen, key=lambda other: abs(other - weekday))]
        filled.append(pd.TimedeltaIndex([]) if own is None else own)
    return filled


def _time_of_day(times: pd.DatetimeIndex) -> pd.TimedeltaIndex:
    wall = times.tz_localize(None)
    return wall - wall.normalize()


def _localize(times: pd.DatetimeIndex, zone: Zone) -> pd.DatetimeIndex:
    """Wall-clock times in `zone`; a time that the clock skips is left out, of two the first."""
    first = np.ones(len(times), dtype=bool)
    known = times.tz_localize(zone, nonexistent="NaT", ambiguous=first)
    return known[known.notna()]
