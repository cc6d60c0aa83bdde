"""Forecasters without training: the random walk and its kin, from the context alone.

Each takes contexts (W, T, C) with open, high, low and close first, and gives sample paths
(W, n, 4, S), or (W, n, 1, S) of the close alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from evaluation.measures import CLOSE

SAMPLES = 200

DECAY = 0.94
"""Of the exponentially weighted variance, as RiskMetrics has it."""

_BURN_IN = 5


def bars_of(contexts: np.ndarray) -> np.ndarray:
    """Log open, high, low and close of each bar over the close before it, (W, T - 1, 4)."""
    log = np.log(contexts[:, :, :4])
    return log[:, 1:] - log[:, :-1, CLOSE : CLOSE + 1]


def paths_of(drawn: np.ndarray, contexts: np.ndarray) -> np.ndarray:
    """Paths (W, n, 4, S) of drawn bars (W, S, n, 4), put one after the other."""
    closes = drawn[..., CLOSE].cumsum(axis=-1)
    before = closes - drawn[..., CLOSE]
    last = np.log(contexts[:, -1, CLOSE])[:, None, None, None]
    return np.exp(last + before[..., None] + drawn).transpose(0, 2, 3, 1)


def draw(bars: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Bars (W, S, n, 4) drawn with replacement from each window's own."""
    W, T, _ = bars.shape
    which = rng.integers(0, T, size=(W, SAMPLES * n))
    return np.take_along_axis(bars, which[..., None], axis=1).reshape(W, SAMPLES, n, 4)


def without_mean(bars: np.ndarray) -> np.ndarray:
    """Bars whose closes have no mean return."""
    return bars - bars[..., CLOSE].mean(axis=1)[:, None, None]


def random_walk(contexts: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Bars of the context in a random order, their closes' mean return taken off."""
    return paths_of(draw(without_mean(bars_of(contexts)), n, rng), contexts)


def drift(contexts: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """The random walk with the context's mean return."""
    return paths_of(draw(bars_of(contexts), n, rng), contexts)


def ewma_variance(returns: np.ndarray) -> np.ndarray:
    """Variance of the next return, before each of returns (W, T) and after the last, (W, T + 1)."""
    variance = np.empty((returns.shape[0], returns.shape[1] + 1))
    variance[:, 0] = (returns[:, : 4 * _BURN_IN] ** 2).mean(axis=1)
    for t in range(returns.shape[1]):
        variance[:, t + 1] = DECAY * variance[:, t] + (1 - DECAY) * returns[:, t] ** 2
    return np.maximum(variance, 1e-16)


def ewma_walk(contexts: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """The random walk, its bars scaled from the volatility of their time to that of now."""
    bars = without_mean(bars_of(contexts))
    deviation = np.sqrt(ewma_variance(bars[..., CLOSE]))
    scaled = bars / deviation[:, :-1, None] * deviation[:, -1:, None]
    return paths_of(draw(without_mean(scaled[:, _BURN_IN:]), n, rng), contexts)


def told_volatility(
    contexts: np.ndarray, futures: np.ndarray, n: int, rng: np.random.Generator
) -> np.ndarray:
    """The random walk, its bars scaled to the realised volatility of the very bars to come.

    No forecast, as it knows the future: a yardstick of what perfect foresight of volatility, and
    of nothing else, would be worth.
    """
    bars = without_mean(bars_of(contexts))
    closes = np.concatenate((contexts[:, -1:, CLOSE], futures[:, :, CLOSE]), axis=1)
    realised = np.sqrt((np.diff(np.log(closes), axis=1) ** 2).mean(axis=1))
    scale = realised / bars[..., CLOSE].std(axis=1)
    return paths_of(draw(bars * scale[:, None, None], n, rng), contexts)


def garch(contexts: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """GARCH(1,1) without mean, fitted to each context; paths of the close by simulation."""
    from arch import arch_model

    closes = np.log(contexts[:, :, CLOSE])
    out = np.empty((len(contexts), n, 1, SAMPLES))
    for w, log in enumerate(closes):
        returns = np.diff(log)
        scale = 1 / max(returns.std(), 1e-12)
        model = arch_model(returns * scale, mean="Zero", vol="GARCH", rescale=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted = model.fit(disp="off", show_warning=False)
        forecast = fitted.forecast(
            horizon=n, method="simulation", simulations=SAMPLES, rng=rng.standard_normal
        )
        steps = forecast.simulations.values[-1] / scale  # (S, n)
        out[w, :, 0] = np.exp(log[-1] + steps.cumsum(axis=1)).T
    return out


BASELINES: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "random walk": random_walk,
    "EWMA walk": ewma_walk,
    "drift": drift,
    "GARCH": garch,
}
"""The forecasters by name; the better of the first two is what others are measured against."""

ORACLE = "told volatility"
"""Name of :func:`told_volatility` in the results."""
