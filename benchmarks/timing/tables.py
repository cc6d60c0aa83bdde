"""Rows as a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    frame = pd.DataFrame(rows).astype(object)
    shown = frame.apply(lambda column: column.map(_shown))
    return str(shown.to_markdown(index=False))


def _shown(value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if value < 100 else f"{value:,.0f}"
    return str(value)
