"""The choice of a fitted model's sampling by its forecasts of validation windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from darts import TimeSeries
from darts.typing import TimeSeriesLike
from darts.utils.ts_utils import series2seq
from tqdm.auto import tqdm

from darts_kronos.parameters import check_sampling
from darts_kronos.window_scores import (
    INTERVALS,
    check_lengths,
    coverage_of_windows,
    crps_of_windows,
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
    component: str | None = None,
    num_samples: int = 100,
    stride: int | None = None,
    verbose: bool = True,
) -> pd.DataFrame:
    """Choose temperature and `top_p` by the CRPS of validation windows, without training.

    First the temperature is chosen, then, at the best one, `top_p`. What was chosen stays
    with the model, as after :meth:`~darts_kronos.KronosModel.set_sampling`.

    Parameters
    ----------
    model
        A fitted model. This function is its method ``calibrate``.
    val_series
        One or several series that the model was not trained on, each of at least
        ``input_chunk_length + output_chunk_length`` bars.
    temperatures, top_ps
        What is tried, beside what the model has.
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
        A row for each setting that was tried: `temperature`, `top_p`, `CRPS` (in units of the
        last value before each window), `coverage 50` and `coverage 90` (shares of values
        inside the central intervals), and whether it is that from `before` or the `chosen`.

    Raises
    ------
    ValueError
        Before anything is tried, if the model is not fitted, a value is out of range, or a
        series is too short.
    """
    if model.model is None:
        raise ValueError("The model cannot be calibrated before it is fitted or loaded.")
    before: dict[str, Any] = {name: model.sampling[name] for name in ("temperature", "top_p")}
    for name, values in {"temperatures": temperatures, "top_ps": top_ps}.items():
        if not len(values):
            raise ValueError(f"`{name}` must not be empty.")
    # All of them are checked before the first one is tried.
    for temperature in temperatures:
        check_sampling(model.sampling | {"temperature": temperature})
    for top_p in top_ps:
        check_sampling(model.sampling | {"top_p": top_p})
    series: Sequence[TimeSeries] = series2seq(val_series)
    least = model.input_chunk_length + model.output_chunk_length
    check_lengths(series, least, "Validation")
    measured = measured_component(series[0], component)

    tried = dict.fromkeys([before["temperature"], *temperatures])
    progress = tqdm(total=len(tried) + len(set(top_ps) - {before["top_p"]}), disable=not verbose)
    rows: list[dict[str, Any]] = []

    def measure(temperature: float, top_p: float | None) -> None:
        model.set_sampling(temperature=temperature, top_p=top_p)
        progress.set_description(f"temperature {temperature}, top_p {top_p}")
        scores = _scores(model, series, measured, num_samples, stride)
        rows.append({"temperature": temperature, "top_p": top_p, **scores})
        progress.update()

    chosen: dict[str, Any] = before
    try:
        for temperature in tried:
            measure(temperature, before["top_p"])
        best = min(rows, key=lambda row: row["CRPS"])
        for top_p in dict.fromkeys(top_ps):
            if top_p != before["top_p"]:
                measure(best["temperature"], top_p)
        best = min(rows, key=lambda row: row["CRPS"])
        chosen = {name: best[name] for name in before}
    finally:
        progress.close()
        model.set_sampling(**chosen)
    report = pd.DataFrame(rows)
    # pandas would turn None, no filter, into a number that is missing.
    report["top_p"] = pd.Series([row["top_p"] for row in rows], dtype=object)
    report["before"] = np.arange(len(rows)) == 0
    report["chosen"] = [row is best for row in rows]
    return report


def _scores(
    model: KronosModel,
    series: Sequence[TimeSeries],
    component: int,
    num_samples: int,
    stride: int | None,
) -> dict[str, float]:
    """CRPS in units of each window's last value, and coverage, means over all windows."""
    crps, coverage = [], []
    for one in series:
        found = window_forecasts(model, one, component, num_samples=num_samples, stride=stride)
        crps.append(crps_of_windows(*found))
        coverage.append(coverage_of_windows(*found))
    inside = np.concatenate(coverage).mean(axis=0)
    return {
        "CRPS": float(np.concatenate(crps).mean()),
        **{name: float(share) for name, share in zip(INTERVALS, inside, strict=True)},
    }
