"""Darts' windows over candles: checked, in the networks' order, with calendar stamps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from darts import TimeSeries
from darts.utils.data import SequentialTorchInferenceDataset, SequentialTorchTrainingDataset

from darts_kronos.components import PRICES, canonical, positions
from darts_kronos.trading_calendar import stamp_series


class KronosTrainingDataset(SequentialTorchTrainingDataset):
    """Windows of context and horizon for training, with both parts' calendar stamps.

    Parameters
    ----------
    series
        The series; all are checked here, before anything is trained.
    components
        Names of the components, in the networks' order; the windows have it.
    input_chunk_length, output_chunk_length
        Bars of context and of horizon.
    with_stamps
        Whether the windows carry calendar stamps.
    positive_prices
        Whether a price that is not above 0 is refused.
    stride, max_samples_per_ts
        See Darts' ``SequentialTorchTrainingDataset``.

    Raises
    ------
    ValueError
        If a series has other components, is too short, holds a value that is not finite or, where
        they must be positive, a price that is not; the message says which and where.
    """

    def __init__(
        self,
        series: Sequence[TimeSeries],
        *,
        components: Sequence[str],
        input_chunk_length: int,
        output_chunk_length: int,
        with_stamps: bool,
        positive_prices: bool,
        stride: int = 1,
        max_samples_per_ts: int | None = None,
    ):
        ordered = []
        for i, one in enumerate(series):
            names = list(one.components)
            order = _positions(i, names, components)
            _check_length(i, one, input_chunk_length + output_chunk_length, "train on")
            _check_values(i, one, slice(None), positive_prices)
            in_order = order == sorted(order)
            ordered.append(one if in_order else one[[names[j] for j in order]])
        super().__init__(
            series=ordered,
            future_covariates=_all_stamps(ordered, 0) if with_stamps else None,
            input_chunk_length=input_chunk_length,
            output_chunk_length=output_chunk_length,
            stride=stride,
            max_samples_per_ts=max_samples_per_ts,
            use_static_covariates=False,
        )


class KronosInferenceDataset(SequentialTorchInferenceDataset):
    """Contexts to forecast from, with the calendar stamps of context and horizon.

    The windows keep each series' own components, in their own order; the module matches them by
    the names in the schema.

    Parameters
    ----------
    series
        The series; the bars that are used are checked here.
    components
        Names of the components that each series must have.
    n
        Bars to forecast.
    input_chunk_length, output_chunk_length
        Bars of context and of horizon.
    with_stamps
        Whether the windows carry calendar stamps.
    positive_prices
        Whether a price that is not above 0 is refused.
    stride, bounds
        See Darts' ``SequentialTorchInferenceDataset``.

    Raises
    ------
    ValueError
        As the training windows do, and if a series lacks the timestamps that the model needs.
    """

    def __init__(
        self,
        series: Sequence[TimeSeries],
        *,
        components: Sequence[str],
        n: int,
        input_chunk_length: int,
        output_chunk_length: int,
        with_stamps: bool,
        positive_prices: bool,
        stride: int = 0,
        bounds: np.ndarray | None = None,
    ):
        for i, one in enumerate(series):
            _positions(i, list(one.components), components)
            _check_length(i, one, input_chunk_length, "forecast from")
            # With bounds, forecasts start at `first` to `last`; each needs a context before it.
            first, last = (len(one), len(one)) if bounds is None else bounds[i]
            used = slice(max(0, int(first) - input_chunk_length), int(last))
            _check_values(i, one, used, positive_prices)
        ahead = max(n, output_chunk_length)
        super().__init__(
            series=series,
            future_covariates=_all_stamps(series, ahead) if with_stamps else None,
            n=n,
            stride=stride,
            bounds=bounds,
            input_chunk_length=input_chunk_length,
            output_chunk_length=output_chunk_length,
            use_static_covariates=False,
        )


def prices_are_positive(series: Sequence[TimeSeries]) -> bool:
    """Whether every open, high, low and close of all series is above 0."""
    return all((one.all_values(copy=False)[:, _price_columns(one)] > 0).all() for one in series)


def _price_columns(series: TimeSeries) -> list[int]:
    return [i for i, name in enumerate(series.components) if canonical(name) in PRICES]


def _positions(i: int, names: Sequence[str], components: Sequence[str]) -> list[int]:
    try:
        return positions(names, components)
    except ValueError as error:
        raise ValueError(f"Series {i}: {error}") from error


def _check_length(i: int, series: TimeSeries, needed: int, purpose: str) -> None:
    if len(series) < needed:
        raise ValueError(
            f"Series {i} is too short to {purpose}: it has {len(series)} bars, "
            f"at least {needed} are needed."
        )


def _check_values(i: int, series: TimeSeries, used: slice, positive_prices: bool) -> None:
    values = series.all_values(copy=False)[used]
    prices = _price_columns(series)
    _refuse(i, series, used, ~np.isfinite(values), "is not finite")
    if positive_prices:
        wrong = np.zeros(values.shape, dtype=bool)
        wrong[:, prices] = values[:, prices] <= 0
        _refuse(i, series, used, wrong, "is not above 0, as prices must be for returns")


def _refuse(i: int, series: TimeSeries, used: slice, wrong: np.ndarray, what: str) -> None:
    if not wrong.any():
        return
    bar, component = np.argwhere(wrong.any(axis=2))[0]
    value = series.all_values(copy=False)[used][bar, component][wrong[bar, component]][0]
    time = series.time_index[used][bar]
    raise ValueError(
        f"Series {i} holds a value that {what}: {series.components[component]!r} is {value} at "
        f"{time} ({int(wrong.any(axis=2).sum())} such values in all)."
    )


def _all_stamps(series: Sequence[TimeSeries], ahead: int) -> list[TimeSeries]:
    stamped = [stamp_series(one, ahead) for one in series]
    for i, one in enumerate(stamped):
        if one is None:
            raise ValueError(
                f"Series {i} has no timestamps (its index is a RangeIndex), but the model learns "
                "from the calendar: give it a DatetimeIndex."
            )
    return [one for one in stamped if one is not None]
