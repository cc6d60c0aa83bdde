"""Coverage on the test part: Kronos as trained, calibrated, and within Darts' conformal models.

    python benchmarks/calibration.py

Each pool's Kronos is trained on its training part. It is measured as it is, and with one sampling
for all pools. ``model.calibrate`` chooses the temperature on the
pool's validation part, alone or together with whether paths come in pairs. Darts'
``ConformalQRModel`` corrects each forecast's quantiles by the errors of the forecasts before it,
those of the validation part first; ``ConformalNaiveModel`` makes its intervals of the point
forecasts' errors. All are measured on the same windows of the close, and the report says for which
series the 90% intervals hold 90% within three points. Resumable; results lie in
benchmarks/results/calibration.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import pandas as pd
from accuracy import STRIDES, score_all
from darts import TimeSeries
from darts.models import ConformalNaiveModel, ConformalQRModel
from evaluation.baselines import SAMPLES
from evaluation.data import CONTEXT, HORIZON, POOLS, PRICES, Pool, load, windows
from evaluation.learned import Candidate, Fitted
from evaluation.measures import CLOSE, interval
from evaluation.quiet import quiet
from evaluation.store import RESULTS, Store

from darts_kronos import KronosModel

STRIDE = STRIDES["test"]

QUANTILES = [0.05, 0.25, 0.5, 0.75, 0.95]

INTERVALS = {50: (1, 3), 90: (0, 4)}
"""Coverage in percent, and the places in ``QUANTILES`` of the interval's ends."""

TOLERANCE = 0.03
"""How far coverage may lie from what it should be: three points."""


def measure(quantiles: np.ndarray, series: TimeSeries) -> dict[str, float]:
    """Coverage and Winkler score of quantiles (W, n, 5) of the close of a test series."""
    contexts, futures = windows(series[PRICES], STRIDE)
    last, actual = contexts[:, -1:, CLOSE], futures[:, :, CLOSE]
    row = {}
    for percent, (low, high) in INTERVALS.items():
        ends = quantiles[..., low], quantiles[..., high]
        inside, winkler = interval(*ends, actual, percent / 100)
        by_step = inside.mean(axis=0)
        row[f"coverage {percent}"] = inside.mean()
        row[f"least of a step {percent}"] = by_step.min()
        row[f"most of a step {percent}"] = by_step.max()
        row[f"Winkler {percent}"] = (winkler / last).mean()
    return row


def conformal(model: Any, val: TimeSeries, test: TimeSeries) -> np.ndarray:
    """Quantiles (W, n, 5) of a conformal model's forecasts of a test series' close."""
    # The test part begins with bars that end the validation part.
    whole = val.append(test[CONTEXT - HORIZON :])
    forecasts = model.historical_forecasts(
        whole,
        start=len(whole) - len(test) + CONTEXT,
        start_format="position",
        forecast_horizon=HORIZON,
        stride=STRIDE,
        last_points_only=False,
        retrain=False,
        predict_likelihood_parameters=True,
        verbose=False,
        show_warnings=False,
    )
    names = [f"close_q{q:.3f}" for q in QUANTILES]
    return np.stack([one[names].values() for one in forecasts])


def evaluate(pool: Pool, seed: int) -> list[dict[str, Any]]:
    """A row for each series and way."""
    fitted = Fitted(Candidate("Kronos", "mirrored", {"pretrained": True}), pool, seed, keep=True)
    model: KronosModel = fitted.model
    rows = []

    def add(way: str, symbol: str, found: dict[str, float], crps: float) -> None:
        rows.append({"series": symbol, "seed": seed, "way": way, **found, "CRPS": crps})

    def add_sampled(way: str) -> None:
        paths = fitted.paths(pool.test, STRIDE)
        scores = score_all(paths, pool, "test")
        for symbol, found, series in zip(pool.symbols, paths, pool.test, strict=True):
            # Linear ones, as those that Darts' models take of the paths.
            quantiles = np.quantile(found[:, :, CLOSE], QUANTILES, axis=-1)
            row = measure(np.moveaxis(quantiles, 0, -1), series)
            add(way, symbol, row, scores[symbol].crps.mean())

    add_sampled("as trained")
    for way, wrapped in {
        "conformal, quantiles": ConformalQRModel(
            model, QUANTILES, cal_stride=STRIDE, cal_num_samples=SAMPLES, random_state=seed
        ),
        "conformal, errors": ConformalNaiveModel(
            model, QUANTILES, cal_stride=STRIDE, random_state=seed
        ),
    }.items():
        for symbol, val, test in zip(pool.symbols, pool.val, pool.test, strict=True):
            add(way, symbol, measure(conformal(wrapped, val, test), test), float("nan"))
    trained = model.sampling
    model.set_sampling(temperature=1.1, antithetic=True)
    add_sampled("pairs, temperature 1.1")
    for way, antithetics in {"calibrated": (), "calibrated, pairs too": (False, True)}.items():
        model.set_sampling(**trained)
        model.calibrate(pool.val, antithetics=antithetics, stride=STRIDES["val"], verbose=False)
        add_sampled(way)
    return rows


def report(rows: list[dict[str, Any]]) -> str:
    """The means over all series, then 90% coverage by series, as Markdown."""
    frame = pd.DataFrame(rows).drop(columns="seed")
    reference = frame[frame["way"] == "as trained"].groupby("series").mean(numeric_only=True)
    for name in ("Winkler 50", "Winkler 90", "CRPS"):
        frame[name] = frame[name] / frame["series"].map(reference[name])
    means = frame.groupby("way", sort=False).mean(numeric_only=True)
    covered = frame.pivot_table(index="series", columns="way", values="coverage 90", sort=False)
    off = covered - 0.9
    # Rounded, so that what is printed as three points counts as three points.
    good = off.abs().round(3) <= TOLERANCE
    by_series = (100 * off).map("{:+.1f}".format) + good.map({True: "", False: " (off)"}.get)
    by_series.loc["**within 3 points**"] = [f"{n} of {len(covered)}" for n in good.sum()]
    return (
        f"Means over {len(covered)} series:\n\n{means.to_markdown(floatfmt='.3f')}\n\n"
        "Coverage of 90% intervals less 90, in points, by series:\n\n"
        f"{by_series.to_markdown(disable_numparse=True)}\n"
    )


def main() -> None:
    """Run what is asked and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pools", nargs="+", choices=POOLS, default=list(POOLS))
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    quiet()
    store, rows = Store(RESULTS / "calibration"), []
    for name in arguments.pools:
        for seed in range(arguments.seeds):
            found = store.get(name, seed)
            rows += store.put(evaluate(load(name), seed), name, seed) if found is None else found
            print(f"  {name}, seed {seed}: done", flush=True)
    text = report(rows)
    (RESULTS / "calibration.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
