"""Vectors of 16 numbers in single precision, for functions that numba compiles.

The vectors are explicit: of loops over channels with a dozen arrays, the compiler cannot show that none overlaps
another, and leaves them one number at a time.

This is what the package asks of LLVM, through numba's interface for extensions (`numba.extending`, `numba.core.types`
and `cgutils`, `llvmlite.ir`); see `../numba_functions.py` for what to look at when upgrading.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba import extending
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.extending import models, overload, register_model

intrinsic: Any = extending.intrinsic  # its first parameter is not the caller's
F32 = np.float32
LANES = 16  # numbers in a vector; on processors with shorter ones the compiler takes several
VECTOR = ir.VectorType(ir.FloatType(), LANES)
_WIDE = ir.VectorType(ir.DoubleType(), LANES)
WORDS = ir.VectorType(ir.IntType(32), LANES)
_HALVES = ir.VectorType(ir.IntType(16), LANES)
# Of the processor that numba compiles for: this one, or what its variables say.
_target: Any = cpu_target.target_context
_FEATURES = _target.codegen().magic_tuple()[2].split(",")
WIDE = "+avx512f" in _FEATURES
"""Whether the processor has 32 registers of 512 bits."""
BFLOAT16 = WIDE and "+avx512bf16" in _FEATURES and hasattr(binding, "initialize_native_asmparser")
"""Whether it has instructions for bfloat16: products of pairs, summed up in float32, and rounding."""
if BFLOAT16:
    binding.initialize_native_asmparser()  # they are written out, because llvmlite has no type for bfloat16
_FLAGS = ("contract", "arcp", "nsz")  # nothing that would assume numbers to be finite


class Lanes(types.Type):
    """A vector of `LANES` numbers in single precision."""

    def __init__(self) -> None:
        super().__init__(name=f"Lanes{LANES}")


lanes = Lanes()


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, VECTOR)


@intrinsic
def address(typing, array):
    """Address of a contiguous array, in units of its numbers: `address(a) + 1` is the next number's.

    Loops work on addresses: functions that take arrays count references to them, which costs more than the
    computation.
    """

    def emit(context, builder, signature, arguments):
        kind = signature.args[0]
        data = cgutils.create_struct_proxy(kind)(context, builder, arguments[0]).data
        return builder.udiv(builder.ptrtoint(data, cgutils.intp_t), cgutils.intp_t(kind.dtype.bitwidth // 8))

    return types.intp(array), emit


def _whole_numbers(numbers: Sequence[int]):
    """A constant vector."""
    return ir.Constant(WORDS, [ir.Constant(ir.IntType(32), number) for number in numbers])


def _words(number: int):
    """A constant vector of one whole number."""
    return _whole_numbers([number] * LANES)


def pointer_to(builder, first, vector, size):
    return builder.inttoptr(builder.mul(first, cgutils.intp_t(size)), vector.as_pointer())


@intrinsic
def load(typing, first):
    """The vector of float32 at an address."""

    def emit(context, builder, signature, arguments):
        return builder.load(pointer_to(builder, arguments[0], VECTOR, 4), align=4)

    return lanes(types.intp), emit


@intrinsic
def store(typing, first, value):
    """Write a vector to an address."""

    def emit(context, builder, signature, arguments):
        builder.store(arguments[1], pointer_to(builder, arguments[0], VECTOR, 4), align=4)

    return types.void(types.intp, lanes), emit


@intrinsic
def load_value(typing, kind, first):
    """The vector at an address in a map, in units of the map's numbers.

    kind: any number of the map's type, of float32, or of uint16 for bfloat16, which is the upper half of float32.
    """

    def emit(context, builder, signature, arguments):
        if signature.args[0] == types.float32:
            return builder.load(pointer_to(builder, arguments[1], VECTOR, 4), align=4)
        bits = builder.zext(builder.load(pointer_to(builder, arguments[1], _HALVES, 2), align=2), WORDS)
        return builder.bitcast(builder.shl(bits, _words(16)), VECTOR)

    return lanes(kind, types.intp), emit


@intrinsic
def store_value(typing, kind, first, value):
    """Write a vector to an address in a map; see `load_value`. It is rounded to nearest, ties to even."""

    def emit(context, builder, signature, arguments):
        _, first, value = arguments
        if signature.args[0] == types.float32:
            builder.store(value, pointer_to(builder, first, VECTOR, 4), align=4)
            return
        builder.store(_rounded(builder, value), pointer_to(builder, first, _HALVES, 2), align=2)

    return types.void(kind, types.intp, lanes), emit


def _rounded(builder, value):
    """The upper halves of a vector, rounded to nearest, ties to even; the instruction takes denormals for zero."""
    if BFLOAT16:
        kind = ir.FunctionType(_HALVES, [VECTOR])
        return builder.asm(kind, "vcvtneps2bf16 $1, $0", "=v,v", [value], False)
    bits = builder.bitcast(value, WORDS)
    odd = builder.and_(builder.lshr(bits, _words(16)), _words(1))
    rounded = builder.lshr(builder.add(bits, builder.add(odd, _words(0x7FFF))), _words(16))
    finite_or_not = builder.select(builder.fcmp_unordered("uno", value, value), _words(0x7FC0), rounded)
    return builder.trunc(finite_or_not, _HALVES)


@intrinsic
def store_channels(typing, kind, block, columns, lane, even, odd):
    """Write vectors of two channels to their columns from `lane` on, in a block of so many: see `multiply.multiply`.

    In float32 the channels are one after the other; in bfloat16 each column has a pair of numbers.
    """

    def emit(context, builder, signature, arguments):
        _, block, columns, lane, even, odd = arguments
        if signature.args[0] == types.float32:
            for vector, start in ((even, block), (odd, builder.add(block, columns))):
                builder.store(vector, pointer_to(builder, builder.add(start, lane), VECTOR, 4), align=4)
            return
        low, high = (builder.zext(_rounded(builder, each), WORDS) for each in (even, odd))
        pairs = builder.or_(low, builder.shl(high, _words(16)))
        first = builder.add(block, builder.mul(lane, cgutils.intp_t(2)))
        builder.store(pairs, pointer_to(builder, first, WORDS, 2), align=2)

    return types.void(kind, types.intp, types.intp, types.intp, lanes, lanes), emit


@intrinsic
def transpose(typing, first, step, out, out_step):
    """Write the columns of LANES vectors, which are `step` apart, as vectors that are `out_step` apart."""

    def emit(context, builder, signature, arguments):
        first, step, out, out_step = arguments

        def place(begin, step, number):
            return pointer_to(builder, builder.add(begin, builder.mul(step, cgutils.intp_t(number))), VECTOR, 4)

        vectors = [builder.load(place(first, step, number), align=4) for number in range(LANES)]
        half = LANES // 2
        halves = [
            _whole_numbers([start + each // 2 + each % 2 * LANES for each in range(LANES)]) for start in (0, half)
        ]
        # Numbers of vectors i and i + 8 in turns, four times: each moves a bit of the row's number to the column's.
        for _ in range(LANES.bit_length() - 1):
            vectors = [
                builder.shuffle_vector(vectors[number], vectors[number + half], order)
                for number in range(half)
                for order in halves
            ]
        for number, vector in enumerate(vectors):
            builder.store(vector, place(out, out_step, number), align=4)

    return types.void(*[types.intp] * 4), emit


@intrinsic
def accumulate(typing, first, value):
    """Add a vector to as many numbers in double precision at an address."""

    def emit(context, builder, signature, arguments):
        pointer = pointer_to(builder, arguments[0], _WIDE, 8)
        total = builder.fadd(builder.load(pointer, align=8), builder.fpext(arguments[1], _WIDE))
        builder.store(total, pointer, align=8)

    return types.void(types.intp, lanes), emit


@intrinsic
def splat(typing, number):
    """A vector of one number."""

    def emit(context, builder, signature, arguments):
        first = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), arguments[0], ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(first, ir.Constant(VECTOR, ir.Undefined), ir.Constant(WORDS, None))

    return lanes(types.float32), emit


@intrinsic
def rint(typing, x):
    """The nearest whole numbers."""

    def emit(context, builder, signature, arguments):
        kind = ir.FunctionType(VECTOR, [VECTOR])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.rint.v{LANES}f32"), arguments)

    return lanes(lanes), emit


@intrinsic
def clamp(typing, x, low, high):
    """min(max(x, low), high); NaN stays NaN."""

    def emit(context, builder, signature, arguments):
        x, low, high = arguments
        x = builder.select(builder.fcmp_ordered("<", x, low), low, x)
        return builder.select(builder.fcmp_ordered(">", x, high), high, x)

    return lanes(lanes, lanes, lanes), emit


@intrinsic
def larger(typing, x, y):
    """max(x, y); x where one of them is NaN."""

    def emit(context, builder, signature, arguments):
        return _larger(builder, *arguments)

    return lanes(lanes, lanes), emit


def _larger(builder, x, y):
    return builder.select(builder.fcmp_ordered("<", x, y), y, x)


@intrinsic
def first_lanes(typing, x, count, others):
    """x in so many lanes, and `others` in those that follow."""

    def emit(context, builder, signature, arguments):
        x, count, others = arguments
        number = builder.trunc(count, ir.IntType(32))
        one = builder.insert_element(ir.Constant(WORDS, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
        counts = builder.shuffle_vector(one, ir.Constant(WORDS, ir.Undefined), ir.Constant(WORDS, None))
        return builder.select(builder.icmp_signed("<", _whole_numbers(range(LANES)), counts), x, others)

    return lanes(lanes, types.intp, lanes), emit


def _across(combine):
    """An intrinsic that combines all lanes to one number."""

    @intrinsic
    def across(typing, x):
        def emit(context, builder, signature, arguments):
            (x,) = arguments
            distance = LANES // 2
            while distance:
                order = _whole_numbers([(each + distance) % LANES for each in range(LANES)])
                x = combine(builder, x, builder.shuffle_vector(x, ir.Constant(VECTOR, ir.Undefined), order))
                distance //= 2
            return builder.extract_element(x, ir.Constant(ir.IntType(32), 0))

        return types.float32(lanes), emit

    return across


highest = _across(_larger)
summed = _across(lambda builder, x, y: builder.fadd(x, y))


@intrinsic
def ldexp(typing, x, power):
    """x * 2^power, for whole powers that keep the exponent in its range."""

    def emit(context, builder, signature, arguments):
        exponent = builder.shl(builder.fptosi(arguments[1], WORDS), _words(23))
        return builder.bitcast(builder.add(builder.bitcast(arguments[0], WORDS), exponent), VECTOR)

    return lanes(lanes, lanes), emit


def _floating(operation, instruction: str) -> None:
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
    _floating(_operation, _instruction)

# A part is compiled into its callers; a step is a function of its own; a whole function is what Python calls,
# without the interpreter lock.
part = numba.njit(forceinline=True, error_model="numpy")
step = numba.njit(error_model="numpy")
whole = numba.njit(nogil=True, error_model="numpy")

ZERO = F32(0.0)
ONE = F32(1.0)

# 2^x on [-1/2, 1/2], interpolated at Chebyshev's nodes: 1e-7 of the value, which is the rounding.
_LOG2E = F32(1.4426950408889634)
_P1 = F32(0.6931472067028335)
_P2 = F32(0.24022650922288294)
_P3 = F32(0.05550327226668675)
_P4 = F32(0.009618056678553505)
_P5 = F32(0.00134004281782533)
_P6 = F32(0.00015461444693294768)
_LOWEST = F32(-125.0)
_HIGHEST = F32(126.0)


@part
def exp(x):
    """e^x as 2^n times a polynomial of degree 6, between 2^-125 and 2^126."""
    z = clamp(_LOG2E * x, splat(_LOWEST), splat(_HIGHEST))
    n = rint(z)
    f = z - n
    p = (((((_P6 * f + _P5) * f + _P4) * f + _P3) * f + _P2) * f + _P1) * f + ONE
    return ldexp(p, n)


@part
def silu(x):
    """x / (1 + e^-x)."""
    return x / (exp(splat(ZERO) - x) + ONE)
