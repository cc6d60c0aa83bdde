"""Which bars a run was trained on and chosen by, so that no backtest measures what it has seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from darts import TimeSeries

from darts_kronos import candles
from darts_kronos.candles import SYMBOL
from darts_kronos.cli.console import say, warn
from darts_kronos.cli.data import Parts, files_of, fingerprint
from darts_kronos.cli.errors import UsageError
from darts_kronos.cli.keys import Data
from darts_kronos.cli.run_folder import RunFolder


def seen(parts: Parts, data: Data) -> list[dict[str, Any]]:
    """What is noted about each series of a run: its name, and the last bars that the run saw."""
    return [
        {
            "name": name,
            "train_until": times_of(train)[-1].isoformat(),
            "val_until": times_of(parts.val[i])[-1].isoformat() if parts.val else None,
            "last_bar": fingerprint([train[-1:]]),
        }
        for i, (name, train) in enumerate(zip(_names(parts.train, data), parts.train, strict=True))
    ]


def check_unseen(
    run: RunFolder, parts: Parts, firsts: Sequence[pd.Timestamp], part: str, data: Data
) -> None:
    """Refuse to measure forecasts of bars that a run was trained on; warn of its validation bars.

    Parameters
    ----------
    run
        The run, which notes what :func:`seen` says.
    parts
        The series now.
    firsts
        Of each series, the time of the first bar that is to be forecast.
    part
        What these bars are called: test or validation.
    data
        Where the series are from.

    Raises
    ------
    UsageError
        If the run was trained on a series' first bar, or on a later one.
    """
    noted = ((run.known or {}).get("data") or {}).get("series")
    if noted is None:
        say(
            f"{run.path}: an earlier version trained this run and did not note its bars; whether "
            f"it has seen the {part} part is not checked."
        )
        return
    of_validation = []
    for one, name, first in zip(parts.whole, _names(parts.whole, data), firsts, strict=True):
        own = [note for note in noted if note["name"] == name or _has_last_bar(one, note)]
        trained = [note["train_until"] for note in own if _is_seen(first, note["train_until"])]
        if trained:
            raise UsageError(
                f"{name}: the {part} part begins at {first}, but this run was trained on bars up "
                f"to {max(trained, key=pd.Timestamp)}. Say the data.train_ratio and data.val_ratio "
                f"that it was trained with ({run.config}), and where older bars were added since, "
                "ratios by which the part begins later."
            )
        if part == "test" and any(_is_seen(first, note["val_until"]) for note in own):
            of_validation.append(name)
    if of_validation:
        warn(
            f"The test part has bars of the run's validation, by which its best epoch was chosen: "
            f"the figures flatter it ({', '.join(of_validation)})."
        )


def _names(series: Sequence[TimeSeries], data: Data) -> list[str]:
    """What a series goes by: its symbol, else the path of its file, of which it is all."""
    own = [(one.metadata or {}).get(SYMBOL) for one in series]
    return [str(files_of(data)[0].resolve() if name is None else name) for name in own]


def times_of(one: TimeSeries) -> pd.DatetimeIndex:
    """Timestamps of a series that was read from a file."""
    times = candles.timestamps(one)
    assert times is not None
    return times


def _has_last_bar(one: TimeSeries, note: dict[str, Any]) -> bool:
    """Whether a series has the last bar of a training, under whatever name."""
    times, until = times_of(one), pd.Timestamp(note["train_until"])
    if (until.tz is None) != (times.tz is None):
        return False
    return any(
        fingerprint([one[at : at + 1]]) == note["last_bar"]
        for at in np.flatnonzero(times == until).tolist()
    )


def _is_seen(first: pd.Timestamp, until: str | None) -> bool:
    if until is None:
        return False
    last = pd.Timestamp(until)
    if (first.tz is None) != (last.tz is None):
        # The zone was given since, or taken away: wall-clock times are what both have.
        first, last = first.tz_localize(None), last.tz_localize(None)
    return bool(first <= last)
