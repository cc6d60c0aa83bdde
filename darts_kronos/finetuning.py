"""Which weights a fine-tuning moves: Darts' patterns, and LoRA on the predictor."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from torch import nn

from darts_kronos.hub import names_weights

LORA_TARGETS = ("qkv", "query", "key_value", "out", "gate_value", "down")
"""Layers that LoRA works on, if the user names none: all of attention and feed-forward."""

_LORA_VALUES: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "use_dora": (False,),
    "modules_to_save": (None, []),
    "init_lora_weights": (True, False, "gaussian"),
}
"""Values of peft's parameters that do what they say; others need the weights, or more to train."""

Network = TypeVar("Network", bound=nn.Module)

_LORA_MISSING = (
    "`lora` needs the package peft, which is not installed: `pip install 'darts-kronos[lora]'`."
)


def check_fine_tuning(params: Mapping[str, Any]) -> None:
    """Check what a model's parameters say about fine-tuning.

    Raises
    ------
    ValueError
        If `enable_finetuning` or `lora` is not what it must be, has nothing to work on, or leaves
        nothing to train.
    ImportError
        If `lora` is given and the package peft is not installed.
    """
    tuning, lora = params.get("enable_finetuning"), params.get("lora")
    if tuning is not None and not names_weights(params):
        raise ValueError(
            "`enable_finetuning` is not supported without weights to start from: give "
            "`hub_model_name` or `local_dir`, or leave it out to train from scratch."
        )
    if tuning is not None and not isinstance(tuning, bool):
        _check_patterns(tuning)
    if lora is not None:
        _check_lora(lora, tuning)
    if tuning and params.get("n_epochs") == 0 and params["n_epochs_tokenizer"] == 0:
        raise ValueError(
            "`n_epochs=0` and `n_epochs_tokenizer=0` leave nothing to fine-tune: leave "
            "`enable_finetuning` out to forecast zero-shot."
        )


def _check_patterns(tuning: object) -> None:
    if (
        not isinstance(tuning, dict)
        or len(tuning) != 1
        or not set(tuning) <= {"freeze", "unfreeze"}
        or not isinstance(next(iter(tuning.values())), (list, tuple))
        or not all(isinstance(one, str) for one in next(iter(tuning.values())))
    ):
        raise ValueError(
            "`enable_finetuning` must be True, False, {'freeze': [...]} or {'unfreeze': [...]} "
            f"with patterns of weights' names such as 'tokenizer.*', got {tuning!r}."
        )


def _check_lora(lora: object, tuning: object) -> None:
    if not isinstance(lora, dict):
        raise ValueError(
            f"`lora` must be a dict of peft's LoraConfig parameters such as {{'r': 8}}, or None, "
            f"got {lora!r}."
        )
    if not tuning:
        raise ValueError(
            "`lora` is a way to fine-tune: it needs weights to start from and "
            "`enable_finetuning=True`."
        )
    _lora_config(lora)


def _lora_config(lora: Mapping[str, Any]) -> Any:
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError(_LORA_MISSING) from error
    try:
        config = LoraConfig(**{"target_modules": list(LORA_TARGETS), **lora})
    except (TypeError, ValueError) as error:
        raise ValueError(f"`lora`={lora!r} is not what peft's LoraConfig takes: {error}") from error
    if not isinstance(config.r, int) or config.r < 1:
        raise ValueError(f"`lora`: `r` must be an integer >= 1, got {config.r!r}.")
    for name, allowed in _LORA_VALUES.items():
        if getattr(config, name, None) not in allowed:
            raise ValueError(
                f"`lora`: `{name}` must be {' or '.join(map(repr, allowed))}, got "
                f"{getattr(config, name)!r}: updates alone are learned, and they are added before "
                "the weights are read."
            )
    return config


def add_lora(predictor: nn.Module, lora: Mapping[str, Any]) -> None:
    """Add low-rank updates (arXiv 2106.09685) to a predictor's linear layers, in place.

    Parameters
    ----------
    predictor
        The network; its own weights are frozen by this.
    lora
        Parameters of peft's ``LoraConfig``. `target_modules` are, if not given, the linear layers
        of all attention and feed-forward.

    Raises
    ------
    ValueError
        If peft does not take the parameters, or no layer is called so.
    """
    config = _lora_config(lora)
    from peft import inject_adapter_in_model

    try:
        inject_adapter_in_model(config, predictor)
    except ValueError as error:
        raise ValueError(f"`lora`={dict(lora)!r} cannot be added: {error}") from error
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, one in predictor.named_modules():
        if isinstance(one, BaseTunerLayer) and not isinstance(one.get_base_layer(), nn.Linear):
            raise ValueError(
                f"`lora`: `target_modules` must be linear layers, and {name!r} is none: tables of "
                "tokens and stamps are taken through the layers behind them when paths are drawn."
            )


def merged(predictor: Network) -> Network:
    """The predictor with LoRA's updates added into its own weights; itself if it has none."""
    if not any(is_lora(name) for name, _ in predictor.named_parameters()):
        return predictor
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain = copy.deepcopy(predictor)
    updated = [
        (name, one) for name, one in plain.named_modules() if isinstance(one, BaseTunerLayer)
    ]
    for name, layer in updated:
        layer.merge(safe_merge=True)
        plain.set_submodule(name, layer.get_base_layer())
    return plain


def is_lora(name: str) -> bool:
    """Whether a weight of this name is one of LoRA's."""
    return "lora_" in name


def plain_name(name: str) -> str:
    """The name of a weight without what LoRA put around its layer."""
    return name.replace(".base_layer.", ".")


def trainable(
    names: Iterable[str], tuning: bool | Mapping[str, list[str]], with_lora: bool
) -> set[str]:
    """Names of the weights that a fine-tuning moves.

    Parameters
    ----------
    names
        Of all weights of a :class:`~darts_kronos.module.KronosModule`; they start with
        "tokenizer." or "predictor.".
    tuning
        Darts' `enable_finetuning`.
    with_lora
        Whether the predictor's own weights stay as they are, for LoRA's to learn.

    Raises
    ------
    ValueError
        If a pattern means none of the weights, or nothing is left to train.
    """
    names = list(names)
    if isinstance(tuning, bool):
        chosen = set(names) if tuning else set()
    else:
        ((mode, patterns),) = tuning.items()
        meant = set()
        for pattern in patterns:
            found = set(fnmatch.filter(names, pattern))
            if not found:
                raise ValueError(
                    f"`enable_finetuning`: no weight is called {pattern!r}; their names are such "
                    f"as {', '.join(map(repr, (names[0], names[-1])))}."
                )
            meant |= found
        chosen = meant if mode == "unfreeze" else set(names) - meant
    if with_lora:
        chosen = {name for name in chosen if name.startswith("tokenizer.") or is_lora(name)}
    if tuning and not chosen:
        raise ValueError(f"`enable_finetuning`={tuning!r} leaves nothing to train.")
    return chosen
