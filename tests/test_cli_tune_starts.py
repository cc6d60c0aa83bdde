"""What ``darts-kronos tune`` starts from: weights, named sizes, stages left out.

Also what ``tune``, ``fit`` and ``inspect`` refuse before anything is trained or written.
"""

import json
import shutil

import optuna
import pytest
import yaml
from command_line import TINY_NETWORKS, kronos, write_candles, write_config
from matplotlib.figure import Figure

from darts_kronos import tuning
from darts_kronos.cli.config_file import ConfigFile
from darts_kronos.search_space import OPTIMISERS

EPOCHS = {"tokenizer_epochs": 1, "basemodel_epochs": 1}
QUICK = ("--trials", 1, "--samples", 2)


@pytest.fixture(autouse=True)
def quick_curves(monkeypatch):
    """Drawing them takes longer than a tiny training."""
    monkeypatch.setattr("darts_kronos.cli.fit.plot_training", lambda *a, **k: Figure((1, 1)))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A folder with candles, and with a run that has trained the tokenizer alone."""
    folder = tmp_path_factory.mktemp("starts")
    write_candles(folder / "candles.csv")
    path = write_config(folder, training=EPOCHS)
    done = kronos("fit", path, "--experiment.train_basemodel", "false")
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def folder(tmp_path):
    write_candles(tmp_path / "candles.csv")
    return tmp_path


def parameters_of(folder):
    """Names and values of what a study's one trial was given by Optuna, and its model's."""
    storage = tuning.open_storage(str(folder / "tuning"))
    (name,) = optuna.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
    return study.best_trial.params, tuning.best_parameters(study)


def predictor_of(run):
    return json.loads((run / "basemodel" / "best_model" / "config.json").read_text())


class TestOneNetworkWithWeights:
    def test_the_predictor_is_tuned_on_the_tokenizer_of_a_run(self, tokenizer, tmp_path):
        path = write_config(tokenizer, training=EPOCHS)
        out = tmp_path / "out.yaml"
        words = ("--experiment.train_tokenizer", "false", "--out", out)
        done = kronos("tune", path, *QUICK, *words)
        assert done.code == 0, done.err
        tried, best = parameters_of(tokenizer / "runs" / "run")
        # The tokenizer stage is left out; the predictor is new, so its rate is no fine-tuning one.
        assert "tokenizer_lr" not in tried and "tokenizer_lr" not in done.out
        assert tried["lr"] == pytest.approx(3e-3) == best["optimizer_kwargs"]["lr"]
        found = ConfigFile(out)
        assert {key: getattr(found.config.model, key) for key in TINY_NETWORKS} == TINY_NETWORKS
        assert found.config.training.predictor_learning_rate == tried["lr"]
        assert not found.gives("training", "tokenizer_learning_rate")
        # As the tool says: `darts-kronos fit out.yaml`.
        fitted = kronos("fit", out)
        assert fitted.code == 0, fitted.err
        run = tokenizer / "runs" / "run-tuned"
        assert predictor_of(run)["d_model"] == 16 and predictor_of(run)["n_layers"] == 1
        own, first = (
            (tokenizer / "runs" / name / "tokenizer" / "best_model" / "model.safetensors")
            for name in ("run-tuned", "run")
        )
        assert own.read_bytes() == first.read_bytes()

    def test_a_tokenizer_of_a_folder_leaves_the_sizes_as_they_are(self, tokenizer, folder):
        shutil.copytree(
            tokenizer / "runs" / "run" / "tokenizer" / "best_model", folder / "run-weights"
        )
        weights = {"pretrained_tokenizer": str(folder / "{exp_name}-weights")}
        path = write_config(folder, training=EPOCHS, model_paths=weights)
        out = folder / "out.yaml"
        done = kronos("tune", path, *QUICK, "--out", out)
        assert done.code == 0, done.err
        tried, _ = parameters_of(folder / "runs" / "run")
        # One is fine-tuned, the other is new.
        assert tried["tokenizer_lr"] <= 2e-4 < tried["lr"]
        fitted = kronos("fit", out)
        assert fitted.code == 0, fitted.err
        assert predictor_of(folder / "runs" / "run-tuned")["ff_dim"] == 32

    def test_a_rate_that_is_given_is_not_searched(self, tokenizer, tmp_path):
        rate = {"predictor_learning_rate": 1e-3}
        path = write_config(
            tokenizer,
            "given.yaml",
            training=EPOCHS | rate,
            model_paths={"base_save_path": str(tmp_path / "{exp_name}")},
            experiment={"train_tokenizer": False},
        )
        weights = tokenizer / "runs" / "run" / "tokenizer" / "best_model"
        words = ("--model_paths.finetuned_tokenizer", weights, "--out", tmp_path / "out.yaml")
        done = kronos("tune", path, *QUICK, *words)
        assert done.code == 0, done.err
        tried, best = parameters_of(tmp_path / "run")
        assert "lr" not in tried and best["optimizer_kwargs"]["lr"] == 1e-3


def test_a_size_that_is_named_with_weights_is_kept(folder, monkeypatch):
    """With `pre_trained: false` a name on the hub stands for a size; nothing is trained here."""
    study = optuna.create_study()

    def tune(*args, **given):
        kept = {name: given[name] for name in ("size", *OPTIMISERS)}
        study.add_trial(
            optuna.trial.create_trial(value=1.0, user_attrs={"parameters": kept, "left_out": []})
        )
        assert "d_model" not in given
        return study

    monkeypatch.setattr(tuning, "tune", tune)
    path = write_config(
        folder,
        model_paths={"pretrained_predictor": "NeoQuasar/Kronos-mini"},
        experiment={"pre_trained": False},
    )
    tree = yaml.safe_load(path.read_text())
    del tree["model"]
    path.write_text(yaml.safe_dump(tree))
    out = folder / "out.yaml"
    done = kronos("tune", path, *QUICK, "--out", out)
    assert done.code == 0, done.err
    model = ConfigFile(out).config.model
    assert model.size == "mini" and model.d_model is None


class TestRefused:
    def test_tuning_without_a_predictor(self, folder):
        path = write_config(folder)
        done = kronos("tune", path, *QUICK, "--experiment.train_basemodel", "false")
        assert done.code == 2 and "--experiment.train_basemodel: " in done.err
        assert "has learned nothing" in done.err and not (folder / "runs").exists()

    @pytest.mark.parametrize(
        ("words", "name"),
        [(("--samples", 1), "--samples"), (("--sampling.num_samples", 1), "sampling.num_samples")],
    )
    def test_a_crps_of_one_path(self, folder, words, name):
        done = kronos("tune", write_config(folder), "--trials", 1, *words)
        assert done.code == 2 and f"{name} must be at least 2, got 1" in done.err
        assert not (folder / "runs").exists()

    @pytest.mark.parametrize(
        ("key", "value", "said"),
        [
            ("precision", "fp8", "32-true"),
            ("accelerator", "abacus", "cpu"),
            ("strategy", "hope", "ddp"),
            ("devices", "[]", "at least 1 item"),
            ("limit_train_batches", "0.01", "of 3 batches is less than one: it must be at least"),
            ("limit_val_batches", "0.5", "of 1 batches is less than one: it must be at least 1/1"),
        ],
    )
    def test_a_trainer_that_lightning_does_not_make(self, folder, key, value, said):
        path = write_config(folder)
        words = (path, f"--trainer.{key}", value, "--device.use_cuda", "null")
        # Trials have one device each, and so no strategy.
        for command in ("fit", "tune") if key != "strategy" else ("fit",):
            done = kronos(command, *words)
            assert done.code == 2 and f"trainer.{key}: " in done.err and said in done.err
            assert not (folder / "runs").exists()

    def test_inspecting_the_file_of_a_saved_model(self, tokenizer):
        run = tokenizer / "runs" / "run"
        done = kronos("inspect", run / "model.pt")
        assert done.code == 2 and "is a file" in done.err and f"folder: {run}." in done.err
        done = kronos("inspect", tokenizer / "candles.csv")
        assert done.code == 2 and "save_pretrained" in done.err


class TestARunThatHasTrainedNothing:
    @pytest.fixture
    def failed(self, folder, monkeypatch):
        """A config whose run has failed in its first epoch."""
        path = write_config(folder, training=EPOCHS)
        with monkeypatch.context() as patched:
            patched.setattr("darts_kronos.KronosModel.fit", self.fail)
            assert kronos("fit", path).code == 1
        about = json.loads((folder / "runs" / "run" / "run.json").read_text())
        assert about["state"] == "failed"
        return path

    @staticmethod
    def fail(*args, **kwargs):
        raise RuntimeError("no memory")

    def test_it_gives_way_to_another_config(self, failed):
        done = kronos("fit", failed, "--data.clip", 4)
        assert done.code == 0, done.err

    @pytest.mark.parametrize("kept", ["metrics.csv", "training/checkpoints_tokenizer/last.ckpt"])
    def test_one_that_has_trained_does_not(self, failed, kept):
        file = failed.parent / "runs" / "run" / kept
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
        done = kronos("fit", failed, "--data.clip", 4)
        assert done.code == 2 and "data.clip" in done.err and file.exists()
