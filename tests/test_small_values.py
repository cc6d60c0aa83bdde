"""Series of small numbers under "window", whose least deviation is that of the released models."""

import warnings

import pytest
from factories import candles, tiny_model


def test_what_window_cannot_tell_from_constants_is_warned_of():
    small = candles(80)["close"] * 1e-6
    with pytest.warns(
        UserWarning, match=r"Series 0: within 24 bars close vary by about 2e-06.*by 1,000,000"
    ):
        tiny_model().fit(small)


@pytest.mark.parametrize("factor", [1e-3, 0.0])
def test_others_and_constants_are_not(factor):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tiny_model().fit(candles(80)["close"] * factor + 1)
    assert not [one for one in caught if "vary by" in str(one.message)]


def test_returns_have_no_such_bound():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tiny_model().fit(candles(80) * 1e-6)
    assert not [one for one in caught if "vary by" in str(one.message)]
