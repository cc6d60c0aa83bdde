"""Steps of both stages against those of the original's loop, on the same windows, in turns.

Shapes by letter: B windows, T bars.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from darts_kronos import KronosModel
from darts_kronos.augmentation import Augmentation
from timing import original
from timing.backtest import candle_frame, series_of
from timing.clock import Plan, Seconds, now, row
from timing.original_training import Batch, Training, check

BATCH, CONTEXT, HORIZON = 32, 512, 49
WARM_UP, STEPS = 3, 3
"""Steps of each side before those that count, and these. In the first ones the system hands out
pages for memory that the process has not had before, which on some machines takes as long as half a
step; a training has thousands."""

NOTHING_VARIED = dict.fromkeys(
    ("mirror", "price_jitter", "volume_jitter", "volume_dropout", "date_shift"), 0.0
)


class StepTimes(pl.Callback):
    """Seconds of training steps, with the loading of their data, by epoch."""

    def __init__(self) -> None:
        self.of: list[list[float]] = []
        self._start = 0.0

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        """Start an epoch."""
        self.of.append([])
        self._start = now()

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        """Note a step's time."""
        self.of[-1].append(now() - self._start)
        self._start = now()


class InTurns(StepTimes):
    """The same, with a step of the original's after each of ours, on the same batch.

    Parameters
    ----------
    nets
        Networks of both sides, with equal weights: the first batch's losses are compared.
    stage
        "tokenizer" or "predictor".
    precision
        Lightning's name of it.
    """

    def __init__(self, nets: original.Networks, stage: str, precision: str):
        super().__init__()
        self.nets, self.training = nets, Training(nets, stage, precision)
        self.of_original: list[list[float]] = []

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        """Note a step's time, and take the original's."""
        super().on_train_batch_end(trainer, module, outputs, batch, index)
        whole = getattr(module, "_whole", [module])[0]
        windows = whole.windows(batch, Augmentation())
        given = Batch(windows.bars, windows.stamps)
        if not self.of_original:
            check(self.nets, given)
        if index == 0:
            self.of_original.append([])
        start = now()
        self.training.step(given)
        self.of_original[-1].append(now() - start)
        self._start = now()


def train(
    size: str, batch: int, steps: int, precision: str, stages: dict[str, pl.Callback]
) -> None:
    """Train a model of a size for two epochs of `steps` steps, its tokenizer for one."""
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
        tokenizer_trainer_kwargs={"callbacks": [stages["tokenizer"]]},
        pl_trainer_kwargs={
            "accelerator": "cpu",
            "precision": precision,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [stages["predictor"]],
        },
        **NOTHING_VARIED,
    )
    model.fit(series_of(candle_frame(CONTEXT + HORIZON + steps * batch - 1)))


def run(plan: Plan) -> list[dict[str, Any]]:
    """Rows of both stages; bf16 beside float32."""
    batch, rows = 4 if plan.quick else BATCH, []
    for size in ("mini",) if plan.quick else ("mini", "small"):
        for precision in ("32-true", "bf16-mixed"):
            if not plan.wants(f"{size} {precision}"):
                continue

            def in_turns(stage: str, size: str = size, precision: str = precision) -> InTurns:
                return InTurns(original.networks(size), stage, precision)

            # All sizes have the same tokenizer.
            tokenizer = in_turns("tokenizer") if size == "mini" else StepTimes()
            predictor = in_turns("predictor")
            stages = {"tokenizer": tokenizer, "predictor": predictor}
            train(size, batch, WARM_UP + STEPS, precision, stages)
            epochs = {"predictor": (predictor, 0), "predictor, tokens kept": (predictor, 1)}
            if isinstance(tokenizer, InTurns):
                epochs = {"tokenizer": (tokenizer, 0)} | epochs
            for name, (times, epoch) in epochs.items():
                mine = Seconds(times.of[epoch][WARM_UP:])
                rows.append(
                    row(
                        f"{size} {name} {precision} {batch} x {CONTEXT + HORIZON}",
                        mine,
                        Seconds(times.of_original[epoch][WARM_UP:]),
                        **{"tokens/s": batch * (CONTEXT + HORIZON) / mine.median},
                    )
                )
            print(f"  {size} {precision}", flush=True)
    return rows
