"""The search space of tuning: what Optuna may choose of a KronosModel, and from which range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, lcm
from typing import Any

import optuna

from darts_kronos.hub import SOURCES, names_weights
from darts_kronos.nn.config import CROSS_ATTENTION_HEADS, size_named
from darts_kronos.parameters import AUGMENTATION, DEFAULT_SIZE, SAMPLING, learning_rates

OPTIMISERS = ("optimizer_kwargs", "tokenizer_optimizer_kwargs")
"""Parameters that are dicts: a user's values replace single values of a trial's."""

TOP_KS = (None, 10, 50)
"""Values of `top_k` that are tried; None keeps all tokens."""

_HEADS = 4
_WIDTHS = {"d_model": (48, 160), "tokenizer_d_model": (32, 128)}
_RATES = (1 / 6, 2.0)
"""Learning rates that are tried, over the default one."""

_DECIDES_TOKENS = {
    *("input_chunk_length", "output_chunk_length", "size", "representation", "clip"),
    *("s1_bits", "s2_bits", "beta", "gamma0", "gamma", "zeta", "n_epochs_tokenizer"),
    *AUGMENTATION,
    *SOURCES,
    "enable_finetuning",
}


def decides_tokens(name: str) -> bool:
    """Whether a parameter decides what tokens a model writes, and so what its loss means.

    The predictor's loss is the cross entropy of tokens. Fewer bits, or a tokenizer that uses few
    of its codes, make tokens that are easy to guess and say little of a candle. So losses can be
    compared between models whose tokenizers were made alike, and between no others.
    """
    return name in _DECIDES_TOKENS or name.startswith("tokenizer_")


def suggest_parameters(
    trial: optuna.Trial, fixed: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A point of the whole search space: both stages, and the sampling of paths.

    The ranges suit some thousand to some hundred thousand candles, and the size "nano". With
    another `size` among the fixed parameters, or with weights to start from, the shape of the
    networks and the bits are theirs, and learning rates lie around the default ones there. Of a
    stage that is left out (0 epochs), what only its training feels is not suggested.

    Parameters
    ----------
    trial
        The trial that asks.
    fixed
        Parameters of the model that are given. No value is suggested for them.

    Returns
    -------
    dict
        Parameters of a :class:`~darts_kronos.KronosModel`, all but the two chunk lengths.
    """
    return {
        **suggest_tokenizer(trial, fixed),
        **suggest_predictor(trial, fixed),
        **suggest_sampling(trial, fixed),
    }


def suggest_tokenizer(
    trial: optuna.Trial, fixed: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The tokenizer stage: bits of both tokens, width, epochs, learning rate.

    See :func:`suggest_parameters`.
    """
    fixed = fixed or {}
    found: dict[str, Any] = {}
    if not _has_shape(fixed):
        for name, (low, high) in {"s1_bits": (5, 9), "s2_bits": (4, 8)}.items():
            if name not in fixed:
                found[name] = trial.suggest_int(name, low, high)
        found |= _shape(trial, fixed, "tokenizer_")
    limits = fixed.get("tokenizer_trainer_kwargs") or {}
    if "n_epochs_tokenizer" not in fixed and "max_epochs" not in limits:
        found["n_epochs_tokenizer"] = trial.suggest_int("n_epochs_tokenizer", 2, 12, log=True)
    return found | _rate(trial, fixed, "tokenizer_")


def suggest_predictor(
    trial: optuna.Trial, fixed: Mapping[str, Any] | None = None, epochs: bool = True
) -> dict[str, Any]:
    """The predictor stage: width, blocks, dropout, epochs if wanted, learning rate.

    See :func:`suggest_parameters`.
    """
    fixed = fixed or {}
    found: dict[str, Any] = {}
    if not _has_shape(fixed):
        found |= _shape(trial, fixed, "")
        if "n_layers" not in fixed:
            found["n_layers"] = trial.suggest_int("n_layers", 2, 5)
    free = [name for name in ("ffn_dropout", "resid_dropout") if name not in fixed]
    trains = fixed.get("n_epochs") != 0
    if free and trains:
        found |= dict.fromkeys(free, trial.suggest_float("dropout", 0.0, 0.4))
    if "token_dropout" not in fixed and trains:
        found["token_dropout"] = trial.suggest_float("token_dropout", 0.0, 0.2)
    given = "n_epochs" in fixed or "max_epochs" in (fixed.get("pl_trainer_kwargs") or {})
    if epochs and not given:
        found["n_epochs"] = trial.suggest_int("n_epochs", 1, 8, log=True)
    return found | _rate(trial, fixed, "")


def suggest_sampling(
    trial: optuna.Trial,
    fixed: Mapping[str, Any] | None = None,
    top_ks: Sequence[int | None] = TOP_KS,
) -> dict[str, Any]:
    """How paths are drawn: temperature, `top_p` and `top_k`, which need no training.

    See :func:`suggest_parameters`; `top_ks` are the values of `top_k` to choose from.
    """
    fixed = fixed or {}
    found: dict[str, Any] = {}
    if "temperature" not in fixed:
        found["temperature"] = trial.suggest_float("temperature", 0.7, 1.5)
    if "top_p" not in fixed:
        found["top_p"] = trial.suggest_float("top_p", 0.9, 1.0)
    if "top_k" not in fixed:
        found["top_k"] = trial.suggest_categorical("top_k", top_ks)
    return found


def default_point(fixed: Mapping[str, Any]) -> dict[str, Any]:
    """The point of the space at which the default model lies, but for the numbers of epochs."""
    tokenizer_lr, predictor_lr = _default_rates(fixed)
    point = {
        "tokenizer_lr": tokenizer_lr,
        "lr": predictor_lr,
        **sampling_point({"temperature": 1.0, "top_p": None, "top_k": None}),
    }
    if names_weights(fixed):
        return point
    size = size_named(fixed.get("size") or DEFAULT_SIZE)
    return point | {
        "s1_bits": size.tokenizer.s1_bits,
        "s2_bits": size.tokenizer.s2_bits,
        "tokenizer_d_model": size.tokenizer.d_model,
        "d_model": size.predictor.d_model,
        "n_layers": size.predictor.n_layers,
        "dropout": size.predictor.ffn_dropout,
        "token_dropout": size.predictor.token_dropout,
    }


def sampling_point(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The point of the space at which a model's sampling lies."""
    point = {name: sampling[name] for name in SAMPLING if name in sampling}
    # No filter is the one that keeps all probability.
    return point | {"top_p": 1.0 if point["top_p"] is None else point["top_p"]}


def _has_shape(fixed: Mapping[str, Any]) -> bool:
    """Whether something given, a size or weights, says what shape the networks have."""
    return fixed.get("size") is not None or names_weights(fixed)


def _default_rates(fixed: Mapping[str, Any]) -> tuple[float, float]:
    """Learning rates of tokenizer and predictor where none is given."""
    return learning_rates({"size": None, "lora": None, **fixed})


def _shape(trial: optuna.Trial, fixed: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Width, with heads and feed-forward width that go with it."""
    width, heads, ff_dim = (f"{prefix}{name}" for name in ("d_model", "n_heads", "ff_dim"))
    if width in fixed:
        return {}
    found = {heads: fixed.get(heads) or _HEADS}
    # Rotary positions need an even number of channels in each head, in the predictor's cross
    # attention too.
    unit = lcm(2 * found[heads], 1 if prefix else 2 * CROSS_ATTENTION_HEADS)
    low, high = _WIDTHS[width]
    low = unit * ceil(low / unit)
    found[width] = trial.suggest_int(width, low, max(low, high // unit * unit), step=unit)
    found[ff_dim] = 2 * found[width]
    return {name: value for name, value in found.items() if name not in fixed}


def _rate(trial: optuna.Trial, fixed: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The learning rate of a stage that trains, in the parameter that holds it."""
    epochs = "n_epochs_tokenizer" if prefix else "n_epochs"
    if "lr" in (fixed.get(f"{prefix}optimizer_kwargs") or {}) or fixed.get(epochs) == 0:
        return {}
    return rate_about(trial, prefix, _default_rates(fixed)[0 if prefix else 1])


def rate_about(trial: optuna.Trial, prefix: str, rate: float) -> dict[str, Any]:
    """A learning rate about `rate`, in the parameter of the stage that `prefix` names."""
    low, high = (share * rate for share in _RATES)
    found = trial.suggest_float(f"{prefix}lr", low, high, log=True)
    return {f"{prefix}optimizer_kwargs": {"lr": found}}


def with_fixed(suggested: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a trial's model: those that are fixed, else those suggested."""
    merged = {**suggested, **fixed}
    for name in OPTIMISERS:
        ours, given = suggested.get(name), fixed.get(name)
        if isinstance(ours, Mapping) and isinstance(given, Mapping | None):
            merged[name] = {**ours, **(given or {})}
    return merged
