"""Numbers of the kernels on 8-bit integers in the order in which they read them.

`vector` is the number of bytes of a vector; a vector of int32 has a quarter of that many numbers. Its numbers stand in
the order of `int8_vectors.h`: number j of 16-byte lane l of vector v belongs to byte 16·l + 4·v + j of four vectors.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def sums_order(vector: int, vectors: int = 4) -> Tensor:
    """For each sum of a pixel's `vectors` vectors, one vector after the other: the channel that it belongs to."""
    lanes = vector // 16
    v, lane, j = torch.meshgrid(torch.arange(vectors), torch.arange(lanes), torch.arange(4), indexing="ij")
    return (4 * vectors * lane + 4 * v + j).flatten()


def padded_channels(channels: int) -> int:
    """Bytes of a pixel that depthwise taps read: a multiple of 16."""
    return -(-channels // 16) * 16


def string_channels(channels: int, vector: int) -> Tensor:
    """The channel of each sum of a string of pixels, `index 4·lanes`; -1 beyond `channels`.

    `index`: of the vectors until the pattern repeats, or of the columns of a pixel.
    """
    pixel = padded_channels(channels)
    count = pixel // math.gcd(pixel, vector)
    places = torch.arange(count)[:, None] * vector + sums_order(vector)
    found = places % pixel
    return torch.where(found < channels, found, -1)


def spread_out(values: Tensor, order: Tensor) -> Tensor:
    """`values[order]` along the first axis, zero where the order is -1."""
    taken = values[order.clamp_min(0)]
    return taken.masked_fill((order < 0).view(*order.shape, *[1] * (taken.dim() - order.dim())), 0)


def pack_taps(slots: Tensor, order: Tensor) -> Tensor:
    """`taps pair C 4` (the four weights of each channel and product) as `index taps pair sums 4`."""
    by_channel = slots.permute(2, 0, 1, 3)  # C taps pair 4
    return spread_out(by_channel, order).permute(0, 2, 3, 1, 4).contiguous()


def blocks_of(outputs: int, vector: int) -> list[tuple[int, int, int]]:
    """Blocks of output channels: vectors of sums, first channel, channels. One vector has a quarter of its bytes."""
    lanes, found, first = vector // 4, [], 0
    while first < outputs:
        left = outputs - first
        vectors = 4 if left > 3 * lanes else 2 if left > lanes else 1
        found.append((vectors, first, min(left, vectors * lanes)))
        first += vectors * lanes
    return found


def pack_block(runs: Sequence[Tensor], vectors: int, vector: int) -> Tensor:
    """Weights `outputs channels` of each run (channels a multiple of 4) of one block: `quads vectors lanes 4`, flat."""
    order = sums_order(vector, vectors)
    packed = []
    for weights in runs:
        outputs = len(weights)
        taken = spread_out(weights, torch.where(order < outputs, order, -1))  # sums channels
        packed.append(taken.view(vectors, vector // 4, -1, 4).permute(2, 0, 1, 3).reshape(-1))
    return torch.cat(packed)


def pack_sums(values: Tensor, vectors: int, vector: int) -> Tensor:
    """One number per output of a block, in the order of sums."""
    order = sums_order(vector, vectors)
    return spread_out(values, torch.where(order < len(values), order, -1))
