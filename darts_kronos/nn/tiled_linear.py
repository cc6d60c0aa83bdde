"""Linear layers by compiled tiles: of many rows, on CPUs, in float32, with gradients.

Shapes by letter: ... any leading shape, N rows in all, I and O widths in and out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from darts_kronos.nn.kernel_modules import kernel_module, linear_kernels

LEAST_ROWS = 128
"""Rows from which on it pays to lay the weight out for them."""

PROCESSORS = ("znver4",)
"""LLVM's names of those on which the kernels were measured to be faster than oneDNN's."""

NO_BIAS = np.empty(0, dtype=np.float32)


def takes(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels are there, and the faster way.

    With several threads libraries are: theirs do not sleep between products.
    """
    if torch.get_num_threads() > 1 or x.shape[:-1].numel() < LEAST_ROWS:
        return False
    kernels, tiles = linear_kernels(), kernel_module("tiles")
    if kernels is None or tiles is None or tiles.PROCESSOR not in PROCESSORS:
        return False
    return not any(width % tiles.LANES for width in weight.shape)


def _product(kernels: Any, x: Tensor, panels: Tensor, bias: Tensor | None) -> Tensor:
    """Outputs (..., O) of inputs (..., I)."""
    outputs = panels.shape[0] * panels.shape[2]
    out = x.new_empty(*x.shape[:-1], outputs)
    rows, of_out = x.view(-1, x.shape[-1]).numpy(), out.view(-1, outputs).numpy()
    of_bias = NO_BIAS if bias is None else bias.detach().contiguous().numpy()
    kernels.product(rows, panels.numpy(), of_bias, of_out)
    return out


class TiledLinear(torch.autograd.Function):
    """``x @ weight.T + bias`` and its gradients; all in one piece each."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        kernels: Any = linear_kernels()
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        (outputs, inputs), lanes = weight.shape, kernels.LANES
        panels = x.new_empty(outputs // lanes, inputs, lanes)
        kernels.turn_weight(weight.detach().numpy(), panels.numpy())
        return _product(kernels, x.detach(), panels, bias)

    @staticmethod
    @once_differentiable
    def backward(  # noqa: D102
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        kernels: Any = linear_kernels()
        x, weight = (one.detach() for one in ctx.saved_tensors)
        of_x, of_weight, of_bias = ctx.needs_input_grad
        (outputs, inputs), lanes = weight.shape, kernels.LANES
        gradient = gradient.contiguous()
        to_x = to_weight = None
        if of_x:
            panels = x.new_empty(inputs // lanes, outputs, lanes)
            kernels.cut_weight(weight.numpy(), panels.numpy())
            to_x = _product(kernels, gradient, panels, None)
        rows = gradient.view(-1, outputs)
        if of_weight:
            to_weight = torch.empty_like(weight)
            kernels.to_weight(rows.numpy(), x.view(-1, inputs).numpy(), to_weight.numpy())
        to_bias = rows.sum(dim=0) if ctx.has_bias and of_bias else None
        return to_x, to_weight, to_bias
