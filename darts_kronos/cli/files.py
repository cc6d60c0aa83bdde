"""Files that are there whole, or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from darts_kronos.storage import replacing


@contextmanager
def written(path: str | Path) -> Iterator[Path]:
    """A path to write to, which takes its name when it is complete.

    If writing fails, what was there before stays, and nothing is left over. What is no regular
    file, such as a pipe, is written to directly.

    Parameters
    ----------
    path
        The file; its folder is made if need be.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(str(path)) as unfinished:
        yield Path(unfinished)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file."""
    with written(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: str | Path, data: Any) -> None:
    """Write plain data as JSON."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, default=str) + "\n")
