"""The matrix products between the transforms, compiled.

A block of the result, `ROWS` x `COLUMNS` numbers, is summed up in registers: for each channel, one column of the left
side is spread over vectors and multiplied by a row of the right side. The right side is packed so that what a block
reads is one after the other; it stays in the first cache while all rows of the left side pass by.

              left                          right, packed                 results
        ROWS  | c -> |               C  | COLUMNS |  | COLUMNS |      ROWS  | block | block |
              | row  |         (down)   | of K    |  | next    |            |       |       |

On a processor with 32 registers of 512 bits a block is 12 x 32 numbers, elsewhere 6 x 16, which is what 16 registers of
256 bits have room for. (van Zee & van de Geijn, BLIS: A Framework for Rapidly Instantiating BLAS Functionality, 2015.)
"""

from __future__ import annotations

from llvmlite import binding, ir
from numba.core import cgutils, types

from .lanes import LANES, VECTOR, WORDS, intrinsic, pointer_to, step

_WIDE = binding.get_host_cpu_features().get("avx512f", False)
ROWS = 12 if _WIDE else 6
_VECTORS = 2 if _WIDE else 1
COLUMNS = _VECTORS * LANES
GAP = LANES
"""Numbers left free after the channels of each product. Rows would else begin at a multiple of 4 KiB from one another
where channels are many, and so in the same few lines of the first cache."""


@intrinsic
def _multiply_block(typing, left, left_step, right, depth, results, results_step):
    """results = left x right for one block, all of them addresses and steps from row to row.

    left: [ROWS, depth], right: [depth, COLUMNS] without gaps, results: [ROWS, COLUMNS].
    """

    def emit(context, builder, signature, arguments):
        left, left_step, right, depth, results, results_step = arguments
        word, one = cgutils.intp_t, cgutils.intp_t(1)
        multiply_add = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(VECTOR, [VECTOR] * 3), f"llvm.fma.v{LANES}f32"
        )
        rows = [builder.add(left, builder.mul(left_step, word(row))) for row in range(ROWS)]

        before, loop = builder.block, builder.append_basic_block("channels")
        after = builder.append_basic_block("sums")
        builder.branch(loop)
        builder.position_at_end(loop)
        channel = builder.phi(word)
        channel.add_incoming(word(0), before)
        sums = [[builder.phi(VECTOR) for _ in range(_VECTORS)] for _ in range(ROWS)]
        packed = builder.add(right, builder.mul(channel, word(COLUMNS)))
        factors = [
            builder.load(pointer_to(builder, builder.add(packed, word(each * LANES)), VECTOR, 4), align=4)
            for each in range(_VECTORS)
        ]
        for row, of_row in zip(rows, sums, strict=True):
            number = builder.load(pointer_to(builder, builder.add(row, channel), ir.FloatType(), 4), align=4)
            undefined = ir.Constant(VECTOR, ir.Undefined)
            spread = builder.shuffle_vector(
                builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0)),
                undefined,
                ir.Constant(WORDS, None),
            )
            for total, factor in zip(of_row, factors, strict=True):
                total.add_incoming(ir.Constant(VECTOR, [0.0] * LANES), before)
                total.add_incoming(builder.call(multiply_add, [spread, factor, total]), loop)
        following = builder.add(channel, one)
        channel.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)

        builder.position_at_end(after)
        for row, of_row in enumerate(sums):
            place = builder.add(results, builder.mul(results_step, word(row)))
            for each, total in enumerate(of_row):
                vector = pointer_to(builder, builder.add(place, word(each * LANES)), VECTOR, 4)
                builder.store(total.incomings[1][0], vector, align=4)

    return types.void(*[types.intp] * 6), emit


@step
def multiply(left, right, results, rows, groups, depth, columns):
    """results[:, g] = left[:, g] x right[g] for each g, at addresses.

    Args:
        left: [rows, groups, depth + GAP].
        right: [groups, columns / COLUMNS, depth, COLUMNS].
        results: [rows, groups, columns + GAP].
        rows: filled up to whole blocks: what is beyond them is read and written as well.
        columns: a multiple of COLUMNS.
    """
    left_step = groups * (depth + GAP)
    results_step = groups * (columns + GAP)
    for group in range(groups):
        of_left = left + group * (depth + GAP)
        of_results = results + group * (columns + GAP)
        for column in range(0, columns, COLUMNS):
            for row in range(0, rows, ROWS):
                _multiply_block(
                    of_left + row * left_step,
                    left_step,
                    right + (group * columns + column) * depth,
                    depth,
                    of_results + row * results_step + column,
                    results_step,
                )
