"""How good a fitted model's forecasts of windows are: what calibration and tuning go by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from darts import TimeSeries
from darts.metrics import mcrps, mic
from darts.typing import TimeSeriesLike
from darts.utils.ts_utils import series2seq

from darts_kronos.components import canonical

if TYPE_CHECKING:
    from darts_kronos.model import KronosModel

INTERVALS = {"coverage 50": (0.25, 0.75), "coverage 90": (0.05, 0.95)}


def listed_series(series: TimeSeriesLike, role: str) -> list[TimeSeries]:
    """One series or several as a list.

    Raises
    ------
    ValueError
        If there are none; `role` says which: "Validation", say.
    """
    if not isinstance(series, TimeSeries) and not len(series):
        raise ValueError(f"{role} series are missing.")
    return list(series2seq(series))


def check_lengths(series: Sequence[TimeSeries], least: int, role: str) -> None:
    """Check that every series has bars for one window.

    Parameters
    ----------
    series
        The series.
    least
        Bars that each must have.
    role
        What they are, for the message: "Validation", say.

    Raises
    ------
    ValueError
        If one is too short.
    """
    for i, one in enumerate(series):
        if len(one) < least:
            raise ValueError(
                f"{role} series {i} is too short: it has {len(one)} bars, at least {least} are "
                "needed."
            )


def measured_component(series: TimeSeries, component: str | None) -> int:
    """The place of the component that is measured: `component`; None: the close, else the first.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    names = [canonical(name) for name in series.components]
    if component is None:
        return names.index("close") if "close" in names else 0
    if canonical(component) not in names:
        raise ValueError(f"There is no component {component!r}; there are {', '.join(names)}.")
    return names.index(canonical(component))


def window_forecasts(
    model: KronosModel,
    series: TimeSeries,
    component: int,
    *,
    num_samples: int,
    stride: int | None,
    random_state: int | None = None,
) -> tuple[TimeSeries, list[TimeSeries]]:
    """One component of a series, and its forecasts of all windows.

    Parameters
    ----------
    model
        A fitted model.
    series
        What is forecast.
    component
        The component's place.
    num_samples
        Paths of each window.
    stride
        Bars from one window to the next; None: ``output_chunk_length``.
    random_state
        Of the paths.
    """
    horizon = model.output_chunk_length
    forecasts = model.historical_forecasts(
        series,
        start=model.input_chunk_length,
        start_format="position",
        forecast_horizon=horizon,
        stride=stride or horizon,
        retrain=False,
        last_points_only=False,
        num_samples=num_samples,
        verbose=False,
        show_warnings=False,
        random_state=random_state,
    )
    name = series.components[component]
    return series[name], [forecast[name] for forecast in forecasts]


def levels_of_windows(actual: TimeSeries, forecasts: Sequence[TimeSeries]) -> np.ndarray:
    """The size of the last value before each forecast (W,), above 0.

    Where that is 0, as a volume may be, it is the mean size of all values before; 1 if these are 0.
    """
    starts = np.array([actual.get_index_at_point(one.start_time()) for one in forecasts])
    sizes = np.abs(actual.values(copy=False)[:, 0]).astype(float)
    last, means = sizes[starts - 1], sizes.cumsum()[starts - 1] / starts
    return np.where(last > 0, last, np.where(means > 0, means, 1.0))


def crps_of_windows(actual: TimeSeries, forecasts: Sequence[TimeSeries]) -> np.ndarray:
    """CRPS of each forecast (W,), in units of the last value before it: ``levels_of_windows``."""
    crps = np.asarray(mcrps([actual] * len(forecasts), list(forecasts)))
    return crps / levels_of_windows(actual, forecasts)


def coverage_of_windows(actual: TimeSeries, forecasts: Sequence[TimeSeries]) -> np.ndarray:
    """Shares of values inside the intervals in ``INTERVALS``, for each forecast, (W, 2)."""
    came, intervals = [actual] * len(forecasts), list(INTERVALS.values())
    return np.reshape(mic(came, list(forecasts), q_interval=intervals), (-1, len(intervals)))


def metric_of_windows(
    metric: Callable[..., float], actual: TimeSeries, forecasts: Sequence[TimeSeries]
) -> np.ndarray:
    """A metric of Darts, or another of its kind, of each forecast (W,).

    Raises
    ------
    ValueError
        If it does not give one number for a forecast.
    """
    found = [np.asarray(metric(actual, forecast), dtype=float) for forecast in forecasts]
    if found[0].size != 1:
        name = getattr(metric, "__name__", repr(metric))
        raise ValueError(
            f"`metric` must give one number for a forecast of one component; {name} gave "
            f"{found[0].size}."
        )
    return np.array([one.item() for one in found])
