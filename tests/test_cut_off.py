"""What Ctrl-C and errors leave of a first fit, and that forecasts can be cut off too."""

import os
import signal
from contextlib import nullcontext

import pytest
import pytorch_lightning as pl
from factories import TINY, candles, tiny_model

from darts_kronos import KronosModel


class Fail(pl.Callback):
    """An error in a stage's first batch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        raise RuntimeError("no memory")


class Interrupt(pl.Callback):
    """Ctrl-C where a forecast begins."""

    def on_predict_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def handler():
    """Python's own handler of Ctrl-C, which must be there afterwards."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_a_fit_after_a_forecast_that_was_cut_off_trains_as_any(handler):
    series = candles(60)

    def losses(cut_off):
        model = tiny_model(ffn_dropout=0.5, resid_dropout=0.5).fit(series)
        if cut_off:
            model.trainer_params["callbacks"].append(Interrupt())
        with pytest.raises(KeyboardInterrupt) if cut_off else nullcontext():
            model.predict(3)
        model.trainer_params["callbacks"].clear()
        model.fit(series, epochs=2)
        return list(model.training_history["train_loss"])

    assert losses(cut_off=True) == losses(cut_off=False)


@pytest.mark.parametrize("stage", ["tokenizer", "predictor"])
def test_a_first_fit_that_fails_leaves_an_unfitted_model(stage):
    failing = TINY["pl_trainer_kwargs"] | {"callbacks": [Fail()]}
    name = "tokenizer_trainer_kwargs" if stage == "tokenizer" else "pl_trainer_kwargs"
    model = tiny_model(**{name: failing})
    with pytest.raises(RuntimeError, match="no memory"):
        model.fit(candles(60))
    assert len(model.training_history) == 0
    with pytest.raises(ValueError, match="must be fit"):
        model.predict(3, series=candles(60))
    with pytest.raises(ValueError, match="fit"):
        model.historical_forecasts(candles(60), retrain=False)
    model.tokenizer_trainer_kwargs = {}
    model.trainer_params["callbacks"] = []
    model.fit(candles(60))
    assert list(model.training_history["stage"]) == ["tokenizer", "predictor"]


def test_ctrl_c_in_a_forecast_is_a_keyboard_interrupt(handler):
    series = candles(60)
    model = tiny_model().fit(series)
    model.trainer_params["callbacks"].append(Interrupt())
    for forecast in (
        lambda: model.predict(3),
        lambda: model.historical_forecasts(series, start=50, retrain=False, verbose=False),
        lambda: model.calibrate(series, verbose=False),
    ):
        with pytest.raises(KeyboardInterrupt):
            forecast()
        assert signal.getsignal(signal.SIGINT) is handler
    assert model.sampling["temperature"] == 1.0
    model.trainer_params["callbacks"].clear()
    assert model.predict(3).n_timesteps == 3


def test_ctrl_c_before_the_first_step_leaves_nothing_in_the_history(tmp_path, monkeypatch):
    tiny_model().fit(candles(60)).save_pretrained(tmp_path / "weights")
    kept = ("input_chunk_length", "output_chunk_length", "n_epochs", "n_epochs_tokenizer")
    options = {name: TINY[name] for name in (*kept, "random_state", "pl_trainer_kwargs")}
    model = KronosModel(local_dir=tmp_path / "weights", enable_finetuning=True, **options)

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("darts_kronos.module.KronosModule.validation_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.fit(candles(60), val_series=candles(60, seed=1))
    assert len(model.training_history) == 0
    model.fit(candles(60), val_series=candles(60, seed=1))
    rows = model.training_history
    assert list(rows["stage"]) == ["tokenizer", "predictor"] * 2
    assert list(rows["epoch"]) == [0, 0, 1, 1]
