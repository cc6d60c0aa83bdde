"""Single rows through the compiled kernels give what torch gives."""

import importlib
import subprocess
import sys

import numba
import numpy as np
import pytest
import reference
import torch
from torch import nn

from darts_kronos.finetuning import add_lora
from darts_kronos.nn import layers, row_kernels, rows
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


def none_compiled(monkeypatch):
    monkeypatch.setattr(rows, "row_kernels", lambda: None)


class TestPredictor:
    @pytest.mark.parametrize("kwargs", [{}, {"keep": 15}, {"keep": 4}, {"stamps": False}], ids=str)
    def test_a_path_is_followed_as_by_torch(self, predictor, kwargs):
        expected = follow(predictor, **kwargs)
        with packed(predictor, torch.float32):
            assert all(isinstance(one, layers.RowBlock) for one in self.of_blocks(predictor))
            found = follow(predictor, **kwargs)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert self.of_blocks(predictor) == [None, None]

    @staticmethod
    def of_blocks(predictor):
        return [block.packed for block in predictor.transformer.blocks]

    def test_what_is_around_a_layer_is_not_passed_over(self, predictor):
        plain = follow(predictor)
        add_lora(predictor, {"r": 2})
        generator = torch.Generator().manual_seed(1)
        for name, weight in predictor.named_parameters():
            if "lora_" in name:
                weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
        expected = follow(predictor)
        assert not torch.allclose(plain[-1], expected[-1], atol=0.01)
        with packed(predictor, torch.float32):
            found = follow(predictor)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)

    def test_without_numba_torch_does_it(self, predictor, monkeypatch):
        expected = follow(predictor)
        none_compiled(monkeypatch)
        with packed(predictor, torch.float32):
            assert self.of_blocks(predictor) == [None, None]
            found = follow(predictor)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)

    def test_lower_precision_is_left_to_torch(self, predictor):
        with packed(predictor, torch.bfloat16):
            assert self.of_blocks(predictor) == [None, None]
            assert predictor.packed is None

    def test_many_threads_gain_on_large_weights_alone(self, predictor, monkeypatch):
        monkeypatch.setattr(torch, "get_num_threads", lambda: rows.THREADS_OUTDONE + 1)
        small, large = torch.empty(4, 4), torch.empty(rows.SMALL // 4 + 1)
        assert rows.kernels_for(small) is row_kernels
        assert rows.kernels_for(small, None, large) is None
        monkeypatch.setattr(torch, "get_num_threads", lambda: rows.THREADS_OUTDONE)
        assert rows.kernels_for(small, None, large) is row_kernels


class TestProduct:
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("sizes", [(1, 1), (7, 3), (64, 33), (250, 130)], ids=str)
    def test_it_is_that_of_torch(self, sizes, bias):
        torch.manual_seed(0)
        layer, x = Linear(*sizes, bias=bias), torch.randn(sizes[0] * 2, 1, 1)
        row = x[::2].permute(1, 2, 0)  # one row whose entries do not lie next to each other
        with torch.inference_mode():
            expected = nn.functional.linear(row, layer.weight, layer.bias)
            with packed(layer, torch.float32):
                found = layer(row)
        assert found.shape == (1, 1, sizes[1])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)

    def test_what_is_no_number_stays_none(self):
        layer, x = Linear(8, 3), torch.zeros(1, 8)
        with torch.no_grad():
            layer.weight[1, 2] = float("nan")
            with packed(layer, torch.float32):
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


def test_kernels_are_compiled_where_no_folder_can_keep_them(monkeypatch):
    compile_it = numba.njit

    def njit(**options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return compile_it(**options)

    monkeypatch.setattr(numba, "njit", njit)
    try:
        again = importlib.reload(row_kernels)
        out = np.empty(2, dtype=np.float32)
        again.product(np.eye(2, dtype=np.float32), again.NONE, np.arange(2, dtype=np.float32), out)
        assert out.tolist() == [0, 1]
        assert again.product.signatures
    finally:
        monkeypatch.undo()
        importlib.reload(row_kernels)


@pytest.mark.parametrize("why", ["NUMBA_DISABLE_JIT=1", "no numba"])
def test_networks_do_without_compiled_kernels(why):
    hide = "import sys; sys.modules['numba'] = None; " if why == "no numba" else ""
    code = hide + "from darts_kronos.nn import rows; print(rows.row_kernels())"
    env = {"NUMBA_DISABLE_JIT": "1"} if "=" in why else {}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout.split() == ["None"]
