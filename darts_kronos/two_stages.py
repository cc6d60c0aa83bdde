"""The two stages of ``fit``: training, interruptions, checkpoints and resuming of both."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
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
from darts.typing import TimeSeriesLike
from darts.utils.data.torch_datasets._data_module import TorchDataModule
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from darts_kronos.darts_base import StampedTorchModel
from darts_kronos.finetuning import trainable
from darts_kronos.hub import names_weights
from darts_kronos.interrupts import interruptible
from darts_kronos.module import KronosModule
from darts_kronos.parameters import PREDICTOR_GRADIENT_CLIP, tokenizer_epochs, tuning_rate
from darts_kronos.storage import UNREADABLE, held, saying_what_was_not_written
from darts_kronos.tokenizer_stage import TokenizerTraining
from darts_kronos.training import (
    EpochRandomness,
    KeepBest,
    NameStage,
    TrainingHistory,
    attached,
)
from darts_kronos.zero_shot import judge, note, noted, validation_loss

logger = get_logger(__name__)

STAGES = ("tokenizer", "predictor")

TOKENIZER_CHECKPOINTS = "checkpoints_tokenizer"
"""Folder of the tokenizer stage's checkpoints, beside Darts' ``checkpoints``."""


class TwoStageTorchModel(StampedTorchModel):
    """A Darts torch model whose ``fit`` trains a tokenizer, then a predictor."""

    # Set by lr_find and scale_batch_size: the stage that they are about.
    _tuned_stage: str | None = None

    # Set by fit: whether a fitted tokenizer is trained again.
    _retrain_tokenizer = False

    # Epochs of the run whose checkpoint the next fit goes on from.
    _planned_epochs: int | None = None

    # The folder in which this model has saved checkpoints.
    _kept_in: str | None = None

    # What both stages logged, and the checkpoint that the next fit's tokenizer stage goes on from.
    _history: list[dict[str, Any]]
    _tokenizer_ckpt_path: str | None

    # Darts sets these; the type checker cannot see it.
    batch_size: int
    enable_finetuning: bool | dict[str, list[str]] | None

    tokenizer_optimizer_kwargs: dict[str, Any]
    tokenizer_trainer_kwargs: dict[str, Any]

    def __getstate__(self) -> dict[str, Any]:
        # As Darts does with those of the predictor stage: of callbacks, a saved model holds those
        # of its parameters alone.
        state: dict[str, Any] = super().__getstate__()
        kept = {k: v for k, v in self.tokenizer_trainer_kwargs.items() if k != "callbacks"}
        given = self._model_params["tokenizer_trainer_kwargs"] or {}
        if "callbacks" in given:
            kept["callbacks"] = given["callbacks"]
        state |= {"tokenizer_trainer_kwargs": kept}
        if self._makes_logger:
            # Loggers hold files, which a safe loader has reason to refuse.
            trainer_params = state["trainer_params"].items()
            state["trainer_params"] = {k: v for k, v in trainer_params if k != "logger"}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        is_whole = bool(state["trainer_params"])
        super().__setstate__(state)
        if is_whole and self._makes_logger:
            self.trainer_params["logger"] = self._tensorboard("logs")

    @property
    def _makes_logger(self) -> bool:
        """Whether Darts makes a logger for the predictor stage."""
        own = self._model_params.get("pl_trainer_kwargs") or {}
        return bool(self._model_params.get("log_tensorboard")) and "logger" not in own

    def _tensorboard(self, version: str) -> TensorBoardLogger:
        return TensorBoardLogger(self._folder, name="", version=version)

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
        known = len(self._history)
        try:
            with interruptible():
                self._train_stages(trainer, model, datamodule, load_best)
        except BaseException:
            if self.model is None:
                self._fit_called = False
                if self._tokenizer_ckpt_path is None:
                    # Nothing is left that a further `fit` goes on from.
                    del self._history[known:]
            raise

    def _train_stages(
        self,
        trainer: pl.Trainer,
        model: KronosModule,
        datamodule: TorchDataModule,
        load_best: bool,
    ) -> None:
        trained = self._stages_due(model, trainer)
        if not trained:
            self._take_as_it_is(model, trainer)
            return
        goes_on, rate = self._goes_on_trained, tuning_rate(self._model_params)
        if goes_on and rate is not None:
            model.optimizer_kwargs = {**model.optimizer_kwargs, "lr": rate}
        # Drawn at once, so that the second stage does not depend on where the first began.
        seed = int(torch.randint(2**31, ()))
        validated = bool(
            self.enable_finetuning
            and trainer.limit_val_batches
            and len(datamodule.val_dataloader())
        )
        if validated and self.model is None and self._tokenizer_ckpt_path is None:
            self._note_zero_shot_losses(model, datamodule, trainer, "tokenizer" in trained)
        if "tokenizer" in trained:
            logger.info("Stage 1 of 2: training the tokenizer.")
            seed = self._train_tokenizer(model, datamodule, trainer, seed)
        best = KeepBest()
        zero_shot = noted("predictor", self._history)
        if validated and self.load_ckpt_path is None:
            start = None if goes_on or "tokenizer" in trained else zero_shot
            if start is None:
                start = validation_loss(model, datamodule, trainer, self.trainer_params)
            best.consider(start, model)
        if "predictor" in trained:
            self._train_predictor(model, datamodule, trainer, seed, load_best, best, validated)
        else:
            self._take_as_it_is(model, trainer)
        if validated and not goes_on and zero_shot is not None:
            moved = any(row["stage"] == "tokenizer" and row["epoch"] > 0 for row in self._history)
            judge(zero_shot, best.best, same_tokens=not moved)

    def _train_predictor(
        self,
        model: KronosModule,
        datamodule: TorchDataModule,
        trainer: pl.Trainer,
        seed: int,
        load_best: bool,
        best: KeepBest,
        keep_best: bool,
    ) -> None:
        self._set_trainable(model, "predictor")
        if trainer.gradient_clip_val is None:
            trainer.gradient_clip_val = PREDICTOR_GRADIENT_CLIP
        logger.info("Stage 2 of 2: training the predictor.")
        extra: list[pl.Callback] = [
            TrainingHistory("predictor", self._history),
            EpochRandomness(seed + 1),
            NameStage("predictor"),
        ]
        if keep_best:
            extra.append(best)
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
        finally:
            # Lightning tells the module of an end that comes as planned only.
            model.forget_tokens()
        if keep_best:
            best.put_back(self.model)

    def _note_zero_shot_losses(
        self,
        model: KronosModule,
        datamodule: TorchDataModule,
        trainer: pl.Trainer,
        both: bool,
    ) -> None:
        """Log how the predictor, or both networks, do on validation windows before any step."""
        if both:
            first = self._tokenizer_training(model, datamodule, trainer, with_checkpoints=False)
            loss = validation_loss(first.stage, first.windows, trainer, self.trainer_params)
            note("tokenizer", loss, self._history, first.trainer.loggers)
        loss = validation_loss(model, datamodule, trainer, self.trainer_params)
        note("predictor", loss, self._history, trainer.loggers)

    def _stages_due(self, model: KronosModule, trainer: pl.Trainer) -> tuple[str, ...]:
        """The stages that `fit` has to train, in order."""
        if self._retrain_tokenizer and self.enable_finetuning is False:
            raise ValueError(
                "`retrain_tokenizer=True` needs `enable_finetuning=True`: without it the weights "
                "that the model starts from stay as they are."
            )
        starts = self.model is None and names_weights(self._model_params)
        wanted = {
            "tokenizer": self._retrain_tokenizer or starts or not model.tokenizer_fitted,
            "predictor": trainer.max_epochs != 0,
        }
        if starts and self._model_params["n_epochs_tokenizer"] == 0:
            wanted["tokenizer"] = False
        names = self._trainable(model)
        return tuple(
            stage
            for stage in STAGES
            if wanted[stage] and any(name.startswith(f"{stage}.") for name in names)
        )

    def _trainable(self, model: KronosModule) -> set[str]:
        """Names of the weights that training may move, of both stages."""
        names = [name for name, _ in model.named_parameters()]
        if not model.predictor.config.learn_time_embedding:
            names = [name for name in names if not name.startswith("predictor.calendar.")]
        tuning = True if self.enable_finetuning is None else self.enable_finetuning
        return trainable(names, tuning, self._model_params["lora"] is not None)

    def _set_trainable(self, model: KronosModule, stage: str) -> None:
        """Let a stage move its own weights and no others."""
        names = self._trainable(model)
        for name, weight in model.named_parameters():
            weight.requires_grad_(name in names and name.startswith(f"{stage}."))

    def _take_as_it_is(self, model: KronosModule, trainer: pl.Trainer) -> None:
        """End `fit` without a second stage."""
        trainer.strategy.connect(model)
        self.model, self.trainer = model, trainer
        self.load_ckpt_path = None
        self._fit_called = True

    def _tokenizer_training(
        self,
        model: KronosModule,
        datamodule: TorchDataModule,
        trainer: pl.Trainer,
        with_checkpoints: bool = True,
    ) -> TokenizerTraining:
        """Stage one, ready to run, beside the trainer of stage two."""
        self._set_trainable(model, "tokenizer")
        kept = self.save_checkpoints and with_checkpoints
        return TokenizerTraining(
            model,
            datamodule,
            optimizer_kwargs=self.tokenizer_optimizer_kwargs,
            batch_size=self._model_params["tokenizer_batch_size"],
            trainer_params=self.trainer_params,
            overrides={
                "max_epochs": tokenizer_epochs(self._model_params, len(datamodule.train_dataset)),
                "enable_progress_bar": trainer.progress_bar_callback is not None,
                "logger": self._tokenizer_logger(),
                **self.tokenizer_trainer_kwargs,
            },
            checkpoints=self._tokenizer_checkpoints if kept else None,
        )

    def _train_tokenizer(
        self, model: KronosModule, datamodule: TorchDataModule, trainer: pl.Trainer, seed: int
    ) -> int:
        ckpt_path, self._tokenizer_ckpt_path = self._tokenizer_ckpt_path, None
        with self._saying_what_is_left_of_stage_one():
            training = self._tokenizer_training(model, datamodule, trainer)
            start = noted("tokenizer", self._history) if self.model is None else None
            return training.fit(self._history, seed, ckpt_path, start)

    def lr_find(
        self, series: TimeSeriesLike, *args: Any, stage: str = "predictor", **kwargs: Any
    ) -> Any:
        """Search a learning rate for one of the stages; see Darts' ``lr_find``.

        For the predictor stage of a model that was not fitted, the tokenizer is trained first.

        Parameters
        ----------
        series, *args, **kwargs
            See Darts' method of this name.
        stage
            "predictor" or "tokenizer".

        Returns
        -------
        object
            Lightning's ``_LRFinder``: ``suggestion()`` is a rate, ``plot()`` draws the curve.
        """
        with self._tuned(stage):
            return super().lr_find(series, *args, **kwargs)

    def scale_batch_size(
        self, series: TimeSeriesLike, *args: Any, stage: str = "predictor", **kwargs: Any
    ) -> int:
        """Search the largest batch for one of the stages, or for forecasts; see Darts' method.

        Parameters
        ----------
        series, *args, **kwargs
            See Darts' method of this name. With ``update_model=True``, the default, the model
            takes the number as `batch_size` or, in the tokenizer stage, `tokenizer_batch_size`.
        stage
            "predictor" or "tokenizer".

        Returns
        -------
        int
            Windows in a batch.
        """
        update, before = kwargs.get("update_model", True), self.batch_size
        with self._tuned(stage):
            found = int(super().scale_batch_size(series, *args, **kwargs))
        if stage == "tokenizer" and update:
            self.batch_size = self._model_params["batch_size"] = before
            self._model_params["tokenizer_batch_size"] = found
        return found

    @contextmanager
    def _tuned(self, stage: str) -> Iterator[None]:
        """Let Darts' tuners work on a stage: what they set up to train is that stage's."""
        if stage not in STAGES:
            raise ValueError(f"`stage` must be one of {', '.join(STAGES)}, got {stage!r}.")
        self._tuned_stage = stage
        try:
            yield
        finally:
            self._tuned_stage = None

    def _setup_for_train(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        params: dict[str, Any] = super()._setup_for_train(*args, **kwargs)
        model, windows, trainer = (params[name] for name in ("model", "datamodule", "trainer"))
        if self._tuned_stage == "tokenizer":
            training = self._tokenizer_training(model, windows, trainer, with_checkpoints=False)
            params |= {
                "model": training.stage,
                "datamodule": training.windows,
                "trainer": training.trainer,
            }
        elif self._tuned_stage == "predictor":
            if not model.tokenizer_fitted:
                training = self._tokenizer_training(model, windows, trainer, with_checkpoints=False)
                training.fit([], int(torch.randint(2**31, ())))
            self._set_trainable(model, "predictor")
        return params

    def _tokenizer_logger(self) -> TensorBoardLogger | bool:
        """TensorBoard for stage one beside stage two's, if the user asked for it."""
        wanted = self._model_params.get("log_tensorboard")
        return bool(wanted) and self._tensorboard("logs_tokenizer")

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
            if self._kept_in != folder and any(_newest(one) for one in kept):
                raise ValueError(
                    f"{folder!r} holds checkpoints of another model called {self.model_name!r}: go "
                    "on with that one (`load_from_checkpoint`), give another `model_name`, or "
                    "make the model with `force_reset=True`, which removes them."
                )
            self._kept_in = folder
            with saying_what_was_not_written(folder):
                yield

    @contextmanager
    def _saying_what_is_left_of_stage_one(self) -> Iterator[None]:
        known, module = len(self._history), self.model
        before = {} if module is None else deepcopy(module.tokenizer.state_dict())
        try:
            with interruptible():
                yield
        except KeyboardInterrupt:
            saved = _newest(self._tokenizer_checkpoints) if self.save_checkpoints else None
            self._tokenizer_ckpt_path = saved
            self._fit_called = False
            if module is not None:
                # The predictor knows no tokenizer that is trained in part.
                module.tokenizer_fitted.fill_(False)
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
        except Exception:
            if module is not None:
                module.tokenizer.load_state_dict(before)
                del self._history[known:]
            raise

    @property
    def _tokenizer_checkpoints(self) -> str:
        return os.path.join(self._folder, TOKENIZER_CHECKPOINTS)

    @staticmethod
    def load(
        path: str,
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
        with _refusing(path):
            model = MixedCovariatesTorchModel.load(
                os.fspath(path), pl_trainer_kwargs, trusted, **kwargs
            )
        _check_class(model, path)
        return model

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
        with _refusing(file_name or str(model_name)):
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
        finished = glob(os.path.join(folder, CHECKPOINTS_FOLDER, "*.ckpt"))
        first_stage = _newest(os.path.join(folder, TOKENIZER_CHECKPOINTS))
        if finished or not os.path.exists(base):
            with _refusing(folder):
                model = MixedCovariatesTorchModel.load_from_checkpoint(
                    model_name, work_dir, file_name, best, trusted, **kwargs
                )
            _check_class(model, base)
            model._kept_in = os.path.abspath(folder)
            loaded = load_ckpt_safely(
                load_fn=torch.load, path=model.load_ckpt_path, trusted=trusted, map_location="cpu"
            )
            rows = loaded["callbacks"].get("TrainingHistory", {}).get("rows", [])
            model._history = [dict(row) for row in rows]
            model._planned_epochs = loaded.get("planned_epochs")
            return model
        if first_stage is None:
            raise ValueError(
                f"There is no checkpoint of model {model_name!r} in {folder}: no epoch was "
                "finished."
            )
        logger.info(f"Stage 1 of 2 is not finished: `fit` goes on from {first_stage}.")
        with _refusing(base):
            model = load_wrapper_safely(
                path=base, trusted=trusted, map_location=kwargs.get("map_location")
            )
        _check_class(model, base)
        model._kept_in = os.path.abspath(folder)
        model._fit_called = False
        model._tokenizer_ckpt_path = first_stage
        return model


@contextmanager
def _refusing(path: str) -> Iterator[None]:
    """Say of a file that cannot be loaded that it cannot."""
    try:
        yield
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise ValueError(
            f"{str(path)!r} cannot be loaded as a KronosModel: {error or type(error).__name__}"
        ) from error


def _check_class(model: object, path: str) -> None:
    if not isinstance(model, TwoStageTorchModel):
        raise ValueError(f"{str(path)!r} holds a {type(model).__name__}, not a KronosModel.")


def _newest(folder: str) -> str | None:
    """The newest checkpoint in a folder, if there is one."""
    found = glob(os.path.join(folder, "*.ckpt"))
    return max(found, key=os.path.getmtime) if found else None
