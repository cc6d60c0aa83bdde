"""The choice of a fitted model's sampling by its forecasts of validation windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from darts import TimeSeries
from darts.typing import TimeSeriesLike
from tqdm.auto import tqdm

from darts_kronos.parameters import check_sampling, plain, require_int
from darts_kronos.window_scores import (
    INTERVALS,
    check_lengths,
    coverage_of_windows,
    crps_of_windows,
    listed_series,
    measured_component,
    window_forecasts,
)

if TYPE_CHECKING:
    from darts_kronos.model import KronosModel

TEMPERATURES = (0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5)
TOP_PS = (None, 0.98, 0.95)


def calibrate(
    model: KronosModel,
    val_series: TimeSeriesLike,
    *,
    temperatures: Sequence[float] = TEMPERATURES,
    top_ps: Sequence[float | None] = TOP_PS,
    antithetics: Sequence[bool] = (),
    component: str | None = None,
    num_samples: int = 100,
    stride: int | None = None,
    verbose: bool = True,
) -> pd.DataFrame:
    """Choose how paths are drawn by the CRPS of validation windows, without training.

    First the temperature is chosen, together with whether paths come in pairs that forecast no
    direction (`antithetic`), if that is wanted; then, at the best of these, `top_p`. What was
    chosen stays with the model, as after :meth:`~darts_kronos.KronosModel.set_sampling`.

    Parameters
    ----------
    model
        A fitted model. This function is its method ``calibrate``.
    val_series
        One or several series that the model was not trained on, each of at least
        ``input_chunk_length + output_chunk_length`` bars.
    temperatures, top_ps, antithetics
        What is tried, beside what the model has. ``antithetics=(False, True)`` asks whether the
        model knows anything of the direction of prices; by default that stays as it is.
    component
        The component whose forecasts are measured; None: the close, else the first.
    num_samples
        Paths of each window.
    stride
        Bars from one window to the next; None: ``output_chunk_length``.
    verbose
        Whether there is a progress bar.

    Returns
    -------
    pandas.DataFrame
        A row for each setting that was tried: `temperature`, `antithetic`, `top_p`, `CRPS` (in
        units of the last value before each window; where that is 0, of the mean size of all values
        before), the `standard error` of its difference from
        the CRPS before, `coverage 50` and `coverage 90` (shares of values inside the central
        intervals), and whether it is that from `before` or the `chosen`.

    Notes
    -----
    A difference of less than two standard errors may well be chance; windows that overlap
    (`stride` below ``output_chunk_length``) make these errors look smaller than they are.

    Intervals lie between linear quantiles of the paths, as in Darts' metrics. Few paths make them a
    little narrow: of 100 independent draws from the very distribution of what comes they hold 49%
    and 88% in the mean, of 1,000 they hold 49.9% and 89.8%. Stratified paths, which a forecast has,
    come a little nearer.

    Raises
    ------
    ValueError
        Before anything is tried, if the model is not fitted, a value is out of range, or a
        series is too short or there is none.
    """
    if model.model is None:
        raise ValueError("The model cannot be calibrated before it is fitted or loaded.")
    for name, values in {"temperatures": temperatures, "top_ps": top_ps}.items():
        if not len(values):
            raise ValueError(f"`{name}` must not be empty.")
    wanted: dict[str, list[Any]] = {
        "temperature": plain(list(temperatures)),
        "antithetic": plain(list(antithetics)),
        "top_p": plain(list(top_ps)),
    }
    # All of them are checked before the first one is tried.
    for name, values in wanted.items():
        for value in values:
            check_sampling(model.sampling | {name: value}, model.model.representation.given)
    series = listed_series(val_series, "Validation")
    least = model.input_chunk_length + model.output_chunk_length
    check_lengths(series, least, "Validation")
    places = [measured_component(one, component) for one in series]
    require_int("num_samples", num_samples, 2)
    require_int("stride", stride, 1, or_none=True)

    before = {name: model.sampling[name] for name in wanted}
    tried = {name: list(dict.fromkeys([before[name], *values])) for name, values in wanted.items()}
    # How wide paths should be depends on whether they follow a direction that is not there.
    together = [
        before | {"temperature": temperature, "antithetic": antithetic}
        for antithetic in tried["antithetic"]
        for temperature in tried["temperature"]
    ]
    progress = tqdm(total=len(together) + len(tried["top_p"]) - 1, disable=not verbose)
    rows: list[dict[str, Any]] = []

    def measure(setting: dict[str, Any]) -> None:
        model.set_sampling(**setting)
        progress.set_description(", ".join(f"{name} {value}" for name, value in setting.items()))
        rows.append(setting | _scores(model, series, places, num_samples, stride))
        progress.update()

    chosen = before
    try:
        for setting in together:
            measure(setting)
        best = min(rows, key=lambda row: row["CRPS"])
        for top_p in tried["top_p"][1:]:
            measure({name: best[name] for name in before} | {"top_p": top_p})
        best = min(rows, key=lambda row: row["CRPS"])
        chosen = {name: best[name] for name in before}
    finally:
        progress.close()
        model.set_sampling(**chosen)
    losses = [row.pop("losses") for row in rows]
    report = pd.DataFrame(rows)
    error = [pd.Series(one - losses[0]).sem() for one in losses]
    report.insert(list(report).index("CRPS") + 1, "standard error", error)
    # pandas would turn None, no filter, into a number that is missing.
    report["top_p"] = pd.Series([row["top_p"] for row in rows], dtype=object)
    report["before"] = np.arange(len(rows)) == 0
    report["chosen"] = [row is best for row in rows]
    return report


def _scores(
    model: KronosModel,
    series: Sequence[TimeSeries],
    places: Sequence[int],
    num_samples: int,
    stride: int | None,
) -> dict[str, Any]:
    """CRPS in units of each window's last value, of each and in the mean, and the mean coverage.

    `places` are those of the component that is measured, one in each series.
    """
    crps, coverage = [], []
    for one, place in zip(series, places, strict=True):
        found = window_forecasts(model, one, place, num_samples=num_samples, stride=stride)
        crps.append(crps_of_windows(*found))
        coverage.append(coverage_of_windows(*found))
    losses = np.concatenate(crps)
    inside = np.concatenate(coverage).mean(axis=0)
    return {
        "losses": losses,
        "CRPS": float(losses.mean()),
        **{name: float(share) for name, share in zip(INTERVALS, inside, strict=True)},
    }
