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

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from darts_kronos.nn.rows import RowProduct, is_row
from darts_kronos.nn.tiled_linear import TiledLinear, takes

PACKED_FOR = 80
"""Rows that weights are laid out for; other numbers above one work, and gain nearly as much."""

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
        self._plain = self.weight
        self.by_onednn = _HAS_ONEDNN and on_cpu and (dtype == torch.float32 or _onednn_has(dtype))
        if rows > 1 and self.by_onednn:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, PACKED_FOR)
        self.turn = rows == 1 and on_cpu and dtype == torch.float32 and self.row is None
        self.turned: Tensor | None = None

    @cached_property
    def row(self) -> RowProduct | None:
        """The product of a single row; its kernel is loaded when there is one to make."""
        return RowProduct.of(self._plain, self.bias)

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


def _normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """RMS-normalised `x`, in few passes over memory, and the factor of each row."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    inverse = (length.square() / x.shape[-1] + eps).rsqrt()
    return (x * inverse).mul_(weight), inverse


class _Normed(torch.autograd.Function):
    """The same with its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, inverse = _normed(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        of_x, of_weight, _ = ctx.needs_input_grad
        products = gradient * x
        to_x = to_weight = None
        if of_weight:
            to_weight = inverse.flatten() @ products.flatten(0, -2)
        if of_x:
            along = (products @ weight).unsqueeze(-1) * inverse.pow(3) / -x.shape[-1]
            to_x = (gradient * weight).mul_(inverse).addcmul_(x, along)
        return to_x, to_weight, None


class RMSNorm(nn.RMSNorm):
    """Root mean square normalisation over the last axis, with a weight."""

    eps: float

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of the shape of `x`, (..., D)."""
        if x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32:
            if not torch.is_grad_enabled():
                return _normed(x, self.weight, self.eps)[0]
            out: Tensor = _Normed.apply(x, self.weight, self.eps)
            return out
        return super().forward(x)


SHARES = 2**16
"""Shares that dropout tells apart: as many as two random bytes have values."""


def draw_shares(x: Tensor) -> Tensor:
    """A share of ``SHARES`` for each entry of `x`, int16 from the least on, by which it may go.

    Torch draws a number for each entry; here two bytes of a number do.
    """
    count = x.numel()
    numbers = torch.empty(-(-count // 4), dtype=torch.int64, device=x.device)
    return numbers.random_(-(2**63), None).view(torch.int16)[:count].view(x.shape)


def dropout_scale(shares: Tensor, dropout: float, like: Tensor) -> Tensor:
    """What each entry is multiplied by: 0, or what makes up for those that are left out."""
    left_out = min(round(dropout * SHARES), SHARES - 1)
    # Straight into the data type of the product: a tensor of bools takes four times as long.
    kept = torch.ge(shares, left_out - SHARES // 2, out=torch.empty_like(like))
    return kept.mul_(SHARES / (SHARES - left_out))


class _Dropped(torch.autograd.Function):
    """Dropout, and that of its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropout: float) -> Tensor:
        shares = draw_shares(x)
        ctx.save_for_backward(shares)
        ctx.dropout = dropout
        return dropout_scale(shares, dropout, x).mul_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (shares,) = ctx.saved_tensors
        return dropout_scale(shares, ctx.dropout, gradient).mul_(gradient), None


class Dropout(nn.Dropout):
    """Dropout of a share of the entries, in multiples of 1 / ``SHARES`` on CPUs."""

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of the shape of `x`."""
        if self.training and self.p > 0 and plain_on_cpu(x):
            out: Tensor = _Dropped.apply(x, self.p)
            return out
        return super().forward(x)


class _Gated(torch.autograd.Function):
    """``silu(gate) * value`` and its gradients, in one piece; nothing in between is kept."""

    @staticmethod
    def forward(ctx: Any, gate_value: Tensor) -> Tensor:
        ctx.save_for_backward(gate_value)
        gate, value = gate_value.chunk(2, dim=-1)
        return F.silu(gate).mul_(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (gate_value,) = ctx.saved_tensors
        out = torch.empty_like(gate_value)
        (gate, value), (to_gate, to_value) = gate_value.chunk(2, dim=-1), out.chunk(2, dim=-1)
        torch.mul(gradient, F.silu(gate), out=to_value)
        torch.ops.aten.silu_backward.grad_input(gradient * value, gate, grad_input=to_gate)
        return out


def gated(gate_value: Tensor) -> Tensor:
    """``silu(gate) * value``, (..., F), of both in one, (..., 2 F), in that order."""
    if torch.is_grad_enabled() and plain_on_cpu(gate_value):
        out: Tensor = _Gated.apply(gate_value)
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
