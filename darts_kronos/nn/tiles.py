"""Matrix products by tiles whose sums stay in the processor's registers.

A library's product of small matrices pays for its generality with each call; a kernel that makes
many such products of what lies in the caches anyway is better off with a loop of its own. Tiles are
written in the terms of LLVM, which numba compiles with: a tile is ``ROWS`` rows of ``LANES`` sums,
and a step of its loop adds a number of each row times ``LANES`` numbers that lie together. On one
processor with vectors of 512 bits this makes 115 of the 118 GFLOP/s that it has.

Matrices are addresses, whose rows are so many numbers of float32 apart.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import config, float32, int64, void
from numba.core import cgutils
from numba.extending import intrinsic

from darts_kronos.nn.compiling import SIZE, compiled

LANES = 16
"""Numbers that are taken together: a cache line. Narrower vectors take them in parts."""

PROCESSOR: str = getattr(config, "CPU_NAME", None) or binding.get_host_cpu_name()
"""What LLVM calls the processor that is compiled for."""

_CHOSEN = getattr(config, "CPU_FEATURES", None)

_FEATURES = (_CHOSEN or binding.get_host_cpu_features().flatten()).split(",")

ROWS = 8 if "+avx512f" in _FEATURES else 6
"""Rows of a tile: so many that the processor always has sums to go on with, and their vectors, two
each where a vector has 256 bits, four where it has 128, fit into its registers."""

HAS_REGISTERS = not {"+avx512f", "+avx2", "+neon"}.isdisjoint(_FEATURES)
"""Whether the processor has registers for such tiles."""

FLOAT, NUMBER, INDEX = ir.FloatType(), ir.IntType(64), ir.IntType(32)
POINTER, VECTOR = FLOAT.as_pointer(), ir.VectorType(FLOAT, LANES)


def _load(builder: Any, place: Any) -> Any:
    vector = builder.load(builder.bitcast(place, VECTOR.as_pointer()))
    vector.align = SIZE
    return vector


def _store(builder: Any, vector: Any, place: Any) -> None:
    builder.store(vector, builder.bitcast(place, VECTOR.as_pointer())).align = SIZE


def _shuffle(builder: Any, first: Any, second: Any, lanes: list[int]) -> Any:
    mask = ir.Constant(ir.VectorType(INDEX, LANES), lanes)
    return builder.shuffle_vector(first, second, mask)


def _spread(builder: Any, place: Any) -> Any:
    """A number in all lanes."""
    number = builder.load(place)
    number.align = SIZE
    undefined = ir.Constant(VECTOR, ir.Undefined)
    vector = builder.insert_element(undefined, number, INDEX(0))
    return _shuffle(builder, vector, undefined, [0] * LANES)


def _tile(rows: int, turned: bool) -> Any:
    """A tile of so many rows of ``a @ b``, or of ``a.T @ b``, added to `start`.

    Its arguments are four matrices, `a`, `b`, `start` and `out`, each with how far its rows are
    apart, and over how many numbers a sum goes.
    """

    def as_tile(
        typing: Any,
        a: Any,
        a_stride: Any,
        b: Any,
        b_stride: Any,
        start: Any,
        start_stride: Any,
        out: Any,
        out_stride: Any,
        n: Any,
    ) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            *matrices, n = arguments
            a, b, start, out = (builder.inttoptr(one, POINTER) for one in matrices[::2])
            a_stride, b_stride, start_stride, out_stride = matrices[1::2]
            kind = ir.FunctionType(VECTOR, [VECTOR] * 3)
            fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32")

            def places(start: Any, stride: Any) -> list[Any]:
                return [builder.gep(start, [builder.mul(stride, NUMBER(r))]) for r in range(rows)]

            a_rows = None if turned else places(a, a_stride)
            first = [_load(builder, place) for place in places(start, start_stride)]
            out_rows = places(out, out_stride)
            before = builder.basic_block
            loop, after = (builder.append_basic_block(name) for name in ("sums", "summed"))
            builder.cbranch(builder.icmp_signed(">", n, NUMBER(0)), loop, after)

            builder.position_at_end(loop)
            k = builder.phi(NUMBER)
            sums = [builder.phi(VECTOR) for _ in range(rows)]
            of_b = _load(builder, builder.gep(b, [builder.mul(k, b_stride)]))
            if a_rows is None:
                step = builder.gep(a, [builder.mul(k, a_stride)])
                numbers = [builder.gep(step, [NUMBER(r)]) for r in range(rows)]
            else:
                numbers = [builder.gep(row, [k]) for row in a_rows]
            more = [
                builder.call(fma, [_spread(builder, number), of_b, one])
                for number, one in zip(numbers, sums, strict=True)
            ]
            next_k = builder.add(k, NUMBER(1))
            for value, begin, end in zip(
                [k, *sums], [NUMBER(0), *first], [next_k, *more], strict=True
            ):
                value.add_incoming(begin, before)
                value.add_incoming(end, loop)
            builder.cbranch(builder.icmp_signed("<", next_k, n), loop, after)

            builder.position_at_end(after)
            found = [builder.phi(VECTOR) for _ in range(rows)]
            for value, begin, end in zip(found, first, more, strict=True):
                value.add_incoming(begin, before)
                value.add_incoming(end, loop)
            for value, place in zip(found, out_rows, strict=True):
                _store(builder, value, place)
            return context.get_dummy_value()

        given = a, a_stride, b, b_stride, start, start_stride, out, out_stride, n
        return void(*given), build

    return intrinsic(as_tile)


_tile_of_rows, _pair_of_columns = _tile(ROWS, turned=False), _tile(2, turned=True)

tile_of_columns: Any = _tile(ROWS, turned=True)


def _as_square(typing: Any, source: Any, stride: Any, out: Any) -> Any:
    """How numba is to compile ``_turn_square``."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, stride, out = arguments
        source, out = builder.inttoptr(source, POINTER), builder.inttoptr(out, POINTER)
        half = LANES // 2
        places = [builder.gep(source, [builder.mul(stride, NUMBER(r))]) for r in range(LANES)]
        rows = [_load(builder, place) for place in places]
        low = [lane for i in range(half) for lane in (i, LANES + i)]
        high = [lane + half for lane in low]
        # Rows are dealt together like two halves of a pack of cards: after four times, as many as
        # halve the number of rows down to one, rows are columns.
        for _ in range(LANES.bit_length() - 1):
            pairs = zip(rows[:half], rows[half:], strict=True)
            rows = [_shuffle(builder, *pair, lanes) for pair in pairs for lanes in (low, high)]
        for i, row in enumerate(rows):
            _store(builder, row, builder.gep(out, [NUMBER(i * LANES)]))
        return context.get_dummy_value()

    return void(source, stride, out), build


_turn_square: Any = intrinsic(_as_square)
"""The transpose of ``LANES`` by ``LANES`` numbers of rows so far apart, in one piece."""


def _as_highest(typing: Any, place: Any, count: Any) -> Any:
    """How numba is to compile ``highest``."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place, count = builder.inttoptr(arguments[0], POINTER), arguments[1]
        first, before = _load(builder, place), builder.basic_block
        loop, after = (builder.append_basic_block(name) for name in ("rest", "reduced"))
        more = builder.icmp_signed(">", count, NUMBER(LANES))
        builder.cbranch(more, loop, after)

        builder.position_at_end(loop)
        at, so_far = builder.phi(NUMBER), builder.phi(VECTOR)
        found = _higher(builder, so_far, _load(builder, builder.gep(place, [at])))
        next_at = builder.add(at, NUMBER(LANES))
        for value, start, end in ((at, NUMBER(LANES), next_at), (so_far, first, found)):
            value.add_incoming(start, before)
            value.add_incoming(end, loop)
        builder.cbranch(builder.icmp_signed("<", next_at, count), loop, after)

        builder.position_at_end(after)
        vector = builder.phi(VECTOR)
        vector.add_incoming(first, before)
        vector.add_incoming(found, loop)
        half = LANES // 2
        while half:
            lanes = [(lane + half) % LANES for lane in range(LANES)]
            vector = _higher(builder, vector, _shuffle(builder, vector, vector, lanes))
            half //= 2
        return builder.extract_element(vector, INDEX(0))

    return float32(place, count), build


def _higher(builder: Any, first: Any, second: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", first, second), first, second)


highest: Any = intrinsic(_as_highest)
"""The highest of some numbers, of which there are a multiple of ``LANES``; not if one is NaN."""


@compiled(*[int64] * 12)
def multiply(
    a: int,
    a_stride: int,
    b: int,
    b_stride: int,
    b_panel: int,
    panels: int,
    start: int,
    start_stride: int,
    start_panel: int,
    out: int,
    out_stride: int,
    n: int,
) -> None:
    """Write ``start + a @ b``, of ``ROWS`` rows, to `out`.

    Parameters
    ----------
    a, a_stride
        Where the first matrix is, and how far its rows are apart.
    b, b_stride, b_panel, panels
        The second, whose columns are `panels` panels of ``LANES`` each; how far rows, and panels,
        are apart.
    start, start_stride, start_panel
        What the sums start with. Where it is the same for all rows, or panels, these are 0 apart.
    out, out_stride
        The result.
    n
        Columns of the first.
    """
    for p in range(panels):
        _tile_of_rows(
            *(a, a_stride, b + SIZE * p * b_panel, b_stride),
            *(start + SIZE * p * start_panel, start_stride),
            *(out + SIZE * p * LANES, out_stride, n),
        )


@compiled(*[int64] * 9)
def add_turned(
    a: int,
    a_stride: int,
    columns: int,
    b: int,
    b_stride: int,
    panels: int,
    out: int,
    out_stride: int,
    n: int,
) -> None:
    """Add ``a.T @ b`` to `out`.

    Parameters
    ----------
    a, a_stride, columns
        Where the first matrix is, how far its rows are apart, and how many columns it has; where
        that is odd, one more is read, and written.
    b, b_stride, panels
        The second, whose columns are `panels` times ``LANES``.
    out, out_stride
        What it is added to.
    n
        Rows of both.
    """
    whole = columns - columns % ROWS
    for c in range(0, whole, ROWS):
        for p in range(panels):
            place = out + SIZE * (c * out_stride + p * LANES)
            tile_of_columns(
                *(a + SIZE * c, a_stride, b + SIZE * p * LANES, b_stride),
                *(place, out_stride, place, out_stride, n),
            )
    for c in range(whole, columns, 2):
        for p in range(panels):
            place = out + SIZE * (c * out_stride + p * LANES)
            _pair_of_columns(
                *(a + SIZE * c, a_stride, b + SIZE * p * LANES, b_stride),
                *(place, out_stride, place, out_stride, n),
            )


@compiled(*[int64] * 5)
def turn(source: int, stride: int, rows: int, columns: int, out: int) -> None:
    """Write panels, of ``LANES`` rows of a matrix each, column by column, to `out`.

    Both `rows` and `columns` are multiples of ``LANES``.
    """
    for r in range(0, rows, LANES):
        for c in range(0, columns, LANES):
            place = out + SIZE * (r * columns + c * LANES)
            _turn_square(source + SIZE * (r * stride + c), stride, place)
