"""The predictor: a decoder-only transformer that writes the next bar's two tokens.

Shapes by letter: B windows, S sample paths, T bars, M new bars, D width, H heads, K width of a
head, V1 and V2 entries of the coarse and of the fine codebook.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_kronos.nn.attention import causal_attention
from darts_kronos.nn.config import CROSS_ATTENTION_HEADS, PredictorConfig
from darts_kronos.nn.kernels import Dropout, Linear, RMSNorm, are_plain
from darts_kronos.nn.layers import (
    NORM_EPS,
    Block,
    Cache,
    CausalStack,
    KeysValues,
    LayerCache,
    contiguous,
    windows_at_once,
)
from darts_kronos.nn.quantizer import weighted_mean
from darts_kronos.nn.rows import RowPredictor

STAMP_SIZES = {"minute": 60, "hour": 24, "weekday": 7, "day": 32, "month": 13}
"""Fields of a bar's calendar stamp, in order, with the entries of their tables."""

S2_QUERY_GAIN = 2.0
"""Standard deviation of the logits with which a new s2 attention looks at the bars."""


class PredictorLoss(NamedTuple):
    """The predictor's loss and its parts, scalars in nats: ``loss = (s1_loss + s2_loss) / 2``."""

    loss: Tensor
    s1_loss: Tensor
    s2_loss: Tensor


class TokenEmbedding(nn.Module):
    """A bar's two tokens as one vector."""

    def __init__(self, config: PredictorConfig):
        super().__init__()
        self.s1 = nn.Embedding(2**config.s1_bits, config.d_model)
        self.s2 = nn.Embedding(2**config.s2_bits, config.d_model)
        self.fusion = Linear(2 * config.d_model, config.d_model)
        self.scale = config.d_model**0.5
        # Both tables taken through the fusion, while weights do not change.
        self.folded: tuple[Tensor, Tensor] | None = None

    def fold(self) -> tuple[Tensor, Tensor]:
        """Both tables taken through the fusion, (V1, D) and (V2, D): rows to add."""
        first, second = self.s1.weight * self.scale, self.s2.weight * self.scale
        bias = self.fusion(torch.zeros_like(torch.cat((first[:1], second[:1]), dim=-1)))
        return (
            self.fusion(torch.cat((first, torch.zeros_like(first)), dim=-1)),
            self.fusion(torch.cat((torch.zeros_like(second), second), dim=-1)) - bias,
        )

    def forward(self, s1: Tensor, s2: Tensor) -> Tensor:
        """Vectors (..., D) of tokens (...)."""
        folded = self.folded
        if folded is not None:
            return F.embedding(s1, folded[0]) + F.embedding(s2, folded[1])
        return self.fusion(torch.cat((self.s1(s1), self.s2(s2)), dim=-1) * self.scale)


class CalendarEmbedding(nn.Module):
    """The sum of one learned or stored vector for each field of a bar's stamp."""

    def __init__(self, config: PredictorConfig):
        super().__init__()
        self.tables = nn.ModuleDict(
            {name: nn.Embedding(size, config.d_model) for name, size in STAMP_SIZES.items()}
        )
        if not config.learn_time_embedding:
            self.requires_grad_(False)
        # All tables as one, and where each starts in it, while weights do not change.
        self.folded: tuple[Tensor, Tensor] | None = None

    def fold(self) -> tuple[Tensor, Tensor]:
        """All tables as one, (E, D), and where each starts in it, (5,)."""
        joined = torch.cat(list(self.tables.parameters()))
        sizes = torch.tensor([0, *STAMP_SIZES.values()], device=joined.device)
        return joined, sizes.cumsum(dim=0)[:-1]

    def forward(self, stamps: Tensor) -> Tensor:
        """Vectors (..., D) of stamps (..., 5), integers in the order of ``STAMP_SIZES``."""
        folded = self.folded
        if folded is not None:
            table, starts = folded
            return F.embedding(stamps + starts, table).sum(dim=-2)
        parts = [table(stamps[..., i]) for i, table in enumerate(self.tables.values())]
        return torch.stack(parts).sum(dim=0)


class S2Conditioning(nn.Module):
    """Hidden states told which coarse token was chosen: attention from it to all bars so far.

    The query is the next bar's coarse token; neither it nor the keys are rotated. Training is
    causal, so each position computes what generation computes there.
    """

    def __init__(self, d_model: int):
        super().__init__()
        self.query = Linear(d_model, d_model)
        self.key_value = Linear(d_model, 2 * d_model)
        self.out = Linear(d_model, d_model)
        self.norm = RMSNorm(d_model, eps=NORM_EPS)

    @staticmethod
    def _heads(x: Tensor) -> Tensor:
        """(..., T, D) as (..., H, T, K)."""
        return x.unflatten(-1, (CROSS_ATTENTION_HEADS, -1)).transpose(-3, -2)

    def keys_values(self, hidden: Tensor) -> KeysValues:
        """Keys and values, each (..., H, T, K), of hidden states (..., T, D)."""
        keys, values = self.key_value(hidden).chunk(2, dim=-1)
        return self._heads(keys), self._heads(values)

    def forward(self, hidden: Tensor, chosen: Tensor) -> Tensor:
        """Conditioned states (B, T, D) of whole windows; `chosen` embeds each next bar's s1."""
        keys, values = self.keys_values(hidden)
        queries = self._heads(self.query(chosen))
        y = causal_attention(queries, keys, values)
        return self.norm(hidden + self.out(y.transpose(-3, -2).flatten(-2)))

    def projections(self) -> tuple[Tensor, Tensor, Tensor]:
        """What makes keys and values of states: matrices, each (H, K, D), and values' bias, (D,).

        As the layer has them, with an adapter or without.
        """
        D = self.query.in_features
        zeros = self.norm.weight.new_zeros(1, D)
        bias = self.key_value(zeros)
        keys, values = (
            one.T.unflatten(0, (CROSS_ATTENTION_HEADS, -1))
            for one in (self.key_value(torch.eye(D).to(zeros)) - bias).chunk(2, dim=-1)
        )
        return keys, values, bias[0, D:]

    def newest(
        self,
        states: tuple[Tensor, Tensor, Tensor],
        queries: Tensor,
        projections: tuple[Tensor, Tensor, Tensor],
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Conditioned states (B, S, D) of each path's newest bar, of states that are not kept.

        For few queries it is less work to take these through the keys' matrix, and what they find
        through the values', than all states through both. The keys' bias changes no weight.

        Parameters
        ----------
        states
            Of the windows, (B, T, D), of the paths' own bars, (B, S, M, D), and of the newest bars,
            which are among them, (B, S, D).
        queries
            Of the chosen s1, (B, S, D).
        projections
            As ``projections`` gives them.
        hidden
            What is added to the scores of bars, (T + M,), or None.
        """
        (window, paths, newest), (of_keys, of_values, bias) = states, projections
        T, scale = window.shape[1], of_keys.shape[1] ** -0.5
        # (B, S, H, D)
        seeking = (self._heads(queries * scale) @ of_keys).transpose(1, 2)
        of_window = (seeking.flatten(1, 2) @ window.mT).view(*seeking.shape[:3], T)
        scores = torch.cat((of_window, seeking @ paths.mT), dim=-1)
        weights = (scores if hidden is None else scores + hidden).softmax(dim=-1)
        means = (weights[..., :T].flatten(1, 2) @ window).view_as(seeking)
        means = (means + weights[..., T:] @ paths).transpose(1, 2)
        y = (means @ of_values.mT).transpose(1, 2).flatten(-2) + bias
        return self.norm(newest + self.out(y))

    def last(self, hidden: Tensor, queries: Tensor, cache: LayerCache) -> Tensor:
        """Conditioned states (B, S, D) of each path's newest bar.

        `hidden` is its state, (B, S, D), which the cache holds already; `queries`, (B, S, D), are
        those of the chosen s1.
        """
        y = cache.attend(self._heads(queries).unsqueeze(-2))
        return self.norm(hidden + self.out(y.squeeze(-2).transpose(1, 2).flatten(-2)))


class KronosPredictor(nn.Module):
    """Tokens to the next bar's tokens (arXiv 2508.02739, section 3.2).

    Parameters
    ----------
    config
        Shape of the network.

    Attributes
    ----------
    compiled
        The weights for the compiled kernels, while these may be asked for paths; None where torch
        is to draw them.
    """

    compiled: RowPredictor | None = None

    def __init__(self, config: PredictorConfig):
        super().__init__()
        self.config = config
        self.tokens = TokenEmbedding(config)
        self.calendar = CalendarEmbedding(config)
        self.token_dropout = Dropout(config.token_dropout)
        self.transformer = CausalStack(
            [
                Block(
                    d_model=config.d_model,
                    n_heads=config.n_heads,
                    ff_dim=config.ff_dim,
                    ffn_dropout=config.ffn_dropout,
                    attn_dropout=config.attn_dropout,
                    resid_dropout=config.resid_dropout,
                )
                for _ in range(config.n_layers)
            ],
            config.d_model // config.n_heads,
        )
        self.norm = RMSNorm(config.d_model, eps=NORM_EPS)
        self.s2_conditioning = S2Conditioning(config.d_model)
        self.s1_head = Linear(config.d_model, 2**config.s1_bits)
        self.s2_head = Linear(config.d_model, 2**config.s2_bits)
        # Of the widest result of a layer.
        self.width = max(self.transformer.width, 2**config.s1_bits, 2**config.s2_bits)
        # The s2 queries of all coarse tokens, while weights do not change.
        self.queries: Tensor | None = None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw initial weights: Xavier normal, zero biases, tables of std D**-0.5, as published.

        But for the query of the s2 attention. Its input, an unscaled table, is so small that the
        published draw attends to all bars alike, and s1 hardly reaches s2; it is drawn larger.
        ``benchmarks/s2_conditioning.py`` measures the difference.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                # Fused projections are drawn part by part: each part is a matrix of its own.
                parts = {"qkv": 3, "gate_value": 2, "key_value": 2}.get(name.rpartition(".")[2], 1)
                for part in module.weight.chunk(parts):
                    nn.init.xavier_normal_(part)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.d_model**-0.5)
        self.s2_conditioning.query.weight.mul_(S2_QUERY_GAIN * self.config.d_model**0.5)

    def embed(self, s1: Tensor, s2: Tensor, stamps: Tensor | None) -> Tensor:
        """Vectors (..., D) of bars, tokens (...) and stamps (..., 5), as the layers take them."""
        x = self.tokens(s1, s2)
        return x if stamps is None else x + self.calendar(stamps)

    def hidden(self, s1: Tensor, s2: Tensor, stamps: Tensor | None) -> Tensor:
        """Hidden states (B, T, D) of whole windows of tokens (B, T) and stamps (B, T, 5)."""
        return self.norm(self.transformer(self.token_dropout(self.embed(s1, s2, stamps))))

    def forward(
        self, s1: Tensor, s2: Tensor, stamps: Tensor | None, next_s1: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits of each next bar's tokens.

        Parameters
        ----------
        s1, s2
            Tokens of the bars, each (B, T).
        stamps
            Calendar stamps of the bars, integers (B, T, 5), or None.
        next_s1
            The true coarse tokens of the next bars, (B, T).

        Returns
        -------
        tuple of Tensor
            Logits (B, T, V1) of s1 and (B, T, V2) of s2 given the true s1.
        """
        hidden = self.hidden(s1, s2, stamps)
        conditioned = self.s2_conditioning(hidden, self.tokens.s1(next_s1))
        return self.s1_head(hidden), self.s2_head(conditioned)

    def loss(
        self, s1: Tensor, s2: Tensor, stamps: Tensor | None, weights: Tensor | None = None
    ) -> PredictorLoss:
        """The training loss on windows of tokens (B, T): bars 0..T-2 tell bars 1..T-1.

        With `weights` (B, T), each bar's losses are multiplied by its own; those of 0 are left out.
        """
        size = windows_at_once(len(s1), s1.shape[1] * self.width, self.s1_head.weight)
        losses = []
        for first in range(0, max(1, len(s1)), size):
            part = slice(first, first + size)
            times = None if stamps is None else stamps[part]
            losses.append(self._token_losses(s1[part], s2[part], times))
        counts = None if weights is None else weights[:, 1:]
        s1_loss, s2_loss = (
            weighted_mean(torch.cat(parts), counts) for parts in zip(*losses, strict=True)
        )
        return PredictorLoss((s1_loss + s2_loss) / 2, s1_loss, s2_loss)

    def _token_losses(self, s1: Tensor, s2: Tensor, stamps: Tensor | None) -> tuple[Tensor, Tensor]:
        """Cross entropies, each (B, T - 1), of the tokens (B, T) of all bars but the first."""
        known = None if stamps is None else stamps[:, :-1]
        s1_logits, s2_logits = self(s1[:, :-1], s2[:, :-1], known, s1[:, 1:])
        return _cross_entropy(s1_logits, s1[:, 1:]), _cross_entropy(s2_logits, s2[:, 1:])

    def prefill(
        self, s1: Tensor, s2: Tensor, stamps: Tensor | None, capacity: int
    ) -> tuple[Tensor, Cache]:
        """Read whole windows of tokens (B, T), once for all their paths.

        Returns
        -------
        tuple
            The bars' hidden states, (B, T, D), and a cache for `capacity` bars of each path.
        """
        x, cache = self.transformer.prefill(self.embed(s1, s2, stamps), capacity)
        hidden = self.norm(x)
        kept = contiguous(self.s2_conditioning.keys_values(hidden))
        cache.layers.append(LayerCache(prefix=kept))
        return hidden, cache

    def extend(self, s1: Tensor, s2: Tensor, stamps: Tensor | None, cache: Cache) -> Tensor:
        """Read the paths' M new bars, tokens (B, S, M) and stamps (B, M, 5).

        Returns
        -------
        Tensor
            Each path's newest hidden state, (B, S, D).
        """
        spread = None if stamps is None else stamps.unsqueeze(1)
        x = self.transformer.extend(self.embed(s1, s2, spread), cache)
        hidden = self.norm(x)
        keys, values = self.s2_conditioning.keys_values(hidden)
        cache.layers[-1].append(keys.transpose(1, 2), values.transpose(1, 2), cache.capacity)
        return hidden[:, :, -1]

    def s1_logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V1) of the next bar's coarse token, from hidden states (..., D)."""
        return self.s1_head(hidden)

    def s2_logits(self, hidden: Tensor, next_s1: Tensor, cache: Cache) -> Tensor:
        """Logits (B, S, V2) of the next bar's fine token, given its coarse one, (B, S)."""
        queries = self.s2_queries(next_s1)
        return self.s2_head(self.s2_conditioning.last(hidden, queries, cache.layers[-1]))

    def s2_queries(self, next_s1: Tensor) -> Tensor:
        """Queries (B, S, D) of the s2 attention for the next bars' coarse tokens, (B, S)."""
        table = self.queries
        if table is None:
            return self.s2_conditioning.query(self.tokens.s1(next_s1))
        return F.embedding(next_s1, table)

    def times(self, stamps: Tensor) -> Tensor:
        """Rows to add for calendar stamps (B, M, 5), (B, M, D), as the embedding does."""
        # A few at a time: each is looked up in five tables.
        return torch.cat([self.calendar(part) for part in stamps.split(64, dim=1)], dim=1)

    def write(
        self,
        n: int,
        num_samples: int,
        hidden: Tensor,
        stamps: Tensor | None,
        cache: Cache,
        *,
        most: int,
        sampling: tuple[float, int, float],
    ) -> Tensor | None:
        """Draw the next `n` bars of each path by compiled kernels.

        Parameters
        ----------
        n
            Bars to write, of which the last is not read.
        num_samples
            S, paths of each window.
        hidden
            States of the windows' newest bars, (B, 1, D).
        stamps
            Calendar stamps of the bars that are read, (B, n - 1, 5), or None.
        cache
            The windows; it is read only.
        most
            Bars that a bar sees at most, itself included; not less than those of a window.
        sampling
            Temperature, `top_k` and `top_p`; a `top_k` of all tokens, and a `top_p` of 1, leave
            none out.

        Returns
        -------
        Tensor or None
            Coarse and fine tokens of the new bars, (2, B, S, n). None if torch is to draw them:
            while weights are not folded, without numba, on other devices, in other data types than
            float32, and with adapters.

        Raises
        ------
        ValueError
            If the cache has no room for the bars, or logits are NaN or infinite.
        """
        compiled, tokens, queries = self.compiled, self.tokens.folded, self.queries
        if compiled is None or tokens is None or queries is None:
            return None
        times = hidden.new_empty(0, 0, 0)
        if stamps is not None:
            times = self.times(stamps)
        return compiled.write(
            n,
            num_samples,
            hidden[:, 0],
            self.s1_logits(hidden[:, 0]),
            (*tokens, queries, times),
            cache,
            most=most,
            sampling=sampling,
            eps=NORM_EPS,
        )

    def _for_kernels(self) -> RowPredictor | None:
        """The weights for the compiled kernels; None where these are not there or not faster."""
        s2, weights = self.s2_conditioning, []
        for block in self.transformer.iterate():
            attn, ffn = block.attn, block.ffn
            weights += [block.attn_norm.weight, attn.qkv.weight, attn.qkv.bias, attn.out.weight]
            weights += [attn.out.bias, block.ffn_norm.weight]
            weights += [ffn.gate_value.weight, ffn.down.weight]
        weights += [self.norm.weight, s2.key_value.weight, s2.key_value.bias]
        weights += [s2.out.weight, s2.out.bias, s2.norm.weight]
        weights += [self.s1_head.weight, self.s1_head.bias]
        weights += [self.s2_head.weight, self.s2_head.bias]
        return RowPredictor.of(*weights) if self.is_plain else None

    @property
    def is_plain(self) -> bool:
        """Whether all layers that read a bar are as they were made: without adapters."""
        s2 = self.s2_conditioning
        layers = [s2.key_value, s2.out, self.s1_head, self.s2_head]
        for block in self.transformer.iterate():
            attn, ffn = block.attn, block.ffn
            layers += [attn.qkv, attn.out, ffn.gate_value, ffn.down]
        return are_plain(*layers)

    @contextmanager
    def folded(self, dtype: torch.dtype) -> Iterator[None]:
        """Be ready to draw paths for the block, in which weights must not change.

        The token tables are taken through the fusion, the coarse one through the s2 query; the
        calendar's tables become one. If products are to be made in float32, the compiled kernels
        are given the weights where they can take them.
        """
        try:
            self.tokens.folded = self.tokens.fold()
            self.calendar.folded = self.calendar.fold()
            self.queries = self.s2_conditioning.query(self.tokens.s1.weight)
            self.compiled = self._for_kernels() if dtype == torch.float32 else None
            yield
        finally:
            self.tokens.folded = self.calendar.folded = self.queries = self.compiled = None


def _cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """Of each of the tokens (B, T) under its logits (B, T, V)."""
    losses = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
    return losses.view_as(tokens)
