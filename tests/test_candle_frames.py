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


class TestFilesOfOtherKinds:
    @pytest.fixture
    def text(self):
        return two_symbols("00700", "NA").to_csv(index=False)

    @pytest.fixture
    def expected(self):
        return candles.from_dataframe(two_symbols("00700", "NA"))

    @pytest.mark.parametrize("separator", [";", "\t"])
    def test_semicolons_and_tabs_separate_columns(self, tmp_path, text, expected, separator):
        (tmp_path / "one.csv").write_text(text.replace(",", separator))
        assert candles.read_csv(tmp_path / "one.csv") == expected

    def test_commas_in_numbers_are_refused(self, tmp_path):
        candle_frame(9).to_csv(tmp_path / "one.csv", sep=";", decimal=",", index_label="date")
        with pytest.raises(ValueError, match="Column 'open' is not numeric: row 0 holds '99,"):
            candles.read_csv(tmp_path / "one.csv")

    @pytest.mark.parametrize("separator", [",", ";"])
    def test_rows_may_end_with_a_separator(self, tmp_path, expected, separator):
        for columns in (["symbol", "date"], ["date", "symbol"]):
            frame = two_symbols("00700", "NA")[[columns[0], *COMPONENTS, columns[1]]]
            text = frame.to_csv(index=False, sep=separator)
            header, rows = text.split("\n", 1)
            rows = rows.replace("\n", f"{separator}\n")
            (tmp_path / "one.csv").write_text(f"{header}\n{rows}")
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert candles.read_csv(tmp_path / "one.csv") == expected

    def test_rows_may_have_names(self, tmp_path, text, expected):
        header, *rows = text.splitlines()
        named = [f"{number},{row}" for number, row in enumerate(rows)]
        (tmp_path / "one.csv").write_text("\n".join([header, *named]))
        assert candles.read_csv(tmp_path / "one.csv") == expected

    @pytest.mark.parametrize("encoding", ["utf-16", "gbk"])
    def test_other_encodings_are_named_with_the_remedy(self, tmp_path, text, expected, encoding):
        path = tmp_path / "one.csv"
        path.write_text(text.replace("NA", "\u817e\u8baf"), encoding=encoding)
        with pytest.raises(ValueError, match=f"not in UTF-8 .*encoding='{encoding}'"):
            candles.read_csv(path)
        path.write_text(text, encoding="utf-8-sig")
        assert candles.read_csv(path) == expected


class TestColumnsOfTwoLevels:
    @pytest.fixture
    def frames(self):
        return {name: candle_frame(20, seed) for seed, name in enumerate(["AAPL", "MSFT"])}

    @pytest.mark.parametrize("asset_first", [True, False])
    @pytest.mark.parametrize("in_index", [True, False])
    def test_one_asset_is_taken(self, frames, asset_first, in_index):
        frame = pd.concat({"AAPL": frames["AAPL"].rename(columns=str.title)}, axis=1)
        frame = frame.rename_axis("Date")
        frame = frame if asset_first else frame.swaplevel(axis=1)
        if not in_index:
            frame = frame.reset_index(col_level=0 if not asset_first else 1)
        assert candles.from_dataframe(frame) == candles.from_dataframe(frames["AAPL"])

    @pytest.mark.parametrize("level", [0, 1])
    def test_of_several_one_must_be_picked(self, frames, level):
        frame = pd.concat(frames, axis=1)
        frame = frame.swaplevel(axis=1) if level else frame
        message = rf"of 2 assets: .*`df.xs\('AAPL', axis=1, level={level}\)`"
        with pytest.raises(ValueError, match=message):
            candles.from_dataframe(frame)
        picked = candles.from_dataframe(frame.xs("AAPL", axis=1, level=level))
        assert picked == candles.from_dataframe(frames["AAPL"])

    def test_other_levels_are_refused(self, frames):
        for frame in (pd.concat({"a": pd.concat(frames, axis=1)}, axis=1), pd.concat(frames).T):
            with pytest.raises(ValueError, match="levels, .*give them one, with open, high"):
                candles.from_dataframe(frame)


@pytest.mark.parametrize("freq", ["h", "13h"])
def test_bars_without_zone_are_appended_once_they_have_one(freq):
    frame = candle_frame(40, freq=freq)
    zone = "UTC" if freq == "h" else "America/New_York"
    series = candles.from_dataframe(frame[:30], timezone=zone)
    with pytest.raises(
        ValueError, match=f"read them with candles.from_dataframe.*timezone='{zone}'"
    ):
        candles.append(series, frame[30:])
    longer = candles.append(series, candles.from_dataframe(frame[30:], timezone=zone))
    assert longer == candles.from_dataframe(frame, timezone=zone)
    with pytest.raises(ValueError, match="the .* None: .* of timestamps without time zone"):
        candles.append(candles.from_dataframe(frame[:30]), frame[30:].tz_localize(zone))
