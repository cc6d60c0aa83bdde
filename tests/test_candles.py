import datetime
import warnings

import dateutil.tz
import numpy as np
import pandas as pd
import pytest
from darts import concatenate
from darts.dataprocessing.transformers import Scaler
from factories import COMPONENTS, candle_frame
from hypothesis import given, settings
from hypothesis import strategies as st

from darts_kronos import candles
from darts_kronos.trading_calendar import calendar_of


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


def gappy(bars=200, seed=0, zone=None):
    """Candles of a market with nights and weekends."""
    frame = candle_frame(6 * bars, seed)
    frame = frame[(frame.index.hour >= 9) & (frame.index.hour < 16) & (frame.index.weekday < 5)]
    return frame.iloc[:bars].tz_localize(zone)


def test_missing_volume_and_amount_are_filled(frame):
    without = candles.from_dataframe(frame[["open", "high", "low", "close"]])
    assert (without[["volume", "amount"]].values() == 0).all()
    only_volume = candles.from_dataframe(frame.drop(columns="amount"))
    expected = frame["volume"] * frame[["open", "high", "low", "close"]].mean(axis=1)
    np.testing.assert_allclose(only_volume["amount"].values()[:, 0], expected)


@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York", "UTC+08:00"])
@pytest.mark.parametrize("make", [candle_frame, gappy], ids=["regular", "gappy"])
def test_a_frame_comes_back_exactly(make, zone):
    frame = make(60).tz_localize(zone) if make is candle_frame else make(60, zone=zone)
    back = candles.to_dataframe(candles.from_dataframe(frame))
    pd.testing.assert_frame_equal(back, frame, check_names=False, check_freq=False)
    assert back.index.name == "timestamps"


def test_files_come_back_as_they_were_written(tmp_path):
    frame = gappy(60, zone="UTC").rename_axis("timestamps")
    frame.to_csv(tmp_path / "candles.csv")
    frame.to_parquet(tmp_path / "candles.parquet")
    for series in (
        candles.read_csv(tmp_path / "candles.csv"),
        candles.read_parquet(tmp_path / "candles.parquet"),
    ):
        pd.testing.assert_frame_equal(candles.to_dataframe(series), frame, check_freq=False)


def test_floats_come_back_from_csv_to_the_last_bit(tmp_path):
    frame = gappy(100).rename_axis("timestamps") * np.pi
    frame.to_csv(tmp_path / "candles.csv")
    np.testing.assert_array_equal(candles.read_csv(tmp_path / "candles.csv").values(), frame)


def test_symbols_in_csv_are_text(tmp_path):
    for name in ("00700", "NA", "TRUE"):
        gappy(20).rename_axis("date").assign(Symbol=name).to_csv(tmp_path / "one.csv")
        (series,) = candles.read_csv(tmp_path / "one.csv")
        assert series.metadata["symbol"] == name


@pytest.mark.parametrize("zone", ["Europe/London", "Australia/Sydney", "America/New_York"])
def test_daily_bars_in_a_zone_that_changes_its_clocks(zone):
    times = pd.date_range("2024-07-01", periods=300, freq="D", tz=zone)
    frame = candle_frame(300).set_index(times)
    series = candles.from_dataframe(frame.iloc[:90])
    assert list(candles.timestamps(series)) == list(times[:90])
    assert list(calendar_of(series).times(np.arange(300))) == list(times)


@pytest.mark.parametrize("kind", ["tzoffset", "named", "utc", "dateutil"])
def test_zones_without_a_name_are_kept_by_offset_or_refused(kind):
    zone = {
        "tzoffset": dateutil.tz.tzoffset(None, 3600),
        "named": datetime.timezone(datetime.timedelta(hours=1), "CET1"),
        "utc": dateutil.tz.tzutc(),
        "dateutil": dateutil.tz.gettz("America/New_York"),
    }[kind]
    for frame in (gappy(30).tz_localize(zone), candle_frame(30).tz_localize(zone)):
        if kind == "dateutil":
            with pytest.raises(ValueError, match="say `timezone`"):
                candles.from_dataframe(frame)
            continue
        assert list(candles.timestamps(candles.from_dataframe(frame))) == list(frame.index)


TIMES = pd.DatetimeIndex(["2019-11-26 09:35", "2019-11-26 09:40", "2019-11-27 13:05"])


@pytest.mark.parametrize(
    ("raw", "zone"),
    [
        (["2019/11/26 9:35", "2019/11/26 9:40", "2019/11/27 13:05"], None),
        (["2019-11-26T09:35:00", "2019-11-26T09:40:00", "2019-11-27T13:05:00"], None),
        (["2019-11-26T09:35:00Z", "2019-11-26T09:40:00Z", "2019-11-27T13:05:00Z"], "UTC"),
        (["26/11/2019 09:35", "26/11/2019 09:40", "27/11/2019 13:05"], None),
        (["11/26/2019 09:35", "11/26/2019 09:40", "11/27/2019 13:05"], None),
        ((TIMES.as_unit("s").asi8).tolist(), "UTC"),
        ((TIMES.as_unit("s").asi8).astype(float), "UTC"),
        ((TIMES.as_unit("ms").asi8).tolist(), "UTC"),
        ((TIMES.as_unit("us").asi8).tolist(), "UTC"),
        ([str(second) for second in TIMES.as_unit("s").asi8], "UTC"),
        (list(TIMES.to_pydatetime()), None),
        ([201911260935, 201911260940, 201911271305], None),
        (["20191126093500", "20191126094000", "20191127130500"], None),
        ([20191126093500000, 20191126094000000, 20191127130500000], None),
    ],
)
def test_timestamps_are_read_in_many_forms(frame, raw, zone):
    frame = frame.iloc[:3].reset_index(drop=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        series = candles.from_dataframe(frame.assign(timestamps=raw))
    expected = TIMES if zone is None else TIMES.tz_localize(zone)
    assert list(candles.timestamps(series)) == list(expected)


def test_dates_may_be_numbers_or_stand_beside_times(frame):
    frame = frame.iloc[:3].reset_index(drop=True)
    numbers = candles.from_dataframe(frame.assign(date=[20191126, 20191127, 20191129]))
    assert list(candles.timestamps(numbers).day) == [26, 27, 29]
    split = frame.assign(
        Date=["2019-11-26", "2019-11-26", "2019-11-27"], Time=["9:35", "9:40", "13:05"]
    )
    assert list(candles.timestamps(candles.from_dataframe(split))) == list(TIMES)


def test_spreadsheets_leave_out_midnight(frame):
    frame = frame.iloc[:3].reset_index(drop=True)
    raw = ["2019/11/26", "2019/11/26 9:40", "2019/11/27 13:05"]
    series = candles.from_dataframe(frame.assign(timestamps=raw))
    assert list(candles.timestamps(series))[0] == pd.Timestamp("2019-11-26")


def test_offsets_that_differ_are_kept_as_instants_with_a_warning(frame):
    frame = frame.iloc[:3].reset_index(drop=True)
    raw = ["2024-03-08T09:30:00-05:00", "2024-03-11T09:30:00-04:00", "2024-03-12T09:30:00-04:00"]
    with pytest.warns(UserWarning, match="they are kept as UTC") as caught:
        series = candles.from_dataframe(frame.assign(timestamps=raw))
    assert caught[0].filename == __file__
    times = candles.timestamps(series)
    assert list(times.hour) == [14, 13, 13] and str(times.tz) == "UTC"


def test_a_zone_may_be_given_to_times_that_have_none():
    series = candles.from_dataframe(gappy(), timezone="Asia/Hong_Kong")
    assert str(candles.timestamps(series).tz) == "Asia/Hong_Kong"
    assert list(candles.timestamps(series).tz_localize(None)) == list(gappy().index)


def test_symbols_become_series_and_reach_the_frame():
    parts = [gappy(seed=i).assign(symbol=name) for i, name in enumerate(["MSFT", "AAPL"])]
    mixed = pd.concat(parts).sort_index(kind="stable")
    series = candles.from_dataframe(mixed)
    assert [one.metadata["symbol"] for one in series] == ["MSFT", "AAPL"]
    back = candles.to_dataframe([one[50:60] for one in series])
    assert list(back.columns) == ["symbol", *COMPONENTS]
    expected = pd.concat([part.iloc[50:60] for part in parts])
    pd.testing.assert_frame_equal(back[COMPONENTS], expected[COMPONENTS], check_names=False)
    with pytest.raises(ValueError, match="Symbol 'AAPL', rows counted within it: .*row 3 "):
        mixed.loc[
            (mixed["symbol"] == "AAPL").to_numpy() & (mixed.index == gappy().index[3]), "low"
        ] = -1
        candles.from_dataframe(mixed)
    for nothing in (None, " "):
        with pytest.raises(ValueError, match="Row 0 has no symbol"):
            candles.from_dataframe(mixed.assign(symbol=nothing))


def test_an_amount_of_zero_is_kept():
    assert (candles.from_dataframe(gappy().assign(amount=0.0))["amount"].values() == 0).all()


def test_rows_are_sorted_only_if_asked():
    frame = gappy(60)
    shuffled = frame.sample(frac=1, random_state=0)
    with pytest.raises(ValueError, match="sort=True"):
        candles.from_dataframe(shuffled)
    back = candles.to_dataframe(candles.from_dataframe(shuffled, sort=True))
    pd.testing.assert_frame_equal(back, frame, check_names=False, check_freq=False)
    with pytest.raises(ValueError, match="repeats a timestamp"):
        candles.from_dataframe(pd.concat([frame, frame.iloc[3:4]]), sort=True)


def test_the_callers_frame_stays_as_it_is():
    frame = gappy()
    before = frame.copy()
    frame_bad = spoil(frame, "high", 1.0).astype(float)
    bad_before = frame_bad.copy()
    candles.from_dataframe(frame)
    with pytest.warns(UserWarning):
        candles.from_dataframe(frame_bad, on_invalid="repair")
    pd.testing.assert_frame_equal(frame, before)
    pd.testing.assert_frame_equal(frame_bad, bad_before)


class TestInvalid:
    def test_repair_moves_highs_and_lows_and_says_so(self):
        frame = gappy(60)
        bad = spoil(spoil(frame, "high", 1.0), "low", 1e6, row=7).astype(float)
        with pytest.warns(UserWarning, match=r"Repaired: a bar is no candle .*row 5 .*row|7 \("):
            series = candles.from_dataframe(bad, on_invalid="repair")
        values = candles.to_dataframe(series)
        assert values["high"].iloc[5] == bad.drop(columns=["volume", "amount"]).iloc[5].max()
        assert values["low"].iloc[7] == bad[["open", "high", "close"]].iloc[7].min()
        untouched = np.delete(np.arange(60), [5, 7])
        pd.testing.assert_frame_equal(
            values.iloc[untouched], frame.iloc[untouched], check_names=False, check_freq=False
        )

    @pytest.mark.parametrize("value", [np.nan, -3.0])
    def test_repair_sets_volumes_to_zero(self, value):
        bad = spoil(gappy(60), "volume", value).astype(float)
        with pytest.warns(UserWarning, match="Repaired: a bar holds a volume"):
            series = candles.from_dataframe(bad, on_invalid="repair")
        assert series["volume"].values()[5, 0] == 0

    @pytest.mark.parametrize("value", [np.nan, 0.0])
    def test_repair_does_not_invent_prices(self, value):
        with pytest.raises(ValueError, match="A bar holds a price"):
            candles.from_dataframe(spoil(gappy(60), "close", value), on_invalid="repair")

    @pytest.mark.parametrize(
        ("column", "value"),
        [("close", np.nan), ("low", 0.0), ("volume", -1.0), ("high", 1.0), ("amount", np.inf)],
    )
    def test_drop_leaves_bars_out_and_says_so(self, column, value):
        frame = gappy(60)
        with pytest.warns(UserWarning, match=r"Dropped: .*row 5 \(2024"):
            series = candles.from_dataframe(spoil(frame, column, value), on_invalid="drop")
        pd.testing.assert_frame_equal(
            candles.to_dataframe(series),
            frame.drop(frame.index[5]),
            check_names=False,
            check_freq=False,
        )

    def test_a_rounding_error_is_no_invalid_candle(self):
        frame = gappy(60)
        frame.loc[frame.index[5], "high"] = frame[["open", "close"]].iloc[5].max() * (1 - 5e-7)
        candles.from_dataframe(frame)

    def test_other_words_are_refused_and_nothing_may_be_left(self):
        with pytest.raises(ValueError, match="'raise', 'repair' or 'drop', got 'mend'"):
            candles.from_dataframe(gappy(), on_invalid="mend")
        with pytest.raises(ValueError, match="No bar is left"), pytest.warns(UserWarning):
            candles.from_dataframe(gappy().assign(close=np.nan), on_invalid="drop")


@pytest.mark.parametrize("ratio", [2.0, 4.0, 1.5, 0.1])
def test_a_split_is_warned_of_with_its_date(ratio):
    frame = gappy()
    prices = ["open", "high", "low", "close"]
    frame.iloc[120:, :4] /= ratio
    with pytest.warns(
        UserWarning, match=f"{str(1 / ratio)[:3]}.* into the bar of {frame.index[120]}"
    ):
        series = candles.from_dataframe(frame)
    np.testing.assert_array_equal(series[prices].values(), frame[prices].to_numpy())


def test_a_split_in_a_short_frame_is_warned_of():
    frame = gappy(10)
    frame.iloc[5:, :4] /= 2
    with pytest.warns(UserWarning, match="looks like a split"):
        candles.from_dataframe(frame)


@pytest.mark.parametrize(
    "future", [["2025-01-01", "2025-01-02"], [pd.Timestamp("2025-01-01", tz="UTC")], [1735689600]]
)
def test_future_timestamps_are_read_as_others_are(future):
    frame = gappy(60, zone="America/New_York")
    series = candles.from_dataframe(frame, future_timestamps=future)
    at = calendar_of(series).times(np.array([60]))[0]
    assert at.year in (2024, 2025) and at.tz_convert("UTC") >= pd.Timestamp("2025-01-01", tz="UTC")
    for bad in ([None], ["soon"], [frame.index[3]]):
        with pytest.raises(ValueError):
            candles.from_dataframe(frame, future_timestamps=bad)


def test_a_quiet_series_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        candles.from_dataframe(gappy())


@st.composite
def any_candles(draw):
    """Frames whose prices are positive but in no order."""
    bars = draw(st.integers(3, 30))
    price = st.floats(1e-3, 1e6)
    rows = draw(st.lists(st.tuples(price, price, price, price), min_size=bars, max_size=bars))
    frame = pd.DataFrame(rows, columns=COMPONENTS[:4])
    steps = draw(st.lists(st.integers(1, 10**5), min_size=bars, max_size=bars))
    frame.index = pd.Timestamp("2020-01-01") + pd.to_timedelta(np.cumsum(steps), unit="s")
    return frame


@given(any_candles())
@settings(max_examples=100, deadline=None)
def test_repaired_candles_are_valid_and_only_highs_and_lows_moved(frame):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        series = candles.from_dataframe(frame, on_invalid="repair")
        # Again: there is nothing left to repair, and nothing changes.
        again = candles.from_dataframe(candles.to_dataframe(series))
    assert again == series
    values = candles.to_dataframe(series)
    prices = values[COMPONENTS[:4]]
    assert (values["high"] >= prices.max(axis=1) * (1 - candles.TOLERANCE)).all()
    assert (values["low"] <= prices.min(axis=1) * (1 + candles.TOLERANCE)).all()
    np.testing.assert_array_equal(values[["open", "close"]], frame[["open", "close"]])
    assert (prices.max(axis=1) == frame.max(axis=1)).all()
    assert (prices.min(axis=1) == frame.min(axis=1)).all()


@given(any_candles(), st.sampled_from([None, "UTC", "America/New_York"]), st.randoms())
@settings(max_examples=100, deadline=None)
def test_any_valid_frame_comes_back_exactly(frame, zone, random):
    frame = frame.assign(high=frame.max(axis=1), low=frame.min(axis=1), volume=1.0, amount=2.0)
    if zone is not None:
        frame = frame.tz_localize("UTC").tz_convert(zone)
    columns = list(frame.columns)
    random.shuffle(columns)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of splits
        series = candles.from_dataframe(frame[columns])
    pd.testing.assert_frame_equal(
        candles.to_dataframe(series), frame[COMPONENTS], check_names=False, check_freq=False
    )


class TestAppend:
    @pytest.fixture
    def frame(self):
        return gappy(200, zone="America/New_York")

    def test_new_bars_join_with_their_own_times(self, frame):
        series = candles.from_dataframe(frame.iloc[:150])
        whole = candles.from_dataframe(frame)
        assert candles.append(series, frame.iloc[150:]) == whole
        assert candles.append(series, candles.from_dataframe(frame.iloc[150:])) == whole
        one_by_one = series
        for i in range(150, 200):
            one_by_one = candles.append(one_by_one, frame.iloc[[i]])
        assert one_by_one == whole
        assert candles.concat([series, frame.iloc[150:170], frame.iloc[170:]]) == whole

    def test_a_late_bar_moves_the_future(self, frame):
        series = candles.from_dataframe(frame.iloc[:150])
        later = candles.append(series, frame.iloc[[155]])
        assert candles.timestamps(later)[-1] == frame.index[155]
        coming = calendar_of(later).times(np.array([151]))
        assert coming[0] == frame.index[156]

    def test_a_slice_goes_on_where_its_calendar_does(self, frame):
        whole = candles.from_dataframe(frame)
        before = candles.from_dataframe(frame.iloc[:180])
        assert candles.append(before[50:], frame.iloc[180:]) == whole[50:]
        # The calendar knows bars after this slice: these may come back, and no others.
        assert candles.append(whole[50:100], frame.iloc[100:120]) == whole[50:120]
        with pytest.raises(ValueError, match="knows the bar after the series as of"):
            candles.append(whole[50:100], frame.iloc[101:120])

    def test_regular_series_stay_regular(self):
        frame = candle_frame(60).tz_localize("UTC")
        series = candles.from_dataframe(frame.iloc[:50])
        assert candles.append(series, frame.iloc[50:]) == candles.from_dataframe(frame)
        assert candles.append(series, frame.iloc[[50]])[:-1] == series
        with pytest.raises(ValueError, match=r"regular \(h\): the next is of"):
            candles.append(series, frame.iloc[51:])

    def test_components_are_matched_by_name(self, frame):
        series = candles.from_dataframe(frame.iloc[:150])[["close", "open"]].astype(np.float32)
        longer = candles.append(series, frame.iloc[150:])
        assert list(longer.components) == ["close", "open"] and longer.dtype == np.float32
        np.testing.assert_array_equal(
            longer.values()[150:], frame[["close", "open"]].to_numpy(np.float32)[150:]
        )

    def test_bad_bars_are_refused(self, frame):
        series = candles.from_dataframe(frame.iloc[:150])
        for bad, message in [
            (frame.iloc[140:160], "must come after the last bar"),
            (frame.iloc[150:].drop(columns="low"), "lacks low"),
            (frame.iloc[150:].tz_localize(None), "time zone None, the calendar America/New_York"),
            (frame.iloc[150:].assign(symbol=["X", "Y"] * 25), "of one asset, not of 2 symbols"),
            (None, "a TimeSeries or a DataFrame"),
            (series[140:] * np.nan, "missing or infinite"),
            (series[140:][["close"]], "lack amount, high"),
        ]:
            with pytest.raises(ValueError, match=message):
                candles.append(series, bad)
        named = [
            s.with_metadata({**series.metadata, "symbol": s_name})
            for s, s_name in ((series, "A"), (candles.from_dataframe(frame.iloc[150:]), "B"))
        ]
        with pytest.raises(ValueError, match="of B, the series of A"):
            candles.append(*named)
        with pytest.raises(ValueError, match="at least one series"):
            candles.concat([])
        plain = series.with_metadata(None)
        with pytest.raises(ValueError, match="no trading calendar"):
            candles.append(plain, frame.iloc[150:])

    def test_a_strided_slice_is_refused(self, frame):
        series = candles.from_dataframe(frame.iloc[:150])
        with pytest.raises(ValueError, match="every 3th bar only"):
            candles.append(series[::3], frame.iloc[150:])

    def test_finer_times_are_not_rounded(self, frame):
        seconds = frame.set_index(frame.index.as_unit("s"))
        late = frame.iloc[[150]].set_index(frame.index[[150]] + pd.Timedelta("250ms"))
        longer = candles.append(candles.from_dataframe(seconds.iloc[:150]), late)
        assert list(candles.timestamps(longer)) == [*frame.index[:150], late.index[0]]
        planned = [late.index[0].isoformat()]
        series = candles.from_dataframe(seconds.iloc[:150], future_timestamps=planned)
        assert calendar_of(series).times(np.array([150]))[0] == late.index[0]

    def test_a_split_between_old_and_new_bars_is_warned_of(self, frame):
        series = candles.from_dataframe(frame.iloc[:150])
        halved = frame.iloc[150:] / 2
        with pytest.warns(
            UserWarning, match=f"0.5.* into the bar of {frame.index[150]}".replace("+", ".")
        ):
            longer = candles.append(series, halved)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            candles.append(longer[:170], halved.iloc[20:])

    def test_what_was_written_with_a_symbol_may_be_appended(self, frame):
        (series,) = candles.from_dataframe(frame.iloc[:150].assign(symbol="A"))
        new = candles.to_dataframe(candles.from_dataframe(frame.iloc[150:].assign(symbol="A"))[0])
        assert len(candles.append(series, new)) == 200

    def test_darts_own_append_is_warned_of(self, frame):
        first, second = (
            candles.from_dataframe(part) for part in (frame.iloc[:150], frame.iloc[150:])
        )
        shifted = second.shift(150)
        for joined in (first.append(shifted), concatenate([first, shifted])):
            with pytest.warns(UserWarning, match="last 50 bars of the series lie past its trading"):
                candles.to_dataframe(joined)
            with pytest.raises(ValueError, match="ends 50 bars past its calendar"):
                candles.append(joined, frame.iloc[:0:-1].iloc[:1])


class TestOut:
    @pytest.fixture
    def forecast(self):
        series = candles.from_dataframe(gappy(100))
        samples = np.random.default_rng(0).lognormal(size=(8, 6, 50))
        index = pd.RangeIndex(100, 108)
        return type(series).from_times_and_values(
            index, samples, columns=COMPONENTS, metadata=series.metadata
        )

    def test_the_mean_of_samples_has_future_timestamps(self, forecast):
        frame = candles.to_dataframe(forecast)
        assert list(frame.index) == list(gappy(108).index[100:])
        np.testing.assert_allclose(frame.to_numpy(), forecast.all_values().mean(axis=2))
        as_column = candles.to_dataframe(forecast, time_as_index=False)
        assert list(as_column.columns) == ["timestamps", *COMPONENTS]

    def test_quantiles_are_named_as_darts_does(self, forecast):
        frame = candles.to_dataframe(forecast, quantiles=[0.05, 0.5])
        expected = forecast.quantile([0.05, 0.5])
        assert list(frame.columns) == list(expected.components)
        np.testing.assert_allclose(frame.to_numpy(), expected.values())

    def test_paths_are_long_or_wide(self, forecast):
        long = candles.to_dataframe(forecast, paths="long")
        assert long.shape == (8 * 50, 7)
        third = long[long["path"] == 3]
        np.testing.assert_array_equal(third[COMPONENTS], forecast.all_values()[:, :, 3])
        assert list(third.index) == list(gappy(108).index[100:])
        wide = candles.to_dataframe(forecast, paths="wide")
        assert list(wide.columns) == list(forecast.to_dataframe().columns)
        np.testing.assert_array_equal(wide["close_s3"], third["close"])

    def test_bad_wishes_are_refused(self, forecast):
        for wish, message in [
            ({"quantiles": [0.5], "paths": "long"}, "not for both"),
            ({"paths": "tall"}, "'long', 'wide' or None, got 'tall'"),
            ({"quantiles": [5]}, r"must lie in \[0, 1\]"),
            ({"quantiles": ["a"]}, r"must lie in \[0, 1\]"),
            ({"quantiles": [0.5001, 0.5002]}, "differ by 0.001"),
        ]:
            with pytest.raises(ValueError, match=message):
                candles.to_dataframe(forecast, **wish)
        with pytest.raises(ValueError, match="no series"):
            candles.to_dataframe([])

    def test_a_series_without_timestamps_has_numbers(self, forecast):
        assert list(candles.to_dataframe(forecast.with_metadata(None)).index) == list(
            range(100, 108)
        )


def test_the_calendar_survives_what_darts_does_to_series():
    frame = gappy(200, zone="America/New_York")
    series = candles.from_dataframe(frame)
    scaled = Scaler().fit_transform(series)
    first, second = series.split_before(0.5)
    for one, times in [
        (scaled, frame.index),
        (second, frame.index[len(first) :]),
        (first.drop_after(50), frame.index[:50]),
        (series[::7], frame.index[::7]),
        (series["close"], frame.index),
        (series * 2, frame.index),
        (type(series).from_json(series.to_json(), metadata=series.metadata), frame.index),
        (series.copy(), frame.index),
        (series.map(np.log), frame.index),
    ]:
        assert list(candles.timestamps(one)) == list(times)


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
        (frame.assign(time="noon, or so"), "cannot be read.*say `time_format`"),
        (pd.concat([frame, frame], axis=1), "have one name"),
        (frame.assign(date=1, Date=2), "'date', 'Date' have one name"),
        (frame.assign(symbol="A", Symbol="B"), "'symbol', 'Symbol' have one name"),
        (frame.assign(volume=pd.Timedelta("1s")), "not numeric: it holds timedelta"),
        (frame.assign(time=7), "the numbers from 7 to 7 are neither"),
        (frame.assign(time=[None, *frame.index[1:]]), r"Row 0 has no timestamp \(1 such"),
        (frame.assign(time="01/02/2024"), "may begin with the day or the month"),
    ]:
        with pytest.raises(ValueError, match=message):
            candles.from_dataframe(bad)


def test_many_bad_rows_are_counted(frame):
    with pytest.raises(ValueError, match="row 0 .* and 35 more"):
        candles.from_dataframe(frame.assign(volume=-1.0))
