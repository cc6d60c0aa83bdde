"""What is computed or held once, and gives what it would give without."""

import numpy as np
import pytest
import reference
import torch
from darts.utils.data import SequentialTorchTrainingDataset
from factories import candles, tiny_model

from darts_kronos.datasets import KronosTrainingDataset, WindowRules
from darts_kronos.nn import kernels
from darts_kronos.nn import rows as nn_rows
from darts_kronos.nn.tokenizer import KronosTokenizer
from darts_kronos.token_cache import TokenCache

NOTHING_VARIED = dict.fromkeys(
    ("mirror", "price_jitter", "volume_jitter", "volume_dropout", "date_shift"), 0.0
)


class TestWindows:
    @pytest.mark.parametrize("with_stamps", [True, False])
    @pytest.mark.parametrize("kwargs", [{}, {"stride": 3}, {"max_samples_per_ts": 5}], ids=str)
    def test_they_are_those_that_darts_cuts(self, kwargs, with_stamps):
        series = [candles(60), candles(45, seed=1)]
        rules = WindowRules(
            components=list(series[0].components),
            input_chunk_length=(24, 24),
            output_chunk_length=6,
            with_stamps=with_stamps,
            positive_prices=False,
        )
        ours = KronosTrainingDataset(series, rules, **kwargs)
        theirs = SequentialTorchTrainingDataset(
            series,
            future_covariates=rules.stamps(series, 0),
            input_chunk_length=24,
            output_chunk_length=6,
            use_static_covariates=False,
            **kwargs,
        )
        assert len(ours) == len(theirs)
        for i in range(len(ours)):
            for name in ("past_target", "future_target", "historic_future_covariates"):
                one, other = getattr(ours[i], name), getattr(theirs[i], name)
                assert (one is None) == (other is None) == (not with_stamps and "cov" in name)
                if one is not None:
                    np.testing.assert_array_equal(one, other)

    def test_they_are_views_of_the_series(self):
        series = candles(60)
        rules = WindowRules(
            components=list(series.components),
            input_chunk_length=(24, 24),
            output_chunk_length=6,
            with_stamps=False,
            positive_prices=False,
        )
        window = KronosTrainingDataset([series], rules)[3]
        assert np.shares_memory(window.past_target, series.all_values(copy=False))


class TestTokenCache:
    @pytest.fixture
    def tokenizer(self):
        return reference.tokenizers(0)[1]

    def test_tokens_are_the_tokenizers_and_are_encoded_once(self, tokenizer, monkeypatch):
        encoded = []
        original = KronosTokenizer.encode
        monkeypatch.setattr(
            KronosTokenizer,
            "encode",
            lambda self, bars: encoded.append(len(bars)) or original(self, bars),
        )
        cache, bars = TokenCache(), reference.random_bars(6, 20, 0)
        expected = original(tokenizer, bars)
        for rows in ([0, 1, 2, 3], [2, 4, 0], [5, 5, 1]):
            for one, other in zip(cache.encode(tokenizer, bars[rows]), expected, strict=True):
                assert one.dtype == torch.int64
                assert torch.equal(one, other[rows])
        # Of each batch only windows that were not seen before.
        assert encoded == [4, 1, 2]

    def test_its_memory_is_bounded(self, tokenizer):
        cache, bars = TokenCache(most_bytes=3 * 2 * 20 * 4), reference.random_bars(6, 20, 0)
        for _ in range(2):
            s1, s2 = cache.encode(tokenizer, bars)
            assert torch.equal(s1, tokenizer.encode(bars)[0])
            assert torch.equal(s2, tokenizer.encode(bars)[1])
            assert cache.bytes == 3 * 2 * 20 * 4

    def test_training_with_it_is_training_without(self, monkeypatch):
        def losses():
            model = tiny_model(n_epochs=3, **NOTHING_VARIED)
            model.fit(candles(60), val_series=candles(50, seed=1))
            assert model.model._token_cache is None
            history = model.training_history
            return history[["train_loss", "val_loss"]].to_numpy()

        with_cache = losses()
        monkeypatch.setattr(
            TokenCache, "encode", lambda self, tokenizer, bars: tokenizer.encode(bars)
        )
        np.testing.assert_allclose(losses(), with_cache, rtol=1e-4)


class TestBacktests:
    @pytest.fixture(scope="class")
    def fitted(self):
        return tiny_model().fit(candles(60))

    def test_last_points_are_the_last_bars_and_no_others_are_held(self, fitted, monkeypatch):
        series = candles(60, seed=1)
        kwargs = {
            "start": 40,
            "forecast_horizon": 5,
            "retrain": False,
            "num_samples": 4,
            "random_state": 3,
        }
        whole = fitted.historical_forecasts(series, last_points_only=False, **kwargs)
        shapes = []
        module = type(fitted.model)
        original = module.predict_step

        def noting(self, *args, **kwargs):
            found = original(self, *args, **kwargs)
            shapes.append(tuple(found[0].shape))
            assert found[0].untyped_storage().nbytes() == found[0].nbytes
            return found

        monkeypatch.setattr(module, "predict_step", noting)
        last = fitted.historical_forecasts(series, last_points_only=True, **kwargs)
        assert {(shape[0], *shape[2:]) for shape in shapes} == {(4, 1, 6)}
        assert list(last.time_index) == [one.end_time() for one in whole]
        np.testing.assert_array_equal(
            last.all_values(), np.stack([one.all_values()[-1] for one in whole])
        )
        # And forecasts are whole again.
        assert len(fitted.predict(5, series, num_samples=2)) == 5


class TestLinear:
    def test_outputs_and_gradients_are_those_of_torch(self):
        torch.manual_seed(0)
        for rows, inputs, outputs, bias in ((7, 12, 30, True), (50, 40, 9, False), (1, 8, 8, True)):
            ours = kernels.Linear(inputs, outputs, bias=bias)
            theirs = torch.nn.Linear(inputs, outputs, bias=bias)
            theirs.load_state_dict(ours.state_dict())
            x, y = (torch.randn(3, rows, inputs) for _ in range(2))
            y.copy_(x)
            x.requires_grad_()
            y.requires_grad_()
            for layer, given in ((ours, x), (theirs, y)):
                layer(given).sin().sum().backward()
            torch.testing.assert_close(ours(x), theirs(x))
            torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-5)
            for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
                torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)

    def test_parts_of_larger_tensors_are_taken(self):
        torch.manual_seed(0)
        layer, x = kernels.Linear(6, 5), torch.randn(4, 9, 20)
        part = x[..., 2:8]
        torch.testing.assert_close(
            layer(part), torch.nn.functional.linear(part, *layer.parameters())
        )
        turned = torch.randn(6, 7).t()
        torch.testing.assert_close(
            layer(turned), torch.nn.functional.linear(turned, *layer.parameters())
        )
        assert layer(torch.zeros(0, 6)).shape == (0, 5)

    @pytest.mark.parametrize("compiled", [True, False])
    @pytest.mark.parametrize("laid_out_for", [0, 1, 3])
    @pytest.mark.parametrize("rows", [1, 3])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_packed_weights_give_the_same(self, dtype, rows, laid_out_for, compiled, monkeypatch):
        if not compiled:
            monkeypatch.setattr(nn_rows, "row_kernels", lambda: None)
        torch.manual_seed(0)
        network = torch.nn.Sequential(kernels.Linear(24, 40), kernels.Linear(40, 10, bias=False))
        x = torch.randn(rows, 24)
        with torch.no_grad():
            expected = network(x)
            with kernels.packed(network, dtype, laid_out_for):
                found = network(x)
            tolerance = 1e-5 if dtype == torch.float32 else 0.05
            torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)
            assert torch.equal(network(x), expected)

    def test_without_onednn_torchs_own_product_is_taken(self, monkeypatch):
        monkeypatch.setattr(kernels, "_HAS_ONEDNN", False)
        layer, x = kernels.Linear(6, 5), torch.randn(2, 6)
        expected = torch.nn.functional.linear(x, *layer.parameters())
        assert torch.equal(layer(x), expected)
        with torch.no_grad(), kernels.packed(layer, torch.float32, rows=2):
            assert torch.equal(layer(x), expected)


class TestSliding:
    def test_a_model_slides_as_it_is_told(self):
        series = candles(80)
        model = tiny_model(max_context=26).fit(series)
        paths = {}
        for sliding in ("exact", "cached"):
            model.set_sampling(sliding=sliding, top_k=1)
            assert model.sampling["sliding"] == sliding
            paths[sliding] = model.predict(20, series, num_samples=2).all_values()
        assert np.isfinite(paths["cached"]).all()
        # Before the window slides, both are the same.
        np.testing.assert_allclose(paths["cached"][:1], paths["exact"][:1], rtol=1e-4)

    def test_an_unknown_way_is_refused_before_anything_is_trained(self):
        with pytest.raises(ValueError, match="`sliding` must be one of 'exact', 'cached'"):
            tiny_model(sliding="fast")
