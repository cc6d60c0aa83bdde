"""Forecast accuracy against the random walk, LSTM, TFT and others, without leaks.

    python benchmarks/accuracy.py --quick    # one seed, two pools, under 15 minutes on two cores
    python benchmarks/accuracy.py            # three seeds, all pools; resumable
    python benchmarks/accuracy.py --tune     # only what tuning finds on the validation parts

Chronological parts with an embargo of one horizon; statistics from the context alone; the same
context, windows and tuning budget for every learned model; tuning on validation with the first
seed; one run on test. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from evaluation import report
from evaluation.baselines import BASELINES
from evaluation.data import HORIZON, POOLS, PRICES, Pool, load, windows
from evaluation.learned import CONFIGS, Candidate, Fitted, views
from evaluation.measures import Scores, score
from evaluation.store import RESULTS, Store

STRIDE = 4
"""Bars from one test forecast to the next."""


def score_all(paths: list[np.ndarray], pool: Pool, part: str, stride: int) -> dict[str, Scores]:
    """Scores of a pool's forecasts by symbol."""
    scores = {}
    for symbol, found, series in zip(pool.symbols, paths, getattr(pool, part), strict=True):
        contexts, futures = windows(series[PRICES], stride)
        assert len(found) == len(contexts), (symbol, len(found), len(contexts))
        scores[symbol] = score(found, contexts, futures)
    return scores


def run_baseline(store: Store, pool: Pool, name: str) -> dict[str, Any]:
    """Scores of a forecaster without training on the test part."""
    done = store.get(pool.name, name, 0)
    if done is not None:
        return done
    started = time.perf_counter()
    paths = []
    for series in pool.test:
        contexts, _ = windows(series[PRICES], STRIDE)
        paths.append(BASELINES[name](contexts, HORIZON, np.random.default_rng(0)))
    seconds = time.perf_counter() - started
    result = {
        "scores": score_all(paths, pool, "test", STRIDE),
        "fit_seconds": 0.0,
        "forecast_seconds": seconds,
        "n_parameters": 0,
        "candidate": name,
    }
    return store.put(result, pool.name, name, 0)


def validation_crps(fitted: Fitted, pool: Pool) -> float:
    """Mean CRPS of the close on the validation part, over the last close."""
    scores = score_all(fitted.paths(pool.val, 2 * STRIDE), pool, "val", 2 * STRIDE)
    return float(np.mean([one.crps.mean() for one in scores.values()]))


def validated(
    store: Store, pool: Pool, tried: list[Candidate], most_epochs: int
) -> dict[str, float]:
    """The validation CRPS of candidates, by their names."""
    losses = {}
    for candidate in tried:
        key = pool.name, "validation", candidate.name, most_epochs
        loss = store.get(*key)
        if loss is None:
            fitted = Fitted(candidate, pool, 0, most_epochs)
            loss = store.put(validation_crps(fitted, pool), *key)
        print(f"  {pool.name}: {candidate.name}: validation CRPS {loss:.5f}", flush=True)
        losses[candidate.name] = loss
    return losses


def tune(
    store: Store, pool: Pool, model: str, budget: int, most_epochs: int
) -> tuple[Candidate, dict[str, float]]:
    """The candidate of a model with the least validation CRPS, and that of each by its name.

    The first configuration is tried in both views of the bars, the others in the better one.
    """
    first, *others = CONFIGS[model][:budget]
    seen = [Candidate(model, view, first) for view in views(model)]
    losses = validated(store, pool, seen, most_epochs)
    best = min(seen, key=lambda one: losses[one.name])
    further = [Candidate(model, best.view, config) for config in others]
    losses |= validated(store, pool, further, most_epochs)
    return min([best, *further], key=lambda one: losses[one.name]), losses


def run_learned(
    store: Store, pool: Pool, model: str, budget: int, seeds: int, most_epochs: int
) -> list[dict[str, Any]]:
    """Scores of a learned model on the test part, a result for each seed."""
    keys = [(pool.name, model, budget, most_epochs, seed) for seed in range(seeds)]
    done = [store.get(*key) for key in keys]
    if all(one is not None for one in done):
        return done
    chosen, _ = tune(store, pool, model, budget, most_epochs)
    results = []
    for seed, key in enumerate(keys):
        result = store.get(*key)
        if result is None:
            fitted = Fitted(chosen, pool, seed, most_epochs)
            paths = fitted.paths(pool.test, STRIDE)
            result = {
                "scores": score_all(paths, pool, "test", STRIDE),
                "fit_seconds": fitted.fit_seconds,
                "forecast_seconds": fitted.forecast_seconds,
                "n_parameters": fitted.n_parameters,
                "candidate": chosen.name,
            }
            store.put(result, *key)
        print(f"  {pool.name}: {chosen.name}: seed {seed} done", flush=True)
        results.append(result)
    return results


def main() -> None:
    """Run what is asked, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, two pools, no tuning")
    parser.add_argument("--pools", nargs="+", choices=POOLS, help="only these pools")
    parser.add_argument("--models", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", type=int, default=3, help="configurations that are tried")
    parser.add_argument("--tune", action="store_true", help="only tune: validation parts alone")
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    seeds, budget = (1, 1) if arguments.quick else (arguments.seeds, arguments.budget)
    pools = arguments.pools or (["AAPL hourly", "AAPL minute"] if arguments.quick else list(POOLS))
    out = arguments.out or RESULTS / ("quick" if arguments.quick else "full")
    for name in ("pytorch_lightning", "darts"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")

    store = Store(out / "parts")
    most_epochs = 6 if arguments.quick else 20
    if arguments.tune:
        tuned: dict[str, dict[str, dict[str, float]]] = {}
        for name in pools:
            pool = load(name)
            tuned[name] = {
                model: tune(store, pool, model, budget, most_epochs)[1]
                for model in arguments.models
            }
        report.write_tuning(tuned, out)
        return
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name in pools:
        pool = load(name)
        results[name] = {walk: [run_baseline(store, pool, walk)] for walk in BASELINES}
        for model in arguments.models:
            results[name][model] = run_learned(store, pool, model, budget, seeds, most_epochs)
    report.write(results, out, overlap=-(-HORIZON // STRIDE))


if __name__ == "__main__":
    main()
