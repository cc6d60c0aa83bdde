"""A step of paths on a GPU by kernels of its own between the products.

Shapes by letter: B windows, S sample paths of a window, R = B * S rows, n new bars, D width of the
model, K width of a head, V1 entries of the coarse codebook.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_kronos.nn.kernels import Linear, gated
from darts_kronos.nn.layers import NORM_EPS, Cache

if TYPE_CHECKING:
    from darts_kronos.nn.predictor import KronosPredictor

Layer = tuple[Tensor, Any]
"""Weights of a linear layer, and its bias or None."""

Draw = Callable[[Tensor, Tensor], Tensor]
"""Tokens (...) by logits (..., V) and numbers in [0, 1), (..., 1)."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a step is told, and works on.

    Attributes
    ----------
    predictor, cache, stamps, most, dtype, draw, temperature
        As ``RecordedPaths`` takes them.
    tokens
        Shape (2, B, S, n): read and written, as -1 where logits are no finite numbers.
    given
        Numbers in [0, 1) that draw them, (n, 2, R).
    at
        Number of the newest bar, (1,), which grows by one.
    """

    predictor: KronosPredictor
    cache: Cache
    stamps: Tensor | None
    most: int
    dtype: torch.dtype
    draw: Draw
    temperature: float | None
    tokens: Tensor
    given: Tensor
    at: Tensor


class FusedStep:
    """A step that a GPU can record, for networks of plain layers.

    Parameters
    ----------
    kernels
        The module of the kernels.
    work
        What is worked on; the predictor's layers have no adapters.

    Attributes
    ----------
    stretches
        Bars after which it would have to be recorded again: all that are read.
    """

    def __init__(self, kernels: ModuleType, work: Work):
        predictor, cache, stamps, dtype = work.predictor, work.cache, work.stamps, work.dtype
        self.kernels, self.dtype = kernels, dtype
        self.tokens, self.given, self.at = work.tokens, work.given, work.at
        self.draw, self.temperature = work.draw, work.temperature
        _, B, S, n = self.tokens.shape
        self.stretches = [n - 1]
        tables, queries = predictor.tokens.folded, predictor.queries
        assert tables is not None and queries is not None
        self.tables, self.queries = tables, queries
        self.times = None if stamps is None else predictor.times(stamps)
        self.attentions = []
        for i, layer in enumerate(cache.layers):
            window = layer.prefix[0].to(dtype), layer.prefix[1].to(dtype)
            _, H, _, K = window[0].shape
            own = window[0].new_empty(B, H, S, n - 1, K), window[0].new_empty(B, H, S, n - 1, K)
            rotary = cache.rotary if i < len(cache.layers) - 1 else None
            self.attentions.append(kernels.Attention(window, own, rotary, self.at, work.most))
        s2, blocks = predictor.s2_conditioning, list(predictor.transformer.iterate())
        self.blocks = [
            tuple(
                self._weights(layer)
                for layer in (block.attn.qkv, block.attn.out, block.ffn.gate_value, block.ffn.down)
            )
            for block in blocks
        ]
        of_attention = [(block.attn_norm.weight, NORM_EPS) for block in blocks]
        self.ffn_norms = [(block.ffn_norm.weight, NORM_EPS) for block in blocks]
        # Before each block, and after the last.
        self.norms = [*of_attention, (predictor.norm.weight, NORM_EPS)]
        # Keys and values for the fine token, and the coarse one's logits, are one product.
        both = self._weights(s2.key_value), self._weights(predictor.s1_head)
        self.of_hidden = torch.cat([one[0] for one in both]), torch.cat([one[1] for one in both])
        self.s2_out, self.s2_norm = self._weights(s2.out), (s2.norm.weight, NORM_EPS)
        self.s2_head = self._weights(predictor.s2_head)

    def _weights(self, layer: torch.nn.Module) -> Layer:
        assert isinstance(layer, Linear)
        if layer.packed is not None:
            return layer.packed.plain, layer.packed.bias
        bias = None if layer.bias is None else layer.bias.detach().to(self.dtype)
        return layer.weight.detach().to(self.dtype), bias

    def look_at(self, bars: int) -> None:
        """Look at so many own bars of a path: the kernels see how many there are."""

    def __call__(self) -> None:
        """Read the newest bar of each path, and write the next."""
        kernels, D = self.kernels, self.tables[0].shape[1]
        x, row = kernels.embed(
            self.tokens, self.tables, self.times, self.at, self.norms[0], self.dtype
        )
        read = self._read_row if len(x) == 1 else self._read_rows
        row = read(x, row)
        keys, values, logits = F.linear(row, *self.of_hidden).tensor_split((D, 2 * D), dim=-1)
        queries = F.embedding(self._drawn(logits, 0), self.queries)
        found = self.attentions[-1](queries, keys, values)
        row = kernels.add_and_norm(x, F.linear(found, *self.s2_out), self.s2_norm)
        self._drawn(F.linear(row, *self.s2_head), 1)
        self.at += 1

    def _read_rows(self, x: Tensor, row: Tensor) -> Tensor:
        """Hidden states, of `dtype`, and in `x`, by all blocks; `row` is what `x` is normed to."""
        kernels, D, last = self.kernels, x.shape[1], len(self.blocks) - 1
        for i, (qkv, out, gate_value, down) in enumerate(self.blocks):
            found = self.attentions[i](*F.linear(row, *qkv).split(D, dim=-1))
            row = kernels.add_and_norm(x, F.linear(found, *out), self.ffn_norms[i])
            found = F.linear(gated(F.linear(row, *gate_value)), *down)
            row = kernels.add_and_norm(x, found, self.norms[i + 1], keeps_normed=i == last)
        return row

    def _read_row(self, x: Tensor, row: Tensor) -> Tensor:
        """The same of a single row: norms, gates and sums are made where the products are."""
        multiply, D, last = self.kernels.multiply, x.shape[1], len(self.blocks) - 1
        for i, (qkv, out, gate_value, down) in enumerate(self.blocks):
            heads = multiply(x, qkv, self.norms[i])
            multiply(self.attentions[i](*heads.split(D, dim=-1)), out, to=x)
            between = multiply(x, gate_value, self.ffn_norms[i], gates=True)
            if i < last:
                multiply(between, down, to=x)
        return self.kernels.add_and_norm(x, multiply(between, down), self.norms[-1], True)

    def _drawn(self, logits: Tensor, which: int) -> Tensor:
        """The next bar's coarse or fine tokens, (R,), which are written."""
        kernels = self.kernels
        if self.temperature is not None and logits.shape[1] <= kernels.LARGEST_DRAWN:
            given = self.temperature, self.given, self.at, self.tokens, which
            drawn: Tensor = kernels.draw(logits, *given)
            return drawn
        following = self.at + 1
        drawn = self.draw(logits, self.given.index_select(0, following)[0, which].unsqueeze(-1))
        own = self.tokens[which]
        own.index_copy_(2, following, marked(drawn, logits).view(*own.shape[:2], 1))
        return drawn


def marked(tokens: Tensor, logits: Tensor) -> Tensor:
    """Tokens (...), or -1 where logits, (..., V), from which they were drawn are no numbers."""
    return torch.where(logits.isfinite().all(dim=-1), tokens, -1)
