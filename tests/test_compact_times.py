"""Date and time in one number, and numbers that only look like it."""

import pandas as pd
import pytest
from factories import candle_frame

from darts_kronos import candles


def test_a_number_that_is_no_time_among_such_is_no_epoch():
    frame = candle_frame(3).reset_index(drop=True)
    with pytest.raises(ValueError, match="201911269940 is no date and time"):
        candles.from_dataframe(frame.assign(time=[201911260935, 201911269940, 201911271305]))


def test_times_of_day_that_may_be_hours_need_a_format():
    frame = candle_frame(4).reset_index(drop=True).assign(date="2019-01-01", time=[9, 10, 11, 12])
    with pytest.raises(ValueError, match="times such as 12 may be hours or minutes"):
        candles.from_dataframe(frame)
    series = candles.from_dataframe(frame, time_format="%Y-%m-%d %H")
    assert list(candles.timestamps(series).hour) == [9, 10, 11, 12]


def test_milliseconds_of_1976_are_no_dates():
    frame = candle_frame(3).reset_index(drop=True)
    times = pd.DatetimeIndex(["1976-05-03 09:35", "1976-05-03 09:40", "1976-05-04 13:05"])
    series = candles.from_dataframe(frame.assign(time=times.as_unit("ms").asi8))
    assert list(candles.timestamps(series)) == list(times.tz_localize("UTC"))


@pytest.mark.parametrize(
    ("form", "time_format"), [("%H%M", "%Y%m%d %H%M"), ("%H%M%S", "%Y%m%d %H%M%S")]
)
@pytest.mark.parametrize("given", [False, True])
def test_times_of_day_that_are_numbers_have_lost_their_zeros(form, time_format, given):
    times = pd.date_range("2024-01-03", periods=60, freq="90min")
    frame = candle_frame(60).assign(
        date=times.strftime("%Y%m%d").astype(int), time=times.strftime(form).astype(int)
    )
    assert frame["time"].iloc[0] == 0 and frame["time"].iloc[1] in (130, 13000)
    series = candles.from_dataframe(
        frame.reset_index(drop=True), time_format=time_format if given else None
    )
    assert (candles.timestamps(series) == times).all()
