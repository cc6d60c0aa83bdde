"""What kernels that numba compiles are made with: the compiler, addresses, exponentials.

Kernels are compiled when their module is imported; the machine code is kept for later processes
where numba finds a folder for it, until the file changes that the kernel is in. After a change of
what it calls in another file, that one has to be touched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, int32, int64, njit, void
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

Array = NDArray[np.float32]
Kernel = Callable[..., Any]

ROW, MATRIX, CUBE = float32[::1], float32[:, ::1], float32[:, :, ::1]

SIZE = 4
"""Bytes of a number."""

REORDERED = {"reassoc", "contract", "nsz"}
"""What the compiler may do to sums: add in another order. NaN and infinity stay what they are."""

IN_ORDER = REORDERED - {"reassoc"}


def compiled(
    *arguments: Any, returns: Any = void, fastmath: set[str] = REORDERED, inline: str = "never"
) -> Callable[[Kernel], Kernel]:
    """Compile for arguments of these types, or load what was compiled before.

    What is called for a few numbers at a time is to be inlined "always".
    """
    signature = returns(*arguments)
    options: dict[str, Any] = {"fastmath": fastmath, "error_model": "numpy", "nogil": True}
    options["inline"] = inline

    def compile_or_load(function: Kernel) -> Kernel:
        try:
            return njit(signature, cache=True, **options)(function)
        except Exception:  # noqa: BLE001
            # No folder can be written, the disk is full, or what lies there cannot be read: the
            # kernels are compiled for this process. An error that has another cause comes again.
            return njit(signature, **options)(function)

    return compile_or_load


def _as_pointer(typing: Any, address: Any) -> Any:
    """How numba is to compile ``pointer``."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(float32)(int64), build


pointer: Any = intrinsic(_as_pointer)
"""An address as a pointer to float32."""


def _as_float(typing: Any, bits: Any) -> Any:
    """How numba is to compile ``float_of_bits``."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(float32))

    return float32(int32), build


float_of_bits: Any = intrinsic(_as_float)
"""The float32 that has the bits of an int32."""


def _as_prefetch(typing: Any, address: Any) -> Any:
    """How numba is to compile ``prefetch``."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number, byte = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        place = builder.inttoptr(arguments[0], byte)
        builder.call(function, [place, number(TO_READ), number(SECOND_CACHE), number(DATA)])
        return context.get_dummy_value()

    return void(int64), build


TO_READ, SECOND_CACHE, DATA = 0, 2, 1
"""What LLVM is told of a prefetch: for what, how near to the processor, and of which memory."""

prefetch: Any = intrinsic(_as_prefetch)
"""Ask for the cache line at an address."""


@compiled(ROW, fastmath=IN_ORDER)
def exponentials(x: Array) -> None:
    """Replace each entry by its exponential; above 88 by that of 88, below -87 by 0.

    The power of two next to it times a series of seven terms, whose error is below float32's. The
    library's function takes one entry at a time; this takes as many as the processor can.
    """
    for i in range(x.size):
        exponent = np.float32(88) if x[i] > np.float32(88) else x[i]
        n = np.floor(exponent * np.float32(1.44269504) + np.float32(0.5))
        # log(2) in two parts, of which the first times n is exact.
        rest = exponent - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
        series = rest * np.float32(1 / 5040) + np.float32(1 / 720)
        series = series * rest + np.float32(1 / 120)
        series = series * rest + np.float32(1 / 24)
        series = series * rest + np.float32(1 / 6)
        series = series * rest + np.float32(0.5)
        series = series * rest + np.float32(1)
        series = series * rest + np.float32(1)
        power = float_of_bits((np.int32(n) + np.int32(127)) << np.int32(23))
        x[i] = np.float32(0) if x[i] < np.float32(-87) else series * power
