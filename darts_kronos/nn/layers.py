"""The layers that tokenizer and predictor share.

Shapes by letter: B windows, S sample paths of a window, T bars of a window, M new bars,
H heads, K width of a head, D width of the model (D = H * K).

Every causal layer works in three ways that give the same numbers:

- ``forward``: a whole window at once, for training;
- ``prefill``: the same, and the keys and values of the window are kept;
- ``extend``: M new bars of each of S paths, on top of a window's kept keys and values, which all
  its paths share, and of each path's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_kronos.nn.attention import causal_attention, path_attention, self_attention
from darts_kronos.nn.kernels import Dropout, Linear, RMSNorm, gated
from darts_kronos.nn.rotary import Rotary, rotary_table, rotate

NORM_EPS = 1e-5

PART_BYTES = 10 * 2**20
"""Bytes that a processor's caches hold of a layer's result while the next layer reads it. Larger
results come from memory, and many that are larger from pages that the system has to hand out anew:
a training step of many windows at once takes a fifth longer."""

SCORES_BYTES = 2**20
"""Bytes of attention's scores of several new bars of each path that are made at once: they stay in
a processor's cache, too."""

KeysValues = tuple[Tensor, Tensor]


def windows_at_once(count: int, numbers: int, like: Tensor) -> int:
    """How many of `count` windows to take through layers together.

    On a CPU so many that the widest result, of so many `numbers` for each window, stays within
    ``PART_BYTES``; elsewhere all. The data type and the device are those of `like`.
    """
    if like.device.type != "cpu":
        return max(1, count)
    n_parts = max(1, -(-count * numbers * like.element_size() // PART_BYTES))
    return max(1, -(-count // n_parts))


@dataclass(slots=True)
class LayerCache:
    """Keys and values of one attention layer.

    Attributes
    ----------
    prefix
        Of the window, shape (B, H, T, K): kept once, whatever the number of paths.
    path_keys, path_values
        Of the paths' own bars, shape (B, H, S, capacity, K); None until the first ``extend``.
        Those of a single path come after a copy of the window, (B, H, 1, T + capacity, K): what
        it attends to lies in one piece.
    length
        Own bars of a path that are filled in.
    dropped
        Oldest bars, of the window and then of the paths, that are not attended to any more.
    """

    prefix: KeysValues
    path_keys: Tensor | None = None
    path_values: Tensor | None = None
    length: int = 0
    dropped: int = 0

    @property
    def window(self) -> KeysValues:
        """Keys and values of the window's bars that are attended to, each (B, H, T, K)."""
        keys, values = self.prefix
        return keys[:, :, self.dropped :], values[:, :, self.dropped :]

    @property
    def own(self) -> KeysValues | None:
        """Keys and values of several paths' own bars, each (B, H, S, L, K), if any."""
        if self.path_keys is None or self.path_values is None:
            return None
        first = max(0, self.dropped - self.prefix[0].shape[2])
        seen = slice(first, self.length)
        return self.path_keys[:, :, :, seen], self.path_values[:, :, :, seen]

    @property
    def joined(self) -> KeysValues:
        """Keys and values of the window and of a single path, with room for its bars to come.

        Each (B, H, T + capacity, K), or (B, H, T, K) before the first ``extend``; of these,
        ``seen`` are attended to.
        """
        if self.path_keys is None or self.path_values is None:
            return self.prefix
        return self.path_keys[:, :, 0], self.path_values[:, :, 0]

    @property
    def seen(self) -> slice:
        """The bars of ``joined`` that are attended to."""
        return slice(self.dropped, self.prefix[0].shape[2] + self.length)

    def append(self, keys: Tensor, values: Tensor, capacity: int) -> None:
        """Add the keys and values, (B, H, S, M, K), of M new bars of each path.

        The first to come makes room for `capacity` bars of each.
        """
        B, H, S, M, K = keys.shape
        before = self.prefix[0].shape[2] if S == 1 else 0
        if self.path_keys is None or self.path_values is None:
            self.path_keys = self.prefix[0].new_empty(B, H, S, before + capacity, K)
            self.path_values = torch.empty_like(self.path_keys)
            if S == 1:
                self.path_keys[:, :, 0, :before] = self.prefix[0]
                self.path_values[:, :, 0, :before] = self.prefix[1]
        start = before + self.length
        self.path_keys[:, :, :, start : start + M] = keys
        self.path_values[:, :, :, start : start + M] = values
        self.length += M

    @torch.no_grad()
    def attend(self, queries: Tensor) -> Tensor:
        """Attention of M new bars of each path over the shared window and the path's own bars.

        The S paths of a window are rows of one product with the window's keys, so that these are
        read once and never copied.

        Parameters
        ----------
        queries
            Shape (B, H, S, M, K), for the M newest of the path's own bars, which are kept already;
            with M = 1 the path may have none yet.

        Returns
        -------
        Tensor
            Shape (B, H, S, M, K).
        """
        if queries.shape[2] == 1:
            return _attend_joined(queries.squeeze(2), self).unsqueeze(2)
        return attend_paths(queries, self.window, self.own)

    def restart(self) -> LayerCache:
        """A cache with the same prefix and no bars of the paths."""
        return LayerCache(prefix=self.prefix)


@dataclass(slots=True)
class Cache:
    """The caches of a stack of layers, in order.

    Attributes
    ----------
    prefix_length
        T, the bars of the window.
    capacity
        Own bars that a path can hold.
    rotary
        Table for every position, window and paths, each of shape (T + capacity, K).
    layers
        One cache per attention layer.
    """

    prefix_length: int
    capacity: int
    rotary: Rotary
    layers: list[LayerCache] = field(default_factory=list)

    @property
    def path_length(self) -> int:
        """Own bars of a path that are filled in."""
        return self.layers[0].length

    def restart(self) -> Cache:
        """The same window with no bars of the paths: for its next chunk of paths."""
        return replace(self, layers=[layer.restart() for layer in self.layers])

    def turns(self, count: int) -> Rotary:
        """Rotations, each (count, K), of so many bars that are about to be added."""
        start = self.prefix_length + self.path_length
        return self.rotary[0][start : start + count], self.rotary[1][start : start + count]

    def keep(self, most: int) -> None:
        """Attend to the newest `most` bars only, of which one is about to be added."""
        if self.prefix_length + self.path_length < most:
            return
        for layer in self.layers:
            layer.dropped = max(0, self.prefix_length + layer.length + 1 - most)


def hiding(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores so that only what is `seen` counts: 0, or minus infinity."""
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, float("-inf"))


@torch.no_grad()
def attend_paths(queries: Tensor, window: KeysValues, own: KeysValues | None) -> Tensor:
    """Attention of M new bars of each of several paths.

    Parameters
    ----------
    queries
        Shape (B, H, S, M, K), for the M newest of the path's own bars.
    window, own
        Keys and values of the window, each (B, H, T, K), and of the paths' own bars, each
        (B, H, S, L, K), if any.

    Returns
    -------
    Tensor
        Shape (B, H, S, M, K).
    """
    B, H, S, M, _ = queries.shape
    if M == 1 or queries.device.type != "cpu":
        return attend_at_once(queries, window, own)
    if own is not None and own[0].shape[3] == M:
        found = path_attention(queries, window, own)
        if found is not None:
            return found
    length = window[0].shape[2] + (0 if own is None else own[0].shape[3])
    paths = max(1, SCORES_BYTES // (H * M * length * window[0].element_size()))
    out = window[0].new_empty(queries.shape)
    for b, first in product(range(B), range(0, S, paths)):
        part = slice(b, b + 1), slice(None), slice(first, first + paths)
        of_part = None if own is None else (own[0][part], own[1][part])
        out[part] = attend_at_once(queries[part], (window[0][part[0]], window[1][part[0]]), of_part)
    return out


@torch.no_grad()
def attend_at_once(
    queries: Tensor, window: KeysValues, own: KeysValues | None, added: Tensor | None = None
) -> Tensor:
    """The same of all paths at once, and of any of their own bars.

    `added`, (M, T + L), is added to scores: it says which bars are seen. None: all of the window,
    and of the path's own those up to each of its M newest.
    """
    B, H, S, M, K = queries.shape
    keys, values = (one.flatten(0, 1) for one in window)
    T, L = keys.shape[1], 0 if own is None else own[0].shape[3]
    queries = (queries * K**-0.5).to(keys.dtype).contiguous()

    # All scores lie in one buffer, which one softmax reads. Products of many small matrices are
    # fast only into memory of their own.
    scores = queries.new_empty(B * H, S * M, T + L)
    torch.bmm(queries.view(B * H, S * M, K), keys.mT, out=scores[:, :, :T])
    if own is not None:
        own_keys, own_values = (one.flatten(0, 2) for one in own)
        own_scores = torch.bmm(queries.view(B * H * S, M, K), own_keys.mT)
        if M > 1 and added is None:
            ahead = own_scores.new_ones(M, L, dtype=torch.bool).triu(L - M + 1)
            own_scores.masked_fill_(ahead, float("-inf"))
        scores.view(B * H * S, M, T + L)[:, :, T:] = own_scores
    if added is not None:
        scores.view(B * H * S, M, T + L).add_(added)
    weights = scores.softmax(dim=-1)
    y = torch.bmm(weights[:, :, :T], values)
    if own is not None:
        own_weights = weights.view(B * H * S, M, T + L)[:, :, T:]
        y = y.view(B * H * S, M, K).baddbmm_(own_weights, own_values)
    return y.view(B, H, S, M, K)


def _attend_joined(queries: Tensor, cache: LayerCache) -> Tensor:
    """The same of windows with a single path, (B, H, M, K)."""
    (keys, values), seen = cache.joined, cache.seen
    keys, values = keys[:, :, seen], values[:, :, seen]
    M, L, mask = queries.shape[2], keys.shape[2], None
    if M > 1:
        mask = torch.ones(M, L, dtype=torch.bool, device=keys.device).tril(L - M)
    return F.scaled_dot_product_attention(queries.to(keys.dtype), keys, values, attn_mask=mask)


class CausalSelfAttention(nn.Module):
    """Rotary multi-head attention of each bar over itself and the bars before it.

    Query, key and value projections are one matrix, in that order.
    """

    def __init__(self, d_model: int, n_heads: int, attn_dropout: float, resid_dropout: float):
        super().__init__()
        self.n_heads = n_heads
        self.attn_dropout = attn_dropout
        self.qkv = Linear(d_model, 3 * d_model)
        self.out = Linear(d_model, d_model)
        self.resid_dropout = Dropout(resid_dropout)

    def _dropout(self) -> float:
        return self.attn_dropout if self.training else 0.0

    def heads(self, x: Tensor) -> Tensor:
        """Queries, keys and values, (..., 3, H, K), of bars (..., D), not rotated."""
        return self.qkv(x).unflatten(-1, (3, self.n_heads, -1))

    def prefill(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, KeysValues]:
        """Outputs (B, T, D) of whole windows, with their keys and values."""
        q, k, v = self.heads(x).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, rotary), rotate(k, rotary)
        y = causal_attention(q, k, v, self._dropout())
        return self.resid_dropout(self.out(y.transpose(-3, -2).flatten(-2))), (k, v)

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        """Outputs (B, T, D) of whole windows."""
        y = self_attention(self.heads(x), rotary, self._dropout())
        return self.resid_dropout(self.out(y.flatten(-2)))

    def extend(self, x: Tensor, rotary: Rotary, cache: LayerCache, capacity: int) -> Tensor:
        """Outputs (B, S, M, D) of M new bars of each path."""
        heads = self.heads(x).permute(3, 0, 4, 1, 2, 5)
        q, k = rotate(heads[:2], rotary)
        cache.append(k, heads[2], capacity)
        y = cache.attend(q)
        return self.out(y.movedim(1, -2).flatten(-2))


def contiguous(kept: KeysValues) -> KeysValues:
    """Keys and values as products read them fastest, again and again."""
    return kept[0].contiguous(), kept[1].contiguous()


class SwiGLU(nn.Module):
    """``down(silu(gate x) * value x)``; gate and value are one matrix, in that order."""

    def __init__(self, d_model: int, ff_dim: int, dropout: float):
        super().__init__()
        self.gate_value = Linear(d_model, 2 * ff_dim, bias=False)
        self.down = Linear(ff_dim, d_model, bias=False)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of the shape of `x`, (..., D)."""
        return self.dropout(self.down(gated(self.gate_value(x))))


class Block(nn.Module):
    """A pre-norm transformer block: attention, then feed-forward, each with a residual."""

    def __init__(
        self,
        *,
        d_model: int,
        n_heads: int,
        ff_dim: int,
        ffn_dropout: float,
        attn_dropout: float,
        resid_dropout: float,
    ):
        super().__init__()
        self.attn_norm = RMSNorm(d_model, eps=NORM_EPS)
        self.attn = CausalSelfAttention(d_model, n_heads, attn_dropout, resid_dropout)
        self.ffn_norm = RMSNorm(d_model, eps=NORM_EPS)
        self.ffn = SwiGLU(d_model, ff_dim, ffn_dropout)
        # Of the widest result within.
        self.width = max(3 * d_model, 2 * ff_dim)

    def heads(self, x: Tensor) -> Tensor:
        """Queries, keys and values, (..., 3, H, K), of bars (..., D), not rotated."""
        return self.attn.heads(self.attn_norm(x))

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Outputs (..., D) of bars (..., D), for which attention found (..., D)."""
        x = x + self.attn.out(attended)
        return x + self.ffn(self.ffn_norm(x))

    def prefill(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, KeysValues]:
        """Outputs (B, T, D) of whole windows, with the attention's keys and values."""
        y, kept = self.attn.prefill(self.attn_norm(x), rotary)
        x = x + y
        return x + self.ffn(self.ffn_norm(x)), kept

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        """Outputs (B, T, D) of whole windows."""
        x = x + self.attn(self.attn_norm(x), rotary)
        return x + self.ffn(self.ffn_norm(x))

    def extend(self, x: Tensor, rotary: Rotary, cache: LayerCache, capacity: int) -> Tensor:
        """Outputs (B, S, M, D) of M new bars of each path."""
        x = x + self.attn.extend(self.attn_norm(x), rotary, cache, capacity)
        return x + self.ffn(self.ffn_norm(x))


class CausalStack(nn.Module):
    """Blocks one after the other, with one rotary table for all."""

    def __init__(self, blocks: Iterable[Block], head_width: int):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.head_width = head_width
        self.width = max(block.width for block in self.iterate())

    def iterate(self) -> Iterator[Block]:
        """The blocks, in order."""
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (B, T, D) of whole windows."""
        B, T, _ = x.shape
        rotary = rotary_table(T, self.head_width, x.device)
        parts = list(x.split(windows_at_once(B, T * self.width, x)))
        for i, part in enumerate(parts):
            for block in self.iterate():
                part = block(part, rotary)
            parts[i] = part
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def prefill(self, x: Tensor, capacity: int) -> tuple[Tensor, Cache]:
        """Outputs (B, T, D) of whole windows, and a cache for `capacity` bars of each path."""
        T = x.shape[-2]
        rotary = rotary_table(T + capacity, self.head_width, x.device)
        cache = Cache(prefix_length=T, capacity=capacity, rotary=rotary)
        of_window = (rotary[0][:T], rotary[1][:T])
        for block in self.iterate():
            x, kept = block.prefill(x, of_window)
            cache.layers.append(LayerCache(prefix=contiguous(kept)))
        return x, cache

    def extend(self, x: Tensor, cache: Cache) -> Tensor:
        """Outputs (B, S, M, D) of M new bars of each path; they are added to the cache.

        Layers that the cache holds beyond the blocks are left to the caller.
        """
        rotary = cache.turns(x.shape[-2])
        for block, layer_cache in zip(self.iterate(), cache.layers, strict=False):
            x = block.extend(x, rotary, layer_cache, cache.capacity)
        return x
