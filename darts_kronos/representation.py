"""How the tokenizer sees bars: the one place that knows, both ways.

Shapes by letter: B windows, S sample paths, T bars of a window, n new bars, C components that the
tokenizer sees, G of these that are given.
Statistics come from the context alone and are computed in float64; the networks get float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from darts_kronos.components import CANDLE, PRICES, VOLUMES, has_prices

WINDOW_EPS = 1e-5
"""Added to the standard deviation of a "window" representation, as released."""

CONSTANT = 1e-9
"""A column whose standard deviation is below this is constant: float64 noise, nothing else."""

PRICE_FLOOR = 1e-3
"""The least price of a valid candle, as a share of the context's lowest."""


class Statistics(NamedTuple):
    """What it takes to turn a window's normalised bars back.

    Attributes
    ----------
    center, scale
        Subtracted from and divided out of each component, (B, 1, C), float64.
    last_close
        Logarithm of the context's last close, (B, 1), float64; None where it is not needed.
    """

    center: Tensor
    scale: Tensor
    last_close: Tensor | None = None


class Representation(ABC):
    """Bars in their own units to what the tokenizer sees, and back.

    Parameters
    ----------
    components
        Names of the C components that the tokenizer sees, in the networks' order.
    clip
        Bound on the absolute normalised value that the networks get.
    given
        Names of the components of the bars in their own units, in the networks' order; None: all.
        A tokenizer of whole candles takes bars without volume or amount: see ``completed``.

    Raises
    ------
    ValueError
        If the components that are not given cannot be made up.
    """

    name: str

    separate_bars: bool
    """Whether a bar's normalised values say nothing of the level that the bars before it reached,
    so that a bar can be varied by itself."""

    def __init__(self, components: Sequence[str], clip: float, given: Sequence[str] | None = None):
        self.components = tuple(components)
        self.clip = clip
        self.given = tuple(given or components)
        made_up = [name for name in self.components if name not in self.given]
        if made_up and (self.components != CANDLE or set(made_up) - set(VOLUMES)):
            raise ValueError(
                f"The tokenizer sees {list(self.components)}, the bars have {list(self.given)}: "
                f"{', '.join(made_up)} cannot be made up."
            )
        self.prices = [self.components.index(name) for name in PRICES if name in self.components]
        self.volumes = [self.components.index(name) for name in VOLUMES if name in self.components]
        self._own = [self.components.index(name) for name in self.given]
        # Upside down, a bar's high is its low.
        both = {"high", "low"} <= set(self.components)
        turned = {"high": "low", "low": "high"} if both else {}
        self._turned_prices = [
            self.components.index(turned.get(name, name))
            for name in PRICES
            if name in self.components
        ]

    def completed(self, bars: Tensor) -> Tensor:
        """Bars (B, T, G) of the given components as the tokenizer takes them, (B, T, C).

        As released: without volume, volume and amount are 0; without amount, it is the volume
        times the mean of the four prices.
        """
        if self.given == self.components:
            return bars
        prices = bars[..., self.prices]
        if "volume" in self.given:
            volume = bars[..., self.given.index("volume"), None]
        else:
            volume = torch.zeros_like(prices[..., :1])
        return torch.cat((prices, volume, volume * prices.mean(dim=-1, keepdim=True)), dim=-1)

    def encode(self, bars: Tensor, context_length: int) -> tuple[Tensor, Statistics]:
        """Normalise windows by the statistics of their first `context_length` bars.

        Parameters
        ----------
        bars
            Windows in their own units, (B, T, G).
        context_length
            Bars of each window that are known when a forecast is made, >= 1.

        Returns
        -------
        tuple
            Normalised bars, (B, T, C), float32, within [-clip, clip]; and the statistics.
        """
        features, statistics = self._features(self.completed(bars.double()), context_length)
        centered = features - statistics.center
        normalised = torch.where(statistics.scale > 0, centered / statistics.scale, 0.0)
        return normalised.clamp(-self.clip, self.clip).float(), statistics

    @abstractmethod
    def _features(self, bars: Tensor, context_length: int) -> tuple[Tensor, Statistics]:
        """Features (B, T, C) before normalisation, and the statistics of their context."""

    def decode(self, normalised: Tensor, statistics: Statistics) -> Tensor:
        """Bars in their own units, (S, B, n, G), float64, that follow the context.

        Parameters
        ----------
        normalised
            Paths of normalised bars, (S, B, n, C).
        statistics
            Of the B contexts, as ``encode`` gave them.
        """
        return self._narrowed(self._decoded(normalised, statistics))

    @abstractmethod
    def _decoded(self, normalised: Tensor, statistics: Statistics) -> Tensor:
        """Bars in their own units, (S, B, n, C): what ``decode`` gives of all components."""

    def _narrowed(self, bars: Tensor) -> Tensor:
        """The given components, (..., G), of bars (..., C)."""
        return bars if self.given == self.components else bars[..., self._own]

    def mirrored(self, normalised: Tensor) -> Tensor:
        """Normalised bars (B, T, C) upside down: prices negated, highs and lows exchanged.

        What rose falls as much: a market that is as likely as the one that was seen, where no
        drift is to be learned.
        """
        turned = normalised.clone()
        turned[..., self.prices] = -normalised[..., self._turned_prices]
        return turned

    def read_back(self, normalised: Tensor, bars: Tensor, statistics: Statistics) -> Tensor:
        """Bars (B, T, G) in their own units, each after the actual bars (B, T, G) before it.

        ``decode`` goes on from bars that it decoded itself; this shows what became of single ones.

        Parameters
        ----------
        normalised
            What the tokenizer made of the bars, (B, T, C).
        bars
            The bars themselves, (B, T, G).
        statistics
            As ``encode`` gave them.
        """
        return self.decode(normalised.unsqueeze(0), statistics).squeeze(0)

    def anchored(
        self, paths: Tensor, context: Tensor, last: Tensor, statistics: Statistics
    ) -> Tensor:
        """Sample paths that start from the last close, whatever the tokenizer made of it.

        Prices are shifted by the last close less its reconstruction; "returns" need no shift.

        Parameters
        ----------
        paths
            Paths in their own units, (S, B, n, G).
        context
            The bars before them, in their own units, (B, T, G).
        last
            What the tokenizer made of the contexts' last bars, normalised, (B, C).
        statistics
            Of the contexts.
        """
        return paths

    def opposite(self, paths: Tensor, context: Tensor) -> Tensor:
        """Sample paths upside down about the last close; highs and lows change places.

        Parameters
        ----------
        paths
            Paths in their own units, (S, B, n, G), with a close.
        context
            The bars before them, in their own units, (B, T, G).
        """
        last = context[:, -1, self.given.index("close"), None, None].to(paths.dtype)
        turned = paths.clone()
        turned[..., self.prices] = self._about(last, paths[..., self._turned_prices])
        return turned

    @abstractmethod
    def _about(self, last: Tensor, prices: Tensor) -> Tensor:
        """Prices (S, B, n, P) as far on the other side of the last closes (B, 1, 1)."""

    def valid(self, paths: Tensor, context: Tensor) -> Tensor:
        """The nearest valid candles to those of sample paths.

        High becomes the highest and low the lowest of the prices that there are; volume and amount
        are at least 0; prices stay above 0 where the context's are.

        Parameters
        ----------
        paths
            Paths in their own units, (S, B, n, G).
        context
            The bars before them, in their own units, (B, T, G).
        """
        paths = paths.clone()
        if self.prices:
            least = context[..., self.prices].amin(dim=(1, 2)).to(paths.dtype)
            floor = torch.where(least > 0, least * PRICE_FLOOR, -torch.inf)[:, None, None]
            prices = torch.maximum(paths[..., self.prices], floor)
            names = [self.components[place] for place in self.prices]
            highest, lowest = prices.amax(dim=-1), prices.amin(dim=-1)
            for name, bound in (("high", highest), ("low", lowest)):
                if name in names:
                    prices[..., names.index(name)] = bound
            paths[..., self.prices] = prices
        volumes = [i for i, name in enumerate(self.given) if name in VOLUMES]
        if volumes:
            paths[..., volumes] = paths[..., volumes].clamp(min=0.0)
        return paths


class WindowRepresentation(Representation):
    """As released: each component less the context's mean, over its population deviation."""

    name = "window"
    separate_bars = False

    def _features(self, bars: Tensor, context_length: int) -> tuple[Tensor, Statistics]:
        context = bars[:, :context_length]
        center = context.mean(dim=1, keepdim=True)
        scale = context.std(dim=1, keepdim=True, correction=0) + WINDOW_EPS
        return bars, Statistics(center, scale)

    def _decoded(self, normalised: Tensor, statistics: Statistics) -> Tensor:
        return normalised.double() * statistics.scale + statistics.center

    def _about(self, last: Tensor, prices: Tensor) -> Tensor:
        return 2 * last - prices

    def anchored(
        self, paths: Tensor, context: Tensor, last: Tensor, statistics: Statistics
    ) -> Tensor:
        """Paths that start from the last close; see the base class."""
        if "close" not in self.components:
            return paths
        close = self.components.index("close")
        rebuilt = self.decode(last[None, :, None], statistics)[0, :, 0, close]
        gap = (context[:, -1, close].to(rebuilt.dtype) - rebuilt)[:, None, None]
        anchored = paths.clone()
        anchored[..., self.prices] += gap
        return anchored


class ReturnsRepresentation(Representation):
    """Prices as log returns over the previous close, in units of the context's volatility.

    Open, high, low and close are log returns over the previous bar's close, divided by the
    standard deviation of the context's close returns. Volume and amount are log1p, centred and
    scaled by the context. Other components are centred and scaled by it as they are. What is
    constant in the context is 0. The first bar's previous close is its own open. Paths are
    multiplied up from the last close, so the first new bar cannot jump.
    """

    name = "returns"
    separate_bars = True

    def __init__(self, components: Sequence[str], clip: float, given: Sequence[str] | None = None):
        super().__init__(components, clip, given)
        if not has_prices(self.components):
            raise ValueError(
                "`representation='returns'` needs the components open, high, low and close; got "
                f"{list(self.components)}. Use `representation='window'`."
            )

    def _features(self, bars: Tensor, context_length: int) -> tuple[Tensor, Statistics]:
        features = bars.clone()
        log_prices = bars[..., self.prices].log()
        close = log_prices[..., -1:]
        features[..., self.prices] = log_prices - self._previous(log_prices).unsqueeze(-1)
        features[..., self.volumes] = bars[..., self.volumes].clamp(min=0.0).log1p()

        context = features[:, :context_length]
        center = context.mean(dim=1, keepdim=True)
        scale = context.std(dim=1, keepdim=True, correction=0)
        # The first bar has no close before it, so its return does not count.
        returns = context[:, 1:, self.prices[-1]]
        volatility = returns.std(dim=1, keepdim=True, correction=0)
        center[..., self.prices] = 0.0
        scale[..., self.prices] = volatility.unsqueeze(-1)
        constant = scale <= CONSTANT * center.abs().clamp(min=1.0)
        scale = scale.masked_fill(constant, 0.0)
        return features, Statistics(center, scale, close[:, context_length - 1])

    def _decoded(self, normalised: Tensor, statistics: Statistics) -> Tensor:
        assert statistics.last_close is not None
        features = normalised.double() * statistics.scale + statistics.center
        close_returns = features[..., self.prices[-1]]
        previous = statistics.last_close + close_returns.cumsum(dim=-1) - close_returns
        return self._bars(features, previous)

    def read_back(self, normalised: Tensor, bars: Tensor, statistics: Statistics) -> Tensor:
        """Bars over the actual closes before them; see the base class."""
        features = normalised.double() * statistics.scale + statistics.center
        previous = self._previous(bars[..., self.prices].double().log())
        return self._narrowed(self._bars(features, previous))

    def _about(self, last: Tensor, prices: Tensor) -> Tensor:
        # Returns with the opposite sign.
        return last.square() / prices

    @staticmethod
    def _previous(log_prices: Tensor) -> Tensor:
        """The log close before each bar (..., T); before the first one, its own open."""
        return torch.cat((log_prices[..., :1, 0], log_prices[..., :-1, -1]), dim=-1)

    def _bars(self, features: Tensor, previous: Tensor) -> Tensor:
        bars = features.clone()
        bars[..., self.prices] = (previous.unsqueeze(-1) + features[..., self.prices]).exp()
        bars[..., self.volumes] = features[..., self.volumes].expm1()
        return bars


REPRESENTATIONS = {cls.name: cls for cls in (WindowRepresentation, ReturnsRepresentation)}
"""The representations by name."""


def representation_named(
    name: str, components: Sequence[str], clip: float, given: Sequence[str] | None = None
) -> Representation:
    """The representation called `name` for these components; see :class:`Representation`.

    Raises
    ------
    ValueError
        If there is none of that name, or it cannot represent the components.
    """
    if name not in REPRESENTATIONS:
        raise ValueError(
            f"Unknown representation {name!r}; the representations are "
            f"{', '.join(map(repr, REPRESENTATIONS))}."
        )
    return REPRESENTATIONS[name](components, clip, given)
