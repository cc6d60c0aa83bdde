"""Windows that slide, read again for each bar, against the network read from the start."""

import pytest
import torch
from torch import nn

from darts_kronos.nn import attention, layers
from darts_kronos.nn.config import PredictorConfig
from darts_kronos.nn.kernels import packed
from darts_kronos.nn.predictor import KronosPredictor
from darts_kronos.nn.rereading import Rereader

CONFIG = PredictorConfig(d_model=32, n_heads=4, n_layers=3, ff_dim=48, s1_bits=5, s2_bits=3)
B, T, N = 2, 7, 6


class Adapted(nn.Module):
    """A layer with a correction of low rank beside it, as adapters are."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, 2, bias=False)
        self.up = nn.Linear(2, layer.out_features, bias=False)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


def expected(predictor, s1, s2, stamps, next_s1):
    """Logits of each path's next tokens, from whole windows (B, S, L)."""
    S = s1.shape[1]
    s1, s2, chosen = s1.flatten(0, 1), s2.flatten(0, 1), next_s1.flatten().unsqueeze(1)
    stamps = None if stamps is None else stamps.repeat_interleave(S, 0)
    s1_logits, s2_logits = predictor(s1, s2, stamps, torch.cat((s1[:, 1:], chosen), dim=1))
    return s1_logits[:, -1].view(B, S, -1), s2_logits[:, -1].view(B, S, -1)


@pytest.mark.parametrize("way", ["plain", "packed", "adapted", "no stamps", "path by path"])
@pytest.mark.parametrize("S", [1, 3])
@torch.no_grad()
def test_states_are_those_of_a_window_that_is_read_from_the_start(S, way, monkeypatch):
    torch.manual_seed(0)
    predictor = KronosPredictor(CONFIG).eval()
    # As trained ones are: neither biases of zero nor norms of one.
    for parameter in predictor.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    if way == "adapted":
        conditioning = predictor.s2_conditioning
        conditioning.key_value = Adapted(conditioning.key_value)
    if way == "path by path":
        monkeypatch.setattr(attention, "attention_kernels", lambda: None)
        monkeypatch.setattr(layers, "SCORES_BYTES", 1)
    s1 = torch.randint(0, 32, (B, S, T + N + 1))
    s2 = torch.randint(0, 8, (B, S, T + N + 1))
    s1[:, :, :T], s2[:, :, :T] = s1[:, :1, :T], s2[:, :1, :T]
    stamps = None if way == "no stamps" else torch.randint(0, 7, (B, T + N, 5))

    if way == "packed":
        with predictor.folded(torch.float32), packed(predictor, torch.float32, 40):
            compare(predictor, s1, s2, stamps)
    else:
        compare(predictor, s1, s2, stamps)


def compare(predictor, s1, s2, stamps):
    S = s1.shape[1]
    reader = Rereader(predictor, s1[:, 0, :T], s2[:, 0, :T], stamps, S, N)
    # Bars of a path, and the first bar that is seen: within the window, just past it, far past it.
    # All bars that are new since the last call are added at once.
    for new, start in ((1, 0), (2, 3), (4, T - 1), (5, T), (6, T + 3), (6, T + 5)):
        end = T + new
        states = reader.read(s1[:, :, T:end], s2[:, :, T:end], start)
        assert states.newest.shape == (B, S, CONFIG.d_model)
        seen = slice(start, end)
        of_stamps = None if stamps is None else stamps[:, seen]
        whole = expected(predictor, s1[..., seen], s2[..., seen], of_stamps, s1[:, :, end])
        found = predictor.s1_logits(states.newest), reader.s2_logits(states, s1[:, :, end])
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)
