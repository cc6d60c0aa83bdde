"""A config from its YAML file and the command line, and back.

Every complaint names the line that it is about, and for an unknown name the nearest valid one.
"""

from __future__ import annotations

import difflib
import os
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from darts_kronos.cli.errors import UsageError
from darts_kronos.cli.keys import Config, ModelPaths, sections

WIDTH = 96
"""Columns of a comment."""

BASE_PATH = "runs"
"""Folder of all runs, where a config names none."""

Where = dict[tuple[str, ...], str]
"""Where a key was given: 'kronos.yaml:7' or '--data.clip', by section and name."""


class ConfigFile:
    """A config and where its values were given.

    Parameters
    ----------
    path
        The YAML file.
    overrides
        Values of the command line as text, by 'section.key'; they replace those of the file.

    Attributes
    ----------
    config
        All values, defaults included; paths are :func:`resolved`.
    given
        The values that the file and the command line give, by section and key.

    Raises
    ------
    UsageError
        If the file cannot be read, or a key or value is not valid. The message has a line for each
        of them.
    """

    def __init__(self, path: str | Path, overrides: Mapping[str, str] | None = None):
        self.path = Path(path)
        tree, self._where = _read(self.path)
        for name, text in (overrides or {}).items():
            section, key = name.split(".")
            if not isinstance(tree.setdefault(section, {}), dict):
                tree[section] = {}
            tree[section][key] = _value(text, name)
            self._where[section, key] = f"--{name}"
        # A section whose keys are all comments says nothing.
        self.given = {name: keys for name, keys in tree.items() if keys is not None}
        try:
            self.config = Config.model_validate(self.given)
        except ValidationError as error:
            raise UsageError("\n".join(self._complaints(error))) from None
        self.config.model_paths = resolved(self.config.model_paths, self.path.stem)

    def at(self, *key: str) -> str:
        """Where a key was given, or the file where it was not."""
        for length in range(len(key), 0, -1):
            if key[:length] in self._where:
                return self._where[key[:length]]
        return str(self.path)

    def gives(self, *key: str) -> bool:
        """Whether the file or the command line gives a key, or leaves it at its default."""
        return key in self._where

    def blame(self, error: ValueError) -> UsageError:
        """A complaint of KronosModel's about a parameter, as one about its key."""
        text = str(error)
        for name in re.findall(r"`(\w+)`", text):
            section, key = _PARAMETER_KEYS.get(name, (None, name))
            for one, keys in sections().items():
                if section in (None, one) and key in keys.model_fields:
                    return UsageError(f"{self.at(one, key)}: {one}.{key}: {text}")
        return UsageError(f"{self.path}: {text}")

    def _complaints(self, error: ValidationError) -> list[str]:
        """A line for each key that is wrong, in the order of the file."""
        wrong: dict[tuple[str, ...], list[Any]] = {}
        for one in error.errors():
            # What follows the key are the kinds of value that it may have.
            wrong.setdefault(tuple(str(part) for part in one["loc"][:2]), []).append(one)
        lines = list(self._where)
        order = sorted(wrong, key=lambda key: lines.index(key) if key in lines else -1)
        return [self._complaint(key, wrong[key]) for key in order]

    def _complaint(self, key: tuple[str, ...], errors: list[Any]) -> str:
        at, name, kind = self.at(*key), ".".join(key), errors[0]["type"]
        if kind == "extra_forbidden":
            return f"{at}: {name} is not a known {_nearest(key)}"
        if kind == "missing":
            known = sections()[key[0]].model_fields
            name = key[1] if len(key) > 1 else next(iter(known))
            return f"{at}: {key[0]}.{name} is missing. {known[name].description}"
        if kind in ("too_short", "string_too_short"):
            return f"{at}: {name} must not be empty."
        said = dict.fromkeys(one["msg"].removeprefix("Value error, ") for one in errors)
        given = errors[0]["input"]
        got = "." if isinstance(given, dict) else f", got {given!r}."
        return f"{at}: {name}: {', or: '.join(said)}{got}"


def resolved(paths: ModelPaths, stem: str) -> ModelPaths:
    """Paths with '{exp_name}' filled in, and those that are empty.

    Parameters
    ----------
    paths
        As a config says.
    stem
        Name of the config's file without its ending: the run's name if there is no other.
    """
    name = paths.exp_name or stem
    given = {
        key: os.path.expanduser(value.replace("{exp_name}", name))
        if isinstance(value, str)
        else value
        for key, value in paths.model_dump().items()
    }
    base = given["base_path"] or BASE_PATH
    folder = given["base_save_path"] or str(Path(base) / name)
    tokenizer = given["finetuned_tokenizer"] or str(
        Path(folder) / given["tokenizer_save_name"] / "best_model"
    )
    return ModelPaths.model_validate(
        {
            **given,
            "exp_name": name,
            "base_path": base,
            "base_save_path": folder,
            "finetuned_tokenizer": tokenizer,
        }
    )


_PARAMETER_KEYS = {
    "input_chunk_length": ("data", "lookback_window"),
    "output_chunk_length": ("data", "predict_window"),
    "n_epochs_tokenizer": ("training", "tokenizer_epochs"),
    "n_epochs": ("training", "basemodel_epochs"),
    "study_name": ("model_paths", "exp_name"),
    "local_dir": ("model_paths", "pretrained_predictor"),
    "hub_model_name": ("model_paths", "pretrained_predictor"),
    "tokenizer_local_dir": ("model_paths", "pretrained_tokenizer"),
    "hub_tokenizer_name": ("model_paths", "pretrained_tokenizer"),
}
"""Keys of a config that are called otherwise than the parameter that they set."""


def _nearest(where: Sequence[str]) -> str:
    """What kind of name this is not, and which valid one is nearest."""
    known = sections()
    if len(where) == 1:
        homes = [name for name, section in known.items() if where[0] in section.model_fields]
        if homes:
            return f"section; the key {where[0]} belongs to {homes[0]}."
        return f"section; did you mean {_closest(where[0], list(known))}?"
    section, key = where[:2]
    homes = [name for name, other in known.items() if key in other.model_fields]
    if homes:
        return f"key; did you mean {homes[0]}.{key}?"
    own = list(known[section].model_fields)
    return f"key; did you mean {section}.{_closest(key, own)}?"


def _closest(name: str, valid: Sequence[str]) -> str:
    return difflib.get_close_matches(name, valid, n=1, cutoff=0.0)[0]


def nearest_option(name: str) -> str:
    """The option for a key of a config that is nearest to an unknown one."""
    names = [
        f"--{section}.{key}" for section, keys in sections().items() for key in keys.model_fields
    ]
    own = [one for one in names if one.split(".")[1] == name.lstrip("-").split(".")[-1]]
    return own[0] if own else _closest(name, names)


def _read(path: Path) -> tuple[dict[str, Any], Where]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: the config cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: the config is not UTF-8 text.") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        tree = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f":{mark.line + 1}"
        raise UsageError(f"{path}{line}: not valid YAML: {error.problem or error}.") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not valid YAML: {error}.") from None
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{path}: a config has sections such as `data:`; this file has none.")
    where: Where = {}
    _note(node, (), path, where)
    return {str(name): value for name, value in tree.items()}, where


def _note(node: yaml.MappingNode, above: tuple[str, ...], path: Path, where: Where) -> None:
    """Note the line of every key, and refuse one that is given twice."""
    for key, value in node.value:
        name = (*above, str(key.value))
        at = f"{path}:{key.start_mark.line + 1}"
        if name in where:
            raise UsageError(f"{at}: {'.'.join(name)} is given twice, first in {where[name]}.")
        where[name] = at
        if isinstance(value, yaml.MappingNode) and not above:
            _note(value, name, path, where)


def _value(text: str, name: str) -> Any:
    """What the command line gives for a key: text for one of text alone, else YAML."""
    section, key = name.split(".")
    known = sections()[section].model_fields.get(key) if section in sections() else None
    is_text = known is not None and known.annotation in (str, str | None)
    if (is_text or key == "data_path") and text[:1] not in ("[", "{"):
        return None if text in ("null", "~") else text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(f"--{name}: {text!r} is not valid YAML.") from None


# --- writing ----------------------------------------------------------------------------------


def dump(config: Config) -> str:
    """A config with every value, as YAML."""
    text: str = yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)
    return text


def commented(
    values: Mapping[str, Mapping[str, Any]], header: str, wanted: Callable[[str, str], bool]
) -> str:
    """A config as YAML with a comment for each key.

    Parameters
    ----------
    values
        The values to write, by section and key; of the others, the defaults are written as
        comments.
    header
        Text for the top.
    wanted
        Whether a key, given its section and name, is written at all.
    """
    lines = _comment(header)
    for section, keys in sections().items():
        fields = {name: one for name, one in keys.model_fields.items() if wanted(section, name)}
        if not fields:
            continue
        lines += ["", *_comment(keys.__doc__ or "")]
        chosen = values.get(section, {})
        lines.append(f"{section}:" if chosen else f"# {section}:")
        said = None
        for name, field in fields.items():
            if field.description != said:
                said = field.description
                lines += _comment(said or "", indent="  ")
            line = f"{name}: {_scalar(chosen.get(name, _default(field)))}"
            lines.append(f"  {line}" if name in chosen else f"  # {line}")
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> Any:
    return "" if field.is_required() else field.get_default()


def _scalar(value: Any) -> str:
    text: str = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10**6)
    return text.strip()[1:-1]


def _comment(text: str, indent: str = "") -> list[str]:
    start = f"{indent}# "
    return [
        line
        for part in text.splitlines()
        for line in textwrap.wrap(
            part, WIDTH, initial_indent=start, subsequent_indent=start, break_on_hyphens=False
        )
        or [start.rstrip()]
    ]
