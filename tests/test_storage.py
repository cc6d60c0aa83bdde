"""Files of models: whole or not there, of one training, read without running what they hold."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from darts.models import NLinearModel
from factories import TINY, candles, tiny_model

from darts_kronos import KronosModel
from darts_kronos.storage import replacing

CPU = TINY["pl_trainer_kwargs"]


@pytest.fixture(scope="module")
def series():
    return candles(60)


@pytest.fixture(scope="module")
def saved(series, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.pt"
    tiny_model().fit(series).save(str(path))
    return path


class TestReading:
    def copy(self, saved, tmp_path):
        for name in ("model.pt", "model.pt.ckpt"):
            (tmp_path / name).write_bytes((saved.parent / name).read_bytes())
        return tmp_path / "model.pt"

    @pytest.mark.parametrize("name", ["model.pt", "model.pt.ckpt"])
    @pytest.mark.parametrize("share", [0.0, 0.6])
    def test_a_truncated_file_is_refused(self, saved, tmp_path, name, share):
        path = self.copy(saved, tmp_path)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(
            ValueError, match="checkpoint returned by torch.save|cannot be loaded as a KronosModel"
        ):
            KronosModel.load(str(path))

    @pytest.mark.parametrize("name", ["model.pt", "model.pt.ckpt"])
    def test_what_is_no_model_is_refused(self, saved, tmp_path, name):
        path = self.copy(saved, tmp_path)
        (tmp_path / name).write_bytes(b"not a model")
        with pytest.raises(
            ValueError, match="checkpoint returned by torch.save|cannot be loaded as a KronosModel"
        ):
            KronosModel.load(str(path))

    @pytest.mark.parametrize("name", ["model.pt", "model.pt.ckpt"])
    @pytest.mark.parametrize("writer", [pickle.dump, torch.save])
    def test_code_in_a_file_is_not_run(self, saved, tmp_path, name, writer):
        path, trace = self.copy(saved, tmp_path), tmp_path / "was here"

        class Hostile:
            def __reduce__(self):
                return Path.touch, (trace,)

        with open(tmp_path / name, "wb") as file:
            writer({"state_dict": Hostile(), "hyper_parameters": {}}, file)
        with pytest.raises(ValueError):
            KronosModel.load(str(path))
        with pytest.raises(ValueError):
            tiny_model().load_weights(str(path))
        assert not trace.exists()

    def test_another_kind_of_model_is_refused(self, series, tmp_path):
        kwargs = {"model_name": "other", "work_dir": str(tmp_path), "save_checkpoints": True}
        other = NLinearModel(24, 6, n_epochs=1, pl_trainer_kwargs=CPU, **kwargs).fit(
            series, val_series=series
        )
        other.save(str(tmp_path / "other.pt"))
        with pytest.raises(ValueError, match="holds a NLinearModel, not a KronosModel"):
            KronosModel.load(str(tmp_path / "other.pt"))
        with pytest.raises(ValueError, match="holds a NLinearModel, not a KronosModel"):
            KronosModel.load_from_checkpoint("other", str(tmp_path))


class Second(pl.Callback):
    """Tries to train another model when a stage begins."""

    def __init__(self):
        self.refused = []

    def on_train_start(self, trainer, module):
        with pytest.raises(ValueError, match="'run' is being trained in"):
            type(self).fit()
        self.refused.append(type(module).__name__)


class TestOneTrainingAtATime:
    def kwargs(self, folder, **changes):
        return {
            "work_dir": str(folder),
            "model_name": "run",
            "save_checkpoints": True,
            **changes,
        }

    def test_a_second_training_under_the_same_name_is_refused(self, series, tmp_path):
        other, second = tiny_model(**self.kwargs(tmp_path)), Second()
        first = tiny_model(
            **self.kwargs(tmp_path),
            pl_trainer_kwargs={**CPU, "callbacks": [second]},
            tokenizer_trainer_kwargs={"callbacks": [second]},
        )
        Second.fit = lambda: other.fit(series)
        first.fit(series)
        assert second.refused == ["TokenizerStage", "KronosModule"]
        loaded = KronosModel.load_from_checkpoint("run", str(tmp_path), best=False, trusted=True)
        options = {"series": series, "random_state": 1}
        assert loaded.predict(3, **options) == first.predict(3, **options)
        with pytest.raises(ValueError, match="holds checkpoints of another model"):
            other.fit(series)
        assert other.model is None

    def test_the_same_model_may_go_on_and_force_reset_begins_anew(self, series, tmp_path):
        model = tiny_model(**self.kwargs(tmp_path)).fit(series)
        model.fit(series)
        KronosModel.load_from_checkpoint("run", str(tmp_path), best=False).fit(series, epochs=2)
        tiny_model(**self.kwargs(tmp_path, force_reset=True)).fit(series)

    def test_without_checkpoints_nothing_is_held(self, series, tmp_path):
        tiny_model(**self.kwargs(tmp_path, save_checkpoints=False)).fit(series)
        assert not list(tmp_path.iterdir())


class TestWriting:
    def test_a_work_dir_that_cannot_be_written_is_refused_at_creation(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(ValueError, match="`work_dir` cannot be written"):
            tiny_model(work_dir=str(tmp_path / "file" / "logs"), save_checkpoints=True)

    def test_folders_above_a_work_dir_are_made(self, series, tmp_path):
        tiny_model(work_dir=str(tmp_path / "a" / "b"), save_checkpoints=True).fit(series)
        assert list((tmp_path / "a" / "b").glob("*/checkpoints/last-*.ckpt"))

    def test_a_failed_save_leaves_what_was_there(self, saved, series, monkeypatch):
        before = {path.name: path.read_bytes() for path in saved.parent.iterdir()}
        model = tiny_model().fit(series)

        def full(*args, **kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(model.trainer, "save_checkpoint", full)
        with pytest.raises(OSError, match="No space left"):
            model.save(str(saved))
        assert {path.name: path.read_bytes() for path in saved.parent.iterdir()} == before

    def test_replacing_takes_all_files_or_none(self, tmp_path):
        target = tmp_path / "m.pt"
        target.write_text("old")
        with pytest.raises(KeyboardInterrupt), replacing(str(target)) as path:
            Path(path).write_text("new")
            raise KeyboardInterrupt
        assert target.read_text() == "old"
        with replacing(str(target)) as path:
            Path(path).write_text("new")
            Path(path + ".ckpt").write_text("weights")
        found = {path.name: path.read_text() for path in tmp_path.iterdir()}
        assert found == {"m.pt": "new", "m.pt.ckpt": "weights"}

    @pytest.mark.parametrize("stage", ["tokenizer", "predictor"])
    def test_a_full_disk_stops_the_training_and_leaves_checkpoints_whole(
        self, tmp_path, monkeypatch, stage
    ):
        done = subprocess.run(
            [sys.executable, "-c", FULL_DISK, str(tmp_path), stage],
            cwd=Path(__file__).parent,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        # Its own callback is in the file, too.
        monkeypatch.setattr("__main__.Fill", Fill, raising=False)
        model = KronosModel.load_from_checkpoint("run", str(tmp_path), best=False, trusted=True)
        model.fit(candles(60))
        assert model.epochs_trained == 3


class Fill(pl.Callback):
    """As whom the callback below is read: it leaves the disk as it is."""


FULL_DISK = """
import resource, sys
import pytorch_lightning as pl
from factories import TINY, candles, tiny_model

folder, stage = sys.argv[1:]

class Fill(pl.Callback):
    # No file may grow beyond a kilobyte any more, as where no space is left.
    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))

own = {"callbacks": [Fill()]}
model = tiny_model(
    work_dir=folder,
    model_name="run",
    save_checkpoints=True,
    n_epochs=3,
    n_epochs_tokenizer=3,
    pl_trainer_kwargs=TINY["pl_trainer_kwargs"] | (own if stage == "predictor" else {}),
    tokenizer_trainer_kwargs=own if stage == "tokenizer" else {},
)
try:
    model.fit(candles(60))
except OSError as error:
    assert "A checkpoint could not be written" in str(error), error
    sys.exit(0)
sys.exit("nothing was refused")
"""
