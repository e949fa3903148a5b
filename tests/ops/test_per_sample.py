"""Per-sample kernels against one convolution a sample, in both of its forms."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from leanconv.ops.exact import exact, exact_mean, without_autocast
from leanconv.ops.per_sample import per_sample_conv2d

CASES = [
    ((3, 4, 7, 9), (6, 4, 3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros"),
    ((3, 4, 7, 9), (6, 2, 3, 2), (2, 1), (0, 2), (1, 2), 2, "zeros"),
    ((2, 4, 8, 6), (4, 1, 5, 5), (2, 2), (2, 2), (1, 1), 4, "reflect"),
    ((2, 4, 8, 6), (5, 4, 1, 1), (2, 2), (0, 0), (1, 1), 1, "zeros"),
    ((2, 4, 8, 6), (4, 2, 1, 1), (1, 1), (0, 0), (1, 1), 2, "zeros"),
    ((2, 4, 8, 6), (4, 2, 4, 4), (1, 1), "same", (1, 1), 2, "circular"),
    ((1, 4, 5, 5), (4, 4, 3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros"),
]


class Layer(nn.Module):
    def __init__(self, *geometry):
        super().__init__()
        self.geometry = geometry

    def forward(self, x, weight):
        return per_sample_conv2d(x, weight, *self.geometry)


@pytest.mark.parametrize("exporting", [False, True])
@pytest.mark.parametrize(("shape", "kernel", "stride", "padding", "dilation", "groups", "mode"), CASES)
def test_equals_one_convolution_a_sample(
    shape, kernel, stride, padding, dilation, groups, mode, exporting
):  # fmt: skip
    run = Layer(stride, padding, dilation, groups, mode)
    x = torch.randn(shape, dtype=torch.double)
    weight = torch.randn(shape[0], *kernel, dtype=torch.double)
    conv = nn.Conv2d(
        shape[1], kernel[0], kernel[2:], stride, padding, dilation, groups, False, mode, dtype=torch.double
    )  # fmt: skip
    expected = []
    for one, own in zip(x, weight):
        conv.weight.data.copy_(own)
        expected.append(conv(one[None]).detach())
    if exporting:
        run = torch.export.export(run, (x, weight), strict=False).module()
    with FlopCounterMode(display=False) as counter:
        result = run(x, weight)
    torch.testing.assert_close(result, torch.cat(expected))
    assert counter.get_total_flops() == 2 * result.numel() * weight[0, 0].numel()
    if not exporting:
        last = run(x.contiguous(memory_format=torch.channels_last), weight)
        torch.testing.assert_close(last, result)
        assert last.is_contiguous(memory_format=torch.channels_last)


def test_an_empty_batch_keeps_its_gradient():
    x, weight = torch.randn(0, 4, 5, 5, requires_grad=True), torch.randn(0, 6, 4, 3, 3, requires_grad=True)
    y = per_sample_conv2d(x, weight, (1, 1), (1, 1), (1, 1))
    assert y.shape == (0, 6, 5, 5)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert weight.grad.shape == weight.shape


def test_half_types_are_averaged_in_float32():
    x = torch.full((1, 1, 64, 64), 1.0078125, dtype=torch.bfloat16)
    x[0, 0, 0, 0] = 256
    torch.testing.assert_close(exact_mean(x)[0, 0], x.double().mean().float(), rtol=1e-6, atol=0)
    assert exact(x).dtype == torch.float32
    assert exact(x.double()).dtype == torch.double
    weight = torch.randn(3, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert F.linear(torch.ones(1, 64), weight).dtype == torch.bfloat16
        with without_autocast(weight):
            assert F.linear(torch.ones(1, 64), weight).dtype == torch.float32
