"""Pictures of candles and their forecasts. matplotlib comes with the extra ``examples``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from darts import TimeSeries

from darts_kronos.components import PRICES, canonical, has_prices

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UP, DOWN, FAN, PATH = "#2e7d5b", "#b23b3b", "#3465a4", "#7f9cc4"
QUANTILES = ((0.05, 0.95), (0.25, 0.75))
BODY = 0.64
TICKS = 8


def plot_forecast(
    history: TimeSeries,
    forecast: TimeSeries,
    actual: TimeSeries | None = None,
    *,
    n_paths: int = 0,
    title: str | None = None,
) -> Figure:
    """Candlesticks of the history, and the forecast as a fan of the close.

    The fan holds 90% and 50% of the paths' closes; the median candle of each bar is drawn over
    it, and the actual candles, where known, beside it. Bars are drawn side by side, so that
    nights and weekends leave no holes.

    Parameters
    ----------
    history
        Bars before the forecast, with open, high, low and close.
    forecast
        Sample paths of the bars after it.
    actual
        What came, if known; bars outside the forecast's are left out.
    n_paths
        Number of single paths of the close to draw too.
    title
        Title of the figure.

    Returns
    -------
    matplotlib.figure.Figure
        The figure; save it with ``savefig``.

    Raises
    ------
    ValueError
        If a series lacks one of the four prices.
    """
    from matplotlib.figure import Figure

    known = _candles(history, "history")
    samples = forecast.all_values(copy=False)
    names = [canonical(name) for name in forecast.components]
    median = _candles(forecast, "forecast", np.median(samples, axis=2))
    with_volume = "volume" in known and bool((known["volume"] > 0).any())

    figure = Figure(figsize=(11, 6 if with_volume else 5), layout="constrained")
    if with_volume:
        prices, volumes = figure.subplots(
            2, 1, sharex=True, gridspec_kw={"height_ratios": [4, 1], "hspace": 0.02}
        )
    else:
        prices, volumes = figure.subplots(), None

    start = len(known)
    ahead = np.arange(start, start + len(median))
    closes = samples[:, names.index("close")]
    # The fan starts at the last known close: a point that every path has in common.
    x = np.concatenate(([start - 1], ahead))
    closes = np.vstack((np.full(closes.shape[1], known["close"].iloc[-1]), closes))
    for (low, high), alpha in zip(QUANTILES, (0.18, 0.3), strict=True):
        bounds = np.quantile(closes, [low, high], axis=1)
        label = f"{high - low:.0%} of paths"
        prices.fill_between(x, *bounds, color=FAN, alpha=alpha, linewidth=0, label=label)
    prices.plot(x, np.median(closes, axis=1), color=FAN, linewidth=1.4, label="median close")
    for i in range(min(n_paths, closes.shape[1])):
        prices.plot(x, closes[:, i], color=PATH, linewidth=0.6, alpha=0.7)

    _draw_candles(prices, np.arange(start), known)
    if actual is None:
        _draw_candles(prices, ahead, median, alpha=0.55)
    else:
        came = _candles(actual.slice_intersect(forecast), "actual")
        at = start + np.searchsorted(forecast.time_index, came.index)
        _draw_candles(prices, at, came)
    prices.axvline(start - 0.5, color="0.4", linewidth=0.8, linestyle=":")
    prices.set_ylabel("price")
    prices.legend(loc="upper left", frameon=False)
    prices.margins(x=0.01)
    if title:
        prices.set_title(title)

    if volumes is not None:
        rising = known["close"] >= known["open"]
        colors = np.where(rising, UP, DOWN)
        volumes.bar(np.arange(start), known["volume"], width=BODY, color=colors)
        if "volume" in median:
            volumes.bar(ahead, median["volume"], width=BODY, color=FAN, alpha=0.5)
        volumes.set_ylabel("volume")
    _label_times(
        volumes if volumes is not None else prices, history.time_index.append(forecast.time_index)
    )
    return figure


def _candles(series: TimeSeries, what: str, values: np.ndarray | None = None) -> pd.DataFrame:
    if not has_prices(series.components):
        raise ValueError(
            f"The {what} must have the components {', '.join(PRICES)}; it has "
            f"{list(series.components)}."
        )
    if values is None:
        values = series.all_values(copy=False).mean(axis=2)
    names = [canonical(name) for name in series.components]
    return pd.DataFrame(values, index=series.time_index, columns=names)


def _draw_candles(axes: Axes, x: np.ndarray, bars: pd.DataFrame, alpha: float = 1.0) -> None:
    for rising, color in ((True, UP), (False, DOWN)):
        chosen = ((bars["close"] >= bars["open"]) == rising).to_numpy()
        these, at = bars[chosen], x[chosen]
        axes.vlines(at, these["low"], these["high"], color=color, linewidth=0.8, alpha=alpha)
        bottom = these[["open", "close"]].min(axis=1)
        height = (these["close"] - these["open"]).abs()
        # A bar that closes where it opened is a line, not nothing.
        least = 1e-4 * bars["close"].mean()
        height = height.clip(lower=least)
        axes.bar(at, height, bottom=bottom, width=BODY, color=color, alpha=alpha)


def _label_times(axes: Axes, times: pd.Index) -> None:
    at = np.unique(np.linspace(0, len(times) - 1, TICKS).round().astype(int))
    if isinstance(times, pd.DatetimeIndex):
        same_hour = (times.hour == times[0].hour).all() and (times.minute == times[0].minute).all()
        labels = list(times[at].strftime("%Y-%m-%d" if same_hour else "%m-%d %H:%M"))
        axes.set_xlabel("time")
    else:
        labels = [str(times[i]) for i in at]
        axes.set_xlabel("bar")
    axes.set_xticks(at, labels)
