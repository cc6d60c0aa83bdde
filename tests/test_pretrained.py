"""Models that start from weights the original's code wrote, beside that code's own forecasts."""

import json
import shutil

import numpy as np
import pytest
import released
import torch
from factories import COMPONENTS, candle_frame, candles
from released import as_series, assert_equal_forecasts, greedy, model_of

from darts_kronos import KronosModel


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return folder, released.write(folder)


@pytest.fixture(scope="module")
def folder(tiny):
    return tiny[0]


def weights(model):
    return {name: value.clone() for name, value in model.model.state_dict().items()}


def all_equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


class TestParity:
    # context, n, max_context: fits; slides past it; more rows than it; these, and nearly all new
    LENGTHS = [(40, 8, 512), (40, 10, 45), (60, 8, 40), (60, 20, 24)]

    @pytest.mark.parametrize("lengths", LENGTHS, ids=str)
    @pytest.mark.parametrize(("size", "seed"), [("tiny", 0), ("tiny", 1), ("odd", 2)])
    def test_greedy_forecasts_are_the_originals(self, tmp_path, size, seed, lengths):
        context, n, max_context = lengths
        original = released.write(tmp_path, size, seed)
        frame = candle_frame(context, seed=seed)
        model = model_of(
            tmp_path, input_chunk_length=context, output_chunk_length=n, max_context=max_context
        )
        forecast = model.fit(as_series(frame)).predict(n)
        assert_equal_forecasts(forecast, greedy(original, [frame], n, max_context)[0])

    @pytest.mark.parametrize("size", ["mini", "small"])
    def test_published_sizes_too(self, tmp_path, size):
        original = released.write(tmp_path, size)
        frame = candle_frame(50)
        model = model_of(tmp_path, input_chunk_length=50, output_chunk_length=4)
        assert_equal_forecasts(
            model.fit(as_series(frame)).predict(4), greedy(original, [frame], 4)[0]
        )
        assert model.model.max_context == {"mini": 2048, "small": 512}[size]

    @pytest.mark.parametrize(
        "names",
        [
            ["open", "high", "low", "close"],
            ["close", "volume", "open", "low", "high"],
            ["amount", "volume", "close", "low", "high", "open"],
            ["Low", "High", "Open", "Close", "Volume"],
        ],
        ids=lambda names: "-".join(name[0] for name in names),
    )
    def test_components_in_any_order_or_left_out(self, tiny, names):
        folder, original = tiny
        frame = candle_frame(24)[[name.lower() for name in names]]
        expected = greedy(original, [frame], 6)[0].rename(
            columns=dict(zip(frame, names, strict=True))
        )
        forecast = model_of(folder).fit(as_series(frame.set_axis(names, axis=1))).predict(6)
        assert list(forecast.components) == names
        assert_equal_forecasts(forecast, expected)

    def test_batches_are_the_originals(self, tiny):
        folder, original = tiny
        frames = [candle_frame(24, seed=seed) for seed in range(3)]
        series = [as_series(frame) for frame in frames]
        forecasts = model_of(folder).fit(series).predict(6, series)
        for forecast, expected in zip(forecasts, greedy(original, frames, 6), strict=True):
            assert_equal_forecasts(forecast, expected)

    def test_an_amount_without_volume_is_not_seen_and_says_so(self, tiny):
        folder, original = tiny
        frame = candle_frame(24)[["open", "high", "low", "close", "amount"]]
        with pytest.warns(UserWarning, match="an amount but no volume"):
            forecast = model_of(folder).fit(as_series(frame)).predict(6)
        expected = greedy(original, [frame], 6)[0]
        np.testing.assert_allclose(forecast["close"].values()[:, 0], expected["close"], rtol=1e-4)


class TestZeroShot:
    def test_fit_trains_nothing_and_needs_no_horizon(self, folder):
        short = model_of(folder).fit(candles(24))
        longer = model_of(folder).fit(candles(100, seed=5), val_series=candles(60))
        assert all_equal(weights(short), weights(longer))
        assert short.training_history.empty
        assert not any(weight.requires_grad for weight in short.model.parameters())

    def test_backtests_and_retraining_ones_agree(self, folder):
        series = candles(60)
        model = model_of(folder).fit(series[:30])
        found = [
            model.historical_forecasts(
                series,
                start=40,
                start_format="position",
                forecast_horizon=3,
                stride=6,
                retrain=retrain,
                last_points_only=False,
                verbose=False,
            )
            for retrain in (False, True)
        ]
        for one, other in zip(*found, strict=True):
            np.testing.assert_allclose(one.values(), other.values(), rtol=1e-6)

    def test_contexts_of_several_lengths(self, tiny):
        folder, original = tiny
        frames = [candle_frame(length, seed=length) for length in (18, 24)]
        series = [as_series(frame) for frame in frames]
        forecasts = model_of(folder, input_chunk_length=(12, 24)).fit(series).predict(6, series)
        for frame, forecast in zip(frames, forecasts, strict=True):
            assert_equal_forecasts(forecast, greedy(original, [frame], 6)[0])

    def test_weights_of_another_start_are_refused(self, folder, tmp_path):
        released.write(tmp_path / "odd", "odd")
        saved = str(tmp_path / "model.pt")
        model_of(folder).fit(candles(24)).save(saved)
        same = model_of(folder)
        same.load_weights(saved)
        assert same.predict(6, candles(24)).n_components == 6
        with pytest.raises(ValueError, match="started from .*networks are not the same"):
            model_of(tmp_path / "odd").load_weights(saved)

    def test_making_a_model_leaves_the_random_numbers_alone(self, folder):
        torch.manual_seed(3)
        model_of(folder)
        drawn = torch.rand(2)
        torch.manual_seed(3)
        assert torch.equal(drawn, torch.rand(2))

    def test_a_copy_needs_no_files(self, tmp_path):
        released.write(tmp_path / "weights")
        model = model_of(tmp_path / "weights")
        fitted = model_of(tmp_path / "weights").fit(candles(24))
        shutil.rmtree(tmp_path / "weights")
        again = [one.untrained_model().fit(candles(24)) for one in (model, fitted)]
        assert all(all_equal(weights(fitted), weights(one)) for one in again)

    @pytest.mark.parametrize("clean", [False, True])
    def test_a_saved_model_is_complete(self, tmp_path, clean):
        released.write(tmp_path / "weights")
        series = candles(30)
        model = model_of(tmp_path / "weights").fit(series)
        expected = model.predict(6, series)
        model.save(str(tmp_path / "model.pt"), clean=clean)
        shutil.rmtree(tmp_path / "weights")
        loaded = KronosModel.load(str(tmp_path / "model.pt"))
        assert loaded.predict(6, series) == expected
        assert all_equal(weights(loaded.untrained_model().fit(series)), weights(model))
        # The weights are stored once: in the checkpoint beside it.
        size = sum(value.numel() for value in weights(model).values()) * 4
        assert (tmp_path / "model.pt").stat().st_size < size / 2


class TestSettings:
    def test_the_weights_decide(self, folder):
        model = model_of(folder).fit(candles(24))
        assert model.representation == "window"
        assert model.model.max_context == 512
        assert model.model.predictor.config.d_model == 32
        assert model_of(folder, max_context=64).fit(candles(24)).model.max_context == 64

    def test_dropouts_and_loss_weights_may_be_set(self, folder):
        model = model_of(folder, ffn_dropout=0.3, gamma=1.5).fit(candles(24))
        assert model.model.predictor.config.ffn_dropout == 0.3
        assert model.model.tokenizer.config.gamma == 1.5

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"size": "small"}, "size='small'.*d_model`=512.*d_model=32"),
            ({"d_model": 64}, "d_model`=64.*d_model=32"),
            ({"s1_bits": 5}, "s1_bits`=5.*s1_bits=4"),
            ({"tokenizer_n_layers": 3}, "tokenizer_n_layers`=3.*tokenizer_n_layers=2"),
            ({"representation": "returns"}, "representation`='returns'.*representation='window'"),
            ({"clip": 3.0}, "clip`=3.0.*clip=5.0"),
        ],
        ids=str,
    )
    def test_what_disagrees_is_refused_with_both_values(self, folder, changes, message):
        with pytest.raises(ValueError, match=message):
            model_of(folder, **changes)

    @pytest.mark.parametrize(
        "names", [["close"], ["open", "high", "low"], ["open", "high", "low", "close", "extra"]]
    )
    def test_other_components_are_refused(self, folder, names):
        frame = candle_frame(24)
        frame["extra"] = 1.0
        with pytest.raises(ValueError, match="the model needs"):
            model_of(folder).fit(as_series(frame[names]))


class TestFolders:
    def test_a_predictor_and_a_tokenizer_from_elsewhere(self, tiny, tmp_path):
        folder, original = tiny
        shutil.copytree(folder / "predictor", tmp_path / "p")
        shutil.copytree(folder / "tokenizer", tmp_path / "t")
        model = model_of(tmp_path / "p", tokenizer_local_dir=str(tmp_path / "t"))
        frame = candle_frame(24)
        assert_equal_forecasts(
            model.fit(as_series(frame)).predict(6), greedy(original, [frame], 6)[0]
        )

    def test_a_tokenizer_that_is_named_goes_before_the_one_beside(self, folder, tmp_path):
        released.write(tmp_path, seed=7)
        other = model_of(folder, tokenizer_local_dir=tmp_path).fit(candles(24))
        expected = model_of(tmp_path).fit(candles(24))
        tokenizers = [model.model.tokenizer.state_dict() for model in (other, expected)]
        assert all_equal(*tokenizers)

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda f: shutil.rmtree(f), "does not exist"),
            (lambda f: shutil.rmtree(f / "predictor"), "holds no predictor"),
            (lambda f: shutil.rmtree(f / "tokenizer"), "tokenizer of .* is not known"),
            (lambda f: (f / "tokenizer" / "model.safetensors").unlink(), "never from a pickle"),
            (lambda f: (f / "tokenizer" / "model.safetensors").write_bytes(b"x" * 99), "truncated"),
            (lambda f: edit(f / "tokenizer", d_in=5), r"\(32, 6\).*\(32, 5\)|5 components"),
            (lambda f: edit(f / "predictor", n_layers=3), "predictor.*missing transformer.2"),
        ],
    )
    def test_what_does_not_hold_together_is_refused(self, tmp_path, spoil, message):
        released.write(tmp_path / "weights")
        spoil(tmp_path / "weights")
        with pytest.raises(ValueError, match=message):
            model_of(tmp_path / "weights")

    def test_differing_bits_are_refused_with_both(self, folder, tmp_path):
        released.write(tmp_path, "odd")
        with pytest.raises(ValueError, match=r"6 \+ 6 bits.*4 \+ 4"):
            model_of(folder, tokenizer_local_dir=tmp_path / "tokenizer")

    @pytest.mark.parametrize("model", ["hub", "folder"])
    def test_a_known_wrong_pair_is_refused(self, tmp_path, model):
        where = (
            {"local_dir": None, "hub_model_name": "NeoQuasar/Kronos-mini"}
            if model == "hub"
            else {"local_dir": tmp_path / "Kronos-mini"}
        )
        message = "Kronos-mini was trained with Kronos-Tokenizer-2k.*Kronos-Tokenizer-base"
        with pytest.raises(ValueError, match=message):
            model_of(None, **where, hub_tokenizer_name="NeoQuasar/Kronos-Tokenizer-base")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"local_dir": 3}, "`local_dir` must be a folder"),
            ({"local_dir": None, "hub_model_name": ""}, "`hub_model_name` must be a name"),
            ({"local_dir": None, "tokenizer_local_dir": "x"}, "`tokenizer_local_dir` was given w"),
            ({"hub_model_revision": "main"}, "`hub_model_revision` was given without"),
        ],
        ids=str,
    )
    def test_sources_that_say_nothing_are_refused(self, folder, changes, message):
        with pytest.raises(ValueError, match=message):
            model_of(folder, **changes)


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_components_are_those_of_candles():
    assert COMPONENTS == ["open", "high", "low", "close", "volume", "amount"]
