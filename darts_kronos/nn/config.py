"""Configurations of the two networks, and the published sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, TypeVar

CROSS_ATTENTION_HEADS = 4
"""Heads of the attention that conditions s2 on s1: the same for every published size."""

MAX_BITS = 20
"""Upper limit for the bits of one token: its codebook has 2**bits entries."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def is_number(value: object) -> bool:
    """Whether `value` is an int or a float, and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _require_positive_ints(config: object, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(config, name)
        is_int = isinstance(value, int) and not isinstance(value, bool)
        _require(is_int and value >= 1, f"`{name}` must be an integer >= 1, got {value!r}.")


def _require_probabilities(config: object, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(config, name)
        _require(
            is_number(value) and 0.0 <= value < 1.0,
            f"`{name}` must be a number in [0, 1), got {value!r}.",
        )


def _require_heads(d_model: int, n_heads: int, prefix: str = "") -> None:
    _require(
        d_model % n_heads == 0 and (d_model // n_heads) % 2 == 0,
        f"`{prefix}d_model` must be a multiple of 2 * `{prefix}n_heads` (rotary embeddings need an "
        f"even head width), got {prefix}d_model={d_model} and {prefix}n_heads={n_heads}.",
    )


def _require_bits(config: TokenizerConfig | PredictorConfig) -> None:
    _require_positive_ints(config, ("s1_bits", "s2_bits"))
    for name in ("s1_bits", "s2_bits"):
        bits = getattr(config, name)
        _require(bits <= MAX_BITS, f"`{name}` must be at most {MAX_BITS}, got {bits}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    """Shape and loss weights of a :class:`~darts_kronos.nn.tokenizer.KronosTokenizer`.

    Parameters
    ----------
    n_components
        Components of a bar (6: open, high, low, close, volume, amount).
    d_model, n_heads, ff_dim
        Width of the blocks, attention heads, width of the feed-forward layer.
    n_encoder_layers, n_decoder_layers
        Blocks that exist (released configurations count one more).
    ffn_dropout, attn_dropout, resid_dropout
        Dropout after the feed-forward layer, on attention weights, after attention; in [0, 1).
    s1_bits, s2_bits
        Bits of the coarse and of the fine token.
    beta, gamma0, gamma, zeta
        Weights of the quantizer's loss: commitment, entropy of a bar's code, entropy of the
        codebook, both entropies together (arXiv 2406.07548).

    Raises
    ------
    ValueError
        If a value is out of range; the message names it and what is allowed.
    """

    n_components: int = 6
    d_model: int = 256
    n_heads: int = 4
    ff_dim: int = 512
    n_encoder_layers: int = 3
    n_decoder_layers: int = 3
    ffn_dropout: float = 0.0
    attn_dropout: float = 0.0
    resid_dropout: float = 0.0
    s1_bits: int = 10
    s2_bits: int = 10
    beta: float = 0.05
    gamma0: float = 1.0
    gamma: float = 1.1
    zeta: float = 0.05

    def __post_init__(self) -> None:
        _require_positive_ints(
            self,
            (
                "n_components",
                "d_model",
                "n_heads",
                "ff_dim",
                "n_encoder_layers",
                "n_decoder_layers",
            ),
        )
        _require_heads(self.d_model, self.n_heads, prefix="tokenizer_")
        _require_bits(self)
        _require_probabilities(self, ("ffn_dropout", "attn_dropout", "resid_dropout"))
        for name in ("beta", "gamma0", "gamma", "zeta"):
            value = getattr(self, name)
            _require(
                is_number(value) and value >= 0,
                f"`{name}` must be a number >= 0, got {value!r}.",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictorConfig:
    """Shape of a :class:`~darts_kronos.nn.predictor.KronosPredictor`.

    Parameters
    ----------
    d_model, n_heads, n_layers, ff_dim
        Width, attention heads, number of blocks, width of the feed-forward layer.
    ffn_dropout, attn_dropout, resid_dropout, token_dropout
        Dropout after the feed-forward layer, on attention weights, after attention, and on the
        embedded bars; in [0, 1).
    s1_bits, s2_bits
        Bits of the coarse and of the fine token; those of the tokenizer.
    learn_time_embedding
        Whether the calendar tables are trained (released weights: all true).

    Raises
    ------
    ValueError
        If a value is out of range; the message names it and what is allowed.
    """

    d_model: int
    n_heads: int
    n_layers: int
    ff_dim: int
    ffn_dropout: float = 0.0
    attn_dropout: float = 0.0
    resid_dropout: float = 0.0
    token_dropout: float = 0.0
    s1_bits: int = 10
    s2_bits: int = 10
    learn_time_embedding: bool = True

    def __post_init__(self) -> None:
        _require_positive_ints(self, ("d_model", "n_heads", "n_layers", "ff_dim"))
        _require_heads(self.d_model, self.n_heads)
        _require(
            self.d_model % CROSS_ATTENTION_HEADS == 0,
            f"`d_model` must be a multiple of {CROSS_ATTENTION_HEADS} (the heads of the attention "
            f"from s1 to s2), got {self.d_model}.",
        )
        _require_bits(self)
        _require_probabilities(
            self, ("ffn_dropout", "attn_dropout", "resid_dropout", "token_dropout")
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class KronosSize:
    """A pair of networks that go together, and how fast to train them from scratch.

    Attributes
    ----------
    tokenizer, predictor
        Configurations of the two networks.
    tokenizer_lr, predictor_lr
        Peak learning rates from scratch. Those of the predictors "small", "base" and "large" are
        published; the others are ours.
    """

    tokenizer: TokenizerConfig
    predictor: PredictorConfig
    tokenizer_lr: float
    predictor_lr: float


_PUBLISHED_TOKENIZER = TokenizerConfig()

SIZES: Mapping[str, KronosSize] = MappingProxyType(
    {
        # Ours: for CPUs and small data. Fewer bits leave fewer code entries without data.
        "nano": KronosSize(
            tokenizer=TokenizerConfig(
                d_model=64,
                ff_dim=128,
                n_encoder_layers=2,
                n_decoder_layers=2,
                s1_bits=7,
                s2_bits=7,
            ),
            predictor=PredictorConfig(
                d_model=96,
                n_heads=4,
                n_layers=3,
                ff_dim=192,
                ffn_dropout=0.2,
                resid_dropout=0.2,
                token_dropout=0.1,
                s1_bits=7,
                s2_bits=7,
            ),
            tokenizer_lr=3e-3,
            predictor_lr=3e-3,
        ),
        # Published: arXiv 2508.02739, table of model sizes, and the released configurations.
        "mini": KronosSize(
            tokenizer=_PUBLISHED_TOKENIZER,
            predictor=PredictorConfig(
                d_model=256, n_heads=4, n_layers=4, ff_dim=512, ffn_dropout=0.2, resid_dropout=0.2
            ),
            tokenizer_lr=1e-3,
            predictor_lr=1e-3,
        ),
        "small": KronosSize(
            tokenizer=_PUBLISHED_TOKENIZER,
            predictor=PredictorConfig(
                d_model=512,
                n_heads=8,
                n_layers=8,
                ff_dim=1024,
                ffn_dropout=0.25,
                attn_dropout=0.1,
                resid_dropout=0.25,
                token_dropout=0.1,
            ),
            tokenizer_lr=1e-3,
            predictor_lr=1e-3,
        ),
        "base": KronosSize(
            tokenizer=_PUBLISHED_TOKENIZER,
            predictor=PredictorConfig(
                d_model=832,
                n_heads=16,
                n_layers=12,
                ff_dim=2048,
                ffn_dropout=0.2,
                resid_dropout=0.2,
            ),
            tokenizer_lr=1e-3,
            predictor_lr=5e-4,
        ),
        "large": KronosSize(
            tokenizer=_PUBLISHED_TOKENIZER,
            predictor=PredictorConfig(d_model=1664, n_heads=32, n_layers=18, ff_dim=3072),
            tokenizer_lr=1e-3,
            predictor_lr=2e-4,
        ),
    }
)
"""The sizes by name: ``nano`` (ours) and the four of the paper."""


def size_named(name: str) -> KronosSize:
    """The size called `name`.

    Raises
    ------
    ValueError
        If there is none of that name; the message lists the names.
    """
    if name not in SIZES:
        raise ValueError(f"Unknown size {name!r}; the sizes are {', '.join(SIZES)}.")
    return SIZES[name]


Config = TypeVar("Config", TokenizerConfig, PredictorConfig)


def override(config: Config, **changes: Any) -> Config:
    """A copy of `config` with the values of `changes` that are not None."""
    return replace(config, **{name: value for name, value in changes.items() if value is not None})


def as_dict(config: TokenizerConfig | PredictorConfig) -> dict[str, Any]:
    """The values of `config` as plain data, for checkpoints."""
    return {field.name: getattr(config, field.name) for field in fields(config)}
