"""Forecasters that are trained: KronosModel, and Darts' LSTM, TFT, NLinear and LightGBM.

Each baseline sees bars as scaled prices, as returns (log open, high, low, close over the close
before, scaled by the training part) or as returns over the volatility of each context, Kronos
returns mirrored or as they are; the best on validation is reported.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from darts import TimeSeries
from darts.dataprocessing.transformers import Scaler
from darts.models import BlockRNNModel, LightGBMModel, NLinearModel, TFTModel
from darts.utils.likelihood_models.torch import QuantileRegression
from pytorch_lightning.callbacks import EarlyStopping

from darts_kronos import KronosModel
from darts_kronos.simulate import pretrain
from darts_kronos.trading_calendar import stamp_series
from evaluation.baselines import SAMPLES
from evaluation.data import CONTEXT, HORIZON, PRICES, Pool
from evaluation.measures import CLOSE
from evaluation.store import RESULTS, Store

QUANTILES = [0.005, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975, 0.995]
"""Of the baselines. Darts draws nothing beyond the outer ones, so they lie far out."""

PATIENCE = 3
"""Epochs without progress on validation after which a baseline's training stops."""


@dataclass(frozen=True)
class Candidate:
    """A model's configuration: what tuning chooses from.

    Attributes
    ----------
    model
        Name of the model.
    view
        How it sees bars: "prices", "returns" or "own returns", these over the volatility of each
        context; Kronos "mirrored" or "as seen" in training.
    config
        Values of the model's parameters.
    """

    model: str
    view: str
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """A name for files and tables."""
        values = ",".join(f"{key}={value}" for key, value in self.config.items())
        return f"{self.model} [{self.view}] {values}".strip()


CONFIGS: dict[str, list[dict[str, Any]]] = {
    "Kronos": [
        {"pretrained": True},
        {"pretrained": True, "s1_bits": 8, "s2_bits": 8},
        {},
    ],
    "LSTM": [
        {"hidden_dim": 32, "dropout": 0.1, "lr": 1e-3},
        {"hidden_dim": 64, "dropout": 0.3, "lr": 1e-3},
        {"hidden_dim": 32, "dropout": 0.3, "lr": 3e-3},
    ],
    "TFT": [
        {"hidden_size": 16, "dropout": 0.1, "lr": 1e-3},
        {"hidden_size": 32, "dropout": 0.3, "lr": 1e-3},
        {"hidden_size": 16, "dropout": 0.3, "lr": 3e-3},
    ],
    "NLinear": [{"lr": 1e-4}, {"lr": 1e-3}, {"lr": 1e-3, "const_init": False}],
    "LightGBM": [
        {"lags": 24, "n_estimators": 50, "num_leaves": 7},
        {"lags": 12, "n_estimators": 100, "num_leaves": 3},
        {"lags": 24, "n_estimators": 30, "num_leaves": 15},
    ],
}
"""As many for each model: the tuning budget."""

QUICK_KRONOS: dict[str, Any] = {"pretrained": True, "n_series": 16}
"""The one configuration of a quick run, which has no time for more simulated candles."""

HOW_TO_FIT = ("pretrained", "n_series", "load_best")
"""Values in a configuration of Kronos that are no parameters of the model: whether it starts from
simulated candles, from how many series of them, and whether it keeps its best epoch."""


def configs(model: str, budget: int, quick: bool) -> list[dict[str, Any]]:
    """The configurations of a model that are tried."""
    return [QUICK_KRONOS] if quick and model == "Kronos" else CONFIGS[model][:budget]


def views(model: str, quick: bool) -> list[str]:
    """How a model may see bars; in a quick run Kronos as it does by default.

    By prices the baselines are so much worse that a quick run can do without.
    """
    if model == "Kronos":
        return ["mirrored"] if quick else ["mirrored", "as seen"]
    return ["returns", "own returns"] if quick else ["returns", "prices", "own returns"]


class Fitted:
    """A candidate, trained on a pool.

    Parameters
    ----------
    candidate
        What to train.
    pool
        Its training and validation parts are used.
    seed
        Of the model's random state.
    most_epochs
        Of the baselines that are networks; they stop early.
    keep
        Whether a Kronos that was fitted before, by this name on this pool, is taken as it is.
    """

    def __init__(
        self,
        candidate: Candidate,
        pool: Pool,
        seed: int,
        most_epochs: int = 20,
        keep: bool = False,
    ):
        self.candidate = candidate
        self.whole = candidate.model != "LightGBM"
        self.scaler: Scaler | None = None
        self.scale = 1.0
        if candidate.view == "prices":
            self.scaler = Scaler().fit([self._priced(s) for s in pool.train])
        elif candidate.view == "returns":
            closes = [np.log(s["close"].values()[:, 0]) for s in pool.train]
            self.scale = 1 / float(np.std(np.concatenate([np.diff(close) for close in closes])))
        # Pretraining serves all pools; each fit counts it in full.
        pretrained = candidate.config.get("pretrained")
        before = _pretrained(candidate.config, seed)[1] if pretrained else 0.0

        def fit() -> Any:
            (train, stamps), (val, val_stamps) = map(self._to_learn, (pool.train, pool.val))
            covariates = {}
            if candidate.model == "TFT":
                covariates = {"future_covariates": stamps, "val_future_covariates": val_stamps}
            return _MAKERS[candidate.model](candidate, train, val, covariates, seed, most_epochs)

        if keep and candidate.model == "Kronos":
            path, seconds = _kept("fits", (pool.name, candidate.name, seed), fit)
            self.model = KronosModel.load(path)
        else:
            started = time.perf_counter()
            self.model = fit()
            seconds = time.perf_counter() - started
        self.fit_seconds = before + seconds
        self.val = pool.val

    @property
    def n_parameters(self) -> int | None:
        """Trainable numbers; None for trees."""
        module = getattr(self.model, "model", None)
        if not isinstance(module, torch.nn.Module):
            return None
        return sum(parameter.numel() for parameter in module.parameters())

    def calibrate(self, stride: int) -> tuple[str, float]:
        """Choose how Kronos draws its paths, by CRPS on the validation part.

        Returns
        -------
        tuple
            What was chosen, in words, and the seconds it took; of other models "" and 0: how they
            draw is a part of what they have learned.
        """
        if self.candidate.model != "Kronos":
            return "", 0.0
        started = time.perf_counter()
        self.model.calibrate(self.val, antithetics=(False, True), stride=stride, verbose=False)
        chosen = self.model.sampling
        words = [f"temperature {chosen['temperature']}"]
        words += ["in pairs"] if chosen["antithetic"] else []
        words += [f"top_p {chosen['top_p']}"] if chosen["top_p"] is not None else []
        return ", ".join(words), time.perf_counter() - started

    def _priced(self, series: TimeSeries) -> TimeSeries:
        return series[PRICES] if self.whole else series["close"]

    def _seen(self, series: Sequence[TimeSeries]) -> list[TimeSeries]:
        """The series as the model sees them; "own returns" are these before they are scaled."""
        if self.candidate.model == "Kronos":
            return list(series)
        if self.scaler is not None:
            return list(self.scaler.transform([self._priced(s) for s in series]))
        seen = []
        for one in series:
            log = np.log(one[PRICES].values())
            returns = (log[1:] - log[:-1, CLOSE:]) * self.scale
            returns = returns if self.whole else returns[:, CLOSE:]
            seen.append(self._priced(one)[1:].with_values(returns))
        return seen

    def _to_learn(self, series: Sequence[TimeSeries]) -> tuple[list[TimeSeries], list[TimeSeries]]:
        """What the model learns from, and the calendar stamps of each."""
        seen = self._seen(series)
        stamps = [_stamps(one) for one in seen] if self.candidate.model == "TFT" else []
        if self.candidate.view != "own returns":
            return seen, stamps
        cuts = [_own_windows(one, 1, CONTEXT - 1 + HORIZON)[0] for one in seen]
        pairs = zip(cuts, stamps, strict=True) if stamps else ()
        return sum(cuts, []), [stamp for cut, stamp in pairs for _ in cut]

    def paths(self, series: Sequence[TimeSeries], stride: int) -> list[np.ndarray]:
        """Sample paths of each series' forecasts, (W, n, 4 or 1, S), in its own units."""
        pairs = zip(series, self._seen(series), strict=True)
        return [self._paths(i, raw, seen, stride) for i, (raw, seen) in enumerate(pairs)]

    def _paths(self, i: int, raw: TimeSeries, seen: TimeSeries, stride: int) -> np.ndarray:
        covariates: dict[str, Any] = {}
        if self.candidate.model == "TFT":
            covariates["future_covariates"] = _stamps(seen)
        kwargs = {"num_samples": SAMPLES, "verbose": False, "show_warnings": False}
        if self.candidate.view == "own returns":
            contexts, scale = _own_windows(seen, stride, CONTEXT - 1)
            covariates = {name: [one] * len(contexts) for name, one in covariates.items()}
            forecasts = self.model.predict(HORIZON, series=contexts, **covariates, **kwargs)
            return self._in_prices(forecasts, i, raw, scale[:, None, None, None])
        forecasts = self.model.historical_forecasts(
            seen,
            start=seen.end_time() - len(raw) + 1 + CONTEXT,
            forecast_horizon=HORIZON,
            stride=stride,
            retrain=False,
            last_points_only=False,
            **covariates,
            **kwargs,
        )
        return self._in_prices(forecasts, i, raw)

    def _in_prices(
        self, forecasts: list[TimeSeries], i: int, raw: TimeSeries, units: np.ndarray | float = 1.0
    ) -> np.ndarray:
        """Forecasts of the model's as prices; each window's are in its `units` of `scale`."""
        if self.candidate.model == "Kronos":
            return np.stack([one[PRICES].all_values() for one in forecasts])
        if self.scaler is not None:
            back = [self.scaler.inverse_transform(one, idx_params=i) for one in forecasts]
            return np.stack([one.all_values() for one in back])
        returns = np.stack([one.all_values() for one in forecasts]) * units / self.scale
        closes = returns[:, :, -1:].cumsum(axis=1)
        first = raw.start_time()
        known = raw["close"].values()[:, 0]
        last = np.array([known[one.start_time() - first - 1] for one in forecasts])
        return last[:, None, None, None] * np.exp(closes - returns[:, :, -1:] + returns)


def _own_windows(
    returns: TimeSeries, stride: int, length: int
) -> tuple[list[TimeSeries], np.ndarray]:
    """The first `length` bars of each window, over the volatility of its context, and these, (W,).

    The windows are those of ``evaluation.data.windows``, but that the first bar of each has no
    return.
    """
    values = returns.values(copy=False)
    found, volatility = [], []
    for first in range(0, len(returns) - CONTEXT - HORIZON + 2, stride):
        deviation = float(values[first : first + CONTEXT - 1, -1].std())
        # Closes that stand still, or grow evenly, differ by rounding alone.
        deviation = deviation if deviation > 1e-8 else 1.0
        found.append(returns[first : first + length] / deviation)
        volatility.append(deviation)
    return found, np.array(volatility)


def _stamps(series: TimeSeries) -> TimeSeries:
    """Calendar stamps of a series and of a horizon more, scaled to about 1."""
    stamped = stamp_series(series, HORIZON)
    assert stamped is not None
    return stamped.with_values(stamped.values() / np.array([60.0, 24.0, 7.0, 31.0, 12.0]))


def _torch_kwargs(config: dict[str, Any], seed: int, most_epochs: int) -> dict[str, Any]:
    return {
        "input_chunk_length": CONTEXT - 1,
        "output_chunk_length": HORIZON,
        "likelihood": QuantileRegression(QUANTILES),
        "n_epochs": most_epochs,
        "batch_size": 64,
        "optimizer_kwargs": {"lr": config["lr"]},
        "random_state": seed,
        "save_checkpoints": True,
        "force_reset": True,
        "work_dir": tempfile.mkdtemp(),
        "pl_trainer_kwargs": {
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [EarlyStopping("val_loss", patience=PATIENCE)],
        },
    }


def _network(cls: type) -> Callable[..., Any]:
    def make(
        candidate: Candidate,
        train: list[TimeSeries],
        val: list[TimeSeries],
        covariates: dict[str, list[TimeSeries]],
        seed: int,
        most_epochs: int,
    ) -> Any:
        own = {key: value for key, value in candidate.config.items() if key != "lr"}
        model = cls(**_torch_kwargs(candidate.config, seed, most_epochs), **own)
        return model.fit(train, val_series=val, load_best=True, **covariates)

    return make


def _lstm(**kwargs: Any) -> BlockRNNModel:
    return BlockRNNModel(model="LSTM", n_rnn_layers=2, **kwargs)


def _nlinear(**kwargs: Any) -> NLinearModel:
    # Darts has no probabilistic one that takes off the last value; returns need none.
    return NLinearModel(normalize=False, **kwargs)


def _light_gbm(
    candidate: Candidate,
    train: list[TimeSeries],
    val: list[TimeSeries],
    covariates: dict[str, list[TimeSeries]],
    seed: int,
    most_epochs: int,
) -> LightGBMModel:
    model = LightGBMModel(
        output_chunk_length=HORIZON,
        likelihood="quantile",
        quantiles=QUANTILES,
        random_state=seed,
        verbose=-1,
        n_jobs=1,
        **candidate.config,
    )
    return model.fit(train, max_samples_per_ts=1 if candidate.view == "own returns" else None)


def _parameters(config: dict[str, Any]) -> dict[str, Any]:
    """What of a configuration of Kronos are parameters of the model."""
    return {name: value for name, value in config.items() if name not in HOW_TO_FIT}


def _kept(folder: str, key: tuple[Any, ...], train: Callable[[], KronosModel]) -> tuple[str, float]:
    """The file of a model that is trained once, and the seconds that took."""
    store = Store(RESULTS / folder)
    path = store.path(*key, suffix=".pt")
    if store.get(*key) is None:
        started = time.perf_counter()
        train().save(str(path))
        store.put(time.perf_counter() - started, *key)
    return str(path), store.get(*key)


def _pretrained(config: dict[str, Any], seed: int) -> tuple[str, float]:
    """The file of a Kronos pretrained on simulated candles, for all pools, and its seconds."""
    own = _parameters(config)
    amount = {"n_series": config["n_series"]} if "n_series" in config else {}
    key = ",".join(f"{name}={value}" for name, value in sorted((own | amount).items())), seed

    def train() -> KronosModel:
        return pretrain(_new_kronos(own, seed), seed=seed, verbose=False, **amount)

    return _kept("pretrained", key, train)


def _new_kronos(config: dict[str, Any], seed: int) -> KronosModel:
    return KronosModel(
        **{
            "input_chunk_length": CONTEXT,
            "output_chunk_length": HORIZON,
            "random_state": seed,
            "pl_trainer_kwargs": {
                "accelerator": "cpu",
                "enable_progress_bar": False,
                "enable_model_summary": False,
            },
            **config,
        }
    )


def _kronos(
    candidate: Candidate,
    train: list[TimeSeries],
    val: list[TimeSeries],
    covariates: dict[str, list[TimeSeries]],
    seed: int,
    most_epochs: int,
) -> KronosModel:
    own = _parameters(candidate.config)
    load_best = candidate.config.get("load_best", False)
    if candidate.config.get("pretrained"):
        model = KronosModel.load(_pretrained(candidate.config, seed)[0])
    elif load_best:
        work_dir = tempfile.mkdtemp()
        model = _new_kronos({**own, "save_checkpoints": True, "work_dir": work_dir}, seed)
    else:
        model = _new_kronos(own, seed)
    if candidate.view == "as seen":
        model.set_augmentation(mirror=0.0)
    return model.fit(train, val_series=val, load_best=load_best)


_MAKERS: dict[str, Callable[..., Any]] = {
    "Kronos": _kronos,
    "LSTM": _network(_lstm),  # type: ignore[arg-type]
    "TFT": _network(TFTModel),
    "NLinear": _network(_nlinear),  # type: ignore[arg-type]
    "LightGBM": _light_gbm,
}
