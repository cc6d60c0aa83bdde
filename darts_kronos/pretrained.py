"""Weights that a model starts from: read, and checked against what the user asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from darts_kronos.checkpoints import (
    RELEASED_CLIP,
    group_size_of,
    load_released_predictor,
    load_released_tokenizer,
    predictor_config_from_released,
    read,
    require_equal_bits,
    settings_of,
    tokenizer_config_from_released,
)
from darts_kronos.components import given_components
from darts_kronos.hub import SOURCES, locate
from darts_kronos.nn.config import (
    PredictorConfig,
    TokenizerConfig,
    as_dict,
    override,
    size_named,
)
from darts_kronos.nn.predictor import KronosPredictor
from darts_kronos.nn.tokenizer import KronosTokenizer

DROPOUTS = ("ffn_dropout", "attn_dropout", "resid_dropout", "token_dropout")
LOSS_WEIGHTS = ("beta", "gamma0", "gamma", "zeta")
"""Parameters of the networks that change training only: they may differ from the weights' own."""

BITS = ("s1_bits", "s2_bits")
PREDICTOR_SHAPE = ("d_model", "n_heads", "n_layers", "ff_dim")
TOKENIZER_SHAPE = {
    "tokenizer_d_model": "d_model",
    "tokenizer_n_heads": "n_heads",
    "tokenizer_ff_dim": "ff_dim",
}
"""Parameters of the networks that their weights decide: tokens, the predictor, and the tokenizer,
whose configuration calls them otherwise."""


@dataclass(kw_only=True)
class Pretrained:
    """Weights to start from and all that belongs to them, as plain data that a model can save.

    Attributes
    ----------
    name
        What they are called: a name on the hub, or a folder.
    tokenizer_config, predictor_config
        Values of the two networks' configurations.
    settings
        Values of a :class:`~darts_kronos.model_settings.ModelSettings`.
    group_size
        The original's value of this name, for giving weights back.
    weights
        Of a :class:`~darts_kronos.module.KronosModule`, by name; None while they are those of a
        model that holds them anyway.
    """

    name: str
    tokenizer_config: dict[str, Any]
    predictor_config: dict[str, Any]
    settings: dict[str, Any]
    group_size: int
    weights: dict[str, Tensor] | None

    @property
    def components(self) -> list[str]:
        """Names of the components that the tokenizer sees, in order."""
        return list(self.settings["components"])

    def module_params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """What a :class:`~darts_kronos.module.KronosModule` with these weights is made of.

        Dropouts, loss weights, `max_context` and `lora` of a model's `params` are taken.
        """
        tokenizer = TokenizerConfig(**self.tokenizer_config)
        predictor = PredictorConfig(**self.predictor_config)
        loss_weights = {name: params[name] for name in LOSS_WEIGHTS}
        dropouts = {name: params[name] for name in DROPOUTS}
        return {
            "tokenizer_config": as_dict(override(tokenizer, **loss_weights)),
            "predictor_config": as_dict(override(predictor, **dropouts)),
            "network_components": self.components,
            "clip": self.settings["clip"],
            "max_context": params["max_context"] or self.settings["max_context"],
            "lora": params["lora"],
        }

    def check(self, params: Mapping[str, Any], fine_tuned: bool) -> None:
        """Check a model's parameters against the weights.

        Raises
        ------
        ValueError
            If one asks for other than the weights have; the message names both.
        """
        tokenizer = TokenizerConfig(**self.tokenizer_config)
        predictor = PredictorConfig(**self.predictor_config)
        if params["size"] is not None:
            asked = size_named(params["size"])
            what = f"`size={params['size']!r}` asks for "
            for name in (*PREDICTOR_SHAPE, *BITS):
                self._compare(name, getattr(asked.predictor, name), getattr(predictor, name), what)
            for name, own in TOKENIZER_SHAPE.items():
                self._compare(name, getattr(asked.tokenizer, own), getattr(tokenizer, own), what)
        for name in (*PREDICTOR_SHAPE, *BITS):
            self._compare(name, params[name], getattr(predictor, name))
        for name, own in TOKENIZER_SHAPE.items():
            self._compare(name, params[name], getattr(tokenizer, own))
        for own in ("n_encoder_layers", "n_decoder_layers"):
            given = params["tokenizer_n_layers"]
            self._compare("tokenizer_n_layers", given, getattr(tokenizer, own))
        clip = params["clip"] if params["clip"] != RELEASED_CLIP else None
        self._compare("clip", clip, self.settings["clip"])
        if not fine_tuned:
            representation = self.settings["representation"]
            self._compare("representation", params["representation"], representation)

    def _compare(self, name: str, given: object, own: object, what: str = "") -> None:
        if given is not None and given != own:
            raise ValueError(
                f"{what}`{name}`={given!r}, but the weights of '{self.name}' have {name}={own!r}: "
                "leave it out, what the weights have decides."
            )

    def take_series(self, names: Sequence[str]) -> list[str]:
        """Which of the networks' components series with these `names` give, in order.

        Raises
        ------
        ValueError
            If the weights were not trained on such components.
        """
        try:
            return given_components(names, self.components)
        except ValueError as error:
            raise ValueError(f"The weights of '{self.name}' do not fit. {error}") from error


def network_weights(module: nn.Module) -> dict[str, Tensor]:
    """The weights of a module's two networks by name, as a start for another; on the CPU."""
    parts = ("tokenizer.", "predictor.")
    return {
        name: tensor.detach().cpu().clone()
        for name, tensor in module.state_dict().items()
        if name.startswith(parts)
    }


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Let what is wrong with a checkpoint say where it lies."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"'{folder}': {error}") from error


def load_pretrained(params: Mapping[str, Any]) -> Pretrained:
    """Read the weights that a model's parameters name; from the hub, if they are there.

    Parameters
    ----------
    params
        Those in :data:`~darts_kronos.hub.SOURCES`.

    Raises
    ------
    ValueError
        If the files are not found, do not hold what they must, or do not belong together.
    HubUnreachableError
        If the hub is needed and cannot be reached.
    """
    located = locate({name: params.get(name) for name in SOURCES})
    tokenizer_values, tokenizer_weights = read(located.tokenizer)
    predictor_values, predictor_weights = read(located.predictor)
    with _naming(located.tokenizer):
        tokenizer_config = tokenizer_config_from_released(tokenizer_values)
    with _naming(located.predictor):
        predictor_config = predictor_config_from_released(predictor_values)
    require_equal_bits(tokenizer_config, predictor_config)
    settings = settings_of(located.settings, tokenizer_config, predictor_config)
    # New networks start from random weights, of which nothing is to be seen outside.
    with torch.random.fork_rng(devices=[]):
        with _naming(located.tokenizer):
            tokenizer = load_released_tokenizer(
                KronosTokenizer(tokenizer_config), tokenizer_weights
            )
        with _naming(located.predictor):
            predictor = load_released_predictor(
                KronosPredictor(predictor_config), predictor_weights
            )
    networks = nn.ModuleDict({"tokenizer": tokenizer, "predictor": predictor})
    return Pretrained(
        name=located.name,
        tokenizer_config=as_dict(tokenizer_config),
        predictor_config=as_dict(predictor_config),
        settings=asdict(settings),
        group_size=group_size_of(tokenizer_values, tokenizer_config),
        weights=dict(networks.state_dict()),
    )
