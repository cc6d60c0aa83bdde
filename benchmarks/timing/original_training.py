"""The original's training, on windows that ours is given, too.

Shapes by letter: B windows, T bars, C components.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timing import original
from timing.clock import WrongAnswer


@dataclass(frozen=True)
class Batch:
    """A batch as both sides see it: normalised bars (B, T, C) and stamps (B, T, 5)."""

    bars: Tensor
    stamps: Tensor


def tokenizer_loss(network: nn.Module, batch: Batch) -> Tensor:
    """The original's loss of stage one."""
    (coarse, fine), bsq_loss, _, _ = network(batch.bars)
    return (F.mse_loss(coarse, batch.bars) + F.mse_loss(fine, batch.bars) + bsq_loss) / 2


def predictor_losses(
    tokenizer: nn.Module, network: nn.Module, batch: Batch
) -> tuple[Tensor, Tensor]:
    """The original's loss of stage two, and its part of the coarse token."""
    with torch.no_grad():
        s1, s2 = tokenizer.encode(batch.bars, half=True)
    logits = network(s1[:, :-1], s2[:, :-1], batch.stamps[:, :-1].float())
    loss, s1_loss, _ = network.head.compute_loss(*logits, s1[:, 1:], s2[:, 1:])
    return loss, s1_loss


def check(nets: original.Networks, batch: Batch) -> None:
    """Compare losses of equal weights without dropout; of the fine token, they differ by design.

    Raises
    ------
    WrongAnswer
        If a loss differs.
    """
    few = Batch(batch.bars[:2], batch.stamps[:2])
    with torch.no_grad():
        s1, s2 = nets.tokenizer.encode(few.bars)
        pairs = {
            "tokenizer": (
                nets.tokenizer(few.bars).loss,
                tokenizer_loss(nets.original_tokenizer, few),
            ),
            "coarse token": (
                nets.predictor.loss(s1, s2, few.stamps).s1_loss,
                predictor_losses(nets.original_tokenizer, nets.original_predictor, few)[1],
            ),
        }
    for name, (mine, theirs) in pairs.items():
        if not torch.isclose(mine, theirs, rtol=1e-4):
            raise WrongAnswer(f"{nets.size}: the {name} loss is {mine:.6f}, not {theirs:.6f}.")


class Training:
    """A stage of the original's training: loss, gradients, clipping, AdamW.

    Parameters
    ----------
    nets
        Networks of both sides.
    stage
        "tokenizer" or "predictor".
    precision
        "32-true", or "bf16-mixed": under torch's autocast.
    """

    def __init__(self, nets: original.Networks, stage: str, precision: str):
        self.nets, self.stage, self.precision = nets, stage, precision
        of_tokenizer = stage == "tokenizer"
        self.network = nets.original_tokenizer if of_tokenizer else nets.original_predictor
        self.most = 2.0 if of_tokenizer else 3.0
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1
        )

    def step(self, batch: Batch) -> None:
        """Train on a batch."""
        nets, device = self.nets, batch.bars.device.type
        self.network.train()
        with torch.autocast(device, torch.bfloat16, enabled=self.precision != "32-true"):
            if self.stage == "tokenizer":
                loss = tokenizer_loss(self.network, batch)
            else:
                loss, _ = predictor_losses(nets.original_tokenizer, self.network, batch)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.most)
        self.optimizer.step()
        self.network.eval()
