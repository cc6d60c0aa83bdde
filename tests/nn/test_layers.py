"""Cached and shared attention against plain attention."""

import pytest
import torch
import torch.nn.functional as F

from darts_kronos.nn import attention
from darts_kronos.nn.attention import BLOCK, HEADS, causal_attention
from darts_kronos.nn.config import PredictorConfig, TokenizerConfig
from darts_kronos.nn.layers import rotary_table
from darts_kronos.nn.predictor import KronosPredictor
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
def test_decoding_paths_after_a_window_equals_decoding_each_whole(T):
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


class TestCausalAttention:
    """In training on one thread it is made of blocks; torch's own is what it must equal."""

    @pytest.fixture(autouse=True, params=[1, 2])
    def threads(self, request):
        before = torch.get_num_threads()
        torch.set_num_threads(request.param)
        yield request.param
        torch.set_num_threads(before)

    def both(self, shape, dropout=0.0):
        torch.manual_seed(0)
        given = [torch.randn(*shape).transpose(-3, -2).requires_grad_() for _ in range(3)]
        gradient = torch.randn_like(given[0])
        found = []
        for attend in (causal_attention, F.scaled_dot_product_attention):
            how = {"dropout": dropout} if attend is causal_attention else {"is_causal": True}
            out = attend(*given, **how)
            found.append([out, *torch.autograd.grad(out, given, gradient)])
        return found

    @pytest.mark.parametrize(
        "shape",
        # Less than a block; whole blocks; more bars and heads than those; no axis before heads.
        [(2, 5, 3, 8), (4, 2 * BLOCK, 4, 8), (3, BLOCK + 7, HEADS - 3, 4), (20, 2, 4)],
    )
    # With dropout, of next to nothing, several threads make blocks too.
    @pytest.mark.parametrize("dropout", [0.0, 1e-12])
    def test_outputs_and_gradients_are_those_of_torch(self, shape, dropout):
        for ours, torchs in zip(*self.both(shape, dropout), strict=True):
            torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-5)

    def test_what_torch_is_better_at_is_left_to_it(self, monkeypatch, threads):
        made = []
        monkeypatch.setattr(
            attention._Blocks, "apply", lambda q, k, v, dropout, heads: made.append(dropout) or q
        )
        q = torch.randn(2, 3, 50, 4, requires_grad=True)
        causal_attention(q, q, q)
        monkeypatch.setattr(attention, "MOST_KEPT", 2 * 3 * 50 * 50 / 2 * 4 - 1)
        causal_attention(q, q, q)
        causal_attention(q, q, q, dropout=0.1)
        with torch.no_grad():
            causal_attention(q, q, q)
        assert made == ([0.0, 0.1] if threads == 1 else [0.1])

    def test_gradients_of_dropped_weights_are_those_of_its_outputs(self):
        given = [torch.randn(3, 9, 4, requires_grad=True) for _ in range(3)]
        gradient = torch.randn(3, 9, 4)

        def out(*tensors):
            # The same weights are dropped each time.
            torch.manual_seed(1)
            return causal_attention(*tensors, dropout=0.4)

        found = torch.autograd.grad(out(*given), given, gradient)
        step = 1e-2
        for place, of_it in enumerate(found):
            moved = torch.randn_like(of_it)
            ends = []
            for sign in (1, -1):
                other = [one.detach().clone().requires_grad_() for one in given]
                with torch.no_grad():
                    other[place] += sign * step * moved
                ends.append((out(*other).detach() * gradient).sum())
            expected = (ends[0] - ends[1]) / (2 * step)
            torch.testing.assert_close((of_it * moved).sum(), expected, rtol=2e-2, atol=2e-2)

    def test_the_mean_of_dropped_outputs_is_the_output(self):
        torch.manual_seed(0)
        q, k, v = (torch.randn(1, 6, 4).expand(4000, -1, -1).requires_grad_() for _ in range(3))
        dropped = causal_attention(q, k, v, dropout=0.3)
        whole = causal_attention(q, k, v)
        assert not torch.equal(dropped, whole)
        torch.testing.assert_close(dropped.mean(dim=0), whole[0], rtol=0, atol=0.06)
