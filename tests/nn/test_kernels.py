"""Linear layers of many rows, norms, gates and dropout by compiled kernels against torch's own."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from darts_kronos.nn import kernels, tiled_linear, tiles
from darts_kronos.nn.kernels import Dropout, Linear, RMSNorm, gated
from darts_kronos.nn.linear_kernels import OUTPUTS_AT_ONCE, ROWS_AT_ONCE
from darts_kronos.nn.tiled_linear import LEAST_ROWS

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(autouse=True)
def threads():
    """One thread, unless a test asks for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["kernels", "no kernels", "two threads"])
def way(request, monkeypatch):
    if request.param == "no kernels":
        monkeypatch.setattr(kernels, "layer_kernels", lambda: None)
    if request.param == "two threads":
        torch.set_num_threads(2)


class TestTiledLinear:
    @pytest.fixture
    def tiled(self, monkeypatch):
        """How many products the kernels made, wherever they are asked for them."""
        monkeypatch.setattr(tiled_linear, "PROCESSORS", (tiles.PROCESSOR,))
        found, own = [], kernels.TiledLinear.apply
        counting = lambda *given: found.append(given) or own(*given)  # noqa: E731
        monkeypatch.setattr(kernels.TiledLinear, "apply", counting)
        return found

    @pytest.mark.parametrize(
        ("rows", "inputs", "outputs"),
        [
            (LEAST_ROWS, 16, 16),
            (LEAST_ROWS + 1, 48, 32),
            (5 * ROWS_AT_ONCE + 3, 32, 2 * OUTPUTS_AT_ONCE + 48),
            (ROWS_AT_ONCE * 4, 272, 16),
        ],
    )
    @pytest.mark.parametrize("bias", [True, False])
    def test_outputs_and_gradients_are_those_of_torch(self, rows, inputs, outputs, bias, tiled):
        torch.manual_seed(0)
        layer = Linear(inputs, outputs, bias=bias)
        x = torch.randn(1, rows, inputs, requires_grad=True)
        gradient = torch.randn(1, rows, outputs)
        given = [x, *layer.parameters()]
        found = layer(x)
        expected = F.linear(x, layer.weight, layer.bias)
        torch.testing.assert_close(found, expected, **CLOSE)
        for ours, torchs in zip(
            *(torch.autograd.grad(out, given, gradient) for out in (found, expected)), strict=True
        ):
            torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), expected, **CLOSE)
        assert len(tiled) == 2

    def test_gradients_that_nobody_wants_are_not_made(self, tiled):
        layer = Linear(16, 32)
        layer.weight.requires_grad_(False)
        x = torch.randn(LEAST_ROWS, 16)
        layer(x).sum().backward()
        assert layer.weight.grad is None and layer.bias.grad.tolist() == [LEAST_ROWS] * 32
        assert len(tiled) == 1

    def test_tensors_may_lie_in_memory_as_they_like(self, tiled):
        torch.manual_seed(0)
        layer, x = Linear(16, 32), torch.randn(9, LEAST_ROWS, 40)[..., 3:19].transpose(0, 1)
        x.requires_grad_()
        out, expected = layer(x), F.linear(x, layer.weight, layer.bias)
        gradient = torch.randn(1, 1, 32).expand_as(out)
        torch.testing.assert_close(out, expected, **CLOSE)
        torch.testing.assert_close(
            *(torch.autograd.grad(one, x, gradient)[0] for one in (out, expected)), **CLOSE
        )
        assert len(tiled) == 1

    def test_what_others_are_better_at_is_left_to_them(self, tiled, monkeypatch):
        x = torch.randn(LEAST_ROWS, 16)
        Linear(16, 32)(x[:-1])
        Linear(16, 40)(x)
        Linear(15, 32)(x[:, :15])
        Linear(16, 32).double()(x.double())
        with torch.autocast("cpu", torch.bfloat16):
            Linear(16, 32)(x)
        torch.set_num_threads(2)
        Linear(16, 32)(x)
        torch.set_num_threads(1)
        with monkeypatch.context() as on_another:
            on_another.setattr(tiled_linear, "PROCESSORS", ("another",))
            Linear(16, 32)(x)
        monkeypatch.setattr(tiled_linear, "linear_kernels", lambda: None)
        Linear(16, 32)(x)
        assert not tiled


class TestNorm:
    @pytest.mark.parametrize("shape", [(8,), (3, 24), (2, 700, 40), (0, 4)])
    def test_outputs_and_gradients_are_those_of_torch(self, shape, way):
        torch.manual_seed(0)
        norm, x = RMSNorm(shape[-1], eps=1e-5), torch.randn(*shape, requires_grad=True)
        with torch.no_grad():
            norm.weight.normal_()
        found = norm(x)
        expected = F.rms_norm(x, norm.normalized_shape, norm.weight, norm.eps)
        torch.testing.assert_close(found, expected, **CLOSE)
        gradient = torch.randn(*shape[::-1]).permute(*range(len(shape))[::-1])
        for ours, torchs in zip(
            *(
                torch.autograd.grad(out, (x, norm.weight), gradient, retain_graph=True)
                for out in (found, expected)
            ),
            strict=True,
        ):
            torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            torch.testing.assert_close(norm(x), expected, **CLOSE)

    def test_a_row_of_zeros_stays_one(self, way):
        x = torch.zeros(2, 8, requires_grad=True)
        norm = RMSNorm(8, eps=1e-5)
        norm(x).sum().backward()
        assert not norm(x).any() and torch.isfinite(x.grad).all()

    def test_other_data_types_are_left_to_torch(self, way):
        norm = RMSNorm(8, eps=1e-5).double()
        x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(norm, x)
        assert norm.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


class TestDropout:
    @pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
    def test_it_leaves_out_its_share_and_makes_up_for_it(self, share):
        torch.manual_seed(0)
        x = torch.full((1000, 401), 2.0, requires_grad=True)
        out = Dropout(share)(x)
        left = out.detach() != 0
        assert 1 - left.float().mean() == pytest.approx(share, abs=3e-3 * (1 - share) ** 0.5)
        scale = out[left].unique()
        assert scale.tolist() == [pytest.approx(2 / (1 - share), rel=1e-2)]
        assert out.mean().item() == pytest.approx(2.0, rel=0.15 if share > 0.9 else 0.01)
        gradient = torch.randn_like(x)
        out.backward(gradient)
        torch.testing.assert_close(x.grad, gradient * left * scale / 2)

    def test_entries_are_left_out_one_by_one(self):
        torch.manual_seed(0)
        left = (Dropout(0.5)(torch.ones(4000, 64)) != 0).float()
        assert abs(left.corrcoef() - torch.eye(4000)).max() < 0.9
        assert abs(left.T.corrcoef() - torch.eye(64)).max() < 0.1

    def test_it_follows_torchs_generator_and_ends_with_training(self):
        x, dropout = torch.ones(50), Dropout(0.5)
        torch.manual_seed(3)
        first, second = dropout(x), dropout(x)
        torch.manual_seed(3)
        assert torch.equal(dropout(x), first) and not torch.equal(first, second)
        assert torch.equal(dropout.eval()(x), x)
        assert torch.equal(Dropout(0.0)(x), x)
        assert dropout.train()(x.double()).dtype == torch.float64


class TestGated:
    @pytest.mark.parametrize("shape", [(6,), (3, 8), (2, 700, 12), (0, 4)])
    def test_outputs_and_gradients_are_those_of_torch(self, shape, way):
        torch.manual_seed(0)
        both = torch.randn(*shape, requires_grad=True)
        gate, value = both.chunk(2, dim=-1)
        expected = F.silu(gate) * value
        gradient = torch.randn_like(expected)
        found = gated(both)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(
            *(torch.autograd.grad(out, both, gradient)[0] for out in (found, expected))
        )

    def test_large_gates_stay_what_they_are(self):
        both = torch.tensor([[-1e4, -95.0, 0.0, 95.0, 1e4] + [2.0] * 5], requires_grad=True)
        expected = torch.tensor([0.0, 0.0, 0.0, 190.0, 2e4])
        torch.testing.assert_close(gated(both)[0], expected)
        (found,) = torch.autograd.grad(gated(both).sum(), both)
        torch.testing.assert_close(found[0, 5:], expected / 2)
        torch.testing.assert_close(found[0, :5], torch.tensor([0.0, 0.0, 1.0, 2.0, 2.0]))
        assert gated(torch.full((1, 4), torch.nan)).isnan().all()

    def test_other_data_types_are_left_to_torch(self):
        both = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(gated, both)
        with torch.autocast("cpu", torch.bfloat16):
            assert gated(both.bfloat16()).dtype == torch.bfloat16


WITHOUT_BIAS = """
import numpy as np
from darts_kronos.nn.linear_kernels import LANES, product, turn_weight

rng = np.random.default_rng(0)
x, weight = (rng.standard_normal((n, 2 * LANES)).astype(np.float32) for n in (40, 4 * LANES))
panels, out = np.zeros((4, 2 * LANES, LANES), np.float32), np.zeros((40, 4 * LANES), np.float32)
turn_weight(weight, panels)
for _ in range(20):
    product(x, panels, np.empty(0, np.float32), out)
    np.testing.assert_allclose(out, x @ weight.T, atol=1e-4)
"""


def test_kernels_read_no_memory_that_was_given_back():
    # As glibc has it, memory that was given back is filled at once.
    tunables = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0", "MALLOC_PERTURB_": "85"}
    run = [sys.executable, "-c", WITHOUT_BIAS]
    found = subprocess.run(run, env=os.environ | tunables, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
