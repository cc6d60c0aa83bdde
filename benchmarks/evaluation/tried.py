"""Changes that were measured and not kept, as what they would change of the package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from darts_kronos import module
from darts_kronos.nn.predictor import KronosPredictor
from evaluation.data import CONTEXT

CONTEXT_WEIGHT = 0.3
"""What a bar of the context counts against one of the horizon, in "horizon weighted"."""


@contextmanager
def horizon_weighted() -> Iterator[None]:
    """The predictor's loss with bars of the horizon counting more than those of the context."""
    own = KronosPredictor.loss

    def loss(
        self: KronosPredictor, s1: Tensor, s2: Tensor, stamps: Tensor | None, weights: None = None
    ) -> Any:
        if not self.training:
            return own(self, s1, s2, stamps)
        counts = torch.ones(s1.shape)
        counts[:, :CONTEXT] = CONTEXT_WEIGHT
        return own(self, s1, s2, stamps, counts / counts[:, 1:].mean())

    with patch.object(KronosPredictor, "loss", loss):
        yield


@contextmanager
def told_the_next_stamp() -> Iterator[None]:
    """Each bar comes with the stamp of the bar after it, which is the one that s1 is drawn for."""
    own_loss, own_generate = KronosPredictor.loss, module.generate

    def ahead(stamps: Tensor | None) -> Tensor | None:
        return None if stamps is None else torch.cat((stamps[:, 1:], stamps[:, -1:]), dim=1)

    def loss(
        self: KronosPredictor,
        s1: Tensor,
        s2: Tensor,
        stamps: Tensor | None,
        weights: Tensor | None = None,
    ) -> Any:
        return own_loss(self, s1, s2, ahead(stamps), weights)

    def generate(
        tokenizer: Any, predictor: Any, context: Tensor, stamps: Tensor | None, **kwargs: Any
    ) -> Tensor:
        return own_generate(tokenizer, predictor, context, ahead(stamps), **kwargs)

    with (
        patch.object(KronosPredictor, "loss", loss),
        patch.object(module, "generate", generate),
    ):
        yield
