"""Tuning with Optuna: the parameters of both stages and the sampling, judged on held-out candles.

:func:`tune` is all that most need. The search space (:func:`suggest_parameters`) and the objectives
(:func:`crps_objective`, :func:`val_loss_objective`) serve in a study of one's own.
:func:`tune_sampling` tunes how a fitted model draws its paths, without training.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from functools import partial
from hashlib import blake2b
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from darts.logging import get_logger
from darts.typing import TimeSeriesLike
from darts.utils.ts_utils import series2seq
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from sqlalchemy.exc import DBAPIError

from darts_kronos.checkpoints import CONFIG_FILE, WEIGHTS_FILE
from darts_kronos.hub import names_weights
from darts_kronos.model import KronosModel
from darts_kronos.objectives import (
    ERROR,
    LEFT_OUT,
    PARAMETERS,
    IncomparableLosses,
    Metric,
    Suggest,
    crps_objective,
    is_plain,
    require_paths,
    sampling_objective,
    val_loss_objective,
)
from darts_kronos.parameters import plain, require_int
from darts_kronos.search_space import (
    default_point,
    sampling_point,
    suggest_parameters,
    suggest_predictor,
    suggest_sampling,
    suggest_tokenizer,
    with_fixed,
)
from darts_kronos.window_scores import check_lengths, listed_series, measured_component

__all__ = [
    "best_model",
    "best_parameters",
    "crps_objective",
    "sampling_objective",
    "suggest_parameters",
    "suggest_predictor",
    "suggest_sampling",
    "suggest_tokenizer",
    "tune",
    "tune_sampling",
    "val_loss_objective",
]

logger = get_logger(__name__)

STORAGE = "darts_kronos_tuning"
"""Folder of the SQLite file that keeps studies, if no other storage is given."""

OBJECTIVES = ("crps", "val_loss")

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

INTERRUPTED = "interrupted"
"""Noted at a trial that Ctrl-C ended."""

_SETTINGS = "darts_kronos"
"""What a study keeps: what its values are comparable for."""

_MAY_DIFFER = {
    *("pl_trainer_kwargs", "tokenizer_trainer_kwargs", "model_name", "work_dir", "force_reset"),
    *("save_checkpoints", "log_tensorboard", "show_warnings"),
}
"""Parameters that are a machine's own, so that the workers of one study may differ in them."""


def tune(
    train: TimeSeriesLike,
    val: TimeSeriesLike,
    *,
    n_trials: int = 20,
    objective: str = "crps",
    metric: Metric | None = None,
    direction: Literal["minimize", "maximize"] = "minimize",
    component: str | None = None,
    stride: int | None = None,
    num_samples: int = 100,
    suggest: Suggest | None = None,
    first: Mapping[str, Any] | None = None,
    storage: str | os.PathLike[str] | optuna.storages.BaseStorage = STORAGE,
    study_name: str = "kronos",
    sampler: optuna.samplers.BaseSampler | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
    timeout: float | None = None,
    callbacks: Sequence[Callable[[optuna.Study, optuna.trial.FrozenTrial], None]] = (),
    fit_kwargs: Mapping[str, Any] | None = None,
    show_progress: bool = True,
    **fixed: Any,
) -> optuna.Study:
    """Tune a KronosModel, or go on with it.

    Every trial trains a model on `train` and is judged on `val`; keep other candles for a test.
    The first trial is the default model, but for its epochs. A trial that fails (an exception, a
    loss that is no number) is recorded as failed, its user attribute ``error`` says why, and the
    study goes on.

    The study lies in `storage`. The same call again goes on until there are `n_trials`, and any
    number of processes that make the same call share them.

    Parameters
    ----------
    train, val
        One or several series to train on, and to validate and backtest on.
    n_trials
        Trials that the study is to have, those of calls and workers before included.
    objective
        "crps": backtests (:func:`crps_objective`), which can compare any two models; the space is
        that of :func:`suggest_parameters`. "val_loss": the loss of the predictor
        (:func:`val_loss_objective`), which can compare only models whose tokenizers are made
        alike; the space is that of the predictor alone.
    metric
        What backtests measure instead of the CRPS: one of Darts' metrics.
    direction
        "minimize", or "maximize" for a metric of which more is better.
    component, stride, num_samples
        Of backtests; see :func:`crps_objective`.
    suggest
        A search space of your own; None: that of the objective.
    first
        Values that the first trial is given for what it asks Optuna for; None: those of the
        default model, where `suggest` is None.
    storage
        A folder, in which a SQLite file is kept; a file that ends in ``.db``; one that ends in
        ``.log``, for an Optuna journal, which many workers may share over a network disk; the URL
        of a database, such as ``postgresql://...``; or one of Optuna's storages.
    study_name
        Name of the study in the storage.
    sampler
        One of Optuna's; None: its TPE, told of what other workers try. Give one with a seed for a
        study that can be repeated.
    pruner
        One of Optuna's. It stops trials by their `val_loss` in the predictor stage, so that with
        one the tokenizer's parameters and the epochs are not searched. None: the median pruner for
        the objective "val_loss", and none for "crps".
    timeout
        Seconds after which no new trial begins.
    callbacks
        Called with the study and each finished trial.
    fit_kwargs
        Of ``fit``, such as `stride` or `max_samples_per_ts`.
    show_progress
        Whether there is a progress bar.
    **fixed
        Parameters of every model, which win over those suggested: `input_chunk_length` and
        `output_chunk_length`, and any other.

    Returns
    -------
    optuna.Study
        With :func:`best_parameters` and :func:`best_model` for what comes next.

    Raises
    ------
    ValueError
        Before anything is trained: if a parameter is out of range, a series is too short, or the
        study was begun with other series or settings.

    Examples
    --------
    >>> study = tuning.tune(
    ...     train, val, n_trials=50, input_chunk_length=96, output_chunk_length=12, random_state=0
    ... )
    >>> model = tuning.best_model(study, train, val)
    """
    if objective not in OBJECTIVES:
        allowed = ", ".join(map(repr, OBJECTIVES))
        raise ValueError(f"`objective` must be one of {allowed}, got {objective!r}.")
    if objective == "val_loss" and (metric is not None or direction != "minimize"):
        raise ValueError("`metric` and `direction` are for the objective 'crps', not 'val_loss'.")
    if direction not in ("minimize", "maximize"):
        raise ValueError(f"`direction` must be 'minimize' or 'maximize', got {direction!r}.")
    if metric is not None and not callable(metric):
        raise ValueError(f"`metric` must be a function or None, got {metric!r}.")
    require_int("n_trials", n_trials, 1)
    require_int("stride", stride, 1, or_none=True)
    if objective == "crps":
        require_paths(num_samples, metric)
    else:
        require_int("num_samples", num_samples, 1)
    if timeout is not None and not (isinstance(timeout, Real) and timeout > 0):
        raise ValueError(f"`timeout` must be a number of seconds > 0 or None, got {timeout!r}.")
    fixed = plain(fixed)
    _check_series(train, val, component, suggest, fixed, backtested=objective == "crps")
    if pruner is None:
        by_loss = objective == "val_loss"
        pruner = optuna.pruners.MedianPruner() if by_loss else optuna.pruners.NopPruner()
    options: dict[str, Any] = {
        "suggest": suggest,
        "fit_kwargs": fit_kwargs,
        "prune": not isinstance(pruner, optuna.pruners.NopPruner),
        **fixed,
    }
    if objective == "val_loss":
        function = val_loss_objective(train, val, **options)
    else:
        function = crps_objective(
            train,
            val,
            component=component,
            stride=stride,
            num_samples=num_samples,
            metric=metric,
            **options,
        )
    study = optuna.create_study(
        storage=open_storage(storage),
        study_name=study_name,
        sampler=sampler or optuna.samplers.TPESampler(constant_liar=True),
        pruner=pruner,
        direction=direction,
        load_if_exists=True,
    )
    if study.trials:
        # A sampler with a seed would propose what it proposed before, or does in another worker.
        study.sampler.reseed_rng()
    measured = (component, stride, num_samples, _called(metric))
    _check_settings(
        study,
        {
            "objective": objective,
            "direction": direction,
            "pruning": options["prune"],
            "component, stride, num_samples, metric": list(measured if objective == "crps" else ()),
            "suggest": getattr(suggest, "__qualname__", None),
            "fixed parameters": _plain(fixed, _MAY_DIFFER) | _weights_in(fixed),
            "fit_kwargs": _plain(fit_kwargs or {}),
            "train": _digest(train),
            "val": _digest(val),
        },
    )
    if first is None and suggest is None:
        first = default_point(fixed)
    if first is not None and all(INTERRUPTED in trial.user_attrs for trial in study.trials):
        # Of several workers that begin a study one asks for it.
        study.enqueue_trial(dict(first), skip_if_exists=not study.trials)
    left = n_trials - _n_finished(study)
    if left <= 0:
        logger.info(f"The study has its {n_trials} trials.")
        return study
    wrong: list[IncomparableLosses] = []

    def stopping(trial: optuna.Trial) -> float:
        try:
            return function(trial)
        except IncomparableLosses as error:
            # No trial's own fault: the next one would fail as this one did.
            wrong.append(error)
            study.stop()
            raise
        except KeyboardInterrupt:
            # Optuna keeps it as one that failed; it is tried again.
            trial.set_user_attr(INTERRUPTED, True)
            raise

    def stop_at_last(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if _n_finished(study) >= n_trials:
            study.stop()

    study.optimize(
        stopping,
        n_trials=left,
        timeout=timeout,
        catch=(Exception,),
        callbacks=[*callbacks, stop_at_last],
        gc_after_trial=True,
        show_progress_bar=show_progress,
    )
    if wrong:
        raise wrong[0]
    return study


def _n_finished(study: optuna.Study) -> int:
    """Trials that have ended, but for those that Ctrl-C ended."""
    ended = study.get_trials(deepcopy=False, states=FINISHED)
    return sum(INTERRUPTED not in trial.user_attrs for trial in ended)


def _called(metric: Any) -> str:
    """A name of a metric that is the same in every process."""
    if isinstance(metric, partial):
        given = [*map(repr, metric.args), *(f"{k}={v!r}" for k, v in metric.keywords.items())]
        return f"{_called(metric.func)}({', '.join(given)})"
    if metric is None:
        return repr(metric)
    name = str(getattr(metric, "__qualname__", type(metric).__qualname__))
    code = getattr(metric, "__code__", None)
    if code is not None and "<lambda>" in name:
        # One lambda is called as any other.
        text = code.co_code + repr((code.co_consts, code.co_names)).encode()
        name += f" {blake2b(text, digest_size=4).hexdigest()}"
    return name


def best_parameters(study: optuna.Study, **changes: Any) -> dict[str, Any]:
    """The parameters of the best trial's model, those that were fixed included.

    Parameters
    ----------
    study
        One of :func:`tune`, or of one of the objectives here.
    **changes
        Parameters that replace those of the trial. What is no plain value, such as a likelihood or
        callbacks, is not kept in a study, and must be given here again.

    Returns
    -------
    dict
        For ``KronosModel(**parameters)``.

    Raises
    ------
    ValueError
        If no trial was completed, or a parameter that was not kept is not given.
    """
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not done:
        failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        why = failed[-1].user_attrs.get(ERROR, "no reason kept") if failed else None
        raise ValueError(
            "No trial of the study was completed"
            + (f"; {len(failed)} failed, the last one with: {why}" if failed else ".")
        )
    kept = study.best_trial.user_attrs
    if PARAMETERS not in kept:
        raise ValueError("The study is of another objective than those of darts_kronos.tuning.")
    missing = [name for name in kept[LEFT_OUT] if name not in changes]
    if missing:
        raise ValueError(
            f"The study could not keep {', '.join(missing)}: give what the trials had, or None."
        )
    return with_fixed(kept[PARAMETERS], changes)


def best_model(
    study: optuna.Study,
    train: TimeSeriesLike,
    val: TimeSeriesLike | None = None,
    *,
    fit_kwargs: Mapping[str, Any] | None = None,
    **changes: Any,
) -> KronosModel:
    """Train the best trial's model again, on the same series or on more.

    Parameters
    ----------
    study, **changes
        See :func:`best_parameters`.
    train, val
        One or several series to train on, and to validate on, if any.
    fit_kwargs
        Of ``fit``.

    Returns
    -------
    KronosModel
        The model, fitted.
    """
    model = KronosModel(**best_parameters(study, **changes))
    return model.fit(train, val_series=val, **(fit_kwargs or {}))


def tune_sampling(
    model: KronosModel,
    val: TimeSeriesLike,
    *,
    n_trials: int = 30,
    metric: Metric | None = None,
    direction: Literal["minimize", "maximize"] = "minimize",
    component: str | None = None,
    stride: int | None = None,
    num_samples: int = 100,
    random_state: int | None = 0,
    sampler: optuna.samplers.BaseSampler | None = None,
    timeout: float | None = None,
    show_progress: bool = True,
    **fixed: Any,
) -> optuna.Study:
    """Tune temperature, `top_p` and `top_k` of a fitted model by backtests, without training.

    The first trial is the sampling that the model has. The best one stays with the model, as after
    :meth:`~darts_kronos.KronosModel.set_sampling`. Its method ``calibrate`` is shorter: it tries a
    few temperatures, then `top_p`, and reports coverage too.

    Parameters
    ----------
    model
        A fitted model.
    val
        One or several series that it was not trained on.
    n_trials
        Settings that are tried.
    metric, direction, component, stride, num_samples
        See :func:`tune`.
    random_state
        Of the paths and of Optuna's choices; None: others each time.
    sampler, timeout, show_progress
        See :func:`tune`.
    **fixed
        Sampling parameters that are not searched, such as ``top_k=None``.

    Returns
    -------
    optuna.Study
        In memory.

    Raises
    ------
    ValueError
        Before anything is tried, if the model is not fitted or a parameter is out of range.
    """
    require_int("n_trials", n_trials, 1)
    function = sampling_objective(
        model,
        val,
        component=component,
        stride=stride,
        num_samples=num_samples,
        metric=metric,
        random_state=random_state,
        **fixed,
    )
    before = model.sampling
    study = optuna.create_study(
        sampler=sampler or optuna.samplers.TPESampler(seed=random_state), direction=direction
    )
    study.enqueue_trial(sampling_point(before))
    chosen = before
    try:
        study.optimize(
            function, n_trials=n_trials, timeout=timeout, show_progress_bar=show_progress
        )
        chosen = before | best_parameters(study)
    finally:
        model.set_sampling(**chosen)
    return study


def open_storage(
    storage: str | os.PathLike[str] | optuna.storages.BaseStorage,
) -> optuna.storages.BaseStorage:
    """One of Optuna's storages; see :func:`tune`.

    Raises
    ------
    ValueError
        If `storage` is none, and no path or URL.
    """
    if isinstance(storage, optuna.storages.BaseStorage):
        return storage
    if not isinstance(storage, (str, os.PathLike)) or not os.fspath(storage):
        raise ValueError(
            "`storage` must be a folder, a file, the URL of a database, or one of Optuna's "
            f"storages, got {storage!r}."
        )
    text = os.fspath(storage)
    if "://" in text:
        return _database(text)
    path = Path(text).absolute()
    if path.suffix == ".log":
        path.parent.mkdir(parents=True, exist_ok=True)
        return optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    if path.suffix != ".db":
        path = path / "studies.db"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Workers on one machine wait for each other's writing.
    return _database(f"sqlite:///{path}", connect_args={"timeout": 60})


def _database(url: str, **engine_kwargs: Any) -> optuna.storages.RDBStorage:
    """A database; where workers that start at once all create its tables, all but one try again."""
    for _ in range(3):
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs=engine_kwargs)
        except DBAPIError:
            time.sleep(1)
    return optuna.storages.RDBStorage(url, engine_kwargs=engine_kwargs)


def _check_series(
    train: TimeSeriesLike,
    val: TimeSeriesLike,
    component: str | None,
    suggest: Suggest | None,
    fixed: Mapping[str, Any],
    backtested: bool,
) -> None:
    named = {}
    for role, series in {"Training": train, "Validation": val}.items():
        named[role] = listed_series(series, role)
    measured_component(named["Validation"][0], component)
    lengths = ("input_chunk_length", "output_chunk_length")
    missing = [name for name in lengths if name not in fixed]
    if missing and suggest is None:
        raise ValueError(f"Give {' and '.join(f'`{name}`' for name in missing)}, in bars.")
    if suggest is None and names_weights(fixed) and not fixed.get("enable_finetuning"):
        raise ValueError(
            "With weights and without `enable_finetuning` nothing is trained, so only the "
            "sampling can be tuned: see `tune_sampling`."
        )
    if not missing:
        # What is wrong with fixed parameters is said once, and not by every trial.
        model = KronosModel(**deepcopy(dict(fixed)))
        least = model.min_input_chunk_length + model.output_chunk_length
        check_lengths(named["Training"], least, "Training")
        if backtested:
            least = model.input_chunk_length + model.output_chunk_length
        check_lengths(named["Validation"], least, "Validation")


def _check_settings(study: optuna.Study, settings: dict[str, Any]) -> None:
    """Keep a new study's settings; refuse to go on with others."""
    settings = json.loads(json.dumps(settings))
    kept = study.user_attrs.get(_SETTINGS)
    if kept is None:
        if study.trials:
            raise ValueError(
                f"The storage holds a study {study.study_name!r} that was not begun by `tune`: "
                "give another `study_name`."
            )
        study.set_user_attr(_SETTINGS, settings)
        return
    differ = [name for name in settings if settings[name] != kept.get(name)]
    if differ:
        raise ValueError(
            f"The study {study.study_name!r} was begun with other settings ("
            + "; ".join(f"{name}: {kept.get(name)}, now {settings[name]}" for name in differ)
            + "), so its trials cannot be compared with new ones: give another `study_name`."
        )


def _plain(values: Mapping[str, Any], without: Collection[str] = ()) -> dict[str, Any]:
    """Values that JSON can hold; of others the name of their type."""
    return {
        name: value if is_plain(value) else type(value).__qualname__
        for name, value in values.items()
        if name not in without
    }


def _weights_in(fixed: Mapping[str, Any]) -> dict[str, str]:
    """Tells the weights in local folders apart, wherever those lie."""
    found = {}
    for name in ("local_dir", "tokenizer_local_dir"):
        if fixed.get(name) is not None:
            folder, digest = Path(fixed[name]).expanduser(), blake2b(digest_size=8)
            files = (path for kind in (CONFIG_FILE, WEIGHTS_FILE) for path in folder.rglob(kind))
            for path in sorted(files):
                digest.update(str(path.relative_to(folder)).encode())
                digest.update(path.read_bytes())
            found[name] = digest.hexdigest()
    return found


def _digest(series: TimeSeriesLike) -> str:
    """Tells candles apart."""
    digest = blake2b(digest_size=8)
    for one in series2seq(series):
        digest.update(",".join(map(str, one.components)).encode())
        digest.update(np.ascontiguousarray(one.all_values(copy=False), dtype=float).tobytes())
    return digest.hexdigest()
