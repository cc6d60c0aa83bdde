"""Steps that a GPU can record draw what the network's own steps draw.

They run anywhere, if not recorded; those by Triton's kernels where it is installed and there is a
GPU, or on CPUs as ``TRITON_INTERPRET=1 python -m pytest tests/nn/test_recorded_paths.py``.
"""

import copy
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import reference
import torch
from gpu import DEVICE, OutOfResources, by_triton, needs_gpu, step_fixture, triton_kernels

from darts_kronos import generation
from darts_kronos.finetuning import add_lora
from darts_kronos.generation import Sampling, generate
from darts_kronos.nn import fused_step, graphs, kernel_modules, recorded_paths
from darts_kronos.nn.fused_step import FusedStep
from darts_kronos.nn.kernels import _GatedOnGpu, gated, packed
from darts_kronos.nn.recorded_paths import ModuleStep, RecordedPaths
from darts_kronos.nn.rotary import rotary_table, rotate

KNOWN, NEW = 20, 9


step = step_fixture(ModuleStep, FusedStep)


@pytest.fixture
def predictor():
    return reference.predictors(0)[1].eval().to(DEVICE)


class Windows:
    """Windows that a predictor has read, and the numbers that draw their paths."""

    def __init__(self, predictor, windows, paths, stamps=True, n=NEW):
        generator = torch.Generator().manual_seed(3)
        s1, s2 = torch.randint(0, 16, (2, windows, KNOWN), generator=generator).to(DEVICE)
        times = reference.random_stamps(windows, KNOWN + n, 4).to(DEVICE) if stamps else None
        of_window = None if times is None else times[:, :KNOWN]
        hidden, self.cache = predictor.prefill(s1, s2, of_window, n)
        self.predictor, self.paths, self.n, self.times = predictor, paths, n, times
        self.hidden = hidden[:, -1:]
        self.given = torch.rand(n, 2, windows * paths, generator=generator).to(DEVICE)

    def stamps(self, first, end):
        return None if self.times is None else self.times[:, KNOWN + first : KNOWN + end]

    def expected(self, sampling, most):
        """Tokens, (2, B, S, n), by the network's own steps."""
        predictor, cache = self.predictor, self.cache.restart()
        hidden, found = self.hidden.expand(-1, self.paths, -1), []
        for i in range(self.n):
            given = self.given[i].view(2, *hidden.shape[:2], 1)
            s1 = sampling.draw(predictor.s1_logits(hidden), given[0])
            s2 = sampling.draw(predictor.s2_logits(hidden, s1, cache), given[1])
            found.append(torch.stack((s1, s2)))
            cache.keep(most)
            hidden = predictor.extend(s1[..., None], s2[..., None], self.stamps(i, i + 1), cache)
        return torch.stack(found, dim=-1)

    def recorded(self, sampling, most):
        """What writes them."""
        return RecordedPaths(
            self.predictor,
            self.cache,
            self.stamps(0, self.n - 1),
            num_samples=self.paths,
            n=self.n,
            most=most,
            dtype=torch.float32,
            draw=sampling.draw,
            temperature=sampling.temperature if sampling.plain else None,
        )


def assert_drawn_alike(made, step, monkeypatch, most=64, sampling=None, times=1):
    sampling = sampling or Sampling()
    predictor = made.predictor
    with (
        torch.inference_mode(),
        predictor.folded(torch.float32),
        packed(predictor, torch.float32, 0),
    ):
        monkeypatch.setattr(recorded_paths, "stratified", lambda *_: made.given)
        recorded = made.recorded(sampling, most)
        assert isinstance(recorded.step, step)
        expected = made.expected(sampling, most)
        for _ in range(times):
            torch.testing.assert_close(recorded.write(made.hidden), expected, rtol=0, atol=0)
            recorded.tokens.zero_()


def windows_of(predictor, windows, paths, **kwargs):
    with torch.inference_mode():
        return Windows(predictor, windows, paths, **kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"most": 20},
        {"most": 24},
        {"sampling": Sampling(temperature=2.0)},
        {"sampling": Sampling(top_k=3)},
        {"sampling": Sampling(top_p=0.7)},
        {"sampling": Sampling(top_k=1)},
        {"times": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize(("windows", "paths"), [(1, 1), (3, 1), (2, 5)])
def test_they_draw_as_the_network_does(predictor, step, windows, paths, kwargs, monkeypatch):
    made = windows_of(predictor, windows, paths)
    assert_drawn_alike(made, step, monkeypatch, **kwargs)


def test_so_they_do_without_stamps_and_for_more_paths_than_a_program_takes(
    predictor, step, monkeypatch
):
    made = windows_of(predictor, 1, 40, stamps=False, n=3)
    assert_drawn_alike(made, step, monkeypatch)


def test_what_many_paths_look_at_grows(predictor, monkeypatch):
    monkeypatch.setattr(fused_step, "gpu_kernels", lambda: None)
    monkeypatch.setattr(recorded_paths, "BYTES_LOOKED_AT", 0)
    monkeypatch.setattr(recorded_paths, "STRETCH", 3)
    looked_at = []
    own = ModuleStep.look_at
    monkeypatch.setattr(
        ModuleStep, "look_at", lambda step, bars: (looked_at.append(bars), own(step, bars))
    )
    assert_drawn_alike(windows_of(predictor, 2, 3), ModuleStep, monkeypatch)
    assert looked_at == [3, 6, 8]


@pytest.mark.parametrize("kind", ["adapters", "doubles"])
def test_adapters_and_doubles_are_left_to_the_networks_layers(predictor, kind, monkeypatch):
    # They would not be asked.
    monkeypatch.setattr(fused_step, "gpu_kernels", lambda: object())
    if kind == "doubles":
        predictor = predictor.double()
    else:
        add_lora(predictor, {"r": 2})
        for name, weight in predictor.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=0.3)
    assert_drawn_alike(windows_of(predictor, 2, 3), ModuleStep, monkeypatch)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(top_k=3), Sampling(top_k=1), Sampling(temperature=0.5)],
    ids=str,
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("spoilt", ["head", "rare token"])
def test_spoilt_weights_are_named(predictor, step, spoilt, value, sampling, monkeypatch):
    made = windows_of(predictor, 1, 2)
    with (
        torch.inference_mode(),
        predictor.folded(torch.float32),
        packed(predictor, torch.float32, 0),
    ):
        monkeypatch.setattr(recorded_paths, "stratified", lambda *_: made.given)
        recorded = made.recorded(sampling, 64)
        # One that is read after the first bar was drawn; what is drawn of it is not looked at.
        drawn = recorded.write(made.hidden)[0, 0, 0, 0]
        if spoilt == "head":
            calls = []

            def draw(logits, given):
                # The first bar, which no step writes, is drawn of numbers.
                drawn = sampling.draw(logits, given)
                calls.append(1)
                if len(calls) == 2:
                    predictor.s2_head.weight[3] = value
                return drawn

            recorded.work = replace(recorded.work, draw=draw)
        else:
            predictor.tokens.folded[0][drawn] = value
        with pytest.raises(ValueError, match="spoilt"):
            recorded.write(made.hidden)


def test_where_triton_fails_the_networks_layers_draw(predictor, monkeypatch, caplog):
    def refuse(*_):
        raise OutOfResources("shared memory")

    kernels = SimpleNamespace(Attention=lambda *_: None, embed=refuse)
    monkeypatch.setattr(fused_step, "gpu_kernels", lambda: kernels)
    assert_drawn_alike(windows_of(predictor, 2, 3), FusedStep, monkeypatch, times=2)
    assert caplog.text.count("shared memory") == 1


def test_drawing_by_given_numbers():
    logits = torch.tensor([[0.0, 1.0, 2.0, float("-inf")]])
    sums = logits.softmax(dim=-1).cumsum(dim=-1)[0]
    for sampling in (Sampling(), Sampling(top_p=1.0)):
        assert sampling.plain
        for token in range(3):
            just_below = (sums[token] - 1e-4).view(1, 1)
            assert sampling.draw(logits, just_below) == token
    assert not Sampling(top_k=3).plain and not Sampling(top_p=0.9).plain
    assert Sampling(top_k=2).draw(logits, torch.tensor([[0.999]])) == 1
    assert Sampling(top_k=2).draw(logits, torch.tensor([[0.0]])) == 2


def test_on_a_cpu_nothing_is_recorded(predictor, monkeypatch):
    monkeypatch.setattr(generation.RecordedPaths, "write", None)
    monkeypatch.setattr(type(predictor), "_for_kernels", lambda _: None)
    paths = generate(
        reference.tokenizers(0)[1],
        predictor.cpu(),
        reference.random_bars(1, 8, 1),
        None,
        n=6,
        max_context=32,
        sampling=Sampling(),
    )
    assert paths.shape == (1, 1, 6, 6)
    assert kernel_modules.gpu_layers(paths) is None


def test_without_a_gpu_tritons_kernels_are_left_out(monkeypatch, caplog):
    def refuse(name):
        raise RuntimeError("no compiler of C")

    monkeypatch.setattr(kernel_modules, "import_module", refuse)
    assert kernel_modules._of_triton("gpu_layers") is None
    assert "no compiler of C" in caplog.text


class TestKernels:
    """Triton's, alone."""

    pytestmark = by_triton

    @pytest.fixture
    def kernels(self, monkeypatch):
        return triton_kernels(monkeypatch)

    # Windows, heads, paths, bars, width of a head, and room for own bars.
    @pytest.mark.parametrize(
        "sizes",
        [(2, 2, 40, 70, 208, 5), (1, 3, 1, 5, 104, 6), (1, 1, 17, 33, 6, 6), (1, 4, 130, 9, 6, 2)],
    )
    @pytest.mark.parametrize("most", [100, 4])
    def test_attention(self, kernels, sizes, most):
        B, H, S, T, K, C = sizes
        window = tuple(torch.randn(B, H, T, K, device=DEVICE) for _ in range(2))
        # What is not there yet may be anything.
        own = tuple(torch.full((B, H, S, C, K), float("nan"), device=DEVICE) for _ in range(2))
        place = torch.zeros(1, dtype=torch.int64, device=DEVICE)
        attention = kernels.Attention(window, own, None, place, most)
        new = torch.randn(C, 3, B * S, H * K, device=DEVICE)
        for i in range(C):
            found = attention(*new[i])
            queries, keys, values = new[: i + 1].view(-1, 3, B, S, H, K).permute(1, 2, 4, 3, 0, 5)
            newest = queries[..., -1:, :]
            scores = torch.cat(
                ((newest.squeeze(3) @ window[0].mT).unsqueeze(3), newest @ keys.mT), dim=-1
            )
            scores = scores * K**-0.5
            scores[..., : max(0, T + i + 1 - most)] = float("-inf")
            weights = scores.softmax(dim=-1)
            of_window = weights[..., :T].squeeze(3) @ window[1]
            expected = of_window + (weights[..., T:] @ values).squeeze(3)
            expected = expected.transpose(1, 2).reshape(B * S, H * K)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            place += 1

    def test_a_single_row(self, kernels):
        row, weights = torch.randn(1, 1300, device=DEVICE), torch.randn(14, 1300, device=DEVICE)
        bias, norm = torch.randn(14, device=DEVICE), (torch.rand(1300, device=DEVICE), 1e-5)
        normed = torch.nn.functional.rms_norm(row, (1300,), *norm)
        close = {"rtol": 1e-4, "atol": 1e-3}
        plain = row @ weights.T + bias
        torch.testing.assert_close(kernels.multiply(row, (weights, bias)), plain, **close)
        found = kernels.multiply(row, (weights, bias), norm)
        torch.testing.assert_close(found, normed @ weights.T + bias, **close)
        found = kernels.multiply(row, (weights, None), norm, gates=True)
        torch.testing.assert_close(found, gated(normed @ weights.T), **close)
        start = torch.randn(1, 14, device=DEVICE)
        found = kernels.multiply(row, (weights, bias), to=start.clone())
        torch.testing.assert_close(found, start + plain, **close)

    def test_draws_reach_the_first_and_the_last_token(self, kernels):
        logits = torch.zeros(4, 10, device=DEVICE)
        logits[3, 5:] = -1e30
        given = torch.tensor([0.0, 0.35, 1 - 2**-24, 1 - 2**-24], device=DEVICE).expand(2, 2, 4)
        tokens = torch.full((2, 2, 2, 2), 77, device=DEVICE)
        place = torch.zeros(1, dtype=torch.int64, device=DEVICE)
        drawn = kernels.draw(logits, 1.0, given.contiguous(), place, tokens, 1)
        assert tokens[1, ..., 1].flatten().tolist() == drawn.tolist() == [0, 3, 9, 4]
        assert (tokens[0] == 77).all() and (tokens[..., 0] == 77).all()
        for spoilt in (float("nan"), float("inf"), float("-inf")):
            logits[1:3, 2] = spoilt
            drawn = kernels.draw(logits, 1.0, given.contiguous(), place, tokens, 1)
            assert tokens[1, ..., 1].flatten().tolist() == [0, -1, -1, 4]
            assert ((drawn >= 0) & (drawn < 10)).all()

    def test_gates_and_rotation_with_gradients(self, kernels):
        from darts_kronos.nn import gpu_layers

        generator = torch.Generator().manual_seed(0)
        given = torch.randn(5, 2 * 1100, generator=generator).requires_grad_()
        expected = gated(given)
        gradient = torch.randn(expected.shape, generator=generator)
        expected.backward(gradient)
        on_device = given.detach().to(DEVICE)
        close = {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(gpu_layers.gate(on_device).cpu(), expected.detach(), **close)
        found = gpu_layers.to_gate(on_device, gradient.to(DEVICE)).cpu()
        torch.testing.assert_close(found, given.grad, **close)

        heads = torch.randn(2, 7, 3, 4, 6, generator=generator)
        queries = heads.permute(2, 0, 3, 1, 4)[0]
        table = rotary_table(7, 6, queries.device)
        with torch.no_grad():
            expected = rotate(queries, table)
        on_device = queries.to(DEVICE), *(one.to(DEVICE) for one in table)
        found = gpu_layers.rotate(*on_device, False)
        torch.testing.assert_close(found.cpu(), expected, **close)
        back = gpu_layers.rotate(found, *on_device[1:], True)
        torch.testing.assert_close(back.cpu(), queries, **close)

    def test_windows_of_no_bars(self, kernels):
        from darts_kronos.nn import gpu_layers

        given = torch.zeros(2, 0, 12, device=DEVICE, requires_grad=True)
        found = _GatedOnGpu.apply(given, gpu_layers)
        found.sum().backward()
        assert found.shape == (2, 0, 6) and given.grad.shape == given.shape
        tables = torch.zeros(2, 0, 6, device=DEVICE)
        assert gpu_layers.rotate(given.detach().view(2, 2, 0, 6), *tables, False).shape[2] == 0


class TestGpu:
    """What is recorded."""

    pytestmark = needs_gpu

    @pytest.fixture(autouse=True)
    def networks(self):
        # Making them seeds torch: that is not to happen between a test's seed and its draws.
        self.networks = [
            one[1].to(DEVICE) for one in (reference.tokenizers(0), reference.predictors(0))
        ]

    def draw(self, sliding="exact", paths=4, n=30, sampling=None, networks=None):
        return generate(
            *(networks or self.networks),
            reference.random_bars(2, 20, 1).to(DEVICE),
            reference.random_stamps(2, 20 + n, 1).to(DEVICE),
            n=n,
            num_samples=paths,
            max_context=40,
            sampling=sampling or Sampling(temperature=1e-6),
            sliding=sliding,
        )

    @pytest.mark.parametrize("sliding", ["exact", "cached"])
    @pytest.mark.parametrize("paths", [1, 4])
    def test_it_is_what_is_drawn_step_by_step(self, paths, sliding, monkeypatch):
        recorded = self.draw(sliding, paths)
        monkeypatch.setattr(generation, "FEWEST_STEPS", 100)
        torch.testing.assert_close(recorded, self.draw(sliding, paths), rtol=1e-3, atol=1e-4)

    def test_a_seed_draws_the_same_again(self):
        drawn = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            drawn.append(self.draw(sampling=Sampling()))
        assert torch.equal(*drawn[:2]) and not torch.equal(*drawn[1:])

    def test_threads_do_not_disturb_each_other(self):
        expected, found = self.draw(), []

        def work(networks):
            with torch.cuda.stream(torch.cuda.Stream()):
                found.extend(self.draw(networks=networks) for _ in range(3))
                torch.cuda.current_stream().synchronize()

        # They are folded while they draw: each thread has its own.
        copies = [copy.deepcopy(self.networks) for _ in range(3)]
        threads = [threading.Thread(target=work, args=(networks,)) for networks in copies]
        torch.cuda.synchronize()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 9
        for one in found:
            torch.testing.assert_close(one, expected)

    def test_calls_do_not_add_memory(self):
        held = []
        for _ in range(6):
            self.draw()
            held.append(torch.cuda.memory_reserved())
        assert held[-1] == held[1]

    def test_training_has_the_gradients_of_a_cpu(self):
        found = []
        for device in ("cpu", DEVICE):
            predictor = reference.predictors(0)[1].to(device)
            tokens = torch.randint(0, 16, (2, 3, 50), generator=torch.Generator().manual_seed(1))
            predictor.loss(*tokens.to(device), None).loss.backward()
            gradients = [one.grad for one in predictor.parameters() if one.grad is not None]
            found.append(torch.cat([one.flatten().cpu() for one in gradients]))
        torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-6)


def test_numbers_are_those_of_the_devices_generator():
    torch.manual_seed(5)
    expected = torch.rand(3, 2)
    torch.manual_seed(5)
    assert torch.equal(graphs.uniforms((3, 2), torch.device("cpu")), expected)
