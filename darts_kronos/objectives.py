"""Objectives for Optuna: what a trial's model is worth, by backtests or by its validation loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import optuna
import pytorch_lightning as pl
from darts import TimeSeries
from darts.typing import TimeSeriesLike
from darts.utils.callbacks import PyTorchLightningPruningCallback
from darts.utils.ts_utils import series2seq

from darts_kronos.model import KronosModel
from darts_kronos.parameters import plain, require_int
from darts_kronos.search_space import (
    TOP_KS,
    decides_tokens,
    suggest_parameters,
    suggest_predictor,
    suggest_sampling,
    suggest_tokenizer,
    with_fixed,
)
from darts_kronos.training import listed
from darts_kronos.window_scores import (
    check_lengths,
    crps_of_windows,
    listed_series,
    measured_component,
    metric_of_windows,
    window_forecasts,
)

PARAMETERS, LEFT_OUT, ERROR = "parameters", "left_out", "error"
"""What a trial keeps: its model's parameters, the names of those that are no plain values, and why
it failed."""

Suggest = Callable[[optuna.Trial], dict[str, Any]]
Metric = Callable[..., float]
Objective = Callable[[optuna.Trial], float]


class IncomparableLosses(ValueError):
    """A search space whose models' losses mean different things."""


class _Pruning(PyTorchLightningPruningCallback):
    """Darts' pruning, but for losses that are no numbers, and for pickles."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loss = trainer.callback_metrics.get(self.monitor)
        if loss is not None and not np.isfinite(float(loss)):
            # Such a trial has failed; a pruned one has not.
            trainer.should_stop = True
            return
        super().on_validation_end(trainer, pl_module)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        # Darts saves callbacks with a model: a trial, and its storage, is nothing to save.
        return pl.Callback, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Pruning:
        return self


class _TrainingObjective:
    """Trains a trial's model and gives its score.

    Parameters
    ----------
    train, val
        The series.
    score
        Gives a fitted model's score.
    suggest
        Gives a trial's parameters; None: the search space.
    fixed
        Parameters of every model.
    fit_kwargs
        Of ``fit``.
    loss_counts
        Whether losses of trials are compared, so that all must write the same tokens.
    prune
        Whether they are compared epoch by epoch.
    sampling
        Whether the sampling matters for the score.
    """

    def __init__(
        self,
        train: TimeSeriesLike,
        val: TimeSeriesLike,
        score: Callable[[KronosModel], float],
        suggest: Suggest | None,
        fixed: Mapping[str, Any],
        fit_kwargs: Mapping[str, Any] | None,
        *,
        loss_counts: bool,
        prune: bool,
        sampling: bool,
    ):
        self.train, self.val, self.score = train, val, score
        self.given, self.fixed = suggest, fixed
        self.fit_kwargs = {"verbose": False, **(fit_kwargs or {})}
        wrong = {"series", "val_series"} & set(self.fit_kwargs)
        if wrong:
            raise ValueError(
                f"`fit_kwargs` must not hold {', '.join(sorted(wrong))}: `train` and `val` are."
            )
        self.loss_counts, self.prune, self.sampling = loss_counts or prune, prune, sampling

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """The parameters that a trial chooses."""
        if self.given is None or self.given is suggest_parameters:
            found = {} if self.loss_counts else suggest_tokenizer(trial, self.fixed)
            found |= suggest_predictor(trial, self.fixed, epochs=not self.prune)
            return found | (suggest_sampling(trial, self.fixed) if self.sampling else {})
        found = self.given(trial)
        wrong = sorted(name for name in found if decides_tokens(name) and name not in self.fixed)
        if self.loss_counts and wrong:
            raise IncomparableLosses(
                "Losses of models with different tokens cannot be compared: with the objective "
                f"'val_loss', or with pruning, `suggest` must not give {', '.join(wrong)}."
            )
        return found

    def __call__(self, trial: optuna.Trial) -> float:
        try:
            value = self._run(trial)
        except optuna.TrialPruned:
            raise
        except Exception as error:
            trial.set_user_attr(ERROR, f"{type(error).__name__}: {error}")
            raise
        if not np.isfinite(value):
            trial.set_user_attr(ERROR, f"a loss or the score is no finite number: {value}")
            return float("nan")
        return value

    def _run(self, trial: optuna.Trial) -> float:
        suggested = self.suggest(trial)
        merged = plain(with_fixed(suggested, self.fixed))
        kept = {name: value for name, value in merged.items() if is_plain(value)}
        trial.set_user_attr(PARAMETERS, kept)
        trial.set_user_attr(LEFT_OUT, sorted(set(merged) - set(kept)))
        # Callbacks among them would carry what they saw from one trial to the next.
        params = deepcopy(merged)
        if params.get("model_name") is not None:
            params["model_name"] = f"{params['model_name']}_{trial.number}"
        pruning = _Pruning(trial, monitor="val_loss") if self.prune else None
        if pruning is not None:
            trainer_kwargs = dict(params.get("pl_trainer_kwargs") or {})
            callbacks = [*listed(trainer_kwargs.get("callbacks")), pruning]
            params["pl_trainer_kwargs"] = {**trainer_kwargs, "callbacks": callbacks}
        model = KronosModel(**params)
        model.fit(self.train, val_series=self.val, **self.fit_kwargs)
        if pruning is not None:
            pruning.check_pruned()
        last = model.training_history.groupby("stage")[["train_loss", "val_loss"]].last()
        if not np.isfinite(last.to_numpy()).all():
            return float("nan")
        return self.score(model)


def crps_objective(
    train: TimeSeriesLike,
    val: TimeSeriesLike,
    *,
    component: str | None = None,
    stride: int | None = None,
    num_samples: int = 100,
    metric: Metric | None = None,
    suggest: Suggest | None = None,
    fit_kwargs: Mapping[str, Any] | None = None,
    prune: bool = False,
    **fixed: Any,
) -> Objective:
    """An objective: the score of backtests on held-out series; their CRPS, if no other is given.

    The CRPS is that of each window's paths in units of the last value before the window, so that
    series of any price level count alike, and the mean is over all windows.

    Parameters
    ----------
    train, val
        One or several series to train on, and to validate and backtest on.
    component
        The component that is measured; None: the close, else the first.
    stride
        Bars from one window to the next; None: ``output_chunk_length``.
    num_samples
        Paths of each window; at least 2 for the CRPS.
    metric
        One of Darts' metrics, or another that makes a number of an actual series and a forecast;
        None: the CRPS as above.
    suggest
        Gives the parameters of a trial's model; None: :func:`suggest_parameters`.
    fit_kwargs
        Of ``fit``, such as `stride` or `max_samples_per_ts`.
    prune
        Whether trials are stopped by their `val_loss`, as far as the study has a pruner. The
        tokenizer's parameters and the epochs are not searched then: see
        :func:`val_loss_objective`.
    **fixed
        Parameters of every model, which win over those suggested; the chunk lengths among them.

    Returns
    -------
    callable
        For ``optuna.Study.optimize``. A training whose loss is no finite number gives NaN, which
        Optuna records as a failed trial.

    Raises
    ------
    ValueError
        If there are too few paths.
    """
    require_paths(num_samples, metric)

    def score(model: KronosModel) -> float:
        held_out = series2seq(val)
        return _mean_score(model, held_out, component, stride, num_samples, metric, None)

    return _TrainingObjective(
        train,
        val,
        score,
        suggest,
        fixed,
        fit_kwargs,
        loss_counts=False,
        prune=prune,
        sampling=True,
    )


def val_loss_objective(
    train: TimeSeriesLike,
    val: TimeSeriesLike,
    *,
    suggest: Suggest | None = None,
    fit_kwargs: Mapping[str, Any] | None = None,
    prune: bool = True,
    **fixed: Any,
) -> Objective:
    """An objective: the predictor's `val_loss` after its last epoch, the cross entropy of tokens.

    It is cheaper than a backtest, and says less: tokens of fewer bits, or of a tokenizer that uses
    few of its codes, are easy to guess and say little of a candle. So losses are compared only
    between models whose tokenizers are made alike: the tokenizer's parameters, the bits among
    them, are not searched but stay as given or as they are by default; nor is the sampling, which
    no loss depends on. With pruning, trials are compared epoch by epoch, and the number of epochs
    is not searched either.

    Parameters
    ----------
    train, val, suggest, fit_kwargs
        See :func:`crps_objective`. With ``load_best=True`` for ``fit`` the least `val_loss` of all
        epochs counts.
    prune
        Whether trials are stopped by their `val_loss`, as far as the study has a pruner.
    **fixed
        Parameters of every model. Give `random_state`: trainings of the tokenizer from different
        seeds add noise.

    Returns
    -------
    callable
        For ``optuna.Study.optimize``.
    """
    load_best = bool((fit_kwargs or {}).get("load_best"))

    def score(model: KronosModel) -> float:
        history = model.training_history
        losses = history.loc[history["stage"] == "predictor", "val_loss"]
        return float(losses.min() if load_best else losses.iloc[-1])

    return _TrainingObjective(
        train,
        val,
        score,
        suggest,
        fixed,
        fit_kwargs,
        loss_counts=True,
        prune=prune,
        sampling=False,
    )


def sampling_objective(
    model: KronosModel,
    val: TimeSeriesLike,
    *,
    component: str | None = None,
    stride: int | None = None,
    num_samples: int = 100,
    metric: Metric | None = None,
    random_state: int | None = 0,
    **fixed: Any,
) -> Objective:
    """An objective: the score of a fitted model's backtests by its sampling, without training.

    Each trial leaves its sampling with the model; :func:`tune_sampling` leaves the best.

    Parameters
    ----------
    model
        A fitted model.
    val, component, stride, num_samples, metric
        See :func:`crps_objective`.
    random_state
        Of the paths, the same for every trial, so that luck has less to say; None: another each.
    **fixed
        Sampling parameters that are not searched, such as ``top_k=None``.

    Raises
    ------
    ValueError
        If the model is not fitted, a series is too short or there is none, or a value is out of
        range.
    """
    if model.model is None:
        raise ValueError("The sampling cannot be tuned before the model is fitted or loaded.")
    held_out = listed_series(val, "Validation")
    check_lengths(held_out, model.input_chunk_length + model.output_chunk_length, "Validation")
    measured_component(held_out[0], component)
    require_paths(num_samples, metric)
    require_int("stride", stride, 1, or_none=True)
    before = model.sampling
    model.set_sampling(**fixed).set_sampling(**before)
    # The sampling that the model has is a point of the space too.
    top_ks = tuple(dict.fromkeys((*TOP_KS, before["top_k"])))

    def run(trial: optuna.Trial) -> float:
        chosen = suggest_sampling(trial, fixed, top_ks) | fixed
        model.set_sampling(**chosen)
        trial.set_user_attr(PARAMETERS, chosen)
        trial.set_user_attr(LEFT_OUT, [])
        return _mean_score(model, held_out, component, stride, num_samples, metric, random_state)

    return run


def _mean_score(
    model: KronosModel,
    held_out: Sequence[TimeSeries],
    component: str | None,
    stride: int | None,
    num_samples: int,
    metric: Metric | None,
    random_state: int | None,
) -> float:
    """The mean over all windows of all series."""
    scores = []
    for series in held_out:
        found = window_forecasts(
            model,
            series,
            measured_component(series, component),
            num_samples=num_samples,
            stride=stride,
            random_state=random_state,
        )
        own = crps_of_windows(*found) if metric is None else metric_of_windows(metric, *found)
        scores.append(own)
    return float(np.concatenate(scores).mean())


def require_paths(num_samples: object, metric: Metric | None) -> None:
    """Refuse fewer paths than a score is made of.

    Raises
    ------
    ValueError
        If there are fewer than 2 for the CRPS, which compares paths, or than 1 for a `metric`,
        which may be one of point forecasts.
    """
    require_int("num_samples", num_samples, 2 if metric is None else 1)


def is_plain(value: Any) -> bool:
    """Whether a value comes back from JSON as it was, but for tuples."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and is_plain(one) for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
