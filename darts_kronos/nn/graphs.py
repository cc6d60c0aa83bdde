"""Paths that a GPU writes bar by bar: a step is recorded once and played again for each bar.

A step is a hundred small kernels and more, which take longer to be launched one by one than to run.
As a CUDA graph they are launched at once. A recorded step works on the same memory each time, so
what changes from bar to bar, such as how many bars the paths have, lies in memory, too, and no
tensor changes its shape: attention looks at room for bars that are not there yet, and hides it.

Shapes by letter: B windows, S sample paths of a window, T bars of the window, n new bars, L own
bars of a path that are looked at, H heads, K width of a head.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_kronos.nn.layers import Cache, KeysValues, LayerCache
from darts_kronos.nn.rotary import Rotary

if TYPE_CHECKING:
    from darts_kronos.nn.predictor import KronosPredictor

FEWEST_BARS = 4
"""Bars from which on it pays to record a step."""

STRETCH = 32
"""Bars after which a new step is recorded, which looks at more of them, for many paths."""

BYTES_LOOKED_AT = 64 * 2**20
"""Bytes of keys and values that are read in the time that it takes to record another step."""

ALIGNED = 16
"""Bars, of window and path together, that attention looks at in multiples of."""


@dataclass(slots=True)
class Place:
    """Where all paths are, for a step that is the same at each place.

    Attributes
    ----------
    at
        Own bars of a path before its newest, (1,), int64.
    looked_at
        L.
    hidden
        What is added to scores of bars, (T + L,): minus infinity for those that are not seen.
    """

    at: Tensor
    looked_at: int
    hidden: Tensor


class SteadyLayer(LayerCache):
    """Keys and values of one attention layer, in memory that stays where it is.

    Parameters
    ----------
    prefix
        Of the window, (B, H, T, K).
    num_samples
        S.
    capacity
        Own bars that a path can hold.
    dtype
        Data type in which keys and values are kept.
    place
        Where the paths are.
    drops
        Whether bars of the window are to be hidden as well.
    """

    __slots__ = ("drops", "place")

    def __init__(
        self,
        prefix: KeysValues,
        num_samples: int,
        capacity: int,
        dtype: torch.dtype,
        place: Place,
        drops: bool,
    ):
        keys, values = (one.to(dtype) for one in prefix)
        super().__init__(prefix=(keys, values))
        self.place, self.drops = place, drops
        # It makes room, and of a single path's window a copy before it.
        B, H, _, K = keys.shape
        none = keys.new_empty(B, H, num_samples, 0, K)
        super().append(none, none, capacity)
        for own in (self.path_keys, self.path_values):
            # What is hidden is multiplied by 0 all the same.
            assert own is not None
            own[..., own.shape[3] - capacity :, :] = 0

    def append(self, keys: Tensor, values: Tensor, capacity: int) -> None:
        """Add the keys and values, (B, H, S, 1, K), of the newest bar of each path."""
        at, own_keys, own_values = self.place.at, self.path_keys, self.path_values
        assert own_keys is not None and own_values is not None
        if keys.shape[2] == 1:
            at = at + self.prefix[0].shape[2]
        own_keys.index_copy_(3, at, keys.to(own_keys.dtype))
        own_values.index_copy_(3, at, values.to(own_values.dtype))

    def attend(self, queries: Tensor) -> Tensor:
        """Attention, (B, H, S, 1, K), of the newest bars' queries of the same shape."""
        B, H, S, _, K = queries.shape
        T, L, hidden = self.prefix[0].shape[2], self.place.looked_at, self.place.hidden
        assert self.path_keys is not None and self.path_values is not None
        if S == 1:
            seen = slice(0, T + L)
            keys, values = self.path_keys[:, :, 0, seen], self.path_values[:, :, 0, seen]
            queries = queries.squeeze(2).to(keys.dtype)
            mask = hidden.view(1, 1, 1, T + L)
            return F.scaled_dot_product_attention(queries, keys, values, mask).unsqueeze(2)
        keys, values = (one.flatten(0, 1) for one in self.prefix)
        own_keys = self.path_keys[:, :, :, :L].flatten(0, 2)
        own_values = self.path_values[:, :, :, :L].flatten(0, 2)
        queries = (queries * K**-0.5).to(keys.dtype).contiguous().view(B * H, S, K)
        scores = queries.new_empty(B * H, S, T + L)
        torch.bmm(queries, keys.mT, out=scores[:, :, :T])
        if self.drops:
            scores[:, :, :T] += hidden[:T]
        own_scores = torch.bmm(queries.view(B * H * S, 1, K), own_keys.mT)
        torch.add(own_scores.view(B * H, S, L), hidden[T:], out=scores[:, :, T:])
        weights = scores.softmax(dim=-1)
        own_weights = weights.view(B * H * S, 1, T + L)[:, :, T:]
        y = torch.bmm(weights[:, :, :T], values).view(B * H * S, 1, K)
        return y.baddbmm_(own_weights, own_values).view(B, H, S, 1, K)


@dataclass(slots=True, kw_only=True)
class SteadyCache(Cache):
    """The caches of a stack of layers, in memory that stays where it is.

    Attributes
    ----------
    place
        Where the paths are.
    """

    place: Place

    def turns(self, count: int) -> Rotary:
        """Rotations, each (1, K), of the newest bar."""
        now = self.place.at + self.prefix_length
        return self.rotary[0].index_select(0, now), self.rotary[1].index_select(0, now)


class RecordedPaths:
    """Writes new bars of paths, by a step that a GPU records.

    On other devices the step is made anew for each bar.

    Parameters
    ----------
    predictor
        The network, folded and packed, without gradients.
    cache
        The windows, which are read only, with the newest bars' rotations.
    stamps
        Calendar stamps of the bars that are read, (B, n - 1, 5), or None.
    num_samples
        S.
    n
        Bars to write, at least 2, of which the last is not read.
    most
        Bars that a bar sees at most, itself included; not less than those of a window.
    dtype
        Data type in which keys and values are kept, and attention's products made.
    draw
        Draws a token, (B, S), by logits (B, S, V).
    """

    def __init__(
        self,
        predictor: KronosPredictor,
        cache: Cache,
        stamps: Tensor | None,
        *,
        num_samples: int,
        n: int,
        most: int,
        dtype: torch.dtype,
        draw: Callable[[Tensor], Tensor],
    ):
        self.predictor, self.stamps, self.draw = predictor, stamps, draw
        self.num_samples, self.n, self.most = num_samples, n, most
        self.windows = cache.restart()
        T, device = cache.prefix_length, cache.rotary[0].device
        kept = [keys for layer in cache.layers for keys in layer.prefix]
        of_bar = num_samples * sum(one[:, :, 0].numel() for one in kept) * dtype.itemsize
        few = of_bar * (n - 1) <= BYTES_LOOKED_AT
        # Own bars that are looked at from stretch to stretch.
        self.stretches = [n - 1] if few else [*range(STRETCH, n - 1, STRETCH), n - 1]
        capacity = self._aligned(T, n - 1)
        self.positions = torch.arange(T + capacity, device=device)
        self.drops = T + n - 1 > most
        at = torch.zeros(1, dtype=torch.int64, device=device)
        self.place = Place(at, 0, torch.empty(0, dtype=dtype, device=device))
        self.tokens = at.new_zeros(2, len(kept[0]), num_samples, n)
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.cache = SteadyCache(T, capacity, cache.rotary, place=self.place)
        for layer in cache.layers:
            self.cache.layers.append(
                SteadyLayer(layer.prefix, num_samples, capacity, dtype, self.place, self.drops)
            )

    @staticmethod
    def _aligned(T: int, bars: int) -> int:
        return bars + -(T + bars) % ALIGNED

    def write(self, hidden: Tensor) -> Tensor:
        """Draw the new bars' tokens, (2, B, S, n), after windows whose newest states are (B, 1, D).

        The next call writes other ones in their place.
        """
        self.tokens[..., 0] = self._drawn(hidden.expand(-1, self.num_samples, -1), self.windows)
        self.place.at.zero_()
        start = 0
        for end in self.stretches:
            self.place.looked_at = self._aligned(self.cache.prefix_length, end)
            self._write_stretch(end, end - start)
            start = end
        if self.graphs:
            # What the graphs work on must not be given away before they have done so.
            torch.cuda.current_stream(self.tokens.device).synchronize()
        return self.tokens

    def _write_stretch(self, end: int, count: int) -> None:
        """Write so many bars, up to number `end`."""
        graph = self.graphs.get(end)
        if graph is None and self.tokens.device.type == "cuda" and count >= FEWEST_BARS:
            # The first step warms up what the recording needs.
            self._step()
            count -= 1
            graph = self.graphs[end] = recorded(self._step, self.tokens.device)
        for _ in range(count):
            if graph is None:
                self._step()
            else:
                graph.replay()

    def _step(self) -> None:
        """Read the newest bar of each path, and write the next."""
        at, T = self.place.at, self.cache.prefix_length
        positions, now = self.positions[: T + self.place.looked_at], at + T
        hidden_bars = positions > now
        if self.drops:
            hidden_bars |= positions <= now - self.most
        scores = torch.zeros_like(positions, dtype=self.cache.layers[0].prefix[0].dtype)
        self.place.hidden = scores.masked_fill_(hidden_bars, float("-inf"))
        stamps = None if self.stamps is None else self.stamps.index_select(1, at)
        s1, s2 = self.tokens.index_select(3, at)
        hidden = self.predictor.extend(s1, s2, stamps, self.cache)
        drawn = self._drawn(hidden, self.cache)
        at += 1
        self.tokens.index_copy_(3, at, drawn.unsqueeze(3))

    def _drawn(self, hidden: Tensor, cache: Cache) -> Tensor:
        """Tokens of the next bars, (2, B, S), by states (B, S, D)."""
        s1 = self.draw(self.predictor.s1_logits(hidden))
        return torch.stack((s1, self.draw(self.predictor.s2_logits(hidden, s1, cache))))


class _Recorders(threading.local):
    """What a thread records with: graphs of other threads may be played at the same time."""

    def __init__(self) -> None:
        self.of_device: dict[torch.device, _Recorder] = {}

    def of(self, device: torch.device) -> _Recorder:
        """That of a device."""
        if device not in self.of_device:
            self.of_device[device] = _Recorder(device)
        return self.of_device[device]


class _Recorder:
    """Records graphs, of which one at a time is played: all work in the same memory."""

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        # Memory that no graph is left of cannot be used by another one.
        self.first = self.record(lambda: torch.zeros(1, device=device))

    def record(self, step: Callable[[], Any]) -> torch.cuda.CUDAGraph:
        """A graph of what `step` does."""
        graph = torch.cuda.CUDAGraph()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                step()
            finally:
                graph.capture_end()
        return graph


_RECORDERS = _Recorders()


def recorded(step: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph:
    """A CUDA graph of what `step` does, which is not done now; it has been done once before.

    Unlike ``torch.cuda.graph`` it neither collects garbage nor gives back the memory that torch
    holds, which both take longer than to record.
    """
    with torch.cuda.device(device):
        return _RECORDERS.of(device).record(step)
