"""Fine-tuning of weights: what moves, what is kept, what is said about it."""

import builtins
import copy
import pickle
import shutil

import numpy as np
import pytest
import released
import torch
from darts.models import NaiveEnsembleModel
from factories import candles, tiny_model
from pytorch_lightning.loggers import CSVLogger
from released import QUIET, model_of

from darts_kronos import KronosModel, checkpoints
from darts_kronos.finetuning import plain_name
from darts_kronos.module import KronosModule
from darts_kronos.plotting import plot_training
from darts_kronos.tokenizer_stage import TokenizerStage

TRAIN, VAL = candles(70), candles(60, seed=9)
FAST = {"n_epochs": 1, "n_epochs_tokenizer": 1, "batch_size": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    released.write(folder)
    return folder


def tuned(folder, tuning=True, **changes):
    return model_of(folder, enable_finetuning=tuning, **FAST | changes)


def weights(model):
    return {name: value.clone() for name, value in model.model.state_dict().items()}


def moved(model, folder):
    """Names of the weights that are not those in the folder."""
    start = weights(model_of(folder).fit(TRAIN))
    state = weights(model)
    return {name for name in state if "stage_log" not in name and changed(state, start, name)}


def changed(state, start, name):
    return plain_name(name) not in start or not torch.equal(state[name], start[plain_name(name)])


def stages(names):
    return {name.split(".")[0] for name in names}


class TestWhatMoves:
    def test_true_moves_both_stages(self, folder):
        assert stages(moved(tuned(folder).fit(TRAIN), folder)) == {"tokenizer", "predictor"}

    def test_false_moves_nothing(self, folder):
        assert not moved(tuned(folder, False).fit(TRAIN), folder)

    @pytest.mark.parametrize(
        ("changes", "stage"),
        [({"n_epochs_tokenizer": 0}, "predictor"), ({"n_epochs": 0}, "tokenizer")],
    )
    def test_either_stage_alone(self, folder, changes, stage):
        model = tuned(folder, **changes).fit(TRAIN)
        assert stages(moved(model, folder)) == {stage}
        assert set(model.training_history["stage"]) == {stage}
        assert model.predict(6).n_components == 6

    def test_frozen_patterns_stay(self, folder):
        model = tuned(folder, {"freeze": ["tokenizer.*", "predictor.tokens.*"]}).fit(TRAIN)
        names = moved(model, folder)
        assert names and all(name.startswith("predictor.") for name in names)
        assert not any(name.startswith("predictor.tokens.") for name in names)

    def test_only_unfrozen_patterns_move(self, folder):
        model = tuned(folder, {"unfreeze": ["*head.*"]}).fit(TRAIN)
        names = moved(model, folder)
        assert stages(names) == {"tokenizer", "predictor"}
        assert all("head." in name for name in names)

    def test_stored_calendar_tables_stay(self, tmp_path):
        released.write(tmp_path, "odd")
        names = moved(tuned(tmp_path, n_epochs_tokenizer=0).fit(TRAIN), tmp_path)
        assert names and not any("calendar" in name for name in names)

    def test_a_second_fit_goes_on_with_the_predictor(self, folder):
        model = tuned(folder).fit(TRAIN)
        before = weights(model)
        model.fit(TRAIN)
        names = {name for name in before if changed(weights(model), before, name)}
        assert stages(names) - {"stage_log"} == {"predictor"}

    def test_learning_rates_are_those_of_fine_tuning(self, folder):
        model = tuned(folder)
        assert model.tokenizer_optimizer_kwargs["lr"] == 2e-4
        assert model.pl_module_params["optimizer_kwargs"]["lr"] == 4e-5
        model = tuned(folder, optimizer_kwargs={"lr": 1e-3})
        assert model.pl_module_params["optimizer_kwargs"]["lr"] == 1e-3


@pytest.mark.parametrize(
    ("tuning", "changes", "message"),
    [
        ("yes", {}, "`enable_finetuning` must be True, False"),
        ({"freeze": ["a"], "unfreeze": ["b"]}, {}, "`enable_finetuning` must be True, False"),
        ({"unfreeze": "tokenizer"}, {}, "with patterns of weights' names"),
        ({"freeze": ["tokeniser.*"]}, {}, "no weight is called 'tokeniser.*'"),
        ({"freeze": ["*"]}, {}, "leaves nothing to train"),
        (True, {"n_epochs": 0, "n_epochs_tokenizer": 0}, "nothing to fine-tune"),
        (True, {"lora": 8}, "`lora` must be a dict"),
        (True, {"lora": {"rank": 8}}, "not what peft's LoraConfig takes"),
        (True, {"lora": {"r": 0}}, "`r` must be an integer >= 1"),
        (True, {"lora": {"use_dora": True}}, "`use_dora` must be False, got True"),
        (True, {"lora": {"bias": "all"}}, "`bias` must be 'none', got 'all'"),
        (True, {"lora": {"modules_to_save": ["s1_head"]}}, "`modules_to_save` must be None"),
        (True, {"lora": {"init_lora_weights": "pissa"}}, "must be True or False or 'gaussian'"),
        (True, {"lora": {"target_modules": ["nowhere"]}}, "cannot be added.*nowhere"),
        (
            True,
            {"lora": {"target_modules": ["s1", "s2"]}},
            "must be linear layers, and 'tokens.s1'",
        ),
        (True, {"lora": {"target_modules": ["hour"]}}, "must be linear layers, and 'calendar"),
        (None, {"lora": {"r": 2}}, "`lora` is a way to fine-tune"),
        (True, {"local_dir": None}, "`enable_finetuning` is not supported without weights"),
        (None, {"local_dir": None, "lora": {"r": 2}}, "`lora` is a way to fine-tune"),
        (None, {"local_dir": None, "n_epochs_tokenizer": 0}, "integer >= 1, got 0"),
    ],
    ids=str,
)
def test_what_cannot_be_fine_tuned_is_refused(folder, tuning, changes, message):
    with pytest.raises(ValueError, match=message):
        tuned(folder, tuning, **changes)


@pytest.mark.parametrize(
    ("tuning", "changes"),
    [
        ({"unfreeze": ["tokenizer.*"]}, {"n_epochs_tokenizer": 0}),
        ({"freeze": ["tokenizer.*"]}, {"n_epochs": 0}),
    ],
)
def test_stages_that_may_move_and_have_no_epochs_are_nothing_to_train(folder, tuning, changes):
    with pytest.raises(ValueError, match="the epochs of both stages leave nothing to train"):
        tuned(folder, tuning, **changes).fit(TRAIN)


def test_a_tokenizer_is_not_trained_again_without_fine_tuning(folder):
    with pytest.raises(ValueError, match="needs `enable_finetuning=True`"):
        model_of(folder).fit(TRAIN, retrain_tokenizer=True)


class TestAgainstZeroShot:
    def test_the_loss_before_the_first_step_is_logged(self, folder, tmp_path):
        trainer = QUIET | {"logger": CSVLogger(tmp_path, name="", version="log")}
        model = tuned(folder, n_epochs_tokenizer=0, pl_trainer_kwargs=trainer)
        model.fit(TRAIN, val_series=VAL)
        history = model.training_history
        first = history[history["epoch"] == 0].set_index("stage")["val_loss"]
        assert list(first.index) == ["predictor"]
        logged = (tmp_path / "log" / "metrics.csv").read_text().splitlines()
        at = logged[0].split(",").index("val_loss")
        assert float(logged[1].split(",")[at]) == pytest.approx(first["predictor"])
        assert first["predictor"] == pytest.approx(loss_of(model_of(folder).fit(TRAIN), VAL))

    def test_a_model_that_got_worse_says_so_and_stays_as_it_was(self, folder):
        model = tuned(folder, n_epochs_tokenizer=0, optimizer_kwargs={"lr": 5.0}, n_epochs=2)
        with pytest.warns(UserWarning, match="worse than zero-shot.*left as they were"):
            model.fit(TRAIN, val_series=VAL)
        assert not moved(model, folder)

    def test_without_validation_batches_nothing_is_judged(self, folder):
        trainer = QUIET | {"limit_val_batches": 0}
        model = tuned(folder, n_epochs_tokenizer=0, pl_trainer_kwargs=trainer)
        model.fit(TRAIN, val_series=VAL)
        assert list(model.training_history["epoch"]) == [1]

    def test_the_best_epoch_is_kept(self, folder):
        model = tuned(folder, n_epochs_tokenizer=0, optimizer_kwargs={"lr": 1e-2}, n_epochs=8)
        model.fit(TRAIN, val_series=VAL)
        losses = model.training_history.query("stage == 'predictor'")["val_loss"]
        assert losses.min() < losses.iloc[-1] or losses.idxmin() == losses.index[-1]
        assert loss_of(model, VAL) == pytest.approx(losses.min(), rel=1e-4)

    def test_a_worse_pair_with_another_tokenizer_says_so(self, folder):
        model = tuned(
            folder,
            n_epochs=0,
            n_epochs_tokenizer=2,
            tokenizer_optimizer_kwargs={"lr": 0.02},
        )
        with pytest.warns(UserWarning, match="worse than zero-shot.*compare forecasts too"):
            model.fit(TRAIN, val_series=VAL)

    def test_both_stages_start_at_epoch_0_and_can_be_drawn(self, folder):
        model = tuned(folder).fit(TRAIN, val_series=VAL)
        rows = model.training_history
        assert set(rows[rows["epoch"] == 0]["stage"]) == {"tokenizer", "predictor"}
        assert rows[rows["epoch"] == 0]["train_loss"].isna().all()
        figure = plot_training(model)
        first = next(axes for axes in figure.axes if axes.get_title() == "predictor: loss")
        counts = {line.get_label(): len(line.get_xdata()) for line in first.lines}
        assert counts == {"train": 1, "val": 2}

    def test_a_run_that_was_cut_off_goes_on(self, folder, tmp_path):
        kept = {"save_checkpoints": True, "work_dir": str(tmp_path), "n_epochs": 3}
        whole = tuned(folder, model_name="whole", **kept).fit(TRAIN, val_series=VAL)
        tuned(folder, model_name="cut", **kept | {"n_epochs": 3}).fit(TRAIN, val_series=VAL)
        file = next(path.name for path in (tmp_path / "whole/checkpoints").glob("last-*"))
        again = KronosModel.load_from_checkpoint("cut", str(tmp_path), file, best=False)
        again.fit(TRAIN, val_series=VAL)
        names = ["stage", "epoch", "val_loss"]
        assert again.training_history[names].equals(whole.training_history[names])


def loss_of(model, series):
    """The predictor's loss on all windows of a series."""
    from darts_kronos.zero_shot import validation_loss

    setup = model._setup_for_train(
        train_dataset=windows(model, TRAIN), val_dataset=windows(model, series)
    )
    return validation_loss(model.model, setup["datamodule"], setup["trainer"], QUIET)


def windows(model, series):
    from dataclasses import replace

    from darts_kronos.datasets import KronosTrainingDataset

    return KronosTrainingDataset([series], replace(model._window_rules, output_chunk_length=6))


class TestSaving:
    def test_a_tuned_model_is_complete_without_its_start(self, tmp_path):
        released.write(tmp_path / "start")
        model = tuned(tmp_path / "start").fit(TRAIN)
        model.save(str(tmp_path / "model.pt"))
        fresh = model.untrained_model()
        shutil.rmtree(tmp_path / "start")
        loaded = KronosModel.load(str(tmp_path / "model.pt"))
        assert loaded.predict(6, TRAIN) == model.predict(6, TRAIN)
        start = fresh._pretrained.weights
        again = loaded.untrained_model()._pretrained.weights
        assert all(torch.equal(start[name], again[name]) for name in start)

    def test_a_tuned_model_is_given_back_and_taken(self, folder, tmp_path):
        model = tuned(folder).fit(TRAIN)
        model.save_pretrained(tmp_path)
        again = model_of(tmp_path).fit(TRAIN)
        np.testing.assert_allclose(
            again.predict(6).values(), model.predict(6, TRAIN).values(), rtol=1e-5
        )


class TestLora:
    LORA = {"r": 2, "lora_alpha": 8}

    def test_heads_with_updates_are_copied_too(self, folder):
        lora = {"r": 2, "target_modules": ["s1_head", "qkv"]}
        model = tuned(folder, lora=lora, n_epochs_tokenizer=0, n_epochs=1).fit(TRAIN)
        found = pickle.loads(pickle.dumps(model))
        assert found.predict(3, random_state=1) == model.predict(3, random_state=1)

    @pytest.fixture(scope="class")
    def model(self, folder):
        return tuned(folder, lora=self.LORA, n_epochs_tokenizer=0, n_epochs=2).fit(TRAIN)

    def test_only_its_weights_move(self, model, folder):
        names = moved(model, folder)
        assert names and all("lora_" in name for name in names)
        blocks = {name for name in names if "blocks.0.attn.qkv" in name}
        assert len(blocks) == 2

    def test_the_tokenizer_may_move_beside_it(self, folder):
        names = moved(tuned(folder, lora=self.LORA).fit(TRAIN), folder)
        assert stages(names) == {"tokenizer", "predictor"}

    def test_it_is_merged_when_given_back(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        _, given = checkpoints.read(tmp_path / "predictor")
        assert not any("lora" in name for name in given)
        again = model_of(tmp_path).fit(TRAIN)
        np.testing.assert_allclose(
            again.predict(6).values(), model.predict(6, TRAIN).values(), rtol=1e-4
        )
        assert any("lora_" in name for name, _ in model.model.named_parameters())

    def test_it_is_saved_and_loaded(self, model, tmp_path):
        model.save(str(tmp_path / "model.pt"))
        loaded = KronosModel.load(str(tmp_path / "model.pt"))
        assert loaded.predict(6, TRAIN) == model.predict(6, TRAIN)
        loaded.fit(TRAIN)
        assert any("lora_" in name for name, _ in loaded.model.named_parameters())

    def test_without_peft_it_says_what_to_install(self, folder, monkeypatch):
        import_as_ever = builtins.__import__

        def without_peft(name, *args, **kwargs):
            if name.startswith("peft"):
                raise ImportError(name)
            return import_as_ever(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", without_peft)
        with pytest.raises(ImportError, match=r"darts-kronos\[lora\]"):
            tuned(folder, lora=self.LORA)


class TestTokenizersDropout:
    """It is there while the tokenizer learns, and at no other time."""

    @pytest.fixture
    def modes(self, monkeypatch):
        found = {"tokenizer": set(), "predictor": set()}

        def noted(stage, step):
            def training_step(self, *args):
                found[stage].add((self.tokenizer.training, self.training))
                return step(self, *args)

            return training_step

        for stage, kind in (("tokenizer", TokenizerStage), ("predictor", KronosModule)):
            monkeypatch.setattr(kind, "training_step", noted(stage, kind.training_step))
        return found

    @pytest.mark.parametrize("way", ["memory", "file", "copy"])
    def test_in_both_stages_of_any_fit(self, modes, tmp_path, way):
        model = tiny_model().fit(TRAIN)
        if way == "file":
            model.save(str(tmp_path / "model.pt"))
            model = KronosModel.load(str(tmp_path / "model.pt"))
        elif way == "copy":
            model = copy.deepcopy(model)
        model.fit(TRAIN)
        model.fit(TRAIN, retrain_tokenizer=True)
        assert modes == {"tokenizer": {(True, True)}, "predictor": {(False, True)}}

    def test_where_it_stays_as_it_is(self, modes, folder):
        tuned(folder, n_epochs_tokenizer=0).fit(TRAIN)
        assert modes == {"tokenizer": set(), "predictor": {(False, True)}}


@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_ensembles_of_tuned_weights_are_loaded(folder, tmp_path, lora):
    model = tuned(folder, lora=lora, n_epochs_tokenizer=0).fit(TRAIN)
    ensemble = NaiveEnsembleModel([model, model_of(folder).fit(TRAIN)], False)
    ensemble.save(str(tmp_path / "ensemble.pkl"))
    again = NaiveEnsembleModel.load(str(tmp_path / "ensemble.pkl"))
    assert again.predict(2, TRAIN) == ensemble.predict(2, TRAIN)
    untrained = NaiveEnsembleModel([tuned(folder), model_of(folder)])
    untrained.save(str(tmp_path / "untrained.pkl"))
    NaiveEnsembleModel.load(str(tmp_path / "untrained.pkl")).fit(TRAIN).predict(2)
