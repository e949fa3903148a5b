"""Random depthwise convolutions: every size odd, prime or 1 now and then, uneven and negative paddings."""

import random
from typing import NamedTuple

import torch
import torch.nn.functional as F

from leanconv.ops.depthwise import output_size


class Case(NamedTuple):
    size: tuple[int, ...]
    kernel: tuple[int, int]
    geometry: tuple[tuple[int, int], tuple[int, int, int, int], tuple[int, int]]

    @property
    def out(self):
        return output_size(self.size, self.kernel, *self.geometry)


def cases(seed, count):
    """`count` cases that leave a pixel, each another one."""
    draw, found = random.Random(seed), []
    sides, channels = [1, 2, 5, 7, 13, 30], [1, 2, 3, 7, 8, 9, 16, 17, 31, 33, 130]
    while len(found) < count:
        size = (draw.choice([1, 2, 3]), draw.choice(channels), draw.choice(sides), draw.choice(sides))
        kernel = draw.choice(
            [(draw.randint(1, 5), draw.randint(1, 5)), (1, draw.randint(1, 11)), (draw.randint(1, 11), 1)]
        )
        geometry = (
            (draw.randint(1, 3), draw.randint(1, 3)),
            tuple(draw.randint(-1, 6) for _ in range(4)),
            (draw.randint(1, 3), draw.randint(1, 3)),
        )
        case, (top, bottom, left, right) = Case(size, kernel, geometry), geometry[1]
        crops = size[2] + min(top, 0) + min(bottom, 0), size[3] + min(left, 0) + min(right, 0)
        if min(*case.out[2:], *crops) >= 1:
            found.append(case)
    return found


def maps(case, dtype, draw):
    """x, gradient of the result, weight, bias; `draw(shape)` gives the numbers."""
    x, grad, weight, bias = draw(case.size), draw(case.out), draw((case.size[1], 1, *case.kernel)), draw(case.size[1:2])
    return x.to(dtype), grad.to(dtype), weight, bias


def in_torch(case, x, grad, weight, bias, dtype):
    """Result and gradients of x, weight and bias, by PyTorch in `dtype`."""
    x, weight, bias = (t.to(dtype).requires_grad_() for t in (x, weight, bias))
    stride, (top, bottom, left, right), dilation = case.geometry
    y = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride, 0, dilation, x.shape[1])
    y.backward(grad.to(dtype))
    return y.detach(), x.grad, weight.grad, bias.grad


def whole_numbers(largest):
    """A draw of integers whose sums float32 holds exactly."""
    return lambda shape: torch.randint(-largest, largest + 1, shape).float()
