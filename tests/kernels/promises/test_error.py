"""Every kernel keeps the promise that its page prints: at most so many times the error of a plain float32 sum."""

import pytest
import torch
import torch.nn.functional as F

from leanconv.kernels.cpu.bound import separable_builder
from leanconv.kernels.promises import PROMISES, name_of
from leanconv.ops.forms import averaged
from leanconv.ops.gated_sum import GatedSum
from tests.kernels.promises.catalogue import (
    ROOMS,
    cases,
    forced,
    laid,
    maps_for,
    pipelines_here,
    reference,
    weights_for,
    wide,
)

pytestmark = pytest.mark.usefixtures("halide")


def both(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def plain_conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """conv2d as a plain sum: products rounded to float32, and added one after the other."""
    n, o, (s, p, d) = len(x), len(weight), map(both, (stride, padding, dilation))
    h, w = ((x.shape[2 + i] + 2 * p[i] - d[i] * (weight.shape[2 + i] - 1) - 1) // s[i] + 1 for i in (0, 1))
    columns = F.unfold(x, weight.shape[2:], d, p, s).view(n, groups, -1, h * w)
    kernel = weight.reshape(groups, o // groups, -1)
    start = torch.zeros(o) if bias is None else bias
    total = start.view(1, groups, -1, 1).expand(n, groups, o // groups, h * w)
    for k in range(kernel.shape[2]):
        total = total + columns[:, :, None, k] * kernel[None, :, :, k, None]
    return total.view(n, o, h, w)


def plain_conv_transpose2d(x, weight, bias=None, stride=1):
    """conv_transpose2d whose kernel is its stride, likewise."""
    _, o, k, _ = weight.shape
    start = None if bias is None else bias.repeat_interleave(k * k)
    return F.pixel_shuffle(plain_conv2d(x, weight.permute(1, 2, 3, 0).reshape(o * k * k, -1, 1, 1), start), k)


@torch.no_grad()
@pytest.mark.parametrize("case", cases(), ids=str)
def test_no_more_than_promised(case, monkeypatch):
    form, asked = case.form, []
    weights = [w.to(case.dtype) for w in weights_for(form, torch.randn)]
    maps = laid(case, maps_for(form, 2, 24, 26, torch.randn))
    averages = [averaged(x) for x in maps] if isinstance(form, GatedSum) else []

    def kernel(pipeline, core, tile, made=separable_builder.kernel):
        asked.append(name_of(pipeline.__module__, pipeline.__name__))
        return made(pipeline, core, tile)

    for room in ROOMS:
        monkeypatch.setattr(room, "kernel", kernel)
    with forced(case):
        y, _ = case.bound(weights).run(maps, averages)
    (name,) = set(asked)
    exact, _ = reference(form, wide(maps), wide(weights), wide(averages))
    monkeypatch.setattr(F, "conv2d", plain_conv2d)
    monkeypatch.setattr(F, "conv_transpose2d", plain_conv_transpose2d)
    given = ([None if t is None else t.float() for t in each] for each in (maps, weights))
    plain = reference(form, *given, averages)[0].to(case.dtype)
    error, allowed = (float((t.double() - exact).square().mean().sqrt()) for t in (y, plain))
    promised = PROMISES[name].error if case.dtype == torch.float32 else PROMISES[name].short
    assert error <= promised * allowed, f"{case} by {name}: {error / allowed:.2f} times a plain sum's error"


def test_every_kernel_promises():
    assert set(PROMISES) == {name_of(each.__module__, each.__name__) for each in pipelines_here()}
