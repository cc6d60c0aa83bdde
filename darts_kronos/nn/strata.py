"""Random numbers for the sample paths of a window, which are drawn together.

Shapes by letter: B windows, S sample paths of a window, n new bars.
"""

from __future__ import annotations

import torch
from torch import Tensor

from darts_kronos.nn.graphs import uniforms

BELOW_ONE = 1 - 2.0**-24
"""The largest float32 below 1."""


def stratified(n: int, windows: int, paths: int, device: torch.device) -> Tensor:
    """Numbers in [0, 1) that draw both tokens of new bars, (n, 2, B * S), by torch's generator.

    Those of one path are independent and uniform, so that each path is drawn as if it were alone.
    Of the S paths of a window, each number of a bar lies in another S-th of [0, 1): a Latin
    hypercube (McKay, Beckman and Conover, 1979). So the tokens of a bar are as frequent among the
    paths as they are probable, and what paths say together changes less from draw to draw than if
    they knew nothing of each other.
    """
    shape = n, 2, windows, paths
    numbers = uniforms(shape, device)
    if paths > 1:
        part = uniforms(shape, device).argsort(dim=-1)
        # The sum of the last part and a number near 1 may be rounded up.
        numbers = numbers.add_(part).div_(paths).clamp_(max=BELOW_ONE)
    return numbers.flatten(2)


def drawing(n: int, windows: int, paths: int, device: torch.device, *, greedy: bool) -> Tensor:
    """What draws both tokens of new bars, (n, 2, B * S): ``stratified`` numbers.

    Where drawing is `greedy` they are zeros, and nothing is taken from torch's generator.
    """
    if greedy:
        return torch.zeros(n, 2, windows * paths, dtype=torch.float32, device=device)
    return stratified(n, windows, paths, device)
