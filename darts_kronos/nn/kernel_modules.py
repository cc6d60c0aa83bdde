"""The modules of compiled kernels: loaded when they are first asked for, if at all."""

from __future__ import annotations

import logging
from functools import lru_cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

OF_GPU = (torch.float32, torch.bfloat16, torch.float16)
"""Data types that Triton's kernels take; they sum up in float32."""

_LOGGER = logging.getLogger(__name__)


@lru_cache
def kernel_module(name: str) -> ModuleType | None:
    """A module of kernels of numba; None where that is not there, or may not compile."""
    try:
        from numba import config

        if getattr(config, "DISABLE_JIT", False):
            return None
        return import_module(f"darts_kronos.nn.{name}")
    except ImportError:
        return None


@lru_cache
def gpu_kernels() -> ModuleType | None:
    """The kernels of paths on a GPU; None without Triton, which compiles them."""
    return _of_triton("gpu_kernels")


def gpu_layers(x: Tensor) -> ModuleType | None:
    """The kernels of what comes between products, for a tensor on a GPU.

    None without Triton, for tensors elsewhere or in other data types than the kernels sum up in,
    and while torch compiles kernels of its own.
    """
    if not x.is_cuda or x.dtype not in OF_GPU or torch.compiler.is_compiling():
        return None
    return _gpu_layers()


@lru_cache
def _gpu_layers() -> ModuleType | None:
    return _of_triton("gpu_layers")


def _of_triton(name: str) -> ModuleType | None:
    try:
        layers = import_module("darts_kronos.nn.gpu_layers")
        # Triton needs a compiler of C, and a GPU that it knows.
        layers.gate(torch.ones(1, 2, device="cuda"))
        return import_module(f"darts_kronos.nn.{name}")
    except ImportError:
        return None
    except Exception as error:
        _LOGGER.warning("Triton's kernels are left out, torch's own are used: %s", error)
        return None


def row_kernels() -> ModuleType | None:
    """The kernels of rows, and of paths bar by bar."""
    return kernel_module("row_kernels")


def attention_kernels() -> ModuleType | None:
    """The kernels of attention."""
    return _of_tiles("attention_kernels")


def linear_kernels() -> ModuleType | None:
    """The kernels of linear layers of many rows."""
    return _of_tiles("linear_kernels")


def layer_kernels() -> ModuleType | None:
    """The kernels of what comes between products."""
    return kernel_module("layer_kernels")


def _of_tiles(name: str) -> ModuleType | None:
    """A module of these; None, too, where the processor has too few registers for tiles."""
    tiles = kernel_module("tiles")
    return kernel_module(name) if tiles is not None and tiles.HAS_REGISTERS else None
