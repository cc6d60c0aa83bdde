"""What both stages of training share: schedule, randomness, and the log.

Shapes by letter: V entries of a codebook.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from darts.logging import get_logger
from darts.utils.data.torch_datasets._data_module import TorchDataModule
from pytorch_lightning.callbacks import (
    EarlyStopping,
    ModelCheckpoint,
    RichProgressBar,
    TQDMProgressBar,
)
from torch import Tensor, distributed, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler
from torchmetrics import Metric

T = TypeVar("T")

logger = get_logger(__name__)

WARM_UP = 0.03
"""Share of a one-cycle schedule in which the learning rate rises, from a tenth of its peak."""

LOG_MEANING = {
    "loss": "what the stage minimises: tokenizer (recon_loss_s1 + recon_loss + vq_loss) / 2, "
    "predictor (s1_loss + s2_loss) / 2",
    "vq_loss": "tokenizer: distance of a bar's code from its corner, plus the uncertainty of "
    "single codes, minus the entropy of the codebook. It may be negative: the entropy term rewards "
    "a used codebook, so the lower it is, the more codes are in use",
    "recon_loss_s1": "tokenizer: mean squared error of bars rebuilt from the coarse token alone, "
    "in normalised units; lower is better",
    "recon_loss": "tokenizer: the same from both tokens; below recon_loss_s1 once the fine token "
    "carries something",
    "s1_loss": "predictor: cross entropy of the next bar's coarse token in nats; guessing costs "
    "s1_bits * 0.693; exp of it is the perplexity",
    "s2_loss": "predictor: the same for the fine token, given the true coarse one",
    "codebook_usage_s1": "share of the coarse codebook that occurred in the epoch; near 0 it has "
    "collapsed",
    "codebook_usage_s2": "the same for the fine codebook",
}
"""What each logged value means; the log's names have `train_` or `val_` before it."""


def explain_log() -> str:
    """What each value in the training log means, as text to print."""
    lines = ["Logged for each stage as train_NAME and val_NAME, means over an epoch:", ""]
    for name, text in LOG_MEANING.items():
        lines += textwrap.wrap(f"{name:<18} {text}", width=96, subsequent_indent=" " * 19)
    return "\n".join(lines)


class CodebookUsage(Metric):
    """Share of a codebook's entries that occurred.

    Parameters
    ----------
    n_entries
        V, the entries of the codebook.
    """

    full_state_update = False

    def __init__(self, n_entries: int):
        super().__init__()
        self.seen: Tensor
        self.add_state("seen", torch.zeros(n_entries), dist_reduce_fx="max")

    def update(self, tokens: Tensor) -> None:
        """Note the tokens of any shape."""
        self.seen[tokens.flatten()] = 1.0

    def compute(self) -> Tensor:
        """The share, a scalar in [0, 1]."""
        return self.seen.mean()


class OneCycleLR(lr_scheduler.OneCycleLR):
    """Torch's one-cycle schedule, which stays where it ends instead of failing.

    Trials of Lightning's tuner make a run's steps again and again, but not its schedule.
    """

    def step(self, epoch: int | None = None) -> None:
        """Go on by one step, as long as there are any."""
        if self.last_epoch < self.total_steps - 1:
            super().step(epoch)


class OneCycle:
    """A one-cycle schedule over a trainer's steps, which can be resumed in the middle.

    A run that goes on for as many steps as it was meant to take goes on in its cycle. One that is
    to take more or fewer starts a new cycle over the steps that are left, and says so.
    """

    def __init__(self) -> None:
        self._checkpoint: dict[str, Any] | None = None

    def resume(self, checkpoint: dict[str, Any]) -> None:
        """Note the checkpoint that a run starts from, before Lightning reads its schedule."""
        self._checkpoint = checkpoint

    def configure(self, optimizer: torch.optim.Optimizer, trainer: pl.Trainer) -> Any:
        """`optimizer` as Lightning wants it, with its schedule.

        The learning rate stays constant where the number of steps is not known.
        """
        steps = trainer.estimated_stepping_batches
        if steps == float("inf"):
            return optimizer
        checkpoint, self._checkpoint = self._checkpoint, None
        if checkpoint is not None and checkpoint["lr_schedulers"]:
            if checkpoint["lr_schedulers"][0].get("total_steps") != int(steps) + 1:
                done = checkpoint["global_step"]
                logger.info(
                    f"The run was to take other than {steps} steps: a new learning-rate cycle "
                    f"starts after its {done} steps."
                )
                checkpoint["lr_schedulers"].clear()
                steps = max(1, int(steps) - done)
        schedule = OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            # One step more than there are, so that the last one still moves the weights.
            total_steps=int(steps) + 1,
            pct_start=WARM_UP,
            div_factor=10.0,
            cycle_momentum=False,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class EpochRandomness(pl.Callback):
    """Makes what is random in an epoch a function of a seed and of the epoch's number.

    A run that was cut off and goes on from a checkpoint then sees what it would have seen: the
    same order of windows, the same augmentation and dropout.

    Parameters
    ----------
    seed
        Kept in checkpoints; the one of a checkpoint replaces it.
    """

    def __init__(self, seed: int):
        self.seed = seed
        self._first = True

    def state_dict(self) -> dict[str, Any]:
        """The seed."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the seed of a checkpoint."""
        self.seed = int(state_dict["seed"])

    def _of(self, trainer: pl.Trainer) -> int:
        return self.seed + 1000 * trainer.current_epoch + trainer.global_rank

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed the order of the windows; across devices Lightning's sampler does it."""
        first, self._first = self._first, False
        loader = trainer.train_dataloader
        sampler = loader.sampler if isinstance(loader, DataLoader) else None
        if isinstance(sampler, RandomSampler):
            sampler.generator = torch.Generator().manual_seed(self._of(trainer))
        elif isinstance(sampler, DistributedSampler):
            # Across devices Lightning shuffles even where the user said not to.
            sampler.shuffle = getattr(vars(trainer).get("datamodule"), "shuffle", True)
        if first and isinstance(loader, DataLoader) and loader.num_workers:
            # Lightning has let workers fetch the first batches already, in another order.
            assert trainer.fit_loop._data_fetcher is not None
            iter(trainer.fit_loop._data_fetcher)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed all else, before the epoch's first batch."""
        if batch_idx == 0:
            torch.manual_seed(self._of(trainer))


class StageLog(nn.Module):
    """Codebook usage of both tokens, in training and validation, and the logging of a stage."""

    def __init__(self, s1_bits: int, s2_bits: int):
        super().__init__()
        self.usage = nn.ModuleDict(
            {
                f"{role}_{token}": CodebookUsage(2**bits)
                for role in ("train", "val")
                for token, bits in (("s1", s1_bits), ("s2", s2_bits))
            }
        )

    def write(
        self,
        module: pl.LightningModule,
        role: str,
        losses: Mapping[str, Tensor],
        s1: Tensor,
        s2: Tensor,
        n_bars: int,
    ) -> None:
        """Log means over an epoch's bars that count, and the codebooks' usage, from within a step.

        `n_bars` of them are in this batch.
        """
        kwargs: dict[str, Any] = {
            "prog_bar": True,
            "on_step": False,
            "on_epoch": True,
            "batch_size": n_bars,
        }
        named = {f"{role}_{name}": value.detach() for name, value in losses.items()}
        module.log_dict(named, sync_dist=True, **kwargs)
        for token, ids in (("s1", s1), ("s2", s2)):
            usage = self.usage[f"{role}_{token}"]
            assert isinstance(usage, CodebookUsage)
            usage.update(ids)
            module.log(f"{role}_codebook_usage_{token}", usage, **kwargs)


class TrainingHistory(pl.Callback):
    """Keeps what a stage logs, a row for each epoch.

    Parameters
    ----------
    stage
        Name of the stage.
    rows
        The rows; new ones are added at the end.
    """

    def __init__(self, stage: str, rows: list[dict[str, Any]]):
        self.stage = stage
        self.rows = rows
        self._validated = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that this epoch has been validated."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the epoch's values; where it was not validated, Lightning has those of another."""
        roles, self._validated = ("train", "val") if self._validated else ("train",), False
        names = [f"{role}_{name}" for role in roles for name in LOG_MEANING]
        logged = trainer.callback_metrics
        epoch = 1 + sum(row["stage"] == self.stage and row["epoch"] > 0 for row in self.rows)
        values = {name: float(logged[name]) for name in names if name in logged}
        self.rows.append({"stage": self.stage, "epoch": epoch, **values})

    def state_dict(self) -> dict[str, Any]:
        """The rows, those of the stage before included."""
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the rows of a checkpoint."""
        self.rows[:] = state_dict["rows"]


class NameStage(pl.Callback):
    """Lets Lightning's progress bar say which stage runs.

    Parameters
    ----------
    stage
        Name of the stage.
    """

    def __init__(self, stage: str):
        self.stage = stage

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write it over the bar's own "Epoch", which the bar sets when an epoch begins."""
        if batch_idx > 0:
            return
        bar, name = trainer.progress_bar_callback, self.stage.capitalize()
        name = f"{name}, epoch {trainer.current_epoch}"
        if isinstance(bar, TQDMProgressBar):
            bar.train_progress_bar.set_description(name)
        elif isinstance(bar, RichProgressBar):
            shown, task = bar.progress, bar.train_progress_bar_id
            if shown is not None and task is not None:
                shown.update(task, description=name)


class KeepBest(pl.Callback):
    """Keeps the weights of the epoch with the least `val_loss` in memory."""

    def __init__(self) -> None:
        self.best = float("inf")
        self.weights: dict[str, Tensor] | None = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the weights if they are the best so far."""
        loss = trainer.callback_metrics.get("val_loss")
        if not trainer.sanity_checking and loss is not None:
            self.consider(float(loss), pl_module)

    def consider(self, loss: float, stage: pl.LightningModule) -> None:
        """Keep a stage's weights if their validation loss is the best so far."""
        if loss < self.best:
            self.best = loss
            state = stage.state_dict()
            self.weights = {name: value.detach().cpu().clone() for name, value in state.items()}

    def put_back(self, stage: pl.LightningModule) -> None:
        """Give a stage its best weights."""
        if self.weights is not None:
            stage.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """The best loss and weights, for checkpoints."""
        return {"best": self.best, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take those of a checkpoint."""
        self.best, self.weights = state_dict["best"], state_dict["weights"]


def _leave_group() -> None:
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


class CarryBack(pl.Callback):
    """Brings what callbacks know home from processes that Lightning started for a training.

    Weights come back by themselves; what callbacks collected stays in the other process.

    Parameters
    ----------
    callbacks
        Those whose ``state_dict`` is brought back.
    """

    def __init__(self, callbacks: Sequence[pl.Callback]):
        self.callbacks = list(callbacks)
        self.home = os.getpid()
        self.path = os.path.join(tempfile.mkdtemp(prefix="darts_kronos_"), "callbacks.pt")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave it in a file, in another process."""
        if os.getpid() == self.home:
            return
        # A process that ends while it belongs to a group may be aborted by the group's threads.
        atexit.register(_leave_group)
        if trainer.is_global_zero:
            torch.save([one.state_dict() for one in self.callbacks], self.path)

    def fetch(self) -> None:
        """Read the file, at home, and remove it."""
        if os.path.exists(self.path):
            states = torch.load(self.path, weights_only=True)
            for one, state in zip(self.callbacks, states, strict=True):
                one.load_state_dict(state)
        shutil.rmtree(os.path.dirname(self.path), ignore_errors=True)


def require_a_batch(windows: TorchDataModule, of: str, parameter: str) -> None:
    """Refuse a training set that `drop_last` leaves no batch of.

    Raises
    ------
    ValueError
        If there is none; `of` and `parameter` say whose windows and batches these are.
    """
    if len(windows.train_dataloader()) == 0:
        raise ValueError(
            f"`drop_last` leaves {of}no batch: the set has {len(windows.train_dataset)} windows, a "
            f"batch {windows.batch_size} (`{parameter}`)."
        )


def forget_earlier_runs(trainer: pl.Trainer) -> None:
    """Let a trainer's callbacks begin anew that judge epochs by those before.

    They outlive a fit, and so would hold its best epoch, of other series and perhaps other tokens,
    against those of the next.
    """
    present: list[pl.Callback] = getattr(trainer, "callbacks")  # noqa: B009
    for one in present:
        if isinstance(one, ModelCheckpoint):
            one.best_model_path = one.kth_best_model_path = ""
            one.best_model_score = one.current_score = None
            one.best_k_models = {}
            # Else it takes the step at which the last fit ended for one that it has saved.
            one._last_global_step_saved = 0
        elif isinstance(one, EarlyStopping):
            one.wait_count = one.stopped_epoch = 0
            worst = torch.tensor(torch.inf)
            one.best_score = worst if one.monitor_op == torch.lt else -worst


def listed(given: T | Sequence[T] | None) -> list[T]:
    """A trainer's callbacks or plugins, one, several or none, as a list of its own."""
    if given is None:
        return []
    return list(given) if isinstance(given, Sequence) else [given]


@contextmanager
def attached(trainer: pl.Trainer, *callbacks: pl.Callback) -> Iterator[None]:
    """Let `trainer` call these callbacks too, before those that save checkpoints."""
    present: list[pl.Callback] = getattr(trainer, "callbacks")  # noqa: B009
    carrier = CarryBack(callbacks)
    present[:0] = [*callbacks, carrier]
    try:
        yield
    finally:
        carrier.fetch()
        for one in (*callbacks, carrier):
            present.remove(one)
