"""Date and time in one number, and numbers that only look like it."""

import pandas as pd
import pytest
from factories import candle_frame

from darts_kronos import candles


def test_a_number_that_is_no_time_among_such_is_no_epoch():
    frame = candle_frame(3).reset_index(drop=True)
    with pytest.raises(ValueError, match="201911269940 is no date and time"):
        candles.from_dataframe(frame.assign(time=[201911260935, 201911269940, 201911271305]))


def test_milliseconds_of_1976_are_no_dates():
    frame = candle_frame(3).reset_index(drop=True)
    times = pd.DatetimeIndex(["1976-05-03 09:35", "1976-05-03 09:40", "1976-05-04 13:05"])
    series = candles.from_dataframe(frame.assign(time=times.as_unit("ms").asi8))
    assert list(candles.timestamps(series)) == list(times.tz_localize("UTC"))
