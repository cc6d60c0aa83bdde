import math

import numpy as np
import pandas as pd
import pytest
from darts import TimeSeries

from darts_kronos.metrics import rank_ic


def closes(values, start=10):
    values = np.asarray(values, dtype=float)
    index = pd.RangeIndex(start, start + len(values))
    return TimeSeries.from_times_and_values(
        index, values.reshape(len(values), 1, -1), columns=["close"]
    )


ACTUAL = [closes([1, 110]), closes([1, 95]), closes([1, 102])]


def test_a_forecast_that_ranks_assets_right_scores_one():
    forecasts = [closes([1, 101]), closes([1, 99]), closes([1, 100])]
    assert rank_ic(ACTUAL, forecasts, [100, 100, 100]) == pytest.approx(1.0)
    # Ranks 3, 1, 2 came, 2, 1, 3 were promised: 1 - 6 * 2 / (3 * 8).
    assert rank_ic(ACTUAL, forecasts[::-1], [100, 100, 100]) == pytest.approx(0.5)


def test_samples_are_averaged_and_returns_are_over_the_last_close():
    forecasts = [closes([[1, 1], [10, 12]]), closes([[1, 1], [4, 4]]), closes([[1, 1], [0, 200]])]
    # Ranks 2, 3, 1 came, 3, 1, 2 were promised: 1 - 6 * 6 / (3 * 8).
    assert rank_ic(ACTUAL, forecasts, [10, 5, 99.9]) == pytest.approx(-0.5)


def test_equal_returns_have_no_rank():
    assert math.isnan(rank_ic(ACTUAL, [closes([1, 100])] * 3, [100, 100, 100]))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="one length, got 3, 3 and 2"):
        rank_ic(ACTUAL, ACTUAL, [1, 1])
    with pytest.raises(ValueError, match="at least 2 series"):
        rank_ic(ACTUAL[:1], ACTUAL[:1], [1])
    with pytest.raises(ValueError, match="does not cover"):
        rank_ic(ACTUAL, [closes([1, 1, 1])] * 3, [1, 1, 1])


def test_names_of_a_candle_are_found_in_any_case():
    upper = [one.with_columns_renamed("close", "CLOSE") for one in ACTUAL]
    forecasts = [closes([1, 101]), closes([1, 99]), closes([1, 100])]
    assert rank_ic(upper, forecasts, [100, 100, 100]) == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"no component 'rate', only \['CLOSE'\]"):
        rank_ic(upper, forecasts, [100, 100, 100], component="rate")
