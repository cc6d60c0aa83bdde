"""Darts' optimised backtests find what forecasting one window after the other does."""

import numpy as np
import pandas as pd
import pytest
from darts.dataprocessing.transformers import Scaler
from factories import GREEDY, candles, tiny_model


@pytest.fixture(scope="module")
def series():
    return candles(100)


@pytest.fixture(scope="module")
def greedy(series):
    return tiny_model(**GREEDY).fit(series[:60])


@pytest.mark.parametrize("last_points_only", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"forecast_horizon": 3, "stride": 2},
        {"forecast_horizon": 6, "overlap_end": True, "stride": 3},
        {"forecast_horizon": 9, "stride": 5},
        {"forecast_horizon": 4, "start": 0.7},
        {"forecast_horizon": 4, "start": -20, "start_format": "position", "stride": 4},
        {"forecast_horizon": 2, "start": pd.Timestamp("2024-02-02"), "stride": 4},
    ],
    ids=str,
)
def test_both_ways_agree(greedy, series, last_points_only, options):
    pair = [series[:50], series[20:]]
    if "start" not in options or options["start"] == pd.Timestamp("2024-02-02"):
        pair[0] = series
    one, other = (
        greedy.historical_forecasts(
            pair,
            retrain=False,
            last_points_only=last_points_only,
            enable_optimization=optimised,
            verbose=False,
            show_warnings=False,
            **options,
        )
        for optimised in (True, False)
    )
    for left, right in zip(one, other, strict=True):
        left, right = ([x] if last_points_only else x for x in (left, right))
        assert len(left) == len(right) > 0
        for a, b in zip(left, right, strict=True):
            assert a.time_index.equals(b.time_index)
            np.testing.assert_allclose(a.values(), b.values(), rtol=1e-4)


def test_numbers_as_an_index_and_starts_by_value():
    numbered = candles(90, freq=None)
    model = tiny_model(**GREEDY).fit(numbered[:60])
    found = model.historical_forecasts(
        numbered, start=70, forecast_horizon=2, stride=3, retrain=False, last_points_only=False
    )
    assert [one.start_time() for one in found] == list(range(70, 89, 3))


def only_once(counter, pred_time, train_series, past_covariates, future_covariates):
    return counter == 0


@pytest.mark.parametrize("retrain", [True, 2, only_once])
def test_retraining_now_and_then(series, retrain):
    found = tiny_model(**GREEDY).historical_forecasts(
        series[:44],
        start=36,
        start_format="position",
        train_length=34,
        forecast_horizon=3,
        stride=3,
        retrain=retrain,
        last_points_only=False,
        verbose=False,
        show_warnings=False,
    )
    assert len(found) == 2 and np.isfinite(found[-1].values()).all()


def test_a_pipeline_of_transformers_is_applied_and_undone(series):
    scaled = Scaler(global_fit=True)
    model = tiny_model(representation="window", **GREEDY)
    options = {"start": 80, "start_format": "position", "forecast_horizon": 3, "stride": 6}
    options |= {"retrain": False, "last_points_only": False, "verbose": False}
    model.fit(scaled.fit_transform(series[:60]))
    found = model.historical_forecasts(series, data_transformers={"series": scaled}, **options)
    by_hand = model.historical_forecasts(scaled.transform(series), **options)
    for one, other in zip(found, scaled.inverse_transform(by_hand), strict=True):
        np.testing.assert_allclose(one.values(), other.values(), rtol=1e-6)


def test_a_series_without_one_forecast_is_refused(greedy, series):
    with pytest.raises(ValueError):
        greedy.historical_forecasts(series[:20], retrain=False, forecast_horizon=3)


@pytest.mark.parametrize("name", ["past_covariates", "future_covariates"])
@pytest.mark.parametrize("way", ["historical_forecasts", "backtest", "residuals"])
def test_covariates_are_refused_in_both_ways(greedy, series, name, way):
    for optimised in (True, False):
        options = {"start": 60, "retrain": False, "enable_optimization": optimised}
        with pytest.raises(ValueError, match="covariates"):
            getattr(greedy, way)(series, **{name: series}, **options)


def test_bars_that_no_context_holds_may_be_missing(greedy, series):
    values = series.all_values()
    values[50] = np.nan
    options = {"start": 40, "stride": 40, "forecast_horizon": 3, "retrain": False}
    found = [
        greedy.historical_forecasts(
            series.with_values(values), enable_optimization=optimised, **options
        )
        for optimised in (True, False)
    ]
    np.testing.assert_allclose(found[0].values(), found[1].values(), rtol=1e-6)
    with pytest.raises(ValueError, match="not finite"):
        greedy.historical_forecasts(series.with_values(values), **{**options, "start": 55})
    with pytest.raises(ValueError, match="not finite"):
        greedy.historical_forecasts(series.with_values(values), **{**options, "stride": 20})
