"""Weights in and out, in the layout of the released checkpoints.

A checkpoint is a folder with ``config.json`` (the constructor arguments of the original) and
``model.safetensors``. The two classes below are the only place that knows the original's names;
the networks of :mod:`darts_kronos.nn` have their own, with query, key and value projections (and
the two inputs of a SwiGLU) stored as one matrix.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from darts_kronos.nn.config import PredictorConfig, TokenizerConfig
from darts_kronos.nn.predictor import STAMP_SIZES, KronosPredictor
from darts_kronos.nn.tokenizer import KronosTokenizer

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

_DERIVED = ("rotary.inv_freq", "bsq.basis", "bsq.group_basis")
"""Endings of stored buffers that follow from the configuration: made anew, not read."""

_DROPOUTS = {
    "ffn_dropout": "ffn_dropout_p",
    "attn_dropout": "attn_dropout_p",
    "resid_dropout": "resid_dropout_p",
}

_TOKENIZER_CONFIG = {
    "n_components": "d_in",
    "d_model": "d_model",
    "n_heads": "n_heads",
    "ff_dim": "ff_dim",
    "n_encoder_layers": "n_enc_layers",
    "n_decoder_layers": "n_dec_layers",
    "s1_bits": "s1_bits",
    "s2_bits": "s2_bits",
    "beta": "beta",
    "gamma0": "gamma0",
    "gamma": "gamma",
    "zeta": "zeta",
    **_DROPOUTS,
}

_PREDICTOR_CONFIG = {
    "d_model": "d_model",
    "n_heads": "n_heads",
    "n_layers": "n_layers",
    "ff_dim": "ff_dim",
    "s1_bits": "s1_bits",
    "s2_bits": "s2_bits",
    "token_dropout": "token_dropout_p",
    "learn_time_embedding": "learn_te",
    **_DROPOUTS,
}


def tokenizer_config_from_released(config: Mapping[str, Any]) -> TokenizerConfig:
    """The configuration of ours that a released tokenizer's ``config.json`` describes.

    ``group_size`` is not read: it has no effect on the released loss. Released layer counts are
    one more than the blocks that exist.

    Raises
    ------
    ValueError
        If a value is missing or out of range.
    """
    values = _renamed(config, _TOKENIZER_CONFIG)
    values["n_encoder_layers"] -= 1
    values["n_decoder_layers"] -= 1
    return TokenizerConfig(**values)


def predictor_config_from_released(config: Mapping[str, Any]) -> PredictorConfig:
    """The configuration of ours that a released predictor's ``config.json`` describes.

    Raises
    ------
    ValueError
        If a value is missing or out of range.
    """
    return PredictorConfig(**_renamed(config, _PREDICTOR_CONFIG))


def load_released_tokenizer(
    tokenizer: KronosTokenizer, weights: Mapping[str, Tensor]
) -> KronosTokenizer:
    """Copy weights of the released layout into `tokenizer`, which is returned.

    Raises
    ------
    ValueError
        If weights are missing, surplus, or of another shape than the configuration says.
    """
    return _load_parts(tokenizer, weights, dict(_tokenizer_sources(tokenizer.config)))


def load_released_predictor(
    predictor: KronosPredictor, weights: Mapping[str, Tensor]
) -> KronosPredictor:
    """Copy weights of the released layout into `predictor`, which is returned.

    Raises
    ------
    ValueError
        If weights are missing, surplus, or of another shape than the configuration says.
    """
    return _load_parts(predictor, weights, dict(_predictor_sources(predictor.config)))


def load_tokenizer(folder: str | PathLike[str]) -> KronosTokenizer:
    """The tokenizer in a local folder of the released layout, in evaluation mode.

    Raises
    ------
    ValueError
        If a file is missing or is not what its name says, or weights and configuration disagree.
    """
    config, weights = _read(Path(folder))
    tokenizer = KronosTokenizer(tokenizer_config_from_released(config))
    return load_released_tokenizer(tokenizer, weights).eval()


def load_predictor(folder: str | PathLike[str]) -> KronosPredictor:
    """The predictor in a local folder of the released layout, in evaluation mode.

    Raises
    ------
    ValueError
        If a file is missing or is not what its name says, or weights and configuration disagree.
    """
    config, weights = _read(Path(folder))
    predictor = KronosPredictor(predictor_config_from_released(config))
    return load_released_predictor(predictor, weights).eval()


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ValueError(f"'{folder}' is not a checkpoint: it has no file '{name}'.")
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"'{folder / CONFIG_FILE}' is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"'{folder / CONFIG_FILE}' must hold a JSON object.")
    try:
        weights = load_file(folder / WEIGHTS_FILE)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"'{folder / WEIGHTS_FILE}' cannot be read as safetensors (truncated?): {error}"
        ) from error
    return config, weights


def _renamed(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    missing = sorted(foreign for foreign in names.values() if foreign not in config)
    if missing:
        raise ValueError(f"The configuration of the checkpoint lacks {', '.join(missing)}.")
    return {ours: config[foreign] for ours, foreign in names.items()}


def _linear(ours: str, *foreign: str, bias: bool = True) -> Iterator[tuple[str, tuple[str, ...]]]:
    """One of our linear layers and the foreign ones whose rows it stacks."""
    for kind in ("weight", "bias") if bias else ("weight",):
        yield f"{ours}.{kind}", tuple(f"{name}.{kind}" for name in foreign)


def _block(ours: str, foreign: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    attention = f"{foreign}.self_attn"
    yield f"{ours}.attn_norm.weight", (f"{foreign}.norm1.weight",)
    yield from _linear(
        f"{ours}.attn.qkv", f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj"
    )
    yield from _linear(f"{ours}.attn.out", f"{attention}.out_proj")
    yield f"{ours}.ffn_norm.weight", (f"{foreign}.norm2.weight",)
    yield from _linear(
        f"{ours}.ffn.gate_value", f"{foreign}.ffn.w1", f"{foreign}.ffn.w3", bias=False
    )
    yield from _linear(f"{ours}.ffn.down", f"{foreign}.ffn.w2", bias=False)


def _tokenizer_sources(config: TokenizerConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    for ours, foreign in {
        "embed": "embed",
        "to_code": "quant_embed",
        "from_s1": "post_quant_embed_pre",
        "from_code": "post_quant_embed",
        "head": "head",
    }.items():
        yield from _linear(ours, foreign)
    for i in range(config.n_encoder_layers):
        yield from _block(f"encoder.blocks.{i}", f"encoder.{i}")
    for i in range(config.n_decoder_layers):
        yield from _block(f"decoder.blocks.{i}", f"decoder.{i}")


def _predictor_sources(config: PredictorConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield "tokens.s1.weight", ("embedding.emb_s1.weight",)
    yield "tokens.s2.weight", ("embedding.emb_s2.weight",)
    yield from _linear("tokens.fusion", "embedding.fusion_proj")
    stored = "weight" if config.learn_time_embedding else "emb.weight"
    for name in STAMP_SIZES:
        yield f"calendar.tables.{name}.weight", (f"time_emb.{name}_embed.{stored}",)
    for i in range(config.n_layers):
        yield from _block(f"transformer.blocks.{i}", f"transformer.{i}")
    yield "norm.weight", ("norm.weight",)
    attention = "dep_layer.cross_attn"
    yield from _linear("s2_conditioning.query", f"{attention}.q_proj")
    yield from _linear("s2_conditioning.key_value", f"{attention}.k_proj", f"{attention}.v_proj")
    yield from _linear("s2_conditioning.out", f"{attention}.out_proj")
    yield "s2_conditioning.norm.weight", ("dep_layer.norm.weight",)
    yield from _linear("s1_head", "head.proj_s1")
    yield from _linear("s2_head", "head.proj_s2")


def _load_parts(
    network: Any, weights: Mapping[str, Tensor], sources: Mapping[str, tuple[str, ...]]
) -> Any:
    stored = {name: tensor for name, tensor in weights.items() if not name.endswith(_DERIVED)}
    wanted = {name for names in sources.values() for name in names}
    missing, surplus = sorted(wanted - stored.keys()), sorted(stored.keys() - wanted)
    if missing or surplus:
        raise ValueError(
            "The weights of the checkpoint do not fit its configuration: "
            f"missing {_shortened(missing)}, surplus {_shortened(surplus)}."
        )
    state = {}
    for ours, own in network.state_dict().items():
        parts = [stored[name] for name in sources[ours]]
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
        if tensor.shape != own.shape:
            raise ValueError(
                f"The weights of the checkpoint do not fit its configuration: "
                f"{' + '.join(sources[ours])} has shape {tuple(tensor.shape)}, "
                f"the configuration asks for {tuple(own.shape)}."
            )
        state[ours] = tensor
    network.load_state_dict(state)
    return network


def _shortened(names: list[str], most: int = 5) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
