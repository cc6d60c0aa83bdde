"""A step of sliding windows on a GPU by kernels of its own between the products.

Shapes by letter: B windows, S sample paths of a window, T bars of a window that are read, M bars of
a path that are read, R = T + S * M rows of a window and its paths, n bars of a path in the end,
H heads, K width of a head, D width of the model.
"""

from __future__ import annotations

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_kronos.nn.fused_step import FusedLayers, Work
from darts_kronos.nn.layers import hiding
from darts_kronos.nn.rereading import Read, Rereader, States
from darts_kronos.nn.rotary import rotate


class FusedReread(FusedLayers):
    """A step that a GPU can record.

    Parameters
    ----------
    kernels, work
        As ``FusedLayers`` takes them.
    reader
        What read the windows, and the bars that the paths have.
    """

    def __init__(self, kernels: ModuleType, work: Work, reader: Rereader):
        T, n = reader.length, work.tokens.shape[3]
        super().__init__(
            kernels, work, None if reader.stamps is None else reader.stamps[:, T : T + n - 1]
        )
        self.reader = reader
        self.s1_head = self.weights(work.predictor.s1_head)

    def look_at(self, read: Read) -> None:
        """Read these bars from now on."""
        reader, dtype, device = self.reader, self.work.dtype, self.work.at.device
        self.read = read
        # Those that were written since the last time; what comes of no numbers is refused later.
        tokens = self.work.tokens[..., : read.known].clamp(min=0)
        reader.add(*tokens)
        paths, path_heads = reader.paths[:, :, read.own], reader.path_heads[..., read.own, :]
        self.x = torch.cat((reader.window[:, read.window], paths.flatten(1, 2)), dim=1)
        of_window = reader.window_heads[..., read.window, :]
        self.heads = torch.cat((of_window, path_heads.flatten(3, 4)), dim=3).to(dtype)
        S, M = paths.shape[1:3]
        T = of_window.shape[3]
        self.sizes = T, S, M
        bars = torch.arange(T + M, device=device)
        positions = torch.cat((bars[:T], bars[T:].repeat(S)))
        self.rotary = reader.rotary[0][positions], reader.rotary[1][positions]
        # From the number of a path's bar to where it stands, and of it to its row.
        self.offset = read.own.start - T
        self.rows = M * torch.arange(S, device=device) - self.offset
        self.bars = bars

    def __call__(self) -> None:
        """Read the newest bar of each path, and its window again, and write the next bar."""
        kernels, reader, at = self.kernels, self.reader, self.work.at
        left, offset = self.read.left, self.offset
        (B, R, D), (T, S, M), rows = self.x.shape, self.sizes, self.rows + at
        H, K = self.heads.shape[2], self.heads.shape[4]
        new, row = self.embed()
        self.x.index_copy_(1, rows, new.view(B, S, D))
        self.heads.index_copy_(3, rows, self._first_heads(row))

        x = self.x.view(B * R, D).clone()
        queries, keys, values = self.heads
        for i, (qkv, *_) in enumerate(self.blocks):
            if i > 0:
                heads = F.linear(row, *qkv).view(B, R, 3, H, K).permute(2, 0, 3, 1, 4)
                queries, keys = (rotate(one, self.rotary) for one in heads[:2])
                values = heads[2]
            found = kernels.attend_rows((queries, keys, values), self.sizes, at, left, offset)
            row = self.finish(i, x, found.view(B * R, D))
        x = x.view(B, R, D)
        states = States(x[:, :T], x[:, T:].unflatten(1, (S, M)), x.index_select(1, rows))
        last = states.newest.to(row.dtype).view(B * S, D)
        s1 = self.drawn(F.linear(last, *self.s1_head), 0).view(B, S)
        seen = (self.bars >= at - left) & (self.bars <= at - offset)
        logits = reader.s2_logits(states, s1, hiding(seen, x.dtype))
        self.drawn(logits.view(B * S, -1), 1)
        at += 1

    def _first_heads(self, row: Tensor) -> Tensor:
        """Queries, keys and values, (3, B, H, S, K), of the newest bars in the first layer."""
        reader, (_, B, H, _, K) = self.reader, self.heads.shape
        heads = F.linear(row, *self.blocks[0][0]).view(-1, 3, H, 1, K).transpose(0, 1)
        place = self.work.at + reader.length
        rotary = reader.rotary[0][place], reader.rotary[1][place]
        queries, keys = (rotate(one, rotary) for one in heads[:2])
        return torch.stack((queries, keys, heads[2])).view(3, B, -1, H, K).transpose(2, 3)
