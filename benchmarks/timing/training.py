"""Steps of both stages against those of the original's loop, on the same windows.

Shapes by letter: B windows, T bars.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from darts.utils.data.torch_datasets.utils import TorchTrainingBatch
from torch import Tensor, nn

from darts_kronos import KronosModel
from darts_kronos.augmentation import Augmentation
from darts_kronos.windows import training_windows
from timing import original
from timing.backtest import candle_frame, series_of
from timing.clock import Plan, Seconds, WrongAnswer, now, row

BATCH, CONTEXT, HORIZON = 32, 512, 49
WARM_UP, STEPS = 3, 3
"""Steps of each side before those that count, and these. In the first ones the system hands out
pages for memory that the process has not had before, which on some machines takes as long as half a
step; a training has thousands."""

NOTHING_VARIED = dict.fromkeys(
    ("mirror", "price_jitter", "volume_jitter", "volume_dropout", "date_shift"), 0.0
)


@dataclass(frozen=True)
class Batch:
    """A batch as both sides see it: normalised bars (B, T, C) and stamps (B, T, 5)."""

    bars: Tensor
    stamps: Tensor


class StepTimes(pl.Callback):
    """Seconds from the start of each training step to that of the next, by epoch."""

    def __init__(self) -> None:
        self.starts: list[list[float]] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        """Note the start."""
        if index == 0:
            self.starts.append([])
        self.starts[-1].append(now())

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """Note the end of the last step."""
        self.starts[-1].append(now())

    def of(self, epoch: int) -> list[float]:
        """Seconds of the steps of an epoch."""
        return np.diff(self.starts[epoch]).tolist()


def ours(size: str, batch: int, steps: int, precision: str) -> tuple[KronosModel, dict[str, Any]]:
    """A model of a size that is trained for two epochs of `steps` steps, and the steps' times."""
    tokenizer, predictor = StepTimes(), StepTimes()
    model = KronosModel(
        input_chunk_length=CONTEXT,
        output_chunk_length=HORIZON,
        size=size,
        representation="window",
        n_epochs=2,
        n_epochs_tokenizer=1,
        batch_size=batch,
        tokenizer_batch_size=batch,
        random_state=0,
        tokenizer_trainer_kwargs={"callbacks": [tokenizer]},
        pl_trainer_kwargs={
            "accelerator": "cpu",
            "precision": precision,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [predictor],
        },
        **NOTHING_VARIED,
    )
    model.fit(series_of(candle_frame(CONTEXT + HORIZON + steps * batch - 1)))
    return model, {
        "tokenizer": tokenizer.of(0),
        "predictor": predictor.of(0),
        "predictor, tokens kept": predictor.of(1),
    }


def batch_of(model: KronosModel, batch: int) -> Batch:
    """The first windows of the training set."""
    series = series_of(candle_frame(CONTEXT + HORIZON + batch - 1))
    dataset = model._build_train_dataset([series], None, None, None, None)
    samples = [dataset[i] for i in range(batch)]
    stacked = TorchTrainingBatch(
        **{
            name: torch.from_numpy(np.stack([getattr(one, name) for one in samples]))
            for name in (
                "past_target",
                "future_target",
                "historic_future_covariates",
                "future_covariates",
            )
        }
    )
    windows = training_windows(
        stacked, model.model.representation, Augmentation(), False, torch.float32
    )
    assert windows.stamps is not None
    return Batch(windows.bars, windows.stamps)


def tokenizer_loss(network: nn.Module, batch: Batch) -> Tensor:
    """The original's loss of stage one."""
    (coarse, fine), bsq_loss, _, _ = network(batch.bars)
    return (F.mse_loss(coarse, batch.bars) + F.mse_loss(fine, batch.bars) + bsq_loss) / 2


def predictor_losses(
    tokenizer: nn.Module, network: nn.Module, batch: Batch
) -> tuple[Tensor, Tensor]:
    """The original's loss of stage two, and its part of the coarse token."""
    with torch.no_grad():
        s1, s2 = tokenizer.encode(batch.bars, half=True)
    logits = network(s1[:, :-1], s2[:, :-1], batch.stamps[:, :-1].float())
    loss, s1_loss, _ = network.head.compute_loss(*logits, s1[:, 1:], s2[:, 1:])
    return loss, s1_loss


def check(nets: original.Networks, batch: Batch) -> None:
    """Compare losses of equal weights without dropout; of the fine token, they differ by design.

    Raises
    ------
    WrongAnswer
        If a loss differs.
    """
    few = Batch(batch.bars[:2], batch.stamps[:2])
    with torch.no_grad():
        s1, s2 = nets.tokenizer.encode(few.bars)
        pairs = {
            "tokenizer": (
                nets.tokenizer(few.bars).loss,
                tokenizer_loss(nets.original_tokenizer, few),
            ),
            "coarse token": (
                nets.predictor.loss(s1, s2, few.stamps).s1_loss,
                predictor_losses(nets.original_tokenizer, nets.original_predictor, few)[1],
            ),
        }
    for name, (mine, theirs) in pairs.items():
        if not torch.isclose(mine, theirs, rtol=1e-4):
            raise WrongAnswer(f"{nets.size}: the {name} loss is {mine:.6f}, not {theirs:.6f}.")


def original_steps(
    nets: original.Networks, stage: str, batch: Batch, steps: int, precision: str
) -> list[float]:
    """Seconds of the original's steps: loss, gradients, clipping, AdamW."""
    network = nets.original_tokenizer if stage == "tokenizer" else nets.original_predictor
    network.train()
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1
    )
    seconds = []
    for _ in range(steps):
        start = now()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision != "32-true"):
            if stage == "tokenizer":
                loss = tokenizer_loss(network, batch)
            else:
                loss, _ = predictor_losses(nets.original_tokenizer, network, batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 2.0 if stage == "tokenizer" else 3.0)
        optimizer.step()
        seconds.append(now() - start)
    network.eval()
    return seconds


def run(plan: Plan) -> list[dict[str, Any]]:
    """Rows of both stages; bf16 beside float32."""
    batch, steps = 4 if plan.quick else BATCH, WARM_UP + STEPS
    rows = []
    for size in ("mini",) if plan.quick else ("mini", "small"):
        for precision in ("32-true", "bf16-mixed"):
            if not plan.wants(f"{size} {precision}"):
                continue
            nets = original.networks(size)
            model, times = ours(size, batch, steps, precision)
            given = batch_of(model, batch)
            check(nets, given)
            for stage in ("tokenizer", "predictor"):
                if stage == "tokenizer" and size != "mini":
                    continue
                theirs = original_steps(nets, stage, given, steps, precision)[WARM_UP:]
                for name in times:
                    if not name.startswith(stage):
                        continue
                    mine = times[name][WARM_UP:]
                    tokens = batch * (CONTEXT + HORIZON)
                    rows.append(
                        row(
                            f"{size} {name} {precision} {batch} x {CONTEXT + HORIZON}",
                            Seconds(mine),
                            Seconds(theirs),
                            **{"tokens/s": tokens / Seconds(mine).median},
                        )
                    )
            print(f"  {size} {precision}", flush=True)
    return rows
