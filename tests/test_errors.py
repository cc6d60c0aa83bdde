"""Bad input is refused before anything is trained, with what was wrong and what is allowed."""

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from darts import TimeSeries
from darts.utils.likelihood_models.torch import GaussianLikelihood
from factories import COMPONENTS, GREEDY, candles, tiny_model

from darts_kronos import KronosModel


@pytest.fixture(scope="module")
def series():
    return candles(120)


@pytest.fixture(scope="module")
def fitted(series):
    return tiny_model().fit(series[:100])


def with_value(series, value, bar=50, component="close"):
    values = series.values().copy()
    values[bar, COMPONENTS.index(component)] = value
    return TimeSeries.from_times_and_values(series.time_index, values, columns=COMPONENTS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": "huge"}, "Unknown size 'huge'; the sizes are nano"),
        ({"input_chunk_length": 0}, "`input_chunk_length` must be an integer >= 1, got 0"),
        (
            {"input_chunk_length": (8, 4)},
            r"`input_chunk_length\[1\]` must be an integer >= 8",
        ),
        ({"output_chunk_length": 1.5}, "output_chunk_length"),
        ({"output_chunk_shift": 2}, "`output_chunk_shift` must be 0, got 2"),
        ({"max_context": 1}, "`max_context` must be an integer >= 2"),
        ({"representation": "logs"}, "'window', 'returns' or None, got 'logs'"),
        ({"clip": 0}, "`clip` must be a number > 0"),
        ({"volume_dropout": 1.5}, "volume_dropout"),
        ({"mirror": -0.5}, "mirror"),
        ({"price_jitter": -0.1}, "price_jitter"),
        ({"volume_jitter": "much"}, "volume_jitter"),
        ({"date_shift": 1.5}, "date_shift"),
        ({"anchor": 1}, "anchor"),
        ({"antithetic": None}, "antithetic"),
        ({"valid_candles": None}, "valid_candles"),
        ({"n_epochs_tokenizer": 0}, "n_epochs_tokenizer"),
        ({"tokenizer_batch_size": 0}, "tokenizer_batch_size"),
        ({"n_epochs": -1}, "`n_epochs` must be an integer >= 0, got -1"),
        ({"n_epochs": 2.5}, "`n_epochs` must be an integer >= 0, got 2.5"),
        ({"batch_size": 0}, "`batch_size` must be an integer >= 1"),
        ({"num_point_samples": True}, "num_point_samples"),
        ({"price_jitter": float("inf")}, "price_jitter"),
        ({"tokenizer_optimizer_kwargs": {"learning_rate": 1e-3}}, "AdamW takes no 'learning_rate'"),
        ({"tokenizer_trainer_kwargs": {"max_epoch": 3}}, "Trainer takes no 'max_epoch'"),
        ({"temperature": 0}, "`temperature` must be a number > 0, got 0"),
        ({"temperature": -0.5}, "temperature"),
        ({"top_p": 0}, r"`top_p` must be a number in \(0, 1\]"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"point_forecast": "mode"}, "'mean', 'median', 'sample'"),
        ({"num_point_samples": 0}, "num_point_samples"),
        ({"d_model": 15}, "d_model"),
        ({"n_heads": 3}, "n_heads"),
        ({"s1_bits": 0}, "s1_bits"),
        ({"tokenizer_n_layers": 0}, "n_encoder_layers"),
        ({"ffn_dropout": 1.0}, "ffn_dropout"),
        ({"beta": -1.0}, "beta"),
        ({"tokenizer_trainer_kwargs": ["x"]}, "must be a dict or None"),
        ({"add_encoders": {"cyclic": {"future": ["month"]}}}, "`add_encoders` is not supported"),
        ({"loss_fn": torch.nn.L1Loss()}, "`loss_fn` is not supported"),
        ({"use_reversible_instance_norm": True}, "`use_reversible_instance_norm` is not"),
        ({"likelihood": GaussianLikelihood()}, "`likelihood` must be a QuantileRegression"),
        ({"enable_finetuning": False}, "`enable_finetuning` is not supported"),
        ({"no_such_thing": 1}, "no_such_thing"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_parameters_are_refused_at_creation(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(**changes)


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_16_bit_true_precision_is_refused(precision, series):
    trainer = {"accelerator": "cpu", "precision": precision}
    with pytest.raises(ValueError, match="bf16-mixed"):
        tiny_model(pl_trainer_kwargs=trainer)
    with pytest.raises(ValueError, match="bf16-mixed"):
        tiny_model(tokenizer_trainer_kwargs=trainer)
    custom = pl.Trainer(**trainer, logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match="bf16-mixed"):
        tiny_model().fit(series, trainer=custom)


class TestTrainers:
    GPU = {"accelerator": "gpu", "devices": [99], "enable_progress_bar": False}

    def test_a_device_that_is_not_there_is_named_and_the_way_out(self, series, tmp_path):
        message = r"(?s)Lightning refuses `pl_trainer_kwargs`: .*gpu.*`load\(path, pl_.*to_cpu"
        with pytest.raises(ValueError, match=message):
            tiny_model(pl_trainer_kwargs=self.GPU).fit(series)
        model = tiny_model(**GREEDY).fit(series)
        model.save(str(tmp_path / "model.pt"))
        loaded = KronosModel.load(str(tmp_path / "model.pt"), pl_trainer_kwargs=dict(self.GPU))
        with pytest.raises(ValueError, match=message):
            loaded.predict(2, series)
        loaded.save(str(tmp_path / "again.pt"))
        loaded.to_cpu()
        assert loaded.predict(2, series) == model.predict(2, series)

    def test_one_of_the_tokenizers_stage_too(self, series):
        with pytest.raises(ValueError, match="refuses `tokenizer_trainer_kwargs`: .*gpu"):
            tiny_model(tokenizer_trainer_kwargs=self.GPU).fit(series)

    def test_of_other_options_no_device_is_blamed(self, series):
        trainer = {"accelerator": "cpu", "limit_train_batches": 2.5}
        with pytest.raises(ValueError, match="limit_train_batches") as refused:
            tiny_model(pl_trainer_kwargs=trainer).fit(series)
        assert "accelerator" not in str(refused.value)


class TestSeries:
    """Of training, validation and forecasts."""

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_values_that_are_not_finite_are_located(self, fitted, series, value):
        bad = with_value(series, value)
        where = f"Series 0 .*not finite: 'close' is {value} at {series.time_index[50]}"
        with pytest.raises(ValueError, match=where):
            tiny_model().fit(bad)
        with pytest.raises(ValueError, match="Series 1 .*not finite"):
            tiny_model().fit([series, bad])
        with pytest.raises(ValueError, match="not finite"):
            tiny_model().fit(series, val_series=bad)
        with pytest.raises(ValueError, match=where):
            fitted.predict(3, bad[:60])
        with pytest.raises(ValueError, match=where):
            fitted.historical_forecasts(bad, retrain=False, start=0.5)

    def test_values_that_a_forecast_does_not_use_are_not_its_business(self, fitted, series):
        assert len(fitted.predict(3, with_value(series, np.nan))) == 3

    def test_prices_must_be_positive_for_returns(self, fitted, series):
        bad = with_value(series, -1.0, component="low")
        with pytest.raises(ValueError, match="'low' is -1.0"):
            tiny_model(representation="returns").fit(bad)
        with pytest.raises(ValueError, match="not above 0"):
            fitted.predict(3, bad[:60])

    def test_returns_need_prices_and_a_context(self, series):
        with pytest.raises(ValueError, match="open, high, low and close"):
            tiny_model(representation="returns").fit(series[["close", "volume"]])
        with pytest.raises(ValueError, match="`input_chunk_length` >= 3, got 2"):
            tiny_model(representation="returns", input_chunk_length=2).fit(series)

    def test_too_short_series_are_told_the_length_needed(self, fitted, series):
        with pytest.raises(ValueError, match="Series 0 is too short.*29 bars.*30 are needed"):
            tiny_model().fit(series[:29])
        with pytest.raises(ValueError, match="Series 1 is too short.*29 bars.*30 are needed"):
            tiny_model().fit([series, series[:29]])
        with pytest.raises(ValueError, match="29 bars.*30 are needed"):
            tiny_model().fit(series, val_series=series[:29])
        with pytest.raises(ValueError, match="23 bars.*24 are needed"):
            fitted.predict(3, series[:23])

    def test_component_names_must_be_unique(self, series):
        twice = series.with_columns_renamed("open", "Close")
        with pytest.raises(ValueError, match="one name"):
            tiny_model().fit(twice)

    def test_nothing_is_trained_or_kept_when_a_fit_is_refused(self, series):
        model = tiny_model()
        with pytest.raises(ValueError, match="not finite"):
            model.fit(with_value(series, np.nan))
        assert not model.model_created
        model.fit(series[["close"]])  # another set of components is still welcome
        assert model.representation == "window"


class TestCalls:
    def test_covariates_are_refused(self, fitted, series):
        covariate = series["close"]
        for name in ("past_covariates", "future_covariates"):
            with pytest.raises(ValueError, match="does not support"):
                tiny_model().fit(series, **{name: covariate})
            with pytest.raises(ValueError, match="does not support"):
                fitted.predict(3, series, **{name: covariate})

    @pytest.mark.parametrize("n", [0, -3])
    def test_a_horizon_below_one_is_refused(self, fitted, n):
        with pytest.raises(ValueError, match="`n`|positive|>= 1"):
            fitted.predict(n)

    def test_no_samples_are_refused(self, fitted):
        with pytest.raises(ValueError, match="num_samples"):
            fitted.predict(3, num_samples=0)

    def test_mc_dropout_is_refused(self, fitted):
        with pytest.raises(ValueError, match="`mc_dropout` is not supported"):
            fitted.predict(3, mc_dropout=True)

    def test_likelihood_parameters_are_refused(self, fitted):
        with pytest.raises(ValueError, match="likelihood"):
            fitted.predict(3, predict_likelihood_parameters=True)

    def test_drop_last_that_leaves_no_batch_is_refused(self, series):
        with pytest.raises(ValueError, match="`drop_last` leaves no batch: the set has 1 windows"):
            tiny_model().fit(series[:30], dataloader_kwargs={"drop_last": True})

    def test_an_unfitted_model_does_not_forecast(self, series):
        with pytest.raises(ValueError, match="fit"):
            tiny_model().predict(3, series)


def test_dates_in_the_message_are_those_of_the_series():
    index = pd.RangeIndex(100, 220)
    one = candles(120)
    moved = TimeSeries.from_times_and_values(index, one.values(), columns=COMPONENTS)
    with pytest.raises(ValueError, match="'volume' is nan at 107"):
        tiny_model().fit(with_value(moved, np.nan, bar=7, component="volume"))


def test_sequences_without_series_are_refused(series, fitted):
    calls = [
        lambda: tiny_model().fit([]),
        lambda: tiny_model().fit(series, val_series=[]),
        lambda: fitted.predict(3, []),
        lambda: fitted.predict(n=3, series=[]),
        lambda: fitted.historical_forecasts([], retrain=False),
        lambda: fitted.backtest(series=[], retrain=False),
        lambda: fitted.residuals([], retrain=False),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="series` is empty"):
            call()
