"""What both sides are given, and what they read of it; needs torch and the networks alone.

Shapes by letter: B windows, T bars.
"""

from __future__ import annotations

import torch
from torch import Tensor

from darts_kronos.generation import Sampling
from darts_kronos.nn.predictor import KronosPredictor

NEARLY_GREEDY = Sampling(temperature=1e-6)
"""Draws the most probable token by the way that sampling takes, in all paths."""


def random_windows(windows: int, bars: int, ahead: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Normalised random walks (B, T, 6), and stamps (B, T + ahead, 5)."""
    generator = torch.Generator().manual_seed(seed)
    walks = torch.randn(windows, bars, 6, generator=generator).cumsum(dim=1)
    walks = (walks - walks.mean(dim=1, keepdim=True)) / walks.std(dim=1, keepdim=True)
    fields = [
        torch.randint(low, high, (windows, bars + ahead), generator=generator)
        for low, high in ((0, 60), (0, 24), (0, 7), (1, 32), (1, 13))
    ]
    return walks.clamp(-5, 5), torch.stack(fields, dim=-1)


def weight_bytes(predictor: KronosPredictor, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of weights that one step of the predictor reads: its blocks, s2 layer and heads."""
    s2 = predictor.s2_conditioning
    parts = *predictor.transformer.blocks, s2.key_value, s2.out
    parts += predictor.s1_head, predictor.s2_head
    return sum(p.numel() for part in parts for p in part.parameters()) * dtype.itemsize
