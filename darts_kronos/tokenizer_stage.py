"""Stage one: the training of the tokenizer."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from darts.utils.data.torch_datasets._data_module import TorchDataModule
from darts.utils.data.torch_datasets.utils import TorchTrainingBatch
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from torch import Tensor

from darts_kronos.augmentation import Augmentation
from darts_kronos.autologging import not_autologged
from darts_kronos.module import KronosModule
from darts_kronos.trainers import saying_what_is_refused, with_checkpoint_io
from darts_kronos.training import (
    EpochRandomness,
    KeepBest,
    NameStage,
    OneCycle,
    StageLog,
    TrainingHistory,
    attached,
    forget_earlier_runs,
    listed,
    require_a_batch,
)

TOKENIZER_GRADIENT_CLIP = 2.0
"""Norm at which stage one clips gradients, as published."""

LAST_CHECKPOINT = "last-{epoch}"
"""Name of the stage's checkpoint, which replaces that of the epoch before."""

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

    Its checkpoints hold the whole module, so that a run which was cut off can go on.

    Parameters
    ----------
    module
        Holds the tokenizer, which is trained in place.
    optimizer_kwargs
        Of AdamW.
    """

    def __init__(self, module: KronosModule, optimizer_kwargs: dict[str, Any]):
        super().__init__()
        self.tokenizer = module.tokenizer
        self.augmentation = module.augmentation
        self.optimizer_kwargs = optimizer_kwargs
        self.stage_log = StageLog(self.tokenizer.config.s1_bits, self.tokenizer.config.s2_bits)
        self.one_cycle = OneCycle()
        # In a tuple, so that what else the module holds is no part of this stage.
        self._whole = (module,)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the module's other weights, which this stage does not train."""
        whole = self._whole[0].state_dict()
        others = {name: one for name, one in whole.items() if not name.startswith("tokenizer.")}
        checkpoint["others"] = others

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read them back, and where the schedule was."""
        whole = self._whole[0]
        whole.load_state_dict({**whole.state_dict(), **checkpoint["others"]})
        self.one_cycle.resume(checkpoint)

    def _step(self, batch: TorchTrainingBatch, role: str, augmentation: Augmentation) -> Tensor:
        windows = self._whole[0].windows(batch, augmentation)
        parts = self.tokenizer(windows.bars, windows.weights)
        losses = parts._asdict()
        s1, s2 = (windows.counted(losses.pop(name)) for name in ("s1", "s2"))
        self.stage_log.write(self, role, losses, s1, s2, windows.n_counted())
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
        return self.one_cycle.configure(optimizer, self.trainer)


class LastEpoch(ModelCheckpoint):
    """Keeps the last epoch's checkpoint; of a class of its own beside a user's ModelCheckpoint."""


class TokenizerTraining:
    """A module's tokenizer, stage two's windows, and a Lightning trainer of this stage's own.

    Parameters
    ----------
    module
        Holds the tokenizer.
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
    checkpoints
        Folder that keeps a checkpoint of the last epoch, if any.

    Attributes
    ----------
    stage, windows, trainer
        What Lightning trains, on what, and how.
    """

    def __init__(
        self,
        module: KronosModule,
        datamodule: TorchDataModule,
        *,
        optimizer_kwargs: dict[str, Any],
        batch_size: int,
        trainer_params: dict[str, Any],
        overrides: dict[str, Any],
        checkpoints: str | None = None,
    ):
        self.module = module
        self.windows = TorchDataModule(
            train_dataset=datamodule.train_dataset,
            val_dataset=datamodule.val_dataset,
            batch_size=batch_size,
            dataloader_kwargs=dict(datamodule.dataloader_kwargs, shuffle=datamodule.shuffle),
        )
        require_a_batch(self.windows, "the tokenizer ", "tokenizer_batch_size")
        inherited = {k: v for k, v in trainer_params.items() if k not in NOT_INHERITED}
        params = {
            "gradient_clip_val": TOKENIZER_GRADIENT_CLIP,
            "enable_model_summary": False,
            **inherited,
            **overrides,
        }
        callbacks = listed(params.pop("callbacks", None))
        if checkpoints is not None:
            callbacks.append(LastEpoch(checkpoints, LAST_CHECKPOINT, save_on_train_epoch_end=True))
        params["enable_checkpointing"] = any(isinstance(one, Checkpoint) for one in callbacks)
        self.stage = TokenizerStage(module, optimizer_kwargs)
        plugins = with_checkpoint_io(params.pop("plugins", None))
        with saying_what_is_refused("tokenizer_trainer_kwargs", params):
            self.trainer = pl.Trainer(callbacks=callbacks, plugins=plugins, **params)

    def fit(
        self,
        history: list[dict[str, Any]],
        seed: int,
        ckpt_path: str | None = None,
        start_loss: float | None = None,
    ) -> int:
        """Train the tokenizer in place and mark it as fitted.

        Where there are validation windows, it ends as it was after its best epoch or, with a
        `start_loss` that none was below, as it began.

        Parameters
        ----------
        history
            Takes a row of logged values for each epoch.
        seed
            Of what is random.
        ckpt_path
            A checkpoint of this stage to go on from.
        start_loss
            The validation loss before the first step, if it counts.

        Returns
        -------
        int
            The seed; of the checkpoint, if there was one.
        """
        randomness, best = EpochRandomness(seed), KeepBest()
        own = [TrainingHistory("tokenizer", history), randomness, NameStage("tokenizer")]
        if self.windows.val_dataset is not None:
            own.append(best)
            if start_loss is not None:
                best.consider(start_loss, self.stage)
        if ckpt_path is None:
            forget_earlier_runs(self.trainer)
        # Elsewhere it evaluates, and Lightning leaves that as it is.
        self.stage.train()
        with not_autologged(), attached(self.trainer, *own):
            self.trainer.fit(self.stage, datamodule=self.windows, ckpt_path=ckpt_path)
        best.put_back(self.stage)
        self.module.tokenizer.eval()
        self.module.tokenizer_fitted.fill_(True)
        return randomness.seed
