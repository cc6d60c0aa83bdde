"""How weights do on validation windows before they are fine-tuned, and if that was worth it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from darts.logging import get_logger
from darts.utils.data.torch_datasets._data_module import TorchDataModule
from pytorch_lightning.loggers import Logger

from darts_kronos.autologging import not_autologged

logger = get_logger(__name__)

_TAKEN = ("accelerator", "devices", "precision")
"""Trainer parameters that say where and how the networks run."""


def validation_loss(
    stage: pl.LightningModule,
    windows: TorchDataModule,
    trainer: pl.Trainer,
    trainer_params: Mapping[str, Any],
) -> float:
    """The loss of a stage on its validation windows as it is, measured as after an epoch.

    Parameters
    ----------
    stage
        The module.
    windows
        Its windows; those to validate on must not be missing.
    trainer
        What will train it, and is left alone; as many batches are read as it would read.
    trainer_params
        Parameters that it was made of.
    """
    params = {name: trainer_params[name] for name in _TAKEN if name in trainer_params}
    if trainer.world_size > 1:
        params |= {"accelerator": "cpu", "devices": 1}
    asked = pl.Trainer(
        **params,
        limit_val_batches=trainer.limit_val_batches,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        # The training that comes next goes on with tensors that this leaves in the module.
        inference_mode=False,
    )
    with not_autologged():
        (found,) = asked.validate(stage, datamodule=windows, verbose=False)
    return float(found["val_loss"])


def note(stage: str, loss: float, history: list[dict[str, Any]], loggers: Sequence[Logger]) -> None:
    """Put a stage's loss before its first step in the log: as epoch 0, at step 0."""
    history.append({"stage": stage, "epoch": 0, "val_loss": loss})
    logger.info(f"Zero-shot val_loss of the {stage}: {loss:.4f}")
    for one in loggers:
        one.log_metrics({"val_loss": loss}, step=0)


def noted(stage: str, history: Sequence[Mapping[str, Any]]) -> float | None:
    """The loss that a stage had before its first step, if it was put in the log."""
    losses = [row["val_loss"] for row in history if row["stage"] == stage and row["epoch"] == 0]
    return losses[-1] if losses else None


def judge(zero_shot: float, tuned: float, same_tokens: bool) -> None:
    """Say whether a fine-tuned predictor is better than the one that it started from.

    Parameters
    ----------
    zero_shot, tuned
        Validation losses before and after.
    same_tokens
        Whether the tokenizer is as it was. Then no epoch was kept that made it worse.
    """
    if tuned < zero_shot:
        logger.info(f"Fine-tuning took val_loss from {zero_shot:.4f} (zero-shot) to {tuned:.4f}.")
        return
    if same_tokens:
        what = (
            f"Fine-tuning made the model worse than zero-shot: no epoch's val_loss was below "
            f"{zero_shot:.4f}, so the weights are left as they were."
        )
    else:
        what = (
            f"The fine-tuned model is worse than zero-shot: its val_loss is {tuned:.4f}, it was "
            f"{zero_shot:.4f}. Its tokens are not the same as before, so compare forecasts too."
        )
    warnings.warn(
        f"{what} A lower learning rate, fewer epochs, `lora` or more data may help.",
        UserWarning,
        stacklevel=2,
    )
