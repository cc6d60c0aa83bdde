"""Trains a model on two CPU processes, or on one with twice the batch; run by test_devices.py.

python ddp_training.py STRATEGY FOLDER
"""

import os
import sys
from pathlib import Path

import torch
from factories import TINY, candles, tiny_model


def train(strategy: str, **changes):
    """A model that was trained without anything random, and a forecast of it."""
    several = strategy != "one"
    options = TINY["pl_trainer_kwargs"] | {"logger": False}
    if several:
        options |= {"devices": 2, "strategy": strategy}
    batch = 4 if several else 8
    model = tiny_model(
        pl_trainer_kwargs=options,
        batch_size=batch,
        tokenizer_batch_size=batch,
        n_epochs=2,
        n_epochs_tokenizer=2,
        **dict.fromkeys(
            ("mirror", "price_jitter", "volume_jitter", "volume_dropout", "date_shift"), 0.0
        ),
        **dict.fromkeys(("ffn_dropout", "resid_dropout", "token_dropout"), 0.0),
        **changes,
    )
    # 48 windows: six batches of eight.
    series, val = candles(77), candles(45, seed=1)
    model.fit(series, val_series=val, dataloader_kwargs={"shuffle": False})
    paths = model.predict(3, series=[candles(40, seed=i) for i in range(5)], num_samples=4)
    return model, paths


if __name__ == "__main__":
    strategy, folder = sys.argv[1], Path(sys.argv[2])
    rank, start = os.environ.get("LOCAL_RANK", "0"), folder / "start"
    # Processes that Lightning starts are all the same to it: from scratch is enough there.
    for name in ("",) if strategy == "ddp_spawn" else ("", "tuned-"):
        tuning = {"local_dir": str(start), "enable_finetuning": True} if name else {}
        model, paths = train(strategy, **tuning)
        if strategy == "one" and not name:
            model.save_pretrained(start)
        torch.save(
            {
                "weights": model.model.state_dict(),
                "history": model.training_history.to_dict("list"),
                "forecasts": len(paths),
            },
            folder / f"{name}{strategy}-{rank}.pt",
        )
