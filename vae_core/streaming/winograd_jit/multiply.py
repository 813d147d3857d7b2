"""The matrix products between the transforms, compiled.

A block of the result, `ROWS` x `COLUMNS` numbers, is summed up in registers: for each channel, one column of the left
side is spread over vectors and multiplied by a row of the right side. The right side is packed so that what a block
reads is one after the other; it stays in the first cache while all rows of the left side pass by.

              left                          right, packed                 results
        ROWS  | c -> |               C  | COLUMNS |  | COLUMNS |      ROWS  | block | block |
              | row  |         (down)   | of K    |  | next    |            |       |       |

On a processor with 32 registers of 512 bits a block is 12 x 32 numbers, elsewhere 6 x 16, which is what 16 registers of
256 bits have room for. Where the processor has instructions for it, both sides may be in bfloat16: channels then go in
pairs, of which the right side has those of a column one after the other, and an instruction adds both products to a sum
in float32. (van Zee & van de Geijn, BLIS: A Framework for Rapidly Instantiating BLAS Functionality, 2015.)

The columns to come are fetched meanwhile: a walk through all weights for a few tiles waits for memory a seventh of the
time else.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types

from .lanes import LANES, VECTOR, WIDE, WORDS, address, intrinsic, pointer_to, whole

ROWS = 12 if WIDE else 6
_VECTORS = 2 if WIDE else 1
COLUMNS = _VECTORS * LANES
GAP = LANES
"""Numbers left free after the channels of each product. Rows would else begin at a multiple of 4 KiB from one another
where channels are many, and so in the same few lines of the first cache."""

# What LLVM's prefetch takes.
_TO_READ = 0
_SECOND_CACHE = 2
_DATA = 1


@intrinsic
def _multiply_block(typing, kind, left, left_step, right, depth, results, results_step, ahead, ahead_step):
    """results = left x right for one block, all of them addresses and steps from row to row.

    kind: any number of float32, or of uint16 for bfloat16.
    left: [ROWS, depth], right: [depth, COLUMNS] or [depth / 2, COLUMNS, 2] without gaps, results: [ROWS, COLUMNS].
    ahead: what will be read soon, of which `ahead_step` numbers are fetched for each channel.
    """

    def emit(context, builder, signature, arguments):
        _, left, left_step, right, depth, results, results_step, ahead, ahead_step = arguments
        word = cgutils.intp_t
        pairs = signature.args[0] != types.float32
        at_once, size, vectors = (2, 2, WORDS) if pairs else (1, 4, VECTOR)
        add_products = _add_products_of_pairs if pairs else _add_products
        rows = [builder.add(left, builder.mul(left_step, word(row))) for row in range(ROWS)]

        before = builder.block
        loop = builder.append_basic_block("channels")
        after = builder.append_basic_block("sums")
        builder.branch(loop)
        builder.position_at_end(loop)
        channel = builder.phi(word)
        channel.add_incoming(word(0), before)
        sums = [[builder.phi(VECTOR) for _ in range(_VECTORS)] for _ in range(ROWS)]
        packed = builder.add(right, builder.mul(channel, word(COLUMNS)))
        factors = [
            builder.load(
                pointer_to(builder, builder.add(packed, word(at_once * each * LANES)), vectors, size), align=size
            )
            for each in range(_VECTORS)
        ]
        for row, of_row in zip(rows, sums, strict=True):
            number = builder.load(pointer_to(builder, builder.add(row, channel), vectors.element, size), align=size)
            undefined = ir.Constant(vectors, ir.Undefined)
            spread = builder.shuffle_vector(
                builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0)),
                undefined,
                ir.Constant(WORDS, None),
            )
            for total, factor in zip(of_row, factors, strict=True):
                total.add_incoming(ir.Constant(VECTOR, [0.0] * LANES), before)
                total.add_incoming(add_products(builder, spread, factor, total), loop)
        fetched = builder.add(ahead, builder.mul(channel, ahead_step))
        _fetch(builder, pointer_to(builder, fetched, ir.IntType(8), size))
        following = builder.add(channel, word(at_once))
        channel.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)

        builder.position_at_end(after)
        for row, of_row in enumerate(sums):
            place = builder.add(results, builder.mul(results_step, word(row)))
            for each, total in enumerate(of_row):
                vector = pointer_to(builder, builder.add(place, word(each * LANES)), VECTOR, 4)
                builder.store(total.incomings[1][0], vector, align=4)

    return types.void(kind, *[types.intp] * 8), emit


def _fetch(builder, place):
    """Bring a line of memory to the second cache, while the computation goes on."""
    number = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
    fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    builder.call(fetch, [place, number(_TO_READ), number(_SECOND_CACHE), number(_DATA)])


def _add_products(builder, spread, factor, total):
    kind = ir.FunctionType(VECTOR, [VECTOR] * 3)
    fused = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32")
    return builder.call(fused, [spread, factor, total])


def _add_products_of_pairs(builder, spread, factor, total):
    kind = ir.FunctionType(VECTOR, [VECTOR, WORDS, WORDS])
    return builder.asm(kind, "vdpbf16ps $3, $2, $0", "=v,0,v,v", [total, spread, factor], False)


@whole
def multiply(left, right, results, rows):
    """results[:, g] = left[:, g] x right[g] for each g.

    Args:
        left: [rows, groups, depth + GAP] one after the other, of float32, or of uint16 for bfloat16; the depth is even.
        right: [groups, columns / COLUMNS, depth, COLUMNS] of the same, as `pack` lays it out.
        results: [rows, groups, columns + GAP] of float32, one after the other.
        rows: filled up to whole blocks of ROWS: what is beyond them is read and written as well.
    """
    kind = left[0]
    groups, blocks, depth, _ = right.shape
    columns = blocks * COLUMNS
    left_step = groups * (depth + GAP)
    results_step = groups * (columns + GAP)
    for group in range(groups):
        of_left = address(left) + group * (depth + GAP)
        of_results = address(results) + group * (columns + GAP)
        for column in range(0, columns, COLUMNS):
            factors = address(right) + (group * columns + column) * depth
            # While rows pass by, the factors that come after these are fetched, as many with each block of rows.
            following = factors + depth * COLUMNS
            share = -(-COLUMNS * ROWS // rows)
            for row in range(0, rows, ROWS):
                _multiply_block(
                    kind,
                    of_left + row * left_step,
                    left_step,
                    factors,
                    depth,
                    of_results + row * results_step + column,
                    results_step,
                    following + row // ROWS * share * depth,
                    share,
                )
