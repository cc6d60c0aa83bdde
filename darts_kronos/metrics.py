"""Measures of forecasts across series, which Darts' metrics lack."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from darts import TimeSeries
from scipy.stats import rankdata

from darts_kronos.components import canonical


def rank_ic(
    actual_series: Sequence[TimeSeries],
    pred_series: Sequence[TimeSeries],
    last_close: Sequence[float],
    component: str = "close",
) -> float:
    """Rank information coefficient of forecast returns across series.

    The Spearman correlation, over the series, of the return that each forecast promises by the
    end of its horizon and the one that came: how well a forecast ranks assets at one time.

    Parameters
    ----------
    actual_series
        What came, one series for each asset; it covers the forecast's last bar.
    pred_series
        The forecasts; the mean of their samples is taken.
    last_close
        The last close known to each forecast.
    component
        The component whose returns are ranked.

    Returns
    -------
    float
        In [-1, 1]; NaN where all returns of one side are equal.

    Raises
    ------
    ValueError
        If there are fewer than two series, the three sequences differ in length, or a series has
        no such component.
    """
    if not len(actual_series) == len(pred_series) == len(last_close):
        raise ValueError(
            "`actual_series`, `pred_series` and `last_close` must have one length, got "
            f"{len(actual_series)}, {len(pred_series)} and {len(last_close)}."
        )
    if len(pred_series) < 2:
        raise ValueError(f"A rank correlation needs at least 2 series, got {len(pred_series)}.")
    came, promised = [], []
    for actual, pred, close in zip(actual_series, pred_series, last_close, strict=True):
        actual, pred = (one[_own_name(one, component)] for one in (actual, pred))
        known = actual.slice_intersect(pred)
        if len(known) == 0 or known.end_time() != pred.end_time():
            raise ValueError(f"An actual series does not cover the forecast's {pred.end_time()}.")
        came.append(known.all_values(copy=False)[-1, 0].mean() / close - 1)
        promised.append(pred.all_values(copy=False)[-1, 0].mean() / close - 1)
    ranks = rankdata(came), rankdata(promised)
    if np.ptp(ranks[0]) == 0 or np.ptp(ranks[1]) == 0:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def _own_name(series: TimeSeries, component: str) -> str:
    """What a series calls a component, which a candle's may be in any case."""
    for name in series.components:
        if canonical(name) == canonical(component):
            return str(name)
    raise ValueError(f"A series has no component {component!r}, only {list(series.components)}.")
