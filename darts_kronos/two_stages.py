"""The two stages of ``fit``: training, interruptions, checkpoints and resuming of both."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from typing import Any

import pytorch_lightning as pl
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
from darts.utils.data.torch_datasets._data_module import TorchDataModule
from pytorch_lightning.loggers import TensorBoardLogger

from darts_kronos.darts_base import StampedTorchModel
from darts_kronos.module import KronosModule
from darts_kronos.parameters import PREDICTOR_GRADIENT_CLIP, tokenizer_epochs, tuning_rate
from darts_kronos.tokenizer_stage import train_tokenizer
from darts_kronos.training import EpochRandomness, NameStage, TrainingHistory, attached

logger = get_logger(__name__)

TOKENIZER_CHECKPOINTS = "checkpoints_tokenizer"
"""Folder of the tokenizer stage's checkpoints, beside Darts' ``checkpoints``."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C in a Lightning trainer raise KeyboardInterrupt, and leave signals as they were.

    Lightning itself would exit from Python, and let it ignore any further Ctrl-C.
    """
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if in_main else None
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)


class TwoStageTorchModel(StampedTorchModel):
    """A Darts torch model whose ``fit`` trains a tokenizer, then a predictor."""

    # Set by fit: whether a fitted tokenizer is trained again.
    _retrain_tokenizer = False

    # What both stages logged, and the checkpoint that the next fit's tokenizer stage goes on from.
    _history: list[dict[str, Any]]
    _tokenizer_ckpt_path: str | None

    tokenizer_optimizer_kwargs: dict[str, Any]
    tokenizer_trainer_kwargs: dict[str, Any]

    @property
    def _goes_on_trained(self) -> bool:
        """Whether `fit` trains on what a `fit` before ended with; not if it resumes that one."""
        return (
            self.model is not None
            and bool(self.model.tokenizer_fitted)
            and self.load_ckpt_path is None
        )

    def _train(
        self,
        trainer: pl.Trainer,
        model: KronosModule,
        datamodule: TorchDataModule,
        load_best: bool = False,
    ) -> None:
        if len(datamodule.train_dataloader()) == 0:
            raise ValueError(
                f"`drop_last` leaves no batch: the set has {len(datamodule.train_dataset)} "
                f"windows, a batch {datamodule.batch_size}."
            )
        rate = tuning_rate(self._model_params)
        if self._goes_on_trained and rate is not None:
            model.optimizer_kwargs = {**model.optimizer_kwargs, "lr": rate}
        # Drawn at once, so that the second stage does not depend on where the first began.
        seed = int(torch.randint(2**31, ()))
        if self._retrain_tokenizer or not model.tokenizer_fitted:
            logger.info("Stage 1 of 2: training the tokenizer.")
            ckpt_path, self._tokenizer_ckpt_path = self._tokenizer_ckpt_path, None
            with self._saying_what_is_left_of_stage_one():
                seed = train_tokenizer(
                    model,
                    datamodule,
                    optimizer_kwargs=self.tokenizer_optimizer_kwargs,
                    batch_size=self._model_params["tokenizer_batch_size"],
                    trainer_params=self.trainer_params,
                    overrides={
                        "max_epochs": tokenizer_epochs(
                            self._model_params, len(datamodule.train_dataset)
                        ),
                        "enable_progress_bar": trainer.progress_bar_callback is not None,
                        "logger": self._tokenizer_logger(),
                        **self.tokenizer_trainer_kwargs,
                    },
                    init_trainer=self._init_trainer,
                    history=self._history,
                    seed=seed,
                    checkpoints=self._tokenizer_checkpoints if self.save_checkpoints else None,
                    ckpt_path=ckpt_path,
                )
        model.tokenizer.requires_grad_(False)
        if trainer.gradient_clip_val is None:
            trainer.gradient_clip_val = PREDICTOR_GRADIENT_CLIP
        logger.info("Stage 2 of 2: training the predictor.")
        extra = (
            TrainingHistory("predictor", self._history),
            EpochRandomness(seed + 1),
            NameStage("predictor"),
        )
        try:
            with interruptible(), warnings.catch_warnings(), attached(trainer, *extra):
                # Lightning wonders at the tokenizer's evaluation mode, which is as it should be.
                warnings.filterwarnings("ignore", r".*in eval mode at the start of training.*")
                super()._train(trainer, model, datamodule, load_best)
        except KeyboardInterrupt:
            self.model, self.trainer = model, trainer
            logger.warning(
                "Interrupted in stage 2, the predictor's: the model keeps what it has learned and "
                "can forecast."
            )
            raise

    def _tokenizer_logger(self) -> TensorBoardLogger | bool:
        """TensorBoard for stage one beside stage two's, if the user asked for it."""
        folder = os.path.join(self.work_dir, self.model_name)
        wanted = self._model_params.get("log_tensorboard")
        return bool(wanted) and TensorBoardLogger(folder, name="", version="logs_tokenizer")

    @contextmanager
    def _saying_what_is_left_of_stage_one(self) -> Iterator[None]:
        known = len(self._history)
        try:
            with interruptible():
                yield
        except KeyboardInterrupt:
            saved = _newest(self._tokenizer_checkpoints) if self.save_checkpoints else None
            self._tokenizer_ckpt_path = saved
            self._fit_called = self.model is not None
            if saved is None:
                del self._history[known:]
            logger.warning(
                "Interrupted in stage 1, the tokenizer's: the model cannot forecast yet. "
                + (
                    f"`fit` goes on from {saved}, here or after `load_from_checkpoint`."
                    if saved
                    else "`fit` starts anew: no epoch was finished and saved "
                    "(`save_checkpoints=True` saves them)."
                )
            )
            raise

    @property
    def _tokenizer_checkpoints(self) -> str:
        return os.path.join(self.work_dir, self.model_name, TOKENIZER_CHECKPOINTS)

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
            If there is no such model, or no epoch was finished.
        """
        folder = os.path.join(
            work_dir or os.path.join(os.getcwd(), DEFAULT_DARTS_FOLDER), model_name
        )
        base = os.path.join(folder, INIT_MODEL_NAME)
        finished = glob(os.path.join(folder, CHECKPOINTS_FOLDER, "*.ckpt"))
        first_stage = _newest(os.path.join(folder, TOKENIZER_CHECKPOINTS))
        if finished or not os.path.exists(base):
            model = MixedCovariatesTorchModel.load_from_checkpoint(
                model_name, work_dir, file_name, best, trusted, **kwargs
            )
            path = model.load_ckpt_path
            loaded = load_ckpt_safely(
                load_fn=torch.load, path=path, trusted=trusted, map_location="cpu"
            )
            rows = loaded["callbacks"].get("TrainingHistory", {}).get("rows", [])
            model._history = [dict(row) for row in rows]
            return model
        if first_stage is None:
            raise ValueError(
                f"There is no checkpoint of model {model_name!r} in {folder}: no epoch was "
                "finished."
            )
        logger.info(f"Stage 1 of 2 is not finished: `fit` goes on from {first_stage}.")
        model = load_wrapper_safely(
            path=base, trusted=trusted, map_location=kwargs.get("map_location")
        )
        model._fit_called = False
        model._tokenizer_ckpt_path = first_stage
        return model


def _newest(folder: str) -> str | None:
    """The newest checkpoint in a folder, if there is one."""
    found = glob(os.path.join(folder, "*.ckpt"))
    return max(found, key=os.path.getmtime) if found else None
