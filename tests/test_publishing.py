"""Weights that are given back: folders, and what the original's code makes of them."""

import json
import warnings

import numpy as np
import pytest
import released
import torch
from factories import TINY, candle_frame, candles, tiny_model
from kronos_finance._vendor.kronos_model import Kronos, KronosTokenizer
from released import as_series, assert_equal_forecasts, greedy, model_of

from darts_kronos import checkpoints, publishing

EQUAL_BITS = {"s1_bits": 4, "s2_bits": 4, "representation": "window"}


@pytest.fixture(scope="module")
def window_model():
    """A model of the kind that the original's code can run."""
    return tiny_model(**EQUAL_BITS).fit(candles(60))


@pytest.fixture(scope="module")
def returns_model():
    return tiny_model(clip=4.0).fit(candles(60)[["low", "close", "open", "high"]])


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}


def test_the_original_loads_it_and_forecasts_the_same(window_model, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        window_model.save_pretrained(tmp_path / "mine")
    tokenizer = KronosTokenizer.from_pretrained(tmp_path / "mine" / "tokenizer", strict=True)
    predictor = Kronos.from_pretrained(tmp_path / "mine" / "predictor", strict=True)
    frame = candle_frame(24, seed=3)
    expected = greedy((tokenizer.eval(), predictor.eval()), [frame], 6, max_context=30)[0]
    window_model.set_sampling(top_k=1, valid_candles=False)
    series = as_series(frame)
    assert_equal_forecasts(window_model.predict(6, series), expected)
    again = model_of(tmp_path / "mine").fit(series)
    assert_equal_forecasts(again.predict(6), expected)
    assert again.model.max_context == window_model.model.max_context


def test_released_files_come_back_as_they_were(tmp_path):
    tokenizer, predictor = released.write(tmp_path / "theirs", "odd")
    model_of(tmp_path / "theirs").fit(candles(24)).save_pretrained(tmp_path / "ours")
    for part, original in (("tokenizer", tokenizer), ("predictor", predictor)):
        theirs, ours = (checkpoints.read(tmp_path / who / part) for who in ("theirs", "ours"))
        assert ours[0] == theirs[0]
        state = original.state_dict()
        assert set(ours[1]) == set(state)
        for name, tensor in state.items():
            assert torch.equal(ours[1][name], tensor), name


def test_what_the_original_cannot_run_says_why_and_still_loads_here(returns_model, tmp_path):
    message = (
        "open, high, low, close; the tokens have 4 and 3 bits, not equally many; the "
        "representation is 'returns', not 'window'; values are clipped at 4.0, not 5.0"
    )
    with pytest.warns(UserWarning, match=message):
        returns_model.save_pretrained(tmp_path)
    series = candles(60)[["high", "close", "open", "low"]]
    forecasts = [
        model.set_sampling(top_k=1, valid_candles=False).predict(6, series)
        for model in (returns_model, model_of(tmp_path).fit(series))
    ]
    np.testing.assert_allclose(forecasts[0].values(), forecasts[1].values(), rtol=1e-5)
    assert list(forecasts[1].components) == ["high", "close", "open", "low"]


def test_a_part_goes_by_the_settings_of_the_whole(returns_model, tmp_path):
    with pytest.warns(UserWarning, match="cannot run"):
        returns_model.save_pretrained(tmp_path)
    parts = {"local_dir": tmp_path / "predictor", "tokenizer_local_dir": tmp_path / "tokenizer"}
    model = model_of(None, **parts).fit(candles(60)[["low", "close", "open", "high"]])
    assert model.representation == "returns" and model.model.max_context == 30


def test_a_model_without_stamps_stays_without(tmp_path):
    with pytest.warns(UserWarning, match="without calendar stamps"):
        model = tiny_model(**EQUAL_BITS).fit(candles(40, freq=None))
        model.save_pretrained(tmp_path)
    again = model_of(tmp_path, valid_candles=True).fit(candles(40))
    model.set_sampling(top_k=1)
    np.testing.assert_allclose(
        again.predict(3, candles(40)).values(),
        model.predict(3, candles(40, freq=None)).values(),
        rtol=1e-5,
    )


def test_a_model_that_is_not_fitted_has_nothing_to_give(tmp_path):
    with pytest.raises(ValueError, match="fit or load it first"):
        tiny_model().save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists()


class TestWriting:
    def test_a_folder_that_was_written_before_is_replaced(self, window_model, tmp_path):
        released.write(tmp_path / "mine")
        window_model.save_pretrained(tmp_path / "mine")
        config = json.loads((tmp_path / "mine" / "predictor" / "config.json").read_text())
        assert config["d_model"] == TINY["d_model"]
        assert [path.name for path in tmp_path.iterdir()] == ["mine"]

    @pytest.mark.parametrize(
        "step", ["safetensors.torch.save_file", "darts_kronos.publishing.swap"]
    )
    def test_a_crash_leaves_the_old_folder(self, window_model, tmp_path, monkeypatch, step):
        released.write(tmp_path / "mine")
        before = files(tmp_path)

        def crash(*args, **kwargs):
            raise KeyboardInterrupt

        monkeypatch.setattr(step, crash)
        with pytest.raises(KeyboardInterrupt):
            window_model.save_pretrained(tmp_path / "mine")
        assert files(tmp_path) == before

    def test_where_names_cannot_be_exchanged(self, window_model, tmp_path, monkeypatch):
        released.write(tmp_path / "mine")
        before = files(tmp_path)
        monkeypatch.setattr(publishing, "_exchange", lambda one, other: False)
        replace = publishing.os.replace
        moves = []

        def fail_once(one, other):
            moves.append(one)
            if len(moves) == 2:
                raise OSError("disk")
            replace(one, other)

        monkeypatch.setattr(publishing.os, "replace", fail_once)
        with pytest.raises(OSError, match="disk"):
            window_model.save_pretrained(tmp_path / "mine")
        assert files(tmp_path) == before
        window_model.save_pretrained(tmp_path / "mine")
        assert files(tmp_path) != before

    def test_other_files_are_never_lost(self, window_model, tmp_path):
        (tmp_path / "tokenizer").mkdir()
        (tmp_path / "tokenizer" / "thesis.docx").write_text("years")
        with pytest.raises(ValueError, match=r"other files.*tokenizer/thesis\.docx"):
            window_model.save_pretrained(tmp_path)
        (tmp_path / "file").write_text("")
        with pytest.raises(ValueError, match="is a file"):
            window_model.save_pretrained(tmp_path / "file")


class TestInspect:
    def test_a_whole_model(self, tmp_path, capsys):
        released.write(tmp_path, "mini")
        found = checkpoints.inspect(tmp_path)
        printed = capsys.readouterr().out
        assert "4,108,032 parameters: 4 layers, width 256" in printed and '"mini"' in printed
        assert "3,958,042 parameters: 3 + 3 layers" in printed
        assert (found["s1_bits"], found["s2_bits"], found["max_context"]) == (10, 10, 2048)
        assert found["representation"] == "window"
        assert "open, high, low, close, volume, amount" in printed

    def test_one_of_ours(self, returns_model, tmp_path, capsys):
        with pytest.warns(UserWarning, match="cannot run"):
            returns_model.save_pretrained(tmp_path)
        found = checkpoints.inspect(str(tmp_path))
        assert found["representation"] == "returns" and found["max_context"] == 30
        assert found["components"] == ["open", "high", "low", "close"]
        assert str(tmp_path) in capsys.readouterr().out

    @pytest.mark.parametrize("part", ["tokenizer", "predictor"])
    def test_one_part(self, tmp_path, part):
        released.write(tmp_path)
        found = checkpoints.inspect(tmp_path / part)
        assert set(found) == {part, "s1_bits", "s2_bits"}

    def test_no_checkpoint(self, tmp_path):
        with pytest.raises(ValueError, match="is not a checkpoint"):
            checkpoints.inspect(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"components": ["a", "a"]}, "`components` must be names"),
        ({"components": ["a"]}, "names 1 components .*takes 4"),
        ({"representation": "logs"}, "'window' or 'returns', got 'logs'"),
        ({"clip": 0}, "`clip`"),
        ({"max_context": 1.5}, "`max_context`"),
        ({"calendar_stamps": "yes"}, "`calendar_stamps`"),
    ],
    ids=str,
)
def test_spoilt_settings_are_refused(returns_model, tmp_path, changes, message):
    with pytest.warns(UserWarning, match="cannot run"):
        returns_model.save_pretrained(tmp_path)
    path = tmp_path / "darts_kronos.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | changes))
    with pytest.raises(ValueError, match=message):
        model_of(tmp_path)
    path.write_text(json.dumps({}))
    with pytest.raises(ValueError, match="lacks 'components'"):
        model_of(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match="takes 4 components, released ones take 6"):
        model_of(tmp_path)
