"""``darts-kronos forecast``: the bars to come, as a table, a file and a picture."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from darts import TimeSeries
from matplotlib.backend_bases import FigureCanvasBase

from darts_kronos import candles
from darts_kronos.cli.config_file import ConfigFile
from darts_kronos.cli.console import say
from darts_kronos.cli.data import ENDINGS, label, read
from darts_kronos.cli.errors import UsageError
from darts_kronos.cli.files import check_target, written
from darts_kronos.cli.fitted import load
from darts_kronos.components import told_apart
from darts_kronos.plotting import plot_forecast

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SHOWN_BARS = 5
"""Bars of a forecast that are printed, from its start, beside its last."""

PICTURE_DPI = 110


def options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "--horizon", type=int, metavar="BARS", help="bars to come; data.predict_window if left out"
    )
    parser.add_argument(
        "--samples", type=int, metavar="N", help="sample paths; sampling.num_samples if left out"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="write quantiles of every component to a CSV, or Parquet by its ending",
    )
    parser.add_argument(
        "--paths", action="store_true", help="write every sample path there, not quantiles"
    )
    parser.add_argument(
        "--quantiles",
        type=float,
        nargs="+",
        default=QUANTILES,
        metavar="Q",
        help="the quantiles that are written; default: %(default)s",
    )
    parser.add_argument(
        "--plot",
        metavar="FILE",
        help="draw candles and fan to a picture; of several series, one each, by name",
    )


def run(file: ConfigFile, arguments: argparse.Namespace) -> None:
    """Forecast from the last bar of each series.

    Raises
    ------
    UsageError
        If there is no fitted model, or the bars are too few for a context.
    """
    data = file.config.data
    horizon = data.predict_window if arguments.horizon is None else arguments.horizon
    num_samples = arguments.samples or file.config.sampling.num_samples
    for name, value in {"--horizon": horizon, "--samples": arguments.samples}.items():
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}.")
    if not all(0 <= q <= 1 for q in arguments.quantiles):
        raise UsageError(f"--quantiles must lie in [0, 1], got {list(arguments.quantiles)}.")
    if len({f"{q:.3f}" for q in arguments.quantiles}) < len(arguments.quantiles):
        raise UsageError(
            f"--quantiles must differ, to three digits, got {list(arguments.quantiles)}."
        )
    if arguments.out and Path(arguments.out).suffix.lower() not in ENDINGS:
        raise UsageError(f"--out: {arguments.out}: the ending must be one of {', '.join(ENDINGS)}.")
    if arguments.plot:
        known = sorted(FigureCanvasBase.filetypes)
        if Path(arguments.plot).suffix.lower().lstrip(".") not in known:
            raise UsageError(f"--plot: {arguments.plot}: the ending must be of {', '.join(known)}.")
    for option, target in {"--out": arguments.out, "--plot": arguments.plot}.items():
        if target:
            check_target(option, target)
    model = load(file)
    series = read(data)
    for one in series:
        if len(one) < model.input_chunk_length:
            raise UsageError(
                f"{label(one, series)}: too few bars: {len(one)}, and a context takes "
                f"{model.input_chunk_length} (data.lookback_window)."
            )
    torch.manual_seed(file.config.training.seed)
    paths = model.predict(
        horizon,
        series,
        num_samples=num_samples,
        random_state=file.config.training.seed,
        verbose=False,
    )
    _show(paths, series, num_samples)
    if arguments.out:
        frame = candles.to_dataframe(
            paths if len(paths) > 1 else paths[0],
            quantiles=None if arguments.paths else list(arguments.quantiles),
            paths="long" if arguments.paths else None,
            time_as_index=False,
        )
        with written(arguments.out) as unfinished:
            if Path(arguments.out).suffix.lower() in (".parquet", ".pq"):
                frame.to_parquet(unfinished, index=False)
            else:
                frame.to_csv(unfinished, index=False)
        say(f"written: {arguments.out}")
    if arguments.plot:
        _draw(arguments.plot, series, paths, model.input_chunk_length)


def _show(paths: list[TimeSeries], series: list[TimeSeries], num_samples: int) -> None:
    for one, history in zip(paths, series, strict=True):
        last = history["close"].last_value()
        name = "" if len(series) == 1 else f"{label(history, series)}: "
        say(f"{name}{len(one)} bars from {num_samples} paths; the last close is {last:.6g}")
        frame = candles.to_dataframe(one["close"], quantiles=[0.05, 0.5, 0.95])
        frame = frame.drop(columns="symbol", errors="ignore")
        shown = [*range(min(SHOWN_BARS, len(frame) - 1)), len(frame) - 1]
        say(frame.iloc[shown].to_string(float_format="{:.6g}".format))


def _draw(path: str, series: list[TimeSeries], paths: list[TimeSeries], context: int) -> None:
    names = [label(history, series) for history in series]
    # Files of one symbol have one name.
    stems = told_apart([name.replace("/", "_") for name in names], "_")
    for one, history, name, stem in zip(paths, series, names, stems, strict=True):
        title = f"{len(one)} bars ahead" if len(series) == 1 else f"{name}: {len(one)} bars ahead"
        figure = plot_forecast(history[-context:], one, title=title)
        target = Path(path)
        if len(series) > 1:
            target = target.with_stem(f"{target.stem}_{stem}")
        with written(target) as unfinished:
            figure.savefig(unfinished, dpi=PICTURE_DPI)
        say(f"drawn: {target}")
