"""The numbers of a frame of candles: found by name, checked, and repaired if asked."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from darts_kronos.components import CANDLE, PRICES, canonical

TOLERANCE = 1e-6
"""Relative amount by which a high may lie below, or a low above, another price of its bar."""

OnInvalid = Literal["raise", "repair", "drop"]

SPLITS = (1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 15.0, 20.0, 25.0, 50.0, 100.0)
"""Ratios in which shares are split, or, the other way, merged."""

_SPLIT_TOLERANCE = 0.04
"""Distance of a logarithm from that of a split at which it looks like one."""

_SPLIT_OUTLIER = 12.0
"""Typical absolute gaps between bars that a split is larger than."""

_SHOWN = 5

_SHORT = {"vol": "volume", "amt": "amount"}
"""Names that columns may have in place of those of a candle, where these are not there."""

_LOOKS_LIKE = {
    "volume": re.compile(r"vol(?!atil)|amount|amt|turnover"),
    "amount": re.compile(r"amount|amt|turnover"),
}
"""In names of columns that may hold what no column of the name does."""


def read_values(df: pd.DataFrame) -> pd.DataFrame:
    """The six components of `df`, in order, as float64; volume and amount filled in if absent.

    Raises
    ------
    ValueError
        If a price is missing, a name stands twice, or a column is not numeric.
    """
    own = {canonical(str(column)) for column in df.columns}
    by_name: dict[str, Any] = {}
    for column in df.columns:
        name = canonical(str(column))
        long = _SHORT.get(name.strip().lower())
        if long is not None and long not in own:
            name = long
        if name in CANDLE:
            if name in by_name:
                raise ValueError(f"The columns {by_name[name]!r} and {column!r} have one name.")
            by_name[name] = column
    missing = [name for name in PRICES if name not in by_name]
    if missing:
        raise ValueError(
            f"The frame lacks {', '.join(missing)}; its columns are {list(df.columns)}."
        )
    values = {name: _numbers(df[column], column) for name, column in by_name.items()}
    if "volume" not in values:
        _warn_of_ignored(df, "volume", "volume and amount are 0")
        values["volume"] = np.zeros(len(df))
        values["amount"] = np.zeros(len(df))
    elif "amount" not in values:
        _warn_of_ignored(df, "amount", "amount is volume times the mean price")
        values["amount"] = values["volume"] * np.mean([values[name] for name in PRICES], axis=0)
    return pd.DataFrame({name: values[name] for name in CANDLE})


def _warn_of_ignored(df: pd.DataFrame, lacking: str, instead: str) -> None:
    looks_like = _LOOKS_LIKE[lacking]
    ignored = [repr(column) for column in df.columns if looks_like.search(str(column).lower())]
    if ignored:
        warnings.warn(
            f"The frame has no column {lacking!r}: {instead}, and {', '.join(ignored)} ignored. "
            f"If it is there under another name, rename it to {lacking!r}.",
            UserWarning,
            stacklevel=4,
        )


def _numbers(column: pd.Series, name: Any) -> np.ndarray:
    if column.dtype.kind in "mMcb":
        raise ValueError(f"Column {name!r} is not numeric: it holds {column.dtype}.")
    numbers = pd.to_numeric(column, errors="coerce")
    text = np.asarray(numbers.isna() & column.notna())
    if text.any():
        first = int(np.argmax(text))
        raise ValueError(
            f"Column {name!r} is not numeric: row {first} holds {column.iloc[first]!r}."
        )
    return numbers.to_numpy(dtype=np.float64, na_value=np.nan)


def check_times(times: pd.DatetimeIndex) -> None:
    """Refuse timestamps that repeat or do not ascend.

    Raises
    ------
    ValueError
        The message names the first rows.
    """
    _refuse(np.asarray(times.duplicated()), times, "repeats a timestamp")
    unsorted = np.zeros(len(times), dtype=bool)
    unsorted[1:] = np.asarray(times[1:] < times[:-1])
    what = "is earlier than the bar before it; sort the frame by time, or say `sort=True`"
    _refuse(unsorted, times, what)


def check_candles(
    values: pd.DataFrame,
    times: pd.DatetimeIndex,
    on_invalid: OnInvalid,
    symbol: str | None = None,
) -> tuple[pd.DataFrame, np.ndarray]:
    """Candles that are valid, and which rows they are; what is changed is warned of.

    Parameters
    ----------
    values
        Six columns, T rows.
    times
        Timestamps of the rows, for messages.
    on_invalid
        "raise" refuses wrong bars. "repair" moves a high to the highest price of its bar and a low
        to the lowest, and a volume or amount that is missing or below 0 to 0; a price that is
        missing or not above 0 cannot be repaired and is refused. "drop" leaves wrong bars out.
    symbol
        Of the asset, for warnings.

    Returns
    -------
    tuple
        The candles, and a boolean array of shape (T,): the rows that were kept.

    Raises
    ------
    ValueError
        If a bar is refused, or none is left.
    """
    if on_invalid not in get_args(OnInvalid):
        raise ValueError(f"`on_invalid` must be 'raise', 'repair' or 'drop', got {on_invalid!r}.")
    bars = values.to_numpy()
    prices, volumes = bars[:, :4], bars[:, 4:]
    highest, lowest = prices.max(axis=1), prices.min(axis=1)
    no_price = ~np.isfinite(prices).all(axis=1)
    not_positive = (prices <= 0).any(axis=1)
    no_volume = ~np.isfinite(volumes).all(axis=1)
    negative = (volumes < 0).any(axis=1)
    no_candle = (bars[:, 1] < highest * (1 - TOLERANCE)) | (bars[:, 2] > lowest * (1 + TOLERANCE))
    # A price that is wrong by itself is told once.
    no_candle &= ~(no_price | not_positive)
    wrong = {
        "holds a price that is missing or infinite": no_price,
        "holds a price that is not above 0": not_positive,
        "holds a volume or amount that is missing or infinite": no_volume,
        "holds a volume or amount below 0": negative,
        "is no candle (high or low is not the extreme price)": no_candle,
    }
    keep = np.ones(len(bars), dtype=bool)
    for what, rows in wrong.items():
        beyond_repair = what.startswith("holds a price")
        if on_invalid == "raise" or (on_invalid == "repair" and beyond_repair):
            _refuse(rows, times, what)
        elif rows.any():
            of = "" if symbol is None else f"Symbol {symbol!r}, rows counted within it: "
            done = "Repaired" if on_invalid == "repair" else "Dropped"
            warnings.warn(
                f"{of}{done}: a bar {what}: {_rows_in_words(rows, times)}.",
                UserWarning,
                stacklevel=4,
            )
    if on_invalid == "repair":
        bars = bars.copy()
        bars[no_candle, 1], bars[no_candle, 2] = highest[no_candle], lowest[no_candle]
        bars[:, 4:][~np.isfinite(volumes) | (volumes < 0)] = 0.0
    elif on_invalid == "drop":
        keep = ~np.any(list(wrong.values()), axis=0)
        if not keep.any():
            raise ValueError("No bar is left: all are invalid.")
        bars = bars[keep]
    return pd.DataFrame(bars, columns=values.columns), keep


def warn_of_splits(
    values: pd.DataFrame,
    times: Sequence[Any] | pd.Index,
    since: int = 1,
    symbol: str | None = None,
) -> None:
    """Warn of gaps between bars that look like a split of shares that prices do not account for.

    Only gaps into the bar `since` and later ones are told; those before it tell what is usual.

    A gap is the logarithm of an open over the close before it. It looks like a split if it is as
    large as one, to 4%, and an outlier among the series' gaps and bars.
    """
    opens, closes = np.log(values["open"].to_numpy()), np.log(values["close"].to_numpy())
    gaps = opens[1:] - closes[:-1]
    if not len(gaps):
        return
    moves = np.abs(np.diff(closes))
    # Of the other bars: a split must not hide itself in a short series.
    typical = (moves.sum() - moves) / max(1, len(moves) - 1)
    nearest = np.min(np.abs(np.abs(gaps)[:, None] - np.log(SPLITS)), axis=1)
    looks = (nearest < _SPLIT_TOLERANCE) & (np.abs(gaps) > _SPLIT_OUTLIER * typical)
    looks[: since - 1] = False
    if looks.any():
        rows = np.flatnonzero(looks) + 1
        shown = ", ".join(
            f"{np.exp(gaps[row - 1]):.3f} into the bar of {times[row]}" for row in rows[:_SHOWN]
        )
        of = "" if symbol is None else f"Symbol {symbol!r}: "
        warnings.warn(
            f"{of}The price changes by a factor of {shown}{_more(rows)}: this looks like a split "
            "of shares that the prices are not adjusted for.",
            UserWarning,
            stacklevel=4,
        )


def _refuse(wrong: np.ndarray, times: pd.DatetimeIndex, what: str) -> None:
    if wrong.any():
        raise ValueError(f"A bar {what}: {_rows_in_words(wrong, times)}.")


def _rows_in_words(wrong: np.ndarray, times: pd.DatetimeIndex) -> str:
    rows = np.flatnonzero(wrong)
    shown = ", ".join(f"{row} ({times[row]})" for row in rows[:_SHOWN])
    return f"row {shown}{_more(rows)}"


def _more(rows: np.ndarray) -> str:
    return f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
