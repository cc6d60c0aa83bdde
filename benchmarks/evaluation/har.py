"""The random walk's bands at the volatility that a regression foretells.

The heterogeneous autoregression of Corsi (2009): the variance to come from those of the last bars,
of tens of bars and of the whole context. Here they are of whole candles (Rogers and Satchell, 1991,
and the jump to the open), once the usual size of bars at their time of day is taken off. It is what
a sceptic would try before a network.

Shapes by letter: T bars, W windows, n bars of horizon, S sample paths.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from darts import TimeSeries
from sklearn.linear_model import GammaRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from darts_kronos import candles
from evaluation.baselines import bars_of, draw, paths_of, without_mean
from evaluation.data import HORIZON, PRICES, cut, windows
from evaluation.measures import CLOSE

NAME = "HAR walk"
"""Of this forecaster in the results."""

SPANS = (1, 2, 5, 10, 22, 50, 95)
"""Bars before a forecast that variances of candles are taken over."""

RETURN_SPANS = (1, 5, 22)
"""Bars before a forecast whose returns are summed: volatility grows as prices fall."""

PART_OF_DAY = pd.Timedelta("30min")
"""Times of day that are told apart; the first bar of a day is another still."""

CUT_OFF = 0.999
"""Quantile at which variances to learn from are cut off."""

LEAST = 1e-3
"""Share of the usual variance that keeps none from being 0."""


class HarWalk:
    """Bars of the context in a random order, scaled to the variance of the bars to come.

    Parameters
    ----------
    train
        Training part of a pool; its series share one regression.
    """

    def __init__(self, train: list[TimeSeries]):
        times = np.concatenate([_times_of_day(one)[1:] for one in train])
        usual = pd.Series(np.concatenate([_squares(one) for one in train])).groupby(times).mean()
        self._usual: pd.Series = (usual / usual.reindex(times).mean()).clip(lower=LEAST)
        seen, came = [], []
        for one in train:
            contexts, futures = cut(self._seen(one), 1)
            features, variance = _features(contexts[:, 1:])
            known = variance > 0
            seen.append(features[known])
            came.append((futures[known][..., CLOSE] ** 2).mean(axis=1) / variance[known])
        ratios = np.concatenate(came)
        ratios = ratios.clip(LEAST, np.quantile(ratios, CUT_OFF))
        self._regression = make_pipeline(
            StandardScaler(), GammaRegressor(alpha=1e-3, max_iter=1000)
        )
        self._regression.fit(np.concatenate(seen), ratios)

    @property
    def n_parameters(self) -> int:
        """Numbers that were learned."""
        return len(self._usual) + len(SPANS) + len(RETURN_SPANS) + 1

    def paths(self, series: TimeSeries, stride: int, rng: np.random.Generator) -> np.ndarray:
        """Sample paths (W, n, 4, S) of the windows of a validation or test series."""
        contexts, _ = windows(series[PRICES], stride)
        bars = cut(self._seen(series), stride)[0][:, 1:]
        _, sizes = cut(self._sizes(series)[:, None], stride)
        features, variance = _features(bars)
        scale = np.where(variance > 0, np.sqrt(self._regression.predict(features)), 1.0)
        drawn = draw(without_mean(bars) * scale[:, None, None], HORIZON, rng)
        return paths_of(drawn * sizes[:, None], contexts)

    def _sizes(self, series: TimeSeries) -> np.ndarray:
        """The usual deviation of each bar at its time of day, (T,), about 1 in the mean."""
        return np.sqrt(self._usual.reindex(_times_of_day(series)).fillna(1.0).to_numpy())

    def _seen(self, series: TimeSeries) -> np.ndarray:
        """Bars over the close before, as they would be at a usual time of day, (T, 4)."""
        bars = bars_of(series[PRICES].values(copy=False)[None])[0]
        # Nothing is known before the first bar, which no window looks at.
        return np.pad(bars, ((1, 0), (0, 0))) / self._sizes(series)[:, None]


def _times_of_day(series: TimeSeries) -> np.ndarray:
    """A number for the time of day of each bar, (T,); bars of whole days have the same."""
    times = pd.DatetimeIndex(candles.timestamps(series))
    days = times.normalize()
    parts = ((times - days) // PART_OF_DAY).to_numpy()
    if len(np.unique(parts)) == 1:
        return np.zeros(len(parts), dtype=int)
    return np.where(np.append(True, days[1:] != days[:-1]), -1, parts)


def _squares(series: TimeSeries) -> np.ndarray:
    """Squared returns over their mean, the largest cut off, (T - 1,)."""
    squares = np.diff(np.log(series["close"].values()[:, 0])) ** 2
    return np.minimum(squares, np.quantile(squares, CUT_OFF)) / squares.mean()


def _features(bars: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the variance to come is told from, (W, features), and the context's variance, (W,)."""
    opened, high, low, close = np.moveaxis(bars, -1, 0)
    candle = opened**2 + (high - opened) * (high - close) + (low - opened) * (low - close)
    variance = (close**2).mean(axis=1)
    usual = np.maximum(variance, np.finfo(float).tiny)
    over = [candle[:, -span:].mean(axis=1) / usual for span in SPANS]
    logs = [np.log(ratio + LEAST) for ratio in over]
    moves = [close[:, -span:].sum(axis=1) / np.sqrt(span * usual) for span in RETURN_SPANS]
    return np.stack(logs + moves, axis=1), variance
