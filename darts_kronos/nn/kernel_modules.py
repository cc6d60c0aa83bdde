"""The modules of kernels that numba compiles: loaded when they are first asked for, if at all."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from types import ModuleType


@lru_cache
def kernel_module(name: str) -> ModuleType | None:
    """A module of kernels; None where there is no numba, or it may not compile."""
    try:
        from numba import config

        if getattr(config, "DISABLE_JIT", False):
            return None
        return import_module(f"darts_kronos.nn.{name}")
    except ImportError:
        return None


def row_kernels() -> ModuleType | None:
    """The kernels of rows, and of paths bar by bar."""
    return kernel_module("row_kernels")


def attention_kernels() -> ModuleType | None:
    """The kernels of attention; None, too, where the processor has too few registers for them."""
    tiles = kernel_module("tiles")
    return kernel_module("attention_kernels") if tiles is not None and tiles.HAS_REGISTERS else None
