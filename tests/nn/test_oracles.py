"""SPConv, SPLConv, SIC, XSepConv and FuSeConv from the specification alone, tap by tap in NumPy, trained and deployed.

Nothing of torch computes here but the layer under test: convolution, pooling, BatchNorm with the batch's own statistics
and the gate are loops and sums of this file, at strides, dilations, uneven kernels and odd sizes.
"""

import numpy as np
import pytest
import torch
from torch import nn

from leanconv.nn import FuSeConv2d, GroupPointwiseConv2d, SICConv2d, SPConv2d, SPLConv2d, XSepConv2d


def conv(x, layer, stride=(1, 1), pads=(0, 0, 0, 0), dilation=(1, 1), groups=1):
    """Left, right, top, bottom zeros, then one multiply-add per tap, filter and input channel."""
    weight, (left, right, top, bottom) = layer.weight.detach().numpy(), pads
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    (o, width, r, s), (sh, sw), (dh, dw) = weight.shape, stride, dilation
    p, q = (x.shape[2] - dh * (r - 1) - 1) // sh + 1, (x.shape[3] - dw * (s - 1) - 1) // sw + 1
    y = np.zeros((len(x), o, p, q))
    for f, c, i, j in np.ndindex(o, width, r, s):
        plane = x[:, f // (o // groups) * width + c]
        y[:, f] += (
            weight[f, c, i, j] * plane[:, i * dh : i * dh + p * sh : sh, j * dw : j * dw + q * sw : sw][:, :p, :q]
        )
    return y if layer.bias is None else y + layer.bias.detach().numpy()[:, None, None]


def batch_norm(x, norm, train):
    mean, variance = norm.running_mean.numpy(), norm.running_var.numpy()
    if train:
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
    scale = norm.weight.detach().numpy() / np.sqrt(variance + norm.eps)
    return (x - mean[:, None, None]) * scale[:, None, None] + norm.bias.detach().numpy()[:, None, None]


def averages(x, stride):
    """The mean of each stride×stride window, of fewer pixels at the right and lower border."""
    (sh, sw), (n, c, h, w) = stride, x.shape
    y = np.zeros((n, c, -(-h // sh), -(-w // sw)))
    for p, q in np.ndindex(*y.shape[2:]):
        y[..., p, q] = x[..., p * sh : (p + 1) * sh, q * sw : (q + 1) * sw].mean((2, 3))
    return y


def blend(a, b):
    left, right = np.exp(a.mean((2, 3), keepdims=True)), np.exp(b.mean((2, 3), keepdims=True))
    return (left * a + right * b) / (left + right)


def spconv(m, x, train):
    c = int(m.alpha * m.in_channels)
    (h, w), (dh, dw) = m.padding, m.dilation
    a = conv(x[:, :c], m.spatial, m.stride, (w, w, h, h), (dh, dw), m.rep_groups)
    a = batch_norm(a + conv(averages(x[:, :c], m.stride), m.pointwise), m.norm1, train)
    b = conv(averages(x[:, c:], m.stride), m.plain)
    return blend(a, batch_norm(b, m.norm2, train) if m.inner_norms == 2 else b)


def splconv(m, x, train):
    c, stride = int(m.alpha * m.in_channels), m.stride
    large = x[:, :c]
    if m.depthwise:
        (h, w), stride = m.padding, (1, 1)
        large = conv(large, m.stencil1, m.stride, (w, w, h, h), m.dilation, c)
    if m.dilated:
        total = m.rate * (m.stencil2.kernel_size[0] - 1)
        less, more = total // 2, total - total // 2  # the extra row and column stand right and below
        large = conv(large, m.stencil2, stride, (less, more, less, more), (m.rate, m.rate), c)
    a = np.maximum(batch_norm(conv(large, m.pointwise), m.norm, train), 0)
    return blend(a, conv(averages(x[:, c:], m.stride), m.plain))


def sic(m, x, train):
    for j, pair in enumerate(m.pairs):
        (h, w), last, stride = m.padding, j == m.units - 1, m.stride if j == 0 else (1, 1)
        z = conv(x, pair.spatial, stride, (w, w, h, h), m.dilation, x.shape[1])
        z = conv(z, pair.pointwise)
        z = z if last else batch_norm(z, m.norms[j], train)
        z = z + x if stride == (1, 1) and z.shape == x.shape else z
        x = z if last else np.maximum(z, 0)
    return x


def xsepconv(m, x, train):
    c, (r, s), (sh, sw) = x.shape[1], m.kernel_size, m.stride
    directions = [(0, 1, 0, 1), (1, 0, 1, 0), (1, 0, 0, 1), (0, 1, 1, 0)]  # RB, LT, LB, RT
    if m.pad_policy == "channel":
        ends = np.cumsum([c // 4 + (i < c % 4) for i in range(4)])
        parts = zip(np.split(x, ends[:-1], 1), directions)
    else:
        parts = [(x, directions[m.layer_index % 4])]
    padded = [np.pad(part, ((0, 0), (0, 0), d[2:], d[:2])) for part, d in parts]
    t = np.maximum(batch_norm(conv(np.concatenate(padded, 1), m.square, groups=c), m.norm1, train), 0)
    u = conv(t, m.row, (1, sw), (s // 2, s // 2, 0, 0), groups=c)
    return conv(np.maximum(batch_norm(u, m.norm2, train), 0), m.column, (sh, 1), (0, 0, r // 2, r // 2), groups=c)


def fuseconv(m, x, train):
    half, (h, w) = m.in_channels // 2, m.padding
    first, second = (x, x) if m.variant == "full" else (x[:, :half], x[:, half:])
    a = conv(first, m.row, m.stride, (w, w, 0, 0), m.dilation, first.shape[1])
    b = conv(second, m.column, m.stride, (0, 0, h, h), m.dilation, second.shape[1])
    z = np.concatenate([batch_norm(a, m.norm_row, train), batch_norm(b, m.norm_column, train)], 1)
    return conv(np.clip(z, 0, 6) if m.act_name == "relu6" else z, m.pointwise)


def group_pointwise(m, x, train):
    h, w = m.padding
    return conv(conv(x, m.spatial, m.stride, (w, w, h, h), m.dilation, m.part), m.pointwise)


CASES = [
    (group_pointwise, GroupPointwiseConv2d, (8, 6, 3, 2, 2, 2), {"part": 2}),
    (group_pointwise, GroupPointwiseConv2d, (8, 6, (2, 5), (1, 2), (0, 2)), {"part": 4, "bias": False}),
    (spconv, SPConv2d, (8, 6, 3, 1, 1), {}),
    (spconv, SPConv2d, (8, 6, 5, 2, 2), {"alpha": 0.25, "inner_norms": 1}),
    (spconv, SPConv2d, (10, 6, 3, (1, 2), 2, 2), {"alpha": 0.35, "rep_groups": 3}),
    (splconv, SPLConv2d, (8, 6, 3, 2, 1), {"alpha": 0.75}),
    (splconv, SPLConv2d, (8, 6, 3, 1, 2, 2), {"rate": 3, "dilated_kernel_size": 2}),
    (splconv, SPLConv2d, (7, 6, 5, (2, 1), 2), {"depthwise": False, "dilated_kernel_size": 4, "rate": 1}),
    (splconv, SPLConv2d, (8, 6, 3, 2, 1), {"dilated": False, "bias": False}),
    (sic, SICConv2d, (6, 6, 3, 1, 1), {"units": 3}),
    (sic, SICConv2d, (6, 8, (3, 5), 2, (2, 4), 2), {"units": 2}),
    (xsepconv, XSepConv2d, (6, 6, 5, 2, 2, 1, 6), {"pad_policy": "channel"}),
    (xsepconv, XSepConv2d, (5, 5, (7, 5), (1, 2), (3, 2), 1, 5), {"layer_index": 6}),
    (fuseconv, FuSeConv2d, (8, 6, 3, 2, 1), {"act": "relu6"}),
    (fuseconv, FuSeConv2d, (7, 6, (3, 5), 1, (2, 4), 2), {"variant": "full", "bias": False}),
]


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("oracle", "cls", "sizes", "options"), CASES, ids=lambda v: getattr(v, "__name__", str(v)))
@torch.no_grad()
def test_equals_the_specification(oracle, cls, sizes, options, train):
    layer = cls(*sizes, **options, dtype=torch.double).train(train)
    for parameter in layer.parameters():
        parameter.normal_()
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    x = torch.randn(3, sizes[0], 9, 8, dtype=torch.double)
    expected = oracle(layer, x.numpy(), train)
    torch.testing.assert_close(layer(x), torch.from_numpy(expected), rtol=1e-10, atol=1e-10)
