"""Frames of candles in the shapes that users have them in."""

import warnings

import pandas as pd
import pytest
from factories import COMPONENTS, candle_frame

from darts_kronos import candles


def two_symbols(first="A", second="B"):
    """Bars of two assets in turn, with the columns date and symbol."""
    parts = (
        candle_frame(20, seed).shift(30 * seed, freq="min").rename_axis("date").assign(symbol=name)
        for seed, name in enumerate((first, second))
    )
    return pd.concat(parts).sort_index().reset_index()


class TestLevelsOfTheIndex:
    @pytest.mark.parametrize(
        "shape",
        [
            lambda df: df.set_index("symbol"),
            lambda df: df.set_index(["date", "symbol"]),
            lambda df: df.set_index(["symbol", "date"]).rename_axis([" Symbol", "DATE"]),
            lambda df: df.set_index(["symbol", "date"]).rename_axis(["symbol", None]),
            lambda df: df.set_index(["symbol", df.index]),
            lambda df: df.set_index("symbol", drop=False),
        ],
    )
    def test_symbols_in_the_index_become_series(self, shape):
        expected = candles.from_dataframe(two_symbols())
        assert [one.metadata["symbol"] for one in expected] == ["A", "B"]
        assert candles.from_dataframe(shape(two_symbols())) == expected

    @pytest.mark.parametrize("names", [["date", None], ["date", "asset"], [None, None]])
    def test_levels_that_may_be_assets_are_refused(self, names):
        frame = two_symbols().set_index(["date", "symbol"]).rename_axis(names)
        with pytest.raises(ValueError, match="call that of the assets 'symbol'"):
            candles.from_dataframe(frame)

    def test_dates_and_times_in_the_index_are_joined(self):
        frame = candle_frame(20)
        texts = [frame.index.strftime("%Y-%m-%d"), frame.index.strftime("%H:%M")]
        series = candles.from_dataframe(frame.set_index(texts).rename_axis(["date", "time"]))
        assert list(candles.timestamps(series)) == list(candle_frame(20).index)

    @pytest.mark.parametrize("name", [None, "date", "when"])
    def test_a_datetime_index_of_any_name_is_that_of_the_bars(self, name):
        frame = candle_frame(20)
        series = candles.from_dataframe(frame.rename_axis(name))
        assert list(series.time_index) == list(frame.index)
        assert list(series.components) == COMPONENTS


class TestOtherNames:
    @pytest.mark.parametrize(("volume", "amount"), [("vol", "amt"), (" VOL", "amount")])
    def test_short_names_of_volume_and_amount_are_known(self, volume, amount):
        short = candle_frame(20).rename(columns={"volume": volume, "amount": amount})
        assert candles.from_dataframe(short) == candles.from_dataframe(candle_frame(20))

    def test_full_names_come_first(self):
        frame = candle_frame(20).assign(vol="none", amt="none")
        assert candles.from_dataframe(frame) == candles.from_dataframe(candle_frame(20))
        with pytest.raises(ValueError, match="'vol', 'VOL' have|'vol' and 'VOL' have one name"):
            candles.from_dataframe(frame.drop(columns="volume").assign(VOL=1.0))

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (
                {"volume": "Volume USDT", "amount": "Trades"},
                "no column 'volume': volume and amount are 0, and 'Volume USDT' ignored",
            ),
            ({"volume": "Turnover"}, "and 'Turnover', 'amount' ignored"),
            ({"amount": "turnover"}, "no column 'amount': amount is volume .* 'turnover' ignored"),
        ],
    )
    def test_what_may_be_the_volume_is_not_ignored_silently(self, names, message):
        with pytest.warns(UserWarning, match=message) as caught:
            candles.from_dataframe(candle_frame(20).rename(columns=names))
        assert len(caught) == 1 and caught[0].filename == __file__

    def test_other_columns_are(self):
        frame = candle_frame(20).drop(columns=["volume", "amount"])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            candles.from_dataframe(frame.assign(volatility=1.0, trades=7))


class TestWarningsNameTheSymbol:
    def frame(self, column, value):
        frame = two_symbols()
        frame.loc[frame.index[frame["symbol"] == "B"][5], column] = value
        return frame

    @pytest.mark.parametrize(
        ("on_invalid", "column", "value", "message"),
        [
            ("repair", "high", 1.0, "Repaired: a bar is no candle"),
            ("drop", "close", 0.0, "Dropped: a bar holds a price that is not above 0"),
            ("drop", "close", float("inf"), "Dropped: a bar holds a price that is missing or inf"),
        ],
    )
    def test_of_bars_that_are_wrong_once(self, on_invalid, column, value, message):
        message = f"Symbol 'B', rows counted within it: {message}.*: row 5 "
        with pytest.warns(UserWarning, match=message) as caught:
            candles.from_dataframe(self.frame(column, value), on_invalid=on_invalid)
        assert len(caught) == 1 and caught[0].filename == __file__

    def test_of_splits(self):
        frame = two_symbols()
        frame.loc[(frame.index >= 20) & (frame["symbol"] == "B"), COMPONENTS[:4]] /= 2
        with pytest.warns(UserWarning, match="Symbol 'B': The price changes"):
            series = candles.from_dataframe(frame)
        new = candle_frame(30)[20:] * 5
        with pytest.warns(UserWarning, match="Symbol 'A': The price changes"):
            candles.append(series[0], new)
