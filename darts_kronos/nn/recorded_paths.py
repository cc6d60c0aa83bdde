"""Paths that a GPU writes bar by bar, by a step that is recorded once and played for each bar.

A recorded step works on the same memory each time, so what changes from bar to bar, such as how
many bars the paths have, lies in memory, too, and no tensor changes its shape. There are two such
steps: ``FusedStep`` of kernels for just this, and ``ModuleStep`` of the network's own layers, for
those that have an adapter and where Triton is not there.

Shapes by letter: B windows, S sample paths of a window, R = B * S rows, T bars of the window, n new
bars, L own bars of a path that are looked at, H heads, K width of a head, D width of the model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from darts_kronos.nn.fused_step import Draw, FusedStep, Work
from darts_kronos.nn.graphs import played
from darts_kronos.nn.layers import Cache, KeysValues, LayerCache, attend_at_once, hiding
from darts_kronos.nn.rotary import Rotary
from darts_kronos.nn.strata import stratified

if TYPE_CHECKING:
    from darts_kronos.nn.predictor import KronosPredictor

_LOGGER = logging.getLogger(__name__)

STRETCH = 32
"""Bars after which a step of many paths is recorded anew, to look at more of them."""

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
    """

    __slots__ = ("place",)

    def __init__(
        self,
        prefix: KeysValues,
        num_samples: int,
        capacity: int,
        dtype: torch.dtype,
        place: Place,
    ):
        keys, values = (one.to(dtype) for one in prefix)
        super().__init__(prefix=(keys, values))
        B, H, _, K = keys.shape
        self.place = place
        # What is hidden is multiplied by 0 all the same.
        self.path_keys = keys.new_zeros(B, H, num_samples, capacity, K)
        self.path_values = torch.zeros_like(self.path_keys)

    def append(self, keys: Tensor, values: Tensor, capacity: int) -> None:
        """Add the keys and values, (B, H, S, 1, K), of the newest bar of each path."""
        for own, new in ((self.path_keys, keys), (self.path_values, values)):
            assert own is not None
            own.index_copy_(3, self.place.at, new.to(own.dtype))

    def attend(self, queries: Tensor) -> Tensor:
        """Attention, (B, H, S, 1, K), of the newest bars' queries of the same shape."""
        L = self.place.looked_at
        assert self.path_keys is not None and self.path_values is not None
        own = self.path_keys[:, :, :, :L], self.path_values[:, :, :, :L]
        return attend_at_once(queries, self.prefix, own, self.place.hidden.unsqueeze(0))


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


class ModuleStep:
    """A step by the network's own layers.

    Parameters
    ----------
    work, stamps, cache, most
        As ``FusedStep`` takes them.
    """

    def __init__(self, work: Work, stamps: Tensor | None, cache: Cache, most: int):
        dtype, at = work.dtype, work.at
        self.work, self.stamps = work, stamps
        _, _, S, n = work.tokens.shape
        T = cache.prefix_length
        of_bar = (
            2 * dtype.itemsize * S * sum(layer.prefix[0][:, :, 0].numel() for layer in cache.layers)
        )
        few = of_bar * (n - 1) <= BYTES_LOOKED_AT
        self.stretches = [n - 1] if few else [*range(STRETCH, n - 1, STRETCH), n - 1]
        capacity = self._aligned(T, n - 1)
        self.positions = torch.arange(T + capacity, device=at.device)
        self.most, self.drops = most, T + n - 1 > most
        self.place = Place(at, 0, torch.empty(0, dtype=dtype, device=at.device))
        self.cache = SteadyCache(T, capacity, cache.rotary, place=self.place)
        for layer in cache.layers:
            self.cache.layers.append(SteadyLayer(layer.prefix, S, capacity, dtype, self.place))

    @staticmethod
    def _aligned(T: int, bars: int) -> int:
        return bars + -(T + bars) % ALIGNED

    def look_at(self, bars: int) -> None:
        """Look at so many own bars of a path from now on."""
        self.place.looked_at = self._aligned(self.cache.prefix_length, bars)

    def __call__(self) -> None:
        """Read the newest bar of each path, and write the next."""
        predictor, at, T = self.work.predictor, self.place.at, self.cache.prefix_length
        positions, now = self.positions[: T + self.place.looked_at], at + T
        seen = positions <= now
        if self.drops:
            seen &= positions > now - self.most
        self.place.hidden = hiding(seen, self.work.dtype)
        stamps = None if self.stamps is None else self.stamps.index_select(1, at)
        s1, s2 = self.work.tokens.index_select(3, at).clamp_(min=0)
        hidden = predictor.extend(s1, s2, stamps, self.cache)
        at += 1
        self.work.write_drawn(
            predictor.s1_logits(hidden), lambda s1: predictor.s2_logits(hidden, s1, self.cache)
        )


Found = TypeVar("Found")


def by_kernels(write: Callable[[], Found], by_layers: Callable[[], Found]) -> Found:
    """Write by Triton's kernels, or by the network's layers where a GPU has no room for them."""
    try:
        return write()
    except Exception as error:
        if not type(error).__module__.startswith("triton"):
            raise
        _LOGGER.warning("Triton's kernels are left out, torch's own are used: %s", error)
    # Not before: the error keeps what the kernels worked on.
    return by_layers()


class RecordedPaths:
    """Writes new bars of paths, by a step that a GPU records.

    On other devices the step is made anew for each bar.

    Parameters
    ----------
    predictor
        As in ``Work``.
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
    dtype, draw, temperature
        As in ``Work``.
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
        draw: Draw,
        temperature: float | None,
    ):
        self.windows, self.of_step = cache, (stamps, cache, most)
        B, device = len(cache.layers[0].prefix[0]), cache.rotary[0].device
        at = torch.zeros(1, dtype=torch.int64, device=device)
        tokens = at.new_zeros(2, B, num_samples, n)
        given = torch.empty(n, 2, B * num_samples, device=device)
        self.work = Work(predictor, dtype, draw, temperature, tokens, given, at)
        self.graphs: dict[int, torch.cuda.CUDAGraph | None] = {}
        kernels = self.work.kernels()
        self.step: FusedStep | ModuleStep = (
            ModuleStep(self.work, *self.of_step)
            if kernels is None
            else FusedStep(kernels, self.work, *self.of_step)
        )

    @property
    def tokens(self) -> Tensor:
        """Of the new bars, (2, B, S, n)."""
        return self.work.tokens

    def write(self, hidden: Tensor) -> Tensor:
        """Draw the new bars' tokens, (2, B, S, n), after windows whose newest states are (B, 1, D).

        The next call writes other ones in their place.

        Raises
        ------
        ValueError
            If logits are NaN or infinite.
        """

        def by_layers() -> Tensor:
            self.step = ModuleStep(self.work, *self.of_step)
            return self._write(hidden)

        return by_kernels(lambda: self._write(hidden), by_layers)

    def _write(self, hidden: Tensor) -> Tensor:
        """The same by the step that there is."""
        work, windows = self.work, self.windows.restart()
        hidden = hidden.expand(-1, self.tokens.shape[2], -1)
        _, B, S, n = work.tokens.shape
        work.given.copy_(stratified(n, B, S, work.given.device))
        work.at.zero_()
        work.write_drawn(
            work.predictor.s1_logits(hidden),
            lambda s1: work.predictor.s2_logits(hidden, s1, windows),
        )
        start = 0
        with torch.cuda.device_of(work.at):
            for end in self.step.stretches:
                self.step.look_at(end)
                graph = self.graphs.get(end)
                self.graphs[end] = played(self.step, end - start, work.at.device, graph)
                start = end
            return work.written()
