"""Causal attention by compiled kernels against torch's own, and the tiles they are made of."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from darts_kronos.nn import attention, tiles
from darts_kronos.nn.attention import (
    LEAST_BARS,
    THREADS_OUTDONE,
    causal_attention,
    path_attention,
    self_attention,
)
from darts_kronos.nn.attention_kernels import BLOCK
from darts_kronos.nn.rotary import rotary_table, rotate

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(autouse=True, params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def runs(monkeypatch):
    """What the kernels ran for: the number of heads each time."""
    found, run = [], attention._Call._run

    def counted(call, kernel, *arguments):
        found.append(call.B * call.H)
        return run(call, kernel, *arguments)

    monkeypatch.setattr(attention._Call, "_run", counted)
    return found


def random_heads(*shape, how=lambda one: one):
    torch.manual_seed(0)
    return [how(torch.randn(*shape)).requires_grad_() for _ in range(3)]


SHAPES = [
    # H, T, K: less than a tile; whole blocks; a bar more; several blocks and a part of one.
    (3, 5, 8),
    (4, 2 * BLOCK, 16),
    (2, BLOCK + 1, 24),
    (3, 5 * BLOCK + 9, 64),
    (1, 1, 2),
    (2, 100, 52),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("windows", [(), (1,), (5,), (2, 3), (0,)], ids=str)
# Of next to nothing, so that no weight is left out.
@pytest.mark.parametrize("dropout", [0.0, 1e-12])
def test_outputs_and_gradients_are_those_of_torch(shape, windows, dropout, runs):
    given = random_heads(*windows, *shape)
    gradient, found = torch.randn_like(given[0]), []
    for attend in (causal_attention, F.scaled_dot_product_attention):
        how = {"dropout": dropout} if attend is causal_attention else {"is_causal": True}
        out = attend(*given, **how)
        found.append([out, *torch.autograd.grad(out, given, gradient)])
    for ours, torchs in zip(*found, strict=True):
        torch.testing.assert_close(ours, torchs, **CLOSE)
    assert runs == [torch.Size(windows).numel() * shape[0]] * 2
    with torch.no_grad():
        torch.testing.assert_close(causal_attention(*given, dropout), found[1][0], **CLOSE)


@pytest.mark.parametrize("windows", [1, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dropout", [0.0, 1e-12])
def test_that_of_rotated_heads_is_that_of_torch(shape, windows, dropout, runs):
    torch.manual_seed(0)
    (H, T, K), B = shape, windows
    heads = torch.randn(B, T, 3, H, K, requires_grad=True)
    gradient = torch.randn(B, T, H, K)
    rotary = rotary_table(T, K, torch.device("cpu"))
    q, k, v = heads.transpose(1, 3).unbind(2)
    expected = F.scaled_dot_product_attention(
        rotate(q, rotary), rotate(k, rotary), v, is_causal=True
    ).transpose(1, 2)
    found = self_attention(heads, rotary, dropout)
    torch.testing.assert_close(found, expected, **CLOSE)
    torch.testing.assert_close(
        *(torch.autograd.grad(out, heads, gradient)[0] for out in (found, expected)), **CLOSE
    )
    assert runs == [B * H] * 2
    with torch.no_grad():
        torch.testing.assert_close(self_attention(heads, rotary, dropout), expected, **CLOSE)


@pytest.mark.parametrize(
    "how",
    [
        lambda one: one.transpose(-3, -2).contiguous().transpose(-3, -2),
        lambda one: one.mT.contiguous().mT,
        lambda one: one[:1].expand(3, -1, -1, -1),
        lambda one: one[:, :, ::2],
    ],
    ids=["bars first", "channels first", "one window for all", "every other bar"],
)
def test_tensors_may_lie_in_memory_as_they_like(how, runs):
    torch.manual_seed(0)
    bases = [torch.randn(3, 2, 60, 16, requires_grad=True) for _ in range(3)]
    given = [how(one) for one in bases]
    gradient = torch.randn(*given[0].shape[:3], 32)[..., ::2]
    out = causal_attention(*given)
    expected = F.scaled_dot_product_attention(*given, is_causal=True)
    torch.testing.assert_close(out, expected, **CLOSE)
    for ours, torchs in zip(
        *(torch.autograd.grad(one, bases, gradient) for one in (out, expected)), strict=True
    ):
        torch.testing.assert_close(ours, torchs, **CLOSE)
    assert len(runs) == 2


def test_large_and_spoilt_scores():
    q, k, v = (one.detach() for one in random_heads(2, 40, 16))
    found = causal_attention(q * 1000, k * 1000, v)
    expected = F.scaled_dot_product_attention(q * 1000, k * 1000, v, is_causal=True)
    torch.testing.assert_close(found, expected, **CLOSE)
    k[0, 30] = torch.nan
    found = causal_attention(q, k, v)
    # It reaches no bar before it, and hides from none after it.
    assert found[0, 30:].isnan().all()
    assert torch.isfinite(found[0, :30]).all() and torch.isfinite(found[1]).all()


def test_what_torch_is_better_at_is_left_to_it(runs, monkeypatch):
    q, k, v = random_heads(2, 50, 4)
    causal_attention(q, k, v)
    assert len(runs) == 1
    monkeypatch.setattr(attention, "BARS_PER_CHANNEL", 12)
    causal_attention(q, k, v)
    assert len(runs) == 1  # weights of so many bars are not kept
    causal_attention(q, k, v, dropout=0.1)
    with torch.no_grad():
        causal_attention(q, k, v)
    assert len(runs) == 3
    torch.set_num_threads(THREADS_OUTDONE + 1)
    with torch.no_grad():
        causal_attention(q, k, v)
        assert len(runs) == 3
        causal_attention(q, k, v, dropout=0.1)
        assert len(runs) == 4
        causal_attention(*(one.bfloat16() for one in (q, k, v)), dropout=0.1)
        causal_attention(*(one.double() for one in (q, k, v)), dropout=0.1)
    assert len(runs) == 4


def test_without_kernels_torch_does_it_all(monkeypatch):
    monkeypatch.setattr(attention, "attention_kernels", lambda: None)
    q, k, v = random_heads(2, 30, 4)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(causal_attention(q, k, v), expected)
    torch.testing.assert_close(causal_attention(q, k, v, dropout=1e-12), expected)
    heads, rotary = torch.randn(2, 30, 3, 2, 4), rotary_table(30, 4, torch.device("cpu"))
    alone = self_attention(heads, rotary)
    monkeypatch.undo()
    torch.testing.assert_close(self_attention(heads, rotary), alone, **CLOSE)


def test_gradients_do_not_ask_how_many_threads_there_are():
    gradients = []
    for now, later in ((1, 3), (2, 1)):
        q, k, v = random_heads(7, 3, 60, 8)
        torch.set_num_threads(now)
        torch.manual_seed(1)
        out = causal_attention(q, k, v, dropout=0.3)
        torch.set_num_threads(later)
        gradients.append(torch.autograd.grad(out.square().sum(), (q, k, v)))
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


class TestPaths:
    """Paths over a window that they share: by kernels, and as torch has it path by path."""

    @pytest.mark.parametrize("T", [0, 1, 16, 70])
    @pytest.mark.parametrize("M", [LEAST_BARS, BLOCK + 9])
    @pytest.mark.parametrize(("B", "H", "S", "K"), [(1, 1, 1, 64), (2, 3, 4, 6), (1, 2, 0, 16)])
    @pytest.mark.parametrize("turned", [False, True])
    def test_they_are_windows_with_bars_of_their_own(self, B, H, S, K, M, T, turned):
        torch.manual_seed(0)
        queries = torch.randn(B, S, M, H, K).movedim(3, 1)
        own = [torch.randn(B, H, S, M + 2, K)[..., 1:-1, :] for _ in range(2)]
        window = [torch.randn(B, H, T + 3, K)[:, :, 3:] for _ in range(2)]
        if turned:
            queries, *own = (one.mT.contiguous().mT for one in (queries, *own))
            window = [one.mT.contiguous().mT for one in window]
        found = path_attention(queries, tuple(window), tuple(own))
        keys, values = (
            torch.cat((one.unsqueeze(2).expand(-1, -1, S, -1, -1), path), dim=3)
            for one, path in zip(window, own, strict=True)
        )
        mask = torch.ones(M, T + M, dtype=torch.bool).tril(T)
        expected = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        torch.testing.assert_close(found, expected, **CLOSE)

    def test_what_torch_is_better_at_is_left_to_it(self, monkeypatch):
        def paths(M, dtype=torch.float32):
            one = torch.randn(1, 2, 3, M, 8, dtype=dtype)
            window = torch.randn(1, 2, 20, 8, dtype=dtype)
            return path_attention(one, (window, window), (one, one))

        assert paths(LEAST_BARS) is not None
        assert paths(LEAST_BARS - 1) is None
        assert paths(LEAST_BARS, torch.float64) is None
        torch.set_num_threads(THREADS_OUTDONE + 1)
        assert paths(LEAST_BARS) is None
        torch.set_num_threads(1)
        monkeypatch.setattr(attention, "attention_kernels", lambda: None)
        assert paths(LEAST_BARS) is None


class TestDropout:
    def test_its_gradients_are_those_of_its_outputs(self):
        given = random_heads(3, 60, 4)
        gradient = torch.randn(3, 60, 4)

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
                ends.append((out(*other).detach() * gradient).double().sum())
            expected = (ends[0] - ends[1]) / (2 * step)
            torch.testing.assert_close(
                (of_it * moved).double().sum(), expected, rtol=2e-2, atol=2e-2
            )

    def weights(self, dropout, windows=200, T=40):
        """The weights themselves, (B, T, T), of bars that look at all bars alike."""
        zeros = torch.zeros(windows, 1, T, T)
        values = torch.eye(T).expand(windows, 1, T, T)
        found = causal_attention(zeros, zeros, values, dropout=dropout)[:, 0]
        return found * torch.arange(1, T + 1).unsqueeze(-1)

    @pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
    def test_it_leaves_out_its_share_and_makes_up_for_it(self, dropout):
        torch.manual_seed(0)
        weights = self.weights(dropout)
        seen = torch.ones(40, 40).tril() > 0
        assert not weights[:, ~seen].any()
        left = weights[:, seen]
        n = left.numel()
        spread = (dropout * (1 - dropout) / n) ** 0.5
        assert (left == 0).float().mean() == pytest.approx(dropout, abs=4 * spread)
        rest = left[left != 0]
        torch.testing.assert_close(rest, torch.full_like(rest, 1 / (1 - dropout)))

    def test_weights_are_left_out_one_by_one(self):
        torch.manual_seed(0)
        left = self.weights(0.5, windows=2000)[:, -1] != 0
        together = left.float().corrcoef().fill_diagonal_(0)  # of windows, over bars
        assert abs(together.mean()) < 2e-3
        together = left.float().T.corrcoef().fill_diagonal_(0)  # of bars, over windows
        assert together.abs().max() < 5 / 2000**0.5
        # Nor do rows of a window go together, or the same rows of windows next to each other.
        rows = (self.weights(0.5, windows=500)[:, -20:, :20] != 0).float()
        for one, other in ((rows[:, :-1], rows[:, 1:]), (rows[:-1], rows[1:])):
            both = torch.stack((one.flatten(), other.flatten())).corrcoef()[0, 1]
            assert abs(both) < 4 / one.numel() ** 0.5

    def test_it_follows_torchs_generator(self):
        given = random_heads(3, 20, 4)
        torch.manual_seed(3)
        first, second = (causal_attention(*given, dropout=0.5) for _ in range(2))
        torch.manual_seed(3)
        assert torch.equal(causal_attention(*given, dropout=0.5), first)
        assert not torch.equal(first, second)


class TestTiles:
    """Products of matrices that are parts of larger ones."""

    def place(self, array):
        assert array.strides[-1] == tiles.SIZE
        return array.ctypes.data, array.strides[0] // tiles.SIZE

    def random(self, rows, columns):
        rng = np.random.default_rng(rows)
        whole = rng.standard_normal((rows, columns + 5), dtype=np.float32)
        return whole[:, 2 : 2 + columns]

    @pytest.mark.parametrize(("count", "panels", "n"), [(1, 1, 1), (3, 4, 7), (2, 3, 0)])
    def test_of_rows(self, count, panels, n):
        rows = count * tiles.ROWS
        a, b = self.random(rows, n), self.random(n + 1, panels * tiles.LANES)
        start, out = (self.random(rows, panels * tiles.LANES) for _ in range(2))

        def multiply(first, *start):
            """A tile of rows, from number `first` on."""
            given = *self.place(a[first:]), *self.place(b), tiles.LANES, panels
            tiles.multiply(*given, *start, *self.place(out[first:]), n)

        for r in range(0, rows, tiles.ROWS):
            multiply(r, *self.place(start[r:]), tiles.LANES)
        np.testing.assert_allclose(out, start + a @ b[:n], rtol=1e-5, atol=1e-5)
        # The same row for all, and the same numbers for all panels.
        for r in range(0, rows, tiles.ROWS):
            multiply(r, start.ctypes.data, 0, 0)
        first = np.tile(start[0, : tiles.LANES], panels)
        np.testing.assert_allclose(out, first + a @ b[:n], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ("columns", "panels", "n"), [(2, 1, 1), (3 * tiles.ROWS, 4, 7), (tiles.ROWS + 4, 3, 2)]
    )
    def test_of_columns(self, columns, panels, n):
        a, b = self.random(n + 1, columns), self.random(n + 1, panels * tiles.LANES)
        out = self.random(columns, panels * tiles.LANES)
        expected = out + a[:n].T @ b[:n]
        tiles.add_turned(*self.place(a), columns, *self.place(b), panels, *self.place(out), n)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)

    def test_panels_are_columns_of_rows(self):
        source = self.random(3 * tiles.LANES, 2 * tiles.LANES)
        out = np.empty((3, 2 * tiles.LANES, tiles.LANES), dtype=np.float32)
        tiles.turn(*self.place(source), *source.shape, out.ctypes.data)
        np.testing.assert_array_equal(out, source.reshape(3, tiles.LANES, -1).transpose(0, 2, 1))


NARROW = """
import torch
import torch.nn.functional as F
from darts_kronos.nn import attention, tiles

q, k, v = torch.randn(3, 2, 70, 24).requires_grad_()
gradient, found = torch.randn(2, 70, 24), []
both = (attention.causal_attention, {}), (F.scaled_dot_product_attention, {"is_causal": True})
for attend, how in both:
    out = attend(q, k, v, **how)
    found.append([out, *torch.autograd.grad(out, (q, k, v), gradient)])
for one, other in zip(*found):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
print(tiles.ROWS, attention.attention_kernels() is not None)
"""


@pytest.mark.skipif("+avx2" not in tiles._FEATURES, reason="needs AVX2")
@pytest.mark.parametrize(
    ("features", "printed"), [("+avx,+avx2,+fma,+bmi2", "6 True"), ("+sse4.2", "6 False")]
)
def test_other_processors(features, printed, threads):
    if threads > 1:
        pytest.skip("once is enough")
    env = dict(os.environ) | {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": features}
    done = subprocess.run(
        [sys.executable, "-c", NARROW], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout.strip() == printed
