"""Single rows, and paths bar by bar, through the compiled kernels give what torch gives."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import numba
import numpy as np
import pytest
import reference
import torch
from torch import nn

from darts_kronos.finetuning import add_lora
from darts_kronos.generation import Sampling, generate
from darts_kronos.nn import compiling, row_kernels, rows
from darts_kronos.nn.kernels import Linear, packed

KNOWN, NEW = 20, 8

GREEDY = Sampling(top_k=1)


@pytest.fixture
def predictor():
    return reference.predictors(0)[1].eval()


@contextmanager
def ready(predictor, dtype=torch.float32):
    with torch.inference_mode(), predictor.folded(dtype), packed(predictor, dtype, 1):
        yield


def window(predictor, windows=1, stamps=True, capacity=NEW):
    """Windows that were read: newest hidden states, stamps of all bars, and the cache."""
    generator = torch.Generator().manual_seed(3)
    s1, s2 = (torch.randint(0, 16, (windows, KNOWN), generator=generator) for _ in range(2))
    times = reference.random_stamps(windows, KNOWN + NEW, 4) if stamps else None
    of_window = None if times is None else times[:, :KNOWN]
    hidden, cache = predictor.prefill(s1, s2, of_window, capacity)
    return hidden[:, -1:], times, cache


def write(predictor, n=NEW, most=64, stamps=True, sampling=GREEDY, windows=1, paths=1):
    """Tokens of paths that kernels draw, (2, B, S, n), or None."""
    hidden, times, cache = window(predictor, windows, stamps)
    new = None if times is None else times[:, KNOWN : KNOWN + n - 1]
    return predictor.write(n, paths, hidden, new, cache, most=most, sampling=sampling.numbers)


def follow(predictor, tokens, most=64, stamps=True):
    """What torch makes of paths' tokens, (2, B, S, n): states, and logits of s1 and s2, by bar.

    Each of shape (B, S, ...).
    """
    _, windows, paths, n = tokens.shape
    hidden, times, cache = window(predictor, windows, stamps)
    hidden, found = hidden.expand(-1, paths, -1), []
    for i in range(n):
        s1, s2 = tokens[..., i]
        found.append((hidden, predictor.s1_logits(hidden), predictor.s2_logits(hidden, s1, cache)))
        cache.keep(most)
        at = slice(KNOWN + i, KNOWN + i + 1)
        time = None if times is None else times[:, at]
        hidden = predictor.extend(s1[..., None], s2[..., None], time, cache)
    return found


def random_tokens():
    return torch.randint(0, 16, (2, 1, 1, NEW), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def seen(monkeypatch):
    """What the calls of the kernel left: each path's hidden state, and both logits."""
    found = []

    def write(start, stop, tokens, *arguments):
        written = row_kernels.write(start, stop, tokens, *arguments)
        n = tokens.shape[2]
        if stop == n:
            *_, most, network, memory, hidden, logits = arguments
            of_s2 = np.empty((len(hidden), len(network[2][8])), dtype=np.float32)
            row_kernels.s2_logits(n - 1, tokens, network, memory, most, hidden, of_s2)
            found.append([torch.from_numpy(one) for one in (hidden, logits, of_s2)])
        return written

    own = {name: getattr(row_kernels, name) for name in ("LINE", "NONE", "product")}
    counting = SimpleNamespace(**own, write=write)
    monkeypatch.setattr(rows, "row_kernels", lambda: counting)
    return found


def assert_all_close(found, expected, atol=1e-5):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=atol)


class TestPath:
    def assert_followed(self, predictor, tokens, expected, atol=1e-5):
        """Torch's own steps give what they gave before the weights were made ready."""
        for found, other in zip(follow(predictor, tokens), expected, strict=True):
            assert_all_close(found, other, atol)

    @pytest.mark.parametrize(("long", "bars"), [(1, 3), (100, 100)])
    @pytest.mark.parametrize("kwargs", [{}, {"most": 20}, {"most": 24}, {"stamps": False}], ids=str)
    @pytest.mark.parametrize(("windows", "paths"), [(1, 1), (1, 2), (2, 3)])
    def test_they_are_followed_as_by_torch(
        self, predictor, seen, windows, paths, kwargs, long, bars, monkeypatch
    ):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        monkeypatch.setattr(rows, "LONG_PATH", long)
        monkeypatch.setattr(rows, "BARS_OF_A_CALL", bars)
        # Nearly as even as a draw can be, so that paths differ.
        drawn = {"sampling": Sampling(temperature=3.0), "windows": windows, "paths": paths}
        tokens = []
        with ready(predictor):
            for n in range(1, NEW + 1):
                torch.manual_seed(0)
                tokens.append(write(predictor, n, **drawn, **kwargs))
            expected = [follow(predictor, one, **kwargs)[-1] for one in tokens]
        assert len(seen) == NEW
        for found, of_bar in zip(seen, expected, strict=True):
            assert_all_close(found, [one.flatten(0, 1) for one in of_bar])
        different = tokens[-1].flatten(1, 2).unique(dim=1).shape[1]
        assert different > 1 or windows * paths == 1
        assert predictor.compiled is None

    @pytest.mark.parametrize("threads", [1, 2, 3])
    @pytest.mark.parametrize(("windows", "paths"), [(1, 1), (1, 5), (3, 1), (2, 4)])
    def test_greedy_tokens_are_the_most_probable(
        self, predictor, windows, paths, threads, monkeypatch
    ):
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        monkeypatch.setattr(rows, "PATHS_OF_A_CALL", 3)
        with ready(predictor):
            tokens = write(predictor, windows=windows, paths=paths)
            expected = follow(predictor, tokens)
        assert tokens.shape == (2, windows, paths, NEW)
        for i, (_, s1_logits, s2_logits) in enumerate(expected):
            assert torch.equal(tokens[0, ..., i], s1_logits.argmax(dim=-1))
            assert torch.equal(tokens[1, ..., i], s2_logits.argmax(dim=-1))

    @pytest.mark.parametrize("threads", [1, 2, 16])
    def test_each_thread_has_its_paths(self, threads, monkeypatch):
        monkeypatch.setattr(rows, "PATHS_OF_A_CALL", 4)
        for count in range(1, 40):
            parts = rows._shared_out(count, threads)
            assert np.concatenate(parts).tolist() == list(range(count))
            sizes = [len(one) for one in parts]
            assert 0 < min(sizes) <= max(sizes) <= min(sizes) + 1 <= 5
            assert len(parts) % threads == 0 or max(sizes) == 1

    def test_bad_logits_of_one_part_are_found(self, predictor, monkeypatch):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        hidden_of = predictor.prefill

        def prefill(*arguments):
            hidden, cache = hidden_of(*arguments)
            hidden[-1] = torch.nan
            return hidden, cache

        monkeypatch.setattr(predictor, "prefill", prefill)
        with ready(predictor), pytest.raises(ValueError, match="no finite numbers"):
            write(predictor, windows=2, paths=2)

    @pytest.mark.parametrize("stamps", [True, False])
    def test_dropped_bars_may_be_the_paths_own(self, monkeypatch, stamps):
        monkeypatch.setattr(rows, "PATHS_OF_A_CALL", 4)
        tokenizer, predictor = reference.tokenizers(0)[1], reference.predictors(0)[1]
        bars = reference.random_bars(3, 3, 1)
        times = reference.random_stamps(3, 15, 1) if stamps else None
        drawn = {"n": 12, "max_context": 4, "sliding": "cached", "num_samples": 5}
        # Nearly greedy, so that all paths are drawn.
        drawn["sampling"] = Sampling(temperature=1e-6)
        found = generate(tokenizer, predictor, bars, times, **drawn)
        monkeypatch.setattr(rows, "row_kernels", lambda: None)
        expected = generate(tokenizer, predictor, bars, times, **drawn)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    def test_it_follows_torchs_generator(self, predictor):
        def drawn(seed):
            torch.manual_seed(seed)
            return write(predictor, sampling=Sampling(temperature=2.0), paths=3).tolist()

        with ready(predictor):
            assert drawn(1) == drawn(1) != drawn(2)

    @pytest.mark.parametrize("targets", [None, ["key_value"], ["down"], ["s1_head"]], ids=str)
    def test_adapters_are_left_to_torch(self, predictor, targets):
        tokens = random_tokens()
        with torch.inference_mode():
            plain = follow(predictor, tokens)
        add_lora(predictor, {"r": 2} if targets is None else {"r": 2, "target_modules": targets})
        generator = torch.Generator().manual_seed(1)
        for name, weight in predictor.named_parameters():
            if "lora_" in name:
                weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
        with torch.inference_mode():
            expected = follow(predictor, tokens)
        assert any(
            not torch.allclose(one, other, atol=0.01)
            for one, other in zip(plain[-1], expected[-1], strict=True)
        )
        with ready(predictor):
            assert write(predictor) is None
            self.assert_followed(predictor, tokens, expected, atol=1e-4)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
    def test_other_precisions_are_left_to_torch(self, predictor, dtype):
        predictor = predictor.to(dtype)
        tokens = random_tokens()
        with torch.inference_mode():
            expected = follow(predictor, tokens)
        with ready(predictor, dtype):
            assert write(predictor) is None
            exact = dtype == torch.float64
            self.assert_followed(predictor, tokens, expected, atol=1e-5 if exact else 0.1)

    def test_what_is_not_ready_is_left_to_torch(self, predictor, monkeypatch):
        with torch.inference_mode():
            assert write(predictor) is None
            with packed(predictor, torch.float32, 1):
                assert write(predictor) is None
            tokens = random_tokens()
            expected = follow(predictor, tokens)
        monkeypatch.setattr(rows, "row_kernels", lambda: None)
        with ready(predictor):
            assert write(predictor) is None
            self.assert_followed(predictor, tokens, expected)

    def test_many_threads_gain_on_large_weights_alone(self, predictor, monkeypatch):
        monkeypatch.setattr(torch, "get_num_threads", lambda: rows.THREADS_OUTDONE + 1)
        small, large = torch.empty(4, 4), torch.empty(rows.BYTES_OF_A_CALL // 4 + 1)
        assert rows.RowProduct.of(small, None) is not None
        assert rows.RowProduct.of(large, None) is None
        with ready(predictor):
            assert write(predictor) is not None
        monkeypatch.setattr(rows, "BYTES_OF_A_CALL", 2**8)
        with ready(predictor):
            assert write(predictor) is None
        monkeypatch.setattr(torch, "get_num_threads", lambda: rows.THREADS_OUTDONE)
        with ready(predictor):
            assert write(predictor) is not None

    def test_weights_of_long_paths_lie_in_one_piece(self, predictor, monkeypatch):
        own = {one.data_ptr() for one in predictor.parameters()}
        with ready(predictor):
            write(predictor)
            assert "laid_out" not in vars(predictor.compiled)
            assert {one.ctypes.data for one in predictor.compiled.arrays} <= own
            monkeypatch.setattr(rows, "LONG_PATH", NEW)
            write(predictor)
            arrays = predictor.compiled.laid_out
            write(predictor)
            assert predictor.compiled.laid_out is arrays
        places = [one.ctypes.data for one in arrays]
        assert not own & set(places)
        ends = [place + one.nbytes for place, one in zip(places, arrays, strict=True)]
        gaps = np.array(places[1:]) - ends[:-1]
        assert ((gaps >= 0) & (gaps < 4 * row_kernels.LINE)).all()

    def test_greedy_paths_leave_the_generator_alone(self, predictor):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        with ready(predictor):
            write(predictor)
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("sampling", [GREEDY, Sampling()], ids=["greedy", "all"])
    def test_defaults_of_tensors_do_not_matter(self, predictor, sampling):
        with ready(predictor):
            try:
                torch.set_default_dtype(torch.float64)
                assert write(predictor, stamps=False, sampling=sampling) is not None
            finally:
                torch.set_default_dtype(torch.float32)

    def test_one_beyond_its_room_is_refused(self, predictor):
        with ready(predictor):
            hidden, _, cache = window(predictor, stamps=False, capacity=1)
            with pytest.raises(ValueError, match="There is room for 1 bars"):
                predictor.write(3, 1, hidden, None, cache, most=64, sampling=GREEDY.numbers)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("head", ["s1_head", "s2_head"])
    @pytest.mark.parametrize("sampling", [GREEDY, Sampling()], ids=["greedy", "all"])
    def test_spoilt_weights_are_named(self, predictor, head, value, sampling):
        with torch.no_grad():
            getattr(predictor, head).bias[3] = value
        with ready(predictor), pytest.raises(ValueError, match="no finite numbers"):
            write(predictor, sampling=sampling)

    def test_several_threads_draw_the_same_networks_paths(self, predictor):
        tokenizer = reference.tokenizers(0)[1]
        bars, stamps = reference.random_bars(1, 20, 1), reference.random_stamps(1, 60, 1)
        greedy = {"n": 40, "max_context": 64, "sampling": GREEDY}
        expected = generate(tokenizer, predictor, bars, stamps, **greedy)
        with ThreadPoolExecutor(4) as pool:
            runs = [
                pool.submit(generate, tokenizer, predictor, bars, stamps, **greedy)
                for _ in range(12)
            ]
            for one in runs:
                torch.testing.assert_close(one.result(), expected, rtol=1e-4, atol=1e-5)


class TestDraw:
    logits = np.random.default_rng(1).normal(0, 2, 40).astype(np.float32)

    def frequencies(self, logits, sampling):
        uniforms = (np.arange(4_000) + 0.5) / 4_000
        drawn = [row_kernels.draw(logits, sampling.numbers, one) for one in uniforms]
        return np.bincount(drawn, minlength=len(logits)) / len(drawn)

    @pytest.mark.parametrize(
        "kwargs",
        [
            {},
            {"temperature": 3.0},
            {"temperature": 1e-6},
            {"top_k": 1},
            {"top_k": 5},
            {"top_k": 99},
            {"top_k": 10**30},
            {"top_p": 0.7},
            {"top_p": 1e-6},
            {"top_p": 1.0},
            {"top_k": 6, "top_p": 0.9, "temperature": 2.0},
        ],
        ids=str,
    )
    def test_tokens_are_as_frequent_as_by_torch(self, kwargs):
        sampling = Sampling(**kwargs)
        found = self.frequencies(self.logits, sampling)
        torch.manual_seed(0)
        drawn = sampling.draw(torch.from_numpy(self.logits).expand(200_000, -1))
        expected = np.bincount(drawn, minlength=40) / len(drawn)
        np.testing.assert_allclose(found, expected, atol=0.005)
        if 0 < (expected > 0).sum() < 20:
            assert set(found.nonzero()[0]) == set(expected.nonzero()[0])

    @pytest.mark.parametrize(
        ("kwargs", "kept"), [({"top_k": 3}, 3), ({"top_p": 0.55}, 6), ({"top_p": 0.05}, 1)], ids=str
    )
    def test_of_equal_tokens_no_more_are_kept(self, kwargs, kept):
        found = self.frequencies(np.ones(10, dtype=np.float32), Sampling(**kwargs))
        assert (found > 0).sum() == kept
        np.testing.assert_allclose(found[found > 0], 1 / kept, atol=1e-3)

    @pytest.mark.parametrize("top_k", [1, 3, 17, 64, 2**31])
    @pytest.mark.parametrize("top_p", [1e-300, 0.1, 0.5, 0.97, 1.0])
    def test_what_is_left_out_is_the_tail_of_a_sort(self, top_k, top_p):
        rng = np.random.default_rng(top_k)
        for values in (rng.random(64), rng.integers(0, 4, 64) / 4, np.ones(64)):
            weights = (values / values.max()).astype(np.float32)
            order = np.argsort(-weights, kind="stable")
            ordered = weights[order].astype(np.float64)
            ordered[top_k:] = 0.0
            before = np.concatenate(([0.0], ordered.cumsum()[:-1]))
            kept = (before <= top_p * ordered.sum()) & (ordered > 0)
            expected = np.zeros(64)
            expected[order] = np.where(kept, ordered, 0.0)
            row_kernels.limit(weights, top_k, top_p)
            np.testing.assert_array_equal(weights, expected)

    @pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
    def test_tokens_without_probability_are_never_drawn(self, uniform):
        logits = np.array([-200, 0, 1, -200], dtype=np.float32)
        assert row_kernels.draw(logits, Sampling().numbers, uniform) in (1, 2)


def test_exponentials_are_those_of_numpy():
    x = np.linspace(-95, 95, 10_001).astype(np.float32)
    found = x.copy()
    compiling.exponentials(found)
    inside = (x >= -87) & (x <= 88)
    expected = np.exp(x.astype(np.float64))
    np.testing.assert_allclose(found[inside], expected[inside], rtol=2e-7)
    assert (found[x < -87] == 0).all()
    np.testing.assert_allclose(found[x > 88], np.exp(88), rtol=1e-6)
    special = np.array([np.nan, -np.inf, np.inf], dtype=np.float32)
    compiling.exponentials(special)
    assert np.isnan(special[0]) and special[1] == 0 and special[2] > 1e38


class TestProduct:
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("sizes", [(1, 1), (7, 3), (64, 33), (250, 130)], ids=str)
    def test_it_is_that_of_torch(self, sizes, bias):
        torch.manual_seed(0)
        layer, x = Linear(*sizes, bias=bias), torch.randn(sizes[0] * 2, 1, 1)
        row = x[::2].permute(1, 2, 0)  # one row whose entries do not lie next to each other
        with torch.inference_mode():
            expected = nn.functional.linear(row, layer.weight, layer.bias)
            with packed(layer, torch.float32, rows=1):
                found = layer(row)
        assert found.shape == (1, 1, sizes[1])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("sizes", [(1, 1), (16, 4), (7, 3), (64, 33), (250, 130)], ids=str)
    @pytest.mark.parametrize("n_rows", [1, 2, 3, 6, 7])
    def test_it_is_that_of_torch_for_several_rows(self, sizes, n_rows):
        torch.manual_seed(0)
        layer, x = Linear(*sizes), torch.randn(n_rows, sizes[0])
        out = torch.full((n_rows, sizes[1]), torch.nan)
        with torch.inference_mode():
            row_kernels.product(*(one.numpy() for one in (layer.weight, layer.bias, x, out)))
            expected = nn.functional.linear(x, layer.weight, layer.bias)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)

    def test_what_is_no_number_stays_none(self):
        layer, x = Linear(8, 3), torch.zeros(1, 8)
        with torch.no_grad():
            layer.weight[1, 2] = float("nan")
            with packed(layer, torch.float32, rows=1):
                assert layer(x).isnan().tolist() == [[False, True, False]]


@pytest.mark.parametrize(("first", "end"), [(2, 7), (0, 5), (6, 9)])
def test_scores_far_apart_are_weighed_as_by_torch(first, end):
    rng = np.random.default_rng(0)
    queries = (40 * rng.standard_normal((4, 3, 8))).astype(np.float32)
    of_windows = rng.standard_normal((2, 2, 3, 5, 8)).astype(np.float32)
    of_paths = rng.standard_normal((2, 4, 3, 4, 8)).astype(np.float32)
    windows, out = np.array([0, 1, 1, 0]), np.empty_like(queries)
    row_kernels.attend(queries, (*of_windows, *of_paths), windows, first, end, out)
    whole = np.concatenate((of_windows[:, windows], of_paths), axis=3)[:, :, :, first:end]
    q, k, v = (torch.from_numpy(one) for one in (queries[:, :, None], *whole))
    expected = nn.functional.scaled_dot_product_attention(q, k, v)[:, :, 0]
    torch.testing.assert_close(torch.from_numpy(out), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "error", [RuntimeError("no locator available"), OSError("No space left"), EOFError()], ids=repr
)
def test_kernels_are_compiled_where_none_can_be_kept(monkeypatch, error):
    compile_it, tried = numba.njit, []

    def njit(*signature, cache=False, **options):
        def compiled(function):
            tried.append(cache)
            if cache:
                raise error
            return compile_it(*signature, **options)(function)

        return compiled

    monkeypatch.setattr(compiling, "njit", njit)

    @compiling.compiled(compiling.ROW)
    def double(x):
        for i in range(x.size):
            x[i] *= 2

    x = np.arange(3, dtype=np.float32)
    double(x)
    assert x.tolist() == [0, 2, 4]
    assert tried == [True, False]


WITHOUT = """
import sys
{hide}
import torch
from darts_kronos.generation import Sampling, generate
from darts_kronos.nn import rows
from darts_kronos.nn.config import SIZES
from darts_kronos.nn.predictor import KronosPredictor
from darts_kronos.nn.tokenizer import KronosTokenizer

assert rows.row_kernels() is None
networks = KronosTokenizer(SIZES["nano"].tokenizer), KronosPredictor(SIZES["nano"].predictor)
paths = generate(*networks, torch.randn(1, 9, 6), None, n=3, max_context=16, sampling=Sampling())
print(tuple(paths.shape), torch.isfinite(paths).all().item())
"""


@pytest.mark.parametrize("why", ["told not to compile", "no numba"])
def test_networks_do_without_compiled_kernels(why):
    code = WITHOUT.format(hide="sys.modules['numba'] = None" if why == "no numba" else "")
    env = dict(os.environ) | ({} if why == "no numba" else {"NUMBA_DISABLE_JIT": "1"})
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout.split("\n")[0] == "(1, 1, 3, 6) True"
