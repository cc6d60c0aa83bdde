"""What Darts' own suites pin of its torch models, for KronosModel; see tests/README.md.

What is about KronosModel alone has test modules of its own.
"""

import copy
import os
import pickle
from unittest.mock import ANY, patch

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from darts.models.forecasting.torch_forecasting_model import (
    MixedCovariatesTorchModel,
    TorchForecastingModel,
)
from darts.utils.likelihood_models.torch import QuantileRegression
from factories import COMPONENTS, GREEDY, TINY, candles, tiny_model
from pytorch_lightning.tuner.lr_finder import _LRFinder
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
from torchmetrics import MeanAbsoluteError, MeanAbsolutePercentageError, Metric, MetricCollection

from darts_kronos import KronosModel

CPU = TINY["pl_trainer_kwargs"]

NO_SERIES = "Input `series` must be provided."
OTHER_PARAMETERS = "The values of the hyper-parameters in the model and loaded checkpoint"


@pytest.fixture(scope="module")
def series():
    return candles(100)


@pytest.fixture(scope="module")
def fitted(series):
    return tiny_model().fit(series)


class TestParametersAndNames:
    def test_an_untrained_model_has_the_same_parameters(self, fitted):
        assert fitted.untrained_model().model_params == fitted.model_params

    def test_unknown_parameters_are_refused(self):
        with pytest.raises(ValueError, match="some_invalid_kwarg"):
            tiny_model(some_invalid_kwarg=None)

    def test_it_is_a_mixed_covariates_model(self):
        assert isinstance(tiny_model(), MixedCovariatesTorchModel)

    def test_force_reset_empties_the_folder_of_a_model_that_saved(self, series, tmp_path):
        kwargs = {"work_dir": str(tmp_path), "model_name": "m", "save_checkpoints": True}
        tiny_model(**kwargs).fit(series)
        with patch.object(TorchForecastingModel, "reset_model") as reset:
            tiny_model(**kwargs, force_reset=True)
        reset.assert_called_once()

    def test_nothing_is_saved_unless_asked_for(self, series, tmp_path):
        with patch.object(TorchForecastingModel, "save") as save:
            tiny_model(work_dir=str(tmp_path), model_name="m").fit(series).predict(1)
            save.assert_not_called()


class TestSaving:
    def test_manual_and_automatic_saves_forecast_the_same(self, series, tmp_path):
        folder = str(tmp_path)
        manual = tiny_model(model_name="manual", work_dir=folder).fit(series)
        automatic = tiny_model(model_name="auto", work_dir=folder, save_checkpoints=True)
        automatic.fit(series)
        assert not (tmp_path / "manual" / "checkpoints").exists()
        assert (tmp_path / "auto" / "checkpoints").exists()
        manual.save(str(tmp_path / "m.pt"))
        loaded = KronosModel.load(str(tmp_path / "m.pt"), map_location="cpu")
        loaded.to_cpu()
        kwargs = {"best": False, "map_location": "cpu", "work_dir": folder}
        from_checkpoint = KronosModel.load_from_checkpoint("auto", **kwargs)
        from_checkpoint.save(str(tmp_path / "again.pt"))
        again = KronosModel.load(str(tmp_path / "again.pt"))
        found = [one.predict(4) for one in (automatic, manual, loaded, from_checkpoint, again)]
        assert all(one == found[0] for one in found[1:])

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
    def test_copies_and_pickles_hold_the_networks(self, fitted, series, copied):
        found = copied(fitted)
        options = {"n": 4, "random_state": 1}
        assert found.predict(**options) == fitted.predict(**options)
        found.fit(series)
        assert found.predict(**options) != fitted.predict(**options)

    def test_copies_keep_the_precision_and_paths_may_be_objects(self, series, tmp_path):
        trainer = TINY["pl_trainer_kwargs"] | {"precision": "64-true"}
        model = tiny_model(pl_trainer_kwargs=trainer).fit(series)
        model.save(tmp_path / "m.pt")
        for found in (copy.deepcopy(model), KronosModel.load(tmp_path / "m.pt")):
            assert {one.dtype for one in found.model.parameters()} == {torch.float64}
            assert found.predict(3, random_state=1) == model.predict(3, random_state=1)

    @pytest.mark.parametrize("clean", [False, True])
    def test_an_unfitted_model_may_be_saved_and_says_that_it_is(self, tmp_path, clean):
        path = str(tmp_path / "m.pt")
        tiny_model().save(path, clean=clean)
        assert not os.path.exists(path + ".ckpt")
        with pytest.raises(ValueError, match=NO_SERIES):
            KronosModel.load(path).predict(4)

    def test_clean_saves_hold_no_series_and_leave_the_model_as_it_was(self, series, tmp_path):
        model = tiny_model().fit(series)
        model.save(str(tmp_path / "m.pt"), clean=True)
        assert model.training_series == series
        loaded = KronosModel.load(str(tmp_path / "m.pt"))
        assert loaded.training_series is None
        with pytest.raises(ValueError, match=NO_SERIES):
            loaded.predict(4)
        options = {"n": 4, "random_state": 1}
        assert loaded.predict(series=series, **options) == model.predict(**options)

    def test_best_weights_of_a_fit_may_be_loaded_at_its_end(self, series, tmp_path):
        model = tiny_model(work_dir=str(tmp_path), save_checkpoints=True, n_epochs=3)
        model.fit(series[:70], val_series=series[50:], load_best=True)
        best = KronosModel.load_from_checkpoint(model.model_name, str(tmp_path), best=True)
        for name, value in best.model.state_dict().items():
            torch.testing.assert_close(model.model.state_dict()[name], value)


class TestWeights:
    @pytest.fixture(scope="class")
    def saved(self, series, tmp_path_factory):
        folder = tmp_path_factory.mktemp("saved")
        model = tiny_model(work_dir=str(folder), model_name="original", save_checkpoints=True)
        model.fit(series, val_series=series[60:])
        model.save(str(folder / "manual.pt"))
        return folder, model

    def options(self, folder, **kwargs):
        return {"work_dir": str(folder), "best": False, "map_location": "cpu", **kwargs}

    def test_they_forecast_the_same_and_can_be_trained_further(self, saved, series):
        folder, model = saved
        expected = model.predict(6, series=series, random_state=3)
        by_path, by_name = tiny_model(), tiny_model(model_name="other")
        by_path.load_weights(str(folder / "manual.pt"), map_location="cpu")
        by_name.load_weights_from_checkpoint("original", str(folder), None, False)
        for loaded in (by_path, by_name):
            assert loaded.predict(6, series=series, random_state=3) == expected
            assert loaded.model.dtype == torch.float32
        by_name.fit(series)
        assert by_name.predict(6, series=series, random_state=3) != expected

    @pytest.mark.parametrize(
        "changes",
        [
            {"optimizer_cls": torch.optim.SGD, "optimizer_kwargs": {"lr": 0.1}},
            {"optimizer_kwargs": {"lr": 0.1}},
            {"tokenizer_batch_size": 4, "n_epochs_tokenizer": 7, "mirror": 0.0},
            {"temperature": 0.5, "num_point_samples": 3},
            {"pl_trainer_kwargs": {"accelerator": "cpu", "max_epochs": 3}},
        ],
        ids=str,
    )
    def test_what_says_nothing_of_the_networks_may_differ(self, saved, changes):
        tiny_model(**changes).load_weights(str(saved[0] / "manual.pt"), map_location="cpu")

    @pytest.mark.parametrize(
        "changes",
        [
            {"input_chunk_length": 25},
            {"d_model": 32},
            {"s1_bits": 5},
            {"representation": "window"},
            {"likelihood": QuantileRegression([0.1, 0.5, 0.9])},
        ],
        ids=str,
    )
    def test_what_does_must_not(self, saved, changes):
        with pytest.raises(ValueError, match=OTHER_PARAMETERS):
            tiny_model(**changes).load_weights(str(saved[0] / "manual.pt"))

    def test_torchs_own_weights_only_is_refused(self, saved):
        with pytest.raises(ValueError, match="weights_only"):
            tiny_model().load_weights_from_checkpoint(
                "original", **self.options(saved[0], weights_only=True)
            )

    def test_pretraining_fine_tuning_forecasting(self, saved, series):
        folder, _ = saved
        kwargs = {"work_dir": str(folder), "model_name": "tuned", "save_checkpoints": True}
        tuned = tiny_model(**kwargs, force_reset=True)
        tuned.load_weights_from_checkpoint("original", **self.options(folder, best=True))
        tuned.fit(series[:70], val_series=series[60:])
        loaded = KronosModel.load_from_checkpoint("tuned", str(folder), best=True)
        assert len(loaded.predict(4, series=series)) == 4


class TestTraining:
    def test_each_fit_trains_as_many_epochs_as_it_is_told(self, series):
        model = tiny_model(n_epochs=3)
        for epochs, trained in ((0, 3), (0, 3), (2, 2), (0, 3), (4, 4)):
            model.fit(series, epochs=epochs, max_samples_per_ts=4)
            assert model.epochs_trained == trained

    @pytest.mark.parametrize(
        "scheduler",
        [
            (torch.optim.lr_scheduler.StepLR, {"step_size": 10}),
            (torch.optim.lr_scheduler.ExponentialLR, {"gamma": 0.09}),
            (
                torch.optim.lr_scheduler.ReduceLROnPlateau,
                {"monitor": "train_loss", "interval": "epoch", "frequency": 2},
            ),
        ],
        ids=lambda one: one[0].__name__,
    )
    def test_schedulers(self, series, scheduler):
        cls, kwargs = scheduler
        tiny_model(lr_scheduler_cls=cls, lr_scheduler_kwargs=kwargs).fit(series)

    def test_validation_series_must_have_the_same_components(self, series):
        message = "dimensions of the .*series.* between the training and validation set"
        with pytest.raises(ValueError, match=message):
            tiny_model().fit(series, val_series=series["close"])
        with pytest.raises(ValueError, match=r"sequence/list index `1` do not match"):
            tiny_model().fit(series, val_series=[series, series["close"]])

    def test_both_stages_get_the_users_data_loaders(self, series):
        model = tiny_model()
        with patch.object(pl.Trainer, "fit") as fit:
            model.fit(series[:60], val_series=series[60:])
        assert fit.call_count == 2
        windows = fit.call_args.kwargs["datamodule"]
        train, val = windows.train_dataloader(), windows.val_dataloader()
        assert isinstance(train, DataLoader) and isinstance(train.sampler, RandomSampler)
        assert isinstance(val.sampler, SequentialSampler)
        assert type(val.dataset) is type(train.dataset)
        wanted = {"batch_size": 5, "drop_last": True, "pin_memory": False}
        with patch.object(pl.Trainer, "fit") as fit:
            model.fit(series[:60], val_series=series[60:], dataloader_kwargs=wanted)
        windows = fit.call_args.kwargs["datamodule"]
        for loader in (windows.train_dataloader(), windows.val_dataloader()):
            assert {key: getattr(loader, key) for key in wanted} == wanted

    @pytest.mark.parametrize("from_dataset", [False, True])
    def test_the_last_trainer_made_is_the_predictors(self, series, from_dataset):
        model = tiny_model(n_epochs=4)
        with patch.object(TorchForecastingModel, "_init_trainer") as init:
            if from_dataset:
                model._learn_series([series])
                model.fit_from_dataset(
                    model._build_train_dataset([series] * 2, None, None, None, None), epochs=3
                )
            else:
                model.fit([series] * 2, epochs=3)
            init.assert_called_with(max_epochs=3, trainer_params=ANY)
            model.fit([series] * 2)
            init.assert_called_with(max_epochs=4, trainer_params=ANY)

    def test_a_learning_rate_search_leaves_the_model_as_it_was(self, series):
        found = []
        for _ in range(2):
            model = tiny_model()
            search = model.lr_find(series[:60], val_series=series[60:], epochs=5, num_training=20)
            assert isinstance(search, _LRFinder)
            assert model.model is None and not model._fit_called
            with pytest.raises(ValueError):
                model.predict(3, series=series)
            found.append(search.results["loss"])
        np.testing.assert_allclose(found[0], found[1], rtol=1e-6)

    @pytest.mark.parametrize("chosen", [["close"], COMPONENTS])
    @pytest.mark.parametrize("n", [2, 6, 9])
    def test_more_and_fewer_series_than_bars(self, series, chosen, n):
        own = series[chosen]
        model = tiny_model().fit(own[:30])
        for many in (5, 1):
            found = model.predict(n, series=[own[:30]] * many)
            assert [len(one) for one in found] == [n] * many


class Calls(Metric):
    """Counts how often it was called."""

    def __init__(self):
        super().__init__()
        self.add_state("calls", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds, target):
        assert preds.shape == target.shape and preds.ndim == 2
        self.calls += 1

    def compute(self):
        return self.calls.float()


class TestTorchMetrics:
    @pytest.mark.parametrize("likelihood", [None, QuantileRegression([0.1, 0.5, 0.9])])
    def test_they_compare_the_bar_after_the_context(self, series, likelihood):
        metrics = MetricCollection([MeanAbsoluteError(), MeanAbsolutePercentageError()])
        model = tiny_model(torch_metrics=metrics, likelihood=likelihood, n_epochs_tokenizer=1)
        model.fit(series[:60], val_series=series[40:])
        logged = model.trainer.callback_metrics
        model.set_sampling(top_k=1, point_forecast="sample")
        contexts = [series[40 : 64 + i] for i in range(60 - 24 - 6 + 1)]
        found = np.concatenate([one.values() for one in model.predict(1, series=contexts)])
        actual = series.values()[64 : 64 + len(contexts)]
        expected = np.abs(found - actual).mean()
        assert float(logged["val_MeanAbsoluteError"]) == pytest.approx(expected, rel=1e-3)
        assert np.isfinite(float(logged["train_MeanAbsolutePercentageError"]))

    def test_they_see_each_batch_and_are_kept_by_checkpoints(self, series, tmp_path):
        model = tiny_model(
            torch_metrics=Calls(), batch_size=8, work_dir=str(tmp_path), save_checkpoints=True
        )
        model.fit(series)
        assert float(model.trainer.callback_metrics["train_Calls"]) == np.ceil((100 - 29) / 8)
        loaded = KronosModel.load_from_checkpoint(
            model.model_name, str(tmp_path), best=False, trusted=True
        )
        assert isinstance(loaded.model.train_metrics, MetricCollection)
        assert len(loaded.model.train_metrics) == 1

    def test_what_is_no_metric_is_refused(self, series):
        with pytest.raises(ValueError, match="torchmetrics"):
            tiny_model(torch_metrics=["invalid"]).fit(series)


class TestSampleWeights:
    @pytest.mark.parametrize(
        "kind, many",
        [("linear", False), ("exponential", True), ("one", True), ("each component", False)],
    )
    def test_they_change_what_is_learned_and_repeat(self, series, kind, many):
        weights = kind
        if kind in ("one", "each component"):
            own = series["close"] if kind == "one" else series
            ramp = np.linspace(0, 1, len(series))[:, None].repeat(own.n_components, axis=1)
            weights = own.with_values(ramp)
            weights = [weights] * 2 if many else weights
        data = [series] * 2 if many else series
        fits = [
            tiny_model().fit(data, sample_weight=w, max_samples_per_ts=20)
            for w in (weights, weights, None)
        ]
        first, same, plain = (one.training_history["train_loss"].to_numpy() for one in fits)
        np.testing.assert_allclose(first, same, rtol=1e-6)
        assert (np.abs(first - plain) > 1e-4).all()

    def test_weights_of_one_change_nothing(self, series):
        ones = series["close"].with_values(np.ones((len(series), 1)))
        weighted = tiny_model().fit(series, sample_weight=ones).training_history
        plain = tiny_model().fit(series).training_history
        pd.testing.assert_frame_equal(weighted, plain, rtol=1e-4)

    def test_what_darts_changes_for_them_is_put_back(self, series):
        model = tiny_model().fit(series, sample_weight="linear")
        assert model.model.train_criterion.reduction == "mean"
        assert model.model.train_criterion_reduction is None

    def test_validation_may_have_its_own(self, series):
        ones = series["close"].with_values(np.full((len(series), 1), 2.0))
        weighted = tiny_model().fit(series, val_series=series, val_sample_weight=ones)
        plain = tiny_model().fit(series, val_series=series)
        twice = weighted.training_history["val_s1_loss"] / plain.training_history["val_s1_loss"]
        np.testing.assert_allclose(twice.dropna(), 2.0, rtol=1e-5)

    def test_bad_ones_are_refused(self, series):
        refused = {
            "could not find values in index range": series["close"][:-1],
            "must have the same length": [series, series],
            "number of components in `sample_weight`": series[["open", "close"]],
            "Invalid `sample_weight` value": "invalid",
            "finite numbers >= 0": series["close"] * -1,
            "0 in the horizons of all windows": series["close"].with_values(
                (np.arange(100.0)[:, None] < 24) * 1.0
            ),
        }
        for message, weights in refused.items():
            model = tiny_model()
            with pytest.raises(ValueError, match=message):
                model.fit(series, sample_weight=weights)
            assert model.model is None
        with pytest.raises(ValueError, match="must cover the horizons of all windows"):
            tiny_model().fit(series, sample_weight=series["close"][60:])


class TestGlobalModels:
    def test_several_series(self, series):
        model = tiny_model().fit([series, series[:60]])
        with pytest.raises(ValueError, match=NO_SERIES):
            model.predict(1)
        assert len(model.predict(9, series=series)) == 9
        assert len(model.predict(3, series=[series, series[:60]])) == 2

    def test_static_covariates_travel_to_the_forecast(self, series):
        static = series.with_static_covariates(pd.DataFrame({"a": [0.0], "b": [1.0]}))
        found = tiny_model().fit(static).predict(3)
        assert found.static_covariates.equals(static.static_covariates)

    def test_batches_of_any_size_forecast_the_same(self, series):
        model = tiny_model(**GREEDY).fit(series)
        contexts = [series, series[:60], series[:80]]
        expected = model.predict(9, series=contexts)
        for options in (
            {"batch_size": 1},
            {"batch_size": 2},
            {"dataloader_kwargs": {"batch_size": 7}},
            {"n_jobs": -1},
        ):
            found = model.predict(9, series=contexts, **options)
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_allclose(one.values(), other.values(), rtol=1e-4)

    def test_unknown_datasets_are_refused(self, fitted):
        with pytest.raises(ValueError):
            fitted.predict_from_dataset(n=1, dataset="unsupported")

    def test_few_windows_and_few_samples_train(self, series):
        tiny_model(batch_size=64).fit(series[:35])
        tiny_model().fit(series, max_samples_per_ts=3)
        tiny_model().fit(series, stride=5)

    def test_residuals_take_a_series_of_one_window_more(self):
        series = candles(24 + 6 + 2)
        assert len(tiny_model().residuals(series)) == 2


class TestRandomness:
    def test_forecasts_differ_unless_a_random_state_is_given(self, series):
        kwargs = {"n": 9, "num_samples": 2}
        before = series.copy()
        first = tiny_model().fit(series, max_samples_per_ts=3)
        one, two = (first.predict(**kwargs).all_values() for _ in range(2))
        assert (one != two).any() and series == before
        second = tiny_model().fit(series, max_samples_per_ts=3)
        np.testing.assert_array_equal(second.predict(**kwargs).all_values(), one)
        given = [second.predict(**kwargs, random_state=38).all_values() for _ in range(2)]
        np.testing.assert_array_equal(*given)
        # A random state leaves the model's own randomness where it was.
        np.testing.assert_array_equal(second.predict(**kwargs).all_values(), two)
        assert (second.predict(**kwargs, random_state=32).all_values() != given[0]).any()

    def test_without_a_random_state_two_fits_differ(self, series):
        model = tiny_model(random_state=None)
        found = [
            model.fit(series, max_samples_per_ts=3).predict(9, num_samples=2).all_values()
            for _ in range(2)
        ]
        assert (found[0] != found[1]).any()

    @pytest.mark.parametrize("retrain", [True, False])
    def test_historical_forecasts(self, series, retrain):
        kwargs = {
            "series": series[:40],
            "num_samples": 2,
            "start": -1,
            "start_format": "position",
            "forecast_horizon": 6,
            "overlap_end": True,
            "retrain": retrain,
            "fit_kwargs": {"max_samples_per_ts": 3} if retrain else None,
            "enable_optimization": not retrain,
        }
        model = tiny_model()
        if not retrain:
            model.fit(series[:40])
        one, two = (model.historical_forecasts(**kwargs).all_values() for _ in range(2))
        assert (one == two).all() if retrain else (one != two).any()
        given = [
            model.historical_forecasts(**kwargs, random_state=seed).all_values()
            for seed in (38, 38, 32)
        ]
        np.testing.assert_array_equal(given[0], given[1])
        assert (given[1] != given[2]).any()


class Counter(pl.Callback):
    """Counts epochs."""

    def __init__(self, count):
        self.count = count

    def on_train_epoch_end(self, *args):
        self.count += 1


class TestTrainer:
    def trainer(self, **kwargs):
        return pl.Trainer(**{**CPU, "max_epochs": 1, "logger": False, **kwargs})

    def test_a_custom_trainer_forecasts_as_the_built_in_one(self, series):
        custom = tiny_model().fit(series, trainer=self.trainer(enable_checkpointing=False))
        assert custom.epochs_trained == 1
        assert custom.predict(4) == tiny_model().fit(series).predict(4)

    def test_a_custom_trainer_with_the_models_callbacks_saves_checkpoints(self, series, tmp_path):
        model = tiny_model(work_dir=str(tmp_path), save_checkpoints=True, model_name="m")
        model.fit(series, trainer=self.trainer(callbacks=model.trainer_params["callbacks"]))
        loaded = KronosModel.load_from_checkpoint("m", str(tmp_path), best=False)
        assert loaded.predict(4) == model.predict(4)

    @pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_all_data_types_train_in_all_precisions(self, series, precision, dtype):
        model = tiny_model(pl_trainer_kwargs={**CPU, "precision": precision})
        found = model.fit(series.astype(dtype)).predict(3)
        # A precision of the user's own is the forecast's, as everywhere in Darts.
        assert found.dtype == (np.float64 if precision == "64-true" else dtype)
        assert model.trainer.precision == precision
        assert np.isfinite(found.values()).all()

    def test_an_unknown_trainer_parameter_is_an_error(self, series):
        with pytest.raises(TypeError, match="precisionn"):
            tiny_model(pl_trainer_kwargs={**CPU, "precisionn": "32-true"}).fit(series)

    def test_callbacks_are_counted_and_kept_apart(self, series, tmp_path):
        counters = [Counter(0), Counter(2)]
        model = tiny_model(pl_trainer_kwargs={**CPU, "callbacks": counters})
        model.fit(series, epochs=2)
        assert len(model.trainer_params["callbacks"]) == 2
        assert [one.count for one in counters] == [2, 4]
        model = tiny_model(
            work_dir=str(tmp_path),
            save_checkpoints=True,
            pl_trainer_kwargs={**CPU, "callbacks": copy.deepcopy(counters)},
        )
        kinds = [type(one) for one in model.trainer_params["callbacks"]]
        assert kinds[0] is pl.callbacks.ModelCheckpoint and kinds[-2:] == [Counter, Counter]

    def test_early_stopping_needs_a_value_that_is_logged(self, series):
        def stopper(monitor):
            stop = pl.callbacks.EarlyStopping(monitor=monitor, stopping_threshold=1e9)
            return tiny_model(pl_trainer_kwargs={**CPU, "callbacks": [stop]})

        model = stopper("val_loss").fit(series, val_series=series, epochs=10)
        assert model.epochs_trained == 1
        with pytest.raises(RuntimeError, match="invalid_variable"):
            stopper("invalid_variable").fit(series, val_series=series, epochs=10)
