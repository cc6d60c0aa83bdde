"""Windows that slide, read again by a step that a GPU records and plays for several bars.

Which bars have left a window, and how many a path has, changes from bar to bar: it is told by a
number in memory. Bars that a path will have in the same stretch are read along, and not looked at
by those before them. There are two such steps: ``FusedReread`` of kernels for just this, and
``ModuleReread`` of the network's own layers.

Shapes by letter: B windows, S sample paths of a window, T bars of a window that are read, M bars of
a path that are read, n bars of a path in the end, H heads, K width of a head, D width of the model.
"""

from __future__ import annotations

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_kronos.nn.fused_rereading import FusedReread
from darts_kronos.nn.fused_step import Draw, Work
from darts_kronos.nn.graphs import FEWEST_STEPS, played
from darts_kronos.nn.layers import attend_at_once, hiding
from darts_kronos.nn.predictor import KronosPredictor
from darts_kronos.nn.recorded_paths import by_kernels
from darts_kronos.nn.rereading import Heads, Read, Rereader, States, joined
from darts_kronos.nn.strata import stratified

MULTIPLICATIONS = 3 * 10**11
"""Multiplications that a GPU makes in the time that it takes to record a step anew."""

LEAST_STRETCH = 8
"""Bars from which on it pays to record: of more rows steps take far longer than to launch them, and
their results would be memory that recordings hold."""


def bars_of_stretch(predictor: KronosPredictor, paths: int) -> int:
    """Bars of each of so many paths to write by the same step; too few to record if it is no use.

    In a stretch of bars each step reads, of each path, those that are still to come as well, and of
    its window those that have left.
    """
    weights = sum(one.numel() for one in predictor.transformer.parameters())
    bars = isqrt(MULTIPLICATIONS // (weights * paths))
    return bars if bars >= LEAST_STRETCH else FEWEST_STEPS - 1


class RecordedRereads:
    """Writes bars of paths whose windows slide, by steps that a GPU records.

    On other devices each step is made anew.

    Parameters
    ----------
    reader
        What reads windows and paths; no bar of a path was added to it.
    s1, s2
        Tokens of the paths, each (B, S, n), of which the first `known` are read, the others
        written.
    known
        Bars that the paths have, at least 1. The first that is written sees the whole window, each
        one after it a bar less, of the window and then of the path.
    dtype, draw, temperature
        As in ``Work``.
    """

    def __init__(
        self,
        reader: Rereader,
        s1: Tensor,
        s2: Tensor,
        known: int,
        *,
        dtype: torch.dtype,
        draw: Draw,
        temperature: float | None,
    ):
        self.reader, self.known = reader, known
        # What is not looked at yet is multiplied by 0 all the same.
        reader.paths.zero_()
        reader.path_heads.zero_()
        reader.add(s1[:, :, :known], s2[:, :, :known])
        tokens, device = torch.stack((s1, s2)), s1.device
        _, B, S, n = tokens.shape
        at, given = torch.full((1,), known - 1, device=device), stratified(n, B, S, device)
        self.work = Work(reader.predictor, dtype, draw, temperature, tokens, given, at)
        kernels = self.work.kernels()
        self.step: FusedReread | ModuleReread = (
            ModuleReread(self.work, reader)
            if kernels is None
            else FusedReread(kernels, self.work, reader)
        )
        self.graphs: list[torch.cuda.CUDAGraph | None] = []

    def write(self) -> Tensor:
        """Draw all other bars' tokens; those of all bars, (2, B, S, n).

        Raises
        ------
        ValueError
            If logits are NaN or infinite.
        """

        def by_layers() -> None:
            self.step = ModuleReread(self.work, self.reader)
            self._write()

        by_kernels(self._write, by_layers)
        return self.work.written()

    def _write(self) -> None:
        """The same by the step that there is."""
        (_, B, S, n), T = self.work.tokens.shape, self.reader.length
        # A recording of more bars than the window's would be for a small part of them.
        stretch = min(bars_of_stretch(self.reader.predictor, B * S), T + self.known)
        self.work.at.fill_(self.known - 1)
        with torch.cuda.device_of(self.work.at):
            for first in range(self.known, n, stretch):
                end, start = min(first + stretch, n), first - self.known
                # The newest bar of a path is not read.
                window, own = slice(min(start, T), T), slice(max(0, start - T), end - 1)
                self.step.look_at(Read(first, window, own))
                self.graphs.append(played(self.step, end - first, self.work.at.device, None))


class ModuleReread:
    """A step by the network's own layers.

    Parameters
    ----------
    work, reader
        As ``FusedReread`` takes them.
    """

    def __init__(self, work: Work, reader: Rereader):
        self.work, self.reader = work, reader

    def look_at(self, read: Read) -> None:
        """Read these bars from now on."""
        self.read = read
        T = self.reader.window[:, read.window].shape[1]
        M = self.reader.paths[:, :, read.own].shape[2]
        self.bars = torch.arange(T + M, device=self.work.at.device)

    def __call__(self) -> None:
        """Read the newest bar of each path, and its window again, and write the next bar."""
        reader, read, work, at = self.reader, self.read, self.work, self.work.at
        s1, s2 = work.tokens.index_select(3, at).clamp_(min=0)
        x, heads = reader.begin(s1, s2, at + reader.length)
        reader.paths.index_copy_(2, at, x)
        reader.path_heads.index_copy_(4, at, heads)

        hidden = self._hidden()
        lower = hidden.to(work.dtype)
        window, paths = reader.through(
            reader.window[:, read.window],
            reader.paths[:, :, read.own],
            reader.window_heads[..., read.window, :],
            reader.path_heads[..., read.own, :],
            lambda window, paths: _attend(window, paths, lower),
        )
        newest = at - read.own.start
        states = States(window, paths, paths.index_select(2, newest).squeeze(2))
        of_newest = hidden.index_select(0, newest + window.shape[1]).squeeze(0)
        at += 1
        work.write_drawn(
            reader.predictor.s1_logits(states.newest),
            lambda s1: reader.s2_logits(states, s1, of_newest),
        )

    def _hidden(self) -> Tensor:
        """What is added to scores of a path's bars and its window's, (T + M, T + M).

        Bars see themselves and those before, of which the oldest have left. So that all of them
        find numbers, those see themselves.
        """
        bars, left_by = self.bars, self.work.at - self.read.left
        seen = bars <= bars.unsqueeze(1)
        seen &= (bars >= left_by) | (bars == bars.unsqueeze(1))
        return hiding(seen, torch.float32)


def _attend(of_window: Heads, of_paths: Heads, hidden: Tensor) -> Tensor:
    """Attention, as ``rereading.Attend``, given what is added to scores, (T + M, T + M).

    Products are of the data type of the latter.
    """
    dtype = hidden.dtype
    queries, keys, values = (one.to(dtype) for one in of_window)
    own_queries, *own = (one.to(dtype) for one in of_paths)
    T, window = queries.shape[2], queries
    if T > 0:
        mask = hidden[:T, :T].contiguous()
        window = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    return joined(window, attend_at_once(own_queries, (keys, values), (own[0], own[1]), hidden[T:]))
