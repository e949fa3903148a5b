"""A 1×1 convolution of seven products in place of eight, in Halide: one level of Strassen's.

Pixels, channels and outputs are cut in halves, the map A (pixels by channels) and the weights B into quarters:

    M0 = (A11 + A22)(B11 + B22)   M1 = (A21 + A22) B11          M2 = A11 (B12 - B22)   M3 = A22 (B21 - B11)
    M4 = (A11 + A12) B22          M5 = (A21 - A11)(B11 + B12)   M6 = (A12 - A22)(B21 + B22)
    C11 = M0 + M3 - M4 + M6   C12 = M2 + M4   C21 = M1 + M3   C22 = M0 - M1 + M2 + M5

Sums of weights are made beforehand, in float64; those of the map once for a block of pixels; those of the products tile
by tile, in the first-level cache. There a product's channels are summed piece by piece, too, and in shorter ones than
the direct product's: of equal ones it would be 1.9 times as far from float64.

A pixel has another beside it, half a map away (behind a stencil, half a block of rows). NaN or infinity in
one of them is NaN in both, and rounding errors are those of the larger.
Source: Strassen 1969, doi:10.1007/BF02165411; Huang et al. 2016, doi:10.1109/SC.2016.58.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leanconv.kernels.cpu.pipelines.activations import activate
from leanconv.kernels.cpu.pipelines.element import image
from leanconv.kernels.cpu.pipelines.frontend import halide
from leanconv.kernels.cpu.pipelines.gemm import Axes, Tile, equal_piece

PRODUCTS = 7
# Channels that are summed in registers before they are added to those before: that takes 2 % of the time. With pieces
# of 96 it takes 1 %, but now and then the largest error is more than twice PyTorch's.
MAX_K, SHORTEST = 32, 16


def piece_length(depth: int) -> int:
    """How many channels are summed before they are added to the others: `depth` in equal pieces.

    In one loop: weights are then one stream to whatever fetches ahead. With a loop of its own for what is left over,
    weights that come from memory cost 0.1 of 0.9 ms (512 to 512 channels, 14×14, Zen 4).
    """
    return equal_piece(depth, MAX_K)


@dataclass(frozen=True)
class Halved:
    """What one kernel computes, in float32.

    Args:
        channels, pixel: of the input, and the numbers from pixel to pixel; channels are even.
        out_channels: O, even; the output is dense.
        bias: whether one is added.
        activation: the last one.
        residual: numbers from pixel to pixel of the map that is added before it; 0 for none.
    """

    channels: int
    pixel: int
    out_channels: int
    bias: bool = False
    activation: str = "none"
    residual: int = 0


def pack_products(weight: Tensor, block: int) -> Tensor:
    """The seven second factors: `O C -> O/2/block 7 C/2 block`, zeros behind the last output."""
    width, depth = weight.shape[0] // 2, weight.shape[1] // 2
    first, second = weight.double().split(width)  # outputs
    (b11, b21), (b12, b22) = first.split(depth, 1), second.split(depth, 1)
    factors = torch.stack([b11 + b22, b11, b12 - b22, b21 - b11, b22, b11 + b12, b21 + b22])
    blocks = -(-width // block)
    packed = torch.zeros(PRODUCTS, blocks * block, depth, dtype=torch.float32)
    packed[:, :width] = factors
    return packed.view(PRODUCTS, blocks, block, depth).permute(1, 0, 3, 2).contiguous()


def pipeline(core: Halved, tile: Tile) -> tuple[Any, list[Any]]:
    """The kernel and its arguments: the map `c i j x`, factors, bias, residual `m i j x`.

    i counts halves of the channels, j those of the pixels, x pixels of a half: at least `tile.pixels`, in the map and
    in each block of them.
    """
    axes, depth = Axes(), core.channels // 2
    source = _quarters("in0", depth, core.pixel)
    sums = sums_of(axes, "sums", lambda c, i, j, x: source[c, i, j, x])
    weights = factors("w0", tile.block, depth)
    out, rest = output(axes, [(sums, depth, weights)], core, tile)
    schedule_sums(axes, sums, depth, tile)
    return out, [source, weights, *rest]


Quarters = Callable[[Any, int, int, Any], Any]


def sums_of(axes: Axes, name: str, quarter: Quarters) -> Any:
    """The seven first factors, `c x s`, of a map: `quarter(c, i, j, x)`."""
    func, s = halide().Func(name), halide().Var("s")
    a11, a12, a21, a22 = (quarter(axes.c, i, j, axes.x) for j in (0, 1) for i in (0, 1))
    func[axes.c, axes.x, s] = halide().mux(s, [a11 + a22, a21 + a22, a11, a22, a11 + a12, a21 - a11, a12 - a22])
    return func


def schedule_sums(axes: Axes, sums: Any, depth: int, tile: Tile, by_pixel: bool = True) -> None:
    """All of the block: pixel by pixel, or of all pixels one vector of channels after the other."""
    hl = halide()
    s = sums.args()[2]
    tail = hl.TailStrategy.RoundUp if depth % tile.lanes == 0 else hl.TailStrategy.Predicate
    sums.compute_root().bound(s, 0, PRODUCTS).align_storage(axes.c, tile.scratch_stride(depth))
    sums.split(axes.c, axes.co, axes.ci, tile.lanes, tail).vectorize(axes.ci).unroll(s)
    sums.reorder(axes.ci, s, *([axes.co, axes.x] if by_pixel else [axes.x, axes.co]))


def output(axes: Axes, parts: Sequence[tuple[Any, int, Any]], core: Any, tile: Tile) -> tuple[Any, list[Any]]:
    """The map `m i j x` from parts of the channels (`sums_of`, their `depth`, `factors`); bias and residual.

    `core`: has `out_channels`, `bias`, `activation`, `residual` as `Halved` has them.
    """
    hl, m, i, j, x, s = halide(), axes.m, axes.i, halide().Var("j"), axes.x, halide().Var("s")
    width, arguments = core.out_channels // 2, []
    products = hl.Func("products")
    products[m, x, s] = hl.f32(0.0)
    pieces = []
    for index, (sums, depth, weights) in enumerate(parts):
        length, piece = piece_length(depth), hl.Func(f"piece{index}")
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
        arguments.append(_quarters("residual", width, core.residual))
        value = value + arguments[-1][m, i, j, x]
    out = hl.Func("out")
    out[m, i, j, x] = activate(core.activation, value, m, i, j, x)
    _schedule_output(axes, out, j, width, core.out_channels, tile)
    products.compute_at(out, axes.xo).bound(s, 0, PRODUCTS)
    _unrolled(axes, products, tile)
    for index, (piece, k, each) in enumerate(pieces):
        update = products.update(index).reorder(m, x, each[0], s)
        update.vectorize(m, tile.lanes).unroll(m).unroll(x)
        piece.compute_at(products, each[0])
        _unrolled(axes, piece, tile)
        piece.update(0).reorder(m, x, k[0]).vectorize(m, tile.lanes).unroll(m).unroll(x)
    return out, arguments


def _unrolled(axes: Axes, func: Any, tile: Tile) -> None:
    func.bound_extent(axes.m, tile.block).vectorize(axes.m, tile.lanes).unroll(axes.m).unroll(axes.x)


def _quarters(name: str, half: int, pixel: int) -> Any:
    """A map as `c i j x`, `half` channels in each half."""
    made = halide().ImageParam(halide().Float(32), 4, name)
    made.dim(0).set_bounds(0, half).set_stride(1)
    made.dim(1).set_bounds(0, 2).set_stride(half)
    made.dim(2).set_bounds(0, 2)
    made.dim(3).set_stride(pixel)
    return made


def factors(name: str, block: int, depth: int) -> Any:
    """What `pack_products` makes, as `block c product blocks`."""
    made, step = image(name, 4), 1
    for place, size in enumerate([block, depth, PRODUCTS]):
        made.dim(place).set_bounds(0, size).set_stride(step)
        step *= size
    made.dim(3).set_min(0).set_stride(step)
    return made


def _schedule_output(axes: Axes, out: Any, j: Any, width: int, pixel: int, tile: Tile) -> None:
    """Tiles of `pixels` pairs of pixels × `block` pairs of outputs, outputs outermost: their factors stay in the cache.

    Of a tile the four quarters of a vector are written together: each product of it is read once.
    """
    hl = halide()
    tail = hl.TailStrategy.RoundUp if width % tile.block == 0 else hl.TailStrategy.Predicate
    out.bound(axes.i, 0, 2).bound(j, 0, 2)
    out.split(axes.m, axes.mo, axes.mi, tile.block, tail).split(axes.mi, axes.mv, axes.mi, tile.lanes)
    out.split(axes.x, axes.xo, axes.xi, tile.pixels, hl.TailStrategy.ShiftInwards)
    out.reorder(axes.mi, axes.i, j, axes.mv, axes.xi, axes.xo, axes.mo)
    out.vectorize(axes.mi).unroll(axes.i).unroll(j)
    buffer = out.output_buffer()
    buffer.dim(0).set_bounds(0, width).set_stride(1)
    buffer.dim(1).set_bounds(0, 2).set_stride(width)
    buffer.dim(2).set_bounds(0, 2)
    buffer.dim(3).set_stride(pixel)
