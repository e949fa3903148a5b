"""Weights packed for the kernels: blocks of output channels, innermost first, zeros behind the last channel.

Each function serves one argument layout: 1×1 and depthwise weights, biases, direct and Winograd group convolutions,
Strassen products. Transforms run in float64 and round once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from leanconv.kernels.cpu.pipelines.depthwise import taps_stride
from leanconv.kernels.cpu.pipelines.element import FLOAT32, ElementType
from leanconv.kernels.cpu.pipelines.padded import GroupedCore, keeps_interleaving, padded_depth
from leanconv.kernels.cpu.pipelines.strassen import PRODUCTS
from leanconv.kernels.cpu.pipelines.winograd import parts_of


def pack_projection(weight: Tensor, block: int, element: ElementType = FLOAT32) -> Tensor:
    """A 1×1: `O C -> O/block C block`. If products take pairs: `O C -> O/block C/2 block 2`, in bfloat16."""
    o, c = weight.shape
    blocks, room = -(-o // block), c + c % 2 * element.pairs
    packed = torch.zeros(blocks * block, room, dtype=element.dtype if element.pairs else torch.float32)
    packed[:o, :c] = weight
    if element.pairs:
        return packed.view(blocks, block, room // 2, 2).transpose(1, 2).contiguous()
    return packed.view(blocks, block, c).transpose(1, 2).contiguous()


def pack_tiles(parts: Sequence[Tensor], depth: int) -> Tensor:
    """A product's weights for tiles: `O C_i` each -> `O/16 ΣC_i/depth (depth/2 16 2)`, in bfloat16.

    Zeros up to whole tiles of `depth` numbers, part by part.
    """
    o, strips = parts[0].shape[0], -(-parts[0].shape[0] // 16)
    wide = [pad(part.float(), (0, -part.shape[1] % depth, 0, strips * 16 - o)) for part in parts]
    whole = torch.cat(wide, 1).bfloat16().view(strips, 16, -1, depth // 2, 2)
    return whole.permute(0, 2, 3, 1, 4).flatten(2).contiguous()


def pack_vector(vector: Tensor | None, block: int, size: int) -> Tensor:
    """A bias of `size` numbers in whole blocks; zeros if there is none."""
    packed = torch.zeros(-(-size // block) * block, dtype=torch.float32)
    if vector is not None:
        packed[:size] = vector
    return packed


def pack_taps(taps: Tensor) -> Tensor:
    """Depthwise taps: `C 1 R S -> R·S C`, with C rounded up to `taps_stride`."""
    c = taps.shape[0]
    packed = torch.zeros(taps[0].numel(), taps_stride(c), dtype=torch.float32)
    packed[:, :c] = taps.reshape(c, -1).T
    return packed


def pack_strassen(weight: Tensor, block: int) -> Tensor:
    """The weight factors of Strassen's seven products: `O C -> O/2/block 7 C/2 block`."""
    width, depth = weight.shape[0] // 2, weight.shape[1] // 2
    first, second = weight.double().split(width)  # outputs
    (b11, b21), (b12, b22) = first.split(depth, 1), second.split(depth, 1)
    factors = torch.stack([b11 + b22, b11, b12 - b22, b21 - b11, b22, b11 + b12, b21 + b22])
    blocks = -(-width // block)
    packed = torch.zeros(PRODUCTS, blocks * block, depth, dtype=torch.float32)
    packed[:, :width] = factors
    return packed.view(PRODUCTS, blocks, block, depth).permute(1, 0, 3, 2).contiguous()


def pack_direct(core: GroupedCore, taps: Tensor, pointwise: Tensor | None, block: int) -> list[Tensor]:
    """Weights of `grouped.pipeline`: taps `G O/G C/G R·S`, and the parallel 1×1 `O C` group by group."""
    form, product = core.form, core.product
    each, c = form.out_channels // form.groups, sum(form.channels) // form.groups
    surplus = padded_depth(c, product) - c
    taps = pad(taps.transpose(2, 3), (0, surplus)).flatten(2)  # G O/G R·S·C/G
    weights = [torch.cat([pack_projection(part, block, product) for part in taps])]
    if pointwise is not None:
        columns = pointwise.unflatten(1, (form.groups, c))
        columns = (
            columns.transpose(1, 2) if keeps_interleaving(form, product) else pad(columns, (0, surplus))
        ).flatten(1)
        weights.append(torch.cat([pack_projection(part, block, product) for part in columns.split(each)]))
    return weights


def pack_winograd(core: GroupedCore, taps: Tensor, pointwise: Tensor | None, block: int) -> list[Tensor]:
    """Weights of `winograd.pipeline`: G g Gᵀ of the taps `G O/G C/G R·S`, and of the parallel 1×1 `O C`."""
    form = core.form
    transform = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)
    numbers = torch.einsum("ir,gocrs,ks->ikgoc", transform, taps.double().unflatten(3, (3, 3)), transform)
    whole = None
    if pointwise is not None:
        # The 1×1 is the centre tap of a 3×3. Added to the group's own taps it makes one sum over all channels.
        each, c, g = form.out_channels // form.groups, sum(form.channels) // form.groups, form.groups
        centre = transform[:, 1]
        whole = torch.einsum("i,k,gohc->ikgohc", centre, centre, pointwise.double().view(g, each, g, c))
        own = torch.arange(g)
        whole[:, :, own, :, own] += numbers.movedim(2, 0)
        whole = (whole.transpose(4, 5) if keeps_interleaving(form, core.product) else whole).flatten(4)  # 4 4 G O/G C
    weights = []
    for part in parts_of(form):
        of = whole if part.all_groups and whole is not None else numbers
        side = torch.cat([of[place] for place in part.places], -1).float()  # G O/G n·C
        weights.append(torch.cat([pack_projection(group, block) for group in side]))
    return weights
