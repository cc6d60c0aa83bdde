"""Weights in and out, in the layout of the released checkpoints.

A checkpoint is a folder with ``config.json`` (the constructor arguments of the original) and
``model.safetensors``. This module is the only place that knows the original's names; the networks
of :mod:`darts_kronos.nn` have their own, with query, key and value projections (and the two inputs
of a SwiGLU) stored as one matrix.

A whole model is a folder with two such checkpoints, ``tokenizer`` and ``predictor``, and a file
``darts_kronos.json`` with what the networks do not say themselves; see
:class:`~darts_kronos.model_settings.ModelSettings`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from darts_kronos.components import CANDLE
from darts_kronos.model_settings import (
    SETTINGS_FILE,
    ModelSettings,
    read_json,
    read_settings,
)
from darts_kronos.nn.config import (
    CROSS_ATTENTION_HEADS,
    SIZES,
    PredictorConfig,
    TokenizerConfig,
)
from darts_kronos.nn.predictor import STAMP_SIZES, KronosPredictor
from darts_kronos.nn.rotary import rotary_frequencies
from darts_kronos.nn.tokenizer import KronosTokenizer

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FOLDER, PREDICTOR_FOLDER = "tokenizer", "predictor"

RELEASED_CONTEXT, RELEASED_MINI_CONTEXT = 512, 2048
"""Bars that the released predictors see: of all but "mini", and of "mini"."""

RELEASED_CLIP = 5.0
"""Bound on the normalised values that the released networks get."""

GROUP_SIZES = (4, 5, 3, 2, 1)
"""``group_size`` of a written tokenizer: the first that divides its bits, as the original asks."""

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
    config = tokenizer.config
    stored = weights.get("tokenizer.bsq.group_basis")
    _check_buffers(weights, _tokenizer_buffers(config, 1 if stored is None else len(stored)))
    return _load_parts(tokenizer, weights, dict(_tokenizer_sources(config)))


def load_released_predictor(
    predictor: KronosPredictor, weights: Mapping[str, Tensor]
) -> KronosPredictor:
    """Copy weights of the released layout into `predictor`, which is returned.

    Raises
    ------
    ValueError
        If weights are missing, surplus, or of another shape than the configuration says.
    """
    _check_buffers(weights, _predictor_buffers(predictor.config))
    return _load_parts(predictor, weights, dict(_predictor_sources(predictor.config)))


def load_tokenizer(folder: str | PathLike[str]) -> KronosTokenizer:
    """The tokenizer in a local folder of the released layout, in evaluation mode.

    Raises
    ------
    ValueError
        If a file is missing or is not what its name says, or weights and configuration disagree.
    """
    config, weights = read(folder)
    tokenizer = KronosTokenizer(tokenizer_config_from_released(config))
    return load_released_tokenizer(tokenizer, weights).eval()


def load_predictor(folder: str | PathLike[str]) -> KronosPredictor:
    """The predictor in a local folder of the released layout, in evaluation mode.

    Raises
    ------
    ValueError
        If a file is missing or is not what its name says, or weights and configuration disagree.
    """
    config, weights = read(folder)
    predictor = KronosPredictor(predictor_config_from_released(config))
    return load_released_predictor(predictor, weights).eval()


def read(folder: str | PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the weights in a folder, as they stand there.

    Raises
    ------
    ValueError
        If a file is missing or is not what its name says.
    """
    folder = Path(folder)
    with _files_of(folder) as (config, weights):
        return config, {name: weights.get_tensor(name) for name in weights.keys()}


@contextmanager
def _files_of(folder: Path) -> Iterator[tuple[dict[str, Any], Any]]:
    """A checkpoint's configuration, and its open file of weights."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ValueError(
                f"'{folder}' is not a checkpoint: it has no file '{name}'. Weights are read from "
                "safetensors only, never from a pickle."
            )
    config = read_json(folder / CONFIG_FILE)
    try:
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as weights:
            yield config, weights
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"'{folder / WEIGHTS_FILE}' cannot be read as safetensors (truncated?): {error}"
        ) from error


def settings_of(
    folder: str | PathLike[str] | None, tokenizer: TokenizerConfig, predictor: PredictorConfig
) -> ModelSettings:
    """The settings in a folder's ``darts_kronos.json`` or, without one, of released weights.

    Parameters
    ----------
    folder
        The folder; None for weights without settings of their own.
    tokenizer, predictor
        Configurations of the two networks.

    Raises
    ------
    ValueError
        If the file is spoilt or does not fit the networks, or is missing where the tokenizer's
        components have no names without it.
    """
    path = None if folder is None else Path(folder) / SETTINGS_FILE
    if path is None or not path.is_file():
        if tokenizer.n_components != len(CANDLE):
            raise ValueError(
                f"The tokenizer takes {tokenizer.n_components} components, released ones take "
                f"{len(CANDLE)} ({', '.join(CANDLE)}): without a file '{SETTINGS_FILE}' beside the "
                "folders 'tokenizer' and 'predictor' they have no names."
            )
        mini = _shape(predictor) == _shape(SIZES["mini"].predictor)
        return ModelSettings(
            components=CANDLE,
            representation="window",
            clip=RELEASED_CLIP,
            max_context=RELEASED_MINI_CONTEXT if mini else RELEASED_CONTEXT,
            calendar_stamps=True,
        )
    settings = read_settings(path)
    if len(settings.components) != tokenizer.n_components:
        raise ValueError(
            f"'{path}' names {len(settings.components)} components "
            f"({', '.join(settings.components)}), the tokenizer takes {tokenizer.n_components}."
        )
    return settings


def _shape(config: PredictorConfig) -> tuple[int, ...]:
    return config.n_layers, config.d_model, config.n_heads, config.ff_dim


def group_size_of(config: Mapping[str, Any] | None, tokenizer: TokenizerConfig) -> int:
    """The ``group_size`` of a released configuration, or one that the original can work with."""
    n_bits = tokenizer.s1_bits + tokenizer.s2_bits
    given = (config or {}).get("group_size")
    if isinstance(given, int) and given > 0 and n_bits % given == 0:
        return given
    return next(size for size in GROUP_SIZES if n_bits % size == 0)


def inspect(folder: str | PathLike[str]) -> dict[str, Any]:
    """Print what the networks in a folder are, and give it back.

    Parameters
    ----------
    folder
        A whole model (with folders ``tokenizer`` and ``predictor``), or one checkpoint.

    Returns
    -------
    dict
        For each network its parameters (released sizes by name) and shape; the bits of both
        tokens; the context in bars, the representation and the components. What one checkpoint
        does not tell is left out.

    Raises
    ------
    ValueError
        If there is no checkpoint, or a file is not what its name says.
    """
    root = Path(folder)
    parts: dict[str, dict[str, Any]] = {}
    for name in (TOKENIZER_FOLDER, PREDICTOR_FOLDER):
        if (root / name).is_dir():
            parts[name] = _read_part(root / name)
    if not parts:
        part = _read_part(root)
        parts[TOKENIZER_FOLDER if "d_in" in part["config"] else PREDICTOR_FOLDER] = part
    found: dict[str, Any] = {}
    tokenizer = predictor = None
    if TOKENIZER_FOLDER in parts:
        part = parts[TOKENIZER_FOLDER]
        tokenizer = tokenizer_config_from_released(part["config"])
        blocks = f"{tokenizer.n_encoder_layers} + {tokenizer.n_decoder_layers} layers"
        found["tokenizer"] = f"{part['parameters']:,} parameters: {blocks}, {_widths(tokenizer)}"
    if PREDICTOR_FOLDER in parts:
        part = parts[PREDICTOR_FOLDER]
        predictor = predictor_config_from_released(part["config"])
        sizes = [
            name for name, size in SIZES.items() if _shape(size.predictor) == _shape(predictor)
        ]
        called = f' (size "{sizes[0]}")' if sizes else ""
        blocks = f"{predictor.n_layers} layers"
        found["predictor"] = (
            f"{part['parameters']:,} parameters: {blocks}, {_widths(predictor)}{called}"
        )
    either = tokenizer or predictor
    assert either is not None
    found["s1_bits"], found["s2_bits"] = either.s1_bits, either.s2_bits
    if tokenizer is not None and predictor is not None:
        require_equal_bits(tokenizer, predictor)
        settings = settings_of(root, tokenizer, predictor)
        found["max_context"] = settings.max_context
        found["representation"] = settings.representation
        found["components"] = list(settings.components)
        found["clip"] = settings.clip
        found["calendar_stamps"] = settings.calendar_stamps
    print(f"{root}")
    for name, value in found.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        print(f"  {name:<16} {shown}")
    return found


def require_equal_bits(tokenizer: TokenizerConfig, predictor: PredictorConfig) -> None:
    """Refuse a tokenizer and a predictor that do not write the same tokens.

    Raises
    ------
    ValueError
        If their bits differ; the message names both.
    """
    theirs, needed = ((one.s1_bits, one.s2_bits) for one in (tokenizer, predictor))
    if theirs != needed:
        raise ValueError(
            f"The tokenizer does not belong to the predictor: its tokens have {theirs[0]} + "
            f"{theirs[1]} bits (s1 + s2), the predictor's {needed[0]} + {needed[1]}."
        )


def _read_part(folder: Path) -> dict[str, Any]:
    """A checkpoint's configuration, and the number of its parameters."""
    with _files_of(folder) as (config, weights):
        names = [name for name in weights.keys() if not name.endswith(_DERIVED)]
        count = sum(prod(weights.get_slice(name).get_shape()) for name in names)
    return {"config": config, "parameters": count}


def _widths(config: TokenizerConfig | PredictorConfig) -> str:
    return f"width {config.d_model}, {config.n_heads} heads, feed-forward {config.ff_dim}"


def write_tokenizer(
    tokenizer: KronosTokenizer, folder: str | PathLike[str], group_size: int | None = None
) -> None:
    """Write a tokenizer to a folder in the released layout.

    Parameters
    ----------
    tokenizer
        The network.
    folder
        An existing folder.
    group_size
        The original's value of this name, which its code needs but which changes nothing.
    """
    config = tokenizer.config
    values = {foreign: getattr(config, ours) for ours, foreign in _TOKENIZER_CONFIG.items()}
    values["n_enc_layers"] += 1
    values["n_dec_layers"] += 1
    values["group_size"] = group_size or group_size_of(None, config)
    weights = _split_parts(tokenizer, dict(_tokenizer_sources(config)))
    weights |= _tokenizer_buffers(config, values["group_size"])
    _write(Path(folder), values, weights)


def write_predictor(predictor: KronosPredictor, folder: str | PathLike[str]) -> None:
    """Write a predictor to an existing folder in the released layout."""
    config = predictor.config
    values = {foreign: getattr(config, ours) for ours, foreign in _PREDICTOR_CONFIG.items()}
    weights = _split_parts(predictor, dict(_predictor_sources(config)))
    weights |= _predictor_buffers(config)
    _write(Path(folder), values, weights)


def _write(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    safetensors.torch.save_file(dict(weights), folder / WEIGHTS_FILE, metadata={"format": "pt"})


def _tokenizer_buffers(config: TokenizerConfig, group_size: int) -> dict[str, Tensor]:
    """What the original stores beside a tokenizer's weights."""
    frequencies = rotary_frequencies(config.d_model // config.n_heads)
    parts = {"encoder": config.n_encoder_layers, "decoder": config.n_decoder_layers}
    buffers = {
        f"{part}.{i}.self_attn.rotary.inv_freq": frequencies.clone()
        for part, count in parts.items()
        for i in range(count)
    }
    for name, size in {"basis": config.s1_bits + config.s2_bits, "group_basis": group_size}.items():
        buffers[f"tokenizer.bsq.{name}"] = 2 ** torch.arange(size - 1, -1, -1)
    return buffers


def _predictor_buffers(config: PredictorConfig) -> dict[str, Tensor]:
    """What the original stores beside a predictor's weights."""
    frequencies = rotary_frequencies(config.d_model // config.n_heads)
    buffers = {
        f"transformer.{i}.self_attn.rotary.inv_freq": frequencies.clone()
        for i in range(config.n_layers)
    }
    buffers["dep_layer.cross_attn.rotary.inv_freq"] = rotary_frequencies(
        config.d_model // CROSS_ATTENTION_HEADS
    )
    return buffers


def _check_buffers(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse stored buffers that are not what the configuration makes anew."""
    for name, tensor in expected.items():
        stored = weights.get(name)
        if stored is not None and stored.shape != tensor.shape:
            raise ValueError(
                f"The weights of the checkpoint do not fit its configuration: {name} has shape "
                f"{tuple(stored.shape)}, the configuration asks for {tuple(tensor.shape)} (is "
                "its number of heads, or of bits, another?)."
            )


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


def _split_parts(network: Any, sources: Mapping[str, tuple[str, ...]]) -> dict[str, Tensor]:
    """A network's weights under the released names, on the CPU, in float32."""
    weights: dict[str, Tensor] = {}
    for ours, tensor in network.state_dict().items():
        parts = tensor.detach().float().cpu().chunk(len(sources[ours]))
        weights |= {
            name: part.clone().contiguous() for name, part in zip(sources[ours], parts, strict=True)
        }
    return weights


def _shortened(names: list[str], most: int = 5) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
