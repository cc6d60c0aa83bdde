"""The kernels that generation and training spend their time in, by pytest-benchmark.

    python -m pytest benchmarks/speed_kernels.py

Shapes are those of "mini": width 256, 4 heads, codebooks of 1,024 entries.
"""

from __future__ import annotations

import pytest
import torch

from darts_kronos.generation import Sampling, generate
from darts_kronos.nn import rows
from darts_kronos.nn.config import SIZES
from darts_kronos.nn.kernels import Linear, packed
from darts_kronos.nn.layers import LayerCache
from darts_kronos.nn.predictor import KronosPredictor
from darts_kronos.nn.tokenizer import KronosTokenizer

MINI = SIZES["mini"]
WIDTH, HEADS, HEAD_WIDTH, ENTRIES = 256, 4, 64, 1024
ROWS = [1, 10, 80]


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
