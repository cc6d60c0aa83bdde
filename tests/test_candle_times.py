"""Timestamps that may be read in two ways, or in none."""

import warnings

import numpy as np
import pandas as pd
import pytest
from factories import candle_frame

from darts_kronos import candles
from darts_kronos.trading_calendar import calendar_of

DAY_FIRST = [
    "%d/%m/%Y %H:%M",
    "%H:%M %d/%m/%Y",
    "%H:%M:%S, %d.%m.%Y",
    "%d %m %Y %H:%M",
    "%d-%m-%YT%H:%M",
]


def written(times, form):
    """A frame of bars at these times, which are text."""
    return candle_frame(len(times)).reset_index(drop=True).assign(time=times.strftime(form))


@pytest.mark.parametrize("form", DAY_FIRST)
class TestDaysFirst:
    def test_dates_that_may_begin_with_either_are_refused(self, form):
        for bars in (1, 12):
            frame = written(pd.date_range("2024-03-01", periods=12)[-bars - 1 : -1], form)
            with pytest.raises(ValueError, match="may begin with the day or the month"):
                candles.from_dataframe(frame)

    def test_a_later_day_tells_it(self, form):
        for times in (
            pd.date_range("2024-02-01", periods=800, freq="h"),
            pd.date_range("2024-03-20", periods=48, freq="h"),
        ):
            for one in (form, form.replace("%d", "%x").replace("%m", "%d").replace("%x", "%m")):
                series = candles.from_dataframe(written(times, one))
                assert list(candles.timestamps(series)) == list(times)


@pytest.mark.parametrize(
    "form", ["%H:%M %Y-%m-%d", "%a %Y-%m-%d %H:%M", "%Y%m%d %H:%M", "%d-%b-%Y"]
)
def test_dates_that_begin_with_the_year_or_name_the_month_are_read_as_they_stand(form):
    times = pd.date_range("2024-03-01", periods=9)
    series = candles.from_dataframe(written(times, form))
    assert list(candles.timestamps(series)) == list(times)


def test_weekdays_tell_days_from_months():
    times = pd.date_range("2024-03-01", periods=9)
    series = candles.from_dataframe(written(times, "%a %d/%m/%Y"))
    assert list(candles.timestamps(series)) == list(times)


def test_days_first_with_offsets_that_differ():
    times = pd.date_range("2024-03-30", periods=4, tz="Europe/Paris")
    frame = candle_frame(4).reset_index(drop=True)
    with pytest.warns(UserWarning, match="kept as UTC"):
        series = candles.from_dataframe(frame.assign(time=times.strftime("%d/%m/%Y %H:%M%z")))
    assert list(candles.timestamps(series)) == list(times)


def test_offsets_that_differ_are_no_matter_where_a_zone_is_given():
    times = pd.date_range("2024-03-08 09:30", periods=6, freq="B", tz="America/New_York")
    frame = candle_frame(4).reset_index(drop=True).assign(time=times[:4].map(str))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        series = candles.from_dataframe(
            frame, timezone="America/New_York", future_timestamps=[str(time) for time in times[4:]]
        )
    assert list(candles.timestamps(series)) == list(times[:4])


NEW_YORK = "America/New_York"


class TestChangesOfClocks:
    AUTUMN = pd.date_range("2024-11-02", "2024-11-04", freq="30min", tz=NEW_YORK)

    def wall(self, times=AUTUMN, seed=0):
        return candle_frame(len(times), seed).set_index(times.tz_localize(None))

    def test_the_order_of_bars_tells_which_hour_is_meant(self):
        series = candles.from_dataframe(self.wall(), timezone=NEW_YORK)
        assert list(candles.timestamps(series)) == list(self.AUTUMN)
        planned = candles.from_dataframe(
            self.wall()[:40],
            timezone=NEW_YORK,
            future_timestamps=self.AUTUMN[40:].tz_localize(None),
        )
        assert list(calendar_of(planned).planned) == list(self.AUTUMN[40:])

    def test_each_asset_has_an_order_of_its_own(self):
        parts = pd.concat([self.wall(seed=seed).assign(symbol=seed) for seed in range(2)])
        in_turn = parts.iloc[np.arange(len(parts)).reshape(2, -1).T.ravel()]
        for mixed in (parts, in_turn):
            for one in candles.from_dataframe(mixed, timezone=NEW_YORK):
                assert list(candles.timestamps(one)) == list(self.AUTUMN)

    @pytest.mark.parametrize("case", ["once", "reversed", "two assets, once"])
    def test_what_the_order_does_not_tell_is_refused(self, case):
        once = self.AUTUMN[~self.AUTUMN.tz_localize(None).duplicated()]
        frame = {
            "once": self.wall(once),
            "reversed": self.wall(self.AUTUMN[::2])[::-1],
            "two assets, once": pd.concat(
                [self.wall(once).assign(symbol=name) for name in "AB"]
            ).sort_index(),
        }[case]
        message = "does not fit: its clocks have twice, .* 2024-11-03 01:.*Give timestamps in UTC"
        with pytest.raises(ValueError, match=message):
            candles.from_dataframe(frame, timezone=NEW_YORK, sort=True)
        with pytest.raises(ValueError, match=f"`future_timestamps`: .*{message}"):
            candles.from_dataframe(
                self.wall()[:40], timezone=NEW_YORK, future_timestamps=once[40:].tz_localize(None)
            )

    def test_an_hour_that_clocks_skip_is_refused(self):
        frame = candle_frame(100).set_index(pd.date_range("2024-03-09", periods=100, freq="30min"))
        message = (
            r"'America/New_York'` does not fit: its clocks skip 2024-03-10 02:00:00 \(row 52\)"
        )
        with pytest.raises(ValueError, match=message):
            candles.from_dataframe(frame, timezone=NEW_YORK)

    def test_an_unknown_zone_is_refused(self):
        with pytest.raises(ValueError, match="`timezone='Mars'` does not fit"):
            candles.from_dataframe(candle_frame(9), timezone="Mars")
