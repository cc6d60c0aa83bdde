"""Contexts of several lengths, and the weights of bars, in training and in forecasts."""

import numpy as np
import pytest
import torch
from darts.utils.data import SequentialTorchTrainingDataset
from darts.utils.data.torch_datasets.utils import TorchTrainingBatch
from factories import GREEDY, candles, tiny_model

from darts_kronos.augmentation import Augmentation
from darts_kronos.nn.config import PredictorConfig, TokenizerConfig
from darts_kronos.nn.predictor import KronosPredictor
from darts_kronos.nn.quantizer import weighted_mean
from darts_kronos.nn.tokenizer import KronosTokenizer


@pytest.fixture(scope="module")
def series():
    return candles(100)


@pytest.fixture(scope="module")
def variable(series):
    return tiny_model(input_chunk_length=(8, 24), **GREEDY).fit([series, series[:20]])


def with_context(model, length):
    """A model of one context length with another's weights."""
    fixed = tiny_model(input_chunk_length=length, max_context=30, **GREEDY).fit(candles(40))
    fixed.model.load_state_dict(model.model.state_dict())
    return fixed


class TestForecasts:
    def test_a_padded_window_forecasts_as_the_unpadded_one(self, variable, series):
        short, whole = series[:11], series[:40]
        together = variable.predict(9, series=[short, whole, series[:8]])
        for own, length, found in ((short, 11, together[0]), (whole, 24, together[1])):
            expected = with_context(variable, length).predict(9, series=own)
            np.testing.assert_allclose(found.values(), expected.values(), rtol=1e-5)

    @pytest.mark.parametrize("optimised", [True, False])
    def test_a_backtest_starts_after_the_least_context(self, variable, series, optimised):
        found = variable.historical_forecasts(
            series[:32],
            retrain=False,
            last_points_only=False,
            forecast_horizon=3,
            enable_optimization=optimised,
            verbose=False,
        )
        assert found[0].start_time() == series.time_index[8]
        for one in found:
            known = series.drop_after(one.start_time())
            expected = variable.predict(3, series=known)
            np.testing.assert_allclose(one.values(), expected.values(), rtol=1e-5)

    def test_many_samples_are_paths_of_each_window(self, variable, series):
        variable.set_sampling(top_k=None)
        found = variable.predict(4, series=[series[:9], series], num_samples=5)
        variable.set_sampling(top_k=1)
        assert [one.n_samples for one in found] == [5, 5]
        assert all(np.isfinite(one.all_values()).all() for one in found)

    def test_fewer_bars_than_the_least_are_refused(self, variable, series):
        with pytest.raises(ValueError, match="at least 8 are needed"):
            variable.predict(3, series=series[:7])
        with pytest.raises(ValueError, match="at least 14 are needed"):
            tiny_model(input_chunk_length=(8, 24)).fit(series[:13])

    def test_it_survives_saving_and_a_new_untrained_model(self, variable, series, tmp_path):
        variable.save(str(tmp_path / "m.pt"))
        loaded = type(variable).load(str(tmp_path / "m.pt"))
        assert loaded.predict(3, series=series[:9]) == variable.predict(3, series=series[:9])
        assert loaded.untrained_model().min_input_chunk_length == 8

    def test_datasets_of_darts_train_it(self, series):
        model = tiny_model(input_chunk_length=(8, 24))
        wanted = {"series": [series[:20]], "output_chunk_length": 6}
        model.fit_from_dataset(
            SequentialTorchTrainingDataset(**wanted, input_chunk_length=(8, 24)), epochs=1
        )
        with pytest.raises(ValueError, match=r"input_chunk_length=\(8, 24\)"):
            model.fit_from_dataset(
                SequentialTorchTrainingDataset(**wanted, input_chunk_length=8), epochs=1
            )

    @pytest.mark.parametrize("wrong", [(8,), (0, 24), (24, 8), (8.0, 24), "24", (8, 24, 30)])
    def test_wrong_bounds_are_refused(self, wrong):
        with pytest.raises(ValueError, match="input_chunk_length"):
            tiny_model(input_chunk_length=wrong)


class TestTraining:
    @pytest.mark.parametrize("max_context", [None, 20])
    def test_a_padded_window_has_the_loss_of_the_unpadded_one(self, variable, series, max_context):
        def loss(model, past, future):
            module = model.model.eval()
            values = [torch.tensor(one.values()[None]) for one in (past, future)]
            stamps = model._window_rules.stamps([series], 0)[0]
            first = series.get_index_at_point(past.start_time())
            seen = torch.tensor(stamps.values()[first : first + len(past) + 6][None])
            pad = model.input_chunk_length - len(past)
            fill = lambda one: torch.nn.functional.pad(one, (0, 0, pad, 0), value=torch.nan)  # noqa: E731
            batch = TorchTrainingBatch(
                past_target=fill(values[0]),
                past_covariates=None,
                historic_future_covariates=fill(seen[:, : len(past)]),
                future_covariates=seen[:, len(past) :],
                static_covariates=None,
                future_target=values[1],
                sample_weight=None,
            )
            logged = {}
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module, "max_context", max_context or 30)
                patch.setattr(
                    module.stage_log, "write", lambda *args: logged.update(args[2]), raising=True
                )
                module._step(batch, "val", Augmentation())
            return {name: float(value) for name, value in logged.items()}

        past, future = series[30:41], series[41:47]
        padded = loss(variable, past, future)
        whole = loss(with_context(variable, 11), past, future)
        assert padded == pytest.approx(whole, rel=1e-5)

    def test_weights_are_means_of_what_counts(self):
        losses = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        assert weighted_mean(losses, None) == 2.5
        assert weighted_mean(losses, torch.full((2, 2), 0.5)) == 1.25
        assert weighted_mean(losses, torch.tensor([[1.0, 0.0], [0.0, 1.0]])) == 2.5
        assert weighted_mean(losses, torch.zeros(2, 2)) == 0

    def test_weights_of_one_leave_both_losses_as_they_are(self):
        torch.manual_seed(0)
        shape = {"d_model": 16, "n_heads": 2, "ff_dim": 32, "s1_bits": 4, "s2_bits": 3}
        tokenizer = KronosTokenizer(
            TokenizerConfig(n_components=4, n_encoder_layers=1, n_decoder_layers=1, **shape)
        )
        predictor = KronosPredictor(PredictorConfig(n_layers=1, **shape))
        bars, ones = torch.randn(3, 10, 4), torch.ones(3, 10)
        plain, weighted = tokenizer(bars), tokenizer(bars, ones)
        torch.testing.assert_close(plain[:4], weighted[:4])
        s1, s2 = plain.s1, plain.s2
        torch.testing.assert_close(
            tuple(predictor.loss(s1, s2, None)), tuple(predictor.loss(s1, s2, None, ones))
        )

    def test_bars_of_weight_zero_are_left_out(self):
        torch.manual_seed(0)
        shape = {"d_model": 16, "n_heads": 2, "ff_dim": 32, "s1_bits": 4, "s2_bits": 3}
        tokenizer = KronosTokenizer(
            TokenizerConfig(n_components=4, n_encoder_layers=1, n_decoder_layers=1, **shape)
        )
        bars = torch.randn(2, 10, 4)
        weights = torch.ones(2, 10)
        weights[:, 7:] = 0
        short = tokenizer(bars[:, :7])
        for left_out in (bars, torch.cat((bars[:, :7], 9 * bars[:, 7:]), dim=1)):
            torch.testing.assert_close(tokenizer(left_out, weights)[:4], short[:4])
