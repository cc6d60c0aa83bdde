"""The original networks, as `kronos-finance` ships them, with random weights, and ours."""

from __future__ import annotations

import torch
from kronos_finance._vendor.kronos_model import Kronos, KronosTokenizer
from torch import nn

from darts_kronos import checkpoints
from darts_kronos.nn.predictor import KronosPredictor
from darts_kronos.nn.tokenizer import KronosTokenizer as OurTokenizer

TINY_TOKENIZER = {
    "d_in": 6,
    "d_model": 32,
    "n_heads": 4,
    "ff_dim": 64,
    "n_enc_layers": 3,
    "n_dec_layers": 3,
    "ffn_dropout_p": 0.0,
    "attn_dropout_p": 0.0,
    "resid_dropout_p": 0.0,
    "s1_bits": 4,
    "s2_bits": 4,
    "beta": 0.05,
    "gamma0": 1.0,
    "gamma": 1.1,
    "zeta": 0.05,
    "group_size": 4,
}
RELEASED_TOKENIZER = TINY_TOKENIZER | {
    "d_model": 256,
    "ff_dim": 512,
    "n_enc_layers": 4,
    "n_dec_layers": 4,
    "s1_bits": 10,
    "s2_bits": 10,
}
TINY_PREDICTOR = {
    "s1_bits": 4,
    "s2_bits": 4,
    "n_layers": 2,
    "d_model": 32,
    "n_heads": 4,
    "ff_dim": 64,
    "ffn_dropout_p": 0.0,
    "attn_dropout_p": 0.0,
    "resid_dropout_p": 0.0,
    "token_dropout_p": 0.0,
    "learn_te": True,
}
MINI_PREDICTOR = TINY_PREDICTOR | {
    "s1_bits": 10,
    "s2_bits": 10,
    "n_layers": 4,
    "d_model": 256,
    "ff_dim": 512,
    "ffn_dropout_p": 0.2,
    "resid_dropout_p": 0.2,
}


def _spread(module: nn.Module, seed: int) -> None:
    """Random weights with biases and norms that matter, so that a slip in any of them shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.1 * noise)


def tokenizers(seed: int, **changes: object) -> tuple[KronosTokenizer, OurTokenizer]:
    """A random original tokenizer, and ours with its weights; both in evaluation mode."""
    config = TINY_TOKENIZER | changes
    torch.manual_seed(seed)
    original = KronosTokenizer(**config).eval()
    _spread(original, seed)
    ours = OurTokenizer(checkpoints.tokenizer_config_from_released(config))
    checkpoints.load_released_tokenizer(ours, original.state_dict())
    return original, ours.eval()


def predictors(seed: int, **changes: object) -> tuple[Kronos, KronosPredictor]:
    """A random original predictor, and ours with its weights; both in evaluation mode."""
    config = TINY_PREDICTOR | changes
    torch.manual_seed(seed)
    original = Kronos(**config).eval()
    _spread(original, seed)
    ours = KronosPredictor(checkpoints.predictor_config_from_released(config))
    checkpoints.load_released_predictor(ours, original.state_dict())
    return original, ours.eval()


def random_stamps(windows: int, bars: int, seed: int) -> torch.Tensor:
    """Random calendar stamps, (windows, bars, 5)."""
    generator = torch.Generator().manual_seed(seed)
    fields = [
        torch.randint(low, high, (windows, bars), generator=generator)
        for low, high in ((0, 60), (0, 24), (0, 7), (1, 32), (1, 13))
    ]
    return torch.stack(fields, dim=-1)


def random_bars(windows: int, bars: int, seed: int, components: int = 6) -> torch.Tensor:
    """Normalised random walks, (windows, bars, components)."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(windows, bars, components, generator=generator)
    walks = steps.cumsum(dim=1)
    return (walks - walks.mean(dim=1, keepdim=True)) / walks.std(dim=1, keepdim=True)
