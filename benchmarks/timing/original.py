"""The original networks, as `kronos-finance` ships them, and ours with the same weights.

Shapes by letter: B windows, S sample paths, T bars.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from kronos_finance._vendor.kronos_model import Kronos
from kronos_finance._vendor.kronos_model import KronosTokenizer as OriginalTokenizer
from kronos_finance._vendor.kronos_model.kronos import (
    auto_regressive_inference,
    sample_from_logits,
)
from torch import Tensor

from darts_kronos import checkpoints
from darts_kronos.nn.config import size_named
from darts_kronos.nn.predictor import KronosPredictor
from darts_kronos.nn.tokenizer import KronosTokenizer
from timing.clock import now

GROUP_SIZE = 4
"""Of the original's quantizer; it changes nothing."""


@dataclass(frozen=True)
class Networks:
    """Both networks of a published size, the original's and ours, with equal random weights."""

    size: str
    original_tokenizer: OriginalTokenizer
    original_predictor: Kronos
    tokenizer: KronosTokenizer
    predictor: KronosPredictor


def tokenizer_config(size: str) -> dict[str, Any]:
    """The original's arguments for the tokenizer of a size."""
    own = size_named(size).tokenizer
    return {
        "d_in": own.n_components,
        "d_model": own.d_model,
        "n_heads": own.n_heads,
        "ff_dim": own.ff_dim,
        "n_enc_layers": own.n_encoder_layers + 1,
        "n_dec_layers": own.n_decoder_layers + 1,
        "ffn_dropout_p": own.ffn_dropout,
        "attn_dropout_p": own.attn_dropout,
        "resid_dropout_p": own.resid_dropout,
        "s1_bits": own.s1_bits,
        "s2_bits": own.s2_bits,
        "beta": own.beta,
        "gamma0": own.gamma0,
        "gamma": own.gamma,
        "zeta": own.zeta,
        "group_size": GROUP_SIZE,
    }


def predictor_config(size: str) -> dict[str, Any]:
    """The original's arguments for the predictor of a size."""
    own = size_named(size).predictor
    return {
        "s1_bits": own.s1_bits,
        "s2_bits": own.s2_bits,
        "n_layers": own.n_layers,
        "d_model": own.d_model,
        "n_heads": own.n_heads,
        "ff_dim": own.ff_dim,
        "ffn_dropout_p": own.ffn_dropout,
        "attn_dropout_p": own.attn_dropout,
        "resid_dropout_p": own.resid_dropout,
        "token_dropout_p": own.token_dropout,
        "learn_te": own.learn_time_embedding,
    }


def networks(size: str, seed: int = 0, device: str | torch.device = "cpu") -> Networks:
    """Random networks of a published size, in evaluation mode, the same on each device."""
    torch.manual_seed(seed)
    original_tokenizer = OriginalTokenizer(**tokenizer_config(size)).eval()
    original_predictor = Kronos(**predictor_config(size)).eval()
    with torch.no_grad():
        # Biases and norms that matter, so that a slip in any of them shows.
        for network in (original_tokenizer, original_predictor):
            for parameter in network.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    tokenizer = KronosTokenizer(checkpoints.tokenizer_config_from_released(tokenizer_config(size)))
    predictor = KronosPredictor(checkpoints.predictor_config_from_released(predictor_config(size)))
    checkpoints.load_released_tokenizer(tokenizer, original_tokenizer.state_dict())
    checkpoints.load_released_predictor(predictor, original_predictor.state_dict())
    found = original_tokenizer, original_predictor, tokenizer, predictor
    return Networks(size, *(one.eval().to(device) for one in found))


def greedy(
    nets: Networks, context: Tensor, stamps: Tensor, n: int, max_context: int
) -> tuple[Tensor, Tensor]:
    """The original's greedy tokens of `n` new bars, each (B, n)."""
    T = context.shape[1]
    seen: list[Sequence[Tensor]] = []
    decode = nets.original_tokenizer.decode

    def noting(tokens: Sequence[Tensor], half: bool) -> Tensor:
        seen.append(tokens)
        return decode(tokens, half=half)

    nets.original_tokenizer.decode = noting
    try:
        auto_regressive_inference(
            nets.original_tokenizer,
            nets.original_predictor,
            context,
            stamps[:, :T].float(),
            stamps[:, T:].float(),
            max_context,
            n,
            top_k=1,
            sample_count=1,
        )
    finally:
        del nets.original_tokenizer.decode
    s1, s2 = seen[0]
    return s1[:, -n:], s2[:, -n:]


def sampled_seconds(
    nets: Networks, context: Tensor, stamps: Tensor, n: int, max_context: int, paths: int
) -> float:
    """Seconds of the original's whole run with `paths` sample paths."""
    T = context.shape[1]
    start = now()
    auto_regressive_inference(
        nets.original_tokenizer,
        nets.original_predictor,
        context,
        stamps[:, :T].float(),
        stamps[:, T:].float(),
        max_context,
        n,
        top_k=0,
        top_p=1.0,
        sample_count=paths,
    )
    return now() - start


@torch.no_grad()
def scaled_seconds(
    nets: Networks,
    context: Tensor,
    stamps: Tensor,
    n: int,
    max_context: int,
    paths: int,
    most_rows: int,
) -> tuple[float, str]:
    """Seconds of the original's run, estimated from three of its steps, and what was measured.

    Encoding, decoding and the steps at the shortest, the middle and the longest length are
    measured on at most `most_rows` rows; a parabola through the three gives the other steps, and
    rows are scaled in proportion.
    """
    B, T, _ = context.shape
    rows = min(B * paths, most_rows)
    bars = context.repeat_interleave(paths, dim=0)[:rows]
    stamp = stamps.repeat_interleave(paths, dim=0)[:rows].float()
    lengths = np.minimum(np.arange(T, T + n), max_context)
    entries = 2**nets.predictor.config.s1_bits
    s1, s2 = torch.randint(entries, (2, rows, T + n), device=context.device)

    def step(length: int) -> float:
        start = now()
        logits, hidden = nets.original_predictor.decode_s1(
            s1[:, :length], s2[:, :length], stamp[:, :length]
        )
        chosen = sample_from_logits(logits[:, -1, :], 1.0, top_k=0, top_p=1.0)
        logits = nets.original_predictor.decode_s2(hidden, chosen)
        sample_from_logits(logits[:, -1, :], 1.0, top_k=0, top_p=1.0)
        return now() - start

    step(int(lengths[0]))
    measured = np.unique([lengths[0], lengths[n // 2], lengths[-1]])
    seconds = [step(int(length)) for length in measured]
    parabola = np.polynomial.Polynomial.fit(measured, seconds, len(measured) - 1)
    steps = float(parabola(lengths).sum())
    start = now()
    nets.original_tokenizer.encode(bars, half=True)
    window = slice(-min(T + n, max_context), None)
    nets.original_tokenizer.decode([s1[:, window], s2[:, window]], half=True)
    ends = now() - start
    scale = B * paths / rows
    part = f"{len(measured)} of {n} steps"
    part += "" if scale == 1 else f", {rows} of {B * paths} rows"
    return (steps + ends) * scale, part
