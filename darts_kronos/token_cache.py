"""Tokens of windows that a frozen tokenizer has seen before.

Stage two reads the same windows in every epoch, and validates on the same ones after each. Where
nothing is varied about them, their tokens stay the same, and encoding them once is enough.

Shapes by letter: B windows, T bars, C components.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from darts_kronos.nn.tokenizer import KronosTokenizer

CACHE_BYTES = 256 * 2**20
"""Memory that kept tokens may take; windows that come after it is full are encoded each time."""


class TokenCache:
    """Tokens of normalised windows, found by the windows' content, for one tokenizer.

    On CPUs only: to look at a window's content elsewhere would mean waiting for the device, which
    encodes it as quickly.

    Parameters
    ----------
    most_bytes
        Bound on the memory of the tokens.
    """

    def __init__(self, most_bytes: int = CACHE_BYTES):
        self.most_bytes = most_bytes
        self.bytes = 0
        self._tokens: dict[bytes, Tensor] = {}

    @torch.no_grad()
    def encode(self, tokenizer: KronosTokenizer, bars: Tensor) -> tuple[Tensor, Tensor]:
        """Coarse and fine tokens, each (B, T), of windows (B, T, C)."""
        if bars.device.type != "cpu":
            return tokenizer.encode(bars)
        windows = np.ascontiguousarray(bars.detach().numpy())
        keys = [blake2b(window.data, digest_size=16).digest() for window in windows]
        new = [i for i, key in enumerate(keys) if key not in self._tokens]
        fresh: dict[int, Tensor] = {}
        if new:
            # Tokens have at most 20 bits.
            encoded = torch.stack(tokenizer.encode(bars[new]), dim=1).int()
            fresh = dict(zip(new, encoded, strict=True))
            for i, tokens in fresh.items():
                size = tokens.numel() * tokens.element_size()
                if self.bytes + size <= self.most_bytes and keys[i] not in self._tokens:
                    self._tokens[keys[i]] = tokens.clone()
                    self.bytes += size
        both = [fresh[i] if i in fresh else self._tokens[key] for i, key in enumerate(keys)]
        s1, s2 = torch.stack(both).long().unbind(dim=1)
        return s1, s2
