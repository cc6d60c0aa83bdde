"""How far forecasts change from draw to draw, with and without stratified random numbers.

    python benchmarks/draws.py
    python benchmarks/draws.py --pool "EURUSD hourly" --paths 20 100 500

One fit forecasts its pool's validation windows several times. The table has, for each number of
paths, the mean CRPS of the close over the random walk's, how far that changes from draw to draw
(standard deviation), and how far some quantities of the close do, in basis points of the last
close, in the mean over windows: the paths' mean and quantiles at the horizon's first and last step.
"Independent" are paths whose numbers know nothing of each other, as they were before.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from accuracy import STRIDES
from evaluation import learned
from evaluation.baselines import BASELINES
from evaluation.data import HORIZON, POOLS, PRICES, Pool, load, windows
from evaluation.learned import Candidate, Fitted
from evaluation.measures import CLOSE, crps
from torch import Tensor

from darts_kronos.nn.graphs import uniforms
from darts_kronos.nn.strata import stratified

QUANTILES = (0.05, 0.5, 0.95)


def independent(n: int, windows: int, paths: int, device: torch.device) -> Tensor:
    """Numbers of paths that know nothing of each other, as ``stratified`` gives them."""
    return uniforms((n, 2, windows * paths), device)


NUMBERS: dict[str, Callable[..., Tensor]] = {"independent": independent, "stratified": stratified}


def drawn(fitted: Fitted, pool: Pool, paths: int, numbers: str) -> list[np.ndarray]:
    """The close in units of the last one, (W, n, S) for each validation series."""
    with (
        patch.object(learned, "SAMPLES", paths),
        patch("darts_kronos.nn.rows.stratified", NUMBERS[numbers]),
    ):
        found = fitted.paths(pool.val, STRIDES["val"])
    return [
        one[:, :, CLOSE] / windows(series[PRICES], STRIDES["val"])[0][:, -1:, CLOSE, None]
        for one, series in zip(found, pool.val, strict=True)
    ]


def quantities(close: np.ndarray) -> np.ndarray:
    """The mean and the quantiles of paths (W, n, S) at the first and the last step, (2, 4, W)."""
    ends = close[:, [0, -1]]
    return np.stack([ends.mean(-1), *np.quantile(ends, QUANTILES, axis=-1)]).transpose(2, 0, 1)


def measure(fitted: Fitted, pool: Pool, paths: int, numbers: str, draws: int) -> dict[str, object]:
    """A row of the table."""
    actual, scale = [], []
    for series in pool.val:
        contexts, futures = windows(series[PRICES], STRIDES["val"])
        last = contexts[:, -1:, CLOSE]
        actual.append(futures[..., CLOSE] / last)
        walk = BASELINES["random walk"](contexts, HORIZON, np.random.default_rng(0))
        scale.append(crps(walk[:, :, CLOSE] / last[..., None], actual[-1]).mean())
    ratios, sizes = [], []
    for _ in range(draws):
        closes = drawn(fitted, pool, paths, numbers)
        losses = [
            crps(close, came).mean() / of_walk
            for close, came, of_walk in zip(closes, actual, scale, strict=True)
        ]
        ratios.append(np.mean(losses))
        sizes.append(np.concatenate([quantities(close) for close in closes], axis=-1))
    deviation = 1e4 * np.std(sizes, axis=0, ddof=1).mean(axis=-1)
    names = ("mean", *(f"{q:.0%}" for q in QUANTILES))
    return {
        "paths": paths,
        "numbers": numbers,
        "CRPS ratio": np.mean(ratios),
        "its deviation": np.std(ratios, ddof=1),
        **{
            f"{name}, step {step}": deviation[i, j]
            for i, step in enumerate((1, HORIZON))
            for j, name in enumerate(names)
        },
    }


def main() -> None:
    """Fit, draw and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pool", choices=POOLS, default="AAPL hourly")
    parser.add_argument("--paths", nargs="+", type=int, default=[20, 100, 500])
    parser.add_argument("--draws", type=int, default=10)
    arguments = parser.parse_args()
    for name in ("pytorch_lightning", "darts"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    pool = load(arguments.pool)
    fitted = Fitted(Candidate("Kronos", "mirrored"), pool, seed=0, keep=True)
    rows = [
        measure(fitted, pool, paths, numbers, arguments.draws)
        for paths in arguments.paths
        for numbers in NUMBERS
    ]
    print(pd.DataFrame(rows).to_markdown(floatfmt=".4g", index=False))


if __name__ == "__main__":
    main()
