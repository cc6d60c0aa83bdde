import multiprocessing
import sys
from functools import partial

import numpy as np
import optuna
import pytest
import released
from darts.metrics import mae
from darts.utils.likelihood_models.torch import QuantileRegression
from factories import TINY, candles, tiny_model
from optuna.trial import FixedTrial, TrialState
from pytorch_lightning.callbacks import Callback, EarlyStopping

from darts_kronos import KronosModel, tuning
from darts_kronos.search_space import default_point

SERIES = candles(110)
TRAIN, VAL = SERIES[:60], SERIES[50:]

FIXED = {**TINY, "ffn_dropout": 0.0, "resid_dropout": 0.0, "token_dropout": 0.0}
"""All of a small model: what is left to search is learning rates and sampling."""

QUICK = {"stride": 20, "num_samples": 4, "show_progress": False}


@pytest.fixture
def random_sampler():
    return optuna.samplers.RandomSampler(seed=0)


@pytest.fixture(scope="module")
def fitted():
    return tiny_model().fit(TRAIN)


def study_of(objective, n_trials=1, **kwargs):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), **kwargs)
    study.optimize(objective, n_trials=n_trials)
    return study


class TestSearchSpace:
    @pytest.mark.parametrize(
        "fixed", [{}, {"n_heads": 6}, {"tokenizer_n_heads": 2}, {"size": "mini"}, {"d_model": 24}]
    )
    def test_it_holds_valid_parameters(self, random_sampler, fixed):
        study = optuna.create_study(sampler=random_sampler)
        for _ in range(20):
            found = tuning.suggest_parameters(study.ask(), fixed)
            assert not set(found) & set(fixed)
            KronosModel(input_chunk_length=24, output_chunk_length=6, **found, **fixed)

    def test_it_covers_both_stages_and_the_sampling(self, random_sampler):
        found = tuning.suggest_parameters(optuna.create_study(sampler=random_sampler).ask())
        assert {"s1_bits", "n_epochs_tokenizer", "tokenizer_optimizer_kwargs"} <= set(found)
        assert {"d_model", "n_layers", "n_epochs", "optimizer_kwargs"} <= set(found)
        assert {"temperature", "top_k", "top_p"} <= set(found)

    def test_what_is_fixed_is_not_asked_for(self):
        fixed = {
            **FIXED,
            **{"temperature": 1.0, "top_k": None, "top_p": 0.95},
            "optimizer_kwargs": {"lr": 1e-3},
            "tokenizer_optimizer_kwargs": {"lr": 1e-3},
        }
        trial = FixedTrial({})
        assert tuning.suggest_parameters(trial, fixed) == {}

    def test_of_a_stage_that_is_left_out_nothing_is_asked_for(self, random_sampler):
        ask = optuna.create_study(sampler=random_sampler).ask
        weights = {"local_dir": "weights"}
        found = tuning.suggest_parameters(ask(), {**weights, "n_epochs_tokenizer": 0})
        assert "optimizer_kwargs" in found and "tokenizer_optimizer_kwargs" not in found
        found = tuning.suggest_parameters(ask(), {**weights, "n_epochs": 0})
        assert "tokenizer_optimizer_kwargs" in found and "optimizer_kwargs" not in found
        assert not {"ffn_dropout", "token_dropout"} & set(found)

    def test_with_a_size_networks_are_that_sizes(self, random_sampler):
        study = optuna.create_study(sampler=random_sampler)
        found = tuning.suggest_parameters(study.ask(), {"size": "base"})
        assert not {"d_model", "n_layers", "s1_bits", "tokenizer_d_model"} & set(found)
        assert found["optimizer_kwargs"]["lr"] <= 1e-3

    def test_the_first_trial_is_the_default_model(self):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        study.enqueue_trial(default_point({}))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("warnings.warn", lambda *a, **k: pytest.fail(f"out of range: {a}"))
            found = tuning.suggest_parameters(study.ask())
        default = KronosModel(24, 6)
        # None is the value of the size "nano".
        sized = KronosModel(24, 6, **found)
        for name in ("tokenizer_optimizer_kwargs",):
            assert getattr(default, name)["lr"] == getattr(sized, name)["lr"]
        assert found["s1_bits"] == found["s2_bits"] == 7
        assert (found["d_model"], found["ff_dim"], found["n_layers"]) == (96, 192, 3)
        assert (found["tokenizer_d_model"], found["tokenizer_ff_dim"]) == (64, 128)
        assert (found["temperature"], found["top_p"], found["top_k"]) == (1.0, 1.0, None)

    def test_with_weights_to_start_from_networks_are_theirs(self, random_sampler, tmp_path):
        released.write(tmp_path)
        fixed = {"local_dir": str(tmp_path), "enable_finetuning": True}
        found = tuning.suggest_parameters(optuna.create_study(sampler=random_sampler).ask(), fixed)
        assert not {"d_model", "n_layers", "s1_bits", "tokenizer_d_model"} & set(found)
        assert found["optimizer_kwargs"]["lr"] <= 1e-4
        KronosModel(input_chunk_length=24, output_chunk_length=6, **found, **fixed)


class TestObjectives:
    def test_the_crps_is_that_of_backtests_over_the_last_close(self):
        fixed = {**FIXED, "optimizer_kwargs": {"lr": 1e-3}, "top_k": 1, "top_p": None}
        fixed |= {"tokenizer_optimizer_kwargs": {"lr": 1e-3}, "temperature": 1.0}
        options = {"stride": 7, "num_samples": 2}
        study = study_of(tuning.crps_objective(TRAIN, VAL, **options, **fixed))
        model = KronosModel(**fixed).fit(TRAIN, val_series=VAL)
        # Greedy paths are one path, whose CRPS is its absolute error.
        forecasts = model.historical_forecasts(
            VAL, forecast_horizon=6, stride=7, retrain=False, last_points_only=False, num_samples=2
        )
        close = VAL["close"].values()[:, 0]
        errors = []
        for forecast in forecasts:
            at = VAL.get_index_at_point(forecast.start_time())
            path = forecast["close"].all_values()[:, 0, 0]
            errors.append(np.abs(path - close[at : at + 6]).mean() / close[at - 1])
        assert study.best_value == pytest.approx(np.mean(errors), rel=1e-6)

    def test_a_metric_of_darts_may_be_measured(self):
        options = {"stride": 20, "num_samples": 4, "component": "volume", "metric": mae}
        study = study_of(tuning.crps_objective(TRAIN, VAL, **options, **FIXED))
        assert study.best_value > 100  # in shares

    def test_a_metric_that_gives_no_number_fails(self):
        objective = tuning.crps_objective(
            TRAIN, VAL, stride=20, num_samples=4, metric=lambda a, b: np.zeros(2), **FIXED
        )
        with pytest.raises(ValueError, match="one number for a forecast of one component"):
            study_of(objective)

    def test_the_loss_is_that_of_the_predictors_last_epoch(self):
        fixed = FIXED | {"n_epochs": 2}
        study = study_of(tuning.val_loss_objective(TRAIN, VAL, **fixed))
        trial = study.best_trial
        history = tuning.best_model(study, TRAIN, VAL).training_history
        assert trial.value == pytest.approx(history["val_loss"].iloc[-1])
        assert trial.intermediate_values[1] == pytest.approx(trial.value)
        assert len(trial.intermediate_values) == 2

    def test_users_values_win_over_those_suggested(self):
        fixed = FIXED | {"optimizer_kwargs": {"weight_decay": 0.7}, "temperature": 0.9}
        study = study_of(tuning.crps_objective(TRAIN, VAL, stride=20, num_samples=2, **fixed))
        found = tuning.best_parameters(study)
        assert found["optimizer_kwargs"]["weight_decay"] == 0.7
        assert found["optimizer_kwargs"]["lr"] == study.best_params["lr"]
        assert found["temperature"] == 0.9 and "temperature" not in study.best_params
        assert found["d_model"] == 16

    def test_callbacks_do_not_go_from_one_trial_to_the_next(self):
        seen = []

        class Counts(Callback):
            def on_train_epoch_end(self, trainer, pl_module):
                seen.append(trainer.current_epoch)

        kwargs = TINY["pl_trainer_kwargs"] | {
            "callbacks": [EarlyStopping("val_loss", min_delta=100.0, patience=1), Counts()]
        }
        fixed = FIXED | {"n_epochs": 4, "pl_trainer_kwargs": kwargs}
        study = study_of(tuning.val_loss_objective(TRAIN, VAL, **fixed), 2)
        counted = [list(trial.intermediate_values) for trial in study.trials]
        assert counted == [[0, 1], [0, 1]]
        with pytest.raises(ValueError, match="could not keep pl_trainer_kwargs"):
            tuning.best_parameters(study)
        assert tuning.best_parameters(study, pl_trainer_kwargs=None)["n_epochs"] == 4

    def test_losses_of_different_tokens_are_not_compared(self):
        def suggest(trial):
            return {"s1_bits": trial.suggest_int("s1_bits", 3, 5)}

        fixed = {name: value for name, value in FIXED.items() if name != "s1_bits"}
        for objective in (
            tuning.val_loss_objective(TRAIN, VAL, suggest=suggest, **fixed),
            tuning.crps_objective(TRAIN, VAL, suggest=suggest, prune=True, **fixed),
        ):
            with pytest.raises(ValueError, match="`suggest` must not give s1_bits"):
                study_of(objective)

    @pytest.mark.parametrize("prune", [True, False])
    def test_a_loss_that_is_no_number_is_a_failed_trial(self, prune):
        fixed = FIXED | {"n_epochs": 3, "optimizer_kwargs": {"lr": 1e30}}
        objective = tuning.val_loss_objective(TRAIN, VAL, prune=prune, **fixed)
        study = study_of(objective, 2, pruner=optuna.pruners.MedianPruner(0))
        assert [trial.state for trial in study.trials] == [TrialState.FAIL] * 2
        assert "no finite number" in study.trials[0].user_attrs["error"]
        with pytest.raises(ValueError, match="No trial .* completed; 2 failed, .* finite number"):
            tuning.best_parameters(study)


class TestPruning:
    def test_a_bad_trial_stops_in_the_predictor_stage(self, tmp_path):
        """And a model of it that was saved holds no trial."""

        class Worst(optuna.pruners.BasePruner):
            def prune(self, study, trial):
                return trial.number > 0

        fixed = FIXED | {"n_epochs": 3, "save_checkpoints": True}
        fixed |= {"model_name": "tuned", "work_dir": str(tmp_path)}
        study = tuning.tune(
            TRAIN, VAL, objective="val_loss", n_trials=2, pruner=Worst(), show_progress=False,
            storage=tmp_path, **fixed,
        )  # fmt: skip
        assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.PRUNED]
        assert [len(trial.intermediate_values) for trial in study.trials] == [3, 1]
        loaded = KronosModel.load_from_checkpoint("tuned_0", str(tmp_path), best=False)
        assert loaded.predict(3, VAL[:40]).n_timesteps == 3

    def test_with_it_trials_are_alike_in_tokens_and_epochs(self, tmp_path):
        fixed = {"input_chunk_length": 24, "output_chunk_length": 6}
        asked = {}
        for name, options in {
            "crps": {},
            "crps pruned": {"pruner": optuna.pruners.MedianPruner()},
            "loss": {"objective": "val_loss"},
            "loss unpruned": {"objective": "val_loss", "pruner": optuna.pruners.NopPruner()},
        }.items():
            objective = {}

            def stop(study, trial, found=objective):
                found.update(trial.params)

            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(KronosModel, "fit", fail)
                tuning.tune(
                    TRAIN, VAL, n_trials=1, study_name=name, callbacks=[stop], storage=tmp_path,
                    show_progress=False, **options, **fixed,
                )  # fmt: skip
            asked[name] = set(objective)
        tokens = {"s1_bits", "s2_bits", "tokenizer_d_model", "tokenizer_lr", "n_epochs_tokenizer"}
        sampling = {"temperature", "top_p", "top_k"}
        assert tokens | sampling | {"n_epochs", "lr"} <= asked["crps"]
        assert asked["crps"] - asked["crps pruned"] == tokens | {"n_epochs"}
        assert asked["crps pruned"] - asked["loss"] == sampling
        assert asked["loss unpruned"] - asked["loss"] == {"n_epochs"}


def fail(self, *args, **kwargs):
    raise MemoryError("no memory left")


def worker(storage):
    KronosModel.fit = fail
    tuning.tune(TRAIN, VAL, n_trials=6, storage=storage, **QUICK, **FIXED)


class TestTune:
    def test_a_failing_trial_is_recorded_and_the_study_goes_on(self, tmp_path):
        def suggest(trial):
            if trial.number == 1:
                raise RuntimeError("the machine is on fire")
            return {"temperature": trial.suggest_float("temperature", 0.5, 1.5)}

        study = tuning.tune(
            TRAIN, VAL, n_trials=3, storage=tmp_path, suggest=suggest, **QUICK, **FIXED
        )
        states = [trial.state for trial in study.trials]
        assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
        assert study.trials[1].user_attrs["error"] == "RuntimeError: the machine is on fire"

    def test_it_goes_on_to_the_number_of_trials_and_the_best_can_be_trained(self, tmp_path):
        options = {"storage": tmp_path / "studies", **QUICK, **FIXED}
        assert len(tuning.tune(TRAIN, VAL, n_trials=1, **options).trials) == 1
        study = tuning.tune(TRAIN, VAL, n_trials=2, **options)
        assert len(study.trials) == 2
        assert (tmp_path / "studies" / "studies.db").is_file()
        assert len(tuning.tune(TRAIN, VAL, n_trials=2, **options).trials) == 2
        parameters = tuning.best_parameters(study, random_state=5)
        assert parameters["temperature"] == study.best_params["temperature"]
        assert (parameters["d_model"], parameters["random_state"]) == (16, 5)
        model = tuning.best_model(study, TRAIN, fit_kwargs={"verbose": False}, n_epochs=2)
        assert model.sampling["temperature"] == study.best_params["temperature"]
        assert (model.training_history["stage"] == "predictor").sum() == 2

    def test_a_seed_does_not_repeat_trials_in_a_study_that_goes_on(self, tmp_path):
        def suggest(trial):
            return {"temperature": trial.suggest_float("temperature", 0.5, 1.5)}

        first = {"temperature": 0.9}
        options = {"storage": tmp_path, "suggest": suggest, "first": first, **QUICK, **FIXED}
        for n_trials in (2, 4):
            study = tuning.tune(
                TRAIN, VAL, n_trials=n_trials, sampler=optuna.samplers.TPESampler(seed=0), **options
            )
        assert study.trials[0].params == first
        assert len({trial.params["temperature"] for trial in study.trials}) == 4

    def test_a_trial_that_ctrl_c_ended_is_made_again(self, tmp_path, monkeypatch):
        options = {"storage": tmp_path, **QUICK, **FIXED}

        def interrupted(self, *args, **kwargs):
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(KronosModel, "fit", interrupted)
            with pytest.raises(KeyboardInterrupt):
                tuning.tune(TRAIN, VAL, n_trials=1, **options)
        study = tuning.tune(TRAIN, VAL, n_trials=1, **options)
        states = [trial.state for trial in study.trials]
        assert states == [TrialState.FAIL, TrialState.COMPLETE]
        # The default model is the first to be tried, still.
        assert study.trials[1].system_attrs["fixed_params"] == default_point(FIXED)
        assert len(tuning.tune(TRAIN, VAL, n_trials=1, **options).trials) == 2

    def test_a_metric_has_the_same_name_in_every_process(self):
        assert tuning._called(partial(mae, n_jobs=1)) == "mae(n_jobs=1)"
        one, other = (tuning._called(f) for f in (lambda a, p: 1.0, lambda a, p: 2.0))
        assert one != other and one == tuning._called(lambda a, p: 1.0)
        assert tuning._called(partial(partial(mae, n_jobs=1), verbose=False)) == (
            "mae(n_jobs=1, verbose=False)"
        )

    def test_numbers_of_numpy_are_kept(self, tmp_path):
        numbers = {"input_chunk_length": np.int64(24), "clip": np.float64(4.0)}
        study = tuning.tune(TRAIN, VAL, n_trials=1, storage=tmp_path, **QUICK, **FIXED | numbers)
        assert tuning.best_parameters(study)["input_chunk_length"] == 24

    def test_with_other_candles_or_settings_it_does_not_go_on(self, tmp_path):
        options = {"n_trials": 1, "storage": tmp_path / "s.log", **QUICK}
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(KronosModel, "fit", fail)
            tuning.tune(TRAIN, VAL, **options, **FIXED)
            machine = {"work_dir": str(tmp_path), "pl_trainer_kwargs": None}
            assert len(tuning.tune(TRAIN, VAL, **options, **FIXED | machine).trials) == 1
            for series, changes, message in (
                ((TRAIN, VAL * 2), {}, "val: "),
                ((TRAIN, VAL), {"metric": mae}, "metric: .*now .*mae"),
                ((TRAIN, VAL), {"input_chunk_length": 23}, "fixed parameters: "),
                ((TRAIN, VAL), {"objective": "val_loss"}, "objective: crps, now val_loss"),
            ):
                with pytest.raises(ValueError, match=message):
                    tuning.tune(*series, **options | FIXED | changes)
        own = optuna.create_study(storage=tuning.open_storage(tmp_path), study_name="mine")
        own.optimize(lambda trial: 0.0, n_trials=1)
        with pytest.raises(ValueError, match="not begun by `tune`"):
            tuning.tune(TRAIN, VAL, study_name="mine", **options | {"storage": tmp_path}, **FIXED)
        with pytest.raises(ValueError, match="another objective"):
            tuning.best_parameters(own)

    def test_weights_are_told_apart_by_what_they_are(self, tmp_path):
        for name in ("a", "b"):
            released.write(tmp_path / name)
        released.write(tmp_path / "c", seed=1)
        a, b, c = (tuning._weights_in({"local_dir": tmp_path / name}) for name in "abc")
        assert a == b != c and set(a) == {"local_dir"}
        assert tuning._weights_in({"local_dir": None}) == {}

    @pytest.mark.skipif(sys.platform != "linux", reason="starts its workers by a fork")
    @pytest.mark.parametrize("name", ["shared.db", "shared.log"])
    def test_workers_share_the_trials(self, tmp_path, name):
        """Those that fail in training too: what counts here is who takes which."""
        context = multiprocessing.get_context("fork")
        workers = [context.Process(target=worker, args=(tmp_path / name,)) for _ in range(2)]
        for one in workers:
            one.start()
        for one in workers:
            one.join()
        assert [one.exitcode for one in workers] == [0, 0]
        storage = tuning.open_storage(tmp_path / name)
        study = optuna.load_study(study_name="kronos", storage=storage)
        assert [trial.number for trial in study.trials] == list(range(len(study.trials)))
        # The last two may begin at the same time.
        assert 6 <= len(study.trials) <= 7
        assert all(trial.user_attrs["error"].startswith("MemoryError") for trial in study.trials)

    def test_losses_of_different_tokens_stop_it_at_once(self, tmp_path):
        def suggest(trial):
            return {"zeta": trial.suggest_float("zeta", 0.01, 0.1)}

        with pytest.raises(ValueError, match="must not give zeta"):
            tuning.tune(
                TRAIN, VAL, objective="val_loss", suggest=suggest, storage=tmp_path,
                show_progress=False, **FIXED,
            )  # fmt: skip

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"objective": "mae"}, "`objective` must be one of 'crps', 'val_loss'"),
            ({"objective": "val_loss", "metric": mae}, "are for the objective 'crps'"),
            ({"direction": "up"}, "`direction` must be"),
            ({"metric": "mae"}, "`metric` must be a function"),
            ({"n_trials": 0}, "`n_trials` must be an integer >= 1"),
            ({"stride": 0}, "`stride` must be an integer >= 1 or None"),
            ({"num_samples": 1}, "`num_samples` must be an integer >= 2"),
            ({"num_samples": 0, "metric": mae}, "`num_samples` must be an integer >= 1"),
            ({"timeout": -1}, "`timeout` must be a number of seconds > 0"),
            ({"component": "bid"}, "no component 'bid'"),
            ({"storage": 3}, "`storage` must be a folder"),
            ({"fit_kwargs": {"val_series": VAL}}, "must not hold val_series"),
            ({"temperature": -1.0}, "`temperature` must be a number > 0"),
            ({"n_layer": 3}, "n_layer"),
            ({"input_chunk_length": 60}, "Training series 0 is too short: it has 60 bars"),
            ({"train": []}, "Training series are missing"),
        ],
    )
    def test_bad_parameters_are_refused_before_anything_is_trained(self, tmp_path, wrong, message):
        options = {"train": TRAIN, "val": VAL, "storage": tmp_path, **FIXED} | wrong
        with pytest.raises(ValueError, match=message):
            tuning.tune(**options)
        assert not list(tmp_path.iterdir())

    def test_weights_are_fine_tuned_or_refused(self, tmp_path):
        released.write(tmp_path)
        fixed = {
            name: FIXED[name] for name in FIXED if name.startswith(("input", "output", "n_ep"))
        }
        fixed |= {"local_dir": str(tmp_path), "storage": tmp_path / "studies", **QUICK}
        with pytest.raises(ValueError, match="nothing is trained, .* `tune_sampling`"):
            tuning.tune(TRAIN, VAL, **fixed)
        study = tuning.tune(TRAIN, VAL, n_trials=1, enable_finetuning=True, **fixed)
        assert study.best_params["lr"] == pytest.approx(4e-5)

    def test_contexts_may_be_of_several_lengths(self, tmp_path):
        fixed = FIXED | {"input_chunk_length": (8, 50)}
        options = {"storage": tmp_path, **QUICK}
        with pytest.raises(ValueError, match="Validation series 0 .* has 40 bars, at least 56"):
            tuning.tune(TRAIN, VAL[:40], **options, **fixed)
        study = tuning.tune(TRAIN, VAL[:40], n_trials=1, objective="val_loss", **options, **fixed)
        assert np.isfinite(study.best_value)
        assert KronosModel(**tuning.best_parameters(study)).min_input_chunk_length == 8

    def test_the_chunk_lengths_are_asked_for(self, tmp_path):
        with pytest.raises(ValueError, match="Give `output_chunk_length`, in bars"):
            tuning.tune(TRAIN, VAL, storage=tmp_path, input_chunk_length=24)

    def test_what_is_no_plain_value_is_given_again(self, tmp_path):
        fixed = FIXED | {"likelihood": QuantileRegression([0.1, 0.5, 0.9])}
        study = tuning.tune(TRAIN, VAL, n_trials=1, storage=tmp_path, **QUICK, **fixed)
        with pytest.raises(ValueError, match="could not keep likelihood"):
            tuning.best_parameters(study)
        assert tuning.best_parameters(study, likelihood=None)["likelihood"] is None


class TestSampling:
    def test_the_best_one_stays_with_the_model_and_nothing_is_trained(self, fitted):
        fitted.set_sampling(temperature=1.1, top_p=None, top_k=None)
        weights = {k: v.clone() for k, v in fitted.model.state_dict().items()}
        study = tuning.tune_sampling(fitted, VAL, n_trials=4, **QUICK)
        assert study.trials[0].params == {"temperature": 1.1, "top_p": 1.0, "top_k": None}
        assert {name: fitted.sampling[name] for name in study.best_params} == study.best_params
        assert study.best_value == min(trial.value for trial in study.trials)
        assert all((v == weights[k]).all() for k, v in fitted.model.state_dict().items())

    def test_what_is_fixed_is_not_searched(self, fitted):
        study = tuning.tune_sampling(fitted, VAL, n_trials=2, top_k=3, top_p=None, **QUICK)
        assert set(study.best_params) == {"temperature"}
        assert fitted.sampling["top_k"] == 3 and fitted.sampling["top_p"] is None

    def test_after_an_error_the_sampling_is_as_it_was(self, fitted):
        before = fitted.sampling
        with pytest.raises(ZeroDivisionError):
            tuning.tune_sampling(fitted, VAL, n_trials=2, metric=lambda a, b: 1 / 0, **QUICK)
        assert fitted.sampling == before

    def test_bad_parameters_are_refused(self, fitted):
        with pytest.raises(ValueError, match="before the model is fitted"):
            tuning.tune_sampling(tiny_model(), VAL)
        with pytest.raises(ValueError, match="Validation series are missing"):
            tuning.tune_sampling(fitted, [])
        before = fitted.sampling
        for wrong, message in (
            ({"n_trials": 0}, "`n_trials`"),
            ({"top_k": 0}, "`top_k` must be"),
            ({"tempo": 1.0}, "Unknown sampling parameter tempo"),
            ({"val": VAL[:20]}, "Validation series 0 is too short"),
        ):
            with pytest.raises(ValueError, match=message):
                tuning.tune_sampling(**{"model": fitted, "val": VAL} | wrong)
        assert fitted.sampling == before
