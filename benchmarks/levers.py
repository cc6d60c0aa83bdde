"""What each change of training or sampling is worth, on the benchmark's validation parts.

    python benchmarks/levers.py --seeds 3

Each variant is trained on each pool for each seed, and its forecasts of the validation windows are
measured: CRPS over the better random walk's bands, MAE over the last close's, and coverage of the
close's 50% and 90% intervals; as drawn, and in antithetic pairs, which forecast no direction: what
a fit believes of it by chance is most of the noise; and these at a temperature of 1.1. Nothing of
the test parts is touched. Resumable: what was measured lies in benchmarks/results/levers.json, and
a further run adds to it.
"""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from accuracy import STRIDES, score_all
from evaluation.baselines import BASELINES
from evaluation.data import HORIZON, POOLS, PRICES, Pool, load, windows
from evaluation.learned import Candidate, Fitted
from evaluation.measures import score
from evaluation.quiet import quiet
from evaluation.report import WALKS
from evaluation.store import RESULTS, Store
from evaluation.tried import horizon_weighted, told_the_next_stamp

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "nothing varied": dict.fromkeys(
        ("mirror", "price_jitter", "volume_jitter", "volume_dropout", "date_shift"), 0.0
    ),
    "not mirrored": {"mirror": 0.0},
    "mirrored": {"price_jitter": 0.0, "volume_jitter": 0.0, "date_shift": 0.0},
    "no volume dropout": {"volume_dropout": 0.0},
    "no stamps": {"stamps": False},
    "5 + 5 bits": {"s1_bits": 5, "s2_bits": 5},
    "6 + 6 bits": {"s1_bits": 6, "s2_bits": 6},
    "8 + 8 bits": {"s1_bits": 8, "s2_bits": 8},
    "dropout 0": {"ffn_dropout": 0.0, "resid_dropout": 0.0, "token_dropout": 0.0},
    "dropout .3": {"ffn_dropout": 0.3, "resid_dropout": 0.3, "token_dropout": 0.2},
    "weight decay .01": {
        "optimizer_kwargs": {"weight_decay": 0.01},
        "tokenizer_optimizer_kwargs": {"weight_decay": 0.01},
    },
    "predictor rate / 2": {"optimizer_kwargs": {"lr": 1.5e-3}},
    "tokenizer rate / 2": {"tokenizer_optimizer_kwargs": {"lr": 1.5e-3}},
    "2 predictor epochs": {"n_epochs": 2},
    "8 predictor epochs": {"n_epochs": 8},
    "8 tokenizer epochs": {"n_epochs_tokenizer": 8},
    "predictor batch 16": {"batch_size": 16},
    "tokenizer batch 32": {"tokenizer_batch_size": 32},
    "context 48": {"input_chunk_length": 48},
    "2 layers of 64": {"d_model": 64, "n_layers": 2, "ff_dim": 128},
    "5 layers of 160": {"d_model": 160, "n_layers": 5, "ff_dim": 320},
    "window": {"representation": "window"},
    "window, anchored": {"representation": "window", "anchor": True},
    "best epoch kept": {"load_best": True},
    "horizon weighted": {"tried": horizon_weighted},
    "next bar's stamp": {"tried": told_the_next_stamp},
    "more series": {"more": "EURUSD hourly"},
    "pretrained": {"pretrained": True},
    "pretrained, not mirrored": {"pretrained": True, "view": "as seen"},
    "pretrained, 6 + 6 bits": {"pretrained": True, "s1_bits": 6, "s2_bits": 6},
}
"""What each changes of the default: parameters, but for `stamps`, which hides the calendar,
`pretrained`, which starts from simulated candles, `view`, which says how windows are varied from
then on, `load_best`, which keeps the predictor of the epoch with the least validation loss, `more`,
a pool whose training part is learned from as well, and `tried`, which changes the package. The
pool "EURUSD hourly" had ended before "AAPL hourly" began."""

SAMPLINGS: dict[str, dict[str, Any]] = {
    "as drawn": {"temperature": 1.0, "antithetic": False},
    "antithetic": {"temperature": 1.0, "antithetic": True},
    "antithetic, 1.1": {"temperature": 1.1, "antithetic": True},
}
"""How forecasts are drawn."""


def walks(pool: Pool) -> dict[str, float]:
    """CRPS of the better random walk's bands on each validation series."""
    best = {}
    for symbol, series in zip(pool.symbols, pool.val, strict=True):
        contexts, futures = windows(series[PRICES], STRIDES["val"])
        rng = np.random.default_rng(0)
        found = [score(BASELINES[w](contexts, HORIZON, rng), contexts, futures) for w in WALKS]
        best[symbol] = min(float(one.crps.mean()) for one in found)
    return best


def measure(pool: Pool, config: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """Measures of a variant on each validation series, for each way of drawing."""
    own = dict(config)
    tried, more, seen = own.pop("tried", nullcontext), own.pop("more", None), pool
    if more is not None:
        seen = replace(seen, train=[*seen.train, *load(more).train])
    if not own.pop("stamps", True):
        parts = ([series.with_metadata(None) for series in part] for part in (seen.train, seen.val))
        seen = replace(seen, train=next(parts), val=next(parts))
    paths = {}
    with tried():
        fitted = Fitted(Candidate("Kronos", own.pop("view", "mirrored"), own), seen, seed)
        for name, sampling in SAMPLINGS.items():
            fitted.model.set_sampling(**sampling)
            paths[name] = fitted.paths(seen.val, STRIDES["val"])
    reference, rows = walks(pool), []
    for drawn, found in paths.items():
        for symbol, one in score_all(found, pool, "val", POSITIONS).items():
            rows.append(
                {
                    "series": symbol,
                    "seed": seed,
                    "drawn": drawn,
                    "CRPS ratio": float(one.crps.mean() / reference[symbol]),
                    "MAE ratio": float(one.absolute.mean() / np.abs(one.naive).mean()),
                    "coverage 50": float(one.inside["50%"].mean()),
                    "coverage 90": float(one.inside["90%"].mean()),
                    "fit s": fitted.fit_seconds,
                }
            )
    return rows


POSITIONS = "linear"
"""The quantiles that intervals lie between, of all runs in ``levers.json``."""

Key = tuple[str, str, int]
"""A pool, a variant and a seed."""

KNOWN = RESULTS / "levers.json"
"""Rows of all runs so far, this machine's and others'."""


def known() -> dict[Key, list[dict[str, Any]]]:
    """The rows of each run that was made before, by its key."""
    runs = json.loads(KNOWN.read_text()) if KNOWN.exists() else []
    return {(run["pool"], run["variant"], run["seed"]): run["rows"] for run in runs}


def keep(found: dict[Key, list[dict[str, Any]]]) -> None:
    """Write down the rows of all runs, one run a line."""
    lines = [
        json.dumps({"pool": pool, "variant": variant, "seed": seed, "rows": rows})
        for (pool, variant, seed), rows in sorted(found.items())
    ]
    KNOWN.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def table_of(frame: pd.DataFrame) -> pd.DataFrame:
    """Means of each variant and way of drawing, and what it changes of the default's CRPS.

    The change is from the default on the same series with the same seed, in the mean over series;
    then the mean over the seeds that both were run with, whose error is `standard error`. Without
    the default both are missing. Means of variants that were run on other `series` than the
    default are not to be compared with its own.
    """
    keys, ratio = ["variant", "drawn"], "CRPS ratio"
    measures = [ratio, "MAE ratio", "coverage 50", "coverage 90", "fit s"]
    runs = frame.set_index([*keys, "seed", "series"])[measures]
    default = runs.loc[runs.index.get_level_values("variant") == "default", ratio]
    both = runs[[ratio]].join(default.droplevel("variant").rename("default"))
    change = (both[ratio] - both["default"]).groupby([*keys, "seed"], sort=False).mean()
    changes = change.groupby(keys, sort=False)
    by_seed = runs.groupby([*keys, "seed"], sort=False).mean()
    table = by_seed.groupby(keys, sort=False).mean()
    counts = frame.groupby(keys, sort=False)[["seed", "series"]].nunique()
    table.insert(0, "seeds", counts["seed"])
    table.insert(1, "series", counts["series"])
    table.insert(3, "over default", changes.mean())
    table.insert(4, "standard error", changes.sem())
    return table.reset_index()


def main() -> None:
    """Run the variants and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pools", nargs="+", choices=POOLS, default=list(POOLS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--done", action="store_true", help="a table of what is there, no training")
    arguments = parser.parse_args()
    quiet()
    # Runs at the same time keep files of their own; all that is there becomes one at the end.
    store, before, rows = Store(RESULTS / "levers"), known(), []
    runs: dict[Key, list[dict[str, Any]]] = {}
    for seed in range(arguments.seeds):
        for variant in arguments.variants:
            for name in arguments.pools:
                found = store.get(name, variant, seed) or before.get((name, variant, seed))
                if found is None and arguments.done:
                    continue
                if found is None:
                    found = store.put(
                        measure(load(name), VARIANTS[variant], seed), name, variant, seed
                    )
                rows += [{"variant": variant, **row} for row in found]
                last = [row for row in found if row["drawn"] == "antithetic"]
                ratio = np.mean([row["CRPS ratio"] for row in last])
                print(f"  seed {seed}, {name}, {variant}: CRPS ratio {ratio:.4f}", flush=True)
                runs[name, variant, seed] = found
    # Another process may have written since.
    keep(known() | runs)
    text = table_of(pd.DataFrame(rows)).to_markdown(floatfmt=".3f", index=False)
    (RESULTS / "levers.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
