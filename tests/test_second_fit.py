"""A second fit goes on with what the first one learned, gently."""

import pytest
import pytorch_lightning as pl
from factories import candles, tiny_model

from darts_kronos.parameters import predictor_epochs


class RateAndSteps(pl.Callback):
    """Notes the peak learning rate and the number of steps of each training."""

    def __init__(self):
        self.seen = []

    def on_train_start(self, trainer, pl_module):
        schedule = trainer.lr_scheduler_configs[0].scheduler
        self.seen.append((max(schedule.base_lrs) * 10, trainer.max_epochs))


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
        return [rate for rate, _ in watch.seen]

    def test_it_is_gentle_where_the_user_gave_no_learning_rate(self, tmp_path):
        first, second, loaded = self.rates(tmp_path)
        assert second == pytest.approx(first / 3)
        assert loaded == pytest.approx(first / 3)

    def test_the_users_learning_rate_stays(self, tmp_path):
        rates = self.rates(tmp_path, optimizer_kwargs={"lr": 2e-3})
        assert rates == pytest.approx([2e-3] * 3)

    def test_half_of_the_steps_are_enough(self):
        params = {"size": None}
        assert predictor_epochs(params, 32 * 30, 32, trained=False) == 10
        assert predictor_epochs(params, 32 * 30, 32, trained=True) == 5
        assert predictor_epochs(params, 32 * 1000, 32, trained=True) == 2
        assert predictor_epochs({"n_epochs": 3}, 960, 32, trained=True) == 0
