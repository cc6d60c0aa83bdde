"""Windows that slide, read by a step that a GPU can record, against those read bar by bar.

The steps run anywhere, if not recorded; those by Triton's kernels where it is installed and there
is a GPU, or on CPUs as ``TRITON_INTERPRET=1 python -m pytest tests/nn/test_recorded_rereading.py``.
"""

from types import SimpleNamespace

import pytest
import reference
import torch
import torch.nn.functional as F
from gpu import DEVICE, INTERPRETED, OutOfResources, by_triton, step_fixture

from darts_kronos import generation
from darts_kronos.finetuning import add_lora
from darts_kronos.generation import Sampling, generate
from darts_kronos.nn import fused_step, graphs, recorded_rereading
from darts_kronos.nn.fused_rereading import FusedReread
from darts_kronos.nn.kernels import packed
from darts_kronos.nn.recorded_rereading import ModuleReread, RecordedRereads, bars_of_stretch
from darts_kronos.nn.rereading import Rereader

T, N = 7, 17


@pytest.fixture
def predictor():
    return reference.predictors(0)[1].eval().to(DEVICE)


step = step_fixture(ModuleReread, FusedReread)


def tokens_of(windows, paths):
    generator = torch.Generator().manual_seed(3)
    of_window = torch.randint(0, 16, (2, windows, T), generator=generator)
    of_paths = torch.randint(0, 16, (2, windows, paths, N), generator=generator)
    stamps = reference.random_stamps(windows, T + N, 4)
    given = torch.rand(N, 2, windows * paths, generator=generator)
    return (one.to(DEVICE) for one in (of_window, of_paths, stamps, given))


def read_bar_by_bar(reader, tokens, known, draw, given):
    s1, s2 = tokens.clone()
    for i in range(known, N):
        uniforms = given[i].view(2, *s1.shape[:2], 1)
        states = reader.read(s1[:, :, :i], s2[:, :, :i], i - known)
        s1[:, :, i] = draw(reader.predictor.s1_logits(states.newest), uniforms[0])
        s2[:, :, i] = draw(reader.s2_logits(states, s1[:, :, i]), uniforms[1])
    return torch.stack((s1, s2))


@pytest.mark.parametrize(
    ("windows", "paths", "known", "stretch", "sampling", "stamped"),
    [
        (1, 1, 1, 4, Sampling(), True),
        (2, 3, 1, N, Sampling(temperature=2.0), True),
        (1, 2, 3, 5, Sampling(top_k=3), False),
        (2, 1, N - 6, 5, Sampling(temperature=0.5, top_p=0.8), True),
        (1, 3, N - 1, 4, Sampling(), True),
    ],
    ids=str,
)
@torch.inference_mode()
def test_they_draw_alike(
    predictor, step, windows, paths, known, stretch, sampling, stamped, monkeypatch
):
    # The window, and with it bars of the paths, leave what is seen.
    (s1, s2), tokens, stamps, given = tokens_of(windows, paths)
    stamps = stamps if stamped else None
    monkeypatch.setattr(recorded_rereading, "stratified", lambda *_: given)
    with predictor.folded(torch.float32), packed(predictor, torch.float32, 0):
        readers = (Rereader(predictor, s1, s2, stamps, paths, N) for _ in range(2))
        expected = read_bar_by_bar(next(readers), tokens, known, sampling.draw, given)
        # Neither what is to be written nor what memory holds may be looked at.
        reader = next(readers)
        reader.paths.fill_(float("nan"))
        reader.path_heads.fill_(float("nan"))
        tokens[..., known:] = 0
        recorded = RecordedRereads(
            *(reader, *tokens, known),
            dtype=torch.float32,
            draw=sampling.draw,
            temperature=sampling.plain_temperature,
        )
        assert isinstance(recorded.step, step)
        monkeypatch.setattr(recorded_rereading, "bars_of_stretch", lambda *_: stretch)
        assert torch.equal(recorded.write(), expected)


@pytest.mark.parametrize("kind", ["adapters", "doubles", "no window"])
def test_adapters_doubles_and_contexts_of_one_bar(predictor, kind, monkeypatch):
    # They are left to the network's layers, if not the last.
    (s1, s2), tokens, stamps, given = tokens_of(1, 2)
    dtype = torch.float32
    if kind == "doubles":
        predictor, dtype = predictor.double(), torch.float64
    elif kind == "adapters":
        add_lora(predictor, {"r": 2})
        for name, weight in predictor.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=0.3)
    else:
        s1, s2, stamps = s1[:, :0], s2[:, :0], stamps[:, T:]
    monkeypatch.setattr(recorded_rereading, "stratified", lambda *_: given)
    monkeypatch.setattr(recorded_rereading, "bars_of_stretch", lambda *_: 5)
    draw = Sampling().draw
    with torch.inference_mode(), predictor.folded(dtype), packed(predictor, dtype, 0):
        readers = (Rereader(predictor, s1, s2, stamps, 2, N) for _ in range(2))
        expected = read_bar_by_bar(next(readers), tokens, 4, draw, given)
        recorded = RecordedRereads(
            *(next(readers), *tokens, 4), dtype=dtype, draw=draw, temperature=1.0
        )
        assert kind == "no window" or isinstance(recorded.step, ModuleReread)
        assert torch.equal(recorded.write(), expected)


@pytest.mark.parametrize(
    "half",
    [
        torch.float16,
        pytest.param(
            torch.bfloat16,
            marks=pytest.mark.skipif(INTERPRETED, reason="not multiplied by the interpreter"),
        ),
    ],
    ids=str,
)
@torch.inference_mode()
def test_products_in_half_the_bytes(predictor, step, half):
    (s1, s2), tokens, stamps, _ = tokens_of(2, 3)
    found = []
    for dtype in (torch.float32, half):
        with predictor.folded(dtype), packed(predictor, dtype, 0):
            recorded = RecordedRereads(
                *(Rereader(predictor, s1, s2, stamps, 3, N), *tokens, N - 1),
                dtype=dtype,
                draw=lambda logits, given: logits.argmax(dim=-1),
                temperature=None,
            )
            assert isinstance(recorded.step, step)
            found.append(recorded.write()[..., -1])
    assert (found[0] == found[1]).float().mean() > 0.8


@by_triton
@pytest.mark.parametrize(
    ("sizes", "at", "left", "offset"),
    [
        # Several blocks of both; bars of the window have left; so has all of it; there is none.
        ((70, 2, 40), 30, 30, -70),
        ((70, 2, 40), 39, 20, -70),
        ((70, 2, 40), 39, 0, -70),
        ((1, 1, 1), 1, 1, 0),
        ((3, 1, 50), 49, 30, -3),
        ((0, 3, 9), 12, 10, 5),
    ],
    ids=str,
)
def test_attention_of_rows(sizes, at, left, offset):
    gpu_kernels = pytest.importorskip("darts_kronos.nn.gpu_kernels")
    (T, S, M), (B, H, K) = sizes, (2, 2, 12)
    heads = torch.randn(3, B, H, T + S * M, K, generator=torch.Generator().manual_seed(0))
    on_device = heads[:2].to(DEVICE), heads[2].transpose(1, 2).contiguous().to(DEVICE)
    queries, keys, values = *on_device[0], on_device[1].transpose(1, 2)
    place = torch.full((1,), at, device=DEVICE)
    found = gpu_kernels.attend_rows((queries, keys, values), sizes, place, left, offset).cpu()
    assert found.isfinite().all()

    first, last = at - left, at - offset
    bars = torch.arange(T + M)
    seen = (bars <= bars[:, None]) & (bars >= first)
    for s in range(S):
        rows = torch.cat((torch.arange(T), T + s * M + torch.arange(M)))
        expected = F.scaled_dot_product_attention(*heads[..., rows, :], attn_mask=seen)
        of_path = found[:, rows].unflatten(-1, (H, K)).transpose(1, 2)
        asked = slice(first, last + 1)
        close = {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(of_path[:, :, asked], expected[:, :, asked], **close)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@torch.inference_mode()
def test_spoilt_weights_are_named(predictor, step, value):
    (s1, s2), tokens, stamps, _ = tokens_of(1, 2)
    with predictor.folded(torch.float32), packed(predictor, torch.float32, 0):
        recorded = RecordedRereads(
            *(Rereader(predictor, s1, s2, stamps, 2, N), *tokens, N - 3),
            dtype=torch.float32,
            draw=lambda logits, given: logits.nan_to_num().argmax(dim=-1),
            temperature=None,
        )
        predictor.s2_head.weight[3] = value
        with pytest.raises(ValueError, match="spoilt"):
            recorded.write()


# On a GPU, which makes each step of a stretch twice at most: as the second stretch begins, and as
# its step is recorded.
@pytest.mark.parametrize("after", [0, *(pytest.param(n, marks=by_triton) for n in (2, 3))])
def test_where_triton_fails_the_networks_layers_read(predictor, after, monkeypatch, caplog):
    kernels = SimpleNamespace()
    if after > 0:
        gpu_kernels = pytest.importorskip("darts_kronos.nn.gpu_kernels")
        kernels = SimpleNamespace(**vars(gpu_kernels))
    calls = []

    def refuse(*args):
        calls.append(1)
        if len(calls) > after:
            raise OutOfResources("shared memory")
        return gpu_kernels.embed(*args)

    kernels.embed = refuse
    monkeypatch.setattr(recorded_rereading, "bars_of_stretch", lambda *_: 5)
    (s1, s2), tokens, stamps, given = tokens_of(2, 3)
    monkeypatch.setattr(recorded_rereading, "stratified", lambda *_: given)
    draw = Sampling().draw
    with (
        torch.inference_mode(),
        predictor.folded(torch.float32),
        packed(predictor, torch.float32, 0),
    ):
        readers = (Rereader(predictor, s1, s2, stamps, 3, N) for _ in range(2))
        expected = read_bar_by_bar(next(readers), tokens, 5, draw, given)
        monkeypatch.setattr(fused_step, "gpu_kernels", lambda: kernels)
        recorded = RecordedRereads(
            *(next(readers), *tokens, 5), dtype=torch.float32, draw=draw, temperature=1.0
        )
        assert isinstance(recorded.step, FusedReread)
        assert torch.equal(recorded.write(), expected)
    assert caplog.text.count("shared memory") == 1


def test_of_more_rows_a_recording_serves_fewer_bars(predictor, monkeypatch):
    monkeypatch.setattr(recorded_rereading, "MULTIPLICATIONS", 10**8)
    bars = [bars_of_stretch(predictor, rows) for rows in (1, 10, 30, 10**6)]
    assert bars == sorted(bars, reverse=True) and len(set(bars)) == 4
    assert bars[-1] < graphs.FEWEST_STEPS


@pytest.mark.parametrize("paths", [1, 4])
def test_generation_draws_by_them(paths, monkeypatch):
    def draw():
        return generate(
            reference.tokenizers(0)[1].to(DEVICE),
            reference.predictors(0)[1].to(DEVICE),
            reference.random_bars(2, 20, 1).to(DEVICE),
            reference.random_stamps(2, 60, 1).to(DEVICE),
            n=40,
            num_samples=paths,
            max_context=24,
            sampling=Sampling(temperature=1e-6),
        )

    asked = []
    window = generation._Window
    monkeypatch.setattr(window, "_records", lambda _, bars: False)
    expected = draw()
    monkeypatch.setattr(window, "_records", lambda _, bars: asked.append(bars) or True)
    torch.testing.assert_close(draw(), expected, rtol=1e-3, atol=1e-4)
    assert asked[-1] == 35


@pytest.mark.skipif(DEVICE.type == "cuda", reason="needs a machine without a GPU")
def test_on_a_cpu_each_step_is_read_by_itself(monkeypatch):
    monkeypatch.setattr(generation.RecordedRereads, "write", None)
    bars = reference.random_bars(1, 8, 1)
    networks = reference.tokenizers(0)[1], reference.predictors(0)[1]
    paths = generate(*networks, bars, None, n=6, max_context=8, sampling=Sampling())
    assert paths.shape == (1, 1, 6, 6)
