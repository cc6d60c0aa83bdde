"""Files that are there whole, or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from darts_kronos.cli.errors import UsageError
from darts_kronos.storage import replacing


def check_target(option: str, path: str | Path) -> None:
    """Refuse a path that nothing could be written to, before the work that is to be written.

    Raises
    ------
    UsageError
        If a folder is there, or what should be its folder is a file.
    """
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{option}: {path}: is a folder; name a file, there or elsewhere.")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir():
        raise UsageError(f"{option}: {path}: {there} is a file, and no folder.")


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
