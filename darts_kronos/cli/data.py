"""The candles that a config names, their parts in time, and their fingerprint."""

from __future__ import annotations

import glob
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from darts import TimeSeries

from darts_kronos import candles
from darts_kronos.candles import SYMBOL
from darts_kronos.cli.errors import UsageError
from darts_kronos.cli.keys import Data

ENDINGS = (".csv", ".parquet", ".pq")
"""Files of a folder that are read."""


def read(data: Data) -> list[TimeSeries]:
    """All series of the files that a config names.

    Where there are several files, a series without a symbol has the name of its file, and behind a
    symbol that several files have stands that name too.

    Raises
    ------
    UsageError
        If there is no file, one cannot be read as candles, or only some have a time zone; the
        message names it.
    """
    files = files_of(data)
    names = dict(zip(files, _names(files), strict=True))
    series, origins = [], []
    for file in files:
        for one in read_file(
            file,
            calendar=data.calendar,
            timezone=data.timezone,
            time_format=data.time_format,
            on_invalid=data.on_invalid,
            sort=data.sort,
        ):
            metadata = one.metadata or {}
            if len(files) > 1 and SYMBOL not in metadata:
                one = one.with_metadata({**metadata, SYMBOL: names[file]})
            series.append(one)
            origins.append(file)
    _check_zones(series, origins)
    return _told_apart(series, [names[file] for file in origins])


def _told_apart(series: Sequence[TimeSeries], files: Sequence[str]) -> list[TimeSeries]:
    """Series with the name of their file behind a symbol that others have too."""
    symbols = [(one.metadata or {}).get(SYMBOL) for one in series]
    times = Counter(symbols)
    return [
        one.with_metadata({**(one.metadata or {}), SYMBOL: f"{symbol} ({file})"})
        if times[symbol] > 1
        else one
        for one, symbol, file in zip(series, symbols, files, strict=True)
    ]


def _check_zones(series: Sequence[TimeSeries], origins: Sequence[Path]) -> None:
    """Refuse series of which some have a time zone: they have no order in time."""
    first: dict[bool, Path] = {}
    for one, file in zip(series, origins, strict=True):
        times = candles.timestamps(one)
        first.setdefault(times is not None and times.tz is not None, file)
    if len(first) > 1:
        raise UsageError(
            f"{first[False]}: its timestamps have no time zone, but those of {first[True]} have "
            "one. Say in the config which zone those without one are of (data.timezone), or give "
            "files of one kind."
        )


def files_of(data: Data) -> list[Path]:
    """The files of a config's candles; see :func:`find_files`."""
    return find_files([data.data_path] if isinstance(data.data_path, str) else data.data_path)


def _names(files: Sequence[Path]) -> list[str]:
    """A name for each file: its own without the ending, or its path where several have that."""
    names = [file.stem for file in files]
    if len(set(names)) == len(names):
        return names
    parent = os.path.commonpath([file.absolute().parent for file in files])
    paths = [file.absolute().relative_to(parent) for file in files]
    names = [path.with_suffix("").as_posix() for path in paths]
    return names if len(set(names)) == len(names) else [path.as_posix() for path in paths]


def find_files(paths: Sequence[str]) -> list[Path]:
    """The files that paths, folders and patterns stand for, in order of name, each once.

    Raises
    ------
    UsageError
        If one of them stands for none.
    """
    found: list[Path] = []
    for path in map(os.path.expanduser, paths):
        if os.path.isdir(path):
            here = [one for one in sorted(Path(path).iterdir()) if one.suffix.lower() in ENDINGS]
            if not here:
                raise UsageError(f"{path}: the folder has no {' or '.join(ENDINGS)} file.")
        elif os.path.exists(path):
            here = [Path(path)]
        else:
            here = [Path(one) for one in sorted(glob.glob(path, recursive=True))]
            if not here:
                raise UsageError(f"{path}: there is no such file or folder of candles.")
        found += here
    first: dict[Path, Path] = {}
    for file in found:
        first.setdefault(file.resolve(), file)
    return list(first.values())


def read_file(path: Path, **options: Any) -> list[TimeSeries]:
    """The series of one file; see :func:`darts_kronos.candles.from_dataframe` for the options.

    Raises
    ------
    UsageError
        If it cannot be read as candles.
    """
    parquet = path.suffix.lower() != ".csv" and path.suffix.lower() in ENDINGS
    try:
        read = candles.read_parquet if parquet else candles.read_csv
        series = read(path, **options)
    except pd.errors.EmptyDataError:
        raise UsageError(f"{path}: the file is empty.") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}.") from None
    except (ValueError, ImportError) as error:
        # Parsers' and decoders' errors are ValueErrors too.
        raise UsageError(f"{path}: {error}") from error
    return series if isinstance(series, list) else [series]


@dataclass(frozen=True)
class Parts:
    """Series split in time, the same shares of each.

    Attributes
    ----------
    whole
        All bars of each series.
    train, val
        What is trained on, and what the best epoch is chosen by; `val` is empty if there is none.
    test
        What no training sees, each with a context from the bars before it; empty if there is none.
    n_val, n_test
        Bars of all validation and test parts, contexts not counted.
    val_borrows
        Whether validation windows have a context from the training part, as they would be too few.
    """

    whole: list[TimeSeries]
    train: list[TimeSeries]
    val: list[TimeSeries]
    test: list[TimeSeries]
    n_val: int
    n_test: int
    val_borrows: bool

    def windows(self, context: int, horizon: int, stride: int = 1, of_val: bool = False) -> int:
        """Windows to train on, or to validate on."""
        series = self.val if of_val else self.train
        return sum(-(-(len(one) - context - horizon + 1) // stride) for one in series)


def split(series: Sequence[TimeSeries], data: Data) -> Parts:
    """Split series in time: the oldest bars train, the next validate, the newest test.

    No bar that a part forecasts belongs to another part.

    Raises
    ------
    UsageError
        If a part has too few bars for a window.
    """
    context, horizon = data.lookback_window, data.predict_window
    train: list[TimeSeries] = []
    val: list[TimeSeries] = []
    test: list[TimeSeries] = []
    borrows, n_val, n_test = False, 0, 0
    for one in series:
        name, n = label(one, series), len(one)
        ends = [round(n * share) for share in np.cumsum(_shares(data))]
        train.append(one[: ends[0]])
        _need(name, "training", ends[0], context + horizon, data)
        for part, share, start, end in (
            (val, data.val_ratio, ends[0], ends[1]),
            (test, data.test_ratio, ends[1], ends[2]),
        ):
            if not share:
                continue
            is_val = part is val
            _need(name, "validation" if is_val else "test", end - start, horizon, data)
            alone = is_val and end - start >= 2 * (context + horizon)
            part.append(one[start if alone else start - context : end])
            borrows |= is_val and not alone
            n_val, n_test = n_val + is_val * (end - start), n_test + (not is_val) * (end - start)
    return Parts(list(series), train, val, test, n_val, n_test, borrows)


def _shares(data: Data) -> tuple[float, float, float]:
    return data.train_ratio, data.val_ratio, data.test_ratio


def _need(name: str, part: str, bars: int, needed: int, data: Data) -> None:
    if bars >= needed:
        return
    raise UsageError(
        f"{name}: too few bars: its {part} part has {bars:,}, and at least {needed:,} are needed "
        f"(data.lookback_window {data.lookback_window}, data.predict_window "
        f"{data.predict_window}). Give more bars or a smaller window, or change the ratios."
    )


def label(one: TimeSeries, among: Sequence[TimeSeries]) -> str:
    """Name of a series, for messages and files."""
    symbol = (one.metadata or {}).get(SYMBOL)
    if symbol is not None:
        return str(symbol)
    return "the series" if len(among) == 1 else f"series {list(among).index(one) + 1}"


def span(series: Sequence[TimeSeries]) -> str:
    """How many bars there are, from when to when, in words."""
    times = [candles.timestamps(one) for one in series]
    first = min(at[0] for at in times if at is not None)
    last = max(at[-1] for at in times if at is not None)
    bars = f"{sum(map(len, series)):,} bars"
    several = f" in {len(series)} series" if len(series) > 1 else ""
    return f"{bars}{several} from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M}"


def fingerprint(series: Sequence[TimeSeries]) -> str:
    """A hash of all values and timestamps: equal for equal data, whatever file it is in."""
    digest = hashlib.sha256()
    for one in series:
        times = candles.timestamps(one)
        assert times is not None
        digest.update(times.as_unit("ns").asi8.tobytes())
        digest.update(np.ascontiguousarray(one.values(copy=False), dtype=np.float64).tobytes())
    return digest.hexdigest()
