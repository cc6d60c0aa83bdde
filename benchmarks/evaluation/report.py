"""Tables, JSON and pictures of the accuracy benchmark."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from arch.bootstrap import MCS
from matplotlib.figure import Figure
from scipy import stats

from evaluation.baselines import ORACLE
from evaluation.har import NAME as HAR
from evaluation.measures import LEVELS, Scores, diebold_mariano, directional_accuracy

WALKS = ("random walk", "EWMA walk")
"""CRPS is measured over the better of these bands."""

Results = dict[str, dict[str, list[dict[str, Any]]]]


_BELOW: dict[str, Any] = {"loc": "outside lower center", "ncols": 5, "frameon": False}
"""Where a legend hides nothing that is drawn."""

RIVALS = ("LSTM", "TFT")
"""The networks that Kronos is compared with by name."""

SIMPLER = ("LightGBM", HAR)
"""Forecasters that are no networks, and near it."""

TESTED = (*RIVALS, *SIMPLER)
"""The forecasters that it is tested against by name, beside the bands."""


def write_tuning(found: dict[str, dict[str, dict[str, float]]], out: Path) -> None:
    """Write tuning.md and tuning.json to `out`, and print the table.

    Parameters
    ----------
    found
        Pool -> model -> configuration -> its CRPS on the validation part.
    out
        Folder to write to.
    """
    # One ten-thousandth of the close is the field's unit, and reads well on minutes and on days.
    rows = [
        {"pool": pool, "model": model, "configuration": name, "CRPS, basis points": crps * 1e4}
        | {"chosen": "chosen" if crps == min(losses.values()) else ""}
        for pool, models in found.items()
        for model, losses in models.items()
        for name, crps in losses.items()
    ]
    text = pd.DataFrame(rows).to_markdown(floatfmt=".2f", index=False)
    (out / "tuning.md").write_text(text + "\n")
    (out / "tuning.json").write_text(json.dumps(found, indent=1) + "\n")
    print(text)


def write(results: Results, out: Path, overlap: int) -> None:
    """Write report.md, report.json and three pictures to `out`, and print the tables.

    Parameters
    ----------
    results
        Pool -> model -> a result for each seed.
    out
        Folder to write to.
    overlap
        Neighbouring forecasts that share bars, themselves included.
    """
    rows = _by_series(results, overlap)
    frame = pd.DataFrame(rows)
    summary = _summary(frame)
    costs = _costs(results)
    machine = (
        f"{platform.machine()}, {torch.get_num_threads()} threads, Python "
        f"{platform.python_version()}, torch {torch.__version__}"
    )
    seconds = sum(
        one["fit_seconds"] + one["forecast_seconds"]
        for models in results.values()
        for found in models.values()
        for one in found
    )
    text = [
        f"Fits and forecasts of the test part took {seconds / 60:.0f} minutes on {machine}; "
        "pretraining, where there is one, is counted in each fit, tuning is not counted.",
        "## Mean over the series",
        summary.to_markdown(floatfmt=".3f"),
        "## Coverage over all windows of all series, and at the steps where it is least and most",
        _steps(results).to_markdown(floatfmt=".3f"),
        *_rivals(frame),
        "## By series",
        frame[["series", "model", *_SHOWN]].to_markdown(floatfmt=".3f", index=False),
        "## Fit and forecast",
        costs.to_markdown(floatfmt=("", "", "", ".1f", ".1f", ".0f"), index=False),
    ]
    (out / "report.md").write_text("\n\n".join(text) + "\n")
    (out / "report.json").write_text(
        json.dumps(
            {
                "seconds": seconds,
                "machine": machine,
                "series": rows,
                "summary": json.loads(summary.to_json(orient="index")),
            },
            indent=1,
        )
    )
    print("\n\n".join(text[:-4]))
    _reliability(results).savefig(out / "reliability.png", dpi=110)
    _coverage_by_step(results).savefig(out / "coverage_by_step.png", dpi=110)
    _skill(frame).savefig(out / "crps_skill.png", dpi=110)
    print(f"\nwritten to {out}: report.md, report.json and three pictures")


_SHOWN = [
    "MAE ratio",
    "RMSE ratio",
    "CRPS ratio",
    "coverage 50",
    "coverage 90",
    "Winkler 90 ratio",
    "energy ratio",
    "volatility MAE ratio",
    "volatility R2",
    "direction",
    "forecast to rise",
    "rose",
    "IC",
    "rank IC",
    "valid candles",
    "direction p",
    "DM p (walk)",
    "in MCS",
]


def _mean(results: list[dict[str, Any]], symbol: str, name: str) -> np.ndarray:
    """A measure (W, ...) of a series, the mean over seeds."""
    return np.mean([getattr(result["scores"][symbol], name) for result in results], axis=0)


def _nested(results: list[dict[str, Any]], symbol: str, name: str, level: str) -> np.ndarray:
    return np.mean([getattr(r["scores"][symbol], name)[level] for r in results], axis=0)


def _by_series(results: Results, overlap: int) -> list[dict[str, Any]]:
    rows = []
    for pool, models in results.items():
        for symbol in models[WALKS[0]][0]["scores"]:
            losses = {
                name: _mean(found, symbol, "crps").mean(axis=1) for name, found in models.items()
            }
            walk = min(WALKS, key=lambda name: losses[name].mean())
            # The oracle is no forecaster that others could be confused with.
            included = _model_confidence_set(
                {name: loss for name, loss in losses.items() if name != ORACLE}, overlap
            )
            for name, found in models.items():
                rows.append(
                    {
                        "pool": pool,
                        "series": symbol,
                        "model": name,
                        "seeds": len(found),
                        "windows": len(losses[name]),
                        **_measures(models, name, symbol, walk, overlap),
                        "DM p (walk)": _one_sided(losses[name], losses[walk], overlap),
                        **{
                            f"DM p ({other})": _one_sided(losses[name], losses[other], overlap)
                            for other in TESTED
                            if other in losses
                        },
                        "in MCS": name in included,
                    }
                )
    return rows


def _one_sided(ours: np.ndarray, theirs: np.ndarray, overlap: int) -> float:
    """p-value of "ours is no better"."""
    statistic, both = diebold_mariano(ours, theirs, overlap)
    return float("nan") if np.isnan(both) else both / 2 if statistic < 0 else 1 - both / 2


def _model_confidence_set(losses: dict[str, np.ndarray], overlap: int) -> set[str]:
    frame = pd.DataFrame(losses)
    mcs = MCS(frame, size=0.1, block_size=max(2, 2 * overlap), seed=0)
    mcs.compute()
    return set(mcs.included)


def _measures(
    models: dict[str, list[dict[str, Any]]], name: str, symbol: str, walk: str, overlap: int
) -> dict[str, float]:
    found = models[name]
    bands: Scores = models[walk][0]["scores"][symbol]
    ewma: Scores = models["EWMA walk"][0]["scores"][symbol]
    per_seed = [result["scores"][symbol].crps.mean() / bands.crps.mean() for result in found]
    volatility, actual = _mean(found, symbol, "volatility"), ewma.actual_volatility
    predicted, came = _mean(found, symbol, "predicted"), ewma.actual
    direction, direction_p = directional_accuracy(predicted, came, overlap)
    moves = np.ptp(predicted) > 0

    def over(name: str, reference: Scores) -> float:
        return float(_mean(found, symbol, name).mean() / getattr(reference, name).mean())

    out = {
        # Over the errors of the last close: what a random walk says of every price to come.
        "MAE ratio": float(_mean(found, symbol, "absolute").mean() / np.abs(bands.naive).mean()),
        "RMSE ratio": float(
            np.sqrt(_mean(found, symbol, "squared").mean() / np.mean(bands.naive**2))
        ),
        "CRPS ratio": float(np.mean(per_seed)),
        "CRPS ratio, spread over seeds": float(
            np.std(per_seed, ddof=1) if len(per_seed) > 1 else np.nan
        ),
    }
    for level in LEVELS:
        key = f"{level:.0%}"
        out[f"coverage {key[:-1]}"] = float(_nested(found, symbol, "inside", key).mean())
        out[f"Winkler {key[:-1]} ratio"] = float(
            _nested(found, symbol, "winkler", key).mean() / bands.winkler[key].mean()
        )
    error = np.abs(volatility - actual)
    return out | {
        "energy ratio": over("energy", bands),
        "volatility MAE ratio": float(error.mean() / np.abs(ewma.volatility - actual).mean()),
        "volatility MAE over bands'": float(
            error.mean() / np.abs(bands.volatility - actual).mean()
        ),
        "volatility R2": float(
            1 - ((volatility - actual) ** 2).sum() / ((actual - actual.mean()) ** 2).sum()
        ),
        "direction": direction,
        "direction p": direction_p,
        "forecast to rise": float((predicted > 0).mean()),
        "rose": float((came > 0).mean()),
        "IC": float(np.corrcoef(predicted, came)[0, 1]) if moves else float("nan"),
        "rank IC": float(stats.spearmanr(predicted, came)[0]) if moves else float("nan"),
        "valid candles": float(np.mean([result["scores"][symbol].valid for result in found])),
    }


def _summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over series, with the standard error of the CRPS ratio."""
    grouped = frame.groupby("model", sort=False)
    summary = grouped[[*_SHOWN[: _SHOWN.index("direction p")]]].mean()
    error = grouped["CRPS ratio"].std() / np.sqrt(grouped["CRPS ratio"].count())
    summary.insert(3, "standard error", error)
    summary["better than bands (p < .05)"] = grouped["DM p (walk)"].agg(lambda p: (p < 0.05).sum())
    summary["in MCS"] = grouped["in MCS"].sum()
    summary["series"] = grouped["series"].count()
    counts = ["better than bands (p < .05)", "in MCS", "series"]
    summary[counts] = summary[counts].astype(int).astype(str)
    return summary


def _steps(results: Results) -> pd.DataFrame:
    """Coverage over all windows of all series: of all steps, of the least and of the most."""
    columns = {}
    for level in LEVELS:
        for name, inside in _pooled(results, f"{level:.0%}").items():
            columns.setdefault(name, {})[f"{level:.0%}"] = inside.mean()
            columns[name][f"least {level:.0%}"] = inside.min()
            columns[name][f"most {level:.0%}"] = inside.max()
    return pd.DataFrame(columns).T


def _rivals(frame: pd.DataFrame) -> list[str]:
    """Kronos' CRPS over others', with Diebold-Mariano tests, by series."""
    ours = frame[frame["model"] == "Kronos"].set_index("series")
    theirs = frame[frame["model"].isin(RIVALS)].groupby("series")["CRPS ratio"].min()
    if ours.empty or theirs.empty:
        return []
    tests = [f"DM p ({name})" for name in TESTED if f"DM p ({name})" in ours]
    table = ours.loc[theirs.index, tests]
    crps = frame.pivot(index="series", columns="model", values="CRPS ratio")
    table.insert(0, "CRPS over the better", crps["Kronos"] / theirs)
    table.insert(1, f"{ORACLE}, CRPS over the better", crps[ORACLE] / theirs)
    simpler = [name for name in SIMPLER if name in crps]
    for i, name in enumerate(simpler):
        table.insert(2 + i, f"CRPS over {name}'s", crps["Kronos"] / crps[name])
    table.loc["mean"] = table.mean()
    table.loc["mean", tests] = np.nan
    title = f"## Kronos over the better of {' and '.join(RIVALS)}, and over {' and '.join(simpler)}"
    return [title, table.to_markdown(floatfmt=".3f")]


def _costs(results: Results) -> pd.DataFrame:
    rows = [
        {
            "pool": pool,
            "model": name,
            "chosen": found[0]["candidate"],
            "sampling of each seed": "; ".join(
                filter(None, (one.get("sampling") for one in found))
            ),
            "fit s": np.mean([one["fit_seconds"] for one in found]),
            "forecast s": np.mean([one["forecast_seconds"] for one in found]),
            "parameters": found[0]["n_parameters"],
        }
        for pool, models in results.items()
        for name, found in models.items()
    ]
    return pd.DataFrame(rows)


def _pooled(results: Results, level: str) -> dict[str, np.ndarray]:
    """Coverage by step of each forecaster, mean over all windows of all series."""
    parts: dict[str, list[np.ndarray]] = {}
    for models in results.values():
        for name, found in models.items():
            if name == ORACLE:
                continue
            for symbol in found[0]["scores"]:
                parts.setdefault(name, []).append(_nested(found, symbol, "inside", level))
    return {name: np.concatenate(inside).mean(axis=0) for name, inside in parts.items()}


def _colours(names: Iterable[str]) -> dict[str, str]:
    """The same colour for a forecaster in all pictures; Kronos' is black."""
    others = [name for name in names if name != "Kronos"]
    return {"Kronos": "black"} | {name: f"C{i}" for i, name in enumerate(others)}


def _reliability(results: Results) -> Figure:
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle=":", label="calibrated")
    pooled = [_pooled(results, f"{level:.0%}") for level in LEVELS]
    colours = _colours(pooled[0])
    for name in pooled[0]:
        actual = [inside[name].mean() for inside in pooled]
        width = 2.5 if name == "Kronos" else 1
        axes.plot(LEVELS, actual, marker="o", label=name, linewidth=width, color=colours[name])
    axes.set(xlabel="interval", ylabel="share of closes inside", xlim=(0.4, 1), ylim=(0.3, 1))
    axes.set_title("Reliability: intervals of the close, all series and steps")
    axes.legend(frameon=False)
    return figure


def _coverage_by_step(results: Results) -> Figure:
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    for axes, level in zip(figure.subplots(1, 2), LEVELS, strict=True):
        axes.axhline(level, color="0.6", linestyle=":")
        pooled = _pooled(results, f"{level:.0%}")
        colours = _colours(pooled)
        for name, inside in pooled.items():
            width = 2.5 if name == "Kronos" else 1
            steps = np.arange(1, len(inside) + 1)
            axes.plot(steps, inside, label=name, linewidth=width, color=colours[name])
        axes.set(title=f"{level:.0%} intervals of the close", xlabel="bars ahead", ylabel="inside")
    figure.legend(*axes.get_legend_handles_labels(), **_BELOW)
    return figure


def _skill(frame: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.subplots()
    table = frame.pivot(index="series", columns="model", values="CRPS ratio")
    names = [*(name for name in frame["model"].unique() if name != ORACLE), ORACLE]
    table, colours = table[[name for name in names if name in table]], _colours(names)
    for place, name in zip(np.linspace(-0.36, 0.36, len(table.columns)), table, strict=True):
        look = {"s": 60 if name == "Kronos" else 25}
        if name == ORACLE:
            place, look = 0.0, {"s": 400, "marker": "_"}
        at = np.arange(len(table)) + place
        axes.scatter(at, 1 - table[name], label=name, color=colours[name], **look)
    axes.axhline(0, color="0.6", linestyle=":")
    axes.set_xticks(np.arange(len(table)), [name.replace(" ", "\n") for name in table.index])
    axes.set_ylabel("CRPS skill over the better walk's bands")
    axes.set_ylim(bottom=max(-0.6, axes.get_ylim()[0]))
    axes.set_title("Above 0: better than the random walk's bands")
    figure.legend(*axes.get_legend_handles_labels(), **_BELOW)
    return figure
