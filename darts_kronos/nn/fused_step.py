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

from darts_kronos.nn.kernel_modules import OF_GPU, gpu_kernels
from darts_kronos.nn.kernels import Linear, gated
from darts_kronos.nn.layers import NORM_EPS, Cache
from darts_kronos.nn.rows import SPOILT

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
    predictor
        The network, folded and packed, without gradients.
    dtype
        Data type of the products, in which keys and values are kept.
    draw
        Draws tokens.
    temperature
        What it divides logits by, if it does nothing else; else None.
    tokens
        Shape (2, B, S, n): read and written, as -1 where logits are no finite numbers.
    given
        Numbers in [0, 1) that draw them, (n, 2, R).
    at
        Number of the newest bar, (1,), which grows by one.
    """

    predictor: KronosPredictor
    dtype: torch.dtype
    draw: Draw
    temperature: float | None
    tokens: Tensor
    given: Tensor
    at: Tensor

    def write_drawn(self, s1_logits: Tensor, s2_logits: Callable[[Tensor], Tensor]) -> None:
        """Draw and write both tokens of the bars of number `at`.

        Parameters
        ----------
        s1_logits
            Logits of coarse tokens, (B, S, V1).
        s2_logits
            Makes those of fine tokens, (B, S, V2), of coarse ones, (B, S).
        """
        given = self.given.index_select(0, self.at)[0].view(2, *s1_logits.shape[:2], 1)
        s1 = self.draw(s1_logits, given[0])
        logits = s2_logits(s1)
        s2 = self.draw(logits, given[1])
        drawn = torch.stack((marked(s1, s1_logits), marked(s2, logits)))
        self.tokens.index_copy_(3, self.at, drawn.unsqueeze(3))

    def written(self) -> Tensor:
        """The tokens, now that all are written.

        This waits for the graphs: what they work on must not be given away before.

        Raises
        ------
        ValueError
            If logits were NaN or infinite.
        """
        if bool((self.tokens < 0).any()):
            raise ValueError(SPOILT)
        return self.tokens

    def kernels(self) -> ModuleType | None:
        """Triton's kernels, if there are any for the network's layers."""
        predictor = self.predictor
        plain = predictor.is_plain and predictor.s1_head.weight.dtype == torch.float32
        return gpu_kernels() if plain and self.dtype in OF_GPU else None


class FusedLayers:
    """The network's layers by a GPU's kernels, for networks without adapters.

    Parameters
    ----------
    kernels
        The module of the kernels.
    work
        What is worked on.
    stamps
        Calendar stamps of the bars that are read, (B, n - 1, 5), or None.
    """

    def __init__(self, kernels: ModuleType, work: Work, stamps: Tensor | None):
        predictor = work.predictor
        self.kernels, self.work = kernels, work
        tables = predictor.tokens.folded
        assert tables is not None
        self.tables = tables
        self.times = None if stamps is None else predictor.times(stamps)
        blocks = list(predictor.transformer.iterate())
        self.blocks = [
            tuple(
                self.weights(layer)
                for layer in (block.attn.qkv, block.attn.out, block.ffn.gate_value, block.ffn.down)
            )
            for block in blocks
        ]
        of_attention = [(block.attn_norm.weight, NORM_EPS) for block in blocks]
        self.ffn_norms = [(block.ffn_norm.weight, NORM_EPS) for block in blocks]
        # Before each block, and after the last.
        self.norms = [*of_attention, (predictor.norm.weight, NORM_EPS)]

    def weights(self, layer: torch.nn.Module) -> Layer:
        """Weights and bias of a layer, in the data type of the products."""
        assert isinstance(layer, Linear)
        if layer.packed is not None:
            return layer.packed.plain, layer.packed.bias
        dtype = self.work.dtype
        bias = None if layer.bias is None else layer.bias.detach().to(dtype)
        return layer.weight.detach().to(dtype), bias

    def embed(self) -> tuple[Tensor, Tensor]:
        """The newest bars, (R, D), and the same normed for the first layer."""
        work = self.work
        given = work.tokens, self.tables, self.times, work.at, self.norms[0], work.dtype
        found: tuple[Tensor, Tensor] = self.kernels.embed(*given)
        return found

    def finish(self, i: int, x: Tensor, attended: Tensor) -> Tensor:
        """Rows of block `i`, any N, for which attention found (N, D), are left in `x`, (N, D).

        Returns them normed for the next block; `x` is so, too, after the last.
        """
        kernels, (_, out, gate_value, down) = self.kernels, self.blocks[i]
        row = kernels.add_and_norm(x, F.linear(attended, *out), self.ffn_norms[i])
        found = F.linear(gated(F.linear(row, *gate_value)), *down)
        is_last = i == len(self.blocks) - 1
        normed: Tensor = kernels.add_and_norm(x, found, self.norms[i + 1], keeps_normed=is_last)
        return normed

    def drawn(self, logits: Tensor, which: int) -> Tensor:
        """The next bar's coarse or fine tokens, (R,), which are written."""
        kernels, work = self.kernels, self.work
        if work.temperature is not None and logits.shape[1] <= kernels.LARGEST_DRAWN:
            given = work.temperature, work.given, work.at, work.tokens, which
            drawn: Tensor = kernels.draw(logits, *given)
            return drawn
        following = work.at + 1
        drawn = work.draw(logits, work.given.index_select(0, following)[0, which].unsqueeze(-1))
        own = work.tokens[which]
        own.index_copy_(2, following, marked(drawn, logits).view(*own.shape[:2], 1))
        return drawn


class FusedStep(FusedLayers):
    """A step that a GPU can record.

    Parameters
    ----------
    kernels, work, stamps
        As ``FusedLayers`` takes them.
    cache
        The windows.
    most
        Bars that a bar sees at most, itself included.

    Attributes
    ----------
    stretches
        Bars after which it would have to be recorded again: all that are read.
    """

    def __init__(
        self, kernels: ModuleType, work: Work, stamps: Tensor | None, cache: Cache, most: int
    ):
        super().__init__(kernels, work, stamps)
        predictor, dtype, at = work.predictor, work.dtype, work.at
        _, B, S, n = work.tokens.shape
        self.stretches = [n - 1]
        assert predictor.queries is not None
        self.queries = predictor.queries
        self.attentions = []
        for i, layer in enumerate(cache.layers):
            window = layer.prefix[0].to(dtype), layer.prefix[1].to(dtype)
            _, H, _, K = window[0].shape
            own = window[0].new_empty(B, H, S, n - 1, K), window[0].new_empty(B, H, S, n - 1, K)
            rotary = cache.rotary if i < len(cache.layers) - 1 else None
            self.attentions.append(kernels.Attention(window, own, rotary, at, most))
        s2 = predictor.s2_conditioning
        # Keys and values for the fine token, and the coarse one's logits, are one product.
        both = self.weights(s2.key_value), self.weights(predictor.s1_head)
        self.of_hidden = torch.cat([one[0] for one in both]), torch.cat([one[1] for one in both])
        self.s2_out, self.s2_norm = self.weights(s2.out), (s2.norm.weight, NORM_EPS)
        self.s2_head = self.weights(predictor.s2_head)

    def look_at(self, bars: int) -> None:
        """Look at so many own bars of a path: the kernels see how many there are."""

    def __call__(self) -> None:
        """Read the newest bar of each path, and write the next."""
        kernels, D = self.kernels, self.tables[0].shape[1]
        x, row = self.embed()
        row = self._read_row(x) if len(x) == 1 else self._read_rows(x, row)
        keys, values, logits = F.linear(row, *self.of_hidden).tensor_split((D, 2 * D), dim=-1)
        queries = F.embedding(self.drawn(logits, 0), self.queries)
        found = self.attentions[-1](queries, keys, values)
        row = kernels.add_and_norm(x, F.linear(found, *self.s2_out), self.s2_norm)
        self.drawn(F.linear(row, *self.s2_head), 1)
        self.work.at.add_(1)

    def _read_rows(self, x: Tensor, row: Tensor) -> Tensor:
        """Hidden states, of `dtype`, and in `x`, by all blocks; `row` is what `x` is normed to."""
        for i, (qkv, *_) in enumerate(self.blocks):
            heads = F.linear(row, *qkv).split(x.shape[1], dim=-1)
            row = self.finish(i, x, self.attentions[i](*heads))
        return row

    def _read_row(self, x: Tensor) -> Tensor:
        """The same of a single row: norms, gates and sums are made where the products are."""
        multiply, D, last = self.kernels.multiply, x.shape[1], len(self.blocks) - 1
        for i, (qkv, out, gate_value, down) in enumerate(self.blocks):
            heads = multiply(x, qkv, self.norms[i])
            multiply(self.attentions[i](*heads.split(D, dim=-1)), out, to=x)
            between = multiply(x, gate_value, self.ffn_norms[i], gates=True)
            if i < last:
                multiply(between, down, to=x)
        normed: Tensor = self.kernels.add_and_norm(x, multiply(between, down), self.norms[-1], True)
        return normed


def marked(tokens: Tensor, logits: Tensor) -> Tensor:
    """Tokens (...), or -1 where logits, (..., V), from which they were drawn are no numbers."""
    return torch.where(logits.isfinite().all(dim=-1), tokens, -1)
