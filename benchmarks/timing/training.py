"""Steps of both stages against those of the original's loop, on the same windows.

Shapes by letter: B windows, T bars.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from darts.utils.data.torch_datasets.utils import TorchTrainingBatch

from darts_kronos import KronosModel
from darts_kronos.augmentation import Augmentation
from darts_kronos.windows import training_windows
from timing import original
from timing.backtest import candle_frame, series_of
from timing.clock import Plan, Seconds, now, row
from timing.original_training import Batch, check, training_steps

BATCH, CONTEXT, HORIZON = 32, 512, 49
WARM_UP, STEPS = 3, 3
"""Steps of each side before those that count, and these. In the first ones the system hands out
pages for memory that the process has not had before, which on some machines takes as long as half a
step; a training has thousands."""

NOTHING_VARIED = dict.fromkeys(
    ("mirror", "price_jitter", "volume_jitter", "volume_dropout", "date_shift"), 0.0
)


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
                theirs = training_steps(nets, stage, given, steps, precision)[WARM_UP:]
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
