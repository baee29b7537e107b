"""Products of bfloat16 on the matrix units of newer Intel CPUs (AMX), as numba is told of them.

A product of ``ROWS`` rows and 2 x ``SIDE`` centroids keeps four squares of sums in the units; each step reads 32 values
of all of them.
"""

import ctypes
import platform
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

SIDE = 16  # rows and columns of one square of sums
ROWS = 2 * SIDE  # of a product
DEPTH = 32  # bfloat16 values of a row that the units take at once
LINE_BYTES = 64
ASK_FOR_UNITS = 158, 0x1023, 18  # arch_prctl of x86-64, ARCH_REQ_XCOMP_PERM, the state of the tiles
SUMS, FIRST_ROWS, FIRST_COLUMNS = 0, 4, 6  # which of the eight tile registers holds what


def allowed() -> bool:
    """Whether the system lets this process use the units; asking is how a process gets them on Linux."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    return bool(ctypes.CDLL(None).syscall(*ASK_FOR_UNITS) == 0)


def _call(builder: Any, name: str, *arguments: Any) -> None:
    signature = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    builder.call(cgutils.get_or_insert_function(builder.module, signature, f"llvm.x86.{name}"), arguments)


def _register(number: int) -> Any:
    return ir.Constant(ir.IntType(8), number)


@intrinsic
def configure(typing_context: Any) -> Any:
    """Give all eight registers of this thread ``SIDE`` lines of 64 bytes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lines = b"".join(LINE_BYTES.to_bytes(2, "little") for _ in range(8))
        content = bytes([1, 0]) + bytes(14) + lines.ljust(32, b"\0") + bytes([SIDE] * 8).ljust(16, b"\0")
        constant = cgutils.global_constant(builder, "tile_configuration", cgutils.make_bytearray(content))
        _call(builder, "ldtilecfg", builder.bitcast(constant, ir.IntType(8).as_pointer()))
        return context.get_dummy_value()

    return numba.void(), generate


@intrinsic
def release(typing_context: Any) -> Any:
    """Give the registers back, so that a thread is switched without their 8 kB."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _call(builder, "tilerelease")
        return context.get_dummy_value()

    return numba.void(), generate


def multiply(builder: Any, row: Any, panel: Any, score: Any, stride: Any, steps: Any) -> None:
    """Emit the product of ``ROWS`` rows with a panel.

    Args:
        row: bytes of the rows, ROWS x DEPTH * steps bfloat16, each ``stride`` bytes after the last.
        panel: bytes of the panel, (DEPTH / 2 * steps, 2 * SIDE, 2) bfloat16: pairs of values of each centroid.
        score: bytes of the (ROWS, 2 * SIDE) float32 products.
        steps: how often ``DEPTH`` values are read.
    """
    place = ir.IntType(64)
    two_lines = place(2 * LINE_BYTES)
    second_rows = builder.gep(row, [builder.mul(stride, place(SIDE))])
    for square in range(4):
        _call(builder, "tilezero", _register(SUMS + square))
    with cgutils.for_range(builder, steps, intp=place) as loop:
        along = builder.mul(loop.index, place(LINE_BYTES))
        for half, start in enumerate((row, second_rows)):
            _call(builder, "tileloadd64", _register(FIRST_ROWS + half), builder.gep(start, [along]), stride)
        begin = builder.mul(along, place(2 * SIDE))
        for half in range(2):
            here = builder.gep(panel, [builder.add(begin, place(half * LINE_BYTES))])
            _call(builder, "tileloadd64", _register(FIRST_COLUMNS + half), here, two_lines)
        for square in range(4):
            factors = FIRST_ROWS + square // 2, FIRST_COLUMNS + square % 2
            _call(builder, "tdpbf16ps", *map(_register, (SUMS + square, *factors)))
    for square in range(4):
        here = builder.gep(score, [place((square // 2 * SIDE * 2 + square % 2) * LINE_BYTES)])
        _call(builder, "tilestored64", _register(SUMS + square), here, two_lines)


# Two vectors become one of half the values of each: neighbours in fours, then pairs of fours, then whole fours
_INTERLEAVED = [0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29]
_PAIRS = [0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29]
_FOURS = [*range(8), *range(16, 24)]
_EVERY_SECOND_FOUR = [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27]
HALVINGS = (_INTERLEAVED, 2), (_PAIRS, 2), (_FOURS, 8), (_EVERY_SECOND_FOUR, 4)  # and how far the other half lies


@intrinsic
def largest_of_rows(typing_context: Any, scores: Any, half_norms: Any, maxima: Any, panel: Any) -> Any:
    """maxima[r, panel] = max(scores[r] - half_norms) of ``SIDE`` rows.

    Args:
        scores: (SIDE, 2 * SIDE) float32.
        half_norms: (2 * SIDE,) float32.
        maxima: (SIDE or more, panels) float32.
    """
    signature = numba.void(scores, half_norms, maxima, panel)

    def generate(context: Any, builder: Any, signature_: Any, arguments: Any) -> Any:
        types, place = signature_.args, ir.IntType(64)
        vector = ir.VectorType(ir.FloatType(), SIDE)
        held = [context.make_array(types[i])(context, builder, arguments[i]) for i in range(3)]
        n_panels = builder.extract_value(held[2].shape, 1)

        def load(array: Any, number: int) -> Any:
            start = builder.gep(array.data, [place(number * SIDE)])
            return builder.load(builder.bitcast(start, vector.as_pointer()), align=4)

        def larger(one: Any, other: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", one, other), one, other)

        def chosen(one: Any, other: Any, lanes: list[int]) -> Any:
            mask = ir.Constant(ir.VectorType(ir.IntType(32), SIDE), lanes)
            return builder.shuffle_vector(one, other, mask)

        norms = load(held[1], 0), load(held[1], 1)
        rows = []
        for r in range(SIDE):
            halves = [builder.fsub(load(held[0], 2 * r + half), norms[half]) for half in range(2)]
            rows.append(larger(*halves))
        for lanes, further in HALVINGS:
            rest = [lane + further for lane in lanes]
            pairs = zip(rows[::2], rows[1::2], strict=True)
            rows = [larger(chosen(one, other, lanes), chosen(one, other, rest)) for one, other in pairs]
        for r in range(SIDE):
            to = builder.gep(
                held[2].data, [builder.add(builder.mul(n_panels, place(r)), panel_of(builder, arguments[3]))]
            )
            builder.store(builder.extract_element(rows[0], ir.IntType(32)(r)), to)
        return context.get_dummy_value()

    def panel_of(builder: Any, number: Any) -> Any:
        return builder.sext(number, ir.IntType(64)) if number.type.width < 64 else number

    return signature, generate
