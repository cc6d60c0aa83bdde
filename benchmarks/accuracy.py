"""Forecast accuracy against the random walk, LSTM, TFT and others, without leaks.

    python benchmarks/accuracy.py --quick    # one seed, two pools, under 15 minutes on two cores
    python benchmarks/accuracy.py            # three seeds, all pools; resumable
    python benchmarks/accuracy.py --tune     # only what tuning finds on the validation parts

Chronological parts with an embargo of one horizon; statistics from the context alone; the same
context, windows and configurations to try for every learned model; tuning on validation with the
first seed; one run on test. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from evaluation import report
from evaluation.baselines import BASELINES, ORACLE, told_volatility
from evaluation.data import HORIZON, POOLS, PRICES, Pool, load, windows
from evaluation.har import NAME as HAR
from evaluation.har import HarWalk
from evaluation.learned import CONFIGS, Candidate, Fitted, configs, views
from evaluation.measures import POSITIONS, Scores, score
from evaluation.quiet import quiet
from evaluation.store import RESULTS, Store

STRIDES = {"val": HORIZON // 2, "test": 4}
"""Bars from one forecast to the next in the parts that are forecast."""


def score_all(
    paths: list[np.ndarray], pool: Pool, part: str, positions: str = POSITIONS
) -> dict[str, Scores]:
    """Scores of a pool's forecasts by symbol."""
    scores = {}
    for symbol, found, series in zip(pool.symbols, paths, getattr(pool, part), strict=True):
        contexts, futures = windows(series[PRICES], STRIDES[part])
        assert len(found) == len(contexts), (symbol, len(found), len(contexts))
        scores[symbol] = score(found, contexts, futures, positions)
    return scores


def run_baseline(pool: Pool, name: str) -> dict[str, Any]:
    """Scores of a forecaster that is no network, or of the oracle, on the test part."""
    started = time.perf_counter()
    regression = HarWalk(pool.train) if name == HAR else None
    fitted = time.perf_counter()
    paths = []
    for series in pool.test:
        contexts, futures = windows(series[PRICES], STRIDES["test"])
        rng = np.random.default_rng(0)
        if regression is not None:
            paths.append(regression.paths(series, STRIDES["test"], rng))
        elif name == ORACLE:
            paths.append(told_volatility(contexts, futures, HORIZON, rng))
        else:
            paths.append(BASELINES[name](contexts, HORIZON, rng))
    seconds = time.perf_counter() - fitted
    return {
        "scores": score_all(paths, pool, "test"),
        "fit_seconds": fitted - started,
        "forecast_seconds": seconds,
        "n_parameters": 0 if regression is None else regression.n_parameters,
        "candidate": name,
    }


Fits = dict[tuple[str, ...], tuple[Fitted, str, float]]
"""Models of a run, how their paths are drawn, and the seconds that it took to choose that."""


def forecast(
    store: Store,
    fits: Fits,
    pool: Pool,
    candidate: Candidate,
    seed: int,
    most_epochs: int,
    part: str,
) -> dict[str, Any]:
    """A candidate's paths of a part of a pool, an array for each series, and what they cost.

    It is trained and calibrated for the first part that is asked for, and kept in `fits`.
    """
    which = (pool.name, candidate.name, f"seed={seed}", f"epochs={most_epochs}")
    found = store.get(*which, part)
    if found is None:
        if which not in fits:
            new = Fitted(candidate, pool, seed, most_epochs, keep=True)
            fits[which] = new, *new.calibrate(STRIDES["val"])
        fitted, sampling, seconds = fits[which]
        started = time.perf_counter()
        paths = fitted.paths(getattr(pool, part), STRIDES[part])
        result = {
            # Half of the room, and far more digits than prices have.
            "paths": [one.astype(np.float32) for one in paths],
            "sampling": sampling,
            "fit_seconds": fitted.fit_seconds + seconds,
            "forecast_seconds": time.perf_counter() - started,
            "n_parameters": fitted.n_parameters,
        }
        found = store.put(result, *which, part)
        print(f"  {pool.name}: {candidate.name}: seed {seed}, {part}", flush=True)
    return found


def validation_crps(
    store: Store, fits: Fits, pool: Pool, tried: list[Candidate], most_epochs: int
) -> dict[str, float]:
    """The mean CRPS of the close on the validation part, over the last close, by candidate."""
    losses = {}
    for candidate in tried:
        found = forecast(store, fits, pool, candidate, 0, most_epochs, "val")
        scores = score_all(found["paths"], pool, "val")
        losses[candidate.name] = float(np.mean([one.crps.mean() for one in scores.values()]))
    return losses


def tune(
    store: Store,
    fits: Fits,
    pool: Pool,
    model: str,
    budget: int,
    most_epochs: int,
    quick: bool,
) -> tuple[Candidate, dict[str, float]]:
    """The candidate of a model with the least validation CRPS, and that of each by its name.

    The first configuration is tried in each view of the bars, the others in the best one.
    """
    first, *others = configs(model, budget, quick)
    seen = [Candidate(model, view, first) for view in views(model, quick)]
    losses = validation_crps(store, fits, pool, seen, most_epochs)
    best = min(seen, key=lambda one: losses[one.name])
    further = [Candidate(model, best.view, config) for config in others]
    losses |= validation_crps(store, fits, pool, further, most_epochs)
    return min([best, *further], key=lambda one: losses[one.name]), losses


def run_learned(
    store: Store, fits: Fits, pool: Pool, chosen: Candidate, seeds: int, most_epochs: int
) -> list[dict[str, Any]]:
    """Scores of a learned model on the test part, a result for each seed."""
    results = []
    for seed in range(seeds):
        found = forecast(store, fits, pool, chosen, seed, most_epochs, "test")
        scores = score_all(found.pop("paths"), pool, "test")
        results.append({"scores": scores, "candidate": chosen.name, **found})
    return results


def main() -> None:
    """Run what is asked, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one seed, two pools, one configuration, fewer views of the bars, less pretraining",
    )
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
    quiet()

    store = Store(out / "parts")
    most_epochs = 6 if arguments.quick else 20
    tuned: dict[str, dict[str, dict[str, float]]] = {}
    results: report.Results = {}
    for name in pools:
        pool = load(name)
        fits: Fits = {}
        chosen, tuned[name] = {}, {}
        for model in arguments.models:
            chosen[model], tuned[name][model] = tune(
                store, fits, pool, model, budget, most_epochs, arguments.quick
            )
        if not arguments.tune:
            results[name] = {walk: [run_baseline(pool, walk)] for walk in (*BASELINES, HAR, ORACLE)}
            for model, candidate in chosen.items():
                results[name][model] = run_learned(store, fits, pool, candidate, seeds, most_epochs)
    report.write_tuning(tuned, out)
    if results:
        report.write(results, out, overlap=-(-HORIZON // STRIDES["test"]))


if __name__ == "__main__":
    main()
