"""Folders that the original's own code writes."""

import json

import pytest
import reference
import torch
from safetensors.torch import load_file, save_file

from darts_kronos.checkpoints import load_predictor, load_tokenizer


@pytest.fixture
def folders(tmp_path):
    tokenizer, _ = reference.tokenizers(0)
    predictor, _ = reference.predictors(0)
    for network, name, config in (
        (tokenizer, "tokenizer", reference.TINY_TOKENIZER),
        (predictor, "predictor", reference.TINY_PREDICTOR),
    ):
        network.save_pretrained(tmp_path / name, config=config)
    return tmp_path


def test_a_saved_tokenizer_loads_and_agrees(folders):
    original, _ = reference.tokenizers(0)
    loaded = load_tokenizer(folders / "tokenizer")
    assert not loaded.training
    bars = reference.random_bars(2, 20, 0)
    with torch.no_grad():
        for one, other in zip(original.encode(bars, half=True), loaded.encode(bars), strict=True):
            assert torch.equal(one, other)


def test_a_saved_predictor_loads_and_agrees(folders):
    original, _ = reference.predictors(0)
    loaded = load_predictor(folders / "predictor")
    assert not loaded.training
    s1, s2 = torch.randint(0, 16, (2, 2, 20))
    with torch.no_grad():
        expected, _ = original.decode_s1(s1, s2)
        torch.testing.assert_close(loaded(s1, s2, None, s1)[0], expected, rtol=1e-4, atol=1e-4)


def edit_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for name, value in changes.items():
        if value is None:
            del config[name]
        else:
            config[name] = value
    path.write_text(json.dumps(config))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no file 'config.json'"),
        (lambda f: (f / "model.safetensors").unlink(), "no file 'model.safetensors'"),
        (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "JSON object"),
        (lambda f: edit_config(f, n_layers=None), "lacks n_layers"),
        (lambda f: edit_config(f, d_model=31), "d_model"),
        (lambda f: edit_config(f, n_layers=3), r"missing transformer\.2.*surplus none"),
        (lambda f: edit_config(f, n_layers=1), r"missing none, surplus transformer\.1"),
        (lambda f: edit_config(f, ff_dim=60), r"shape \(128, 32\).*asks for \(120, 32\)"),
        (lambda f: edit_weights(f, lambda w: w.pop("norm.weight")), "missing norm.weight"),
        (
            lambda f: (f / "model.safetensors").write_bytes(
                (f / "model.safetensors").read_bytes()[:-100]
            ),
            "cannot be read as safetensors",
        ),
    ],
)
def test_folders_that_do_not_hold_together_are_refused(folders, spoil, message):
    spoil(folders / "predictor")
    with pytest.raises(ValueError, match=message):
        load_predictor(folders / "predictor")


def test_a_predictor_is_no_tokenizer(folders):
    with pytest.raises(ValueError, match="lacks"):
        load_tokenizer(folders / "predictor")


@pytest.mark.parametrize("part", ["tokenizer", "predictor"])
def test_another_number_of_heads_is_seen_in_the_stored_tables(folders, part):
    edit_config(folders / part, n_heads=2)
    load = {"tokenizer": load_tokenizer, "predictor": load_predictor}[part]
    with pytest.raises(ValueError, match=r"inv_freq has shape \(4,\).*asks for \(8,\)"):
        load(folders / part)
