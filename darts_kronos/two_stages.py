"""The two stages of ``fit``: training, interruptions and resuming of both."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import pytorch_lightning as pl
import torch
from darts.logging import get_logger
from darts.typing import TimeSeriesLike
from darts.utils.data.torch_datasets._data_module import TorchDataModule
from pytorch_lightning.loggers import TensorBoardLogger

from darts_kronos.finetuning import trainable
from darts_kronos.hub import names_weights
from darts_kronos.interrupts import interruptible
from darts_kronos.module import KronosModule
from darts_kronos.parameters import PREDICTOR_GRADIENT_CLIP, tokenizer_epochs, tuning_rate
from darts_kronos.storage import newest
from darts_kronos.stored_runs import StoredTorchModel
from darts_kronos.tokenizer_stage import TokenizerTraining
from darts_kronos.training import (
    EpochRandomness,
    KeepBest,
    NameStage,
    TrainingHistory,
    attached,
    forget_earlier_runs,
    require_a_batch,
)
from darts_kronos.zero_shot import judge, note, noted, validation_loss

logger = get_logger(__name__)

STAGES = ("tokenizer", "predictor")


class TwoStageTorchModel(StoredTorchModel):
    """A Darts torch model whose ``fit`` trains a tokenizer, then a predictor."""

    # Set by lr_find and scale_batch_size: the stage that they are about.
    _tuned_stage: str | None = None

    # Set by fit: whether a fitted tokenizer is trained again.
    _retrain_tokenizer = False

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

    def _go_on_in(self, folder: str) -> None:
        super()._go_on_in(folder)
        if self._makes_logger:
            self.trainer_params["logger"] = self._tensorboard("logs")

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
        require_a_batch(datamodule, "", "batch_size")
        never = trainer.check_val_every_n_epoch or 1
        if load_best and (not trainer.limit_val_batches or 0 < (trainer.max_epochs or 0) < never):
            raise ValueError(
                "`load_best=True` needs an epoch that is validated: `limit_val_batches` is "
                f"{trainer.limit_val_batches}, `check_val_every_n_epoch` "
                f"{trainer.check_val_every_n_epoch}, of {trainer.max_epochs} epochs."
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
        if self._retrain_tokenizer and self.model is not None:
            # A checkpoint that was loaded would bring its tokenizer back.
            self.load_ckpt_path = None
        trained = self._stages_due(model, trainer)
        if not trained:
            if self.enable_finetuning:
                raise ValueError(
                    f"`enable_finetuning`={self.enable_finetuning!r} and the epochs of both stages "
                    "leave nothing to train."
                )
            self._take_as_it_is(model, trainer)
            return
        goes_on = self._goes_on_trained
        rate = tuning_rate(self._model_params, new_tokens=self._retrain_tokenizer)
        known, before = len(self._history), None
        if goes_on and len(trained) > 1:
            before = deepcopy(model.state_dict())
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
            try:
                self._train_predictor(model, datamodule, trainer, seed, load_best, best, validated)
            except Exception:
                if before is not None:
                    # The predictor cannot read the new tokenizer's tokens.
                    model.load_state_dict(before)
                    del self._history[known:]
                raise
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
        # Lightning does not: a forecast that was cut off may have left it evaluating.
        model.train()
        if trainer.gradient_clip_val is None:
            trainer.gradient_clip_val = PREDICTOR_GRADIENT_CLIP
        logger.info("Stage 2 of 2: training the predictor.")
        if self.load_ckpt_path is None:
            forget_earlier_runs(trainer)
        else:
            self._warn_of_nothing_left(trainer)
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

    def _warn_of_nothing_left(self, trainer: pl.Trainer) -> None:
        """Say that the run of a checkpoint was finished, if there is no epoch left."""
        if 0 <= (trainer.max_epochs or -1) <= self._epochs_done:
            logger.warning(
                f"The run of {self.load_ckpt_path} was finished: `fit` trains nothing. Ask for "
                f"more than its {self._epochs_done} epochs (`epochs`); or to train it further, "
                "`save` it, and `fit` what `load` gives."
            )

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
        with self._saying_what_is_left_of_stage_one(ckpt_path):
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

    @contextmanager
    def _saying_what_is_left_of_stage_one(self, ckpt_path: str | None) -> Iterator[None]:
        known, module = len(self._history), self.model
        # Of another fit's, unless this one goes on from it.
        older = newest(self._tokenizer_checkpoints)
        written = os.path.getmtime(older) if older else None
        before = {} if module is None else deepcopy(module.tokenizer.state_dict())
        try:
            with interruptible():
                yield
        except KeyboardInterrupt:
            saved = newest(self._tokenizer_checkpoints) if self.save_checkpoints else None
            if saved is not None and saved == older and os.path.getmtime(saved) == written:
                saved = ckpt_path
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
