"""How training windows are varied, so that the networks learn markets and not the training set.

A bar lies in as many windows as a window has bars, so a network that can tell which bar it sees
soon knows what came next. Signs, sizes, volumes and dates that change from window to window leave
it nothing to know a bar by.

Shapes by letter: B windows, T bars of a window, C components.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from darts_kronos.representation import Representation

DAY, MONTH = 3, 4
"""Places of these fields in a calendar stamp, which count from 1."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How training windows are varied; nothing is, by default.

    Parameters
    ----------
    mirror
        Probability that prices are turned upside down: of each bar by itself where bars are
        returns, else of a whole window.
    price_jitter
        Standard deviation of the logarithm of a factor, one for each window, on its normalised
        prices.
    volume_jitter
        Standard deviation of what is added to each bar's normalised volume and amount, the same
        for both.
    volume_dropout
        Probability that a window's volume and amount are as if unknown: 0.
    date_shift
        Probability that a window's days of the month, and its months, are shifted by a random
        number of days and of months. Time of day and weekday stay.
    """

    mirror: float = 0.0
    price_jitter: float = 0.0
    volume_jitter: float = 0.0
    volume_dropout: float = 0.0
    date_shift: float = 0.0

    @property
    def leaves_bars(self) -> bool:
        """Whether windows' bars stay as they are; their stamps may still be varied."""
        return not any((self.mirror, self.price_jitter, self.volume_jitter, self.volume_dropout))

    def bars(self, normalised: Tensor, representation: Representation) -> Tensor:
        """Normalised windows (B, T, C), varied; within [-clip, clip] as they were."""
        (B, T, _), device = normalised.shape, normalised.device
        prices, volumes = representation.prices, representation.volumes
        if self.mirror > 0:
            chances = torch.rand(B, T if representation.separate_bars else 1, 1, device=device)
            turned = representation.mirrored(normalised)
            normalised = torch.where(chances < self.mirror, turned, normalised)
        if self.price_jitter > 0 and prices:
            factor = (self.price_jitter * torch.randn_like(normalised[:, :1, :1])).exp()
            normalised[..., prices] = normalised[..., prices] * factor
        if self.volume_jitter > 0 and volumes:
            noise = self.volume_jitter * torch.randn_like(normalised[..., :1])
            normalised[..., volumes] = normalised[..., volumes] + noise
        if self.volume_dropout > 0 and volumes:
            dropped = torch.rand(B, 1, 1, device=device) < self.volume_dropout
            normalised[..., volumes] = normalised[..., volumes].masked_fill(dropped, 0.0)
        return normalised.clamp(-representation.clip, representation.clip)

    def stamps(self, stamps: Tensor | None) -> Tensor | None:
        """Calendar stamps (B, T, 5) of windows, varied; None as it is."""
        if stamps is None or self.date_shift == 0:
            return stamps
        B, device = len(stamps), stamps.device
        shifted = torch.rand(B, 1, device=device) < self.date_shift
        varied = stamps.clone()
        for place, size in ((DAY, 31), (MONTH, 12)):
            by = torch.randint(size, (B, 1), device=device).where(shifted, 0)
            varied[..., place] = (stamps[..., place] - 1 + by) % size + 1
        return varied
