"""Windows that slide, read from the start for each new bar of their paths.

With its oldest bar a window loses what all later bars knew of it, so that nothing that was kept of
them stays true, but for what the first layer makes of each bar alone: its queries, keys and values.
Rotary attention knows distances only, so these may keep the positions that they were made for.

Shapes by letter: B windows, S sample paths of a window, T bars of a window, M new bars of a path,
R rows of a window and its paths (R = T + S * M), D width of the model, H heads, K width of a head,
V2 entries of the fine codebook.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from darts_kronos.nn.attention import causal_attention
from darts_kronos.nn.layers import attend_paths
from darts_kronos.nn.predictor import KronosPredictor
from darts_kronos.nn.rotary import Rotary, rotary_table, rotate

Heads = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values, of which the first two are rotated."""

Attend = Callable[[Heads, Heads], Tensor]
"""Attention (B, R, D) of windows, each (B, H, T, K), and of their paths, each (B, H, S, M, K)."""


class States(NamedTuple):
    """Hidden states of windows, (B, T, D), of their paths' bars, (B, S, M, D), and the newest.

    Of ``Rereader.read`` a single path is part of its window. The newest bars' states are (B, S, D).
    """

    window: Tensor
    paths: Tensor
    newest: Tensor


class Read(NamedTuple):
    """Bars that are read to write some new ones, of which the oldest leave, and others come.

    Attributes
    ----------
    known
        Own bars of a path when the first of the new ones is written, which sees all of these.
    window, own
        Bars of the window, and a path's own, with those that come.
    """

    known: int
    window: slice
    own: slice

    @property
    def left(self) -> int:
        """So many have left: the number of a path's newest bar, less this."""
        return self.known - 1


class Rereader:
    """Reads windows and their paths from any bar on, again and again.

    Rows of a window and of all its paths go through each layer together.

    Parameters
    ----------
    predictor
        The network, without gradients.
    s1, s2
        Tokens of the windows, each (B, T).
    stamps
        Calendar stamps of the windows and of the bars to come, (B, T + n, 5), or None.
    num_samples
        S, paths of each window.
    n
        Bars that a path may have.
    """

    def __init__(
        self,
        predictor: KronosPredictor,
        s1: Tensor,
        s2: Tensor,
        stamps: Tensor | None,
        num_samples: int,
        n: int,
    ):
        self.predictor = predictor
        self.blocks = list(predictor.transformer.iterate())
        self.stamps = stamps
        self.length = s1.shape[1]
        self.path_length = 0
        self.rotary = rotary_table(
            self.length + n, predictor.transformer.head_width, predictor.s1_head.weight.device
        )
        # What enters the first layer, and what that makes of it: (B, T, D) and (3, B, H, T, K).
        self.window, self.window_heads = self.begin(s1, s2, slice(self.length))
        B, _, D = self.window.shape
        H, K = self.window_heads.shape[2], self.window_heads.shape[4]
        self.paths = self.window.new_empty(B, num_samples, n, D)
        self.path_heads = self.window.new_empty(3, B, H, num_samples, n, K)
        self.projections = predictor.s2_conditioning.projections()

    def begin(self, s1: Tensor, s2: Tensor, places: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Embedded bars of tokens, (B, ..., M, D), and what the first layer makes of them.

        These are queries, keys and values, (3, B, H, ..., M, K); `places` are the M bars' numbers,
        counted from the windows' first.
        """
        stamps = None if self.stamps is None else self.stamps[:, places]
        if stamps is not None and s1.ndim == 3:
            stamps = stamps.unsqueeze(1)
        x = self.predictor.embed(s1, s2, stamps)
        heads = self.blocks[0].heads(x).movedim(-3, 0).movedim(-2, 2)
        turned = rotate(heads[:2], (self.rotary[0][places], self.rotary[1][places]))
        return x, torch.cat((turned, heads[2:]))

    def add(self, s1: Tensor, s2: Tensor) -> None:
        """Add what is new of the paths' bars: `s1` and `s2`, each (B, S, M), are all so far."""
        if s1.shape[2] == self.path_length:
            return
        T, before, self.path_length = self.length, self.path_length, s1.shape[2]
        new, places = slice(before, self.path_length), slice(T + before, T + self.path_length)
        self.paths[:, :, new], self.path_heads[..., new, :] = self.begin(
            s1[:, :, new], s2[:, :, new], places
        )

    def read(self, s1: Tensor, s2: Tensor, start: int) -> States:
        """Hidden states of all bars from `start` on, counted from the windows' first.

        `s1` and `s2` are the tokens of all the paths' bars so far, each (B, S, M): those that are
        new since the last call are added.
        """
        self.add(s1, s2)
        own = slice(max(0, start - self.length), self.path_length)
        window, paths = self.window[:, start:], self.paths[:, :, own]
        window_heads, path_heads = self.window_heads[..., start:, :], self.path_heads[..., own, :]
        if paths.shape[1] == 1:
            window = torch.cat((window, paths[:, 0]), dim=1)
            window_heads = torch.cat((window_heads, path_heads[:, :, :, 0]), dim=-2)
            paths, path_heads = paths[:, :, :0], path_heads[..., :0, :]
        window, paths = self.through(window, paths, window_heads, path_heads, _attend)
        newest = paths[:, :, -1] if paths.shape[2] > 0 else window[:, -1:]
        return States(window, paths, newest)

    def through(
        self,
        window: Tensor,
        paths: Tensor,
        window_heads: Tensor,
        path_heads: Tensor,
        attend: Attend,
    ) -> tuple[Tensor, Tensor]:
        """Hidden states of windows and of their paths' bars, by all layers.

        Parameters
        ----------
        window, paths
            What enters the first layer, (B, T, D) and (B, S, M, D).
        window_heads, path_heads
            What that makes of it, (3, B, H, T, K) and (3, B, H, S, M, K).
        attend
            How bars attend.

        Returns
        -------
        tuple of Tensor
            Of the shapes of `window` and `paths`.
        """
        T, (S, M) = window.shape[1], paths.shape[1:3]
        at_window, at_paths = (
            (self.rotary[0][bars], self.rotary[1][bars]) for bars in (slice(T), slice(T, T + M))
        )
        x = torch.cat((window, paths.flatten(1, 2)), dim=1)
        x = self.blocks[0].finish(x, attend(tuple(window_heads), tuple(path_heads)))
        for block in self.blocks[1:]:
            heads = block.heads(x).movedim(-3, 0).movedim(-2, 2)
            of_window = _rotated(heads[..., :T, :], at_window)
            of_paths = _rotated(heads[..., T:, :].unflatten(3, (S, M)), at_paths)
            x = block.finish(x, attend(of_window, of_paths))
        x = self.predictor.norm(x)
        return x[:, :T], x[:, T:].unflatten(1, (S, M))

    def s2_logits(self, states: States, next_s1: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Logits (B, S, V2) of the next bar's fine token, given its coarse one, (B, S).

        `hidden`, (T + M,), is minus infinity for bars that are not seen, else 0; None: all are.
        """
        queries = self.predictor.s2_queries(next_s1)
        conditioning = self.predictor.s2_conditioning
        found = conditioning.newest(states, queries, self.projections, hidden)
        return self.predictor.s2_head(found)


def _rotated(heads: Tensor, rotary: Rotary) -> Heads:
    """Of queries, keys and values (3, ..., K), each in one piece."""
    queries, keys = rotate(heads[:2], rotary)
    return queries, keys, heads[2].contiguous()


def _attend(of_window: Heads, of_paths: Heads) -> Tensor:
    """Attention, as ``Attend``, of each bar over itself and all bars before it."""
    own_queries, *own = of_paths
    window = causal_attention(*of_window)
    if own_queries.shape[3] == 0:
        return joined(window, own_queries)
    return joined(window, attend_paths(own_queries, of_window[1:], (own[0], own[1])))


def joined(window: Tensor, paths: Tensor) -> Tensor:
    """Rows (B, R, D) of what windows, (B, H, T, K), and their paths found, (B, H, S, M, K)."""
    B, H, T, K = window.shape
    S, M = paths.shape[2:4]
    out = window.new_empty(B, T + S * M, H, K)
    out[:, :T] = window.transpose(1, 2)
    out[:, T:] = paths.movedim(1, -2).flatten(1, 2)
    return out.flatten(-2)
