"""How far forecasts change from draw to draw, with and without stratified random numbers.

    python benchmarks/draws.py
    python benchmarks/draws.py --pool "EURUSD hourly" --paths 20 100 500

One fit forecasts its pool's validation windows several times. The table has, for each number of
paths, the mean CRPS of the close over the better random walk's, and how far that changes from draw
to draw (standard deviation); and how far some quantities of the close do, in basis points of the
last close, in the mean over windows: the paths' mean and quantiles at both ends of the horizon.
"Independent" are paths whose numbers know nothing of each other, as they were before.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from accuracy import STRIDES, score_all
from darts import TimeSeries
from evaluation import learned
from evaluation.data import HORIZON, POOLS, PRICES, Pool, load, windows
from evaluation.learned import Candidate, Fitted
from evaluation.measures import CLOSE
from evaluation.quiet import quiet
from levers import walks
from torch import Tensor

from darts_kronos.nn.graphs import uniforms
from darts_kronos.nn.strata import stratified

QUANTILES = (0.05, 0.5, 0.95)


def independent(n: int, windows: int, paths: int, device: torch.device) -> Tensor:
    """Numbers of paths that know nothing of each other, as ``stratified`` gives them."""
    return uniforms((n, 2, windows * paths), device)


NUMBERS: dict[str, Callable[..., Tensor]] = {"independent": independent, "stratified": stratified}


def drawn(fitted: Fitted, pool: Pool, paths: int, numbers: str) -> list[np.ndarray]:
    """Paths (W, n, 4, S) of each validation series."""
    with (
        patch.object(learned, "SAMPLES", paths),
        patch("darts_kronos.nn.strata.stratified", NUMBERS[numbers]),
    ):
        return fitted.paths(pool.val, STRIDES["val"])


def quantities(paths: np.ndarray, series: TimeSeries) -> np.ndarray:
    """The mean and the quantiles of the close over the last one, at both ends, (2, 4, W)."""
    contexts, _ = windows(series[PRICES], STRIDES["val"])
    ends = paths[:, [0, -1], CLOSE] / contexts[:, -1:, CLOSE, None]
    return np.stack([ends.mean(-1), *np.quantile(ends, QUANTILES, axis=-1)]).transpose(2, 0, 1)


def measure(
    fitted: Fitted, pool: Pool, of_walks: dict[str, float], paths: int, numbers: str, draws: int
) -> dict[str, object]:
    """A row of the table; `of_walks` are the CRPS that those of the paths are over."""
    ratios, sizes = [], []
    for _ in range(draws):
        found = drawn(fitted, pool, paths, numbers)
        scores = score_all(found, pool, "val")
        ratios.append(np.mean([one.crps.mean() / of_walks[name] for name, one in scores.items()]))
        both = zip(found, pool.val, strict=True)
        sizes.append(np.concatenate([quantities(*one) for one in both], axis=-1))
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
    quiet()
    pool = load(arguments.pool)
    fitted = Fitted(Candidate("Kronos", "mirrored"), pool, seed=0, keep=True)
    of_walks = walks(pool)
    rows = [
        measure(fitted, pool, of_walks, paths, numbers, arguments.draws)
        for paths in arguments.paths
        for numbers in NUMBERS
    ]
    print(pd.DataFrame(rows).to_markdown(floatfmt=".4g", index=False))


if __name__ == "__main__":
    main()
