"""Cached and shared attention against plain attention."""

from dataclasses import replace

import pytest
import torch

from darts_kronos.nn import attention, layers
from darts_kronos.nn.config import PredictorConfig, TokenizerConfig
from darts_kronos.nn.predictor import KronosPredictor
from darts_kronos.nn.rotary import rotary_table, rotate
from darts_kronos.nn.tokenizer import KronosTokenizer

CONFIG = PredictorConfig(d_model=32, n_heads=4, n_layers=2, ff_dim=48, s1_bits=5, s2_bits=3)


def tokens(windows, bars, config=CONFIG):
    return (
        torch.randint(0, 2**config.s1_bits, (windows, bars)),
        torch.randint(0, 2**config.s2_bits, (windows, bars)),
    )


@pytest.mark.parametrize("chunks", [[5], [1, 1, 1, 1, 1], [2, 3]], ids=str)
def test_extending_paths_equals_reading_each_whole(chunks):
    torch.manual_seed(0)
    predictor = KronosPredictor(CONFIG).eval()
    B, S, T, M = 2, 3, 7, 5
    s1, s2 = tokens(B, T)
    new_s1, new_s2 = (ids.view(B, S, M) for ids in tokens(B * S, M))
    stamps = torch.randint(0, 7, (B, T + M, 5))
    next_s1 = torch.randint(0, 2**CONFIG.s1_bits, (B, S))

    with torch.no_grad():
        _, cache = predictor.prefill(s1, s2, stamps[:, :T], capacity=M)
        done = 0
        for length in chunks:
            new = slice(done, done + length)
            at = slice(T + done, T + done + length)
            hidden = predictor.extend(new_s1[:, :, new], new_s2[:, :, new], stamps[:, at], cache)
            done += length
        s2_logits = predictor.s2_logits(hidden, next_s1, cache)

        whole_s1 = torch.cat((s1.repeat_interleave(S, 0), new_s1.flatten(0, 1)), dim=1)
        whole_s2 = torch.cat((s2.repeat_interleave(S, 0), new_s2.flatten(0, 1)), dim=1)
        shifted = torch.cat((whole_s1[:, 1:], next_s1.flatten().unsqueeze(1)), dim=1)
        expected_s1, expected_s2 = predictor(
            whole_s1, whole_s2, stamps.repeat_interleave(S, 0), shifted
        )
    torch.testing.assert_close(
        predictor.s1_logits(hidden).flatten(0, 1), expected_s1[:, -1], rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(s2_logits.flatten(0, 1), expected_s2[:, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("T", [0, 1, 6])
# Attention by kernels, and without them of all paths of a window at once; of two at a time, and
# one; of each alone.
@pytest.mark.parametrize("scores_bytes", [None, layers.SCORES_BYTES, 700, 1])
def test_decoding_paths_after_a_window_equals_decoding_each_whole(T, scores_bytes, monkeypatch):
    if scores_bytes is not None:
        monkeypatch.setattr(attention, "attention_kernels", lambda: None)
        monkeypatch.setattr(layers, "SCORES_BYTES", scores_bytes)
    torch.manual_seed(0)
    config = TokenizerConfig(
        n_components=3,
        d_model=16,
        n_heads=2,
        ff_dim=24,
        n_encoder_layers=1,
        n_decoder_layers=2,
        s1_bits=5,
        s2_bits=3,
    )
    tokenizer = KronosTokenizer(config).eval()
    B, S, M = 2, 3, 4
    s1, s2 = tokens(B, T)
    new_s1, new_s2 = (ids.view(B, S, M) for ids in tokens(B * S, M))
    with torch.no_grad():
        bars = tokenizer.extend(new_s1, new_s2, tokenizer.prefill(s1, s2, capacity=M))
        whole = tokenizer.decode(
            torch.cat((s1.repeat_interleave(S, 0), new_s1.flatten(0, 1)), dim=1),
            torch.cat((s2.repeat_interleave(S, 0), new_s2.flatten(0, 1)), dim=1),
        )
    torch.testing.assert_close(bars.flatten(0, 1), whole[:, T:], rtol=1e-4, atol=1e-5)


def test_the_future_does_not_reach_the_past():
    torch.manual_seed(0)
    predictor = KronosPredictor(CONFIG)  # training mode: the published code is not causal outside
    for mode in (True, False):
        predictor.train(mode)
        s1, s2 = tokens(1, 10)
        later_s1, later_s2 = s1.clone(), s2.clone()
        later_s1[:, 7:] = (later_s1[:, 7:] + 1) % 2**CONFIG.s1_bits
        later_s2[:, 7:] = (later_s2[:, 7:] + 1) % 2**CONFIG.s2_bits
        next_s1 = torch.randint(0, 2**CONFIG.s1_bits, (1, 10))
        with torch.no_grad():
            for one, other in zip(
                predictor(s1, s2, None, next_s1),
                predictor(later_s1, later_s2, None, next_s1),
                strict=True,
            ):
                assert torch.equal(one[:, :7], other[:, :7])
                assert not torch.equal(one[:, 7:], other[:, 7:])


def test_the_fine_token_depends_on_the_true_coarse_one_of_its_own_bar_only():
    torch.manual_seed(0)
    predictor = KronosPredictor(CONFIG).eval()
    s1, s2 = tokens(1, 10)
    next_s1 = torch.randint(0, 2**CONFIG.s1_bits, (1, 10))
    changed = next_s1.clone()
    changed[0, 4] = (changed[0, 4] + 1) % 2**CONFIG.s1_bits
    with torch.no_grad():
        one, other = predictor(s1, s2, None, next_s1)[1], predictor(s1, s2, None, changed)[1]
    differs = (one != other).any(dim=-1)[0]
    assert differs.tolist() == [i == 4 for i in range(10)]


def test_rotary_tables_are_float32_and_exact_far_out():
    cosines, sines = rotary_table(4000, 16, torch.device("cpu"))
    assert cosines.dtype == sines.dtype == torch.float32
    exact = torch.arange(4000, dtype=torch.float64).cos()
    torch.testing.assert_close(cosines[:, 0].double(), exact, rtol=0, atol=1e-6)


def test_initial_weights_are_as_published():
    torch.manual_seed(0)
    config = PredictorConfig(d_model=128, n_heads=4, n_layers=1, ff_dim=256, s1_bits=8, s2_bits=8)
    predictor = KronosPredictor(config)
    attention = predictor.transformer.blocks[0].attn
    for part in attention.qkv.weight.chunk(3):
        assert part.std().item() == pytest.approx((2 / (128 + 128)) ** 0.5, rel=0.05)
    for part in predictor.transformer.blocks[0].ffn.gate_value.weight.chunk(2):
        assert part.std().item() == pytest.approx((2 / (128 + 256)) ** 0.5, rel=0.05)
    assert predictor.tokens.s1.weight.std().item() == pytest.approx(128**-0.5, rel=0.05)
    assert attention.qkv.bias.abs().max() == 0


def test_rotations_have_their_gradients_and_keep_their_precision():
    table = rotary_table(5, 8, torch.device("cpu"))
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda one: rotate(one, table), x)
    assert rotate(x, table).dtype == torch.float64
    turned = rotate(x.detach().bfloat16(), table)
    assert turned.dtype == torch.bfloat16
    torch.testing.assert_close(turned.double(), rotate(x, table).detach(), rtol=0.02, atol=0.02)


class TestParts:
    """Many windows are taken through layers in parts, which changes nothing."""

    def gradients(self, network, loss):
        loss.backward()
        found = [parameter.grad for parameter in network.parameters()]
        network.zero_grad(set_to_none=True)
        return [loss.detach(), *(one for one in found if one is not None)]

    @pytest.mark.parametrize("part_bytes", [1, 30_000])
    def test_of_the_tokenizer(self, monkeypatch, part_bytes):
        torch.manual_seed(0)
        tokenizer, bars = KronosTokenizer(TokenizerConfig(d_model=32)), torch.randn(7, 9, 6)
        whole = self.gradients(tokenizer, tokenizer(bars).loss)
        monkeypatch.setattr(layers, "PART_BYTES", part_bytes)
        parts = self.gradients(tokenizer, tokenizer(bars).loss)
        torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-6)

    @pytest.mark.parametrize("part_bytes", [1, 10_000])
    @pytest.mark.parametrize("more", [True, False])
    def test_of_the_predictor(self, monkeypatch, part_bytes, more):
        torch.manual_seed(0)
        predictor = KronosPredictor(replace(CONFIG, token_dropout=0.0)).eval()
        s1, s2 = tokens(7, 9)
        stamps = torch.randint(0, 7, (7, 9, 5)) if more else None
        weights = torch.rand(7, 9).round(decimals=1) if more else None

        def found():
            parts = predictor.loss(s1, s2, stamps, weights)
            return [*parts[1:], *self.gradients(predictor, parts.loss)]

        whole = found()
        monkeypatch.setattr(layers, "PART_BYTES", part_bytes)
        torch.testing.assert_close(found(), whole, rtol=1e-3, atol=1e-6)

    def test_a_batch_without_windows_has_no_loss(self):
        none = torch.empty(0, 9, dtype=torch.long)
        assert KronosPredictor(CONFIG).loss(none, none, None, torch.empty(0, 9)).loss == 0

    def test_they_are_alike_in_size_and_on_cpus_alone(self, monkeypatch):
        monkeypatch.setattr(layers, "PART_BYTES", 100)
        on_cpu = torch.empty(0, dtype=torch.float32)
        sizes = {count: layers.windows_at_once(count, 10, on_cpu) for count in (0, 1, 2, 3, 7)}
        assert sizes == {0: 1, 1: 1, 2: 2, 3: 2, 7: 3}  # two windows take 80 bytes
        assert layers.windows_at_once(7, 1000, on_cpu) == 1
        assert layers.windows_at_once(7, 10, on_cpu.half()) == 4
        assert layers.windows_at_once(7, 10, on_cpu.to("meta")) == 7
