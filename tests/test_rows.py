"""Single rows through the compiled kernels give what torch gives."""

import importlib
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numba
import numpy as np
import pytest
import reference
import torch
from torch import nn

from darts_kronos.finetuning import add_lora
from darts_kronos.generation import Sampling, generate
from darts_kronos.nn import row_kernels, rows
from darts_kronos.nn.kernels import Linear, packed

KNOWN, NEW = 20, 8


def follow(predictor, *, keep=None, stamps=True):
    """Hidden states and logits of one path's bars after a window, whose tokens are given."""
    generator = torch.Generator().manual_seed(3)
    s1, s2 = (torch.randint(0, 16, (1, KNOWN + NEW), generator=generator) for _ in range(2))
    times = reference.random_stamps(1, KNOWN + NEW, 4) if stamps else None
    of_window = None if times is None else times[:, :KNOWN]
    found = []
    with torch.inference_mode():
        hidden, cache = predictor.prefill(s1[:, :KNOWN], s2[:, :KNOWN], of_window, NEW)
        hidden = hidden[:, -1:]
        for at in range(KNOWN, KNOWN + NEW):
            found += [hidden, predictor.s1_logits(hidden)]
            found.append(predictor.s2_logits(hidden, s1[:, at : at + 1], cache))
            if keep is not None:
                cache.keep(keep)
            bar = slice(at, at + 1)
            time = None if times is None else times[:, bar]
            hidden = predictor.extend(s1[:, None, bar], s2[:, None, bar], time, cache)
    return [one.flatten() for one in found]


@pytest.fixture
def predictor():
    return reference.predictors(0)[1].eval()


@pytest.fixture
def calls(monkeypatch):
    """How often each kernel is called."""
    found = Counter()

    def counted(name, kernel):
        def call(*arguments):
            found[name] += 1
            return kernel(*arguments)

        return call

    kernels = {
        name: getattr(row_kernels, name) for name in ("product", "block", "keep", "s2_logits")
    }
    counting = SimpleNamespace(**{name: counted(name, one) for name, one in kernels.items()})
    counting.NONE = row_kernels.NONE
    monkeypatch.setattr(rows, "row_kernels", lambda: counting)
    return found


def none_compiled(monkeypatch):
    monkeypatch.setattr(rows, "row_kernels", lambda: None)


def assert_all_close(found, expected, atol=1e-5):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=atol)


class TestPredictor:
    @pytest.mark.parametrize("kwargs", [{}, {"keep": 15}, {"keep": 4}, {"stamps": False}], ids=str)
    def test_a_path_is_followed_as_by_torch(self, predictor, calls, kwargs):
        expected = follow(predictor, **kwargs)
        assert not calls
        with packed(predictor, torch.float32, rows=1):
            found = follow(predictor, **kwargs)
        # There are two blocks; the products are the fusion, the s1 head and the s2 query.
        assert calls == {"block": 2 * NEW, "keep": NEW, "s2_logits": NEW, "product": 3 * NEW}
        assert_all_close(found, expected)
        assert predictor.packed is None
        assert all(block.packed is None for block in predictor.transformer.blocks)

    @pytest.mark.parametrize("targets", [None, ["key_value"], ["down"]], ids=str)
    def test_what_is_around_a_layer_is_not_passed_over(self, predictor, calls, targets):
        plain = follow(predictor)
        add_lora(predictor, {"r": 2} if targets is None else {"r": 2, "target_modules": targets})
        generator = torch.Generator().manual_seed(1)
        for name, weight in predictor.named_parameters():
            if "lora_" in name:
                weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
        expected = follow(predictor)
        assert not torch.allclose(plain[-1], expected[-1], atol=0.01)
        with packed(predictor, torch.float32, rows=1):
            found = follow(predictor)
        assert_all_close(found, expected, atol=1e-4)
        assert (calls["block"] > 0) == (targets == ["key_value"])
        assert (calls["keep"] > 0) == (targets == ["down"])

    def test_without_numba_torch_does_it(self, predictor, monkeypatch):
        expected = follow(predictor)
        none_compiled(monkeypatch)
        with packed(predictor, torch.float32, rows=1):
            assert_all_close(follow(predictor), expected)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
    def test_other_precisions_are_left_to_torch(self, predictor, calls, dtype):
        predictor = predictor.to(dtype)
        expected = follow(predictor)
        with packed(predictor, dtype, rows=1):
            found = follow(predictor)
        assert not calls
        assert_all_close(found, expected, atol=1e-5 if dtype == torch.float64 else 0.1)

    def test_many_threads_gain_on_large_weights_alone(self, predictor, calls, monkeypatch):
        monkeypatch.setattr(torch, "get_num_threads", lambda: rows.THREADS_OUTDONE + 1)
        small, large = torch.empty(4, 4), torch.empty(rows.BYTES_OF_A_CALL // 4 + 1)
        assert rows.RowProduct.of(small, None) is not None
        assert rows.RowProduct.of(large, None) is None
        # Blocks by torch and what follows by kernels, which share a path's length.
        expected = follow(predictor)
        monkeypatch.setattr(rows.RowBlock, "CALLS", 0)
        with packed(predictor, torch.float32, rows=1):
            found = follow(predictor)
        assert_all_close(found, expected)
        assert calls["block"] == 0 and calls["keep"] == NEW
        monkeypatch.setattr(torch, "get_num_threads", lambda: rows.THREADS_OUTDONE)
        assert rows.RowProduct.of(large, None) is not None

    def test_a_path_beyond_its_room_is_refused(self, predictor):
        tokens = torch.zeros(1, 3, dtype=torch.long)
        new = tokens[:, None, :1]
        with torch.inference_mode(), packed(predictor, torch.float32, rows=1):
            _, cache = predictor.prefill(tokens, tokens, None, capacity=1)
            predictor.extend(new, new, None, cache)
            with pytest.raises(ValueError, match="There is room for 1 bars"):
                predictor.extend(new, new, None, cache)

    def test_several_threads_draw_the_same_networks_paths(self, predictor):
        tokenizer = reference.tokenizers(0)[1]
        bars, stamps = reference.random_bars(1, 20, 1), reference.random_stamps(1, 60, 1)
        greedy = {"n": 40, "max_context": 64, "sampling": Sampling(top_k=1)}
        expected = generate(tokenizer, predictor, bars, stamps, **greedy)
        with ThreadPoolExecutor(4) as pool:
            runs = [
                pool.submit(generate, tokenizer, predictor, bars, stamps, **greedy)
                for _ in range(12)
            ]
            for one in runs:
                torch.testing.assert_close(one.result(), expected, rtol=1e-4, atol=1e-5)


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

    def test_what_is_no_number_stays_none(self):
        layer, x = Linear(8, 3), torch.zeros(1, 8)
        with torch.no_grad():
            layer.weight[1, 2] = float("nan")
            with packed(layer, torch.float32, rows=1):
                assert layer(x).isnan().tolist() == [[False, True, False]]


def test_scores_far_apart_are_weighed_as_by_torch():
    rng = np.random.default_rng(0)
    queries = (40 * rng.standard_normal((3, 8))).astype(np.float32)
    keys, values = rng.standard_normal((2, 3, 9, 8)).astype(np.float32)
    out = np.empty_like(queries)
    row_kernels.attend(queries, keys, values, 2, 7, out)
    q, k, v = (torch.from_numpy(one) for one in (queries[:, None], keys[:, 2:7], values[:, 2:7]))
    expected = nn.functional.scaled_dot_product_attention(q, k, v)[:, 0]
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

    monkeypatch.setattr(numba, "njit", njit)
    try:
        again = importlib.reload(row_kernels)
        out = np.empty(2, dtype=np.float32)
        again.product(np.eye(2, dtype=np.float32), again.NONE, np.arange(2, dtype=np.float32), out)
        assert out.tolist() == [0, 1]
        assert tried == [True, False] * (len(tried) // 2)
    finally:
        monkeypatch.undo()
        importlib.reload(row_kernels)


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
