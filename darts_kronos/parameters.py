"""The parameters of a KronosModel: defaults, checks, and the networks they ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from inspect import signature
from math import ceil, isfinite, prod
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from darts.utils.likelihood_models.torch import QuantileRegression

from darts_kronos.augmentation import Augmentation
from darts_kronos.finetuning import check_fine_tuning
from darts_kronos.generation import Sampling, check_sliding
from darts_kronos.hub import SOURCES, check_sources, names_weights
from darts_kronos.module import check_point_forecast
from darts_kronos.nn.config import KronosSize, is_number, override, size_named
from darts_kronos.representation import REPRESENTATIONS

DEFAULT_SIZE = "nano"

PREDICTOR_EPOCHS, PREDICTOR_STEPS = 2, 300
TOKENIZER_EPOCHS, TOKENIZER_STEPS = 4, 500
"""Training that is enough where the user does not say: so many epochs and steps at least."""

TUNING_EPOCHS, TUNING_STEPS, TUNING_RATE = 2, 150, 1 / 3
"""The same for a predictor that was trained before, and the share of its first learning rate."""

FINE_TUNING_TOKENIZER_RATE, FINE_TUNING_PREDICTOR_RATE = 2e-4, 4e-5
"""Learning rates where training starts from weights; the highest of those published."""

LORA_RATE = 2e-4
"""The same for LoRA's few new weights, which start from nothing; ours."""

MOST_EPOCHS = 50
"""Bound on the epochs that a small set gets to make those steps."""

ADAMW = {"betas": (0.9, 0.95), "weight_decay": 0.1}
"""Values of both stages' optimiser beside the learning rate, as published."""

PREDICTOR_GRADIENT_CLIP = 3.0
"""Norm at which stage two clips gradients, as published."""

_NOT_FOR_KRONOS = {
    "add_encoders": "calendar stamps come from the series' own index",
    "loss_fn": "it is trained on the cross entropy of tokens",
    "use_reversible_instance_norm": "`representation` says how bars are normalised",
}
"""Darts parameters that have no meaning here, and why."""

SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "point_forecast",
    "num_point_samples",
    "valid_candles",
    "anchor",
    "antithetic",
    "sliding",
)
"""Parameters that say how forecasts are drawn; they may change on a fitted model."""

AUGMENTATION = tuple(field.name for field in fields(Augmentation))
"""Parameters that say how training windows are varied."""

TRAINING_ONLY = (
    *AUGMENTATION,
    "n_epochs_tokenizer",
    "tokenizer_batch_size",
    "tokenizer_optimizer_kwargs",
    "tokenizer_trainer_kwargs",
    *SOURCES,
)
"""Parameters in which saved weights and the model that takes them may differ."""


def plain(value: Any) -> Any:
    """`value` with Python's own numbers for NumPy's, in dicts, lists and tuples too.

    A saved model may hold no others: a loader that runs no code in its file refuses them.
    """
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:
        return {key: plain(one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain(one) for one in value)
    return value


def check_parameters(params: Mapping[str, Any]) -> None:
    """Check a model's parameters, before Darts sees them.

    Parameters
    ----------
    params
        All parameters by name, those that Darts takes included.

    Raises
    ------
    ValueError
        If one is out of range or has no meaning for Kronos; the message says what is allowed.
    """
    for name, why in _NOT_FOR_KRONOS.items():
        given = params.get(name)
        if given is not None and given is not False:
            raise ValueError(f"`{name}` is not supported by KronosModel: {why}.")
    likelihood = params.get("likelihood")
    if likelihood is not None and not isinstance(likelihood, QuantileRegression):
        raise ValueError(
            f"`likelihood` must be a QuantileRegression or None, got {likelihood!r}: the model is "
            "trained on tokens, and its quantiles are those of its sample paths."
        )
    context_bounds(params["input_chunk_length"])
    for name, least in {
        "output_chunk_length": 1,
        "tokenizer_batch_size": 1,
    }.items():
        require_int(name, params[name], least)
    check_sources(params)
    check_fine_tuning(params)
    # A stage can be left out only where weights stand in for what it would have learned.
    fewest = 0 if names_weights(params) else 1
    for name, least in {"max_context": 2, "n_epochs_tokenizer": fewest}.items():
        if params[name] is not None:
            require_int(name, params[name], least)
    for name, least in {"batch_size": 1, "n_epochs": 0}.items():
        if name in params:
            require_int(name, params[name], least)
    if params["output_chunk_shift"] != 0:
        raise ValueError(
            f"`output_chunk_shift` must be 0, got {params['output_chunk_shift']!r}: sample paths "
            "start with the bar after the context."
        )
    representation = params["representation"]
    if representation is not None and representation not in REPRESENTATIONS:
        raise ValueError(
            f"`representation` must be one of {', '.join(map(repr, REPRESENTATIONS))} or None, "
            f"got {representation!r}."
        )
    clip = params["clip"]
    if not is_number(clip) or not clip > 0:
        raise ValueError(f"`clip` must be a number > 0, got {clip!r}.")
    check_augmentation({name: params[name] for name in AUGMENTATION})
    for name in ("pl_trainer_kwargs", "tokenizer_trainer_kwargs", "tokenizer_optimizer_kwargs"):
        given = params.get(name)
        if given is not None and not isinstance(given, dict):
            raise ValueError(f"`{name}` must be a dict or None, got {given!r}.")
        refuse_half_precision((given or {}).get("precision"))
    for name, taker in (
        ("tokenizer_trainer_kwargs", pl.Trainer),
        ("tokenizer_optimizer_kwargs", torch.optim.AdamW),
    ):
        taken = set(signature(taker).parameters) - {"params"}
        if unknown := sorted(set(params[name] or {}) - taken):
            raise ValueError(
                f"`{name}`: {taker.__name__} takes no {', '.join(map(repr, unknown))}; it takes "
                f"{', '.join(sorted(taken))}."
            )
    check_sampling({name: params[name] for name in SAMPLING})
    networks(params, n_components=1)


def context_bounds(input_chunk_length: object) -> tuple[int, int]:
    """Least and most bars of context of an `input_chunk_length`.

    Raises
    ------
    ValueError
        If it is neither an integer >= 1 nor a tuple of two, the second no less than the first.
    """
    if not isinstance(input_chunk_length, (tuple, list)):
        require_int("input_chunk_length", input_chunk_length, 1)
        return int(input_chunk_length), int(input_chunk_length)  # type: ignore[call-overload]
    if len(input_chunk_length) != 2:
        raise ValueError(
            "`input_chunk_length` must be an integer or a tuple (least, most), got "
            f"{input_chunk_length!r}."
        )
    least, most = input_chunk_length
    require_int("input_chunk_length[0]", least, 1)
    require_int("input_chunk_length[1]", most, int(least))
    return int(least), int(most)


def networks(params: Mapping[str, Any], n_components: int) -> KronosSize:
    """The two networks' configurations that a model's parameters ask for."""
    size = size_named(params["size"] or DEFAULT_SIZE)
    bits = {"s1_bits": params["s1_bits"], "s2_bits": params["s2_bits"]}
    tokenizer = override(
        size.tokenizer,
        n_components=n_components,
        d_model=params["tokenizer_d_model"],
        n_heads=params["tokenizer_n_heads"],
        ff_dim=params["tokenizer_ff_dim"],
        n_encoder_layers=params["tokenizer_n_layers"],
        n_decoder_layers=params["tokenizer_n_layers"],
        **{name: params[name] for name in ("beta", "gamma0", "gamma", "zeta")},
        **bits,
    )
    shape = ("d_model", "n_heads", "n_layers", "ff_dim")
    dropouts = ("ffn_dropout", "attn_dropout", "resid_dropout", "token_dropout")
    own = {name: params[name] for name in shape + dropouts}
    return replace(size, tokenizer=tokenizer, predictor=override(size.predictor, **own, **bits))


def learning_rates(params: Mapping[str, Any]) -> tuple[float, float]:
    """Learning rates of tokenizer and predictor where the user gives none."""
    if names_weights(params):
        lora = params["lora"] is not None
        return FINE_TUNING_TOKENIZER_RATE, LORA_RATE if lora else FINE_TUNING_PREDICTOR_RATE
    size = size_named(params["size"] or DEFAULT_SIZE)
    return size.tokenizer_lr, size.predictor_lr


def with_defaults(params: Mapping[str, Any]) -> dict[str, Any]:
    """`params` with the epochs and the optimisers of both stages that are not given."""
    tokenizer_lr, predictor_lr = learning_rates(params)
    tokenizer = {"lr": tokenizer_lr, **ADAMW, **(params["tokenizer_optimizer_kwargs"] or {})}
    filled = {
        "n_epochs": PREDICTOR_EPOCHS,
        **params,
        "tokenizer_optimizer_kwargs": tokenizer,
        "tokenizer_trainer_kwargs": dict(params["tokenizer_trainer_kwargs"] or {}),
    }
    if filled.get("optimizer_cls") is None:
        given = params.get("optimizer_kwargs") or {}
        filled["optimizer_cls"] = torch.optim.AdamW
        filled["optimizer_kwargs"] = {"lr": predictor_lr, **ADAMW, **given}
    return filled


def tokenizer_epochs(params: Mapping[str, Any], n_windows: int) -> int:
    """Epochs of the tokenizer stage: those given, or enough for a set of `n_windows`."""
    given: int | None = params["n_epochs_tokenizer"]
    if given is not None:
        return given
    shared, own = params.get("pl_trainer_kwargs"), params.get("tokenizer_trainer_kwargs")
    step = params["tokenizer_batch_size"] * _batches_in_step((shared or {}) | (own or {}))
    return _enough(n_windows, step, TOKENIZER_EPOCHS, TOKENIZER_STEPS)


def predictor_epochs(
    params: Mapping[str, Any], n_windows: int, batch_size: int, trained: bool
) -> int:
    """Epochs of the predictor stage that are enough for `n_windows`; 0 if the user gave some.

    A predictor that was `trained` before needs fewer.
    """
    own = params.get("pl_trainer_kwargs") or {}
    if "n_epochs" in params or "max_epochs" in own:
        return 0
    step = batch_size * _batches_in_step(own)
    if trained or names_weights(params):
        return _enough(n_windows, step, TUNING_EPOCHS, TUNING_STEPS)
    return _enough(n_windows, step, PREDICTOR_EPOCHS, PREDICTOR_STEPS)


def _batches_in_step(trainer_kwargs: Mapping[str, Any]) -> int:
    """Batches that a step of the optimiser is made of, as far as a trainer's parameters tell.

    Those that are accumulated, on each device of each node; devices that the trainer is to find
    are taken for one.
    """
    numbers = [
        len(given) if isinstance(given, (list, tuple)) else given
        for name in ("accumulate_grad_batches", "devices", "num_nodes")
        if (given := trainer_kwargs.get(name)) is not None
    ]
    return prod(n for n in numbers if isinstance(n, int) and n > 0)


def tuning_rate(params: Mapping[str, Any], new_tokens: bool) -> float | None:
    """Learning rate of a predictor that was trained before; None if the user gave an optimiser.

    That of a first fit, if it has `new_tokens` to learn.
    """
    if params.get("optimizer_cls") is not None or "lr" in (params.get("optimizer_kwargs") or {}):
        return None
    return (1 if new_tokens else TUNING_RATE) * learning_rates(params)[1]


def _enough(n_windows: int, windows_in_step: int, epochs: int, steps: int) -> int:
    steps_per_epoch = ceil(n_windows / windows_in_step)
    return max(epochs, min(MOST_EPOCHS, ceil(steps / steps_per_epoch)))


def check_augmentation(params: Mapping[str, Any]) -> None:
    """Check the parameters named in ``AUGMENTATION``.

    Raises
    ------
    ValueError
        If one is out of range, or another is among them.
    """
    unknown = sorted(set(params) - set(AUGMENTATION))
    if unknown:
        raise ValueError(
            f"Unknown parameter {', '.join(unknown)} of how windows are varied; there are "
            f"{', '.join(AUGMENTATION)}."
        )
    for name, value in params.items():
        most = float("inf") if name.endswith("jitter") else 1
        if not is_number(value) or not isfinite(value) or not 0 <= value <= most:
            allowed = "a number >= 0" if most > 1 else "a number in [0, 1]"
            raise ValueError(f"`{name}` must be {allowed}, got {value!r}.")


def check_sampling(params: Mapping[str, Any], components: Sequence[str] | None = None) -> None:
    """Check the parameters named in ``SAMPLING``.

    Parameters
    ----------
    params
        The parameters.
    components
        Of the series that are forecast, where they are known.

    Raises
    ------
    ValueError
        If one is out of range, another is among them, or there is no close to turn paths about.
    """
    unknown = sorted(set(params) - set(SAMPLING))
    if unknown:
        raise ValueError(
            f"Unknown sampling parameter {', '.join(unknown)}; there are {', '.join(SAMPLING)}."
        )
    Sampling(**{name: params[name] for name in ("temperature", "top_k", "top_p")})
    check_sliding(params["sliding"])
    check_point_forecast(params["point_forecast"], params["num_point_samples"])
    for name in ("valid_candles", "anchor", "antithetic"):
        if not isinstance(params[name], bool):
            raise ValueError(f"`{name}` must be True or False, got {params[name]!r}.")
    if params["antithetic"] and components is not None and "close" not in components:
        raise ValueError(
            f"`antithetic=True` needs candles: paths are turned about the last close, and the "
            f"components are {list(components)}."
        )


def require_int(name: str, value: object, least: int, or_none: bool = False) -> None:
    """Refuse a value that is no integer from `least` on, nor None where that is allowed.

    Raises
    ------
    ValueError
        With the name, what is allowed, and the value.
    """
    if or_none and value is None:
        return
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        allowed = f"an integer >= {least}" + (" or None" if or_none else "")
        raise ValueError(f"`{name}` must be {allowed}, got {value!r}.")


def refuse_half_precision(precision: object) -> None:
    """Refuse a trainer precision that casts the networks themselves to 16 bits.

    Raises
    ------
    ValueError
        If `precision` is one.
    """
    text = str(precision)
    if text.endswith("-true") and "16" in text:
        raise ValueError(
            f"Trainer precision {precision!r} is not supported: it would round prices and rotary "
            "tables to 16 bits. Use '32-true', or 'bf16-mixed' for mixed precision."
        )
