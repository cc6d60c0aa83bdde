"""Giving weights back: a folder in the released layout, written at once, and the hub."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelCardData

from darts_kronos.checkpoints import (
    CONFIG_FILE,
    PREDICTOR_FOLDER,
    RELEASED_CLIP,
    TOKENIZER_FOLDER,
    WEIGHTS_FILE,
    write_predictor,
    write_tokenizer,
)
from darts_kronos.components import CANDLE
from darts_kronos.finetuning import merged
from darts_kronos.hub import asking
from darts_kronos.model_settings import SETTINGS_FILE, ModelSettings, write_settings
from darts_kronos.module import KronosModule

CARD_FILE = "README.md"

_OWN_FILES = {
    f"{part}/{name}"
    for part in (TOKENIZER_FOLDER, PREDICTOR_FOLDER)
    for name in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE)
} | {SETTINGS_FILE, CARD_FILE}
"""What a folder of weights holds; one that holds more is not replaced."""

_HUB_NOTES = ".cache/"
"""Folder in which the hub's client notes what it downloaded to a folder."""

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def write_model(
    module: KronosModule,
    folder: str | PathLike[str],
    settings: ModelSettings,
    group_size: int | None = None,
) -> None:
    """Write a model's two networks and its settings to a folder, all or nothing.

    Parameters
    ----------
    module
        Holds the networks. LoRA's updates are merged into the predictor that is written.
    folder
        It may be missing, empty, or one that was written before, which is replaced.
    settings
        What belongs to the networks.
    group_size
        The original's value of this name, if the tokenizer came with one.

    Raises
    ------
    ValueError
        If `folder` holds anything else.
    """
    target = Path(folder).expanduser().resolve()
    _refuse_foreign(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(target) as new:
        for part in (TOKENIZER_FOLDER, PREDICTOR_FOLDER):
            (new / part).mkdir()
        write_tokenizer(module.tokenizer, new / TOKENIZER_FOLDER, group_size)
        write_predictor(merged(module.predictor), new / PREDICTOR_FOLDER)
        write_settings(settings, new)


def not_for_the_original(module: KronosModule, settings: ModelSettings) -> list[str]:
    """Why the original's code cannot run a model's weights, or not as they run here; if so."""
    config, reasons = module.tokenizer.config, []
    if list(settings.components) != list(CANDLE):
        reasons.append(f"the components are {', '.join(settings.components)}")
    if config.s1_bits != config.s2_bits:
        reasons.append(
            f"the tokens have {config.s1_bits} and {config.s2_bits} bits, not equally many"
        )
    if settings.representation != "window":
        reasons.append(f"the representation is {settings.representation!r}, not 'window'")
    if not settings.calendar_stamps:
        reasons.append("it was trained without calendar stamps")
    if settings.clip != RELEASED_CLIP:
        reasons.append(f"values are clipped at {settings.clip}, not {RELEASED_CLIP}")
    return reasons


def warn_of(reasons: Sequence[str], folder: str | PathLike[str]) -> None:
    """Warn that the original cannot run what is in `folder`, if there are reasons."""
    if reasons:
        warnings.warn(
            f"The original's code cannot run the weights in '{folder}' as they run here: "
            f"{'; '.join(reasons)}. KronosModel(local_dir=...) can.",
            UserWarning,
            stacklevel=3,
        )


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"'{folder}' is a file, not a folder.")
    files = (path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    names = {path.relative_to(folder).as_posix() for path in files} - _OWN_FILES
    foreign = sorted(name for name in names if not name.startswith(_HUB_NOTES))
    if foreign:
        raise ValueError(
            f"'{folder}' holds other files, which would be lost ({', '.join(foreign[:3])}"
            f"{', ...' if len(foreign) > 3 else ''}): give a new or an empty folder."
        )


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, which takes its place once it is written."""
    beside = tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent)
    new = Path(beside) / "new"
    new.mkdir()
    try:
        yield new
        for path in new.rglob("*"):
            if path.is_file():
                _to_disk(path)
        swap(new, folder, Path(beside) / "old")
        _to_disk(folder.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _to_disk(path: Path) -> None:
    """Have a file, or a folder's list of names, on the disk and not only in memory."""
    if path.is_dir() and sys.platform == "win32":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def swap(new: Path, folder: Path, old: Path) -> None:
    """Put `new` in the place of `folder`, at once where the system can exchange two names."""
    if not folder.exists():
        os.replace(new, folder)
    elif not _exchange(new, folder):
        os.replace(folder, old)
        try:
            os.replace(new, folder)
        except BaseException:
            os.replace(old, folder)
            raise


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step, as Linux can; False where that is not to be had."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError):
        return False
    names = os.fsencode(one), os.fsencode(other)
    done: int = rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    return done == 0


def push(
    folder: str | PathLike[str],
    repo_id: str,
    card: str,
    *,
    private: bool | None,
    token: str | None,
    commit_message: str | None,
) -> str:
    """Upload a written folder and its card to the hub, in one commit.

    Returns
    -------
    str
        Address of the commit.
    """
    (Path(folder) / CARD_FILE).write_text(card, encoding="utf-8")
    api = HfApi(token=token)
    with asking(repo_id, None):
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=str(folder),
            commit_message=commit_message or "Upload a Kronos model",
        )
    return str(commit.commit_url)


def card_text(
    repo_id: str,
    settings: ModelSettings,
    *,
    data: str,
    dates: str,
    metrics: Mapping[str, float],
    licence: str,
    base_model: str | None,
    reasons: Sequence[str],
) -> str:
    """A short model card: what it is, data, dates, metrics, how to load it, licence."""
    facts = ModelCardData(
        license=licence,
        library_name="darts-kronos",
        pipeline_tag="time-series-forecasting",
        base_model=base_model,
        tags=["kronos", "darts", "candlesticks", "finance"],
    )
    rows = "\n".join(f"| {name} | {value:.6g} |" for name, value in metrics.items())
    table = f"| | |\n|---|---|\n{rows}" if rows else "None were given."
    original = (
        f"The original's code cannot run it: {'; '.join(reasons)}."
        if reasons
        else "The original's code runs the folders `tokenizer` and `predictor` too."
    )
    start = f" It was fine-tuned from `{base_model}`." if base_model else ""
    text = f"""---
{facts.to_yaml()}
---

# {repo_id.rsplit("/", 1)[-1]}

A Kronos model (arXiv 2508.02739) of candles, for `darts-kronos`.{start}

- Data: {data}
- Dates: {dates}
- Components: {", ".join(settings.components)}
- Representation: {settings.representation}; context of at most {settings.max_context} bars

## Metrics

{table}

## Use

```python
from darts_kronos import KronosModel

model = KronosModel(input_chunk_length=400, output_chunk_length=96, hub_model_name="{repo_id}")
model.fit(series)  # trains nothing
```

{original} Forecasts are no advice.
"""
    return str(ModelCard(text))
