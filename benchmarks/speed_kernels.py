"""The kernels that generation and training spend their time in, by pytest-benchmark.

    python -m pytest benchmarks/speed_kernels.py

Shapes are those of "mini": width 256, 4 heads, codebooks of 1,024 entries; in training those of
four windows of 561 bars, which go through the layers together. One thread. For training alone, and
with the least time, in which what else a machine does counts less:

    python -m pytest benchmarks/speed_kernels.py -k training --benchmark-columns=min,median
"""

from __future__ import annotations

import pytest
import torch

from darts_kronos.generation import Sampling, generate
from darts_kronos.nn import attention, kernels, rows, tiled_linear
from darts_kronos.nn.attention import self_attention
from darts_kronos.nn.config import SIZES
from darts_kronos.nn.kernels import Dropout, Linear, RMSNorm, gated, packed
from darts_kronos.nn.layers import NORM_EPS, LayerCache
from darts_kronos.nn.predictor import KronosPredictor
from darts_kronos.nn.rotary import rotary_table
from darts_kronos.nn.tokenizer import KronosTokenizer

MINI = SIZES["mini"]
WIDTH, HEADS, HEAD_WIDTH, ENTRIES = 256, 4, 64, 1024
ROWS = [1, 10, 80]
WINDOWS, BARS = 4, 561


@pytest.fixture(autouse=True)
def one_thread():
    """Measure one thread, without gradients."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("n_rows", ROWS)
@pytest.mark.parametrize("kind", ["torch", "onednn", "packed", "packed bf16"])
def test_linear(benchmark, kind, n_rows):
    """A projection of queries, keys and values."""
    layer, x = Linear(WIDTH, 3 * WIDTH), torch.randn(n_rows, WIDTH)
    if kind == "torch":
        benchmark(torch.nn.functional.linear, x, layer.weight, layer.bias)
    elif kind == "onednn":
        benchmark(layer, x)
    else:
        with packed(layer, torch.bfloat16 if "bf16" in kind else torch.float32, n_rows):
            benchmark(layer, x)


@pytest.mark.parametrize(("windows", "paths"), [(1, 1), (1, 10), (8, 10)])
def test_shared_attention(benchmark, windows, paths):
    """One new bar of each path, after 400 bars of context and 56 of its own."""
    prefix = tuple(torch.randn(windows, HEADS, 400, HEAD_WIDTH) for _ in range(2))
    cache = LayerCache(prefix=prefix)
    own = torch.randn(2, windows, HEADS, paths, 56, HEAD_WIDTH)
    cache.append(*own, capacity=112)
    queries = torch.randn(windows, HEADS, paths, 1, HEAD_WIDTH)
    benchmark(cache.attend, queries)


@pytest.mark.parametrize("paths", [1, 10])
@pytest.mark.parametrize("kind", ["torch", "compiled"])
def test_paths(benchmark, kind, paths, monkeypatch):
    """Paths of 480 bars after a context of 32: next to all of it is the paths' own steps."""
    tokenizer, predictor = KronosTokenizer(MINI.tokenizer), KronosPredictor(MINI.predictor)
    context, stamps = torch.randn(1, 32, 6), torch.ones(1, 512, 5, dtype=torch.long)
    if kind == "torch":
        monkeypatch.setattr(rows, "row_kernels", lambda: None)
    benchmark(
        generate,
        *(tokenizer, predictor, context, stamps),
        n=480,
        num_samples=paths,
        max_context=512,
        sampling=Sampling(),
    )


@pytest.mark.parametrize("n_rows", ROWS)
@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(top_k=50), Sampling(top_p=0.9), Sampling(top_k=1)],
    ids=["all", "top_k", "top_p", "greedy"],
)
def test_drawing_a_token(benchmark, sampling, n_rows):
    """A token of each row, from logits as peaked as trained ones."""
    benchmark(sampling.draw, 4 * torch.randn(n_rows, ENTRIES))


@pytest.fixture
def without(monkeypatch):
    """Leave what kernels do to torch, or to oneDNN, if the case says so."""

    def leave(kind):
        if kind in ("torch", "onednn"):
            monkeypatch.setattr(attention, "attention_kernels", lambda: None)
            monkeypatch.setattr(kernels, "layer_kernels", lambda: None)
            monkeypatch.setattr(tiled_linear, "PROCESSORS", frozenset())
        if kind == "torch":
            monkeypatch.setattr(kernels, "_HAS_ONEDNN", False)

    return leave


def with_gradients(benchmark, function, *shape):
    """Measure a function of one input, and its gradients."""
    with torch.inference_mode(False):
        x = torch.randn(*shape).requires_grad_()
        gradient = torch.randn_like(function(x))
        benchmark(lambda: function(x).backward(gradient))


@pytest.mark.parametrize("gradients", [False, True], ids=["forward", "gradients"])
@pytest.mark.parametrize("kind", ["torch", "kernels"])
def test_training_attention(benchmark, without, kind, gradients):
    """Attention of whole windows, with rotation."""
    without(kind)
    with torch.inference_mode(False):
        rotary = rotary_table(BARS, HEAD_WIDTH, torch.device("cpu"))
    shape = WINDOWS, BARS, 3, HEADS, HEAD_WIDTH
    if gradients:
        with_gradients(benchmark, lambda heads: self_attention(heads, rotary), *shape)
    else:
        benchmark(self_attention, torch.randn(*shape), rotary)


@pytest.mark.parametrize("kind", ["torch", "onednn", "tiles"])
def test_training_linear(benchmark, without, kind):
    """A projection of queries, keys and values, with all gradients; tiles where they are used."""
    without(kind)
    with torch.inference_mode(False):
        layer = Linear(WIDTH, 3 * WIDTH)
    with_gradients(benchmark, layer, WINDOWS * BARS, WIDTH)


@pytest.mark.parametrize("kind", ["torch", "kernels"])
@pytest.mark.parametrize("what", ["norm", "gate", "dropout"])
def test_training_between_products(benchmark, without, what, kind):
    """A layer of one pass over memory, with its gradients."""
    without(kind)
    with torch.inference_mode(False):
        layers = {"norm": RMSNorm(WIDTH, eps=NORM_EPS), "gate": gated, "dropout": Dropout(0.1)}
    width = 2 * MINI.predictor.ff_dim if what == "gate" else WIDTH
    with_gradients(benchmark, layers[what], WINDOWS * BARS, width)


@pytest.mark.parametrize("kind", ["onednn", "kernels"])
@pytest.mark.parametrize("what", ["tokenizer", "predictor"])
def test_training_nano(benchmark, without, what, kind):
    """Loss and gradients of a batch of "nano", 32 windows of 76 bars."""
    without(kind)
    sizes = SIZES["nano"]
    with torch.inference_mode(False):
        tokenizer = KronosTokenizer(sizes.tokenizer)
        predictor = KronosPredictor(sizes.predictor)
        tokens = torch.randint(2**sizes.predictor.s1_bits, (2, 32, 76))
        bars = torch.randn(32, 76, 6)
        losses = {
            "tokenizer": lambda: tokenizer(bars).loss.backward(),
            "predictor": lambda: predictor.loss(*tokens, None).loss.backward(),
        }
        benchmark(losses[what])
