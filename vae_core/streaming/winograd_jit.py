"""The transforms around the matrix products of a fast convolution, compiled by numba (an optional extra).

Every function works on the tiles of a strip of channels-last maps, `LANES` channels at a time, and releases the
interpreter lock. A row of the source that is not in it lies outside the image and counts as zero. Arrays are
contiguous, their channels whole vectors. `winograd.py` loads this file under a name of its own.

The vectors are explicit: of loops over channels with a dozen arrays, the compiler cannot show that none overlaps
another, and leaves them one number at a time. They are in this file too, for numba's cache on disk looks at the date
of the file that a function is in, and not at those which that one imports.
"""

from __future__ import annotations

import operator
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import extending
from numba.core import cgutils, types
from numba.extending import models, overload, register_model

intrinsic: Any = extending.intrinsic  # its first parameter is not the caller's
F32 = np.float32
BLOCK = 128  # channels at a time, whose transformed columns lie in the first cache
LANES = 16  # on processors with shorter vectors the compiler takes several
_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_WIDE = ir.VectorType(ir.DoubleType(), LANES)
_WORDS = ir.VectorType(ir.IntType(32), LANES)
_FLAGS = ("contract", "arcp", "nsz")  # nothing that would assume numbers to be finite


class Lanes(types.Type):
    """`LANES` numbers in single precision."""

    def __init__(self) -> None:
        super().__init__(name=f"Lanes{LANES}")


lanes = Lanes()


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _VECTOR)


@intrinsic
def place(typing, array):
    """Where a contiguous array lies, counted in its numbers.

    Loops work on places: whatever has arrays counts references to them, which costs more than the arithmetic.
    """

    def emit(context, builder, signature, arguments):
        kind = signature.args[0]
        data = cgutils.create_struct_proxy(kind)(context, builder, arguments[0]).data
        return builder.udiv(builder.ptrtoint(data, cgutils.intp_t), cgutils.intp_t(kind.dtype.bitwidth // 8))

    return types.intp(array), emit


def _pointer(builder, first, vector, size):
    return builder.inttoptr(builder.mul(first, cgutils.intp_t(size)), vector.as_pointer())


@intrinsic
def load(typing, first):
    """The lanes from a place on."""

    def emit(context, builder, signature, arguments):
        return builder.load(_pointer(builder, arguments[0], _VECTOR, 4), align=4)

    return lanes(types.intp), emit


@intrinsic
def store(typing, first, value):
    """Write lanes to a place."""

    def emit(context, builder, signature, arguments):
        builder.store(arguments[1], _pointer(builder, arguments[0], _VECTOR, 4), align=4)

    return types.void(types.intp, lanes), emit


@intrinsic
def gather(typing, first, value):
    """Add lanes to numbers of double precision."""

    def emit(context, builder, signature, arguments):
        pointer = _pointer(builder, arguments[0], _WIDE, 8)
        total = builder.fadd(builder.load(pointer, align=8), builder.fpext(arguments[1], _WIDE))
        builder.store(total, pointer, align=8)

    return types.void(types.intp, lanes), emit


@intrinsic
def splat(typing, number):
    """The number in every lane."""

    def emit(context, builder, signature, arguments):
        first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), arguments[0], ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(first, ir.Constant(_VECTOR, ir.Undefined), ir.Constant(_WORDS, None))

    return lanes(types.float32), emit


@intrinsic
def rounded(typing, x):
    """The nearest whole numbers."""

    def emit(context, builder, signature, arguments):
        kind = ir.FunctionType(_VECTOR, [_VECTOR])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.rint.v{LANES}f32"), arguments)

    return lanes(lanes), emit


@intrinsic
def limited(typing, x, low, high):
    """min(max(x, low), high); NaN stays."""

    def emit(context, builder, signature, arguments):
        x, low, high = arguments
        x = builder.select(builder.fcmp_ordered("<", x, low), low, x)
        return builder.select(builder.fcmp_ordered(">", x, high), high, x)

    return lanes(lanes, lanes, lanes), emit


@intrinsic
def scaled(typing, x, power):
    """x * 2^power, for whole powers with which the exponent stays in its range."""

    def emit(context, builder, signature, arguments):
        shift = ir.Constant(_WORDS, [ir.Constant(ir.IntType(32), 23)] * LANES)
        exponent = builder.shl(builder.fptosi(arguments[1], _WORDS), shift)
        return builder.bitcast(builder.add(builder.bitcast(arguments[0], _WORDS), exponent), _VECTOR)

    return lanes(lanes, lanes), emit


def _arithmetic(operation, instruction: str) -> None:
    """Let an operator take two vectors, or a vector and a number."""

    @intrinsic
    def combined(typing, a, b):
        def emit(context, builder, signature, arguments):
            return getattr(builder, instruction)(*arguments, flags=_FLAGS)

        return lanes(lanes, lanes), emit

    @overload(operation, inline="always")
    def combine(a, b):
        if a is lanes and b is lanes:
            return lambda a, b: combined(a, b)
        if a is lanes and isinstance(b, types.Float):
            return lambda a, b: combined(a, splat(b))
        if isinstance(a, types.Float) and b is lanes:
            return lambda a, b: combined(splat(a), b)
        return None


for _operation, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _arithmetic(_operation, _instruction)

_part = numba.njit(inline="always", error_model="numpy")
_whole = numba.njit(nogil=True, cache=True, error_model="numpy")

# 2^x on [-1/2, 1/2], interpolated at Chebyshev's nodes: 1e-7 of the value, which is the rounding.
_LOG2E = F32(1.4426950408889634)
_P1, _P2, _P3 = F32(0.6931472067028335), F32(0.24022650922288294), F32(0.05550327226668675)
_P4, _P5, _P6 = F32(0.009618056678553505), F32(0.00134004281782533), F32(0.00015461444693294768)
_ZERO, _ONE, _LOWEST, _HIGHEST = F32(0.0), F32(1.0), F32(-125.0), F32(126.0)


@_part
def _silu(x):
    """x / (1 + exp(-x)), with exp as 2^n times a polynomial of degree 6."""
    z = limited(_LOG2E * (splat(_ZERO) - x), splat(_LOWEST), splat(_HIGHEST))
    n = rounded(z)
    f = z - n
    p = (((((_P6 * f + _P5) * f + _P4) * f + _P3) * f + _P2) * f + _P1) * f + _ONE
    return x / (scaled(p, n) + _ONE)


@_part
def _pixel(begin, height, width, depth, y, x):
    """Where a pixel of a map [height, width, depth] lies; 0 outside the image."""
    if y < 0 or y >= height or x < 0 or x >= width:
        return 0
    return begin + (y * width + x) * depth


@_part
def _value(pixel, c):
    return load(pixel + c) if pixel else splat(_ZERO)


@_part
def _activated(pixel, c, scale, shift, activate):
    """silu(value * scale + shift), or the value itself; zeros outside the image."""
    if pixel and activate:
        return _silu(load(pixel + c) * load(scale + c) + load(shift + c))
    return _value(pixel, c)


# F(4, 3) at the points 0, +-2/3, +-3/2 and infinity. Of all pairs tried they round best: less than half the error
# of the usual 1 and 2 (`benchmarks/winograd_points.py`). Their squares multiply to one.
_A, _B = F32(2 / 3), F32(3 / 2)
_A2, _B2 = F32(4 / 9), F32(9 / 4)
_SUM = F32(4 / 9 + 9 / 4)
_A3, _B3 = F32(8 / 27), F32(27 / 8)


@_part
def _six_points(x0, x1, x2, x3, x4, x5):
    """B^T x (Lavin & Gray, 2016, for points a, -a, b, -b)."""
    p = x4 - _B2 * x2
    q = _A * (x3 - _B2 * x1)
    r = x4 - _A2 * x2
    s = _B * (x3 - _A2 * x1)
    return x0 - _SUM * x2 + x4, p + q, p - q, r + s, r - s, x1 - _SUM * x3 + x5


@_part
def _four_outputs(m0, m1, m2, m3, m4, m5):
    """A^T m."""
    p = m1 + m2
    q = m1 - m2
    u = m3 + m4
    v = m3 - m4
    return m0 + p + u, _A * q + _B * v, _A2 * p + _B2 * u, _A3 * q + _B3 * v + m5


@_part
def _store_six(m, step, v):
    store(m, v[0])
    store(m + step, v[1])
    store(m + 2 * step, v[2])
    store(m + 3 * step, v[3])
    store(m + 4 * step, v[4])
    store(m + 5 * step, v[5])


@_whole
def tiles_in(source, y0, x0, wrap_x, scale, shift, activate, ring, out, down, across):
    """Transform the inputs of tiles of 4x4 outputs, the first input being source[y0, x0].

    ring [6, 6, C] is scratch; out is [1, rows, 36, C], or [6, rows, 6, C], of which as many rows as there are tiles
    are written: `down` rows of `across` tiles. The source may have more channels than C.
    """
    height, width, depth = source.shape
    channels, groups = ring.shape[2], out.shape[2]
    line = (out.shape[1] if groups == 6 else 1) * 6 * channels  # from one line of a tile to the next
    begin, kept, row_out = place(source), place(ring), place(out)
    scales, shifts = place(scale), place(shift)
    for y in range(y0, y0 + 4 * down, 4):
        for block in range(0, channels, BLOCK):
            stop = min(block + BLOCK, channels)
            for j in range(4 * across + 2):
                slot = j % 6  # the last six transformed columns are kept
                x = (x0 + j) % width if wrap_x else x0 + j
                p0, p1 = _pixel(begin, height, width, depth, y, x), _pixel(begin, height, width, depth, y + 1, x)
                p2, p3 = _pixel(begin, height, width, depth, y + 2, x), _pixel(begin, height, width, depth, y + 3, x)
                p4, p5 = _pixel(begin, height, width, depth, y + 4, x), _pixel(begin, height, width, depth, y + 5, x)
                for c in range(block, stop, LANES):
                    v = _six_points(
                        _activated(p0, c, scales, shifts, activate), _activated(p1, c, scales, shifts, activate),
                        _activated(p2, c, scales, shifts, activate), _activated(p3, c, scales, shifts, activate),
                        _activated(p4, c, scales, shifts, activate), _activated(p5, c, scales, shifts, activate),
                    )  # fmt: skip
                    _store_six(kept + 36 * (c - block) + slot * LANES, 6 * LANES, v)
                if j < 5 or (j - 5) % 4:
                    continue
                m = row_out + (j - 5) // 4 * groups * channels
                s0, s1, s2 = (j + 1) % 6 * LANES, (j + 2) % 6 * LANES, (j + 3) % 6 * LANES
                s3, s4, s5 = (j + 4) % 6 * LANES, (j + 5) % 6 * LANES, slot * LANES
                for c in range(block, stop, LANES):
                    row = kept + 36 * (c - block)
                    for i in range(6):
                        v = _six_points(
                            load(row + s0), load(row + s1), load(row + s2),
                            load(row + s3), load(row + s4), load(row + s5),
                        )  # fmt: skip
                        _store_six(m + i * line + c, channels, v)
                        row += 6 * LANES
        row_out += across * groups * channels


@_part
def _put(value, more, mode, residual, pixel, sums):
    """Write value + more, and what `mode` adds, to a pixel; `sums` of the values and of their squares go on."""
    value = value + more
    if mode == 1:
        value = value + load(residual)
    elif mode == 2:
        value = value + load(pixel)
    store(pixel, value)
    return sums[0] + value, sums[1] + value * value


@_part
def _put_column(v, rows, more, mode, residual, residual_row, pixel, row, sums):
    """The same for up to four pixels below one another."""
    sums = _put(v[0], more, mode, residual, pixel, sums)
    if rows > 1:
        sums = _put(v[1], more, mode, residual + residual_row, pixel + row, sums)
    if rows > 2:
        sums = _put(v[2], more, mode, residual + 2 * residual_row, pixel + 2 * row, sums)
    if rows > 3:
        sums = _put(v[3], more, mode, residual + 3 * residual_row, pixel + 3 * row, sums)
    return sums


@_part
def _put_tile(columns, size, more, mode, residual, residual_steps, pixel, steps, total, squares):
    """Write the upper left part, of `size` rows and columns, of four columns of pixels, and gather their sums.

    residual_steps, steps: from one row and one column of residuals and of pixels to the next.
    """
    rows, down, residual_down = size[0], steps[0], residual_steps[0]
    sums = splat(_ZERO), splat(_ZERO)
    sums = _put_column(columns[0], rows, more, mode, residual, residual_down, pixel, down, sums)
    if size[1] > 1:
        residual, pixel = residual + residual_steps[1], pixel + steps[1]
        sums = _put_column(columns[1], rows, more, mode, residual, residual_down, pixel, down, sums)
    if size[1] > 2:
        residual, pixel = residual + residual_steps[1], pixel + steps[1]
        sums = _put_column(columns[2], rows, more, mode, residual, residual_down, pixel, down, sums)
    if size[1] > 3:
        residual, pixel = residual + residual_steps[1], pixel + steps[1]
        sums = _put_column(columns[3], rows, more, mode, residual, residual_down, pixel, down, sums)
    gather(total, sums[0])
    gather(squares, sums[1])


@_part
def _taken(m):
    """Products, which are zero afterwards: the next ones are added to what is there."""
    v = load(m)
    store(m, splat(_ZERO))
    return v


@_part
def _line_of_six(m, step):
    return _four_outputs(
        _taken(m), _taken(m + step), _taken(m + 2 * step), _taken(m + 3 * step), _taken(m + 4 * step),
        _taken(m + 5 * step),
    )  # fmt: skip


@_whole
def tiles_out(products, bias, residual, mode, target, left, right, total, squares):
    """Transform products [1, tiles, 36, K], or [6, tiles, 6, K], to pixels, target[:, left:right] of [rows, W, >= K].

    The products are zero afterwards.
    mode: 0 to write, 1 to add residual [rows, right - left, K], 2 to add to what target holds.
    total, squares: [K] of float64, gather the sums of what is written.
    """
    groups, channels, span = products.shape[2], products.shape[3], right - left
    line = (products.shape[1] if groups == 6 else 1) * 6 * channels
    tile, more = place(products), place(bias)
    steps, residual_steps = (target.shape[1] * target.shape[2], target.shape[2]), (span * channels, channels)
    totals, totals_of_squares = place(total), place(squares)
    for y in range(0, target.shape[0], 4):
        pixel, added = place(target) + y * steps[0] + left * steps[1], place(residual) + y * residual_steps[0]
        for x in range(0, span, 4):
            for c in range(0, channels, LANES):
                s0, s1 = _line_of_six(tile + c, channels), _line_of_six(tile + line + c, channels)
                s2, s3 = _line_of_six(tile + 2 * line + c, channels), _line_of_six(tile + 3 * line + c, channels)
                s4, s5 = _line_of_six(tile + 4 * line + c, channels), _line_of_six(tile + 5 * line + c, channels)
                columns = (
                    _four_outputs(s0[0], s1[0], s2[0], s3[0], s4[0], s5[0]),
                    _four_outputs(s0[1], s1[1], s2[1], s3[1], s4[1], s5[1]),
                    _four_outputs(s0[2], s1[2], s2[2], s3[2], s4[2], s5[2]),
                    _four_outputs(s0[3], s1[3], s2[3], s3[3], s4[3], s5[3]),
                )
                _put_tile(
                    columns, (target.shape[0] - y, span - x), load(more + c), mode, added + c, residual_steps,
                    pixel + c, steps, totals + c, totals_of_squares + c,
                )  # fmt: skip
            tile += groups * channels
            pixel += 4 * steps[1]
            added += 4 * channels


@_part
def _five_products(x0, x1, x2, x3):
    """What is multiplied in an upsampling, of four neighbours; see `winograd.py`. The second counts twice."""
    return x1 + x2, x2 - x1, x0 - x2, x3 - x1


@_part
def _four_of_five(m0, m1, m2, m3, m4):
    """Four outputs of an upsampling, of its five products."""
    return m0 + m1 + m2, m0 + m3, m0 - m1, m0 - m3 + m4


@_part
def _put_five(row, s0, s1, s2, s3, m, step):
    """Write what is multiplied of four transformed columns."""
    v = _five_products(load(row + s0), load(row + s1), load(row + s2), load(row + s3))
    store(m, v[0])
    store(m + step, v[1])
    store(m + 2 * step, v[2])
    store(m + 3 * step, v[1])
    store(m + 4 * step, v[3])


@_whole
def upsample_in(source, y0, x0, wrap_x, ring, out, down, across):
    """Transform the inputs of tiles of 4x4 outputs of an upsampling, the first input being source[y0, x0].

    ring [4, 4, C] is scratch; out is [1, rows, 25, C], or [5, rows, 5, C]; the rest is as in `tiles_in`.
    """
    height, width, depth = source.shape
    channels, groups = ring.shape[2], out.shape[2]
    line = (out.shape[1] if groups == 5 else 1) * 5 * channels
    begin, kept, tile = place(source), place(ring), place(out)
    row = 4 * channels  # of the ring
    for y in range(y0, y0 + 2 * down, 2):
        for j in range(2 * across + 2):
            slot = j % 4  # the last four transformed columns are kept
            x = (x0 + j) % width if wrap_x else x0 + j
            p0, p1 = _pixel(begin, height, width, depth, y, x), _pixel(begin, height, width, depth, y + 1, x)
            p2, p3 = _pixel(begin, height, width, depth, y + 2, x), _pixel(begin, height, width, depth, y + 3, x)
            for c in range(0, channels, LANES):
                v = _five_products(_value(p0, c), _value(p1, c), _value(p2, c), _value(p3, c))
                m = kept + slot * channels + c
                store(m, v[0])
                store(m + row, v[1])
                store(m + 2 * row, v[2])
                store(m + 3 * row, v[3])
            if j < 3 or j % 2 == 0:
                continue
            s0, s1 = (j + 1) % 4 * channels, (j + 2) % 4 * channels
            s2, s3 = (j + 3) % 4 * channels, slot * channels
            for c in range(0, channels, LANES):
                _put_five(kept + c, s0, s1, s2, s3, tile + c, channels)
                _put_five(kept + row + c, s0, s1, s2, s3, tile + line + c, channels)
                _put_five(kept + 2 * row + c, s0, s1, s2, s3, tile + 2 * line + c, channels)
                _put_five(kept + row + c, s0, s1, s2, s3, tile + 3 * line + c, channels)
                _put_five(kept + 3 * row + c, s0, s1, s2, s3, tile + 4 * line + c, channels)
            tile += groups * channels


@_part
def _line_of_five(m, step):
    return _four_of_five(_taken(m), _taken(m + step), _taken(m + 2 * step), _taken(m + 3 * step), _taken(m + 4 * step))


@_whole
def upsample_out(products, bias, target, left, right, total, squares):
    """Transform products [1, tiles, 25, K], or [5, tiles, 5, K], of an upsampling to pixels; as `tiles_out`."""
    groups, channels, span = products.shape[2], products.shape[3], right - left
    line = (products.shape[1] if groups == 5 else 1) * 5 * channels
    tile, more = place(products), place(bias)
    steps = (target.shape[1] * target.shape[2], target.shape[2])
    totals, totals_of_squares = place(total), place(squares)
    for y in range(0, target.shape[0], 4):
        pixel = place(target) + y * steps[0] + left * steps[1]
        for x in range(0, span, 4):
            for c in range(0, channels, LANES):
                s0, s1 = _line_of_five(tile + c, channels), _line_of_five(tile + line + c, channels)
                s2, s3 = _line_of_five(tile + 2 * line + c, channels), _line_of_five(tile + 3 * line + c, channels)
                s4 = _line_of_five(tile + 4 * line + c, channels)
                columns = (
                    _four_of_five(s0[0], s1[0], s2[0], s3[0], s4[0]),
                    _four_of_five(s0[1], s1[1], s2[1], s3[1], s4[1]),
                    _four_of_five(s0[2], s1[2], s2[2], s3[2], s4[2]),
                    _four_of_five(s0[3], s1[3], s2[3], s3[3], s4[3]),
                )
                _put_tile(
                    columns, (target.shape[0] - y, span - x), load(more + c), 0, 0, steps, pixel + c, steps,
                    totals + c, totals_of_squares + c,
                )  # fmt: skip
            tile += groups * channels
            pixel += 4 * steps[1]
