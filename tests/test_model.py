"""KronosModel as a Darts user sees it."""

import warnings

import exchange_calendars
import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from darts import TimeSeries
from darts.metrics import mae, mcrps
from darts.models import NaiveEnsembleModel
from darts.utils.data import SequentialTorchInferenceDataset, SequentialTorchTrainingDataset
from factories import COMPONENTS, candles, tiny_model

from darts_kronos import KronosModel


@pytest.fixture(scope="module")
def series():
    return candles(160)


@pytest.fixture(scope="module")
def fitted(series):
    return tiny_model().fit(series[:120])


def weights(model, part="predictor"):
    network = getattr(model.model, part)
    return torch.cat([value.flatten().clone() for value in network.state_dict().values()])


class TestForecasts:
    def test_many_samples_are_joint_paths_of_valid_candles(self, fitted, series):
        forecast = fitted.predict(6, num_samples=40)
        assert forecast.all_values().shape == (6, 6, 40)
        assert list(forecast.components) == COMPONENTS
        assert forecast.start_time() == series.time_index[120]
        open_, high, low, close, volume, amount = np.moveaxis(forecast.all_values(), 1, 0)
        assert (high >= np.maximum(open_, close)).all()
        assert (low <= np.minimum(open_, close)).all()
        assert (low > 0).all()
        assert (volume >= 0).all() and (amount >= 0).all()

    def test_a_path_stays_joint_over_time(self, fitted):
        # If steps were drawn independently, the spread would not grow with the horizon.
        close = np.log(fitted.predict(24, num_samples=200)["close"].all_values()[:, 0])
        assert close[-1].std() > 2.5 * close[0].std()

    def test_the_first_bar_does_not_jump(self, fitted, series):
        first = np.log(fitted.predict(1, num_samples=200)["close"].all_values()[0, 0])
        last = np.log(series["close"].values()[119, 0])
        assert abs(np.median(first) - last) < 0.02

    @pytest.mark.parametrize("n", [1, 4, 6, 7, 20])
    def test_any_horizon_may_be_asked_for(self, fitted, n):
        assert len(fitted.predict(n, num_samples=2)) == n

    def test_one_sample_is_the_mean_of_many(self, series):
        model = tiny_model(num_point_samples=400).fit(series[:120])
        point = model.predict(6)
        assert point.n_samples == 1
        paths = model.predict(6, num_samples=400)["close"].all_values()[:, 0]
        error = paths.std(axis=1) / 400**0.5
        assert (np.abs(point["close"].values()[:, 0] - paths.mean(axis=1)) < 8 * error).all()

    def test_point_forecasts_may_be_medians_or_single_paths(self, series):
        model = tiny_model(point_forecast="median", num_point_samples=9).fit(series[:120])
        median = model.predict(6, random_state=1)
        model.set_sampling(point_forecast="sample")
        path = model.predict(6, random_state=1)
        assert median.n_samples == path.n_samples == 1
        assert median != path

    def test_a_random_state_repeats_a_forecast(self, fitted):
        one, other, third = (
            fitted.predict(6, num_samples=3, random_state=state) for state in (1, 1, 2)
        )
        assert one == other
        assert one != third

    def test_several_series_are_forecast_at_once(self, fitted):
        many = fitted.predict(6, [candles(50, seed) for seed in range(3)], num_samples=2)
        assert [forecast.n_samples for forecast in many] == [2, 2, 2]

    def test_float32_and_float64_may_be_mixed(self, series):
        model = tiny_model().fit(series[:120].astype(np.float32))
        assert next(model.model.parameters()).dtype == torch.float32
        assert model.predict(6, series[:120]).dtype == np.float64
        assert model.predict(6).dtype == np.float32
        in64 = tiny_model().fit(series[:120])
        assert next(in64.model.parameters()).dtype == torch.float32
        assert in64.predict(6, series[:120].astype(np.float32)).dtype == np.float32

    def test_candles_may_be_left_as_they_are_decoded(self, fitted, series):
        model = tiny_model(valid_candles=False).fit(series[:120])
        values = model.predict(6, num_samples=100).all_values()
        assert (values[:, 1] < values[:, [0, 3]].max(axis=1)).any()

    def test_bf16_mixed_trains_and_forecasts(self, series):
        trainer = {"accelerator": "cpu", "enable_progress_bar": False, "precision": "bf16-mixed"}
        model = tiny_model(pl_trainer_kwargs=trainer).fit(series[:120])
        forecast = model.predict(6, num_samples=3)
        assert np.isfinite(forecast.all_values()).all()
        last = series["close"].values()[119, 0]
        assert abs(forecast["close"].values()[0, 0] / last - 1) < 0.2


class TestSampling:
    def test_it_changes_on_a_fitted_model(self, series):
        model = tiny_model().fit(series[:120])
        model.set_sampling(top_k=1)
        greedy = model.predict(6, num_samples=4).all_values()
        assert (greedy == greedy[..., :1]).all()
        model.set_sampling(top_k=None, temperature=1.3)
        assert not (model.predict(6, num_samples=4).all_values()[..., :1] == greedy).all()

    def test_it_survives_saving_and_a_new_untrained_model(self, series, tmp_path):
        model = tiny_model().fit(series[:120])
        model.set_sampling(top_k=1, temperature=0.5)
        model.save(str(tmp_path / "model.pt"))
        loaded = KronosModel.load(str(tmp_path / "model.pt"))
        assert loaded.predict(6) == model.predict(6)
        assert model.untrained_model().model_params["temperature"] == 0.5

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"temperature": 0}, "temperature"),
            ({"top_p": 2}, "top_p"),
            ({"heat": 1}, "Unknown sampling parameter heat; there are temperature"),
            ({"point_forecast": "mode"}, "'mean', 'median', 'sample'"),
            ({"num_point_samples": 0}, "num_point_samples"),
        ],
    )
    def test_bad_changes_are_refused_and_nothing_is_changed(self, fitted, change, message):
        before = dict(fitted.model_params)
        with pytest.raises(ValueError, match=message):
            fitted.set_sampling(**change)
        assert dict(fitted.model_params) == before


class TestComponents:
    def test_another_order_and_case_gives_the_same_forecast_in_that_order(self, fitted, series):
        order = ["volume", "close", "open", "amount", "low", "high"]
        renamed = series[:120][order].with_columns_renamed(order, [x.upper() for x in order])
        expected = fitted.predict(6, series[:120], num_samples=3, random_state=1)
        forecast = fitted.predict(6, renamed, num_samples=3, random_state=1)
        assert list(forecast.components) == [x.upper() for x in order]
        np.testing.assert_array_equal(forecast.all_values(), expected[order].all_values())

    def test_training_does_not_depend_on_the_order(self, fitted, series):
        other = tiny_model().fit(series[:120][COMPONENTS[::-1]])
        assert torch.equal(weights(other), weights(fitted))

    def test_a_batch_may_mix_orders(self, fitted, series):
        one, other = fitted.predict(
            6, [series[:120], series[:120][COMPONENTS[::-1]]], num_samples=1, random_state=1
        )
        assert list(one.components) == COMPONENTS
        assert list(other.components) == COMPONENTS[::-1]
        assert abs(one["volume"].values() / other["volume"].values() - 1).max() < 1

    def test_historical_forecasts_keep_the_series_own_order(self, fitted, series):
        backward = series[COMPONENTS[::-1]]
        last_points = fitted.historical_forecasts(
            backward, start=130, start_format="position", retrain=False
        )
        assert list(last_points.components) == COMPONENTS[::-1]

    def test_renamed_components_are_refused(self, fitted, series):
        renamed = series[:120].with_columns_renamed("close", "price")
        with pytest.raises(ValueError, match="'price'.*the model needs"):
            fitted.predict(6, renamed)

    def test_missing_components_are_refused(self, fitted, series):
        with pytest.raises(ValueError, match="Series 0.*the model needs"):
            fitted.predict(6, series[:120][["open", "close"]])

    def test_training_series_must_agree(self, series):
        with pytest.raises(ValueError, match="Series 1"):
            tiny_model().fit([series, series.with_columns_renamed("close", "price")])

    @pytest.mark.parametrize(
        ("chosen", "representation"),
        [
            (["open", "high", "low", "close"], "returns"),
            (["open", "high", "low", "close", "volume"], "returns"),
            (["close"], "window"),
            (["close", "volume"], "window"),
        ],
    )
    def test_any_subset_trains(self, series, chosen, representation):
        model = tiny_model().fit(series[:120][chosen])
        assert model.representation == representation
        forecast = model.predict(6, num_samples=2)
        assert list(forecast.components) == chosen
        assert (forecast.all_values() > 0).all()

    def test_other_components_and_names_train(self):
        index = pd.date_range("2024", periods=80, freq="D")
        values = np.random.default_rng(0).normal(size=(80, 2)).cumsum(axis=0)
        other = TimeSeries.from_times_and_values(index, values, columns=["wind", "sun"])
        model = tiny_model().fit(other)
        assert model.representation == "window"
        assert list(model.predict(3).components) == ["wind", "sun"]
        univariate = tiny_model().fit(other["wind"])
        assert len(univariate.predict(3, other["sun"])) == 3

    def test_prices_that_are_not_positive_are_seen_as_windows(self, series):
        model = tiny_model().fit(series[:120] - 200)
        assert model.representation == "window"
        forecast = model.predict(6, num_samples=20)
        assert (forecast["close"].all_values() < 0).any()

    def test_a_representation_may_be_chosen(self, series):
        model = tiny_model(representation="window").fit(series[:120])
        assert model.representation == model.model.representation.name == "window"


class TestTraining:
    def test_a_random_state_makes_two_fits_equal(self, series):
        one, other = (tiny_model(resid_dropout=0.2).fit(series[:100]) for _ in range(2))
        assert torch.equal(weights(one), weights(other))
        assert torch.equal(weights(one, "tokenizer"), weights(other, "tokenizer"))
        third = tiny_model(resid_dropout=0.2, random_state=1).fit(series[:100])
        assert not torch.equal(weights(one), weights(third))

    def test_a_second_fit_leaves_the_tokenizer_alone(self, series):
        model = tiny_model().fit(series[:100])
        tokenizer, predictor = weights(model, "tokenizer"), weights(model)
        model.fit(series[:100])
        assert torch.equal(weights(model, "tokenizer"), tokenizer)
        assert not torch.equal(weights(model), predictor)
        model.fit(series[:100], retrain_tokenizer=True)
        assert not torch.equal(weights(model, "tokenizer"), tokenizer)

    def test_a_loaded_model_goes_on_with_the_predictor(self, series, tmp_path):
        model = tiny_model().fit(series[:100])
        model.save(str(tmp_path / "model.pt"))
        loaded = KronosModel.load(str(tmp_path / "model.pt"))
        loaded.fit(series[:100])
        assert torch.equal(weights(loaded, "tokenizer"), weights(model, "tokenizer"))
        assert not torch.equal(weights(loaded), weights(model))

    def test_the_predictor_stage_does_not_move_the_tokenizer(self, series):
        seen = []

        class Watch(pl.Callback):
            def on_train_start(self, trainer, pl_module):
                seen.append([p.detach().clone() for p in pl_module.tokenizer.parameters()])
                assert not pl_module.tokenizer.training
                assert pl_module.predictor.training

        trainer = {"accelerator": "cpu", "enable_progress_bar": False, "callbacks": [Watch()]}
        model = tiny_model(pl_trainer_kwargs=trainer, n_epochs=2).fit(series[:100])
        assert len(seen) == 1  # the callback serves the predictor stage alone
        for before, after in zip(seen[0], model.model.tokenizer.parameters(), strict=True):
            assert torch.equal(before, after)

    def test_a_set_smaller_than_a_batch_trains(self):
        small = candles(31)
        model = tiny_model()
        torch.manual_seed(0)
        model.fit(small)
        untrained = tiny_model(n_epochs=0).fit(small)
        assert not torch.equal(weights(model), weights(untrained))
        assert len(model.predict(2)) == 2

    def test_the_tokenizers_best_epoch_is_kept(self, series):
        losses = []

        class Spoil(pl.Callback):
            """Notes each epoch's loss and weights, and spoils those of the last epoch."""

            def on_train_epoch_end(self, trainer, pl_module):
                if trainer.current_epoch == 2:
                    with torch.no_grad():
                        pl_module.tokenizer.head.weight.add_(1.0)

            def on_validation_epoch_start(self, trainer, pl_module):
                self.weights = [p.detach().clone() for p in pl_module.tokenizer.parameters()]

            def on_validation_end(self, trainer, pl_module):
                if not trainer.sanity_checking:
                    losses.append((float(trainer.callback_metrics["val_loss"]), self.weights))

        model = tiny_model(
            n_epochs_tokenizer=4,
            # A step so small that the last epoch cannot mend what was spoiled.
            tokenizer_optimizer_kwargs={"lr": 1e-3},
            tokenizer_trainer_kwargs={"callbacks": [Spoil()]},
        ).fit(series[:100], val_series=series[60:])
        best = min(losses, key=lambda pair: pair[0])[1]
        assert best is not losses[-1][1]
        for kept, expected in zip(model.model.tokenizer.parameters(), best, strict=True):
            assert torch.equal(kept, expected)

    def test_both_stages_log_their_losses(self, series):
        logged = {"tokenizer": set(), "predictor": set()}

        class Watch(pl.Callback):
            def __init__(self, stage):
                self.stage = stage

            def on_train_end(self, trainer, pl_module):
                logged[self.stage] |= set(trainer.progress_bar_metrics)
                for value in trainer.logged_metrics.values():
                    assert torch.isfinite(torch.as_tensor(value))

        trainer = {"accelerator": "cpu", "enable_progress_bar": False}
        tiny_model(
            pl_trainer_kwargs=trainer | {"callbacks": [Watch("predictor")]},
            tokenizer_trainer_kwargs={"callbacks": [Watch("tokenizer")]},
        ).fit(series[:100], val_series=series[60:])
        usage = {"loss", "codebook_usage_s1", "codebook_usage_s2"}
        for stage, names in {
            "tokenizer": usage | {"vq_loss", "recon_loss_s1", "recon_loss"},
            "predictor": usage | {"s1_loss", "s2_loss"},
        }.items():
            expected = {f"{role}_{name}" for role in ("train", "val") for name in names}
            assert expected <= logged[stage]

    def test_losses_of_both_stages_fall(self, series):
        model = tiny_model(n_epochs=4, n_epochs_tokenizer=4).fit(series)
        for _, stage in model.training_history.groupby("stage"):
            losses = stage["train_loss"].to_numpy()
            assert losses[-1] < 0.95 * losses[0]

    def test_the_history_keeps_what_both_stages_logged(self, series, tmp_path):
        model = tiny_model(n_epochs=2).fit(series[:100], val_series=series[60:])
        history = model.training_history
        assert list(history["stage"]) == ["tokenizer", "predictor", "predictor"]
        assert list(history["epoch"]) == [1, 1, 2]
        tokenizer, predictor = history.iloc[0], history.iloc[-1]
        assert np.isfinite(
            tokenizer[["train_loss", "val_vq_loss", "val_recon_loss"]].astype(float)
        ).all()
        assert np.isfinite(predictor[["val_loss", "train_s2_loss"]].astype(float)).all()
        assert np.isnan(predictor["train_vq_loss"])
        model.save(str(tmp_path / "model.pt"))
        loaded = KronosModel.load(str(tmp_path / "model.pt"))
        pd.testing.assert_frame_equal(loaded.training_history, history)
        loaded.fit(series)
        assert list(loaded.training_history["epoch"]) == [1, 1, 2, 3, 4]
        assert tiny_model().training_history.empty

    def test_stages_clip_gradients_and_use_a_one_cycle_schedule(self, series):
        seen = {}

        class Watch(pl.Callback):
            def __init__(self, stage):
                self.stage = stage

            def on_train_start(self, trainer, pl_module):
                optimizer = trainer.optimizers[0]
                seen[self.stage] = (
                    trainer.gradient_clip_val,
                    type(optimizer),
                    optimizer.defaults["betas"],
                    type(trainer.lr_scheduler_configs[0].scheduler).__name__,
                )

        trainer = {"accelerator": "cpu", "enable_progress_bar": False}
        tiny_model(
            pl_trainer_kwargs=trainer | {"callbacks": [Watch("predictor")]},
            tokenizer_trainer_kwargs={"callbacks": [Watch("tokenizer")]},
        ).fit(series)
        adamw = (torch.optim.AdamW, (0.9, 0.95), "OneCycleLR")
        assert seen == {"tokenizer": (2.0, *adamw), "predictor": (3.0, *adamw)}

    def test_users_may_choose_optimizer_schedule_and_clipping(self, series):
        trainer = {"accelerator": "cpu", "enable_progress_bar": False, "gradient_clip_val": 0.5}
        model = tiny_model(
            optimizer_cls=torch.optim.SGD,
            optimizer_kwargs={"lr": 1e-3},
            lr_scheduler_cls=torch.optim.lr_scheduler.ExponentialLR,
            lr_scheduler_kwargs={"gamma": 0.9},
            pl_trainer_kwargs=trainer,
        ).fit(series)
        assert isinstance(model.trainer.optimizers[0], torch.optim.SGD)
        scheduler = model.trainer.lr_scheduler_configs[0].scheduler
        assert isinstance(scheduler, torch.optim.lr_scheduler.ExponentialLR)
        assert model.trainer.gradient_clip_val == 0.5

    def test_a_custom_trainer_serves_the_predictor_stage(self, series):
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=2,
            enable_progress_bar=False,
            logger=False,
            enable_checkpointing=False,
        )
        model = tiny_model().fit(series[:100], trainer=trainer)
        assert trainer.current_epoch == 2
        assert bool(model.model.tokenizer_fitted)

    def test_windows_longer_than_max_context_train(self, series):
        model = tiny_model(max_context=16).fit(series[:100])
        assert len(model.predict(9, num_samples=2)) == 9

    def test_many_series_of_different_lengths_train(self):
        model = tiny_model().fit([candles(40), candles(70, 1), candles(31, 2)])
        assert len(model.predict(3, candles(40))) == 3


class TestStamps:
    @pytest.mark.parametrize(
        "freq",
        ["5min", "h", "D", "B", "W-FRI", "MS", exchange_calendars.get_calendar("XNYS").day],
        ids=str,
    )
    def test_they_come_from_any_regular_index(self, freq):
        series = candles(60, freq=freq)
        model = tiny_model().fit(series)
        forecast = model.predict(9, num_samples=2)
        assert forecast.freq == series.freq
        expected = pd.date_range(series.end_time(), periods=10, freq=series.freq)[1:]
        assert list(forecast.time_index) == list(expected)

    def test_the_networks_see_one_based_days_and_months(self, fitted):
        index = pd.date_range("2024-01-31 23:30", periods=30, freq="h")
        one = candles(30)
        series = TimeSeries.from_times_and_values(index, one.values(), columns=COMPONENTS)
        dataset = fitted._build_inference_dataset(6, [series], None, None)
        sample = dataset[0]
        stamps = np.concatenate((sample.historic_future_covariates, sample.future_covariates))
        times = pd.date_range(index[6], periods=30, freq="h")
        fields = ["minute", "hour", "weekday", "day", "month"]
        expected = np.stack([getattr(times, field) for field in fields], axis=1)
        np.testing.assert_array_equal(stamps, expected)

    def test_the_forecast_depends_on_them(self, fitted, series):
        shifted = TimeSeries.from_times_and_values(
            series.time_index[:120] + pd.Timedelta(hours=7),
            series[:120].values(),
            columns=COMPONENTS,
        )
        one = fitted.predict(6, series[:120], num_samples=5, random_state=0).all_values()
        other = fitted.predict(6, shifted, num_samples=5, random_state=0).all_values()
        assert not np.array_equal(one, other)

    def test_a_range_index_trains_without_them_and_warns_once(self):
        series = candles(80, freq=None)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = tiny_model().fit(series[:60], val_series=series[40:])
            forecast = model.predict(6, num_samples=2)
        mine = [warning for warning in caught if "no timestamps" in str(warning.message)]
        assert len(mine) == 1
        assert forecast.start_time() == 60
        # A model without stamps forecasts series that have them.
        assert len(model.predict(3, candles(40))) == 3

    def test_a_range_index_is_refused_by_a_model_with_them(self, fitted):
        with pytest.raises(ValueError, match="Series 0 has no timestamps"):
            fitted.predict(6, candles(40, freq=None))

    def test_training_series_with_and_without_are_refused(self):
        with pytest.raises(ValueError, match="Series 1 has no timestamps.*series 0 has"):
            tiny_model().fit([candles(40), candles(40, freq=None)])


class TestDarts:
    def test_optimised_historical_forecasts_are_paths_after_each_start(self, fitted, series):
        forecasts = fitted.historical_forecasts(
            series,
            start=120,
            start_format="position",
            forecast_horizon=6,
            stride=10,
            retrain=False,
            last_points_only=False,
            num_samples=7,
        )
        assert [f.start_time() for f in forecasts] == list(series.time_index[[120, 130, 140, 150]])
        assert all(f.all_values().shape == (6, 6, 7) for f in forecasts)

    def test_historical_forecasts_equal_single_ones(self, series):
        model = tiny_model(top_k=1).fit(series[:120])
        together = model.historical_forecasts(
            series,
            start=130,
            start_format="position",
            forecast_horizon=6,
            stride=7,
            retrain=False,
            last_points_only=False,
        )
        for forecast in together:
            before = series.drop_after(forecast.start_time())
            alone = model.predict(6, before)
            np.testing.assert_allclose(forecast.values(), alone.values(), rtol=1e-4)

    def test_historical_forecasts_beyond_the_end_and_beyond_the_chunk(self, fitted, series):
        forecasts = fitted.historical_forecasts(
            series,
            start=-1,
            start_format="position",
            forecast_horizon=9,
            retrain=False,
            overlap_end=True,
            last_points_only=False,
        )
        assert forecasts[-1].end_time() > series.end_time()

    def test_historical_forecasts_that_retrain(self, series):
        forecasts = tiny_model().historical_forecasts(
            series,
            start=150,
            start_format="position",
            forecast_horizon=3,
            stride=5,
            retrain=True,
            last_points_only=False,
        )
        assert len(forecasts) == 2

    def test_backtest_residuals_and_metrics(self, fitted, series):
        kwargs = {"start": 130, "start_format": "position", "forecast_horizon": 3}
        kwargs |= {"retrain": False, "stride": 5}
        errors = fitted.backtest(
            series, metric=[mae, mcrps], num_samples=5, last_points_only=False, **kwargs
        )
        assert np.isfinite(errors).all()
        residuals = fitted.residuals(series, **kwargs)
        assert residuals.n_components == 6

    def test_gridsearch(self, series):
        parameters = {key: [value] for key, value in tiny_model().model_params.items()}
        parameters["temperature"] = [0.9, 1.1]
        best, chosen, error = KronosModel.gridsearch(
            parameters, series, forecast_horizon=6, start=0.9, metric=mae
        )
        assert chosen["temperature"] in (0.9, 1.1)
        assert np.isfinite(error)

    def test_ensembles_take_it(self, fitted, series):
        ensemble = NaiveEnsembleModel([fitted, fitted], train_forecasting_models=False)
        ensemble.fit(series[:120])
        assert len(ensemble.predict(3)) == 3

    def test_save_and_load_need_no_trust(self, fitted, series, tmp_path):
        path = str(tmp_path / "model.pt")
        fitted.save(path)
        loaded = KronosModel.load(path)
        kwargs = {"num_samples": 3, "random_state": 1}
        assert loaded.predict(6, **kwargs) == fitted.predict(6, **kwargs)
        again = str(tmp_path / "again.pt")
        loaded = KronosModel.load(path)
        loaded.save(again)  # before anything was predicted
        twice = KronosModel.load(again)
        assert twice.predict(6, **kwargs) == fitted.predict(6, **kwargs)

    def test_clean_saves_forecast_given_series(self, fitted, series, tmp_path):
        path = str(tmp_path / "model.pt")
        fitted.save(path, clean=True)
        loaded = KronosModel.load(path)
        kwargs = {"num_samples": 3, "random_state": 1}
        assert loaded.predict(6, series[:120], **kwargs) == fitted.predict(6, **kwargs)

    def test_weights_load_into_a_new_model(self, fitted, series, tmp_path):
        path = str(tmp_path / "model.pt")
        fitted.save(path)
        other = tiny_model(temperature=1.0, n_epochs=3)
        other.load_weights(path)
        kwargs = {"num_samples": 3, "random_state": 1}
        assert other.predict(6, series[:120], **kwargs) == fitted.predict(6, **kwargs)

    def test_checkpoints_load(self, series, tmp_path):
        model = tiny_model(save_checkpoints=True, model_name="m", work_dir=str(tmp_path))
        model.fit(series[:100], val_series=series[60:])
        loaded = KronosModel.load_from_checkpoint("m", work_dir=str(tmp_path), best=True)
        assert len(loaded.predict(3, series)) == 3
        assert bool(loaded.model.tokenizer_fitted)

    def test_fit_and_predict_from_darts_datasets(self, fitted, series):
        chunks = {"input_chunk_length": 24, "output_chunk_length": 6}
        backward = series[:120][COMPONENTS[::-1]]
        train = SequentialTorchTrainingDataset(series=backward, **chunks)
        model = tiny_model().fit_from_dataset(train)
        assert bool(model.model.tokenizer_fitted)
        assert model.model.representation.components == tuple(COMPONENTS)
        inference = SequentialTorchInferenceDataset(series=backward, n=6, **chunks)
        forecast = model.predict_from_dataset(6, inference, random_state=1)[0]
        assert forecast == model.predict(6, backward, random_state=1)

    def test_datasets_with_other_chunks_or_covariates_are_refused(self, series):
        for kwargs in ({"output_chunk_length": 5}, {"future_covariates": series}):
            chunks = {"input_chunk_length": 24, "output_chunk_length": 6} | kwargs
            dataset = SequentialTorchTrainingDataset(series=series[:100], **chunks)
            with pytest.raises(ValueError, match="SequentialTorchTrainingDataset without"):
                tiny_model().fit_from_dataset(dataset)

    def test_the_log_is_explained(self):
        text = KronosModel.explain_log()
        for name in ("vq_loss", "recon_loss_s1", "s2_loss", "codebook_usage_s1", "negative"):
            assert name in text
