"""Measures of forecasts: of the close, and of whole candles.

Shapes by letter: W windows, n bars of the horizon, S samples, M models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.spatial.distance import pdist
from statsmodels.regression.linear_model import OLS

LEVELS = (0.5, 0.9)
"""Intervals whose coverage and Winkler score are measured."""

POSITIONS = "weibull"
"""NumPy's name for quantiles whose ranks among S draws are p (S + 1): in the mean, an interval
between them holds its level of what comes, if that is drawn as the paths are."""

NOTHING = 1e-4
"""Share of the paths' spread below which their mean return is rounding."""

FEWEST = 10
"""Forecasts up, or down, below which nothing is said of whether they tell the two apart."""

HIGH, LOW, CLOSE = 1, 2, 3


@dataclass(frozen=True)
class Scores:
    """What a model's forecasts of a series were worth, window by window.

    Attributes
    ----------
    absolute, squared, crps
        Of the close, in units of the last close, (W, n); the absolute error is of the paths'
        median, the squared one of their mean.
    naive
        Actual return on the last close: minus the error of the last close as a forecast, (W, n).
    inside, winkler
        For each of ``LEVELS``, (W, n).
    energy
        Energy score of the paths of log prices, in units of the context's volatility, (W,); NaN
        for models of the close alone.
    volatility, actual_volatility
        Forecast and actual realised volatility over the horizon, (W,).
    predicted, actual
        Forecast and actual return over the horizon, (W,). A forecast that is 0 but for rounding, as
        that of paths in pairs, is 0.
    valid
        Share of valid candles; NaN for models of the close alone.
    """

    absolute: np.ndarray
    squared: np.ndarray
    crps: np.ndarray
    naive: np.ndarray
    inside: dict[str, np.ndarray]
    winkler: dict[str, np.ndarray]
    energy: np.ndarray
    volatility: np.ndarray
    actual_volatility: np.ndarray
    predicted: np.ndarray
    actual: np.ndarray
    valid: float


def crps(samples: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Continuous ranked probability score of samples (..., S) against values (...)."""
    ordered = np.sort(samples, axis=-1)
    S = samples.shape[-1]
    weights = (2 * np.arange(1, S + 1) - S - 1) / S**2
    return np.abs(ordered - actual[..., None]).mean(axis=-1) - (ordered * weights).sum(axis=-1)


def interval(
    low: np.ndarray, high: np.ndarray, actual: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Whether values lie in intervals of a level, and the intervals' Winkler scores."""
    outside = np.maximum(low - actual, 0) + np.maximum(actual - high, 0)
    return outside == 0, high - low + 2 / (1 - level) * outside


def score(
    paths: np.ndarray, contexts: np.ndarray, futures: np.ndarray, positions: str = POSITIONS
) -> Scores:
    """Scores of forecasts.

    Parameters
    ----------
    paths
        Sample paths of open, high, low and close, (W, n, 4, S), or of the close alone,
        (W, n, 1, S); in the order in which they would be traded, without a look ahead.
    contexts, futures
        The bars before, (W, T, 4), and the bars that came, (W, n, 4).
    positions
        NumPy's name for the quantiles that intervals lie between.
    """
    last = contexts[:, -1:, CLOSE]
    whole = paths.shape[2] == 4
    close = paths[:, :, CLOSE if whole else 0] / last[..., None]  # (W, n, S)
    actual = futures[:, :, CLOSE] / last
    median = np.median(close, axis=-1)
    inside, winkler = {}, {}
    for level in LEVELS:
        tails = [(1 - level) / 2, (1 + level) / 2]
        ends = np.quantile(close, tails, axis=-1, method=positions)
        inside[f"{level:.0%}"], winkler[f"{level:.0%}"] = interval(*ends, actual, level)
    log_paths = np.log(np.maximum(close, 1e-6))
    first = np.zeros_like(log_paths[:, :1])
    steps = np.diff(log_paths, axis=1, prepend=first)
    moves, spread = log_paths[:, -1].mean(axis=-1), log_paths[:, -1].std(axis=-1)
    log_actual = np.log(actual)
    actual_steps = np.diff(log_actual, axis=1, prepend=0.0)
    returns = np.diff(np.log(contexts[:, :, CLOSE]), axis=1)
    scale = returns.std(axis=1)
    if whole:
        relative = np.log(np.maximum(paths / last[:, :, None, None], 1e-6))
        came = np.log(futures[:, :, :4] / last[:, :, None])
        energy = _energy(relative / scale[:, None, None, None], came / scale[:, None, None])
        prices = paths
        top, bottom = prices.max(axis=2), prices.min(axis=2)
        tolerance = 1e-9 * top
        ok = (prices[:, :, HIGH] >= top - tolerance) & (prices[:, :, LOW] <= bottom + tolerance)
        valid = float((ok & (bottom > 0)).mean())
    else:
        energy, valid = np.full(len(paths), np.nan), float("nan")
    return Scores(
        absolute=np.abs(median - actual),
        squared=(close.mean(axis=-1) - actual) ** 2,
        crps=crps(close, actual),
        naive=actual - 1,
        inside=inside,
        winkler=winkler,
        energy=energy,
        volatility=np.sqrt((steps**2).sum(axis=1)).mean(axis=-1),
        actual_volatility=np.sqrt((actual_steps**2).sum(axis=1)),
        predicted=np.where(np.abs(moves) > NOTHING * spread, moves, 0.0),
        actual=log_actual[:, -1],
        valid=valid,
    )


def _energy(paths: np.ndarray, came: np.ndarray) -> np.ndarray:
    """Energy score of paths (W, n, C, S) against (W, n, C), from the distances of all pairs."""
    W, S = paths.shape[0], paths.shape[-1]
    flat = paths.reshape(W, -1, S)
    to_actual = np.linalg.norm(flat - came.reshape(W, -1, 1), axis=1).mean(axis=-1)
    # Each pair counts twice, and a path is at no distance from itself.
    apart = np.array([2 * pdist(one.T).sum() / S**2 for one in flat])
    return to_actual - 0.5 * apart


def diebold_mariano(ours: np.ndarray, theirs: np.ndarray, horizon: int) -> tuple[float, float]:
    """Diebold-Mariano statistic with the Harvey-Leybourne-Newbold correction.

    Parameters
    ----------
    ours, theirs
        Losses of two forecasters of the same windows in order of time, (W,).
    horizon
        Windows that one forecast overlaps, its own included.

    Returns
    -------
    tuple
        The statistic, negative if ours is better, and the two-sided p-value.

    References
    ----------
    .. [1] D. Harvey, S. Leybourne, P. Newbold, "Testing the equality of prediction mean squared
           errors", International Journal of Forecasting 13 (1997).
    """
    d = ours - theirs
    W = len(d)
    centred = d - d.mean()
    covariances = [centred[lag:] @ centred[: W - lag] / W for lag in range(min(horizon, W))]
    variance = covariances[0] + 2 * sum(covariances[1:])
    if variance <= 0:
        # Bartlett weights keep it positive.
        variance = covariances[0] + 2 * sum(
            (1 - lag / horizon) * covariances[lag] for lag in range(1, len(covariances))
        )
    if variance <= 0:
        return float("nan"), float("nan")
    correction = (W + 1 - 2 * horizon + horizon * (horizon - 1) / W) / W
    statistic = d.mean() / np.sqrt(variance / W) * np.sqrt(max(correction, 0.0))
    return float(statistic), float(2 * stats.t.sf(abs(statistic), W - 1))


def directional_accuracy(
    predicted: np.ndarray, actual: np.ndarray, overlap: int = 1
) -> tuple[float, float]:
    """Share of returns whose sign was forecast, and a test of whether forecasts tell signs apart.

    The test is that of Pesaran and Timmermann as a regression: of whether a price rose on whether
    it was forecast to, with the errors of Newey and West, since forecasts that overlap err
    together. So a forecast that always says "up" shows nothing, however often prices rose.

    Parameters
    ----------
    predicted, actual
        Returns over the horizon in order of time, (W,); those of 0 are left out.
    overlap
        Windows that one forecast overlaps, its own included.

    Returns
    -------
    tuple
        The share of right signs, NaN without any, and the one-sided p-value of "no better than
        chance", NaN if fewer than ``FEWEST`` forecasts or returns say one or the other.

    References
    ----------
    .. [1] M. H. Pesaran, A. Timmermann, "Testing dependence among serially correlated
           multicategory variables", Journal of the American Statistical Association 104 (2009).
    """
    moved = (actual != 0) & (predicted != 0)
    if not moved.any():
        return float("nan"), float("nan")
    rises, said = actual[moved] > 0, predicted[moved] > 0
    share = float((rises == said).mean())
    fewest = min(np.count_nonzero(group) for group in (said, ~said, rises, ~rises))
    if fewest < FEWEST:
        return share, float("nan")
    design = np.column_stack((np.ones(len(said)), said))
    fitted = OLS(rises.astype(float), design).fit(
        cov_type="HAC", cov_kwds={"maxlags": 2 * (overlap - 1), "use_correction": True}, use_t=True
    )
    return share, float(stats.t.sf(fitted.tvalues[1], fitted.df_resid))
