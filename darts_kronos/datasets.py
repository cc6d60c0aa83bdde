"""Darts' windows over candles: checked, in the networks' order, with calendar stamps."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from darts import TimeSeries
from darts.utils.data import (
    SequentialTorchInferenceDataset,
    SequentialTorchTrainingDataset,
    TorchInferenceDataset,
    TorchTrainingDataset,
)
from darts.utils.data.torch_datasets.utils import TorchTrainingSample

from darts_kronos.components import PRICES, canonical, has_prices, network_order, positions
from darts_kronos.representation import CONSTANT, WINDOW_EPS
from darts_kronos.trading_calendar import has_timestamps, stamp_series, timestamps

MIN_RETURNS_CONTEXT = 3
"""Bars of context that a volatility of close returns takes: two returns."""


@dataclass(frozen=True, kw_only=True)
class WindowRules:
    """What a model asks of the series that its windows are cut from.

    Parameters
    ----------
    components
        Names of the components, in the networks' order.
    input_chunk_length
        Bars of context, at least and at most.
    output_chunk_length
        Bars of horizon.
    with_stamps
        Whether the windows carry calendar stamps.
    positive_prices
        Whether a price that is not above 0 is refused.
    """

    components: Sequence[str]
    input_chunk_length: tuple[int, int]
    output_chunk_length: int
    with_stamps: bool
    positive_prices: bool

    def check(
        self, i: int, series: TimeSeries, needed: int, purpose: str, used: slice
    ) -> list[int]:
        """Check series `i`, and say where each of the components is among its own.

        Raises
        ------
        ValueError
            If it has other components, fewer than `needed` bars or, among its bars in `used`, a
            value that is not finite or, where they must be positive, a price that is not; the
            message says which and where.
        """
        try:
            order = positions(list(series.components), self.components)
        except ValueError as error:
            raise ValueError(f"Series {i}: {error}") from error
        if len(series) < needed:
            raise ValueError(
                f"Series {i} is too short to {purpose}: it has {len(series)} bars, "
                f"at least {needed} are needed."
            )
        check_values(i, series, used, self.positive_prices)
        return order

    def stamps(self, series: Sequence[TimeSeries], ahead: int) -> list[TimeSeries] | None:
        """Calendar stamps of all series and `ahead` bars past each, if the model takes them."""
        return _all_stamps(series, ahead) if self.with_stamps else None


class KronosTrainingDataset(SequentialTorchTrainingDataset):
    """Windows of context and horizon for training, with both parts' calendar stamps.

    Parameters
    ----------
    series
        The series; all are checked here, before anything is trained. The windows hold their
        components in the networks' order.
    rules
        What the series must be.
    stride, max_samples_per_ts, sample_weight
        See Darts' ``SequentialTorchTrainingDataset``.

    Raises
    ------
    ValueError
        If a series breaks the rules, or weights are missing, negative or not finite.
    """

    def __init__(
        self,
        series: Sequence[TimeSeries],
        rules: WindowRules,
        *,
        stride: int = 1,
        max_samples_per_ts: int | None = None,
        sample_weight: Sequence[TimeSeries] | str | None = None,
    ):
        ordered = []
        length = rules.input_chunk_length[0] + rules.output_chunk_length
        for i, one in enumerate(series):
            order = rules.check(i, one, length, "train on", slice(None))
            in_order = order == sorted(order)
            ordered.append(one if in_order else one[[one.components[j] for j in order]])
        super().__init__(
            series=ordered,
            future_covariates=rules.stamps(ordered, 0),
            input_chunk_length=rules.input_chunk_length,
            output_chunk_length=rules.output_chunk_length,
            stride=stride,
            max_samples_per_ts=max_samples_per_ts,
            use_static_covariates=False,
            sample_weight=sample_weight,
        )
        # Views of whole series, from which windows of one length are cut without Darts' look-ups.
        self._plain: list[tuple[np.ndarray, np.ndarray | None, int]] | None = None
        self._check_weights()
        one_length = rules.input_chunk_length[0] == rules.input_chunk_length[1]
        # Of a stochastic series, Darts draws one of its samples for each window.
        settled = all(one.is_deterministic for one in ordered)
        if one_length and settled and not self.sample_weight:
            known = self.future_covariates or [None] * len(ordered)
            self._plain = [
                (
                    one.random_component_values(copy=False),
                    None if stamps is None else stamps.random_component_values(copy=False),
                    self._count(one),
                )
                for one, stamps in zip(ordered, known, strict=True)
            ]

    def __getitem__(self, index: int) -> TorchTrainingSample:
        """The window of this number; see Darts' ``SequentialTorchTrainingDataset``."""
        if self._plain is None:
            return super().__getitem__(index)
        which, place = divmod(index, self.max_samples_per_ts)
        values, stamps, n_windows = self._plain[which]
        end = len(values) - place % n_windows * self.stride
        middle = end - self.output_chunk_length
        start = middle - self.input_chunk_length
        return TorchTrainingSample(
            past_target=values[start:middle],
            historic_future_covariates=None if stamps is None else stamps[start:middle],
            future_covariates=None if stamps is None else stamps[middle:end],
            future_target=values[middle:end],
        )

    def _count(self, series: TimeSeries) -> int:
        """Windows that can be cut from a series."""
        return ceil((len(series) - self.size_of_both_chunks + 1) / self.stride)

    def _check_weights(self) -> None:
        if not self.sample_weight:
            return
        something_counts = False
        for i, weights in enumerate(self.sample_weight):
            values = weights.values(copy=False)
            if not np.isfinite(values).all() or (values < 0).any():
                raise ValueError(
                    f"`sample_weight` {i} must hold finite numbers >= 0; its least is "
                    f"{values.min()}."
                )
            # Darts looks whether there are weights for the last window of a series only.
            self[i * self.max_samples_per_ts]
            series = self.series[i]
            back = (min(self._count(series), self.max_samples_per_ts) - 1) * self.stride
            first = series.time_index[len(series) - back - self.output_chunk_length]
            if weights.start_time() > first:
                raise ValueError(
                    f"`sample_weight` {i} must cover the horizons of all windows, {first} to "
                    f"{series.end_time()}; it starts at {weights.start_time()}."
                )
            something_counts |= bool(weights.slice(first, series.end_time()).values().any())
        if not something_counts:
            raise ValueError("`sample_weight` is 0 in the horizons of all windows: nothing counts.")


class KronosInferenceDataset(SequentialTorchInferenceDataset):
    """Contexts to forecast from, with the calendar stamps of context and horizon.

    The windows keep each series' own components, in their own order; the module matches them by
    the names in the schema.

    Parameters
    ----------
    series
        The series; the bars that are used are checked here.
    rules
        What the series must be.
    n
        Bars to forecast.
    stride, bounds
        See Darts' ``SequentialTorchInferenceDataset``.

    Raises
    ------
    ValueError
        If a series breaks the rules, or lacks the timestamps that the model needs.
    """

    def __init__(
        self,
        series: Sequence[TimeSeries],
        rules: WindowRules,
        *,
        n: int,
        stride: int = 0,
        bounds: np.ndarray | None = None,
    ):
        least, most = rules.input_chunk_length
        for i, one in enumerate(series):
            # With bounds, forecasts start at `first` to `last`; each needs a context before it.
            first, last = (len(one), len(one)) if bounds is None else bounds[i]
            spans = [(int(first), int(last))]
            if stride > most:
                # Between contexts that lie apart are bars that nothing reads.
                spans = [(at, at) for at in range(int(first), int(last) + 1, stride)]
            for start, end in spans:
                used = slice(max(0, start - most), end)
                rules.check(i, one, least, "forecast from", used)
        super().__init__(
            series=series,
            future_covariates=rules.stamps(series, max(n, rules.output_chunk_length)),
            n=n,
            stride=stride,
            bounds=bounds,
            input_chunk_length=rules.input_chunk_length,
            output_chunk_length=rules.output_chunk_length,
            use_static_covariates=False,
        )


def sequential_training_dataset(
    dataset: TorchTrainingDataset,
    input_chunk_length: tuple[int, int],
    output_chunk_length: int,
) -> SequentialTorchTrainingDataset:
    """`dataset`, if it holds series that windows of ours can be made of.

    Raises
    ------
    ValueError
        If it is of another kind, has other chunk lengths, or holds covariates.
    """
    if (
        not isinstance(dataset, SequentialTorchTrainingDataset)
        or dataset.uses_past_covariates
        or dataset.uses_future_covariates
        or (dataset.min_input_chunk_length, dataset.input_chunk_length) != input_chunk_length
        or (dataset.output_chunk_length, dataset.shift)
        != (output_chunk_length, input_chunk_length[1])
    ):
        raise ValueError(
            "KronosModel needs the names and timestamps of the series behind a dataset: pass a "
            "SequentialTorchTrainingDataset without covariates and shift, with "
            f"input_chunk_length={chunk_length(input_chunk_length)} and "
            f"output_chunk_length={output_chunk_length}, or call `fit` with the series; got "
            f"{type(dataset).__name__}."
        )
    return dataset


def sequential_inference_dataset(dataset: TorchInferenceDataset) -> SequentialTorchInferenceDataset:
    """`dataset`, if it holds series that contexts of ours can be made of.

    Raises
    ------
    ValueError
        If it is of another kind or holds covariates.
    """
    if (
        not isinstance(dataset, SequentialTorchInferenceDataset)
        or dataset.uses_past_covariates
        or dataset.uses_future_covariates
    ):
        raise ValueError(
            "KronosModel needs the names and timestamps of the series behind a dataset: pass a "
            "SequentialTorchInferenceDataset without covariates, or call `predict` with the "
            f"series; got {type(dataset).__name__}."
        )
    return dataset


SMALL = 10
"""Deviations below so many of ``WINDOW_EPS`` are distorted by it, by a tenth and more."""


def chunk_length(bounds: tuple[int, int]) -> int | tuple[int, int]:
    """Bars of context as Darts takes them: a number, where least and most are the same."""
    return bounds[0] if bounds[0] == bounds[1] else bounds


def learn_series(
    series: Sequence[TimeSeries], representation: str | None, input_chunk_length: int
) -> tuple[list[str], str, bool]:
    """What the series that a model is first trained on settle for it.

    Parameters
    ----------
    series
        The training series.
    representation
        How the tokenizer is to see bars; None leaves it to the series.
    input_chunk_length
        Bars of context, at least.

    Returns
    -------
    tuple
        Names of the components in the networks' order, the name of the representation, and
        whether the series carry timestamps.

    Raises
    ------
    ValueError
        If component names are not unique, only some series have timestamps, or the context is
        too short for "returns".
    """
    components = network_order(series[0].components)
    long_enough = input_chunk_length >= MIN_RETURNS_CONTEXT
    if representation is None:
        usable = has_prices(components) and long_enough and _prices_are_positive(series)
        representation = "returns" if usable else "window"
    elif representation == "returns" and not long_enough:
        raise ValueError(
            "`representation='returns'` measures the context's volatility: it needs "
            f"`input_chunk_length` >= {MIN_RETURNS_CONTEXT}, got {input_chunk_length}."
        )
    timed = [has_timestamps(one) for one in series]
    if any(timed) and not all(timed):
        raise ValueError(
            f"Series {timed.index(False)} has no timestamps (a RangeIndex without a trading "
            f"calendar) but series {timed.index(True)} has: read all of them with "
            "darts_kronos.candles, give all a DatetimeIndex, or none."
        )
    return components, representation, all(timed)


def warn_of_small_values(series: Sequence[TimeSeries], context: int) -> None:
    """Warn of components that "window" cannot tell from constants: it has a least deviation."""
    for i, one in enumerate(series):
        values = one.all_values(copy=False)[:, :, 0].astype(np.float64)
        blocks = [values[k : k + context] for k in range(0, len(values) - context + 1, context)]
        typical = np.median([block.std(axis=0) for block in blocks or [values]], axis=0)
        varies = typical > CONSTANT * np.abs(values).max(axis=0)
        small = varies & (typical < SMALL * WINDOW_EPS)
        if small.any():
            names = ", ".join(one.components[small])
            factor = 10 ** int(np.ceil(np.log10(1 / typical[small].min())))
            warnings.warn(
                f"Series {i}: within {context} bars {names} vary by about "
                f"{typical[small].min():.1g}, to which the representation 'window' adds "
                f"{WINDOW_EPS:.0e}, as released: forecasts would be too wide. Multiply them, for "
                f"instance by {factor:,}.",
                UserWarning,
                stacklevel=2,
            )
            return


def _prices_are_positive(series: Sequence[TimeSeries]) -> bool:
    return all((one.all_values(copy=False)[:, _price_columns(one)] > 0).all() for one in series)


def _price_columns(series: TimeSeries) -> list[int]:
    return [i for i, name in enumerate(series.components) if canonical(name) in PRICES]


def check_values(i: int, series: TimeSeries, used: slice, positive_prices: bool) -> None:
    """Refuse values of the bars `used` that are not finite or, where asked, prices not above 0.

    Raises
    ------
    ValueError
        If there are any; the message names the i-th series, the first value and its time.
    """
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
    times = timestamps(series[used])
    time = series.time_index[used][bar] if times is None else times[bar]
    raise ValueError(
        f"Series {i} holds a value that {what}: {series.components[component]!r} is {value} at "
        f"{time} ({int(wrong.any(axis=2).sum())} such values in all)."
    )


def _all_stamps(series: Sequence[TimeSeries], ahead: int) -> list[TimeSeries]:
    stamped = [stamp_series(one, ahead) for one in series]
    for i, one in enumerate(stamped):
        if one is None:
            raise ValueError(
                f"Series {i} has no timestamps (a RangeIndex without a trading calendar), but the "
                "model learns from the calendar: read it with darts_kronos.candles, or give it a "
                "DatetimeIndex."
            )
    return [one for one in stamped if one is not None]
