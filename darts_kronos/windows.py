"""Training batches as the networks see them: normalised, varied, aligned, weighted.

Shapes by letter: B windows, T bars of the context, n bars of the horizon, C components that the
networks see, G of these that series have.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from darts.utils.data.torch_datasets.utils import (
    PLModuleInput,
    TorchInferenceBatch,
    TorchTrainingBatch,
)
from torch import Tensor

from darts_kronos.augmentation import Augmentation
from darts_kronos.representation import Representation


class TrainingWindows(NamedTuple):
    """Windows of context and horizon.

    Attributes
    ----------
    bars
        Normalised, (B, T + n, C). A window with a shorter context starts at the first place too,
        and ends in zeros: causal networks need no mask for what comes after.
    stamps
        Calendar stamps, integers (B, T + n, 5); None without a calendar.
    weights
        What each bar counts in a loss, (B, T + n), 0 for those that are none; None: all the same.
    """

    bars: Tensor
    stamps: Tensor | None
    weights: Tensor | None

    def counted(self, tokens: Tensor) -> Tensor:
        """Those of the tokens (B, T + n) whose bars count."""
        return tokens if self.weights is None else tokens[self.weights != 0]

    def n_counted(self, first: int = 0) -> int:
        """Number of bars that count, from the place `first` on of each window."""
        if self.weights is None:
            return self.bars[:, first:, 0].numel()
        return int(self.weights[:, first:].count_nonzero())

    def last(self, length: int, *tokens: Tensor) -> tuple[list[Tensor], TrainingWindows]:
        """The last `length` bars of each window, of tokens (B, T + n) too."""
        whole = self.bars.shape[1]
        if length >= whole:
            return list(tokens), self
        ends = torch.full((len(self.bars),), whole, device=self.bars.device)
        if self.weights is not None:
            # The last bar that counts ends a window; one without any may end anywhere.
            place = torch.arange(1, whole + 1, device=ends.device)
            ends = ((self.weights != 0) * place).amax(dim=1)
        first = (ends - length).clamp(min=0)
        index = first.unsqueeze(1) + torch.arange(length, device=ends.device)
        rows = torch.arange(len(index), device=ends.device).unsqueeze(1)
        return [one[rows, index] for one in tokens], TrainingWindows(
            self.bars[rows, index],
            None if self.stamps is None else self.stamps[rows, index],
            None if self.weights is None else self.weights[rows, index],
        )


def training_windows(
    batch: TorchTrainingBatch,
    representation: Representation,
    augmentation: Augmentation,
    variable_context: bool,
    dtype: torch.dtype,
) -> TrainingWindows:
    """A training batch as the networks see it.

    Parameters
    ----------
    batch
        Darts' batch. Contexts that are shorter than others begin with bars of NaN.
    representation
        How the tokenizer sees bars.
    augmentation
        How windows are varied.
    variable_context
        Whether there may be shorter contexts.
    dtype
        Of the networks.
    """
    T = batch.past_target.shape[1]
    bars = torch.cat((batch.past_target, batch.future_target), dim=1)
    stamps, weights = _joined_stamps(batch), _bar_weights(batch)
    missing = missing_bars(batch.past_target) if variable_context else None
    if missing is None or not missing.any():
        normalised, _ = representation.encode(bars, T)
        whole = None if stamps is None else stamps.long()
    else:
        place = torch.arange(bars.shape[1], device=bars.device)
        shape = (*bars.shape[:2], len(representation.components))
        normalised = bars.new_zeros(shape, dtype=torch.float32)
        for m in missing.unique().tolist():
            rows = missing == m
            found, _ = representation.encode(bars[rows, m:], T - m)
            normalised[rows, : bars.shape[1] - m] = found
        there = place < (len(place) - missing).unsqueeze(1)
        source = (place + missing.unsqueeze(1)).clamp(max=len(place) - 1)
        rows = torch.arange(len(bars), device=bars.device).unsqueeze(1)
        whole = None if stamps is None else stamps[rows, source].long()
        weights = torch.ones_like(normalised[..., 0]) if weights is None else weights[rows, source]
        weights = weights * there
    varied = augmentation.bars(normalised, representation)
    return TrainingWindows(varied.to(dtype), augmentation.stamps(whole), weights)


def missing_bars(context: Tensor) -> Tensor:
    """Number of bars of NaN that each context (B, T, G) begins with, (B,)."""
    return context[..., 0].isnan().sum(dim=1)


def stamps_of(batch: TorchTrainingBatch | TorchInferenceBatch | PLModuleInput) -> Tensor | None:
    """Calendar stamps of context and horizon, integers (B, T + n, 5); None without a calendar."""
    stamps = _joined_stamps(batch)
    return None if stamps is None else stamps.nan_to_num().long()


def _joined_stamps(
    batch: TorchTrainingBatch | TorchInferenceBatch | PLModuleInput,
) -> Tensor | None:
    """Stamps as they travel, as future covariates."""
    known, ahead = batch.historic_future_covariates, batch.future_covariates
    return None if known is None or ahead is None else torch.cat((known, ahead), dim=1)


def _bar_weights(batch: TorchTrainingBatch) -> Tensor | None:
    """Weights of all bars, (B, T + n).

    Darts gives those of the horizon; bars of the context count as the horizon does in the mean.
    """
    if batch.sample_weight is None:
        return None
    horizon = batch.sample_weight.mean(dim=-1).float()
    context = horizon.mean(dim=1, keepdim=True).expand(-1, batch.past_target.shape[1])
    return torch.cat((context, horizon), dim=1)
