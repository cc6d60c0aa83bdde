import pytest

from darts_kronos.nn.config import SIZES, PredictorConfig, TokenizerConfig, override, size_named
from darts_kronos.nn.predictor import KronosPredictor
from darts_kronos.nn.tokenizer import KronosTokenizer

PUBLISHED = {
    "mini": 4_108_032,
    "small": 24_741_376,
    "base": 102_310_592,
    "large": 499_246_976,
}


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def on_meta(network_class, config):
    import torch

    with torch.device("meta"):
        return network_class(config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_their_exact_parameter_counts(name):
    size = size_named(name)
    assert count(on_meta(KronosPredictor, size.predictor)) == PUBLISHED[name]
    assert count(on_meta(KronosTokenizer, size.tokenizer)) == 3_958_042


def test_nano_has_about_400_000_parameters_and_fewer_bits():
    size = size_named("nano")
    assert 350_000 <= count(KronosPredictor(size.predictor)) <= 450_000
    assert count(KronosTokenizer(size.tokenizer)) < 200_000
    assert size.predictor.s1_bits < 10
    assert size.predictor.s2_bits < 10


@pytest.mark.parametrize("name", SIZES)
def test_tokenizer_and_predictor_of_a_size_have_equal_bits(name):
    size = SIZES[name]
    assert size.tokenizer.s1_bits == size.predictor.s1_bits
    assert size.tokenizer.s2_bits == size.predictor.s2_bits


def test_when_the_size_is_unknown_then_the_sizes_are_named():
    with pytest.raises(ValueError, match="'huge'.*nano, mini, small, base, large"):
        size_named("huge")


SMALL = {"d_model": 16, "n_heads": 2, "n_layers": 1, "ff_dim": 16}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 0}, "d_model"),
        ({"d_model": 16.0}, "d_model"),
        ({"n_layers": True}, "n_layers"),
        ({"n_heads": 3}, "multiple of 2"),
        ({"d_model": 18, "n_heads": 9}, "multiple of 4"),
        ({"n_heads": 16}, "multiple of 2"),
        ({"s1_bits": 0}, "s1_bits"),
        ({"s2_bits": 21}, "at most 20"),
        ({"ffn_dropout": 1.0}, r"\[0, 1\)"),
        ({"token_dropout": -0.1}, r"\[0, 1\)"),
    ],
)
def test_bad_predictor_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PredictorConfig(**(SMALL | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_components": 0}, "n_components"),
        ({"n_encoder_layers": 0}, "n_encoder_layers"),
        ({"n_heads": 5}, "tokenizer_d_model"),
        ({"beta": -1.0}, "beta"),
        ({"zeta": "a"}, "zeta"),
    ],
)
def test_bad_tokenizer_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TokenizerConfig(**changes)


def test_override_keeps_what_is_none():
    config = override(TokenizerConfig(), d_model=64, n_heads=None)
    assert (config.d_model, config.n_heads) == (64, 4)
