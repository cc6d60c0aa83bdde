"""Linear layers of many rows, and their gradients, by tiles that numba compiles.

Shapes by letter: N rows, I and O widths in and out, both multiples of ``LANES``.
"""

from __future__ import annotations

import numpy as np

from darts_kronos.nn.compiling import CUBE, MATRIX, ROW, SIZE, Array, compiled, prefetch
from darts_kronos.nn.tiles import (
    LANES,
    ROWS,
    add_turned,
    multiply,
    tile_of_columns,
    turn,
)

ROWS_AT_ONCE, OUTPUTS_AT_ONCE = 64, 256
"""Of gradients, what is taken together to those of weights: so much stays in the caches."""


@compiled(MATRIX, CUBE)
def turn_weight(weight: Array, out: Array) -> None:
    """Panels of a weight, (O, I), that give outputs: (O / LANES, I, LANES)."""
    outputs, inputs = weight.shape
    turn(weight.ctypes.data, inputs, outputs, inputs, out.ctypes.data)


@compiled(MATRIX, CUBE)
def cut_weight(weight: Array, out: Array) -> None:
    """Panels of a weight, (O, I), that give gradients of inputs: (I / LANES, O, LANES)."""
    panels, outputs, _ = out.shape
    for p in range(panels):
        for o in range(outputs):
            for lane in range(LANES):
                out[p, o, lane] = weight[o, p * LANES + lane]


@compiled(MATRIX, CUBE, ROW, MATRIX)
def product(x: Array, panels: Array, bias: Array, out: Array) -> None:
    """``x @ weight.T + bias``, of ``ROWS`` rows at least.

    Parameters
    ----------
    x
        Inputs, (N, I).
    panels
        Of the weight.
    bias
        (O,), or no numbers where there is none.
    out
        Outputs, (N, O).
    """
    count, inputs, _ = panels.shape
    apart = LANES if bias.size > 0 else 0
    # An array, and no address: numba frees what is not named any more, such as zeros of which
    # an address alone is used, and others may write there.
    start = bias if bias.size > 0 else np.zeros(LANES, dtype=np.float32)
    for r in range(0, len(x), ROWS):
        row = min(r, len(x) - ROWS)  # the last ones may have been written before
        multiply(
            *(x[row].ctypes.data, inputs),
            *(panels.ctypes.data, LANES, inputs * LANES, count),
            *(start.ctypes.data, 0, apart, out[row].ctypes.data, out.shape[1], inputs),
        )


@compiled(MATRIX, MATRIX, MATRIX)
def to_weight(gradient: Array, x: Array, out: Array) -> None:
    """The weight's gradient, ``gradient.T @ x``.

    Parameters
    ----------
    gradient
        Of the outputs, (N, O).
    x
        Inputs, (N, I).
    out
        (O, I).
    """
    (N, inputs), width = x.shape, len(out)
    panels = inputs // LANES
    # A width of its own: rows that are a power of two apart drive each other out of the caches.
    stride = OUTPUTS_AT_ONCE + LANES
    part = np.empty((ROWS_AT_ONCE, stride), dtype=np.float32)
    for o in range(0, width, OUTPUTS_AT_ONCE):
        outputs = min(OUTPUTS_AT_ONCE, width - o)
        whole, lines = outputs - outputs % ROWS, outputs // LANES
        out[o : o + outputs] = 0
        for n in range(0, N, ROWS_AT_ONCE):
            rows = min(ROWS_AT_ONCE, N - n)
            for r in range(rows):
                for i in range(outputs):
                    part[r, i] = gradient[n + r, o + i]
            # Memory gives rows slowly: the next ones, then the first ones for the next outputs,
            # are on their way meanwhile.
            coming, of_outputs = n + ROWS_AT_ONCE, o
            if coming >= N:
                coming, of_outputs = (0, o + outputs) if o + outputs < width else (N, o)
            for c in range(0, whole, ROWS):
                asked = coming + c * ROWS_AT_ONCE // whole
                asked_to = min(coming + (c + ROWS) * ROWS_AT_ONCE // whole, N)
                for p in range(panels):
                    for row in range(asked, asked_to):
                        prefetch(x[row].ctypes.data + SIZE * p * LANES)
                        for line in range(p * lines // panels, (p + 1) * lines // panels):
                            prefetch(gradient[row, of_outputs + line * LANES :].ctypes.data)
                    place = out[o + c].ctypes.data + SIZE * p * LANES
                    tile_of_columns(
                        *(part.ctypes.data + SIZE * c, stride),
                        *(x[n].ctypes.data + SIZE * p * LANES, inputs),
                        *(place, inputs, place, inputs, rows),
                    )
            add_turned(
                *(part.ctypes.data + SIZE * whole, stride, outputs - whole),
                *(x[n].ctypes.data, inputs, panels, out[o + whole :].ctypes.data, inputs, rows),
            )
