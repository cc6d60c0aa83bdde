"""A second fit goes on with what the first one learned, gently."""

import pytest
import pytorch_lightning as pl
from factories import candles, tiny_model

from darts_kronos import KronosModel
from darts_kronos.augmentation import Augmentation
from darts_kronos.parameters import predictor_epochs, tokenizer_epochs


class RateAndSteps(pl.Callback):
    """Notes the peak learning rate and the number of steps of each training."""

    def __init__(self):
        self.seen = []

    def on_train_start(self, trainer, pl_module):
        schedule = trainer.lr_scheduler_configs[0].scheduler
        self.seen.append((max(schedule.base_lrs) * 10, trainer.max_epochs))


class TestAugmentationOfASecondFit:
    def seen(self, model, monkeypatch):
        """How the windows of a further fit are varied."""
        found = []
        own = Augmentation.bars

        def bars(self, *args):
            found.append(self)
            return own(self, *args)

        monkeypatch.setattr(Augmentation, "bars", bars)
        model.fit(candles(60))
        return set(found)

    def test_it_may_be_another_than_that_of_the_first(self, tmp_path, monkeypatch):
        model = tiny_model(price_jitter=0.0).fit(candles(60))
        before = model.augmentation
        assert before["mirror"] == 0.5
        model.set_augmentation(mirror=0.0, volume_jitter=0.7)
        assert model.augmentation == before | {"mirror": 0.0, "volume_jitter": 0.7}
        # The choice is saved with the model.
        model.save(str(tmp_path / "model.pt"))
        loaded = KronosModel.load(str(tmp_path / "model.pt"))
        assert loaded.augmentation == model.augmentation
        wanted = Augmentation(**model.augmentation)
        assert self.seen(loaded, monkeypatch) == {wanted}
        assert self.seen(model, monkeypatch) == {wanted}

    def test_a_model_that_was_not_fitted_takes_it_too(self, monkeypatch):
        model = tiny_model().set_augmentation(mirror=0.25)
        assert self.seen(model, monkeypatch) == {Augmentation(**model.augmentation)}

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"mirror": 1.5}, "`mirror` must be a number in"),
            ({"price_jitter": -1.0}, "`price_jitter` must be a number >= 0"),
            ({"mirrors": 0.5}, "Unknown parameter mirrors .* there are mirror, price_jitter"),
        ],
    )
    def test_what_is_wrong_changes_nothing(self, changes, message):
        model = tiny_model()
        before = model.augmentation
        with pytest.raises(ValueError, match=message):
            model.set_augmentation(**({"date_shift": 0.9} | changes))
        assert model.augmentation == before


class TestSecondFit:
    def rates(self, tmp_path, **changes):
        watch = RateAndSteps()
        model = tiny_model(
            pl_trainer_kwargs={"accelerator": "cpu", "callbacks": [watch]}, **changes
        )
        model.fit(candles(60))
        model.fit(candles(60))
        model.save(str(tmp_path / "model.pt"), clean=True)
        other = tiny_model(
            pl_trainer_kwargs={"accelerator": "cpu", "callbacks": [watch]}, **changes
        )
        other.load_weights(str(tmp_path / "model.pt"))
        other.fit(candles(60))
        other.fit(candles(60), retrain_tokenizer=True)
        return [rate for rate, _ in watch.seen]

    def test_it_is_gentle_where_the_user_gave_no_learning_rate(self, tmp_path):
        first, second, loaded, new_tokens = self.rates(tmp_path)
        assert second == pytest.approx(first / 3)
        assert loaded == pytest.approx(first / 3)
        assert new_tokens == pytest.approx(first)

    def test_the_users_learning_rate_stays(self, tmp_path):
        rates = self.rates(tmp_path, optimizer_kwargs={"lr": 2e-3})
        assert rates == pytest.approx([2e-3] * 4)

    def test_half_of_the_steps_are_enough(self):
        params = {"size": None}
        assert predictor_epochs(params, 32 * 30, 32, trained=False) == 10
        assert predictor_epochs(params, 32 * 30, 32, trained=True) == 5
        assert predictor_epochs(params, 32 * 1000, 32, trained=True) == 2
        assert predictor_epochs({"n_epochs": 3}, 960, 32, trained=True) == 0

    def test_steps_of_several_batches_need_more_epochs(self):
        params = {"size": None, "pl_trainer_kwargs": {"accumulate_grad_batches": 3}}
        assert predictor_epochs(params, 32 * 30, 32, trained=False) == 30
        params["pl_trainer_kwargs"] = {"devices": [0, 1], "num_nodes": 2}
        assert predictor_epochs(params, 32 * 120, 32, trained=False) == 10
        params["pl_trainer_kwargs"] = {"devices": "auto", "num_nodes": 1}
        assert predictor_epochs(params, 32 * 30, 32, trained=False) == 10
        own = {"tokenizer_batch_size": 16, "n_epochs_tokenizer": None}
        params = {"pl_trainer_kwargs": {"accumulate_grad_batches": 3}, **own}
        assert tokenizer_epochs(params, 16 * 100) == 15
        params["tokenizer_trainer_kwargs"] = {"accumulate_grad_batches": 1}
        assert tokenizer_epochs(params, 16 * 100) == 5


def test_what_is_given_for_the_loaders_serves_further_fits():
    given = {"shuffle": False, "batch_size": 8}
    tiny_model().fit(candles(60), dataloader_kwargs=given)
    assert given == {"shuffle": False, "batch_size": 8}
