"""Products of rows and centroids, one tile in registers at a time, so that scores never leave the cache of their core.

A tile is ``TILE_ROWS`` rows times a panel of ``PANEL`` centroids; each step of depth multiplies and adds a float32, or
a pair of bfloat16 where the CPU has units for them. How the tiles run is said in LLVM's own terms, since numba cannot
be told to keep an array in registers.
"""

import itertools
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from jaxtyping import Float
from llvmlite import ir
from numba.core import cgutils, config
from numba.extending import intrinsic, overload

LANES = 16  # of one vector; a CPU with shorter ones takes several


def has_feature(name: str) -> bool:
    """Whether numba compiles for a CPU with this feature (NUMBA_CPU_FEATURES overrules what the CPU has)."""
    given: str | None = getattr(config, "CPU_FEATURES", None)
    if given is not None:
        return f"+{name}" in given.split(",")
    return bool(llvmlite.binding.get_host_cpu_features().get(name, False))


PAIRS = has_feature("avx512bf16")  # products of pairs of bfloat16
VECTORS = 2 if has_feature("avx512f") else 1  # of a panel
TILE_ROWS = 12 if has_feature("avx512f") else 6  # as many as registers hold, with room for a row and a panel
PANEL = VECTORS * LANES
CACHE_BYTES = 384 << 10  # of the scores of a block of rows: most of what a core has for itself
ROWS_AT_MOST, ROWS_AT_LEAST = 16 * TILE_ROWS, 4 * TILE_ROWS  # of a block; few would read the centroids too often


@intrinsic
def as_float32(typing_context: Any, value: Any) -> Any:
    """A score as float32: bfloat16 arrives as its uint16 bit pattern, the upper half of a float32."""
    signature = numba.float32(value)

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        if value == numba.float32:
            return arguments[0]
        bits = builder.shl(builder.zext(arguments[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(bits, ir.FloatType())

    return signature, generate


@intrinsic
def bits_as_float32(typing_context: Any, value: Any) -> Any:
    """The float32 that has these 32 bits."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return numba.float32(value), generate


@numba.njit(fastmath={"reassoc", "contract"})
def round_to_bfloat16(x, patterns):
    """Round a float32 row to bfloat16 bits, to nearest even; its norm, and that of what rounding took."""
    bits = x.view(np.uint32)
    total, rest = np.float32(0), np.float32(0)
    for f in range(len(bits)):
        pattern = bits[f]
        rounded = np.uint32(pattern + np.uint32(0x7FFF) + ((pattern >> np.uint32(16)) & np.uint32(1)))
        low = np.uint16(rounded >> np.uint32(16))
        patterns[f] = low
        value = bits_as_float32(pattern)
        difference = value - as_float32(low)
        total += value * value
        rest += difference * difference
    return np.sqrt(total), np.sqrt(rest)


@intrinsic
def multiply_tile(
    typing_context: Any, rows: Any, tile: Any, packed: Any, half_norms: Any, panel: Any, scores: Any, maxima: Any
) -> Any:
    """Products of a tile of rows with one panel, and of each row the largest product less half norm.

    Args:
        rows: (tiles, depth, TILE_ROWS) float32, or uint32 of two bfloat16 each.
        packed: (panels, depth, PANEL) of the same kind.
        half_norms: (panels * PANEL,) float32; infinite where the last panel has no centroid.
        scores: (tiles * TILE_ROWS, panels * PANEL) float32; gets the products.
        maxima: (tiles * TILE_ROWS, panels) float32.
    """
    signature = numba.void(rows, tile, packed, half_norms, panel, scores, maxima)
    pairs = rows.dtype == numba.uint32

    def generate(context: Any, builder: Any, signature_: Any, arguments: Any) -> Any:
        types = signature_.args
        place = ir.IntType(64)
        single, vector = ir.FloatType(), ir.VectorType(ir.FloatType(), LANES)
        held = [context.make_array(types[i])(context, builder, arguments[i]) for i in (0, 2, 3, 5, 6)]
        row, centroid, norms, score, largest = (array.data for array in held)
        depth = builder.extract_value(held[0].shape, 1)
        n_panels = builder.extract_value(held[1].shape, 0)
        tile, number = (
            builder.sext(arguments[i], place) if arguments[i].type.width < 64 else arguments[i] for i in (1, 4)
        )

        def vector_at(pointer: Any, offset: Any) -> Any:
            return builder.bitcast(builder.gep(pointer, [offset]), vector.as_pointer())

        def times(value: int, other: Any) -> Any:
            return builder.mul(other, ir.Constant(place, value))

        products = [[cgutils.alloca_once(builder, vector) for _ in range(VECTORS)] for _ in range(TILE_ROWS)]
        for product in itertools.chain(*products):
            builder.store(ir.Constant(vector, [0.0] * LANES), product)
        first_row = times(TILE_ROWS, builder.mul(tile, depth))
        first_centroid = times(PANEL, builder.mul(number, depth))
        with cgutils.for_range(builder, depth, intp=place) as loop:
            columns = []
            for v in range(VECTORS):
                offset = builder.add(first_centroid, builder.add(times(PANEL, loop.index), place(v * LANES)))
                columns.append(builder.load(vector_at(centroid, offset), align=4))
            for r in range(TILE_ROWS):
                offset = builder.add(first_row, builder.add(times(TILE_ROWS, loop.index), place(r)))
                value = builder.load(builder.gep(row, [offset]))
                value = builder.bitcast(value, single)
                lane = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.IntType(32)(0))
                wide = builder.shuffle_vector(
                    lane, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), LANES), None)
                )
                for v in range(VECTORS):
                    before = builder.load(products[r][v])
                    builder.store(_multiply_add(builder, before, wide, columns[v], pairs), products[r][v])
        width = times(PANEL, n_panels)
        first_column = times(PANEL, number)
        kind = ir.FunctionType(single, [vector])
        reduce = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fmax.v{LANES}f32")
        for r in range(TILE_ROWS):
            mine = builder.add(times(TILE_ROWS, tile), place(r))
            most: Any = None
            for v in range(VECTORS):
                product = builder.load(products[r][v])
                column = builder.add(first_column, place(v * LANES))
                to = vector_at(score, builder.add(builder.mul(mine, width), column))
                builder.store(product, to, align=4)
                less = builder.fsub(product, builder.load(vector_at(norms, column), align=4))
                most = less if most is None else builder.select(builder.fcmp_ordered(">", less, most), less, most)
            to = builder.gep(largest, [builder.add(builder.mul(mine, n_panels), number)])
            builder.store(builder.call(reduce, [most], fastmath=("nnan", "nsz")), to)
        return context.get_dummy_value()

    return signature, generate


def _multiply_add(builder: Any, total: Any, row: Any, column: Any, pairs: bool) -> Any:
    """total + row * column in every lane; with ``pairs`` every lane is two bfloat16, whose products are both added."""
    if not pairs:
        kind = ir.FunctionType(total.type, [total.type] * 3)
        fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32")
        return builder.call(fma, [row, column, total])
    integers = ir.VectorType(ir.IntType(32), LANES)
    kind = ir.FunctionType(total.type, [total.type, integers, integers])
    dot = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512bf16.dpbf16ps.512")
    return builder.call(dot, [total, builder.bitcast(row, integers), builder.bitcast(column, integers)])


@intrinsic
def take_next(typing_context: Any, counter: Any) -> Any:
    """counter[0], which is one larger afterwards; no other thread gets the same."""
    signature = numba.int64(counter)

    def generate(context: Any, builder: Any, signature_: Any, arguments: Any) -> Any:
        data = context.make_array(signature_.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return signature, generate


@numba.njit
def multiply_block(rows, n_rows, packed, half_norms, scores, maxima):
    """`multiply_tile` for so many rows and all panels; a panel stays in the fastest cache meanwhile."""
    for panel in range(packed.shape[0]):
        for tile in range((n_rows + TILE_ROWS - 1) // TILE_ROWS):
            multiply_tile(rows, tile, packed, half_norms, panel, scores, maxima)


@numba.njit
def multiply_some(rows, needed, packed, half_norms, scores, maxima):
    """`multiply_tile` of each tile with the first ``needed`` panels; these are ascending."""
    first = 0
    for panel in range(needed[-1] if len(needed) else 0):
        while needed[first] <= panel:
            first += 1
        for tile in range(first, len(needed)):
            multiply_tile(rows, tile, packed, half_norms, panel, scores, maxima)


def pack_row(x, low, tiles, place):
    """Put a float32 row at its place in the tiles, rounded to their kind; its norm and that of what rounding took.

    ``low`` (depth,) of the kind of the tiles is room for one row.
    """


@overload(pack_row, jit_options={"fastmath": {"reassoc", "contract"}})
def _pack_row(x, low, tiles, place):
    if tiles.dtype == numba.float32:

        def pack(x, low, tiles, place):
            total = np.float32(0)
            tile, r = place // TILE_ROWS, place % TILE_ROWS
            for f in range(x.shape[0]):
                total += x[f] * x[f]
            for f in range(x.shape[0]):
                tiles[tile, f, r] = x[f]
            return np.sqrt(total), np.float32(0)

    else:

        def pack(x, low, tiles, place):
            patterns = low.view(np.uint16)
            norm, residual = round_to_bfloat16(x, patterns)
            tile, r = place // TILE_ROWS, place % TILE_ROWS
            for f in range(len(low)):
                tiles[tile, f, r] = low[f]
            return norm, residual

    return pack


class PackedCentroids:
    """Centroids in the order in which tiles read them.

    Args:
        low: (k, d) float32 or the uint16 bits of bfloat16.
        half_norms: (k,) float32.
    """

    def __init__(self, low: np.ndarray, half_norms: Float[np.ndarray, "k"]):
        k, dim = low.shape
        panels, each = -(-k // PANEL), 4 // low.itemsize  # values in each 4 bytes
        self.depth = -(-dim // each)
        padded = np.zeros((panels * PANEL, self.depth * each), low.dtype)
        padded[:k, :dim] = low
        kind = np.float32 if each == 1 else np.uint32
        self.values = np.ascontiguousarray(padded.view(kind).reshape(panels, PANEL, self.depth).transpose(0, 2, 1))
        self.half_norms = np.full(panels * PANEL, np.inf, np.float32)
        self.half_norms[:k] = half_norms
        rows = CACHE_BYTES // self.half_norms.nbytes // TILE_ROWS * TILE_ROWS
        self.rows_at_once = min(max(rows, ROWS_AT_LEAST), ROWS_AT_MOST)

    def rooms(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What each thread needs for a block of rows: its tiles, room for one row, scores, their maxima."""
        workers, (panels, depth, _) = numba.get_num_threads(), self.values.shape
        tiles = np.zeros((workers, self.rows_at_once // TILE_ROWS, depth, TILE_ROWS), self.values.dtype)
        low = np.zeros((workers, depth), self.values.dtype)
        scores = np.empty((workers, self.rows_at_once, panels * PANEL), np.float32)
        return tiles, low, scores, np.empty((workers, self.rows_at_once, panels), np.float32)
