"""Products of rows and centroids, one tile in registers at a time, so that scores never leave the cache of their core.

A tile is ``TILE_ROWS`` rows times a panel of ``PANEL`` centroids; each step of depth multiplies and adds a float32, a
pair of bfloat16 where the CPU has units for them, or a pair of int16, of which AVX2 multiplies twice as many as of
float32 in the same time. Where the CPU multiplies whole matrices of bfloat16, a tile has `amx.ROWS` rows. How the tiles
run is said in LLVM's own terms, since numba cannot be told to keep an array in registers.

What rows and centroids are made of tells how they are multiplied: float32; uint32, two bfloat16 each; int32, two int16
each; uint16, a bfloat16 each, by the matrix units.
"""

import itertools
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from jaxtyping import Float, Int
from llvmlite import ir
from numba.core import cgutils, config
from numba.extending import intrinsic, overload

import curation.kmeans.amx as amx


def has_feature(name: str) -> bool:
    """Whether numba compiles for a CPU with this feature (NUMBA_CPU_FEATURES overrules what the CPU has)."""
    given: str | None = getattr(config, "CPU_FEATURES", None)
    if given is not None:
        return f"+{name}" in given.split(",")
    return bool(llvmlite.binding.get_host_cpu_features().get(name, False))


WIDE = has_feature("avx512f")
MATRICES = WIDE and has_feature("amx-bf16") and amx.allowed()
OF_AMD = (getattr(config, "CPU_NAME", None) or llvmlite.binding.get_host_cpu_name()).startswith("znver")
PAIRS = has_feature("avx512bf16") and OF_AMD  # Intel's are slower than float32
# pairs of int16 outrun float32: in one instruction with VNNI; with AVX2 in two, of which units can do more at a time
INTEGERS = has_feature("avx512vnni") if WIDE else has_feature("avx2")
LANES, VECTORS = 16 if WIDE else 8, 2  # of float32 in a vector, of vectors in a panel
TILE_ROWS = 12 if WIDE else 6  # as many as registers hold, with room for a row and a panel
PANEL = VECTORS * LANES
CACHE_BYTES = 384 << 10  # of the scores of a block of rows: most of what a core has for itself
FAR_CACHE_BYTES = 16 << 20  # of the same for matrix units, which outrun the cache when few rows share the centroids
ROWS_AT_MOST, ROWS_AT_LEAST = 16 * TILE_ROWS, 4 * TILE_ROWS  # of a block; few would read the centroids too often
# Lengths of int16 rows and centroids: rounding adds at most sqrt(d) / 2 to each, no value is then above 32,767, and no
# sum of products above 32,700 x 64,700 < 2^31 (Cauchy-Schwarz), whatever its order
ROW_LENGTH, CENTROID_LENGTH, LARGEST_INTEGER = 32_000, 64_000, 32_700
MOST_DIMENSIONS = 65_536  # of int16 rows; above, the length itself is not known well enough
HALF = 0.502  # of a step is what rounding takes at most, with room for the float32 product before it
LEAST_STEP = 1e-30  # of int16 centroids, so that it is no denormal number
ROUNDED_AT_ONCE = 4096  # centroids
LEAST_SQUARE = 1e-28  # a shorter row is zero in int16: its square could have lost terms to underflow
ROUNDOFF_OF_ROW = 2.0**-22  # of the length of an int16 row: its step is rounded, as is each product with its inverse


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


def products_of(scores, row, panel):
    """A row's products with a panel: of (n, k) that torch made, or (panels, n, PANEL) of tiles."""


@overload(products_of)
def _products_of(scores, row, panel):
    if scores.ndim == 2:
        return lambda scores, row, panel: scores[row, panel * PANEL : (panel + 1) * PANEL]
    return lambda scores, row, panel: scores[panel, row]


@numba.njit(fastmath={"reassoc", "contract", "nnan", "nsz"})
def high_scores(scores, row, half_norms, panel, threshold):
    """Bits of the centroids of a panel that score ``threshold`` or more, and the largest score of the others."""
    products = products_of(scores, row, panel)
    norms = half_norms[panel * PANEL : panel * PANEL + len(products)]
    found, others = np.uint32(0), np.float32(-np.inf)
    for j in range(len(products)):
        score = as_float32(products[j]) - norms[j]
        high = score >= threshold
        found |= np.uint32(high) << np.uint32(j)
        others = max(others, np.float32(-np.inf) if high else score)
    return found, others


@numba.njit(fastmath={"reassoc", "contract", "nnan", "nsz"})
def largest_below(values, threshold):
    """The largest value that does not reach the threshold."""
    largest = np.float32(-np.inf)
    for value in values:
        largest = max(largest, value if value < threshold else np.float32(-np.inf))
    return largest


@intrinsic
def lowest_bit(typing_context: Any, value: Any) -> Any:
    """Place of the lowest bit that is set."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.zext(builder.cttz(arguments[0], ir.IntType(1)(1)), ir.IntType(64))

    return numba.int64(numba.uint32), generate


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
    typing_context: Any,
    rows: Any,
    tile: Any,
    packed: Any,
    half_norms: Any,
    panel: Any,
    units: Any,
    scores: Any,
    maxima: Any,
) -> Any:
    """Products of a tile of rows with one panel, and of each row the largest product less half norm.

    What matrix units multiply gets its maxima from `find_maxima`, later: products cannot be read as they are written.

    Args:
        rows: (tiles, depth, TILE_ROWS) float32, uint32 or int32; (tiles, amx.ROWS, depth or more) uint16.
        packed: (panels, depth, PANEL) of the same kind; (panels, depth / 2, 2 * PANEL) uint16.
        half_norms: (panels * PANEL,) float32; infinite where the last panel has no centroid.
        units: (tiles * TILE_ROWS,) float32; what a product of 1 is worth in each row, for int16 alone.
        scores: (panels, tiles * TILE_ROWS, PANEL) float32; gets the products, those of a tile side by side.
        maxima: (tiles * TILE_ROWS, panels) float32.
    """
    signature = numba.void(rows, tile, packed, half_norms, panel, units, scores, maxima)
    kind = rows.dtype

    def generate(context: Any, builder: Any, signature_: Any, arguments: Any) -> Any:
        types = signature_.args
        place = ir.IntType(64)
        single, vector = ir.FloatType(), ir.VectorType(ir.FloatType(), LANES)
        summed = ir.VectorType(ir.IntType(32), LANES) if kind == numba.int32 else vector
        held = [context.make_array(types[i])(context, builder, arguments[i]) for i in (0, 2, 3, 5, 6, 7)]
        row, centroid, norms, unit, score, largest = (array.data for array in held)
        depth = builder.extract_value(held[0].shape, 1)
        n_panels = builder.extract_value(held[1].shape, 0)
        tile, number = (
            builder.sext(arguments[i], place) if arguments[i].type.width < 64 else arguments[i] for i in (1, 4)
        )
        reduction = ir.FunctionType(single, [vector])
        reduce = cgutils.get_or_insert_function(builder.module, reduction, f"llvm.vector.reduce.fmax.v{LANES}f32")

        def vector_at(pointer: Any, offset: Any) -> Any:
            return builder.bitcast(builder.gep(pointer, [offset]), vector.as_pointer())

        def times(value: int, other: Any) -> Any:
            return builder.mul(other, ir.Constant(place, value))

        def in_all_lanes(value: Any) -> Any:
            lane = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.IntType(32)(0))
            first = ir.Constant(ir.VectorType(ir.IntType(32), LANES), None)
            return builder.shuffle_vector(lane, ir.Constant(vector, ir.Undefined), first)

        n_rows = builder.extract_value(held[4].shape, 1)
        first_column = times(PANEL, number)
        first_score = builder.mul(number, n_rows)

        if kind == numba.uint16:
            first_row = times(amx.ROWS, tile)
            byte = ir.IntType(8).as_pointer()
            stride, pairs = builder.extract_value(held[0].shape, 2), builder.extract_value(held[1].shape, 1)
            row = builder.gep(row, [builder.mul(first_row, stride)])
            centroid = builder.gep(centroid, [times(2, builder.mul(first_column, pairs))])
            score_here = builder.gep(score, [times(PANEL, builder.add(first_score, first_row))])
            starts = [builder.bitcast(start, byte) for start in (row, centroid, score_here)]
            steps = builder.udiv(pairs, place(amx.DEPTH // 2))
            amx.multiply(builder, starts[0], starts[1], starts[2], times(2, stride), steps)
            return context.get_dummy_value()

        products = [[cgutils.alloca_once(builder, summed) for _ in range(VECTORS)] for _ in range(TILE_ROWS)]
        for product in itertools.chain(*products):
            builder.store(ir.Constant(summed, None), product)
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
                wide = in_all_lanes(builder.bitcast(value, single))
                for v in range(VECTORS):
                    before = builder.load(products[r][v])
                    builder.store(_multiply_add(builder, before, wide, columns[v], kind), products[r][v])
        for r in range(TILE_ROWS):
            mine = builder.add(times(TILE_ROWS, tile), place(r))
            most: Any = None
            for v in range(VECTORS):
                product = builder.load(products[r][v])
                if summed is not vector:
                    worth = in_all_lanes(builder.load(builder.gep(unit, [mine])))
                    product = builder.fmul(builder.sitofp(product, vector), worth)
                here = builder.add(times(PANEL, builder.add(first_score, mine)), place(v * LANES))
                builder.store(product, vector_at(score, here), align=4)
                column = builder.add(first_column, place(v * LANES))
                less = builder.fsub(product, builder.load(vector_at(norms, column), align=4))
                most = less if most is None else builder.select(builder.fcmp_ordered(">", less, most), less, most)
            to = builder.gep(largest, [builder.add(builder.mul(mine, n_panels), number)])
            builder.store(builder.call(reduce, [most], fastmath=("nnan", "nsz")), to)
        return context.get_dummy_value()

    return signature, generate


def _multiply_add(builder: Any, total: Any, row: Any, column: Any, kind: Any) -> Any:
    """total + row * column in every lane; of pairs, both products are added."""
    if kind == numba.float32:
        signature = ir.FunctionType(total.type, [total.type] * 3)
        fma = cgutils.get_or_insert_function(builder.module, signature, f"llvm.fma.v{LANES}f32")
        return builder.call(fma, [row, column, total])
    integers = ir.VectorType(ir.IntType(32), LANES)
    if kind == numba.uint32:
        signature = ir.FunctionType(total.type, [total.type, integers, integers])
        dot = cgutils.get_or_insert_function(builder.module, signature, "llvm.x86.avx512bf16.dpbf16ps.512")
        return builder.call(dot, [total, builder.bitcast(row, integers), builder.bitcast(column, integers)])
    halves = ir.VectorType(ir.IntType(16), 2 * LANES)
    signature = ir.FunctionType(integers, [halves, halves])
    name = "llvm.x86.avx512.pmaddw.d.512" if WIDE else "llvm.x86.avx2.pmadd.wd"
    both = cgutils.get_or_insert_function(builder.module, signature, name)
    return builder.add(total, builder.call(both, [builder.bitcast(row, halves), builder.bitcast(column, halves)]))


@intrinsic
def take_next(typing_context: Any, counter: Any) -> Any:
    """counter[0], which is one larger afterwards; no other thread gets the same."""
    signature = numba.int64(counter)

    def generate(context: Any, builder: Any, signature_: Any, arguments: Any) -> Any:
        data = context.make_array(signature_.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return signature, generate


@intrinsic
def fetch(typing_context: Any, row: Any, place: Any) -> Any:
    """Ask for row[place] to be brought into the cache; nothing waits for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        flag = ir.IntType(32)
        asks = ir.FunctionType(ir.VoidType(), [address.type, flag, flag, flag])
        ask = cgutils.get_or_insert_function(builder.module, asks, "llvm.prefetch.p0")
        builder.call(ask, [address, flag(0), flag(3), flag(1)])  # to read, to be kept, data
        return context.get_dummy_value()

    return numba.void(row, place), generate


def rows_of(tiles):
    """How many rows a tile of these has."""
    return amx.ROWS if tiles.dtype == np.uint16 else TILE_ROWS


@overload(rows_of, inline="always")
def _rows_of(tiles):
    number = amx.ROWS if tiles.dtype == numba.uint16 else TILE_ROWS
    return lambda tiles: number


def begin(tiles):
    """Make the units of this thread ready for tiles of this kind."""


@overload(begin)
def _begin(tiles):
    return (lambda tiles: amx.configure()) if tiles.dtype == numba.uint16 else lambda tiles: None


def find_maxima(tiles, tile, half_norms, panel, scores, maxima):
    """Of the rows of a tile, the largest product with a panel less half norm, where `multiply_tile` left it out."""


@overload(find_maxima)
def _find_maxima(tiles, tile, half_norms, panel, scores, maxima):
    if tiles.dtype != numba.uint16:
        return lambda tiles, tile, half_norms, panel, scores, maxima: None

    def find(tiles, tile, half_norms, panel, scores, maxima):
        norms = half_norms[panel * PANEL : (panel + 1) * PANEL]
        for first in range(tile * amx.ROWS, (tile + 1) * amx.ROWS, amx.SIDE):
            amx.largest_of_rows(scores[panel, first : first + amx.SIDE], norms, maxima[first:], panel)

    return find


def end(tiles):
    """Leave the units as `begin` found them."""


@overload(end)
def _end(tiles):
    return (lambda tiles: amx.release()) if tiles.dtype == numba.uint16 else lambda tiles: None


@numba.njit
def multiply_block(rows, n_rows, packed, half_norms, units, scores, maxima):
    """`multiply_tile` for so many rows and all panels; a panel stays in the fastest cache meanwhile."""
    n_tiles = (n_rows + rows_of(rows) - 1) // rows_of(rows)
    begin(rows)
    for panel in range(packed.shape[0]):
        for tile in range(n_tiles):
            multiply_tile(rows, tile, packed, half_norms, panel, units, scores, maxima)
        for tile in range(n_tiles):
            find_maxima(rows, tile, half_norms, panel, scores, maxima)
    end(rows)


@numba.njit
def multiply_some(rows, needed, packed, half_norms, units, scores, maxima):
    """`multiply_tile` of each tile with the first ``needed`` panels; these are ascending."""
    first = 0
    begin(rows)
    for panel in range(needed[-1] if len(needed) else 0):
        while needed[first] <= panel:
            first += 1
        for tile in range(first, len(needed)):
            multiply_tile(rows, tile, packed, half_norms, panel, units, scores, maxima)
        for tile in range(first, len(needed)):
            find_maxima(rows, tile, half_norms, panel, scores, maxima)
    end(rows)


def pack_row(x, low, tiles, place):
    """Put a float32 row at its place in the tiles, rounded to their kind.

    ``low`` (depth,) of the kind of the tiles is room for one row, zero at first; uint16 rows need none.

    Returns:
        Its norm, the norm of what rounding took or more, and what a step of its integers is worth (1 for floats).
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
            return np.sqrt(total), np.float32(0), np.float32(1)

    elif tiles.dtype == numba.int32:

        def pack(x, low, tiles, place):
            total = np.float32(0)
            tile, r = place // TILE_ROWS, place % TILE_ROWS
            for f in range(x.shape[0]):
                total += x[f] * x[f]
            if total < LEAST_SQUARE:
                for f in range(len(low)):
                    tiles[tile, f, r] = 0
                most = np.float32(1.01 * np.sqrt(LEAST_SQUARE))
                return most, most, np.float32(0)
            norm = np.sqrt(total)
            step, scale = norm / np.float32(ROW_LENGTH), np.float32(ROW_LENGTH) / norm
            halves = low.view(np.int16)
            for f in range(x.shape[0]):
                halves[f] = np.int16(np.rint(x[f] * scale))
            for f in range(len(low)):
                tiles[tile, f, r] = low[f]
            lost = np.float32(HALF * np.sqrt(x.shape[0])) * step + np.float32(ROUNDOFF_OF_ROW) * norm
            return norm, lost, step

    elif tiles.dtype == numba.uint16:

        def pack(x, low, tiles, place):
            norm, residual = round_to_bfloat16(x, tiles[place // amx.ROWS, place % amx.ROWS])
            return norm, residual, np.float32(1)

    else:

        def pack(x, low, tiles, place):
            patterns = low.view(np.uint16)
            norm, residual = round_to_bfloat16(x, patterns)
            tile, r = place // TILE_ROWS, place % TILE_ROWS
            for f in range(len(low)):
                tiles[tile, f, r] = low[f]
            return norm, residual, np.float32(1)

    return pack


def round_centroids(
    centroids: Float[np.ndarray, "k d"], largest_norm: float
) -> tuple[Int[np.ndarray, "k d"], float, float]:
    """Centroids as int16, what a step is worth (a float32), and the largest norm of what rounding took of one."""
    values, residual = np.empty(centroids.shape, np.int16), 0.0
    step = np.float32(max(largest_norm / CENTROID_LENGTH, np.abs(centroids).max() / LARGEST_INTEGER, LEAST_STEP))
    for start in range(0, len(centroids), ROUNDED_AT_ONCE):
        here = slice(start, start + ROUNDED_AT_ONCE)
        exact = centroids[here].astype(np.float64) / float(step)
        rounded = np.rint(exact)
        values[here] = rounded
        residual = max(residual, float(np.square(exact - rounded).sum(axis=1).max()))
    return values, float(step), float(step) * residual**0.5


@numba.njit(parallel=True, cache=True)
def _transpose_panels(rows, panels):
    for panel in numba.prange(len(panels)):
        for f in range(panels.shape[1]):
            for j in range(PANEL):
                panels[panel, f, j] = rows[panel * PANEL + j, f]


class PackedCentroids:
    """Centroids in the order in which tiles read them.

    Args:
        low: (k, d) float32, the uint16 bits of bfloat16, or int16.
        half_norms: (k,) float32.
        step: what a step of the integers is worth.
    """

    def __init__(self, low: np.ndarray, half_norms: Float[np.ndarray, "k"], step: float = 1.0):
        k, dim = low.shape
        self.step = np.float32(step)
        matrices = MATRICES and low.dtype == np.uint16
        panels, each = -(-k // PANEL), 4 // low.itemsize  # values in each 4 bytes
        self.depth = -(-dim // amx.DEPTH) * amx.DEPTH // each if matrices else -(-dim // each)
        padded = np.zeros((panels * PANEL, self.depth * each), low.dtype)
        padded[:k, :dim] = low
        kind = {"float32": np.float32, "uint16": np.uint32, "int16": np.int32}[low.dtype.name]
        self.values = np.empty((panels, self.depth, PANEL), kind)
        _transpose_panels(padded.view(kind), self.values)
        if matrices:
            self.values = self.values.view(np.uint16)
        self.half_norms = np.full(panels * PANEL, np.inf, np.float32)
        self.half_norms[:k] = half_norms
        together = rows_of(self.values)
        room = FAR_CACHE_BYTES if matrices else CACHE_BYTES
        rows = min(max(room // self.half_norms.nbytes, ROWS_AT_LEAST), ROWS_AT_MOST)
        self.rows_at_once = max(rows // together, 1) * together

        self._rooms: tuple[np.ndarray, ...] = ()

    def rooms(self) -> tuple[np.ndarray, ...]:
        """What each thread needs for a block of rows: its tiles, room for one row, units, scores, their maxima.

        They are kept: fresh memory costs a page fault every 4 kB.
        """
        workers, panels, kind = numba.get_num_threads(), len(self.values), self.values.dtype
        if len(self._rooms) and len(self._rooms[0]) == workers:
            return self._rooms
        n_tiles = self.rows_at_once // rows_of(self.values)
        one_tile, one_row = (self.depth, TILE_ROWS), self.depth
        if kind == np.uint16:
            stride = (2 * self.depth // amx.DEPTH | 1) * amx.DEPTH  # even ones meet in few lines of the fastest cache
            one_tile, one_row = (amx.ROWS, stride), 0
        self._rooms = (
            np.zeros((workers, n_tiles, *one_tile), kind),
            np.zeros((workers, one_row), kind),
            np.ones((workers, self.rows_at_once), np.float32),
            np.empty((workers, panels, self.rows_at_once, PANEL), np.float32),
            np.empty((workers, self.rows_at_once, panels), np.float32),
        )
        return self._rooms
