"""What this package adds to Lightning's trainers: checkpoints that travel, and errors that help."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from darts.models.forecasting.torch_forecasting_model import (
    CHECKPOINTS_FOLDER,
    _DartsCheckpointIO,
)
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import CheckpointIO
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from darts_kronos.training import listed

ANYWHERE = ("auto", "cpu")
"""Accelerators that every machine has."""


class CheckpointsOfAnyDevice(_DartsCheckpointIO):
    """Reads checkpoints as Darts does, without running code from them, but to the CPU.

    Darts has tensors go to the device that they were written from, which is not there on every
    machine that a run goes on on; Lightning brings them to where they belong.
    """

    def load_checkpoint(self, path: Any, map_location: Any = None, **kwargs: Any) -> dict[str, Any]:
        """The checkpoint, on the CPU unless `map_location` says otherwise."""
        where = "cpu" if map_location is None else map_location
        loaded: dict[str, Any] = super().load_checkpoint(path, map_location=where, **kwargs)
        return loaded


def with_checkpoint_io(plugins: Any) -> list[Any]:
    """A trainer's plugins, with one that reads checkpoints if there is none."""
    given = listed(plugins)
    if not any(isinstance(one, CheckpointIO) for one in given):
        given.append(CheckpointsOfAnyDevice())
    return given


@contextmanager
def saying_what_is_refused(name: str, params: Mapping[str, Any]) -> Iterator[None]:
    """Make a trainer of the parameter `name`; say so if Lightning refuses what it holds.

    Raises
    ------
    ValueError
        Instead of Lightning's own error.
    """
    try:
        yield
    except MisconfigurationException as error:
        told = f"Lightning refuses `{name}`: {str(error).rstrip()}"
        if params.get("accelerator", "auto") not in ANYWHERE:
            told += (
                " A saved model takes another accelerator in `load(path, pl_trainer_kwargs="
                "{'accelerator': 'auto'})`; any model is for the CPU after `to_cpu()`."
            )
        raise ValueError(told) from error


def move_checkpoints(callbacks: Iterable[Any], folder: str) -> None:
    """Let callbacks that saved checkpoints in the folder of a run save them where it is now."""
    found = [one for one in callbacks if isinstance(one, ModelCheckpoint)]
    before = _began_in(one.dirpath for one in found)
    for one in found:
        one.dirpath = _moved(one.dirpath, before, folder)


def move_states(callbacks: Mapping[str, Any], folder: str) -> None:
    """Let the states of such callbacks, in a checkpoint, name their files where these are now."""
    found = [one for one in callbacks.values() if isinstance(one, dict) and "dirpath" in one]
    before = _began_in(one["dirpath"] for one in found)
    for one in found:
        for key in ("dirpath", "best_model_path", "kth_best_model_path", "last_model_path"):
            one[key] = _moved(one.get(key), before, folder)
        scores = one.get("best_k_models", {})
        one["best_k_models"] = {_moved(path, before, folder): scores[path] for path in scores}


def _began_in(places: Iterable[Any]) -> str | None:
    """The folder of the run whose checkpoints Darts' own callbacks save."""
    for one in places:
        if one is not None and os.path.basename(one) == CHECKPOINTS_FOLDER:
            return os.path.dirname(one)
    return None


def _moved(path: Any, before: str | None, now: str) -> Any:
    """A path below the folder `before` as one below `now`, as Lightning writes it."""
    if not path or before is None or not os.fspath(path).startswith(before + os.sep):
        return path
    return os.path.realpath(now) + os.fspath(path)[len(before) :]
