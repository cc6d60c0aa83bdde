"""Windows that slide, read from the start for each new bar of their paths.

With its oldest bar a window loses what all later bars knew of it, so that nothing that was kept of
them stays true, but for what the first layer makes of each bar alone: its queries, keys and values.
Rotary attention knows distances only, so these may keep the positions that they were made for.

Shapes by letter: B windows, S sample paths of a window, T bars of a window, M new bars of a path,
R rows of a window and its paths (R = T + S * M), D width of the model, H heads, K width of a head,
V2 entries of the fine codebook.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from darts_kronos.nn.attention import causal_attention
from darts_kronos.nn.layers import Block, attend_paths
from darts_kronos.nn.predictor import KronosPredictor
from darts_kronos.nn.rotary import rotary_table, rotate


class States(NamedTuple):
    """Hidden states of windows, (B, T, D), of their paths' bars, (B, S, M, D), and the newest.

    A single path is part of its window; the newest bars' states are (B, S, D).
    """

    window: Tensor
    paths: Tensor
    newest: Tensor


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
        self.stamps = stamps
        self.length = s1.shape[1]
        self.path_length = 0
        self.rotary = rotary_table(
            self.length + n, predictor.transformer.head_width, predictor.s1_head.weight.device
        )
        # What enters the first layer, and what that makes of it: (B, T, D) and (3, B, H, T, K).
        self.window, self.window_heads = self._begin(s1, s2, 0)
        B, _, D = self.window.shape
        H, K = self.window_heads.shape[2], self.window_heads.shape[4]
        self.paths = self.window.new_empty(B, num_samples, n, D)
        self.path_heads = self.window.new_empty(3, B, H, num_samples, n, K)
        self.projections = predictor.s2_conditioning.projections()

    def _begin(self, s1: Tensor, s2: Tensor, at: int) -> tuple[Tensor, Tensor]:
        """Embedded bars (B, ..., M, D) of tokens from position `at` on, and their first heads."""
        places = slice(at, at + s1.shape[-1])
        stamps = None if self.stamps is None else self.stamps[:, places]
        if stamps is not None and s1.ndim == 3:
            stamps = stamps.unsqueeze(1)
        x = self.predictor.embed(s1, s2, stamps)
        heads = self._blocks[0].heads(x).movedim(-3, 0).movedim(-2, 2)
        turned = rotate(heads[:2], (self.rotary[0][places], self.rotary[1][places]))
        return x, torch.cat((turned, heads[2:]))

    @property
    def _blocks(self) -> list[Block]:
        return list(self.predictor.transformer.iterate())

    def read(self, s1: Tensor, s2: Tensor, start: int) -> States:
        """Hidden states of all bars from `start` on, counted from the windows' first.

        `s1` and `s2` are the tokens of all the paths' bars so far, each (B, S, M): those that are
        new since the last call are added.
        """
        new = slice(self.path_length, s1.shape[2])
        self.paths[:, :, new], self.path_heads[..., new, :] = self._begin(
            s1[:, :, new], s2[:, :, new], self.length + self.path_length
        )
        self.path_length = s1.shape[2]

        own = slice(max(0, start - self.length), self.path_length)
        window, paths = self.window[:, start:], self.paths[:, :, own]
        of_window, of_paths = self.window_heads[..., start:, :], self.path_heads[..., own, :]
        S, M = paths.shape[1:3]
        if S == 1:
            window = torch.cat((window, paths[:, 0]), dim=1)
            of_window = torch.cat((of_window, of_paths[:, :, :, 0]), dim=-2)
            paths, of_paths, M = paths[:, :, :0], of_paths[..., :0, :], 0
        T = window.shape[1]
        rotary = self.rotary[0][: T + M], self.rotary[1][: T + M]

        x = torch.cat((window, paths.flatten(1, 2)), dim=1)
        for i, block in enumerate(self._blocks):
            if i > 0:
                heads = block.heads(x).movedim(-3, 0).movedim(-2, 2)
                of_window, of_paths = heads[..., :T, :], heads[..., T:, :].unflatten(3, (S, M))
                of_window = _rotated(of_window, (rotary[0][:T], rotary[1][:T]))
                of_paths = _rotated(of_paths, (rotary[0][T:], rotary[1][T:]))
            x = block.finish(x, _attend(of_window, of_paths))
        x = self.predictor.norm(x)
        of_paths = x[:, T:].unflatten(1, (S, M))
        return States(x[:, :T], of_paths, of_paths[:, :, -1] if M > 0 else x[:, -1:])

    def s2_logits(self, states: States, next_s1: Tensor) -> Tensor:
        """Logits (B, S, V2) of the next bar's fine token, given its coarse one, (B, S)."""
        queries = self.predictor.s2_queries(next_s1)
        conditioning = self.predictor.s2_conditioning
        return self.predictor.s2_head(conditioning.newest(states, queries, self.projections))


def _rotated(heads: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Queries and keys rotated, and values, (3, ..., K), in one piece."""
    out = torch.empty(heads.shape, dtype=heads.dtype, device=heads.device)
    out[:2], out[2] = rotate(heads[:2], rotary), heads[2]
    return out


def _attend(of_window: Tensor, of_paths: Tensor) -> Tensor:
    """Attention, (B, R, D), of windows (3, B, H, T, K) and their paths (3, B, H, S, M, K)."""
    _, B, H, T, K = of_window.shape
    S, M = of_paths.shape[3:5]
    out = of_window.new_empty(B, T + S * M, H, K)
    queries, keys, values = of_window
    out[:, :T] = causal_attention(queries, keys, values).transpose(1, 2)
    if M > 0:
        own_queries, own_keys, own_values = of_paths
        paths = attend_paths(own_queries, (keys, values), (own_keys, own_values))
        out[:, T:] = paths.movedim(1, -2).flatten(1, 2)
    return out.flatten(-2)
