"""Strassen's algorithm in Halide: a 1×1 with seven products instead of eight, one level deep.

Pixels, channels and outputs are split in halves, the map A (pixels by channels) and the weights B into quarters:

    M0 = (A11 + A22)(B11 + B22)   M1 = (A21 + A22) B11          M2 = A11 (B12 - B22)   M3 = A22 (B21 - B11)
    M4 = (A11 + A12) B22          M5 = (A21 - A11)(B11 + B12)   M6 = (A12 - A22)(B21 + B22)
    C11 = M0 + M3 - M4 + M6   C12 = M2 + M4   C21 = M1 + M3   C22 = M0 - M1 + M2 + M5

`packing.pack_strassen` adds the weights, in float64. The kernel adds the map's quarters once per block of pixels. It
adds the products tile by tile, in the L1 cache. Sums over channels are split (split-K), in shorter parts than in
the direct GEMM. With the same parts, the error would be 1.9 times the direct GEMM's.

Each pixel is paired with another, half a map away (behind a stencil, half a block of rows). A NaN or an infinity in one
of them makes both NaN. The larger number sets the rounding errors of both.
Source: Strassen 1969, doi:10.1007/BF02165411; Huang et al. 2016, doi:10.1109/SC.2016.58.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from leanconv.kernels.cpu.pipelines.activations import activate
from leanconv.kernels.cpu.pipelines.element import image
from leanconv.kernels.cpu.pipelines.frontend import halide
from leanconv.kernels.cpu.pipelines.gemm import Axes, Operand, Tile, largest_divisor

PRODUCTS = 7
# Longest sum kept in registers. Splitting at 32 costs 2 % of the time. Splitting at 96 costs 1 %, but then the largest
# error now and then exceeds twice PyTorch's.
STRASSEN_MAX_K, STRASSEN_MIN_K = 32, 16


def partial_sum_length(depth: int) -> int:
    """Channels of one partial sum; it divides `depth`.

    Equal parts need one loop, so the hardware prefetcher sees the weights as one stream. With weights from memory, a
    second loop for a remainder cost 0.1 of 0.9 ms (512 to 512 channels, 14×14, Zen 4).
    """
    return largest_divisor(depth, STRASSEN_MAX_K)


@dataclass(frozen=True)
class StrassenPointwise:
    """What one kernel computes, in float32.

    Args:
        channels, pixel: of the input, and the numbers from pixel to pixel; channels are even.
        out_channels: O, even; the output is dense.
        bias: whether there is one.
        activation: the last one.
        residual: numbers from pixel to pixel of the map that is added before the activation; 0 for none.
    """

    channels: int
    pixel: int
    out_channels: int
    bias: bool = False
    activation: str = "none"
    residual: int = 0


def pipeline(core: StrassenPointwise, tile: Tile) -> tuple[Any, list[Any]]:
    """The kernel and its arguments: the map `c i j x`, packed weights, bias, residual `m i j x`.

    i is the half of the channels, j the half of the pixels, x a pixel of a half. The map and each block of it have at
    least `tile.pixels` of these.
    """
    axes, depth = Axes(), core.channels // 2
    source = _quarters_image("in0", depth, core.pixel)
    sums = input_sums(axes, "sums", lambda c, i, j, x: source[c, i, j, x])
    weights = strassen_weights_image("w0", tile.block, depth)
    out, rest = output(axes, [Operand(sums, depth, weights)], core, tile)
    schedule_input_sums(axes, sums, depth, tile)
    return out, [source, weights, *rest]


Quarters = Callable[[Any, int, int, Any], Any]


def input_sums(axes: Axes, name: str, quarter: Quarters) -> Any:
    """The input factors `c x s` of the seven products, from a map's quarters `quarter(c, i, j, x)`."""
    func, s = halide().Func(name), halide().Var("s")
    a11, a12, a21, a22 = (quarter(axes.c, i, j, axes.x) for j in (0, 1) for i in (0, 1))
    func[axes.c, axes.x, s] = halide().mux(s, [a11 + a22, a21 + a22, a11, a22, a11 + a12, a21 - a11, a12 - a22])
    return func


def schedule_input_sums(axes: Axes, sums: Any, depth: int, tile: Tile, by_pixel: bool = True) -> None:
    """The sums of a whole block: pixel by pixel, or one vector of channels of all pixels after the other."""
    hl = halide()
    s = sums.args()[2]
    tail = hl.TailStrategy.RoundUp if depth % tile.lanes == 0 else hl.TailStrategy.Predicate
    # Once per block: every panel of weights reads them again.
    sums.compute_root().bound(s, 0, PRODUCTS).align_storage(axes.c, tile.scratch_stride(depth))
    # All seven sums of a vector together: each quarter is loaded once.
    sums.split(axes.c, axes.co, axes.ci, tile.lanes, tail).vectorize(axes.ci).unroll(s)
    sums.reorder(axes.ci, s, *([axes.co, axes.x] if by_pixel else [axes.x, axes.co]))


def output(axes: Axes, operands: Sequence[Operand], core: Any, tile: Tile) -> tuple[Any, list[Any]]:
    """The output `m i j x` from its operands, and the further arguments: bias and residual.

    The source of an operand is `input_sums`, its channels are half of the map's, its weights
    `strassen_weights_image`. `core` has `out_channels`, `bias`, `activation`, `residual` as `StrassenPointwise`.
    """
    hl, m, i, j, x, s = halide(), axes.m, axes.i, halide().Var("j"), axes.x, halide().Var("s")
    width, arguments = core.out_channels // 2, []
    products = hl.Func("products")
    products[m, x, s] = hl.f32(0.0)
    pieces = []
    for index, (sums, depth, weights) in enumerate(operands):
        length, piece = partial_sum_length(depth), hl.Func(f"piece{index}")
        k, each = hl.RDom([(0, length)], f"k{index}"), hl.RDom([(0, depth // length)], f"pieces{index}")
        channel = axes.g * length + k
        piece[m, x, s, axes.g] = hl.f32(0.0)
        piece[m, x, s, axes.g] += weights[m % tile.block, channel, s, m // tile.block] * sums[channel, x, s]
        products[m, x, s] += piece[m, x, s, each[0]]
        pieces.append((piece, k, each))
    p = [products[m, x, number] for number in range(PRODUCTS)]
    c11, c12, c21, c22 = p[0] + p[3] - p[4] + p[6], p[2] + p[4], p[1] + p[3], p[0] - p[1] + p[2] + p[5]
    value = hl.mux(j, [hl.mux(i, [c11, c12]), hl.mux(i, [c21, c22])])
    if core.bias:
        arguments.append(image("bias", 1))
        value = value + arguments[-1][i * width + m]
    if core.residual:
        arguments.append(_quarters_image("residual", width, core.residual))
        value = value + arguments[-1][m, i, j, x]
    out = hl.Func("out")
    out[m, i, j, x] = activate(core.activation, value, m, i, j, x)
    _schedule_output(axes, out, j, width, core.out_channels, tile)
    # The seven products of one register tile stay in the L1 cache until its four outputs are added up.
    products.compute_at(out, axes.xo).bound(s, 0, PRODUCTS)
    _unroll_tile(axes, products, tile)
    for index, (piece, k, each) in enumerate(pieces):
        update = products.update(index).reorder(m, x, each[0], s)
        update.vectorize(m, tile.lanes).unroll(m).unroll(x)
        # A partial sum in registers; then it is added to the product.
        piece.compute_at(products, each[0])
        _unroll_tile(axes, piece, tile)
        piece.update(0).reorder(m, x, k[0]).vectorize(m, tile.lanes).unroll(m).unroll(x)
    return out, arguments


def _unroll_tile(axes: Axes, func: Any, tile: Tile) -> None:
    func.bound_extent(axes.m, tile.block).vectorize(axes.m, tile.lanes).unroll(axes.m).unroll(axes.x)


def _quarters_image(name: str, half: int, pixel: int) -> Any:
    """A map as the argument `c i j x`, with `half` channels in each half."""
    made = halide().ImageParam(halide().Float(32), 4, name)
    made.dim(0).set_bounds(0, half).set_stride(1)
    made.dim(1).set_bounds(0, 2).set_stride(half)
    made.dim(2).set_bounds(0, 2)
    made.dim(3).set_stride(pixel)
    return made


def strassen_weights_image(name: str, block: int, depth: int) -> Any:
    """The weights of `packing.pack_strassen` as the argument `block c product blocks`."""
    made, step = image(name, 4), 1
    for place, size in enumerate([block, depth, PRODUCTS]):
        made.dim(place).set_bounds(0, size).set_stride(step)
        step *= size
    made.dim(3).set_min(0).set_stride(step)
    return made


def _schedule_output(axes: Axes, out: Any, j: Any, width: int, pixel: int, tile: Tile) -> None:
    """Tiles of `pixels` pairs of pixels × `block` pairs of outputs."""
    hl = halide()
    tail = hl.TailStrategy.RoundUp if width % tile.block == 0 else hl.TailStrategy.Predicate
    out.bound(axes.i, 0, 2).bound(j, 0, 2)
    out.split(axes.m, axes.mo, axes.mi, tile.block, tail).split(axes.mi, axes.mv, axes.mi, tile.lanes)
    out.split(axes.x, axes.xo, axes.xi, tile.pixels, hl.TailStrategy.ShiftInwards)
    # The four quarters of a vector together: each product is loaded once. Output blocks outermost: their weights stay
    # in the cache while all pixels of the block pass.
    out.reorder(axes.mi, axes.i, j, axes.mv, axes.xi, axes.xo, axes.mo)
    out.vectorize(axes.mi).unroll(axes.i).unroll(j)
    buffer = out.output_buffer()
    buffer.dim(0).set_bounds(0, width).set_stride(1)
    buffer.dim(1).set_bounds(0, 2).set_stride(width)
    buffer.dim(2).set_bounds(0, 2)
    buffer.dim(3).set_stride(pixel)
