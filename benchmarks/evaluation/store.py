"""Results on disk, so that a run that was cut off goes on where it was."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"


class Store:
    """Results on disk: what was computed once is not computed again.

    Parameters
    ----------
    folder
        Where the results lie.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, *parts: object, suffix: str = ".pkl") -> Path:
        """The file of a result."""
        name = "__".join(str(part) for part in parts)
        return self.folder / (
            "".join(c if c.isalnum() or c in "_-=.," else "_" for c in name) + suffix
        )

    def get(self, *parts: object) -> Any:
        """A result, or None."""
        path = self.path(*parts)
        return pickle.loads(path.read_bytes()) if path.exists() else None

    def put(self, result: Any, *parts: object) -> Any:
        """Keep a result; the file appears whole or not at all."""
        path = self.path(*parts)
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(pickle.dumps(result))
        temporary.replace(path)
        return result
