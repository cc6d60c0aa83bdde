"""A run that was killed goes on where it was, in either stage, as if nothing had happened."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from factories import GREEDY, TINY, candles, tiny_model

from darts_kronos import KronosModel
from darts_kronos.training import StageLog

EPOCHS = {"n_epochs": 4, "n_epochs_tokenizer": 4}


class KillAfter(pl.Callback):
    """Kills the process, without warning, when an epoch begins."""

    def __init__(self, epoch: int):
        self.epoch = epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == self.epoch:
            os.kill(os.getpid(), signal.SIGKILL)


def training(work_dir, name="run", **changes):
    model = tiny_model(
        work_dir=str(work_dir),
        model_name=name,
        batch_size=8,
        # Dropout and all augmentation are random too.
        **{"save_checkpoints": True, "ffn_dropout": 0.2, "random_state": 5, **EPOCHS, **changes},
    )
    return model


def fit(model):
    return model.fit(candles(90), val_series=candles(60, seed=1))


def killed(work_dir, stage: str, epoch: int) -> None:
    """Train in another process until it is killed at the start of an epoch of a stage."""
    trainer = TINY["pl_trainer_kwargs"]
    kill = f"{{'callbacks': [KillAfter({epoch})]}}"
    changes = (
        f"tokenizer_trainer_kwargs={kill}"
        if stage == "tokenizer"
        else f"pl_trainer_kwargs={trainer!r} | {kill}"
    )
    code = (
        "from test_resuming import *\n"
        f"fit(training({str(work_dir)!r}, {changes}))\n"
        "print('was not killed')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing cut off."""
    return fit(training(tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize(
    ("stage", "epoch", "rows"), [("tokenizer", 2, 0), ("predictor", 0, 0), ("predictor", 2, 6)]
)
def test_a_killed_run_ends_as_one_that_was_not(whole, tmp_path, stage, epoch, rows):
    killed(tmp_path, stage, epoch)
    model = training_of(tmp_path)
    assert len(model.training_history) == rows
    fit(model)
    pd.testing.assert_frame_equal(
        model.training_history, whole.training_history, check_exact=False, rtol=1e-4
    )
    for name, value in whole.model.state_dict().items():
        # Attention does not feel a bias of its keys: its gradient is rounding, scaled up by Adam.
        keys = name.endswith(("key_value.bias", "qkv.bias"))
        if value.is_floating_point() and not name.startswith("stage_log") and not keys:
            torch.testing.assert_close(
                model.model.state_dict()[name], value, rtol=1e-3, atol=1e-5, msg=name
            )


def test_a_run_with_workers_goes_on_as_if_nothing_had_happened(tmp_path):
    kwargs, workers = TINY["pl_trainer_kwargs"], {"dataloader_kwargs": {"num_workers": 1}}
    whole = training(tmp_path, "whole").fit(candles(90), **workers)
    cut = training(tmp_path, pl_trainer_kwargs=kwargs | {"callbacks": [InterruptAt(2)]})
    with pytest.raises(KeyboardInterrupt):
        cut.fit(candles(90), **workers)
    model = training_of(tmp_path)
    model.fit(candles(90), **workers)
    losses = [one.training_history["train_loss"].to_numpy() for one in (model, whole)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    # And workers change nothing of what is learned.
    alone = training(tmp_path, "alone").fit(candles(90)).training_history["train_loss"]
    np.testing.assert_allclose(alone, losses[1], rtol=1e-4)


def training_of(work_dir):
    model = KronosModel.load_from_checkpoint("run", str(work_dir), best=False, trusted=True)
    # The callback that ended the run is part of what was saved.
    for params in (model.trainer_params, model.tokenizer_trainer_kwargs):
        params["callbacks"] = [
            one
            for one in params.get("callbacks", [])
            if not isinstance(one, (KillAfter, InterruptAt))
        ]
    return model


def test_a_model_whose_tokenizer_stage_was_cut_off_cannot_forecast_yet(tmp_path):
    killed(tmp_path, "tokenizer", 1)
    model = training_of(tmp_path)
    with pytest.raises(ValueError, match="fit"):
        model.predict(3, series=candles(60))
    assert fit(model).predict(3, num_samples=2).n_timesteps == 3


def test_where_no_epoch_was_finished_there_is_nothing_to_go_on_from(tmp_path):
    killed(tmp_path, "tokenizer", 0)
    with pytest.raises(ValueError, match="no epoch was finished"):
        KronosModel.load_from_checkpoint("run", str(tmp_path))
    with pytest.raises(ValueError, match="Could not find"):
        KronosModel.load_from_checkpoint("another", str(tmp_path))


def test_best_and_last_epoch_are_kept_with_their_history(whole):
    for best in (True, False):
        loaded = KronosModel.load_from_checkpoint("run", whole.work_dir, best=best)
        history = loaded.training_history
        assert list(history["stage"].unique()) == ["tokenizer", "predictor"]
        pd.testing.assert_frame_equal(history, whole.training_history[: len(history)])
        assert loaded.predict(3, series=candles(60), num_samples=2).n_timesteps == 3
    last = KronosModel.load_from_checkpoint("run", whole.work_dir, best=False)
    assert len(last.training_history) == 8
    np.testing.assert_array_equal(
        last.predict(3, series=candles(60), num_samples=4, random_state=1).all_values(),
        whole.predict(3, series=candles(60), num_samples=4, random_state=1).all_values(),
    )


def test_going_on_for_more_epochs_starts_a_new_cycle_and_says_so(whole, caplog):
    caplog.set_level("INFO")
    model = KronosModel.load_from_checkpoint("run", whole.work_dir, best=False)
    rates = []

    class Rates(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    # Without Darts' own checkpoints, which other tests look at, nor Lightning's where one stands.
    model.trainer_params |= {"callbacks": [Rates()], "enable_checkpointing": False}
    model.fit(candles(90), val_series=candles(60, seed=1), epochs=7)
    assert len(model.training_history) == 8 + 3
    assert "a new learning-rate cycle" in caplog.text
    # Up from the start of a cycle and down to its end.
    assert max(rates) > 10 * rates[-1]
    assert max(rates) == pytest.approx(model.model.optimizer_kwargs["lr"], rel=0.05)


def test_each_stage_keeps_its_checkpoints_in_a_folder_of_its_own(whole):
    folder = Path(whole.work_dir) / "run"
    assert [one.name for one in (folder / "checkpoints_tokenizer").iterdir()] == [
        "last-epoch=3.ckpt"
    ]
    names = sorted(one.name for one in (folder / "checkpoints").iterdir())
    assert len(names) == 2
    assert names[0].startswith("best-") and names[1] == "last-epoch=3.ckpt"


def test_the_first_stages_checkpoint_holds_each_weight_once(whole):
    path = Path(whole.work_dir) / "run" / "checkpoints_tokenizer" / "last-epoch=3.ckpt"
    kept = torch.load(path, weights_only=False)
    trained = {name for name in kept["state_dict"] if name.startswith("tokenizer.")}
    assert trained and not trained & set(kept["others"])
    assert trained | set(kept["others"]) == set(whole.model.state_dict())


def test_without_save_checkpoints_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(training(tmp_path, save_checkpoints=False))
    assert list(tmp_path.iterdir()) == []


class InterruptAt(pl.Callback):
    """Ctrl-C, once, when an epoch begins."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == self.epoch:
            self.epoch = None
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def handler():
    """The caller's own handler of Ctrl-C, which must be there afterwards."""

    def own(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, own)
    yield own
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_in_the_predictor_stage_leaves_a_usable_model(handler, caplog):
    options = TINY["pl_trainer_kwargs"] | {"callbacks": [InterruptAt(2)]}
    model = training("unused", save_checkpoints=False, pl_trainer_kwargs=options)
    with pytest.raises(KeyboardInterrupt):
        fit(model)
    assert signal.getsignal(signal.SIGINT) is handler
    assert "can forecast" in caplog.text
    assert list(model.training_history["stage"]) == ["tokenizer"] * 4 + ["predictor"] * 2
    assert model.predict(3, series=candles(60), num_samples=2).n_timesteps == 3
    fit(model)


@pytest.mark.parametrize("saved", [True, False])
def test_ctrl_c_in_the_tokenizer_stage_leaves_a_resumable_one(
    handler, caplog, whole, tmp_path, saved
):
    options = {"callbacks": [InterruptAt(2)]}
    model = training(tmp_path, save_checkpoints=saved, tokenizer_trainer_kwargs=options)
    with pytest.raises(KeyboardInterrupt):
        fit(model)
    assert signal.getsignal(signal.SIGINT) is handler
    assert "cannot forecast yet" in caplog.text
    assert ("goes on from" if saved else "starts anew") in caplog.text
    with pytest.raises(ValueError, match="fit"):
        model.predict(3, series=candles(60))
    fit(model)
    if saved:
        pd.testing.assert_frame_equal(
            model.training_history, whole.training_history, check_exact=False, rtol=1e-4
        )
    assert list(model.training_history["stage"]) == ["tokenizer"] * 4 + ["predictor"] * 4
    assert model.predict(3, series=candles(60), num_samples=2).n_timesteps == 3


class FailAt(InterruptAt):
    """An error when an epoch begins."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == self.epoch:
            raise OSError("the disk is gone")


def second_fit(callback):
    """A fitted model, cut off where its tokenizer is trained again; and its weights before."""
    model = training("unused", save_checkpoints=False)
    fit(model)
    before = {name: one.clone() for name, one in model.model.state_dict().items()}
    model.tokenizer_trainer_kwargs = {"callbacks": [callback]}
    with pytest.raises((KeyboardInterrupt, OSError)):
        model.fit(candles(90), val_series=candles(60, seed=1), retrain_tokenizer=True)
    model.tokenizer_trainer_kwargs = {}
    return model, before


def test_ctrl_c_while_the_tokenizer_is_trained_again_leaves_none_to_forecast_with(handler):
    model, _ = second_fit(InterruptAt(2))
    with pytest.raises(ValueError, match="fit"):
        model.predict(3, series=candles(60))
    known = len(model.training_history)
    fit(model)
    assert list(model.training_history["stage"][known:]) == ["tokenizer"] * 4 + ["predictor"] * 4
    assert model.predict(3, series=candles(60)).n_timesteps == 3


def test_an_error_while_the_tokenizer_is_trained_again_leaves_the_model_as_it_was():
    model, before = second_fit(FailAt(2))
    for name, one in model.model.state_dict().items():
        torch.testing.assert_close(one, before[name], rtol=0, atol=0)
    assert list(model.training_history["stage"]) == ["tokenizer"] * 4 + ["predictor"] * 4
    assert model.predict(3, series=candles(60)).n_timesteps == 3


def test_tokens_are_not_kept_beyond_a_stage_that_was_cut_off(handler):
    options = TINY["pl_trainer_kwargs"] | {"callbacks": [InterruptAt(2)]}
    model = training("unused", save_checkpoints=False, pl_trainer_kwargs=options)
    with pytest.raises(KeyboardInterrupt):
        fit(model)
    assert model.model._token_cache is None


def test_a_second_fit_that_was_cut_off_ends_after_as_many_epochs_as_it_would_have(
    handler, tmp_path, monkeypatch
):
    # Six epochs of the first fit, four of the second.
    monkeypatch.setattr("darts_kronos.parameters.PREDICTOR_STEPS", 48)
    monkeypatch.setattr("darts_kronos.parameters.TUNING_STEPS", 32)
    options = {name: value for name, value in TINY.items() if name != "n_epochs"}
    options |= {"work_dir": str(tmp_path), "model_name": "run", "batch_size": 8}
    model = KronosModel(**options, save_checkpoints=True)
    model.fit(candles(90))
    first = len(model.training_history)
    model.trainer_params["callbacks"].append(InterruptAt(1))
    with pytest.raises(KeyboardInterrupt):
        model.fit(candles(90))
    loaded = KronosModel.load_from_checkpoint("run", str(tmp_path), best=False)
    loaded.fit(candles(90))
    whole = KronosModel(**options).fit(candles(90)).fit(candles(90))
    assert len(whole.training_history) == first + 4
    assert len(loaded.training_history) == len(whole.training_history)


class TestMoved:
    """A run goes on, and saves, where it lies."""

    @staticmethod
    def go_on(folder, name, **kwargs):
        loaded = KronosModel.load_from_checkpoint(name, folder, best=False)
        options = {"val_series": candles(60, seed=1), "epochs": 6, "load_best": True}
        return loaded.fit(candles(90), **(options | kwargs))

    @staticmethod
    def files(folder):
        # But for TensorBoard's, which have the time in their names.
        return {one.name for one in folder.rglob("*") if not one.name.startswith("events")}

    @pytest.mark.parametrize("stage", ["tokenizer", "predictor"])
    @pytest.mark.parametrize("way", [shutil.move, shutil.copytree])
    def test_as_if_it_had_not(self, tmp_path, stage, way):
        there, here = tmp_path / "there", tmp_path / "here" / "moved"
        fit(training(there, log_tensorboard=True))
        if stage == "tokenizer":
            shutil.rmtree(there / "run" / "checkpoints")
        shutil.copytree(there / "run", tmp_path / "run")
        (tmp_path / "here").mkdir()
        way(there / "run", here)
        left = self.files(there)
        moved = self.go_on(str(tmp_path / "here"), "moved")
        assert self.files(there) == left
        assert len(list(here.rglob("events*"))) > len(list(tmp_path.glob("run/**/events*")))
        shutil.rmtree(there)
        shutil.move(tmp_path / "run", there / "run")
        unmoved = self.go_on(str(there), "run")
        assert self.files(here) == self.files(there / "run")
        for name, value in unmoved.model.state_dict().items():
            assert torch.equal(moved.model.state_dict()[name], value)
        # Once more: the checkpoints name a third folder, the model the first.
        shutil.move(here, tmp_path / "here" / "again")
        self.go_on(str(tmp_path / "here"), "again", epochs=7)
        assert not here.exists()

    def test_its_best_epoch_stays_the_best(self, tmp_path, monkeypatch):
        fit(training(tmp_path / "there", n_epochs=2))
        shutil.move(tmp_path / "there" / "run", tmp_path / "run")
        (best,) = (tmp_path / "run" / "checkpoints").glob("best*")
        write = StageLog.write

        def worse(self, module, role, parts, *args):
            write(self, module, role, {name: one + 10 for name, one in parts.items()}, *args)

        monkeypatch.setattr(StageLog, "write", worse)
        self.go_on(str(tmp_path), "run")
        assert list((tmp_path / "run" / "checkpoints").glob("best*")) == [best]

    def test_one_that_is_finished_has_its_best_epoch(self, tmp_path):
        fit(training(tmp_path / "there", n_epochs=2))
        shutil.move(tmp_path / "there" / "run", tmp_path / "run")
        finished = self.go_on(str(tmp_path), "run", epochs=2)
        best = KronosModel.load_from_checkpoint("run", str(tmp_path), best=True)
        for name, value in best.model.state_dict().items():
            assert torch.equal(finished.model.state_dict()[name], value)

    def test_from_another_working_directory(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        fit(training("runs"))
        loaded = KronosModel.load_from_checkpoint("run", "runs", best=False)
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        loaded.fit(candles(90), val_series=candles(60, seed=1), epochs=5)
        assert not list((tmp_path / "elsewhere").iterdir())
        assert (tmp_path / "runs" / "run" / "checkpoints" / "last-epoch=4.ckpt").exists()


class TestFilesOfAGpu:
    """What was trained on a GPU is of use where there is none."""

    @pytest.fixture(autouse=True)
    def of_a_gpu(self, monkeypatch):
        # Files say that their tensors were on the last of eight GPUs, as torch writes it.
        names = (-1, lambda storage: "cuda:7", lambda storage, location: None)
        registry = [names, *torch.serialization._package_registry]
        monkeypatch.setattr(torch.serialization, "_package_registry", registry)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        # Where there is any GPU, Lightning leaves it to torch, which looks for that one.
        saving = "pytorch_lightning.core.saving._default_map_location"
        monkeypatch.setattr(saving, lambda storage, location: None)

    def test_they_are_as_a_gpu_would_write_them(self, tmp_path):
        torch.save(torch.ones(2), tmp_path / "one.pt")
        with pytest.raises(RuntimeError, match="on a CUDA device"):
            torch.load(tmp_path / "one.pt")

    @pytest.mark.parametrize("stage", ["tokenizer", "predictor"])
    def test_a_run_goes_on(self, tmp_path, stage):
        fit(training(tmp_path))
        if stage == "tokenizer":
            shutil.rmtree(tmp_path / "run" / "checkpoints")
        loaded = KronosModel.load_from_checkpoint("run", str(tmp_path), best=False)
        loaded.fit(candles(90), val_series=candles(60, seed=1), epochs=5)
        assert loaded.epochs_trained == 5
        assert list(loaded.training_history["stage"]).count("tokenizer") == 4

    def test_models_forecast_and_lend_their_weights(self, tmp_path):
        model = tiny_model(**GREEDY).fit(candles(90))
        model.save(str(tmp_path / "model.pt"))
        again = KronosModel.load(str(tmp_path / "model.pt"))
        other = tiny_model(**GREEDY)
        other.load_weights(str(tmp_path / "model.pt"))
        expected = model.predict(6).values()
        for one in (again, other):
            np.testing.assert_array_equal(one.predict(6, candles(90)).values(), expected)
