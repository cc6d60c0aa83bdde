"""A model's folder of checkpoints: one training at a time writes there, and runs are read back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from typing import Any

import torch
from darts.logging import get_logger
from darts.models.forecasting.torch_forecasting_model import (
    CHECKPOINTS_FOLDER,
    DEFAULT_DARTS_FOLDER,
    INIT_MODEL_NAME,
    MixedCovariatesTorchModel,
    load_ckpt_safely,
    load_wrapper_safely,
)
from pytorch_lightning.utilities import rank_zero_only

from darts_kronos.darts_base import StampedTorchModel
from darts_kronos.storage import held, newest, refusing, saying_what_was_not_written
from darts_kronos.trainers import move_checkpoints

logger = get_logger(__name__)

TOKENIZER_CHECKPOINTS = "checkpoints_tokenizer"
"""Folder of the tokenizer stage's checkpoints, beside Darts' ``checkpoints``."""


class StoredTorchModel(StampedTorchModel):
    """A Darts torch model of two stages, whose runs are kept in a folder to go on with."""

    # Epochs of the run whose checkpoint the next fit goes on from.
    _planned_epochs: int | None = None

    # Epochs that the run of that checkpoint had made.
    _epochs_done = 0

    # The folder in which this model has saved checkpoints.
    _kept_in: str | None = None

    # What both stages logged, and the checkpoint that the next fit's tokenizer stage goes on from.
    _history: list[dict[str, Any]]
    _tokenizer_ckpt_path: str | None

    @property
    def _folder(self) -> str:
        return os.path.join(self.work_dir, self.model_name)

    @contextmanager
    def _keeping_its_folder(self) -> Iterator[None]:
        """Train with the model's folder to itself, if it saves checkpoints there.

        Raises
        ------
        ValueError
            If another model is being trained under this name, or has left checkpoints there.
        OSError
            If a checkpoint cannot be written; those before it are whole.
        """
        if not self.save_checkpoints or getattr(rank_zero_only, "rank", 0) != 0:
            yield
            return
        folder = os.path.abspath(self._folder)
        with held(folder, f"A model called {self.model_name!r}"):
            kept = (os.path.join(folder, CHECKPOINTS_FOLDER), self._tokenizer_checkpoints)
            if self._kept_in != folder and any(newest(one) for one in kept):
                raise ValueError(
                    f"{folder!r} holds checkpoints of another model called {self.model_name!r}: go "
                    "on with that one (`load_from_checkpoint`), give another `model_name`, or "
                    "make the model with `force_reset=True`, which removes them."
                )
            self._kept_in = folder
            with saying_what_was_not_written(folder):
                yield

    def _go_on_in(self, folder: str) -> None:
        """Save what is still to come in the folder of this run, wherever it lay when it began."""
        self._kept_in = folder
        self.work_dir, self.model_name = os.path.split(folder)
        # Models made of this one's parameters remove nothing of it.
        found = {"work_dir": self.work_dir, "model_name": self.model_name, "force_reset": False}
        self._model_params |= found
        move_checkpoints(self.trainer_params.get("callbacks") or [], folder)
        if self.model is not None:
            self.model.run_folder = folder

    @property
    def _tokenizer_checkpoints(self) -> str:
        return os.path.join(self._folder, TOKENIZER_CHECKPOINTS)

    @staticmethod
    def load(
        path: str | os.PathLike[str],
        pl_trainer_kwargs: dict[str, Any] | None = None,
        trusted: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a model that ``save`` wrote.

        Parameters
        ----------
        path, pl_trainer_kwargs, trusted, **kwargs
            See Darts' method of this name. Unless it is `trusted`, no code in the file is run.

        Returns
        -------
        KronosModel
            The model.

        Raises
        ------
        ValueError
            If the file is damaged, holds another model, or asks for code to be run.
        """
        with refusing(path):
            model = MixedCovariatesTorchModel.load(
                os.fspath(path), pl_trainer_kwargs, trusted, **kwargs
            )
        _check_class(model, path)
        return model

    def _load_from_checkpoint(self, file_path: str, trusted: bool = False, **kwargs: Any) -> Any:
        # To the CPU: the device that they were on may not be here, and Lightning brings the
        # networks to where they are used.
        if kwargs.get("map_location") is None:
            kwargs["map_location"] = "cpu"
        return super()._load_from_checkpoint(file_path, trusted, **kwargs)

    def load_weights_from_checkpoint(
        self,
        model_name: str | None = None,
        work_dir: str | None = None,
        file_name: str | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Take the weights of a checkpoint; see Darts' method of this name.

        Raises
        ------
        ValueError
            If the models differ, or a file is damaged or asks for code to be run.
        """
        # They are copied to where this model's are.
        kwargs.setdefault("map_location", "cpu")
        with refusing(file_name or str(model_name)):
            super().load_weights_from_checkpoint(model_name, work_dir, file_name, *args, **kwargs)

    @staticmethod
    def load_from_checkpoint(
        model_name: str,
        work_dir: str | None = None,
        file_name: str | None = None,
        best: bool = True,
        trusted: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a model that was created with ``save_checkpoints=True``, to use it or to go on.

        ``fit`` on it, with the same series, resumes the run where it was cut off: in the predictor
        stage from `file_name`, or the best or the last epoch; in the tokenizer stage from its last
        epoch. From the last epoch it takes the same steps as if nothing had happened.

        Parameters
        ----------
        model_name, work_dir, file_name, best, trusted, **kwargs
            See Darts' method of this name.

        Returns
        -------
        KronosModel
            The model. If no epoch of the predictor stage was finished, it cannot forecast yet.

        Raises
        ------
        ValueError
            If there is no such model, no epoch was finished, or a file is damaged, holds another
            model, or asks for code to be run.
        """
        folder = os.path.join(
            work_dir or os.path.join(os.getcwd(), DEFAULT_DARTS_FOLDER), model_name
        )
        base = os.path.join(folder, INIT_MODEL_NAME)
        kept = os.path.join(folder, CHECKPOINTS_FOLDER)
        finished = glob(os.path.join(kept, "*.ckpt"))
        first_stage = newest(os.path.join(folder, TOKENIZER_CHECKPOINTS))
        if not best and file_name is None and finished and first_stage is not None:
            # A tokenizer that was trained again, and no predictor since. Copies of a folder have
            # other times than the run had, so checkpoints themselves tell.
            with refusing(folder):
                known = [_tokenizer_epochs(_read(one, trusted)) for one in (first_stage, *finished)]
                if max(known[1:]) < known[0]:
                    finished = []
        if finished or not os.path.exists(base):
            with refusing(folder):
                model = MixedCovariatesTorchModel.load_from_checkpoint(
                    model_name, work_dir, file_name, best, trusted, **kwargs
                )
            _check_class(model, base)
            model._go_on_in(os.path.abspath(folder))
            model.load_ckpt_path = os.path.abspath(model.load_ckpt_path)
            loaded = _read(model.load_ckpt_path, trusted)
            model._history = _history(loaded)
            model._planned_epochs = loaded.get("planned_epochs")
            model._epochs_done = int(loaded["epoch"]) + 1
            for kind in ("augmentation", "sampling"):
                model._model_params.update(model.model.hparams.get(kind, {}))
            return model
        if first_stage is None:
            raise ValueError(
                f"There is no checkpoint of model {model_name!r} in {folder}: no epoch was "
                "finished."
            )
        logger.info(f"Stage 1 of 2 is not finished: `fit` goes on from {first_stage}.")
        with refusing(base):
            model = load_wrapper_safely(
                path=base, trusted=trusted, map_location=kwargs.get("map_location")
            )
        _check_class(model, base)
        model._go_on_in(os.path.abspath(folder))
        model._fit_called = False
        model._tokenizer_ckpt_path = os.path.abspath(first_stage)
        return model


def _read(path: str, trusted: bool) -> dict[str, Any]:
    """A checkpoint, whose tensors are read when they are asked for."""
    loaded: dict[str, Any] = load_ckpt_safely(
        load_fn=torch.load, path=path, trusted=trusted, map_location="cpu", mmap=True
    )
    return loaded


def _history(checkpoint: dict[str, Any]) -> list[dict[str, Any]]:
    """What both stages had logged when a checkpoint was written."""
    rows = checkpoint["callbacks"].get("TrainingHistory", {}).get("rows", [])
    return [dict(row) for row in rows]


def _tokenizer_epochs(checkpoint: dict[str, Any]) -> int:
    """Epochs of the tokenizer stage, of all fits, that a checkpoint knows of."""
    return sum(row["stage"] == "tokenizer" and row["epoch"] > 0 for row in _history(checkpoint))


def _check_class(model: object, path: str | os.PathLike[str]) -> None:
    if not isinstance(model, StoredTorchModel):
        raise ValueError(f"{str(path)!r} holds a {type(model).__name__}, not a KronosModel.")
