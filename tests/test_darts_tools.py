"""Darts' other tools around a KronosModel: quantiles, conformal models, ensembles, grid search."""

import numpy as np
import pytest
from darts.metrics import mae
from darts.models import (
    ConformalNaiveModel,
    ConformalQRModel,
    LinearRegressionModel,
    NaiveEnsembleModel,
    RegressionEnsembleModel,
)
from darts.utils.likelihood_models.torch import GaussianLikelihood, QuantileRegression
from factories import COMPONENTS, candles, tiny_model

from darts_kronos import KronosModel

QUANTILES = [0.1, 0.5, 0.9]


@pytest.fixture(scope="module")
def series():
    return candles(160)


@pytest.fixture(scope="module")
def fitted(series):
    return tiny_model(likelihood=QuantileRegression(QUANTILES), num_point_samples=40).fit(
        series[:100]
    )


class TestQuantiles:
    def test_they_are_those_of_the_sample_paths(self, fitted, series):
        options = {"n": 4, "series": series[:120], "random_state": 3}
        found = fitted.predict(**options, predict_likelihood_parameters=True)
        assert list(found.components) == [f"{c}_q{q:.3f}" for c in COMPONENTS for q in QUANTILES]
        paths = fitted.predict(**options, num_samples=40).all_values()
        expected = np.moveaxis(np.quantile(paths, QUANTILES, axis=2), 0, 2).reshape(4, -1)
        np.testing.assert_allclose(found.values(), expected, rtol=1e-9)

    def test_they_follow_the_series_order_of_components(self, fitted, series):
        turned = series[COMPONENTS[::-1]]
        options = {"n": 2, "random_state": 3, "predict_likelihood_parameters": True}
        found = fitted.predict(series=turned[:120], **options)
        assert list(found.components)[:3] == [f"amount_q{q:.3f}" for q in QUANTILES]
        same = fitted.predict(series=series[:120], **options)
        np.testing.assert_allclose(
            found["close_q0.500"].values(), same["close_q0.500"].values(), rtol=1e-9
        )

    def test_a_backtest_gives_them_too(self, fitted, series):
        forecasts = fitted.historical_forecasts(
            series,
            start=130,
            start_format="position",
            forecast_horizon=3,
            stride=5,
            retrain=False,
            last_points_only=False,
            predict_likelihood_parameters=True,
            verbose=False,
        )
        assert all(one.n_components == 6 * len(QUANTILES) for one in forecasts)

    def test_they_survive_save_and_load(self, fitted, series, tmp_path):
        fitted.save(str(tmp_path / "model.pt"))
        loaded = KronosModel.load(str(tmp_path / "model.pt"))
        options = {"series": series[:120], "random_state": 1, "predict_likelihood_parameters": True}
        assert loaded.predict(3, **options) == fitted.predict(3, **options)

    def test_more_than_a_chunk_or_more_than_one_sample_is_refused(self, fitted, series):
        for wrong in ({"n": 7}, {"n": 3, "num_samples": 5}):
            with pytest.raises(ValueError):
                fitted.predict(series=series, predict_likelihood_parameters=True, **wrong)

    def test_other_likelihoods_are_refused(self):
        with pytest.raises(ValueError, match="QuantileRegression or None"):
            tiny_model(likelihood=GaussianLikelihood())


@pytest.mark.parametrize("wrapper", [ConformalNaiveModel, ConformalQRModel])
def test_conformal_models_forecast_and_backtest(fitted, series, wrapper):
    kwargs = {"cal_num_samples": 20} if wrapper is ConformalQRModel else {}
    model = wrapper(fitted, quantiles=QUANTILES, cal_length=10, **kwargs)
    found = model.predict(3, series=series, predict_likelihood_parameters=True)
    assert f"close_q{QUANTILES[0]:.3f}" in found.components
    low, high = (found[f"close_q{q:.3f}"].values() for q in (0.1, 0.9))
    assert (low <= high).all()
    forecasts = model.historical_forecasts(
        series,
        start=140,
        start_format="position",
        forecast_horizon=3,
        stride=4,
        last_points_only=False,
        retrain=False,
        predict_likelihood_parameters=True,
        verbose=False,
    )
    assert len(forecasts) == 5


def test_ensembles_of_fitted_models_have_joint_paths(fitted, series):
    other = tiny_model(random_state=9).fit(series[:100])
    ensemble = NaiveEnsembleModel([fitted, other], train_forecasting_models=False)
    found = ensemble.predict(3, series=series[:120], num_samples=6)
    assert found.n_samples == 6 and list(found.components) == COMPONENTS


@pytest.mark.parametrize("kind", [NaiveEnsembleModel, RegressionEnsembleModel, ConformalNaiveModel])
def test_models_around_it_are_saved_and_loaded(fitted, series, tmp_path, kind):
    options = {
        NaiveEnsembleModel: {"train_forecasting_models": False},
        RegressionEnsembleModel: {
            "train_forecasting_models": False,
            "regression_train_n_points": 12,
        },
        ConformalNaiveModel: {"quantiles": QUANTILES},
    }[kind]
    around = kind(fitted if kind is ConformalNaiveModel else [fitted], **options)
    if kind is RegressionEnsembleModel:
        around.fit(series[:100])
    path = str(tmp_path / "around.pkl")
    around.save(path)
    found = [
        one.predict(3, series=series[:120], random_state=1) for one in (around, kind.load(path))
    ]
    assert found[0] == found[1]


def test_an_ensemble_trains_its_members_and_gives_their_mean(series):
    greedy = {"top_k": 1, "num_point_samples": 1}
    members = [tiny_model(**greedy), tiny_model(random_state=9, **greedy)]
    ensemble = NaiveEnsembleModel(members).fit(series[:50])
    expected = [member.predict(3).values() for member in ensemble.forecasting_models]
    assert not np.allclose(*expected)
    np.testing.assert_allclose(ensemble.predict(3).values(), np.mean(expected, axis=0))
    forecasts = ensemble.historical_forecasts(
        series,
        start=130,
        start_format="position",
        forecast_horizon=3,
        stride=10,
        retrain=False,
        last_points_only=False,
        num_samples=4,
        verbose=False,
    )
    assert len(forecasts) == 3 and all(one.n_samples == 4 for one in forecasts)


REGRESSION = {
    "regression_train_n_points": 20,
    "regression_train_num_samples": 10,
    "regression_train_samples_reduction": "median",
}
"""A regression over the medians of probabilistic members' paths."""


def test_a_regression_ensemble_learns_weights_of_probabilistic_members(fitted, series):
    other = tiny_model(random_state=9).fit(series[:100])
    quantile = LinearRegressionModel(
        lags=None,
        lags_future_covariates=[0],
        likelihood="quantile",
        quantiles=QUANTILES,
        fit_intercept=False,
    )
    ensemble = RegressionEnsembleModel(
        [fitted, other], regression_model=quantile, train_forecasting_models=False, **REGRESSION
    )
    ensemble.fit(series[:140])
    found = ensemble.predict(3, num_samples=7)
    assert found.n_samples == 7 and list(found.components) == COMPONENTS


def test_a_regression_ensemble_trains_its_members(series):
    ensemble = RegressionEnsembleModel([tiny_model(), tiny_model(random_state=9)], **REGRESSION)
    ensemble.fit([series[:60], series[20:75]])
    found = ensemble.predict(3, series=[series[:60], series[:80]])
    assert [one.n_timesteps for one in found] == [3, 3]
    assert np.isfinite(found[0].values()).all()


GRID = {name: [value] for name, value in tiny_model().model_params.items() if value is not None}


def test_gridsearch_finds_the_better_of_two(series):
    losses = []

    def noted(actual, forecast):
        losses.append(mae(actual, forecast))
        return losses[-1]

    best, parameters, loss = KronosModel.gridsearch(
        GRID | {"temperature": [0.3, 3.0]},
        series=series[:50],
        val_series=series[50:56],
        metric=noted,
        verbose=False,
    )
    assert loss == min(losses) and losses[0] != losses[1]
    assert parameters["temperature"] == (0.3, 3.0)[int(np.argmin(losses))]
    assert best.model_params["temperature"] == parameters["temperature"]


def test_residuals_are_actual_less_forecast(fitted, series):
    found = fitted.residuals(series, start=150, start_format="position", retrain=False)
    assert list(found.components) == COMPONENTS
    assert np.isfinite(found.values()).all()
