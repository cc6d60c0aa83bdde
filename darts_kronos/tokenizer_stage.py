"""Stage one: the training of the tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from darts.utils.data.torch_datasets._data_module import TorchDataModule
from darts.utils.data.torch_datasets.utils import TorchTrainingBatch
from torch import Tensor

from darts_kronos.augmentation import Augmentation
from darts_kronos.module import KronosModule
from darts_kronos.nn.tokenizer import KronosTokenizer
from darts_kronos.representation import Representation
from darts_kronos.training import (
    StageLog,
    TrainingHistory,
    normalised_windows,
    one_cycle,
)

TOKENIZER_GRADIENT_CLIP = 2.0
"""Norm at which stage one clips gradients, as published."""

NOT_INHERITED = frozenset(
    {
        "callbacks",
        "logger",
        "enable_checkpointing",
        "max_epochs",
        "max_steps",
        "max_time",
        "min_epochs",
        "min_steps",
    }
)
"""Trainer parameters of stage two that stage one does not take."""


class TokenizerStage(pl.LightningModule):
    """Stage one: trains a tokenizer on normalised windows.

    Parameters
    ----------
    tokenizer
        The tokenizer to train, in place.
    representation
        How it sees bars.
    augmentation
        How training windows are varied.
    optimizer_kwargs
        Of AdamW.
    """

    def __init__(
        self,
        tokenizer: KronosTokenizer,
        representation: Representation,
        augmentation: Augmentation,
        optimizer_kwargs: dict[str, Any],
    ):
        super().__init__()
        self.tokenizer = tokenizer
        self.representation = representation
        self.augmentation = augmentation
        self.optimizer_kwargs = optimizer_kwargs
        self.stage_log = StageLog(tokenizer.config.s1_bits, tokenizer.config.s2_bits)

    def _step(self, batch: TorchTrainingBatch, role: str, augmentation: Augmentation) -> Tensor:
        parts = self.tokenizer(normalised_windows(self.representation, batch, augmentation))
        losses = parts._asdict()
        s1, s2 = losses.pop("s1"), losses.pop("s2")
        self.stage_log.write(self, role, losses, s1, s2)
        return parts.loss

    def training_step(self, batch: TorchTrainingBatch, batch_idx: int) -> Tensor:
        """The loss of a training batch."""
        return self._step(batch, "train", self.augmentation)

    def validation_step(self, batch: TorchTrainingBatch, batch_idx: int) -> Tensor:
        """The loss of a validation batch."""
        return self._step(batch, "val", Augmentation())

    def configure_optimizers(self) -> Any:
        """AdamW with a one-cycle schedule."""
        optimizer = torch.optim.AdamW(self.tokenizer.parameters(), **self.optimizer_kwargs)
        return one_cycle(optimizer, self.trainer)


class KeepBest(pl.Callback):
    """Keeps the weights of the epoch with the least `val_loss` in memory, and puts them back."""

    def __init__(self) -> None:
        self.best = float("inf")
        self.weights: dict[str, Tensor] | None = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the weights if they are the best so far."""
        loss = trainer.callback_metrics.get("val_loss")
        if trainer.sanity_checking or loss is None or not float(loss) < self.best:
            return
        self.best = float(loss)
        state = pl_module.state_dict()
        self.weights = {name: value.detach().cpu().clone() for name, value in state.items()}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the best weights back."""
        if self.weights is not None:
            pl_module.load_state_dict(self.weights)


def train_tokenizer(
    module: KronosModule,
    datamodule: TorchDataModule,
    *,
    optimizer_kwargs: dict[str, Any],
    batch_size: int,
    trainer_params: dict[str, Any],
    overrides: dict[str, Any],
    init_trainer: Callable[[dict[str, Any]], pl.Trainer],
    history: list[dict[str, Any]],
) -> None:
    """Train a module's tokenizer on stage two's windows, under a Lightning trainer of its own.

    Where there are validation windows, the tokenizer ends as it was after its best epoch.

    Parameters
    ----------
    module
        Holds the tokenizer, which is trained in place and marked as fitted.
    datamodule
        The windows of stage two.
    optimizer_kwargs
        Of AdamW.
    batch_size
        Windows in a batch of this stage.
    trainer_params
        Parameters of stage two's trainer; all but those in ``NOT_INHERITED`` are taken.
    overrides
        Parameters that replace those.
    init_trainer
        Makes a trainer of parameters.
    history
        Takes a row of logged values for each epoch.
    """
    windows = TorchDataModule(
        train_dataset=datamodule.train_dataset,
        val_dataset=datamodule.val_dataset,
        batch_size=batch_size,
        dataloader_kwargs=dict(datamodule.dataloader_kwargs, shuffle=datamodule.shuffle),
    )
    inherited = {k: v for k, v in trainer_params.items() if k not in NOT_INHERITED}
    params = {
        "gradient_clip_val": TOKENIZER_GRADIENT_CLIP,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        **inherited,
        **overrides,
    }
    callbacks = params.pop("callbacks", None) or []
    callbacks = list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
    callbacks.append(TrainingHistory("tokenizer", history))
    if windows.val_dataset is not None:
        callbacks.append(KeepBest())
    tokenizer = module.tokenizer.requires_grad_(True)
    stage = TokenizerStage(tokenizer, module.representation, module.augmentation, optimizer_kwargs)
    init_trainer({**params, "callbacks": callbacks}).fit(stage, datamodule=windows)
    tokenizer.eval()
    module.tokenizer_fitted.fill_(True)
