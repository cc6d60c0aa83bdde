"""Backtests of many series at once, spread over processes or machines by joblib."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from darts import TimeSeries
from darts.logging import get_logger
from joblib import Parallel, delayed, parallel_config
from tqdm.auto import tqdm

from darts_kronos.components import told_apart

if TYPE_CHECKING:
    from darts_kronos.model import KronosModel

logger = get_logger(__name__)

ERROR = "error"
"""The column that says why a series failed."""

_SHARED = "100K"
"""Arrays above this size are not sent with each task; the model is one."""

_loaded: dict[str, KronosModel] = {}
"""The model that this worker holds, by its backtest."""

_turn = Lock()
"""Held by the thread of this worker that backtests: threads share its model, and torch's random
numbers."""


def backtest_universe(
    model: KronosModel,
    series: Mapping[str, TimeSeries] | Sequence[TimeSeries],
    metric: Callable[..., Any] | Sequence[Callable[..., Any]],
    *,
    n_jobs: int | None = -1,
    verbose: bool = True,
    **kwargs: Any,
) -> pd.DataFrame:
    """Backtest a fitted model on each series of a universe, in parallel.

    Joblib spreads the series over this machine's cores (its backend loky), or over whatever
    ``joblib.parallel_config`` says, such as the workers of a Dask cluster. Each worker gets the
    model once; of a worker's threads one is at work at a time, so give a cluster processes. A
    series that fails does not stop the others.

    Parameters
    ----------
    model
        A fitted model.
    series
        Series by name, or a sequence whose names are their ``symbol`` in the metadata, else their
        places.
    metric
        One or several of Darts' metrics, importable functions. The same may come several times,
        with `metric_kwargs` of its own each.
    n_jobs
        Workers; -1 for one on each core, None for what ``joblib.parallel_config`` says.
    verbose
        Whether there is a progress bar.
    **kwargs
        Of Darts' ``backtest``, such as `forecast_horizon`, `stride`, `num_samples`, `start`,
        `metric_kwargs`, `random_state`; the model is not retrained. What does not depend on the
        number of workers does not change with it.

    Returns
    -------
    pandas.DataFrame
        A row for each series, in the order given: the mean of each metric over its forecasts, in
        a column of the metric's name ("mql 2" where it is the second of that name); NaN for a
        series that failed, whose column `error` says why.

    Raises
    ------
    ValueError
        If the model is not fitted, `series` or `metric` is none, there are none of them, or names
        of series repeat.

    Examples
    --------
    >>> from darts.metrics import mae, mcrps
    >>> scores = backtest_universe(model, universe, [mae, mcrps], forecast_horizon=12, stride=12)
    >>> with joblib.parallel_config(backend="dask"):  # with a dask.distributed.Client around
    ...     scores = backtest_universe(model, universe, mae, n_jobs=None, forecast_horizon=12)
    """
    if model.model is None:
        raise ValueError("The model cannot be backtested before it is fitted or loaded.")
    named = _named(series)
    metrics = list(metric) if isinstance(metric, Sequence) else [metric]
    names = _metric_names(metrics)
    options = {
        "last_points_only": False,
        "show_warnings": False,
        **kwargs,
        "retrain": False,
        "metric": metrics,
        "verbose": False,
    }
    with tempfile.TemporaryDirectory() as folder:
        key = Path(folder).name
        packed = _pack(model, Path(folder))
    tasks = (delayed(_backtest)(key, packed, name, one, options) for name, one in named.items())
    parallel = Parallel(n_jobs=n_jobs, return_as="generator_unordered", max_nbytes=_SHARED)
    rows: dict[str, dict[str, Any]] = {}
    with tqdm(total=len(named), desc="backtesting", disable=not verbose) as progress:
        for name, scores, error in parallel(tasks):
            if error is not None:
                logger.warning(f"{name} failed: {error}")
            found = [np.nan] * len(names) if scores is None else scores
            rows[name] = {**dict(zip(names, found, strict=True)), ERROR: error}
            progress.update()
    table = pd.DataFrame.from_dict(rows, orient="index", columns=[*names, ERROR])
    return table.loc[list(named)]


def _metric_names(metrics: Sequence[Callable[..., Any]]) -> list[str]:
    """Names of metrics for columns: the second of a name is "mql 2"."""
    if not metrics or not all(hasattr(one, "__name__") for one in metrics):
        raise ValueError(
            "`metric` must be one or several of Darts' metrics; their parameters go into "
            "`metric_kwargs`, a dict for each."
        )
    return told_apart([one.__name__ for one in metrics], " ")


def _named(series: Mapping[str, TimeSeries] | Sequence[TimeSeries]) -> dict[str, TimeSeries]:
    if isinstance(series, Mapping):
        named = dict(series)
    elif isinstance(series, TimeSeries) or not isinstance(series, Sequence):
        raise ValueError(
            "`series` must be a mapping of names to series, or a sequence of series; got a "
            f"{type(series).__name__}."
        )
    else:
        names = [str((one.metadata or {}).get("symbol", i)) for i, one in enumerate(series)]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"Several series are called {', '.join(repeated)}: give a dict.")
        named = dict(zip(names, series, strict=True))
    if not named:
        raise ValueError("There are no series to backtest on.")
    return named


def _pack(model: KronosModel, folder: Path) -> np.ndarray:
    """The files of a saved model as one array, which joblib shares between workers."""
    model.save(str(folder / "model.pt"), clean=True)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    return np.frombuffer(buffer.getvalue(), dtype=np.uint8)


def _unpack(packed: np.ndarray) -> KronosModel:
    from darts_kronos.model import KronosModel

    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(io.BytesIO(packed.tobytes())) as archive:
            archive.extractall(folder)
        quiet = {"enable_progress_bar": False, "logger": False}
        return KronosModel.load(f"{folder}/model.pt", pl_trainer_kwargs=quiet)


def _backtest(
    key: str, packed: np.ndarray, name: str, series: TimeSeries, options: dict[str, Any]
) -> tuple[str, list[float] | None, str | None]:
    """A worker's task: name, mean of each metric or None, and what went wrong or None."""
    try:
        # Metrics ask joblib, too, which would send their parts through the cluster once more.
        with _turn, parallel_config(backend="sequential"):
            if key not in _loaded:
                _loaded.clear()
                _loaded[key] = _unpack(packed)
            scores = np.atleast_1d(_loaded[key].backtest(series, **options))
        if scores.shape != (len(options["metric"]),):
            raise ValueError(
                f"Each metric must give one number for a series, got {scores.shape} of "
                f"{len(options['metric'])} metrics."
            )
        return name, [float(one) for one in scores], None
    except Exception as error:  # Whatever it is, the others go on.
        return name, None, f"{type(error).__name__}: {error}"
