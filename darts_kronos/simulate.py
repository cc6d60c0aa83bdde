"""Simulated candles: GARCH and stochastic-volatility markets with gaps and volume, seeded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from darts import TimeSeries

from darts_kronos.components import CANDLE
from darts_kronos.parameters import require_int

if TYPE_CHECKING:
    from darts_kronos.model import KronosModel

Market = Literal["garch", "stochastic_volatility", "both"]

_STEPS = 12
"""Steps of the price within a bar, of which its high and low are the extremes."""

_WARM_UP = 200
"""Bars in which volatility settles before the first that is kept."""


def simulate_candles(
    n_series: int = 8,
    n_bars: int = 1000,
    *,
    market: Market = "both",
    freq: str = "h",
    seed: int = 0,
) -> list[TimeSeries]:
    """Candles of simulated markets, to train on before, or beside, real ones.

    Each series has parameters of its own, drawn from ranges that are usual for returns of
    markets: volatility that clusters, heavy tails, gaps between sessions, volume that rises with
    volatility. No return can be forecast from those before it, but its spread can: what a model
    learns here is how candles hang together and how their volatility moves.

    Parameters
    ----------
    n_series
        Number of series.
    n_bars
        Bars of each.
    market
        "garch": GARCH(1,1) with Student innovations. "stochastic_volatility": log variance as an
        autoregression, falling prices raising it. "both": every other series of either.
    freq
        Frequency of the bars' DatetimeIndex, which says no more than the bars' order.
    seed
        Of the random numbers, an integer >= 0; the same seed gives the same candles.

    Returns
    -------
    list of TimeSeries
        Components open, high, low, close, volume and amount; float64.

    Raises
    ------
    ValueError
        If a number is not an integer or too small, or `market` is unknown.
    """
    require_int("n_series", n_series, 1)
    require_int("n_bars", n_bars, 1)
    require_int("seed", seed, 0)
    if market not in ("garch", "stochastic_volatility", "both"):
        raise ValueError(
            f"`market` must be 'garch', 'stochastic_volatility' or 'both', got {market!r}."
        )
    series = []
    for i in range(n_series):
        # A generator for each: a series does not depend on how many others there are.
        rng = np.random.default_rng((seed, i))
        garch = market == "garch" or (market == "both" and i % 2 == 0)
        deviation, shocks = (_garch if garch else _stochastic_volatility)(n_bars + _WARM_UP, rng)
        bars = _candles(deviation[_WARM_UP:], shocks[_WARM_UP:], rng)
        index = pd.date_range("2000-01-03", periods=n_bars, freq=freq, name="timestamps")
        series.append(TimeSeries(times=index, values=bars, components=pd.Index(CANDLE), copy=False))
    return series


def pretrain(
    model: KronosModel,
    *,
    components: Sequence[str] = CANDLE,
    n_series: int = 48,
    n_bars: int = 1200,
    stride: int = 10,
    epochs: int = 4,
    market: Market = "both",
    seed: int = 0,
    verbose: bool | None = None,
) -> KronosModel:
    """Train both stages of a new model on simulated candles, before it sees real ones.

    A few thousand real bars are soon known by heart; what they have in common with all markets,
    the shape of candles, heavy tails and volatility that clusters, is learned better from a
    market that never repeats. ``fit`` then goes on with the predictor, on real series, and leaves
    the tokenizer as it is. A pretrained model can be saved and be the start of many.

    Parameters
    ----------
    model
        A model that was not fitted yet; it is trained in place.
    components
        Those of the real series to come, some of open, high, low, close, volume and amount.
    n_series, n_bars, market, seed
        See :func:`simulate_candles`. Each series must have room for a training window.
    stride
        Bars from one training window to the next.
    epochs
        Of the predictor stage.
    verbose
        See Darts' ``TorchForecastingModel.fit``.

    Returns
    -------
    KronosModel
        `model`.

    Raises
    ------
    ValueError
        Before anything is trained, if the model was fitted before, or a value is out of range.

    Examples
    --------
    >>> model = pretrain(KronosModel(input_chunk_length=96, output_chunk_length=12))
    >>> model.save("pretrained.pt")
    >>> model.fit(train, val_series=val)
    """
    if model.model is not None:
        raise ValueError("Only a new model can be pretrained: this one was fitted or loaded.")
    components = list(components)
    unknown = [name for name in components if name not in CANDLE]
    if unknown or not components or len(set(components)) < len(components):
        raise ValueError(
            f"`components` must be some of {', '.join(CANDLE)}, each once, got {components}."
        )
    if not isinstance(epochs, (int, np.integer)) or isinstance(epochs, bool) or epochs < 1:
        raise ValueError(f"`epochs` must be an integer >= 1, got {epochs!r}.")
    series = simulate_candles(n_series, n_bars, market=market, seed=seed)
    return model.fit(
        [one[components] for one in series], stride=stride, epochs=int(epochs), verbose=verbose
    )


def _garch(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Deviation of each bar's return, on average about 1, and its standardised return."""
    alpha = rng.uniform(0.05, 0.2)
    beta = rng.uniform(0.93, 0.99) - alpha
    freedom = rng.uniform(3.5, 10)
    shocks = rng.standard_t(freedom, n) * np.sqrt((freedom - 2) / freedom)
    variance = np.ones(n)
    for t in range(1, n):
        variance[t] = 1 - alpha - beta + (alpha * shocks[t - 1] ** 2 + beta) * variance[t - 1]
    return np.sqrt(variance), shocks


def _stochastic_volatility(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`_garch`, of a log variance that is an autoregression."""
    persistence = rng.uniform(0.9, 0.99)
    spread = rng.uniform(0.3, 0.9)
    leverage = rng.uniform(-0.6, 0.0)
    shocks = rng.standard_normal(n)
    noise = leverage * shocks + np.sqrt(1 - leverage**2) * rng.standard_normal(n)
    log_variance = np.zeros(n)
    for t in range(1, n):
        step = spread * np.sqrt(1 - persistence**2) * noise[t - 1]
        log_variance[t] = persistence * log_variance[t - 1] + step
    return np.exp(log_variance / 2 - spread**2 / 4), shocks


def _candles(deviation: np.ndarray, shocks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bars (T, 6) with the given standardised close returns."""
    n = len(deviation)
    unit = np.exp(rng.uniform(np.log(3e-4), np.log(2e-2)))
    # Part of a bar's move is its gap from the close before; at the start of a session, more.
    session = int(rng.choice([1, 7, 24, 48, 66]))
    opens_session = np.arange(n) % session == 0
    gap_share = np.where(opens_session, rng.uniform(0.2, 0.6), rng.uniform(0.0, 0.08))
    move = unit * deviation * np.where(opens_session & (session > 1), rng.uniform(1.0, 2.5), 1.0)
    returns = move * shocks
    gaps = gap_share * returns + move * np.sqrt(gap_share) * 0.5 * rng.standard_normal(n)
    # Within the bar a Brownian bridge from the open to the close.
    steps = rng.standard_normal((n, _STEPS)) / np.sqrt(_STEPS)
    walk = np.cumsum(steps, axis=1)
    at = np.arange(1, _STEPS + 1) / _STEPS
    bridge = walk - at * walk[:, -1:]
    inside = gaps[:, None] + at * (returns - gaps)[:, None] + move[:, None] * bridge
    before = np.log(rng.uniform(5, 500)) + np.concatenate(([0.0], returns.cumsum()[:-1]))
    log_open = before + gaps
    log_close = before + returns
    log_high = np.maximum(np.maximum(log_open, log_close), before + inside.max(axis=1))
    log_low = np.minimum(np.minimum(log_open, log_close), before + inside.min(axis=1))
    prices = np.exp(np.stack((log_open, log_high, log_low, log_close), axis=1))

    activity = np.zeros(n)
    persistence, noise = rng.uniform(0.5, 0.95), rng.standard_normal(n) * rng.uniform(0.1, 0.4)
    for t in range(1, n):
        activity[t] = persistence * activity[t - 1] + noise[t]
    level = rng.uniform(6, 16)
    log_volume = level + activity + rng.uniform(0.5, 1.2) * np.log(deviation)
    log_volume += rng.uniform(0.1, 0.5) * np.abs(shocks) + 0.8 * opens_session * (session > 1)
    volume = np.exp(log_volume)
    return np.column_stack((prices, volume, volume * prices.mean(axis=1)))
