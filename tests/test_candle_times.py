"""Timestamps that may be read in two ways, or in none."""

import pandas as pd
import pytest
from factories import candle_frame

from darts_kronos import candles

DAY_FIRST = [
    "%d/%m/%Y %H:%M",
    "%H:%M %d/%m/%Y",
    "%H:%M:%S, %d.%m.%Y",
    "%d %m %Y %H:%M",
    "%d-%m-%Y %I:%M %p",
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
