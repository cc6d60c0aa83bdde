"""``darts-kronos backtest``: forecasts of the part that no training saw, measured."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import pandas as pd
from darts import TimeSeries
from darts.metrics import mae, mcrps, mic, rmse

from darts_kronos.cli.config_file import ConfigFile
from darts_kronos.cli.console import say
from darts_kronos.cli.data import Parts, read, split
from darts_kronos.cli.errors import UsageError
from darts_kronos.cli.files import check_target, written
from darts_kronos.cli.fitted import load
from darts_kronos.cli.run_folder import RunFolder
from darts_kronos.cli.seen import check_unseen, times_of

METRICS = {
    "crps": "CRPS of the sample paths, in the component's units; lower is better",
    "mae": "mean absolute error of the paths' median; lower is better",
    "rmse": "root mean squared error of the paths' mean; lower is better",
    "coverage": "share of values inside the central 50% and 90% of the paths",
}

INTERVALS = {"coverage 50%": (0.25, 0.75), "coverage 90%": (0.05, 0.95)}


def options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "--metric",
        nargs="+",
        choices=list(METRICS),
        default=list(METRICS),
        help="; ".join(f"{name}: {text}" for name, text in METRICS.items()).replace("%", "%%"),
    )
    parser.add_argument(
        "--component", default="close", help="what is measured; default: %(default)s"
    )
    parser.add_argument("--samples", type=int, metavar="N", help="sample paths of a forecast")
    parser.add_argument(
        "--stride", type=int, metavar="BARS", help="bars between forecasts; default: the horizon"
    )
    parser.add_argument("--out", metavar="FILE", help="write the figures to a CSV too")


def run(file: ConfigFile, arguments: argparse.Namespace) -> None:
    """Backtest the test part; the validation part, if there is no other.

    Raises
    ------
    UsageError
        If there is no fitted model, no part to backtest on, or its run was trained on that.
    """
    config = file.config
    num_samples, asked_in = config.sampling.num_samples, "sampling.num_samples"
    if arguments.samples is not None:
        num_samples, asked_in = arguments.samples, "--samples"
    for name, value, least in ((asked_in, num_samples, 2), ("--stride", arguments.stride, 1)):
        if value is not None and value < least:
            raise UsageError(f"{name} must be at least {least}, got {value}.")
    if config.data.lookback_window < 2:
        raise UsageError("data.lookback_window must be at least 2: the random walk draws returns.")
    if arguments.out:
        check_target("--out", arguments.out)
    model = load(file)
    horizon, context = config.data.predict_window, model.input_chunk_length
    parts = split(read(config.data), config.data)
    held_out, name = _held_out(parts, context)
    if arguments.component not in held_out[0].components:
        raise UsageError(
            f"--component: there is no {arguments.component!r}; there are "
            f"{', '.join(held_out[0].components)}."
        )
    folder = RunFolder(config.model_paths)
    firsts = [times_of(one)[int(context)] for one in held_out]
    check_unseen(folder, parts, firsts, name, config.data)
    found: list[list[TimeSeries]] = model.historical_forecasts(
        held_out,
        start=context,
        start_format="position",
        forecast_horizon=horizon,
        stride=arguments.stride or horizon,
        retrain=False,
        last_points_only=False,
        num_samples=num_samples,
        random_state=config.training.seed,
        verbose=False,
        show_warnings=False,
    )
    forecasts, actual, walks = _aligned(
        held_out, found, arguments.component, context, num_samples, config.training.seed
    )
    say(
        f"{len(forecasts)} forecasts of {horizon} bars on the {name} part, {num_samples} paths "
        f"each, {arguments.component}"
    )
    table = pd.DataFrame(
        {
            "Kronos": _measures(arguments.metric, actual, forecasts),
            "random walk": _measures(arguments.metric, actual, walks),
        }
    )
    say(table.to_string(float_format="{:.4f}".format))
    say("The random walk draws the context's own returns, without their mean.")
    target = arguments.out or folder.path / "backtest.csv"
    with written(target) as unfinished:
        table.to_csv(unfinished, index_label="metric")
    say(f"written: {target}")


def _held_out(parts: Parts, context: int) -> tuple[list[TimeSeries], str]:
    if parts.test:
        return parts.test, "test"
    if not parts.val:
        raise UsageError(
            "There is nothing to backtest on: data.test_ratio and data.val_ratio are 0."
        )
    say("data.test_ratio is 0: the validation part, by which the best epoch was chosen, is used.")
    starts = [len(train) - context for train in parts.train]
    ends = [len(train) + n for train, n in zip(parts.train, _lengths(parts), strict=True)]
    series = zip(parts.whole, starts, ends, strict=True)
    return [one[start:end] for one, start, end in series], "validation"


def _lengths(parts: Parts) -> list[int]:
    """Bars of each validation part, without borrowed context."""
    return [
        whole.get_index_at_point(val.end_time()) + 1 - len(train)
        for whole, val, train in zip(parts.whole, parts.val, parts.train, strict=True)
    ]


def _aligned(
    series: Sequence[TimeSeries],
    found: Sequence[Sequence[TimeSeries]],
    component: str,
    context: int,
    num_samples: int,
    seed: int,
) -> tuple[list[TimeSeries], list[TimeSeries], list[TimeSeries]]:
    """Each forecast of a component, what came, and a random walk from the same context."""
    rng = np.random.default_rng(seed)
    forecasts, actual, walks = [], [], []
    for one, its in zip(series, found, strict=True):
        known = one[component]
        values = known.values(copy=False).ravel()
        for forecast in its:
            start = known.get_index_at_point(forecast.start_time())
            forecasts.append(forecast[component])
            actual.append(known[start : start + len(forecast)])
            drawn = _random_walk(values[start - context : start], len(forecast), num_samples, rng)
            walks.append(forecast[component].with_values(drawn))
    return forecasts, actual, walks


def _random_walk(
    context: np.ndarray, n_bars: int, num_samples: int, rng: np.random.Generator
) -> np.ndarray:
    """Paths that draw a context's own steps at random, without their mean, (bars, 1, samples)."""
    is_positive = bool((context > 0).all())
    steps = np.diff(np.log(context) if is_positive else context)
    drawn = rng.choice(steps - steps.mean(), size=(n_bars, num_samples)).cumsum(axis=0)
    paths = context[-1] * np.exp(drawn) if is_positive else context[-1] + drawn
    return paths[:, None, :]


def _measures(
    metrics: Sequence[str], actual: list[TimeSeries], forecasts: list[TimeSeries]
) -> dict[str, float]:
    found = {}
    for name in dict.fromkeys(metrics):
        if name == "crps":
            found["crps"] = float(np.mean(mcrps(actual, forecasts)))
        elif name == "mae":
            medians = [forecast.quantile(0.5) for forecast in forecasts]
            named = [
                m.with_columns_renamed(m.components[0], a.components[0])
                for m, a in zip(medians, actual, strict=True)
            ]
            found["mae"] = float(np.mean(mae(actual, named)))
        elif name == "rmse":
            means = [forecast.mean(axis=2) for forecast in forecasts]
            found["rmse"] = float(np.sqrt(np.mean(np.square(rmse(actual, means)))))
        else:
            inside = np.reshape(
                mic(actual, forecasts, q_interval=list(INTERVALS.values())), (-1, 2)
            )
            found |= dict(zip(INTERVALS, inside.mean(axis=0).tolist(), strict=True))
    return found
