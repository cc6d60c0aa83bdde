import numpy as np
import pytest
from darts.metrics import mcrps
from factories import candles, tiny_model

from darts_kronos import KronosModel, calibration, window_scores


@pytest.fixture(scope="module")
def series():
    return candles(200)


@pytest.fixture
def fitted(series):
    return tiny_model(n_epochs_tokenizer=6).fit(series[:120])


def test_the_setting_with_the_least_crps_is_kept(fitted, series, tmp_path):
    report = fitted.calibrate(
        series[120:],
        temperatures=[0.5, 2.0],
        top_ps=[None, 0.9],
        antithetics=[False, True],
        verbose=False,
    )
    # All temperatures, alone and in pairs.
    assert list(report["temperature"][:6]) == [1.0, 0.5, 2.0, 1.0, 0.5, 2.0]
    assert list(report["antithetic"][:6]) == [False] * 3 + [True] * 3
    assert list(report["before"]) == [True] + [False] * 6
    assert report["chosen"].sum() == 1
    chosen = report[report["chosen"]].iloc[0]
    assert chosen["CRPS"] == report["CRPS"].min()
    # top_p is tried at the best of both.
    best, last = report.loc[report["CRPS"][:6].idxmin()], report.iloc[6]
    assert last["top_p"] == 0.9
    assert (last["temperature"], last["antithetic"]) == (best["temperature"], best["antithetic"])
    assert fitted.sampling["temperature"] == chosen["temperature"]
    assert fitted.sampling["top_p"] == chosen["top_p"]
    assert fitted.sampling["antithetic"] == chosen["antithetic"]
    fitted.save(str(tmp_path / "model.pt"))
    loaded = KronosModel.load(str(tmp_path / "model.pt"))
    assert loaded.sampling == fitted.sampling


def test_a_higher_temperature_covers_more(series):
    model = tiny_model(n_epochs=8, n_epochs_tokenizer=20).fit(series[:120])
    report = model.calibrate(
        series[120:], temperatures=[0.05, 3.0], top_ps=[None], stride=2, verbose=False
    ).set_index("temperature")
    for name in ("coverage 50", "coverage 90"):
        assert report.loc[3.0, name] > report.loc[0.05, name] + 0.1


def test_the_crps_is_that_of_darts_over_the_last_close(fitted, series):
    val = series[120:150]
    report = fitted.calibrate(
        val, temperatures=[1.0], top_ps=[None], num_samples=3000, verbose=False
    )
    forecast = fitted.predict(6, val[:24], num_samples=3000)["close"]
    expected = mcrps(val["close"], forecast) / val["close"].values()[23, 0]
    assert report["CRPS"].iloc[0] == pytest.approx(expected, rel=0.05)


def test_errors_are_in_units_of_the_last_value_before_a_window(series):
    close = series["close"]
    found = window_scores.levels_of_windows(close, [close[50:56], close[60:66]])
    np.testing.assert_array_equal(found, close.values()[[49, 59], 0])


def test_a_last_value_of_0_is_no_unit(fitted, series):
    values = series.values(copy=True)
    values[119::7, series.components.get_loc("volume")] = 0.0
    gappy = series.with_values(values)[110:]
    report = fitted.calibrate(
        gappy, temperatures=[2.0], top_ps=[None], component="volume", stride=1, verbose=False
    )
    assert (report["CRPS"] < 10).all() and report["standard error"].notna().all()
    volume = gappy["volume"]
    found = window_scores.levels_of_windows(volume, [volume[10:16], volume[11:17]])
    assert volume.values()[9, 0] == 0 and found[0] == pytest.approx(volume.values()[:10].mean())
    assert window_scores.levels_of_windows(volume * 0, [volume[10:16]]) == [1.0]


def test_the_error_of_a_difference_is_that_of_the_same_windows(fitted, series, monkeypatch):
    losses = iter([np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 5.0])])
    monkeypatch.setattr(calibration, "crps_of_windows", lambda *_: next(losses))
    report = fitted.calibrate(series[120:], temperatures=[2.0], top_ps=[None], verbose=False)
    assert list(report["CRPS"]) == [2.0, 3.0]
    # The differences are 1, 0 and 2.
    assert list(report["standard error"]) == [0.0, pytest.approx(1 / np.sqrt(3))]


def test_one_window_tells_no_error(fitted, series):
    report = fitted.calibrate(series[120:150], temperatures=[2.0], top_ps=[None], verbose=False)
    assert report["standard error"].isna().all()


def test_pairs_are_refused_for_other_series_than_candles():
    prices = candles(200)["close"].with_columns_renamed("close", "spread")
    model = tiny_model().fit(prices[:120])
    with pytest.raises(ValueError, match="`antithetic=True` needs candles"):
        model.calibrate(prices[120:], antithetics=[True], verbose=False)
    report = model.calibrate(prices[120:], temperatures=[1.0], top_ps=[None], verbose=False)
    assert list(report["antithetic"]) == [False]


def test_any_component_and_several_series_of_any_scale_may_be_measured(fitted, series):
    small = series[120:] / 1000
    both = fitted.calibrate(
        [series[120:], small], temperatures=[1.0], top_ps=[None], component="Low", verbose=False
    )
    assert np.isfinite(both["CRPS"]).all()
    # In units of the last value, a thousandth of the price is as hard to forecast.
    alone = fitted.calibrate(
        small, temperatures=[1.0], top_ps=[None], component="low", num_samples=500, verbose=False
    )
    assert both["CRPS"].iloc[0] == pytest.approx(alone["CRPS"].iloc[0], rel=0.2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperatures": []}, "`temperatures` must not be empty"),
        ({"top_ps": []}, "`top_ps` must not be empty"),
        ({"antithetics": ["yes"]}, "`antithetic` must be True or False"),
        ({"temperatures": [1.0, 0.0]}, "`temperature` must be a number > 0"),
        ({"top_ps": [1.5]}, "`top_p` must be a number in"),
        ({"component": "bid"}, "no component 'bid'; there are open, high"),
        ({"stride": 0}, "`stride` must be an integer >= 1 or None"),
        ({"num_samples": 1}, "`num_samples` must be an integer >= 2"),
        ({"val_series": []}, "Validation series are missing"),
        ({"val_series": candles(29)}, "has 29 bars, at least 30 are needed"),
    ],
)
def test_bad_parameters_are_refused_and_nothing_is_changed(fitted, series, wrong, message):
    before = fitted.sampling
    with pytest.raises(ValueError, match=message):
        fitted.calibrate(**({"val_series": series[120:], "verbose": False} | wrong))
    assert fitted.sampling == before


def test_components_may_stand_in_another_order_in_each_series(fitted, series):
    val = series[120:150]
    turned = val[list(reversed(list(val.components)))]
    options = {"temperatures": [1.0], "top_ps": [None], "num_samples": 300, "verbose": False}
    alone = fitted.calibrate(val, **options)["CRPS"].iloc[0]
    both = fitted.calibrate([val, turned], **options)["CRPS"].iloc[0]
    assert both == pytest.approx(alone, rel=0.1)


def test_an_unfitted_model_is_refused(series):
    with pytest.raises(ValueError, match="before it is fitted or loaded"):
        tiny_model().calibrate(series)
