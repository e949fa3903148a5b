"""Per-sample kernels against one convolution a sample, in each of its forms."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from leanconv.nn import ODConv2d
from leanconv.ops import per_sample
from leanconv.ops.exact import exact, exact_mean, without_autocast
from leanconv.ops.per_sample import mixed_conv2d, per_sample_conv2d
from leanconv.spec import ConvSpec

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
def test_equals_one_convolution_a_sample(shape, kernel, stride, padding, dilation, groups, mode, exporting):
    run = Layer(stride, padding, dilation, groups, mode)
    x = torch.randn(shape, dtype=torch.double)
    weight = torch.randn(shape[0], *kernel, dtype=torch.double)
    conv = nn.Conv2d(
        shape[1], kernel[0], kernel[2:], stride, padding, dilation, groups, False, mode, dtype=torch.double
    )
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


FORMS = [  # C, O, kernel, stride, padding, dilation, groups, padding mode, kernels
    (4, 6, (3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros", 3),
    (4, 6, (3, 2), (2, 1), (0, 2), (1, 2), 2, "zeros", 2),
    (4, 4, (5, 5), (2, 2), (2, 2), (1, 1), 4, "reflect", 2),
    (4, 6, (1, 1), (2, 1), (0, 0), (1, 1), 1, "zeros", 3),
    (4, 6, (1, 1), (1, 1), (1, 1), (1, 1), 1, "zeros", 3),
    (4, 6, (4, 4), (1, 1), "same", (1, 1), 1, "circular", 2),
    (4, 6, (3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros", 1),
]


@pytest.mark.parametrize(
    ("c", "o", "kernel", "stride", "padding", "dilation", "groups", "mode", "kernels", "form"),
    [(*case, form) for case in FORMS for form in ("products", "outputs")[: 2 if case[6] == 1 else 1]],
)
def test_each_form_equals_the_grouped_convolution(c, o, kernel, stride, padding, dilation, groups, mode, kernels, form):
    """Outputs, every gradient, and the memory format, in float64."""
    x = torch.randn(3, c, 7, 9, dtype=torch.double)
    weight = torch.randn(kernels, o, c // groups, *kernel, dtype=torch.double)
    mixture = torch.rand(3, kernels, dtype=torch.double) if kernels > 1 else torch.ones(3, 1, dtype=torch.double)
    taps = torch.rand(3, 1, 1, *kernel, dtype=torch.double)
    leaves = [each.requires_grad_() for each in (x, weight, mixture, taps)]

    def grouped(x, weight, mixture, taps):
        own = torch.einsum("nk,kocrs,nabrs->nocrs", mixture, weight, taps)
        whole = nn.Conv2d(3 * c, 3 * o, kernel, stride, padding, dilation, 3 * groups, False, mode, dtype=torch.double)
        y = torch.func.functional_call(whole, {"weight": own.flatten(0, 1)}, x.flatten(0, 1)[None])
        return y.view(3, o, *y.shape[2:])

    def ours(x, weight, mixture, taps):
        left, rest = per_sample._padded(x, weight, padding, dilation, mode)
        if form == "outputs":
            return per_sample._summed_outputs(left, weight, mixture, taps, stride, rest, dilation)
        own = torch.einsum("nk,kocrs->nocrs", mixture, weight)
        return per_sample._products(left, own, taps, stride, rest, dilation, groups)

    expected, result = grouped(*leaves), ours(*leaves)
    torch.testing.assert_close(result, expected)
    seed = torch.randn_like(expected)
    torch.testing.assert_close(torch.autograd.grad(result, leaves, seed), torch.autograd.grad(expected, leaves, seed))


@pytest.mark.parametrize(
    ("n", "c", "o", "h", "kernels", "form"),
    [
        (3, 6, 8, 2, 4, "_products"), (3, 6, 8, 3, 4, "conv2d"), (3, 6, 8, 2, 1, "_summed_outputs"),
        (4, 96, 48, 2, 4, "_products"), (102, 96, 48, 2, 4, "_summed_outputs"), (102, 96, 48, 5, 4, "_products"),
    ],
)  # fmt: skip
def test_the_form_goes_by_the_sizes_and_is_counted(n, c, o, h, kernels, form, monkeypatch):
    ran = []
    for name in ("_products", "_summed_outputs"):
        real = getattr(per_sample, name)
        monkeypatch.setattr(per_sample, name, lambda *a, name=name, real=real: ran.append(name) or real(*a))
    layer = ODConv2d(c, o, 3, padding=1, kernels=kernels).eval()
    x = torch.randn(n, c, h, h).to(memory_format=torch.channels_last)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        y = layer(x)
    assert ran == ([] if form == "conv2d" else [form])
    assert y.is_contiguous(memory_format=torch.channels_last)
    spec = ConvSpec.of(c, o, 3, 1, 1, n=n, h=h, w=h)
    assert counter.get_total_flops() == 2 * ODConv2d.cost(spec, kernels=kernels).executed_macs
    with torch.no_grad():
        torch.testing.assert_close(y[:3], layer(x[:3]), rtol=1e-4, atol=1e-5)  # three samples mix their kernels


def test_mixed_outputs_compile_whole_and_take_half_types():
    x, weight = torch.randn(128, 64, 2, 2), torch.randn(2, 64, 64, 3, 3) / 24
    mixture, taps = torch.rand(128, 2), torch.rand(128, 1, 1, 3, 3)
    geometry = ((1, 1), (1, 1), (1, 1))
    assert per_sample.mixes_outputs(128, 4, weight.shape)

    def run(x):
        return mixed_conv2d(x, weight.to(x.dtype), mixture, taps, *geometry)

    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(run, fullgraph=True, backend="aot_eager")(x), run(x))
    exact = run(x.double())
    for result in (run(x.bfloat16()), _autocast(run, x)):
        assert result.dtype == torch.bfloat16
        assert (result.double() - exact).abs().max() <= 0.03 * exact.abs().max()


def _autocast(run, x):
    with torch.autocast("cpu", torch.bfloat16):
        return run(x)


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
