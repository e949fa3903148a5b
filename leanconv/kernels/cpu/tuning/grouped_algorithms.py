"""The ways to make a grouped convolution, direct and by minimal filtering: tiles, blocks of rows, what they cost, and
how their weights are packed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from leanconv.kernels.cpu.pipelines import grouped, winograd
from leanconv.kernels.cpu.pipelines.element import FLOAT32
from leanconv.kernels.cpu.pipelines.grouped import Tiles
from leanconv.kernels.cpu.pipelines.padded import Core, mixed, spread
from leanconv.kernels.cpu.runtime.tensors import pack_projection
from leanconv.kernels.cpu.tuning.cost_model import arithmetic, matrix_cycles, matrix_tile, row_block
from leanconv.kernels.cpu.tuning.cpu import Cpu
from leanconv.ops.forms import Pair
from leanconv.ops.grouped import Grouped

Choose = Callable[[Any, Tiles, Callable[[Tiles], float]], Tiles]  # `Bound.tile`

# Of a core in the model, measured on a Zen 4: bytes of weights that come from the third-level cache in a cycle, and
# cycles that transforms take for a vector of channels of 2×2 outputs: into, out of, and either one `Tiles.near`.
WEIGHT_BYTES = 16.0
INTO, OUT_OF, NEAR = 50.0, 50.0, 25.0


@dataclass(frozen=True)
class Algorithm:
    """How a map is made: by which method, with which tiles, so many rows at a time, in so many cycles a sample."""

    method: str
    tiles: Tiles
    block: int
    cycles: float


def direct_algorithm(cpu: Cpu, core: Core, samples: int, size: Pair, choose: Choose) -> Algorithm:
    """By the sum as it stands."""
    form, element, (p, q) = core.form, core.element, size
    c, taps = sum(form.channels), form.kernel[0] * form.kernel[1]
    depth = c // form.groups * taps + c * form.pointwise
    each, steps = form.out_channels // form.groups, core.product.steps(depth)
    first = each, q, steps, False

    def cycles(tiles: Tiles) -> float:
        after = 0.0 if form.project is None else matrix_cycles(cpu, tiles.outer, *_after(core, q))
        return form.groups * matrix_cycles(cpu, tiles.inner, *first) + after

    tile = matrix_tile(cpu, *first)
    best = Tiles(tile, tile if form.project is None else matrix_tile(cpu, *_after(core, q)))
    tiles = choose(("direct", core), best, cycles)
    inner = 0 if form.project is None else form.out_channels
    row_bytes = element.bytes * q * (c * form.stride[0] * form.stride[1] + inner + form.width)
    block = row_block(cpu, p, samples, row_bytes, (form.kernel[0] - 1) * form.dilation[0], torch.get_num_threads())
    products = form.groups * p * matrix_cycles(cpu, tiles.inner, *first)
    read = element.bytes * form.out_channels * depth * math.ceil(p / block) / WEIGHT_BYTES
    return Algorithm("direct", tiles, block, products + read)


def _after(core: Core, q: int) -> tuple[int, int, int, bool]:
    """What `matrix_tile` is to know of the 1×1 that follows, on a row of q."""
    return core.form.project or 0, q, core.element.steps(core.form.out_channels), False


def can_winograd(core: Core) -> bool:
    """Whether minimal filtering can make it: 3×3 of every pixel, in float32, not of an image in planes."""
    plain = core.form.kernel == (3, 3) and core.form.stride == core.form.dilation == (1, 1)
    return plain and core.element == FLOAT32 and bool(core.pixels)


def algorithm_for(cpu: Cpu, core: Core, samples: int, size: Pair, choose: Choose, method: str | None) -> Algorithm:
    """The way that costs least, or by the `method` that is asked for.

    A dense convolution is none of the sums that this project's operators save, and direct unless it is asked for.
    """
    lean = core.form.groups > 1 or core.form.pointwise
    meant = can_winograd(core) and arithmetic() in (("lean", "fewest") if lean else ("fewest",))
    algorithms = [direct_algorithm, winograd_algorithm] if meant else [direct_algorithm]
    if method is not None:
        algorithms = [{"direct": direct_algorithm, "winograd": winograd_algorithm}[method]]
    best = min(algorithms, key=lambda algorithm: algorithm(cpu, core, samples, size, lambda _, tiles, __: tiles).cycles)
    return best(cpu, core, samples, size, choose)  # the tiles of others are not made


def winograd_algorithm(cpu: Cpu, core: Core, samples: int, size: Pair, choose: Choose) -> Algorithm:
    """By F(2×2, 3×3)."""
    form, (p, q) = core.form, size
    c, each, across = sum(form.channels), form.out_channels // form.groups, math.ceil(q / 2)
    inner = 0 if form.project is None else form.out_channels
    own = matrix_tile(cpu, each, across, c // form.groups, False)
    l1_fused = winograd.may_be_near(form, own)
    kept = sum(len(part.places) * (c if part.at_once(form) else part.depth(form)) for part in winograd.parts_of(form))
    scratch = 0 if l1_fused else across * (kept + 16 * min(each, 32)) // 2
    row_bytes = 4 * (q * (c + inner + form.width) + scratch)
    block = row_block(cpu, p, samples, row_bytes, 1, torch.get_num_threads(), 2)
    down = math.ceil(min(block, p) / 2)
    tile = own if l1_fused else matrix_tile(cpu, each, across * down, c // form.groups, False)

    def cycles(tiles: Tiles) -> float:
        after = 0.0 if form.project is None else block * matrix_cycles(cpu, tiles.outer, *_after(core, q))
        return _winograd_cycles(cpu, form, tiles, across, down) + after

    best = Tiles(tile, tile if form.project is None else matrix_tile(cpu, *_after(core, q)), l1_fused)
    tiles = choose(("winograd", core), best, cycles)
    return Algorithm("winograd", tiles, block, math.ceil(p / block) * _winograd_cycles(cpu, form, tiles, across, down))


def _winograd_cycles(cpu: Cpu, form: Grouped, tiles: Tiles, across: int, down: int) -> float:
    """Of one block with so many 2×2 outputs."""
    c, each, cycles, tile = sum(form.channels), form.out_channels // form.groups, 0.0, tiles.inner
    rows, columns = (down, across) if tiles.l1_fused else (1, across * down)
    into, out_of = (NEAR, NEAR) if tiles.l1_fused else (INTO, OUT_OF)
    for part in winograd.parts_of(form):
        depth, n = part.depth(form), len(part.places)
        cycles += n * form.groups * rows * matrix_cycles(cpu, tile, each, columns, depth, False)
        wide = c if part.at_once(form) and not tiles.l1_fused else c // form.groups
        cycles += c / wide * math.ceil(wide / tile.lanes) * across * down * into * n / 16
        cycles += 4 * n * form.out_channels * depth / WEIGHT_BYTES
    return cycles + form.groups * math.ceil(each / tile.lanes) * across * down * out_of


def packed_direct(core: Core, taps: Tensor, beside: Tensor | None, block: int) -> list[Tensor]:
    """Of `grouped.pipeline`, from taps `G O/G C/G R·S` and the 1×1 beside them, `O C` group by group."""
    form, product = core.form, core.product
    each, c = form.out_channels // form.groups, sum(form.channels) // form.groups
    surplus = spread(c, product) - c
    taps = pad(taps.transpose(2, 3), (0, surplus)).flatten(2)  # G O/G R·S·C/G
    weights = [torch.cat([pack_projection(part, block, product) for part in taps])]
    if beside is not None:
        columns = beside.unflatten(1, (form.groups, c))
        columns = (columns.transpose(1, 2) if mixed(form, product) else pad(columns, (0, surplus))).flatten(1)
        weights.append(torch.cat([pack_projection(part, block, product) for part in columns.split(each)]))
    return weights


def packed_winograd(core: Core, taps: Tensor, beside: Tensor | None, block: int) -> list[Tensor]:
    """Of `winograd.pipeline`: transformed in float64, G g Gᵀ, rounded once."""
    form = core.form
    into = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)
    numbers = torch.einsum("ir,gocrs,ks->ikgoc", into, taps.double().unflatten(3, (3, 3)), into)
    whole = None
    if beside is not None:  # its tap is the one at the centre; with the group's own channels it is one sum
        each, c, g = form.out_channels // form.groups, sum(form.channels) // form.groups, form.groups
        whole = torch.einsum("i,k,gohc->ikgohc", into[:, 1], into[:, 1], beside.double().view(g, each, g, c))
        own = torch.arange(g)
        whole[:, :, own, :, own] += numbers.movedim(2, 0)
        whole = (whole.transpose(4, 5) if mixed(form, core.product) else whole).flatten(4)  # 4 4 G O/G C
    weights = []
    for part in winograd.parts_of(form):
        of = whole if part.beside and whole is not None else numbers
        side = torch.cat([of[place] for place in part.places], -1).float()  # G O/G n·C
        weights.append(torch.cat([pack_projection(group, block) for group in side]))
    return weights


PIPELINES = {"direct": grouped.pipeline, "winograd": winograd.pipeline}
PACKED = {"direct": packed_direct, "winograd": packed_winograd}
