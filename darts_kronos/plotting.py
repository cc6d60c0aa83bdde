"""Pictures of candles and their forecasts. matplotlib comes with the extra ``examples``."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from darts import TimeSeries

from darts_kronos.components import PRICES, canonical, has_prices
from darts_kronos.reconstruction import reconstruct
from darts_kronos.trading_calendar import timestamps
from darts_kronos.training import LOG_MEANING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from darts_kronos.model import KronosModel

UP, DOWN, FAN, PATH = "#2e7d5b", "#b23b3b", "#3465a4", "#7f9cc4"
QUANTILES = ((0.05, 0.95), (0.25, 0.75))
BODY, ACTUAL_BODY = 0.7, 0.36
LEAST_BODY = 1e-3
"""Of a candle, of the range of all prices that are drawn with it."""

TICKS = 9
TIME_UNITS = (
    ("h", "%m-%d\n%H:%M"),
    ("D", "%Y-%m-%d"),
    ("W", "%Y-%m-%d"),
    ("M", "%Y-%m"),
    ("Q", "%Y-%m"),
    ("Y", "%Y"),
)
"""Units whose beginnings are marked on a time axis, and how, from the shortest."""

MOST_PANELS = 6
EXPLANATION_WIDTH = 36
NONE = pd.Series(dtype=float)


def plot_forecast(
    history: TimeSeries,
    forecast: TimeSeries,
    actual: TimeSeries | None = None,
    *,
    n_paths: int = 0,
    title: str | None = None,
) -> Figure:
    """Candlesticks of the history, and the forecast as median candles in a fan of the close.

    The fan holds 90% and 50% of the paths' closes. The candle of each bar's medians is drawn over
    it, and over that the actual candle, where known; volume is below. Bars are drawn side by
    side, so that nights and weekends leave no holes.

    Parameters
    ----------
    history
        Bars before the forecast, with open, high, low and close; later ones are left out.
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
        If a series lacks one of the four prices, or the forecast begins before the history.
    """
    from matplotlib.figure import Figure

    history = _before(history, forecast)
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
    for (low, high), alpha in zip(QUANTILES, (0.15, 0.25), strict=True):
        bounds = np.quantile(closes, [low, high], axis=1)
        label = f"{high - low:.0%} of paths"
        prices.fill_between(x, *bounds, color=FAN, alpha=alpha, linewidth=0, label=label)
    prices.plot(x, np.median(closes, axis=1), color=FAN, linewidth=1.4, label="median close")
    for i in range(min(n_paths, closes.shape[1])):
        prices.plot(x, closes[:, i], color=PATH, linewidth=0.6, alpha=0.7)

    _draw_candles(prices, np.arange(start), known)
    _draw_candles(prices, ahead, median, colors=(FAN, FAN), alpha=0.6, label="median candles")
    if actual is not None:
        at, came = _actual(actual, forecast)
        _draw_candles(prices, start + at, came, width=ACTUAL_BODY, label="what came")
    prices.axvline(start - 0.5, color="0.4", linewidth=0.8, linestyle=":")
    prices.set_ylabel("price")
    named = prices.get_legend_handles_labels()
    figure.legend(*named, loc="outside upper center", ncols=len(named[0]), frameon=False)
    prices.margins(x=0.01)
    if title:
        prices.set_title(title)

    if volumes is not None:
        _draw_volumes(volumes, np.arange(start), known)
        if "volume" in median:
            volumes.bar(ahead, median["volume"], width=BODY, color=FAN, alpha=0.5)
        if actual is not None and "volume" in came:
            _draw_volumes(volumes, start + at, came, width=ACTUAL_BODY)
        volumes.set_ylabel("volume")
    _label_times(prices if volumes is None else volumes, _times(history, forecast))
    return figure


def plot_reconstruction(
    model: KronosModel, series: TimeSeries, n_bars: int = 48, title: str | None = None
) -> Figure:
    """The tokenizer's reading of the last bars of a series, and how it uses its codebooks.

    Above, the bars as they are (grey) under the candles that the coarse token alone tells, and
    both tokens, each over the actual close before it. Below, the entries of each codebook by how
    often they stand for a bar of the whole series.

    Parameters
    ----------
    model
        A fitted model.
    series
        Bars with open, high, low and close; see
        :func:`~darts_kronos.reconstruction.reconstruct`.
    n_bars
        Number of bars to draw.
    title
        Title of the figure.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.

    Raises
    ------
    ValueError
        If the model is not fitted, or the series is too short or lacks one of the four prices.
    """
    from matplotlib.figure import Figure

    actual = _candles(series, "series")[-n_bars:]
    found = reconstruct(model, series, n_bars)
    figure = Figure(figsize=(12, 7), layout="constrained")
    grid = figure.subplots(2, 2, gridspec_kw={"height_ratios": [3, 2]})
    grid[0, 1].sharey(grid[0, 0])
    at = np.arange(n_bars)
    for axes, read_back, name in (
        (grid[0, 0], found.coarse, "coarse token alone"),
        (grid[0, 1], found.both, "both tokens"),
    ):
        bars = _candles(read_back, "series")
        _draw_candles(axes, at, actual, colors=("0.75", "0.75"), width=0.9, label="as it was")
        _draw_candles(axes, at, bars, width=ACTUAL_BODY, label="as read back")
        error = np.mean(np.abs(bars["close"] / actual["close"] - 1))
        axes.set_title(f"{name}: the close is {error:.2%} off on average", fontsize=10)
        axes.legend(loc="best", frameon=False)
        _label_times(axes, _times(found.actual), n_ticks=5)
    grid[0, 0].set_ylabel("price")
    for axes, counts, name in (
        (grid[1, 0], found.s1_counts, "coarse"),
        (grid[1, 1], found.s2_counts, "fine"),
    ):
        ranked = np.sort(counts)[::-1] / counts.sum()
        used = int((counts > 0).sum())
        axes.fill_between(np.arange(1, len(ranked) + 1), ranked, step="mid", color=FAN, alpha=0.4)
        axes.axhline(1 / len(ranked), color="0.4", linewidth=0.8, linestyle=":")
        axes.set_title(
            f"{name} codebook: {used} of {len(counts)} entries in use ({used / len(counts):.0%}); "
            "dotted: all alike",
            fontsize=10,
        )
        axes.set_xlabel("entry, the most frequent first")
        axes.set_xlim(1, len(ranked))
        axes.set_ylim(bottom=0)
    grid[1, 0].set_ylabel("share of bars")
    if title:
        figure.suptitle(title)
    return figure


def plot_training(history: pd.DataFrame | KronosModel, title: str | None = None) -> Figure:
    """Training curves of both stages, a panel for each logged value, explained.

    Parameters
    ----------
    history
        A model's ``training_history``, or the model.
    title
        Title of the figure.

    Returns
    -------
    matplotlib.figure.Figure
        The figure: the tokenizer's values above, the predictor's below.

    Raises
    ------
    ValueError
        If nothing was logged.
    """
    from matplotlib.figure import Figure

    rows = history if isinstance(history, pd.DataFrame) else history.training_history
    stages = [
        (str(stage), epochs)
        for stage, epochs in (() if rows.empty else rows.groupby("stage", sort=False))
        # One that was not trained may have a loss to compare others with.
        if (epochs["epoch"] > 0).any()
    ]
    if not stages:
        raise ValueError("There is no training to draw: fit the model first.")
    figure = Figure(figsize=(17, 4.2 * len(stages)), layout="constrained")
    grid = figure.subplots(len(stages), MOST_PANELS, squeeze=False)
    for panels, (stage, epochs) in zip(grid, stages, strict=True):
        shown = [name for name in LOG_MEANING if epochs.get(f"train_{name}", NONE).notna().any()]
        for axes, name in zip(panels, shown, strict=False):
            for role, color in (("train", FAN), ("val", DOWN)):
                values = epochs.get(f"{role}_{name}", NONE).dropna()
                if len(values):
                    at = epochs.loc[values.index, "epoch"]
                    axes.plot(at, values, color=color, marker="o", markersize=3.5, label=role)
            axes.set_title(f"{stage}: {name}", fontsize=10)
            axes.set_xlabel(
                "epoch\n\n" + "\n".join(textwrap.wrap(LOG_MEANING[name], EXPLANATION_WIDTH)),
                fontsize=8,
            )
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.legend(frameon=False, fontsize=8)
        for axes in panels[len(shown) :]:
            axes.set_axis_off()
    if title:
        figure.suptitle(title)
    return figure


def _before(history: TimeSeries, forecast: TimeSeries) -> TimeSeries:
    """The bars before the forecast; indexes of different kinds are not compared."""
    start = forecast.start_time()
    if type(start) is not type(history.start_time()) or start > history.end_time():
        return history
    if start <= history.start_time():
        raise ValueError(
            f"The forecast, from {start}, begins before the history, from {history.start_time()}."
        )
    return history.drop_after(start)


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


def _actual(actual: TimeSeries, forecast: TimeSeries) -> tuple[np.ndarray, pd.DataFrame]:
    """Which of the forecast's bars came, and their candles."""
    came = _candles(actual.slice_intersect(forecast), "actual")
    return np.asarray(forecast.time_index.get_indexer(came.index)), came


def _draw_candles(
    axes: Axes,
    x: np.ndarray,
    bars: pd.DataFrame,
    *,
    colors: tuple[str, str] = (UP, DOWN),
    width: float = BODY,
    alpha: float = 1.0,
    label: str | None = None,
) -> None:
    for rising, color in zip((True, False), colors, strict=True):
        chosen = ((bars["close"] >= bars["open"]) == rising).to_numpy()
        if not chosen.any():
            continue
        these, at = bars[chosen], x[chosen]
        axes.vlines(at, these["low"], these["high"], color=color, linewidth=0.8, alpha=alpha)
        bottom = these[["open", "close"]].min(axis=1)
        height = (these["close"] - these["open"]).abs()
        # A bar that closes where it opened is a line, not nothing.
        height = height.clip(lower=LEAST_BODY * (bars["high"].max() - bars["low"].min()))
        axes.bar(at, height, bottom=bottom, width=width, color=color, alpha=alpha, label=label)
        label = None


def _draw_volumes(axes: Axes, x: np.ndarray, bars: pd.DataFrame, width: float = BODY) -> None:
    colors = np.where(bars["close"] >= bars["open"], UP, DOWN)
    axes.bar(x, bars["volume"], width=width, color=colors)


def _times(*series: TimeSeries) -> pd.Index:
    """Timestamps of series, one after the other, or their bars' numbers."""
    known = [timestamps(one) for one in series]
    parts = [one.time_index if at is None else at for one, at in zip(series, known, strict=True)]
    return parts[0].append(parts[1:])


def _label_times(axes: Axes, times: pd.Index, n_ticks: int = TICKS) -> None:
    """Mark where hours, days, months or years begin: bars lie side by side, without holes."""
    if not isinstance(times, pd.DatetimeIndex):
        axes.set_xticks(*_even_ticks(times, n_ticks))
        axes.set_xlabel("bar")
        return
    wall = times.tz_localize(None)
    chosen = _even_ticks(wall, n_ticks)
    for unit, label in TIME_UNITS:
        begins = wall.to_period(unit)
        at = np.flatnonzero(np.r_[False, begins[1:] != begins[:-1]])
        if 2 <= len(at) <= 2 * n_ticks:
            at = at[:: -(-len(at) // n_ticks)]
            chosen = at, list(wall[at].strftime(label))
            break
    axes.set_xticks(*chosen)
    zone = "" if times.tz is None else f" ({times.tz})"
    axes.set_xlabel(f"time{zone}, {wall[0]:%Y-%m-%d %H:%M} to {wall[-1]:%Y-%m-%d %H:%M}")


def _even_ticks(index: pd.Index, n_ticks: int) -> tuple[np.ndarray, list[str]]:
    at = np.unique(np.linspace(0, len(index) - 1, n_ticks).round().astype(int))
    return at, [str(index[i]) for i in at]
