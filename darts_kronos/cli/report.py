"""What a stage of training tells while it runs: a table by epoch, lines of the log, and advice."""

from __future__ import annotations

import math
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm

from darts_kronos.cli.console import note, say, warn
from darts_kronos.cli.errors import RunError
from darts_kronos.cli.files import written
from darts_kronos.training import LOG_MEANING
from darts_kronos.two_stages import STAGES

COLUMNS = {
    "tokenizer": ("recon_loss_s1", "recon_loss", "vq_loss"),
    "predictor": ("s1_loss", "s2_loss"),
}
"""Losses that a stage's table shows, beside the one that it minimises."""

MINIMISED = {
    "tokenizer": "(recon_loss_s1 + recon_loss + vq_loss) / 2",
    "predictor": "(s1_loss + s2_loss) / 2",
}
"""The `loss` of each stage."""

USAGE = ("codebook_usage_s1", "codebook_usage_s2")

COLLAPSED = 0.05
"""Share of a codebook, of the entries that could occur, below which it has collapsed."""

RISING_EPOCHS = 3
"""Epochs without a lower validation loss after which training is said to overfit."""

WAITING = 0.3
"""Share of the time spent on waiting for windows above which loading is said to be slow."""


class StageBar(TQDMProgressBar):
    """A progress bar of an epoch's steps; the losses are in the table above it."""

    def get_metrics(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """No values beside the bar."""
        return {}

    def init_validation_tqdm(self) -> Tqdm:
        """No bar of validation: the epoch's own waits for it."""
        return Tqdm(disable=True)

    def make_room(self) -> None:
        """Clear the terminal's last line, which is the bar's, for a line of text."""
        if self._train_progress_bar is not None:
            self._train_progress_bar.clear()


class StageReport(pl.Callback):
    """Prints a table by epoch, writes lines between epochs to the log, and the values to a CSV.

    Parameters
    ----------
    stage
        "tokenizer" or "predictor".
    log_interval
        Steps from one line of the log to the next.
    csv
        The file of the values, a row for each epoch of both stages.
    """

    def __init__(self, stage: str, log_interval: int, csv: Path):
        self.stage = stage
        self.log_interval = log_interval
        self.csv = csv
        self._started = self._epoch_started = 0.0
        self._first_epoch = 0
        self._columns: list[str] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what begins, and what the columns mean."""
        self._started, self._first_epoch = time.monotonic(), trainer.current_epoch
        if not trainer.is_global_zero:
            return
        validates = bool(trainer.num_val_batches) and sum(map(float, trainer.num_val_batches)) > 0
        losses = list(COLUMNS[self.stage])
        self._columns = ["train_loss", *(["val_loss"] if validates else []), *losses, *USAGE]
        number, steps = STAGES.index(self.stage) + 1, int(trainer.num_training_batches)
        parts = trainer.accumulate_grad_batches
        left = (trainer.max_epochs or 0) - self._first_epoch
        self._print(trainer, "")
        self._print(
            trainer,
            f"Stage {number} of 2, the {self.stage}: {_count(left, 'epoch')} of "
            f"{_count(math.ceil(steps / parts), 'step')}"
            + (f", going on after epoch {self._first_epoch}" if self._first_epoch else "")
            + (f", {trainer.world_size} processes" if trainer.world_size > 1 else ""),
        )
        seen = "validation" if validates else "training"
        for name in ("loss", *losses, *USAGE):
            text = LOG_MEANING[name].removeprefix(f"{self.stage}: ")
            if name == "loss":
                text = f"what the stage minimises, {MINIMISED[self.stage]}"
            text += f" ({'training' if name in USAGE else seen})" if name != "loss" else ""
            for line in textwrap.wrap(f"  {name}: {text}", 96, subsequent_indent="    "):
                self._print(trainer, line)
        self._print(trainer, self._row({name: name for name in self._columns}, "epoch", "", ""))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the time."""
        self._epoch_started = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write a line to the log now and then."""
        done, steps = batch_idx + 1, int(trainer.num_training_batches)
        if not trainer.is_global_zero or done % self.log_interval or done == steps:
            return
        pace = done / max(time.monotonic() - self._epoch_started, 1e-9)
        note(
            f"{self.stage} epoch {trainer.current_epoch + 1}/{trainer.max_epochs} "
            f"batch {done}/{steps} loss {float(outputs['loss'].detach()):.4f} "
            f"learning rate {_rate(trainer):.2e} {pace:.1f} batches/s"
        )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the epoch's row."""
        now = time.monotonic()
        epoch = trainer.current_epoch + 1
        left = (
            (now - self._started)
            / (epoch - self._first_epoch)
            * ((trainer.max_epochs or 0) - epoch)
        )
        rate = _rate(trainer)
        pl_module.log("learning_rate", rate, sync_dist=True)
        if not trainer.is_global_zero:
            return
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        shown = {name: self._cell(name, logged) for name in self._columns}
        self._print(trainer, self._row(shown, str(epoch), f"{rate:.2e}", _clock(left)))
        values = {k: v for k, v in logged.items() if k.startswith(("train_", "val_"))}
        row = {"stage": self.stage, "epoch": epoch, "learning_rate": rate}
        self._keep({**row, "seconds": round(now - self._epoch_started, 3), **values})

    def _cell(self, name: str, logged: Mapping[str, float]) -> str:
        if name in USAGE:
            return f"{logged.get(f'train_{name}', math.nan):.1%}"
        value = logged.get(name, logged.get(f"val_{name}", logged.get(f"train_{name}", math.nan)))
        if name in COLUMNS["predictor"]:
            # Overflow of a loss that has run away is an infinite perplexity.
            perplexity = math.exp(value) if value < 700 else math.inf
            return f"{value:.3f} ({perplexity:.1f})"
        return f"{value:.4f}"

    def _row(self, cells: Mapping[str, str], epoch: str, rate: str, left: str) -> str:
        """A line of the table; its head if the cells are their names."""
        is_head = epoch == "epoch"
        texts = [f"{epoch:>5}"]
        for name in self._columns:
            head = name.replace("codebook_", "")
            if name in COLUMNS["predictor"]:
                head += " (perplexity)"
            texts.append(f"{head if is_head else cells[name]:>{max(9, len(head))}}")
        texts.append(f"{'learning_rate' if is_head else rate:>13}")
        texts.append(f"{'time_left' if is_head else left:>9}")
        return "  ".join(texts)

    def _print(self, trainer: pl.Trainer, line: str) -> None:
        bar = trainer.progress_bar_callback
        if isinstance(bar, StageBar):
            bar.make_room()
        say(line)

    def _keep(self, row: dict[str, Any]) -> None:
        """Add a row to the CSV; rows of epochs that are trained again give way."""
        frame = pd.DataFrame([row])
        if self.csv.exists():
            before = pd.read_csv(self.csv)
            later = [stage for stage in STAGES if STAGES.index(stage) > STAGES.index(self.stage)]
            same = (before["stage"] == self.stage) & (before["epoch"] >= row["epoch"])
            before = before[~same & ~before["stage"].isin(later)]
            frame = pd.concat([before, frame]) if len(before) else frame
        with written(self.csv) as unfinished:
            frame.to_csv(unfinished, index=False)


class Advice(pl.Callback):
    """Warns, once for each, of what goes wrong in a stage, and says what to do about it.

    Parameters
    ----------
    stage
        "tokenizer" or "predictor".
    n_bars
        Bars of the training set: no more entries of a codebook than that can occur.
    num_workers
        Processes that load windows now.

    Raises
    ------
    RunError
        During training, if a loss is not finite.
    """

    def __init__(self, stage: str, n_bars: int, num_workers: int):
        self.stage = stage
        self.n_bars = n_bars
        self.num_workers = num_workers
        self._given: set[str] = set()
        self._best, self._best_epoch = math.inf, 0
        self._waited = self._worked = 0.0
        self._last: float | None = None

    def _warn(self, trainer: pl.Trainer, what: str, text: str) -> None:
        if what not in self._given and trainer.is_global_zero:
            self._given.add(what)
            warn(text)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to measure anew: what lies between epochs is no loading."""
        self._last, self._waited, self._worked = None, 0.0, 0.0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Measure how long the batch was waited for."""
        now = time.monotonic()
        if self._last is not None:
            self._waited += now - self._last
        self._last = now

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Measure how long it took, and look at the loss."""
        now = time.monotonic()
        if self._last is not None:
            self._worked += now - self._last
        self._last = now
        if not bool(torch.isfinite(outputs["loss"].detach())):
            raise RunError(
                f"The {self.stage} stage's loss is not finite in epoch "
                f"{trainer.current_epoch + 1}, batch {batch_idx + 1}. Lower "
                f"training.{self.stage}_learning_rate (now {_rate(trainer):.2e}); if that does not "
                "help, look for extreme values in the candles, and keep trainer.precision at "
                "32-true."
            )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the epoch's values."""
        logged = trainer.callback_metrics
        epoch = trainer.current_epoch + 1
        if self.stage == "tokenizer" and epoch > 1:
            for token in ("s1", "s2"):
                self._look_at_codebook(
                    trainer, token, float(logged[f"train_codebook_usage_{token}"])
                )
        if "val_loss" in logged:
            self._look_at_validation(trainer, epoch, float(logged["val_loss"]))
        total = self._waited + self._worked
        if total > 1 and self._waited > WAITING * total:
            self._warn(
                trainer,
                "loading",
                f"Training waits for windows {self._waited / total:.0%} of the time: raise "
                f"training.num_workers (now {self.num_workers}).",
            )

    def _look_at_codebook(self, trainer: pl.Trainer, token: str, usage: float) -> None:
        tokenizer: Any = trainer.lightning_module.tokenizer
        bits = getattr(tokenizer.config, f"{token}_bits")
        possible = min(1.0, self.n_bars / 2**bits)
        if usage >= COLLAPSED * possible:
            return
        name = {"s1": "coarse", "s2": "fine"}[token]
        self._warn(
            trainer,
            f"codebook {token}",
            f"The {name} codebook has collapsed: {usage:.1%} of its {2**bits} entries occur. "
            "Raise model.zeta or model.gamma (the reward of a used codebook), lower "
            f"training.tokenizer_learning_rate, or take fewer bits (model.{token}_bits).",
        )

    def _look_at_validation(self, trainer: pl.Trainer, epoch: int, loss: float) -> None:
        if loss < self._best:
            self._best, self._best_epoch = loss, epoch
        elif epoch - self._best_epoch >= RISING_EPOCHS:
            key = "tokenizer_epochs" if self.stage == "tokenizer" else "basemodel_epochs"
            dropout = "" if self.stage == "tokenizer" else ", more model.token_dropout"
            self._warn(
                trainer,
                "validation",
                f"The {self.stage} stage's validation loss has not fallen since epoch "
                f"{self._best_epoch} ({self._best:.4f}): it overfits. The weights of that epoch "
                f"are kept; take fewer training.{key}{dropout}, a smaller model.size or more data.",
            )

    def state_dict(self) -> dict[str, Any]:
        """The best epoch so far, for checkpoints."""
        return {"best": self._best, "best_epoch": self._best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take that of a checkpoint."""
        self._best, self._best_epoch = state_dict["best"], state_dict["best_epoch"]


def _rate(trainer: pl.Trainer) -> float:
    return float(trainer.optimizers[0].param_groups[0]["lr"])


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number:,} {what}s"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
