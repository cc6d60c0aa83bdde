"""Where a model's files are: local folders, or a hub that is asked as Darts asks it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any

from darts.logging import get_logger
from darts.models.components.huggingface_connector import HuggingFaceConnector
from huggingface_hub import errors, try_to_load_from_cache

from darts_kronos.checkpoints import (
    CONFIG_FILE,
    PREDICTOR_FOLDER,
    TOKENIZER_FOLDER,
    WEIGHTS_FILE,
)
from darts_kronos.model_settings import SETTINGS_FILE

logger = get_logger(__name__)

PREDICTOR_SOURCES = ("hub_model_name", "local_dir")
TOKENIZER_SOURCES = ("hub_tokenizer_name", "tokenizer_local_dir")
SOURCES = (
    *PREDICTOR_SOURCES,
    "hub_model_revision",
    *TOKENIZER_SOURCES,
    "hub_tokenizer_revision",
)
"""Parameters that say where weights come from."""

TOKENIZER_OF: Mapping[str, str] = MappingProxyType(
    {
        "NeoQuasar/Kronos-mini": "NeoQuasar/Kronos-Tokenizer-2k",
        "NeoQuasar/Kronos-small": "NeoQuasar/Kronos-Tokenizer-base",
        "NeoQuasar/Kronos-base": "NeoQuasar/Kronos-Tokenizer-base",
        "NeoQuasar/Kronos-large": "NeoQuasar/Kronos-Tokenizer-base",
    }
)
"""The tokenizers that the released predictors were trained with."""

OFFLINE = (
    "To work offline, use files that are here: a folder that was downloaded or saved before "
    "(`local_dir`, and `tokenizer_local_dir` if the tokenizer lies elsewhere), or the cache of "
    "huggingface_hub (download once with a network; `HF_HOME` says where it is, and "
    "`HF_HUB_OFFLINE=1` in the environment keeps the hub from being asked)."
)


# The hub's client raises errors of the HTTP library that it is built on.
NETWORK_ERRORS: tuple[type[Exception], ...] = (*errors.HfHubHTTPError.__bases__, OSError)


class HubUnreachableError(ConnectionError, ValueError):
    """The hub cannot be asked, and its cache does not hold what is needed."""


@dataclass(frozen=True, kw_only=True)
class Located:
    """Folders of a whole model's parts, on this machine.

    Attributes
    ----------
    predictor, tokenizer
        Folders with one checkpoint each.
    settings
        Folder with a ``darts_kronos.json``; None if there is none.
    name
        What the model is called: its name on the hub, or its folder.
    """

    predictor: Path
    tokenizer: Path
    settings: Path | None
    name: str


def names_weights(params: Mapping[str, Any]) -> bool:
    """Whether a model's parameters name weights to start from."""
    return any(params.get(name) is not None for name in PREDICTOR_SOURCES)


def check_sources(params: Mapping[str, Any]) -> None:
    """Check the parameters in ``SOURCES``, before anything is read.

    Raises
    ------
    ValueError
        If one is of the wrong type or says nothing without another, or if a released predictor is
        given another one's tokenizer.
    """
    for name in SOURCES:
        value = params.get(name)
        allowed = (str, PathLike) if name.endswith("local_dir") else (str,)
        if value is not None and (not isinstance(value, allowed) or not str(value)):
            kind = "a folder" if name.endswith("local_dir") else "a name"
            raise ValueError(f"`{name}` must be {kind} or None, got {value!r}.")
    needs = {
        "hub_model_revision": ("hub_model_name",),
        "hub_tokenizer_revision": ("hub_tokenizer_name",),
        **{name: PREDICTOR_SOURCES for name in TOKENIZER_SOURCES},
    }
    for name, others in needs.items():
        if params.get(name) is not None and all(params.get(other) is None for other in others):
            either = " or ".join(f"`{other}`" for other in others)
            raise ValueError(
                f"`{name}` was given without {either}: it says nothing about weights alone."
            )
    _check_pairing(params)


def _check_pairing(params: Mapping[str, Any]) -> None:
    """Refuse a released predictor with another released predictor's tokenizer, by their names."""
    belongs = {_base(model): _base(tokenizer) for model, tokenizer in TOKENIZER_OF.items()}
    predictor = _called(params, *PREDICTOR_SOURCES, known=set(belongs))
    tokenizer = _called(params, *TOKENIZER_SOURCES, known=set(belongs.values()))
    if predictor and tokenizer and belongs[predictor] != tokenizer:
        raise ValueError(
            f"{predictor} was trained with {belongs[predictor]}, and cannot read the tokens of "
            f"{tokenizer}: leave the tokenizer out, or name the one that belongs to it."
        )


def _base(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1]


def _called(params: Mapping[str, Any], *sources: str, known: set[str]) -> str | None:
    """The released name that one of the sources goes by, if it does."""
    given = [_base(str(params[name])) for name in sources if params.get(name) is not None]
    return next((name for name in given if name in known), None)


def locate(params: Mapping[str, Any]) -> Located:
    """Find a model's files, and download those that are on the hub and not here.

    Parameters
    ----------
    params
        Those in ``SOURCES``, checked, with one of ``PREDICTOR_SOURCES`` at least.

    Raises
    ------
    ValueError
        If a folder or a repository does not hold what it must, or it is not known which tokenizer
        belongs to the predictor.
    HubUnreachableError
        If the hub is needed and cannot be reached; the message says how to work offline.
    """
    name, given = params.get("hub_model_name"), params.get("local_dir")
    root = None if given is None else _existing("local_dir", given)
    own_tokenizer: Path | None = None
    settings: Path | None = None
    whole = (
        root is not None and (root / SETTINGS_FILE).is_file() and not (root / CONFIG_FILE).is_file()
    )
    if name is not None and root is not None and whole:
        # A whole model, of which a download that was cut off may have left a part.
        revision, settings = params.get("hub_model_revision"), root
        with asking(name, revision):
            predictor = _download(name, revision, f"{PREDICTOR_FOLDER}/", root)
            if not any(params.get(one) for one in TOKENIZER_SOURCES):
                own_tokenizer = _download(name, revision, f"{TOKENIZER_FOLDER}/", root)
    elif root is not None and (root / PREDICTOR_FOLDER / CONFIG_FILE).is_file():
        predictor = root / PREDICTOR_FOLDER
        settings = root if (root / SETTINGS_FILE).is_file() else None
    elif root is not None and (root / CONFIG_FILE).is_file():
        predictor = root
        # A whole model's part still goes by the settings of the whole.
        of_whole = [root, *([root.resolve().parent] if root.name == PREDICTOR_FOLDER else [])]
        settings = next((one for one in of_whole if (one / SETTINGS_FILE).is_file()), None)
    elif name is None:
        raise ValueError(
            f"`local_dir` '{root}' holds no predictor: neither '{PREDICTOR_FOLDER}/{CONFIG_FILE}' "
            f"nor '{CONFIG_FILE}'."
        )
    else:
        predictor, own_tokenizer, settings = _fetch_model(
            name, params.get("hub_model_revision"), root
        )
    if name is not None and root is not None:
        _fetch(name, params.get("hub_model_revision"), predictor)
    if root is not None and (root / TOKENIZER_FOLDER / CONFIG_FILE).is_file():
        own_tokenizer = root / TOKENIZER_FOLDER
    tokenizer = _locate_tokenizer(params, root, own_tokenizer)
    return Located(
        predictor=predictor, tokenizer=tokenizer, settings=settings, name=str(name or root)
    )


def _locate_tokenizer(params: Mapping[str, Any], root: Path | None, own: Path | None) -> Path:
    name, revision = params.get("hub_tokenizer_name"), params.get("hub_tokenizer_revision")
    given, model = params.get("tokenizer_local_dir"), params.get("hub_model_name")
    released = TOKENIZER_OF.get(str(model))
    if given is not None:
        folder = _existing("tokenizer_local_dir", given)
        if (folder / TOKENIZER_FOLDER / CONFIG_FILE).is_file():
            folder = folder / TOKENIZER_FOLDER
        return folder if name is None else _fetch(name, revision, folder)
    if name is not None:
        return _fetch(name, revision, None)
    if own is not None:
        return own
    if released is not None:
        return _fetch(released, None, None if root is None else root / TOKENIZER_FOLDER)
    belongs = {_base(model): tokenizer for model, tokenizer in TOKENIZER_OF.items()}
    hint = belongs.get(_base(str(model or root)))
    raise ValueError(
        f"The tokenizer of '{model or root}' is not known: give `tokenizer_local_dir` or "
        f"`hub_tokenizer_name`{f' ({hint} belongs to it)' if hint else ''}, or have the folders "
        f"'{TOKENIZER_FOLDER}' and '{PREDICTOR_FOLDER}' in one."
    )


def _existing(parameter: str, given: str | PathLike[str]) -> Path:
    folder = Path(given).expanduser()
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise ValueError(f"`{parameter}` '{folder}' {what}.")
    return folder


def _fetch_model(
    name: str, revision: str | None, root: Path | None
) -> tuple[Path, Path | None, Path | None]:
    """Folders of a predictor on the hub, of its tokenizer and of its settings if they are there.

    A repository holds a predictor alone, as those released do, or a whole model.
    """
    with asking(name, revision):
        try:
            target = None if root is None else root / PREDICTOR_FOLDER
            return _download(name, revision, "", target), None, None
        except errors.EntryNotFoundError as missing:
            if name in TOKENIZER_OF or not _may_hold_a_whole_model(name, revision, missing):
                raise
            try:
                # First, so that what a cut-off download leaves is known to be a part.
                settings = _Repository(name, revision, root).file(SETTINGS_FILE).parent
                predictor = _download(name, revision, f"{PREDICTOR_FOLDER}/", root)
            except errors.EntryNotFoundError:
                raise missing from None
            tokenizer = _download(name, revision, f"{TOKENIZER_FOLDER}/", root)
            return predictor, tokenizer, settings


def _may_hold_a_whole_model(name: str, revision: str | None, missing: Exception) -> bool:
    """Whether a repository may have the folders of a whole model, as far as can be told."""
    if not isinstance(missing, errors.LocalEntryNotFoundError):
        return True
    # Without a network only what was downloaded before counts.
    file = f"{PREDICTOR_FOLDER}/{CONFIG_FILE}"
    return isinstance(try_to_load_from_cache(name, file, revision=revision), str)


def _fetch(name: str, revision: str | None, target: Path | None) -> Path:
    """The folder, on this machine, of a repository with one checkpoint."""
    with asking(name, revision):
        return _download(name, revision, "", target)


def _download(name: str, revision: str | None, prefix: str, target: Path | None) -> Path:
    """The folder of a checkpoint; what it lacks is downloaded to `target`, or to the cache."""
    if target is not None:
        target.mkdir(exist_ok=True)
    repository = _Repository(name, revision, target)
    config = repository.file(prefix + CONFIG_FILE)
    repository.file(prefix + WEIGHTS_FILE)
    return config.parent


class _Repository(HuggingFaceConnector):
    """Darts' connector, which also gives the place of a file that it found or downloaded."""

    def file(self, name: str) -> Path:
        """Where the file called `name` is."""
        return Path(self._get_file_path(name))


@contextmanager
def asking(name: str, revision: str | None) -> Iterator[None]:
    """Let the hub's errors say what to do."""
    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"'{name}' has no revision {revision!r} on the hub.") from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"The hub has no model '{name}', or does not show it without a login (`hf auth login`)."
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise HubUnreachableError(
            f"'{name}' is not on this machine, and the hub cannot be reached. {OFFLINE}"
        ) from error
    except errors.EntryNotFoundError as error:
        raise ValueError(
            f"'{name}' lacks a file: a model has {CONFIG_FILE} and {WEIGHTS_FILE} (weights are "
            f"read from safetensors only, never from a pickle). {error}"
        ) from error
    except errors.HFValidationError as error:
        raise ValueError(f"'{name}' is no name of a model on the hub: {error}") from error
    except NETWORK_ERRORS as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None and 400 <= status < 500:
            raise ValueError(f"The hub refused what was asked of '{name}': {error}") from error
        raise HubUnreachableError(
            f"The hub could not be asked for '{name}' ({error}). {OFFLINE}"
        ) from error
