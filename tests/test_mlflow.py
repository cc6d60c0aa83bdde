"""Darts' MLflow helper around a KronosModel; skipped where MLflow is not installed."""

import logging

import numpy as np
import pytest
from darts.metrics import mae
from darts.utils.likelihood_models.torch import QuantileRegression
from factories import candles, tiny_model

from darts_kronos import KronosModel

mlflow = pytest.importorskip("mlflow", minversion="3.1")
helper = pytest.importorskip("darts.utils.mlflow")


@pytest.fixture(scope="module")
def series():
    return candles(110)


@pytest.fixture
def run(tmp_path):
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    artifacts = (tmp_path / "artifacts").as_uri()
    experiment = mlflow.create_experiment("kronos", artifact_location=artifacts)
    helper.autolog(log_models=True)
    try:
        with mlflow.start_run(experiment_id=experiment) as active:
            yield active.info.run_id
    finally:
        helper.autolog(disable=True)


def test_a_logged_model_forecasts_as_before(run, series):
    likelihood = QuantileRegression([0.1, 0.5, 0.9])
    model = tiny_model(likelihood=likelihood).fit(series[:60])
    model.set_sampling(temperature=0.7)
    logged = helper.log_model(model, name="calibrated")
    loaded = helper.load_model(logged.model_uri)
    assert isinstance(loaded, KronosModel) and loaded.sampling == model.sampling
    options = {"series": series[:80], "num_samples": 3, "random_state": 1}
    assert loaded.predict(4, **options) == model.predict(4, **options)


def test_autolog_keeps_parameters_losses_of_the_predictor_and_backtests(run, series, caplog):
    with caplog.at_level(logging.WARNING, logger="mlflow"):
        model = tiny_model(n_epochs=3, n_epochs_tokenizer=2).fit(series[:60], val_series=series)
    assert not [record.message for record in caplog.records if "autologging" in record.name]
    score = model.backtest(
        series, start=80, start_format="position", forecast_horizon=6, stride=6, retrain=False,
        last_points_only=False, metric=mae, num_samples=4,
    )  # fmt: skip
    found = mlflow.get_run(run)
    assert (found.data.params["s1_bits"], found.data.params["epochs"]) == ("4", "3")
    history = model.training_history
    expected = history.loc[history["stage"] == "predictor", "val_loss"]
    logged = mlflow.MlflowClient().get_metric_history(run, "val_loss")
    assert [metric.step for metric in logged] == [0, 1, 2]
    np.testing.assert_allclose([metric.value for metric in logged], expected, rtol=1e-6)
    assert found.data.metrics["backtest_mae"] == pytest.approx(score)
    assert found.data.tags["model_reference"] == "darts_kronos.model.KronosModel"
    (output,) = found.outputs.model_outputs
    assert helper.load_model(f"models:/{output.model_id}").predict(2, series).n_timesteps == 2
