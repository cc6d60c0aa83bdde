"""The tokenizer: a causal autoencoder that writes each bar as a coarse and a fine token.

Shapes by letter: B windows, S sample paths, T bars, M new bars, C components, D width,
Q1 and Q2 bits of the coarse and of the fine token, Q = Q1 + Q2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from darts_kronos.nn.config import TokenizerConfig
from darts_kronos.nn.kernels import Linear
from darts_kronos.nn.layers import Block, Cache, CausalStack
from darts_kronos.nn.quantizer import (
    BinarySphericalQuantizer,
    bits_to_ids,
    ids_to_bits,
    weighted_mean,
)


class TokenizerLoss(NamedTuple):
    """The tokenizer's loss and its parts, scalars, with the tokens it gave, (B, T).

    ``loss = (recon_loss_s1 + recon_loss + vq_loss) / 2``.
    """

    loss: Tensor
    vq_loss: Tensor
    recon_loss_s1: Tensor
    recon_loss: Tensor
    s1: Tensor
    s2: Tensor


class KronosTokenizer(nn.Module):
    """Candles to tokens and back (arXiv 2508.02739, section 3.1).

    Parameters
    ----------
    config
        Shape and loss weights.
    """

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config

        def stack(n_layers: int) -> CausalStack:
            blocks = [
                Block(
                    d_model=config.d_model,
                    n_heads=config.n_heads,
                    ff_dim=config.ff_dim,
                    ffn_dropout=config.ffn_dropout,
                    attn_dropout=config.attn_dropout,
                    resid_dropout=config.resid_dropout,
                )
                for _ in range(n_layers)
            ]
            return CausalStack(blocks, config.d_model // config.n_heads)

        n_bits = config.s1_bits + config.s2_bits
        self.embed = Linear(config.n_components, config.d_model)
        self.encoder = stack(config.n_encoder_layers)
        self.to_code = Linear(config.d_model, n_bits)
        self.quantizer = BinarySphericalQuantizer(
            beta=config.beta, gamma0=config.gamma0, gamma=config.gamma, zeta=config.zeta
        )
        self.from_s1 = Linear(config.s1_bits, config.d_model)
        self.from_code = Linear(n_bits, config.d_model)
        self.decoder = stack(config.n_decoder_layers)
        self.head = Linear(config.d_model, config.n_components)

    def _split(self, code: Tensor) -> tuple[Tensor, Tensor]:
        s1, s2 = code.split((self.config.s1_bits, self.config.s2_bits), dim=-1)
        return bits_to_ids(s1), bits_to_ids(s2)

    def _code(self, s1: Tensor, s2: Tensor) -> Tensor:
        bits = torch.cat(
            (ids_to_bits(s1, self.config.s1_bits), ids_to_bits(s2, self.config.s2_bits)), dim=-1
        )
        return (bits * bits.shape[-1] ** -0.5).to(self.from_code.weight.dtype)

    def _encode(self, bars: Tensor) -> tuple[Tensor, Tensor]:
        return self.quantizer(self.to_code(self.encoder(self.embed(bars))))

    def encode(self, bars: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of normalised bars.

        Parameters
        ----------
        bars
            Shape (B, T, C).

        Returns
        -------
        tuple of Tensor
            Coarse and fine tokens, each (B, T), int64, in [0, 2**bits).
        """
        code, _ = self._encode(bars)
        return self._split(code)

    def decode(self, s1: Tensor, s2: Tensor) -> Tensor:
        """Normalised bars (B, T, C) of coarse and fine tokens, each (B, T)."""
        return self.head(self.decoder(self.from_code(self._code(s1, s2))))

    def decode_coarse(self, s1: Tensor) -> Tensor:
        """Normalised bars (B, T, C) as the coarse tokens (B, T) alone tell them."""
        scale = (self.config.s1_bits + self.config.s2_bits) ** -0.5
        code = (ids_to_bits(s1, self.config.s1_bits) * scale).to(self.from_s1.weight.dtype)
        return self.head(self.decoder(self.from_s1(code)))

    def prefill(self, s1: Tensor, s2: Tensor, capacity: int) -> Cache:
        """What the decoder keeps of windows of tokens (B, T), for `capacity` bars of each path."""
        return self.decoder.prefill(self.from_code(self._code(s1, s2)), capacity)[1]

    def extend(self, s1: Tensor, s2: Tensor, cache: Cache) -> Tensor:
        """Normalised bars (B, S, M, C) of the paths' new tokens (B, S, M), after the windows."""
        return self.head(self.decoder.extend(self.from_code(self._code(s1, s2)), cache))

    def forward(self, bars: Tensor, weights: Tensor | None = None) -> TokenizerLoss:
        """The training loss on normalised bars (B, T, C).

        With `weights` (B, T), each bar counts as much as its own; those of 0 are left out.
        """
        code, unit = self._encode(bars)
        both = self.from_s1(code[..., : self.config.s1_bits]), self.from_code(code)
        if bars.device.type == "cpu":
            # Tensors of half the size are allocated faster, which counts for more.
            coarse, fine = (self.head(self.decoder(one)) for one in both)
        else:
            # Both reconstructions in one pass over twice the windows.
            coarse, fine = self.head(self.decoder(torch.cat(both))).chunk(2)
        vq_loss = self.quantizer.loss(code, unit, weights)
        recon_loss_s1 = weighted_mean(((coarse - bars) ** 2).mean(dim=-1), weights)
        recon_loss = weighted_mean(((fine - bars) ** 2).mean(dim=-1), weights)
        s1, s2 = self._split(code)
        loss = (recon_loss_s1 + recon_loss + vq_loss) / 2
        return TokenizerLoss(loss, vq_loss, recon_loss_s1, recon_loss, s1, s2)
