import numpy as np
import pandas as pd
import pytest
from factories import COMPONENTS, candle_frame

from darts_kronos import candles


@pytest.fixture
def frame():
    return candle_frame(40)


def test_columns_are_found_in_any_order_and_case(frame):
    shuffled = frame[COMPONENTS[::-1]].rename(columns=str.upper)
    series = candles.from_dataframe(shuffled)
    assert list(series.components) == COMPONENTS
    np.testing.assert_array_equal(series.values(), frame.to_numpy())


@pytest.mark.parametrize("name", ["timestamps", "Timestamp", "datetime", "DATE", "time"])
def test_timestamps_are_found_by_name(frame, name):
    series = candles.from_dataframe(frame.rename_axis(name).reset_index())
    assert list(series.time_index) == list(frame.index)


def test_regular_bars_keep_their_timestamps_and_others_are_numbered(frame):
    assert candles.from_dataframe(frame).freq_str == "h"
    gappy = frame.drop(frame.index[[7, 8, 9]])
    series = candles.from_dataframe(gappy)
    assert isinstance(series.time_index, pd.RangeIndex)
    assert len(series) == 37


def test_missing_volume_and_amount_are_filled(frame):
    without = candles.from_dataframe(frame[["open", "high", "low", "close"]])
    assert (without[["volume", "amount"]].values() == 0).all()
    only_volume = candles.from_dataframe(frame.drop(columns="amount"))
    expected = frame["volume"] * frame[["open", "high", "low", "close"]].mean(axis=1)
    np.testing.assert_allclose(only_volume["amount"].values()[:, 0], expected)


def test_a_csv_file_comes_back_as_it_was_written(frame, tmp_path):
    path = tmp_path / "candles.csv"
    frame.rename_axis("timestamps").to_csv(path)
    back = candles.to_dataframe(candles.read_csv(path))
    pd.testing.assert_frame_equal(back, frame, check_names=False, check_freq=False)


def spoil(frame, column, value, row=5):
    bad = frame.astype(object)
    bad.iloc[row, COMPONENTS.index(column)] = value
    return bad


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("close", np.nan, r"missing or infinite: row 5 \(2024-01-30 15:00:00\)"),
        ("close", np.inf, "missing or infinite"),
        ("low", 0.0, "price that is not above 0: row 5"),
        ("volume", -1.0, "below 0: row 5"),
        ("high", 1.0, "is no candle"),
        ("low", 1e6, "is no candle"),
        ("open", "n/a", "Column 'open' is not numeric: row 5 holds 'n/a'"),
    ],
)
def test_bad_values_are_refused_with_their_row(frame, column, value, message):
    with pytest.raises(ValueError, match=message):
        candles.from_dataframe(spoil(frame, column, value))


def test_bad_frames_are_refused(frame):
    for bad, message in [
        (frame.drop(columns="close"), "lacks close"),
        (frame.iloc[:0], "no rows"),
        (frame.reset_index(drop=True), "no timestamps"),
        (frame.iloc[::-1], "earlier than the bar before it.*row 1"),
        (frame.iloc[[0, 1, 1, 2]], r"repeats a timestamp: row 2"),
        (frame.assign(Close=1.0), "one name"),
        (frame.assign(time="noon, or so"), "cannot be read"),
    ]:
        with pytest.raises(ValueError, match=message):
            candles.from_dataframe(bad)


def test_many_bad_rows_are_counted(frame):
    with pytest.raises(ValueError, match="row 0 .* and 35 more"):
        candles.from_dataframe(frame.assign(volume=-1.0))
