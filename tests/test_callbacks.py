"""Users' callbacks and loggers: those of one stage do not touch the other."""

from pathlib import Path

import pandas as pd
import pytest
from factories import TINY, candles, tiny_model
from pytorch_lightning.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
    TQDMProgressBar,
)
from pytorch_lightning.loggers import CSVLogger

QUIET = TINY["pl_trainer_kwargs"]
EPOCHS = {"n_epochs": 4, "n_epochs_tokenizer": 4}


def fit(**changes):
    model = tiny_model(**(EPOCHS | changes))
    return model.fit(candles(70), val_series=candles(50, seed=1))


def epochs(model):
    return model.training_history["stage"].value_counts().to_dict()


def never_better():
    # No loss falls by so much: training stops after the second epoch.
    return EarlyStopping("val_loss", min_delta=100.0, patience=1)


def test_early_stopping_stops_the_predictor_stage_only():
    model = fit(pl_trainer_kwargs=QUIET | {"callbacks": [never_better()]})
    assert epochs(model) == {"tokenizer": 4, "predictor": 2}


def test_early_stopping_stops_the_tokenizer_stage_only():
    model = fit(tokenizer_trainer_kwargs={"callbacks": [never_better()]})
    assert epochs(model) == {"tokenizer": 2, "predictor": 4}


@pytest.mark.parametrize("save_checkpoints", [True, False])
def test_a_checkpoint_callback_of_the_tokenizer_stage(tmp_path, save_checkpoints):
    mine = tmp_path / "mine"
    keep = ModelCheckpoint(mine, "mine-{epoch}")
    fit(
        tokenizer_trainer_kwargs={"callbacks": keep},
        save_checkpoints=save_checkpoints,
        work_dir=str(tmp_path),
        model_name="run",
    )
    assert [path.name for path in mine.iterdir()] == ["mine-epoch=3.ckpt"]
    assert (tmp_path / "run" / "checkpoints_tokenizer").exists() == save_checkpoints


def test_a_checkpoint_callback_of_the_predictor_stage(tmp_path):
    # Darts has two of its own: Lightning wants other settings of a third.
    keep = ModelCheckpoint(tmp_path / "mine", "mine-{epoch}", monitor="train_loss", save_top_k=-1)
    fit(
        pl_trainer_kwargs=QUIET | {"callbacks": [keep]},
        save_checkpoints=True,
        work_dir=str(tmp_path),
        model_name="run",
    )
    assert len(list((tmp_path / "mine").iterdir())) == 4


def test_each_stage_has_its_logger_and_its_learning_rates(tmp_path):
    def logging_to(name):
        return {
            "logger": CSVLogger(tmp_path, name, version=""),
            "callbacks": [LearningRateMonitor("epoch")],
            "log_every_n_steps": 1,
        }

    fit(
        pl_trainer_kwargs=QUIET | logging_to("predictor"),
        tokenizer_trainer_kwargs=logging_to("tokenizer"),
    )
    logs = {
        stage: pd.read_csv(Path(tmp_path) / stage / "metrics.csv")
        for stage in ("tokenizer", "predictor")
    }
    assert "train_vq_loss" in logs["tokenizer"] and "train_vq_loss" not in logs["predictor"]
    assert "val_s1_loss" in logs["predictor"] and "val_s1_loss" not in logs["tokenizer"]
    for log in logs.values():
        assert log["lr-AdamW"].notna().sum() == 4


@pytest.mark.parametrize("kind", [TQDMProgressBar, RichProgressBar])
def test_the_progress_bar_says_which_stage_runs(capfd, kind):
    bar = {"enable_progress_bar": True, "enable_model_summary": False, "accelerator": "cpu"}
    fit(
        pl_trainer_kwargs=bar | {"callbacks": [kind()]},
        tokenizer_trainer_kwargs={"callbacks": [kind()]},
        n_epochs=2,
    )
    printed = "".join(capfd.readouterr())
    assert "Predictor, epoch 1" in printed
    assert "Tokenizer, epoch 3" in printed


class TestTuners:
    @pytest.mark.parametrize("stage", ["tokenizer", "predictor"])
    @pytest.mark.parametrize("fitted", [False, True])
    def test_a_learning_rate_is_found_for_either_stage(self, tmp_path, monkeypatch, stage, fitted):
        monkeypatch.chdir(tmp_path)
        model = tiny_model(batch_size=8, n_epochs=4, n_epochs_tokenizer=6)
        if fitted:
            model.fit(candles(60))
        found = model.lr_find(candles(80), stage=stage, num_training=20, min_lr=1e-5, max_lr=0.5)
        assert len(found.results["lr"]) > 10
        assert found.results["lr"][0] < found.results["lr"][-1]
        # It searches: the model trains afterwards as if nothing had been searched.
        model.fit(candles(60))
        assert model.predict(2, num_samples=2).n_samples == 2

    @pytest.mark.parametrize("stage", ["tokenizer", "predictor"])
    def test_a_batch_size_is_found_for_either_stage(self, tmp_path, monkeypatch, stage):
        monkeypatch.chdir(tmp_path)
        model = tiny_model(batch_size=8, tokenizer_batch_size=4)
        found = model.scale_batch_size(candles(80), stage=stage, max_trials=2, steps_per_trial=1)
        assert found >= 2
        sizes = model.batch_size, model.model_params["tokenizer_batch_size"]
        assert sizes == ((8, found) if stage == "tokenizer" else (found, 4))

    @pytest.mark.parametrize("stage", ["tokenizer", "predictor"])
    def test_trials_may_make_more_steps_than_the_run(self, tmp_path, monkeypatch, stage):
        monkeypatch.chdir(tmp_path)
        model = tiny_model(n_epochs=3, n_epochs_tokenizer=3)
        found = model.scale_batch_size(candles(60), stage=stage)
        assert found > 16
        assert model.fit(candles(60)).predict(2).n_timesteps == 2

    def test_an_unknown_stage_is_refused(self):
        with pytest.raises(ValueError, match="tokenizer, predictor"):
            tiny_model().lr_find(candles(80), stage="first")
        with pytest.raises(ValueError, match="tokenizer, predictor"):
            tiny_model().scale_batch_size(candles(80), stage="")


def test_onnx_is_refused(tmp_path):
    with pytest.raises(ValueError, match="to_onnx"):
        tiny_model().fit(candles(60)).to_onnx(str(tmp_path / "model.onnx"))
