"""Linear layers, norms and dropout by the fastest way that the device has.

On CPUs torch multiplies float32 matrices with its BLAS library, which on many processors is half
as fast as oneDNN, the library that torch brings along for other data types. Here oneDNN is asked
for float32 too, in training and in generation, wherever this build of torch has it. Single rows are
left to a kernel that numba compiles, unless torch has many threads for large weights.

Shapes by letter: ... any leading shape, I and O widths in and out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from darts_kronos.nn.kernel_modules import gpu_layers, layer_kernels
from darts_kronos.nn.rows import RowProduct, is_row
from darts_kronos.nn.sharing import share
from darts_kronos.nn.tiled_linear import TiledLinear, takes

PACKED_FOR = 80
"""Rows that weights are laid out for; other numbers above one work, and gain nearly as much."""

ROWS_OF_A_PART = 256
"""Rows that it pays to give a thread of its own for what comes between products."""

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
)


def plain_on_cpu(*tensors: Tensor) -> bool:
    """Whether these are float32 on a CPU, and are to be worked on as they are."""
    return (
        all(one.dtype == torch.float32 and one.device.type == "cpu" for one in tensors)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _by_onednn(*tensors: Tensor) -> bool:
    """Whether oneDNN is there and its product of these is one of float32 on a CPU."""
    return _HAS_ONEDNN and plain_on_cpu(*tensors)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


class _OneDnnLinear(torch.autograd.Function):
    """``x @ weight.T + bias`` and its gradients, all by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        gradient = gradient.contiguous()
        rows, inputs = gradient.flatten(0, -2), x.flatten(0, -2)
        to_x = _onednn(gradient, weight.t(), None) if of_x else None
        to_weight = None
        if of_weight and weight.shape[0] > weight.shape[1]:
            to_weight = _onednn(inputs.t(), rows.t(), None).t()
        elif of_weight:
            to_weight = _onednn(rows.t(), inputs.t(), None)
        to_bias = rows.sum(dim=0) if ctx.has_bias and of_bias else None
        return to_x, to_weight, to_bias


class PackedWeights:
    """Weights of a linear layer, made ready once for many small products without gradients.

    Parameters
    ----------
    layer
        The layer.
    dtype
        Data type of the product; the result has that of the input.
    rows
        Rows of the products that are many enough to lay the weights out for them; 0: there are
        none. Products of other numbers of rows are made as well.
    """

    def __init__(self, layer: nn.Linear, dtype: torch.dtype, rows: int):
        self.dtype = dtype
        self.weight = layer.weight.detach().to(dtype)
        self.bias = None if layer.bias is None else layer.bias.detach().to(dtype)
        on_cpu = self.weight.device.type == "cpu"
        self.plain = self.weight
        self.by_onednn = _HAS_ONEDNN and on_cpu and (dtype == torch.float32 or _onednn_has(dtype))
        if rows > 1 and self.by_onednn:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, PACKED_FOR)
        self.turn = rows == 1 and on_cpu and dtype == torch.float32 and self.row is None
        self.turned: Tensor | None = None

    @cached_property
    def row(self) -> RowProduct | None:
        """The product of a single row; its kernel is loaded when there is one to make."""
        return RowProduct.of(self.plain, self.bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Products (..., O) of inputs (..., I)."""
        if is_row(x) and self.row is not None:
            return self.row(x.float()).to(x.dtype)
        if self.turn and is_row(x):
            # Torch's own product reads weights fastest that lie input by input.
            if self.turned is None:
                self.turned = self.weight.t().contiguous().t()
            return F.linear(x.float(), self.turned, self.bias).to(x.dtype)
        product = _onednn if self.by_onednn else F.linear
        return product(x.to(self.dtype).contiguous(), self.weight, self.bias).to(x.dtype)


def _onednn_has(dtype: torch.dtype) -> bool:
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return dtype == torch.bfloat16 and supported is not None and bool(supported())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias``, (..., O), of inputs (..., I), with gradients."""
    if plain_on_cpu(x, weight) and takes(x, weight):
        tiled: Tensor = TiledLinear.apply(x.contiguous(), weight.contiguous(), bias)
        return tiled
    if _by_onednn(x, weight) and x.numel() > 0:
        # Of parts of larger tensors oneDNN makes nothing fast.
        out: Tensor = _OneDnnLinear.apply(x.contiguous(), weight.contiguous(), bias)
        return out
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """A linear layer.

    Attributes
    ----------
    packed
        Its weights for many products without gradients, while there are such to make.
    """

    packed: PackedWeights | None = None

    def pack(self, dtype: torch.dtype, rows: int) -> None:
        """Make the weights ready for products of `dtype` and `rows` rows."""
        self.packed = PackedWeights(self, dtype, rows)

    def unpack(self) -> None:
        """Go back to products with gradients."""
        self.packed = None

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (..., O) of inputs (..., I)."""
        packed = self.packed  # another thread may unpack at any time
        if packed is not None:
            return packed(x)
        return linear(x, self.weight, self.bias)


def are_plain(*layers: nn.Module) -> bool:
    """Whether these are linear layers and no other class, such as an adapter around one."""
    return all(type(layer) is Linear for layer in layers)


def _rows(x: Tensor) -> NDArray[np.float32]:
    """Rows of the last axis, which share the memory of a tensor in one piece."""
    return x.detach().view(x.shape[:-1].numel(), x.shape[-1]).numpy()


def _share_rows(kernel: Any, x: Tensor, *given: Any) -> None:
    """Give threads rows of their own, of `x` and of what the kernel is given after it."""
    rows = _rows(x)
    share(lambda first, end: kernel(first, end, rows, *given), len(rows), ROWS_OF_A_PART)


class _Normed(torch.autograd.Function):
    """RMS normalisation and its gradients, each in one pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, kernels: Any) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        out, scales = torch.empty_like(x), x.new_empty(x.shape[:-1].numel())
        given = weight.detach().numpy(), eps, _rows(out), scales.numpy()
        _share_rows(kernels.normed, x, *given)
        ctx.save_for_backward(x, weight, scales)
        ctx.kernels = kernels
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, scales = ctx.saved_tensors
        to_x, parts = torch.empty_like(x), []
        given = weight.detach().numpy(), scales.numpy(), _rows(gradient.contiguous()), _rows(to_x)

        def of_part(first: int, end: int, rows: NDArray[np.float32], *given: Any) -> None:
            to_weight = torch.zeros_like(weight)
            ctx.kernels.to_normed(first, end, rows, *given, to_weight.numpy())
            parts.append((first, to_weight))

        _share_rows(of_part, x, *given)
        # In order, so that a seed gives the same sums again.
        in_order = [part for _, part in sorted(parts, key=lambda one: one[0])]
        return to_x, torch.stack(in_order).sum(dim=0), None, None


class RMSNorm(nn.RMSNorm):
    """Root mean square normalisation over the last axis, with a weight."""

    eps: float

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of the shape of `x`, (..., D)."""
        kernels = layer_kernels()
        on_cpu = x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
        if kernels is not None and on_cpu and not torch.compiler.is_compiling():
            out: Tensor = _Normed.apply(x, self.weight, self.eps, kernels)
            return out
        if x.is_cuda:
            # In two data types it is many passes.
            return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)
        return super().forward(x)


SHARES = 2**32
"""Entries that dropout counts by: as many as a random number has values."""


def drawn(dropout: float) -> tuple[np.uint32, np.uint32]:
    """What kernels are told of dropout: a number of torch's generator, and how many entries go."""
    number = int(torch.randint(SHARES, ())) if dropout > 0 else 0
    return np.uint32(number), np.uint32(min(round(dropout * SHARES), SHARES - 1))


class _Dropped(torch.autograd.Function):
    """Dropout, and that of its gradients; nothing is kept but the number that draws."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropout: Any, kernels: Any) -> Tensor:
        ctx.dropout, ctx.kernels = dropout, kernels
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        _share_rows(kernels.drop, x.contiguous(), dropout, _rows(out))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        out = torch.empty_like(gradient, memory_format=torch.contiguous_format)
        _share_rows(ctx.kernels.drop, gradient.contiguous(), ctx.dropout, _rows(out))
        return out, None, None


class Dropout(nn.Dropout):
    """Dropout of a share of the entries."""

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of the shape of `x`."""
        if self.training and self.p > 0 and plain_on_cpu(x):
            kernels = layer_kernels()
            if kernels is not None:
                out: Tensor = _Dropped.apply(x, drawn(self.p), kernels)
                return out
        return super().forward(x)


class _Gated(torch.autograd.Function):
    """``silu(gate) * value`` and its gradients, in one pass; nothing in between is kept."""

    @staticmethod
    def forward(ctx: Any, gate_value: Tensor, kernels: Any) -> Tensor:
        gate_value = gate_value.contiguous()
        ctx.save_for_backward(gate_value)
        ctx.kernels = kernels
        out = gate_value.new_empty(*gate_value.shape[:-1], gate_value.shape[-1] // 2)
        _share_rows(kernels.gate, gate_value, _rows(out))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (gate_value,) = ctx.saved_tensors
        out = torch.empty_like(gate_value)
        _share_rows(ctx.kernels.to_gate, gate_value, _rows(gradient.contiguous()), _rows(out))
        return out, None


class _GatedOnGpu(torch.autograd.Function):
    """The same on a GPU."""

    @staticmethod
    def forward(ctx: Any, gate_value: Tensor, kernels: Any) -> Tensor:
        gate_value = gate_value.contiguous()
        ctx.save_for_backward(gate_value)
        ctx.kernels = kernels
        out: Tensor = kernels.gate(gate_value.flatten(0, -2))
        return out.view(*gate_value.shape[:-1], out.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (gate_value,) = ctx.saved_tensors
        rows = gate_value.flatten(0, -2), gradient.contiguous().flatten(0, -2)
        return ctx.kernels.to_gate(*rows).view_as(gate_value), None


def gated(gate_value: Tensor) -> Tensor:
    """``silu(gate) * value``, (..., F), of both in one, (..., 2 F), in that order."""
    on_gpu = gpu_layers(gate_value)
    if on_gpu is not None:
        by_triton: Tensor = _GatedOnGpu.apply(gate_value, on_gpu)
        return by_triton
    kernels = layer_kernels()
    if kernels is not None and plain_on_cpu(gate_value):
        out: Tensor = _Gated.apply(gate_value, kernels)
        return out
    gate, value = gate_value.chunk(2, dim=-1)
    return F.silu(gate) * value


@contextmanager
def packed(network: nn.Module, dtype: torch.dtype, rows: int) -> Iterator[None]:
    """Pack the weights of all layers for the block, for products of `dtype`.

    Within it there are no gradients, and weights must not change.

    Parameters
    ----------
    network
        Whose layers are packed.
    dtype
        Data type of the products.
    rows
        Rows of the products that are many enough to lay weights out for them; 0: there are none.
    """
    layers = [module for module in network.modules() if isinstance(module, Linear)]
    try:
        for layer in layers:
            layer.pack(dtype, rows)
        yield
    finally:
        for layer in layers:
            layer.unpack()
