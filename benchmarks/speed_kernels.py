"""The kernels that generation and training spend their time in, by pytest-benchmark.

    python -m pytest benchmarks/speed_kernels.py

Shapes are those of "mini": width 256, 4 heads, codebooks of 1,024 entries.
"""

from __future__ import annotations

import pytest
import torch

from darts_kronos.generation import Sampling
from darts_kronos.nn import rows
from darts_kronos.nn.kernels import Linear, packed
from darts_kronos.nn.layers import Block, CausalStack, LayerCache, attend_shared

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
    benchmark(attend_shared, queries, cache)


@pytest.mark.parametrize("kind", ["torch", "compiled"])
def test_block_of_a_single_path(benchmark, kind, monkeypatch):
    """A new bar of one path through a block, after 400 bars of context and 56 of its own."""
    block = Block(
        d_model=WIDTH,
        n_heads=HEADS,
        ff_dim=2 * WIDTH,
        ffn_dropout=0.0,
        attn_dropout=0.0,
        resid_dropout=0.0,
    )
    stack = CausalStack([block], HEAD_WIDTH).eval()
    _, cache = stack.prefill(torch.randn(1, 400, WIDTH), capacity=112)
    bar = torch.randn(1, 1, 1, WIDTH)
    if kind == "torch":
        monkeypatch.setattr(rows, "row_kernels", lambda: None)
    with packed(stack, torch.float32, rows=1):
        for _ in range(56):
            stack.extend(bar, cache)

        def extend() -> None:
            cache.layers[0].length = 56
            stack.extend(bar, cache)

        benchmark(extend)


@pytest.mark.parametrize("n_rows", ROWS)
@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(top_k=50), Sampling(top_p=0.9), Sampling(top_k=1)],
    ids=["all", "top_k", "top_p", "greedy"],
)
def test_drawing_a_token(benchmark, sampling, n_rows):
    """A token of each row, from logits as peaked as trained ones."""
    benchmark(sampling.draw, 4 * torch.randn(n_rows, ENTRIES))
