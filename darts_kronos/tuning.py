"""Tuning with Optuna: a search space over both stages, and an objective on held-out candles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
from darts import TimeSeries
from darts.metrics import mcrps
from darts.utils.ts_utils import series2seq

from darts_kronos.model import KronosModel


def suggest_parameters(trial: optuna.Trial) -> dict[str, Any]:
    """A point of the search space: size and training of both stages.

    Parameters
    ----------
    trial
        The trial that asks.

    Returns
    -------
    dict
        Parameters of a :class:`~darts_kronos.KronosModel`; all but the two chunk lengths.
    """
    heads = 4
    dropout = trial.suggest_float("dropout", 0.0, 0.4)
    return {
        "s1_bits": trial.suggest_int("s1_bits", 5, 9),
        "s2_bits": trial.suggest_int("s2_bits", 4, 8),
        "d_model": heads * 2 * trial.suggest_int("d_model_over_8", 6, 20),
        "n_heads": heads,
        "n_layers": trial.suggest_int("n_layers", 2, 5),
        "ffn_dropout": dropout,
        "resid_dropout": dropout,
        "token_dropout": trial.suggest_float("token_dropout", 0.0, 0.2),
        "n_epochs": trial.suggest_int("n_epochs", 1, 5),
        "n_epochs_tokenizer": trial.suggest_int("n_epochs_tokenizer", 2, 8),
        "optimizer_kwargs": {"lr": trial.suggest_float("lr", 5e-4, 6e-3, log=True)},
        "tokenizer_optimizer_kwargs": {
            "lr": trial.suggest_float("tokenizer_lr", 5e-4, 6e-3, log=True)
        },
    }


def crps_objective(
    train: TimeSeries | Sequence[TimeSeries],
    val: TimeSeries | Sequence[TimeSeries],
    *,
    component: str = "close",
    stride: int = 1,
    num_samples: int = 100,
    suggest: Callable[[optuna.Trial], dict[str, Any]] = suggest_parameters,
    **fixed: Any,
) -> Callable[[optuna.Trial], float]:
    """An objective to minimise: the CRPS of backtests on held-out series, over their level.

    Token losses of models with different codebooks cannot be compared; forecasts can.

    Parameters
    ----------
    train, val
        One or several series to train on, and to backtest on.
    component
        The component whose CRPS counts.
    stride
        Bars between two forecasts of a backtest.
    num_samples
        Paths of each forecast.
    suggest
        Gives a trial's parameters.
    **fixed
        Parameters of every model, which replace those suggested; the chunk lengths among them.

    Returns
    -------
    callable
        For ``optuna.Study.optimize``.
    """
    held_out = series2seq(val)

    def objective(trial: optuna.Trial) -> float:
        model = KronosModel(**{**suggest(trial), **fixed})
        model.fit(train, val_series=val, verbose=False)
        scores = []
        for series in held_out:
            forecasts = model.historical_forecasts(
                series,
                forecast_horizon=model.output_chunk_length,
                stride=stride,
                retrain=False,
                last_points_only=False,
                num_samples=num_samples,
                verbose=False,
            )
            actual = [series[component]] * len(forecasts)
            crps = mcrps(actual, [forecast[component] for forecast in forecasts])
            scores.append(np.mean(crps) / np.abs(series[component].values()).mean())
        return float(np.mean(scores))

    return objective
