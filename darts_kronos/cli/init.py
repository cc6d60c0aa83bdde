"""``darts-kronos init``: a commented config that fits a file of candles."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from darts import TimeSeries

from darts_kronos.cli.config_file import commented
from darts_kronos.cli.data import find_files, read, span
from darts_kronos.cli.errors import UsageError
from darts_kronos.cli.keys import Data

CONTEXTS = (512, 384, 256, 192, 128, 96, 64, 48, 32, 24, 16, 12, 8)
"""Contexts that are proposed, the longest that the bars suffice for."""

CONTEXTS_IN_TRAINING = 20
"""Contexts that the training part holds at least, one after the other."""

RATIOS = {"train_ratio": 0.8, "val_ratio": 0.1, "test_ratio": 0.1}

SHOWN = {
    "data": ("data_path", "lookback_window", "predict_window", *RATIOS, "calendar", "timezone"),
    "training": (
        "tokenizer_epochs",
        "basemodel_epochs",
        "batch_size",
        "tokenizer_batch_size",
        "num_workers",
        "seed",
        "tokenizer_learning_rate",
        "predictor_learning_rate",
    ),
    "model_paths": ("exp_name", "base_path", "pretrained_tokenizer", "pretrained_predictor"),
    "device": ("use_cuda",),
    "model": ("size", "representation"),
    "sampling": ("temperature", "top_p", "num_samples", "calibrate"),
    "trainer": ("devices",),
}
"""Keys that are written without ``--all``."""


def options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "data",
        nargs="*",
        help="the candles: CSV or Parquet files, a folder of them, or a pattern in quotes",
    )
    parser.add_argument("--all", action="store_true", help="write every key there is")


def run(arguments: argparse.Namespace) -> None:
    """Print a config.

    Raises
    ------
    UsageError
        If the candles cannot be read, or are too few for any window.
    """
    if not arguments.data and not arguments.all:
        raise UsageError("init: name a file of candles, or say --all to see every key.")
    values: dict[str, dict[str, Any]] = {}
    header = "A config of darts-kronos, with every key."
    if arguments.data:
        paths = arguments.data if len(arguments.data) > 1 else arguments.data[0]
        series = read(Data(data_path=paths))
        values = _fitting(paths, series)
        header = f"A config of darts-kronos for {span(series)}."
    header += (
        "\nWindows are counted in bars. Every key can be set on the command line too:\n"
        "  darts-kronos fit THIS.yaml --data.lookback_window 128"
    )
    if not arguments.all:
        header += "\n`darts-kronos init --all` prints the other keys."
    text = commented(values, header, lambda s, k: arguments.all or k in SHOWN.get(s, ()))
    sys.stdout.write(text)


def _fitting(paths: str | list[str], series: list[TimeSeries]) -> dict[str, dict[str, Any]]:
    """Values that suit these series."""
    shortest, bars = min(map(len, series)), sum(map(len, series))
    trained = RATIOS["train_ratio"]
    fitting = [
        context
        for context in CONTEXTS
        if trained * bars >= CONTEXTS_IN_TRAINING * context
        and trained * shortest >= context + _horizon(context)
        and RATIOS["val_ratio"] * shortest >= _horizon(context) + 1
    ]
    if not fitting:
        raise UsageError(
            f"{shortest} bars are too few to train on: at least "
            f"{round(CONTEXTS_IN_TRAINING * CONTEXTS[-1] / trained)} are needed."
        )
    files = find_files([paths] if isinstance(paths, str) else paths)
    name = files[0].stem if len(files) == 1 else Path(files[0]).resolve().parent.name
    return {
        "data": {
            "data_path": paths,
            "lookback_window": fitting[0],
            "predict_window": _horizon(fitting[0]),
            **RATIOS,
        },
        "training": {"batch_size": 32, "tokenizer_batch_size": 16, "seed": 100},
        "model_paths": {"exp_name": name, "base_path": "runs"},
        "sampling": {"num_samples": 100},
    }


def _horizon(context: int) -> int:
    return max(2, context // 4)
