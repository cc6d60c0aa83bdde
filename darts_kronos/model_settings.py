"""What a whole model in a folder has to be told beside its two networks."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from darts_kronos.nn.config import is_number
from darts_kronos.representation import REPRESENTATIONS

SETTINGS_FILE = "darts_kronos.json"


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What a whole model has to be told beside its two networks.

    Parameters
    ----------
    components
        Names of the components that the tokenizer sees, in order.
    representation
        How it sees them, "window" or "returns".
    clip
        Bound on the absolute normalised values.
    max_context
        Bars that the predictor sees at most.
    calendar_stamps
        Whether the predictor was trained with calendar stamps.

    Raises
    ------
    ValueError
        If a value is not what it must be.
    """

    components: tuple[str, ...]
    representation: str
    clip: float
    max_context: int
    calendar_stamps: bool

    def __post_init__(self) -> None:
        names = self.components
        named = all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
        _require_setting(named and len(names) > 0, "components", names, "names, each of them once")
        known = self.representation in REPRESENTATIONS
        allowed = " or ".join(map(repr, REPRESENTATIONS))
        _require_setting(known, "representation", self.representation, allowed)
        positive = is_number(self.clip) and self.clip > 0
        _require_setting(positive, "clip", self.clip, "a number > 0")
        whole = isinstance(self.max_context, int) and not isinstance(self.max_context, bool)
        _require_setting(
            whole and self.max_context >= 2, "max_context", self.max_context, "an integer >= 2"
        )
        told = isinstance(self.calendar_stamps, bool)
        _require_setting(told, "calendar_stamps", self.calendar_stamps, "true or false")


def _require_setting(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise ValueError(f"`{name}` must be {allowed}, got {value!r}.")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises
    ------
    ValueError
        If it is not valid, or holds anything else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"'{path}' is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"'{path}' must hold a JSON object.")
    return values


def read_settings(path: Path) -> ModelSettings:
    """The settings in a file.

    Raises
    ------
    ValueError
        If it lacks one, or holds one that is not what it must be.
    """
    values = read_json(path)
    try:
        return ModelSettings(
            components=tuple(values["components"]),
            representation=values["representation"],
            clip=values["clip"],
            max_context=values["max_context"],
            calendar_stamps=values["calendar_stamps"],
        )
    except KeyError as error:
        raise ValueError(f"'{path}' lacks {error.args[0]!r}.") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"'{path}' is spoilt: {error}") from error


def write_settings(settings: ModelSettings, folder: str | PathLike[str]) -> None:
    """Write the settings of a whole model to an existing folder."""
    text = json.dumps(asdict(settings), indent=2) + "\n"
    (Path(folder) / SETTINGS_FILE).write_text(text, encoding="utf-8")
