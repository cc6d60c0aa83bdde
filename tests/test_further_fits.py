"""Fits after the first: what was there before is neither lost nor mistaken for this one's."""

import os
import shutil
import time

import pytest
import pytorch_lightning as pl
import torch
from factories import TINY, candles, tiny_model
from pytorch_lightning.callbacks import EarlyStopping

from darts_kronos import KronosModel

SERIES, VAL = candles(100), candles(70, seed=1)


class Fail(pl.Callback):
    """Raises what it is told to when an epoch begins."""

    def __init__(self, error=None, epoch=0):
        self.error, self.epoch = error, epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.error is not None and trainer.current_epoch == self.epoch:
            raise self.error


def saving(tmp_path, **changes):
    options = {"n_epochs": 2, "n_epochs_tokenizer": 2, "batch_size": 16}
    return tiny_model(
        work_dir=str(tmp_path), model_name="run", save_checkpoints=True, **(options | changes)
    )


def weights(model, part=""):
    state = model.model.state_dict()
    return {name: one.clone() for name, one in state.items() if name.startswith(part)}


def same(model, before):
    now = model.model.state_dict()
    return all(torch.equal(now[name], one) for name, one in before.items())


class TestTokenizerCutOff:
    def test_ctrl_c_before_its_first_epoch_ends_keeps_the_predictor(self, tmp_path):
        model = saving(tmp_path).fit(SERIES)
        before, known = weights(model, "predictor."), len(model.training_history)
        model.tokenizer_trainer_kwargs["callbacks"] = [Fail(KeyboardInterrupt())]
        with pytest.raises(KeyboardInterrupt):
            model.fit(SERIES, retrain_tokenizer=True)
        model.tokenizer_trainer_kwargs.pop("callbacks")
        assert same(model, before) and model._tokenizer_ckpt_path is None
        model.fit(SERIES)
        stages = list(model.training_history["stage"][known:])
        assert stages == ["tokenizer"] * 2 + ["predictor"] * 2

    def test_a_killed_one_is_gone_on_with_and_not_the_run_before(self, tmp_path):
        model = saving(tmp_path, n_epochs_tokenizer=3).fit(SERIES, val_series=VAL)
        before = weights(model, "predictor.")
        model.tokenizer_trainer_kwargs["callbacks"] = [Fail(RuntimeError("killed"), epoch=2)]
        with pytest.raises(RuntimeError, match="killed"):
            model.fit(SERIES, val_series=VAL, retrain_tokenizer=True)
        again = KronosModel.load_from_checkpoint("run", str(tmp_path), best=False, trusted=True)
        again.tokenizer_trainer_kwargs.pop("callbacks", None)
        again.fit(SERIES, val_series=VAL)
        stages = list(again.training_history["stage"])
        assert (
            stages == ["tokenizer"] * 3 + ["predictor"] * 2 + ["tokenizer"] * 3 + ["predictor"] * 2
        )
        assert not same(again, before)
        # Asked for the best, the run before is what there is.
        best = KronosModel.load_from_checkpoint("run", str(tmp_path), best=True)
        assert best.predict(2, SERIES).n_timesteps == 2


def test_a_copied_run_is_as_finished_as_it_was(tmp_path):
    saving(tmp_path / "a").fit(SERIES, val_series=VAL)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for folder, _, names in os.walk(tmp_path / "b"):
        for name in names:
            later = time.time() + 60 * ("tokenizer" in folder)
            os.utime(os.path.join(folder, name), (later, later))
    model = KronosModel.load_from_checkpoint("run", str(tmp_path / "b"), best=False)
    assert model.predict(2, SERIES).n_timesteps == 2


def test_a_finished_run_says_that_nothing_is_left(tmp_path, caplog):
    saving(tmp_path).fit(SERIES)
    model = KronosModel.load_from_checkpoint("run", str(tmp_path), best=False)
    before = weights(model)
    model.fit(SERIES)
    assert same(model, before) and "was finished: `fit` trains nothing" in caplog.text
    caplog.clear()
    model = KronosModel.load_from_checkpoint("run", str(tmp_path), best=False)
    model.fit(SERIES, epochs=3)
    assert len(model.training_history) == 5 and "nothing" not in caplog.text


def test_a_loaded_run_may_train_its_tokenizer_again(tmp_path):
    saving(tmp_path).fit(SERIES)
    model = KronosModel.load_from_checkpoint("run", str(tmp_path), best=False)
    before = weights(model, "tokenizer.")
    model.fit(SERIES, retrain_tokenizer=True)
    assert not same(model, before) and len(model.training_history) == 8


class TestBestEpoch:
    def test_it_is_one_of_the_last_fit(self, tmp_path):
        model = saving(tmp_path, n_epochs=3).fit(SERIES, val_series=VAL, load_best=True)
        before = weights(model)
        # Of other tokens, losses are greater for sure.
        checkpoint = next(
            one
            for one in model.trainer_params["callbacks"]
            if isinstance(one, pl.callbacks.ModelCheckpoint)
        )
        checkpoint.best_model_score = torch.tensor(-1e9)
        checkpoint.best_k_models = dict.fromkeys(checkpoint.best_k_models, torch.tensor(-1e9))
        checkpoint.kth_value = torch.tensor(-1e9)
        model.fit(candles(100, seed=3), val_series=VAL, load_best=True, retrain_tokenizer=True)
        assert not same(model, before)

    def test_a_fit_that_ends_on_the_same_step_is_saved_too(self, tmp_path):
        model = saving(tmp_path, n_epochs=1).fit(SERIES, val_series=VAL, load_best=True)
        before = weights(model, "predictor.")
        model.fit(candles(100, seed=3), val_series=VAL, load_best=True)
        assert not same(model, before)

    def test_a_run_bounded_by_steps_has_one(self, tmp_path):
        steps = TINY["pl_trainer_kwargs"] | {"max_epochs": -1, "max_steps": 8}
        model = saving(tmp_path, pl_trainer_kwargs=steps)
        assert model.fit(SERIES, val_series=VAL, load_best=True).model is not None

    def test_early_stopping_judges_a_fit_by_itself(self):
        stop = EarlyStopping("val_loss", patience=1)
        trainer = TINY["pl_trainer_kwargs"] | {"callbacks": [stop]}
        model = tiny_model(n_epochs=3, pl_trainer_kwargs=trainer).fit(SERIES, val_series=VAL)
        stop.best_score, stop.wait_count = torch.tensor(-1e9), 1
        known = len(model.training_history)
        model.fit(SERIES, val_series=VAL)
        assert len(model.training_history) - known > 1

    @pytest.mark.parametrize("never", [{"limit_val_batches": 0}, {"check_val_every_n_epoch": 9}])
    def test_it_needs_an_epoch_that_is_validated(self, tmp_path, never):
        model = saving(tmp_path, pl_trainer_kwargs=TINY["pl_trainer_kwargs"] | never)
        with pytest.raises(ValueError, match="needs an epoch that is validated"):
            model.fit(SERIES, val_series=VAL, load_best=True)


def test_an_error_after_the_tokenizer_was_trained_again_leaves_the_model_as_it_was():
    fail = Fail()
    trainer = TINY["pl_trainer_kwargs"] | {"callbacks": [fail]}
    model = tiny_model(pl_trainer_kwargs=trainer).fit(SERIES)
    before, known = weights(model), len(model.training_history)
    fail.error = RuntimeError("no more memory")
    with pytest.raises(RuntimeError, match="no more memory"):
        model.fit(SERIES, retrain_tokenizer=True)
    assert same(model, before) and len(model.training_history) == known
    assert model.predict(2, SERIES).n_timesteps == 2


def test_what_was_changed_before_a_fit_comes_back_with_its_checkpoint(tmp_path):
    model = saving(tmp_path).fit(SERIES)
    model.set_augmentation(mirror=0.0).set_sampling(temperature=1.3)
    model.fit(SERIES)
    again = KronosModel.load_from_checkpoint("run", str(tmp_path), best=False)
    assert again.augmentation["mirror"] == again.model.augmentation.mirror == 0.0
    assert again.sampling["temperature"] == 1.3
    again.set_augmentation(price_jitter=0.1)
    assert again.model.augmentation.mirror == 0.0


def test_batches_that_are_all_dropped_are_refused_for_the_tokenizer_too():
    model = tiny_model(batch_size=4, tokenizer_batch_size=128)
    with pytest.raises(ValueError, match="leaves the tokenizer no batch.*tokenizer_batch_size"):
        model.fit(SERIES, dataloader_kwargs={"drop_last": True})
    assert model.model is None


def test_epochs_that_were_not_validated_have_no_validation_loss():
    trainer = TINY["pl_trainer_kwargs"] | {"check_val_every_n_epoch": 2}
    model = tiny_model(n_epochs=3, n_epochs_tokenizer=2, pl_trainer_kwargs=trainer)
    history = model.fit(SERIES, val_series=VAL).training_history
    found = history[history["stage"] == "predictor"]["val_loss"]
    assert list(found.isna()) == [True, False, True]


@pytest.mark.parametrize("part", ["train", "val"])
def test_losses_that_are_logged_do_not_depend_on_batches_where_bars_have_no_weight(part):
    weight = SERIES["close"].with_values([[[float(i >= 60)]] for i in range(100)])
    weight = weight.with_values(weight.values() * 0.5)
    still = {"optimizer_kwargs": {"lr": 1e-30}, "tokenizer_optimizer_kwargs": {"lr": 1e-30}}
    losses = []
    for size in (8, 512):
        model = tiny_model(batch_size=size, tokenizer_batch_size=size, mirror=0.0, **still)
        given = {"train": "sample_weight", "val": "val_sample_weight"}[part]
        model.fit(SERIES, val_series=SERIES, **{given: weight})
        losses.append(model.training_history[f"{part}_recon_loss"][:1].tolist())
        losses[-1] += model.training_history[f"{part}_s1_loss"][1:].tolist()
    assert losses[0] == pytest.approx(losses[1], rel=0.05 if part == "train" else 1e-3)


def test_checkpoints_of_the_run_are_where_they_were(tmp_path):
    saving(tmp_path).fit(SERIES)
    folders = {"checkpoints", "checkpoints_tokenizer"}
    assert folders <= set(os.listdir(tmp_path / "run"))


class TestReset:
    def test_nothing_is_left_of_what_was_learned(self, tmp_path):
        model = saving(tmp_path).fit(SERIES[["open", "high"]])
        model.reset_model()
        assert len(model.training_history) == 0 and model.model is None
        model.set_sampling(antithetic=True)
        fresh = saving(tmp_path / "other", antithetic=True)
        for one in (model, fresh):
            one.fit(SERIES, val_series=VAL)
            assert list(one.training_history["stage"]) == ["tokenizer"] * 2 + ["predictor"] * 2

    def test_of_a_run_that_was_cut_off_or_loaded(self, tmp_path):
        model = saving(tmp_path)
        model.tokenizer_trainer_kwargs["callbacks"] = [Fail(KeyboardInterrupt(), epoch=1)]
        with pytest.raises(KeyboardInterrupt):
            model.fit(SERIES)
        assert model._tokenizer_ckpt_path is not None
        model.tokenizer_trainer_kwargs.pop("callbacks")
        model.reset_model()
        model.fit(SERIES)
        loaded = KronosModel.load_from_checkpoint("run", str(tmp_path), best=False)
        loaded.reset_model()
        loaded.fit(SERIES)
        assert len(loaded.training_history) == len(model.training_history) == 4

    def test_a_saved_model_without_weights_is_loaded_without(self, tmp_path):
        path = str(tmp_path / "model.pt")
        model = tiny_model().fit(SERIES)
        model.save(path)
        model.reset_model()
        model.save(path)
        assert KronosModel.load(path).model is None
        with pytest.raises(ValueError, match="fit"):
            KronosModel.load(path).predict(2, SERIES)
