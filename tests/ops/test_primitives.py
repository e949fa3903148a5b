"""The references of the primitives against the operators that they stand for, and against loops."""

import pytest
import torch
import torch.nn.functional as F

from leanconv.errors import BadInput
from leanconv.nn import make
from leanconv.ops.forms import averaged
from leanconv.ops.gated_sum import GatedSum, gated_pointwise
from leanconv.ops.grouped import Grouped, fewer_groups, grouped, merge_groups
from leanconv.ops.pool import MaxPool, max_pool
from leanconv.ops.separable import Separable, Stencil, separable
from leanconv.ops.upsample import Upsample, upsample

REL = {"rtol": 1e-9, "atol": 1e-9}


def _layer(text, *sizes, **options):
    layer = make(text, *sizes, **options).double().eval()
    for module in layer.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.bias)
    return layer.fold()


@torch.no_grad()
def test_splconv_is_a_chain_and_a_gated_sum():
    layer = _layer("splconv", 10, 6, 3, padding=1)
    x = torch.randn(2, 10, 9, 7, dtype=torch.double)
    chain = Separable(
        (5,),
        ((Stencil(0, 5, (3, 3), padding=(1, 1, 1, 1)),), (Stencil(0, 5, (3, 3), (1, 1), (2, 2), (2, 2, 2, 2)),)),
        6,
        bias=True,
        activation="relu",
        average=True,
    )
    weights = [layer.stencil1.weight, layer.stencil2.weight, layer.pointwise.weight, layer.pointwise.bias]
    a, average = separable([x[:, :5]], weights, chain)
    torch.testing.assert_close(average, a.mean((2, 3)), **REL)
    form = GatedSum((5,), 6, bias=True, affine=True, activation="relu")
    scale, shift = torch.randn(2, 6, dtype=torch.double)
    y, nothing = gated_pointwise(a, [x[:, 5:]], [layer.plain.weight, layer.plain.bias, scale, shift], form, average)
    torch.testing.assert_close(y, F.relu(layer(x) * scale[:, None, None] + shift[:, None, None]), **REL)
    assert nothing.numel() == 0


@torch.no_grad()
def test_inception_is_a_parallel_set_and_inputs_are_a_concatenation():
    layer = _layer("inception_dw(ratio=0.25)", 12, 12, 3, padding=1, groups=12)
    x = torch.randn(1, 12, 9, 7, dtype=torch.double)
    stage = (
        Stencil(0, 3, identity=True),
        Stencil(3, 3, (3, 3), padding=(1, 1, 1, 1), bias=True),
        Stencil(6, 3, (1, 11), padding=(0, 0, 5, 5), bias=True),
        Stencil(9, 3, (11, 1), padding=(5, 5, 0, 0), bias=True),
    )
    weights = [p for conv in (layer.dwconv_hw, layer.dwconv_w, layer.dwconv_h) for p in (conv.weight, conv.bias)]
    y, _ = separable([x[:, :4], x[:, 4:]], weights, Separable((4, 8), (stage,)))
    torch.testing.assert_close(y, layer(x), **REL)


@torch.no_grad()
def test_one_sided_padding_stride_gate_and_residual():
    x, taps, bias = torch.randn(2, 4, 8, 9), torch.randn(4, 1, 2, 2), torch.randn(4)
    project, gate = torch.randn(3, 4), torch.rand(2, 4)
    stage = (Stencil(0, 4, (2, 2), (2, 1), padding=(0, 1, 1, 0), bias=True, activation="hardswish"),)
    form = Separable((4,), (stage,), 3, activation="relu6", residual=True, gate=True)
    t = F.hardswish(F.conv2d(F.pad(x, (1, 0, 0, 1)), taps, bias, (2, 1), groups=4)) * gate[..., None, None]
    residual = torch.randn(2, 3, *t.shape[2:])
    assert form.size(8, 9) == t.shape[2:]
    y, _ = separable([x], [taps, bias, project], form, residual, gate)
    torch.testing.assert_close(y, F.relu6(torch.einsum("om,nmhw->nohw", project, t) + residual))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert form.macs(8, 9) == t.shape[2] * t.shape[3] * (4 * 4 + 4 * 3)


@torch.no_grad()
@pytest.mark.parametrize("arrangement", ["shifted", "blocked"])
def test_hetconv_is_grouped_with_a_pointwise(arrangement):
    layer = _layer(f"hetconv(part=2, arrangement='{arrangement}')", 6, 4, 3, stride=2, padding=2, dilation=2)
    x, interleaved = torch.randn(2, 6, 9, 8, dtype=torch.double), arrangement == "shifted"
    spatial = layer.spatial.unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1) if interleaved else layer.spatial
    form = Grouped((6,), 4, (3, 3), (2, 2), (2, 2), (2, 2, 2, 2), 2, interleaved, pointwise=True, bias=True)
    y, _ = grouped([x], [spatial, layer._full_pointwise(layer.pointwise), layer.bias], form)
    torch.testing.assert_close(y, layer(x), **REL)


@torch.no_grad()
@pytest.mark.parametrize("padding", [(0, 4, 4, 0), (4, 0, 0, 4), (4, 1, 1, 5)])
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (4, 1)])
def test_a_pointwise_on_lopsided_padding(padding, size):
    """A map may be smaller than what the kernel's centre never sees; a dense kernel has the 1×1 in its centre."""
    form = Grouped((4,), 6, (3, 3), (1, 2), (2, 2), padding, pointwise=True)
    x, spatial, pointwise = torch.randn(2, 4, *size), torch.randn(6, 4, 3, 3), torch.randn(6, 4)
    top, bottom, left, right = padding
    dense = spatial.clone()
    dense[:, :, 1, 1] += pointwise
    want = F.conv2d(F.pad(x, (left, right, top, bottom)), dense, stride=(1, 2), dilation=2)
    torch.testing.assert_close(grouped([x], [spatial, pointwise], form)[0], want, rtol=1e-4, atol=1e-5)


def test_group_pointwise_is_grouped_with_a_projection():
    layer = _layer("group_pointwise(part=2, block=True)", 6, 5, 3, padding=1)
    x = torch.randn(2, 6, 5, 4, dtype=torch.double)
    form = Grouped(
        (2, 4),
        6,
        (3, 3),
        padding=(1, 1, 1, 1),
        groups=2,
        bias=True,
        inner_activation="relu",
        project=5,
        project_bias=True,
        activation="relu",
        average=True,
    )
    weights = [layer.spatial.weight, layer.spatial.bias, layer.pointwise.weight, layer.pointwise.bias]
    y, average = grouped([x[:, :2], x[:, 2:]], weights, form)
    torch.testing.assert_close(y, layer(x), **REL)
    torch.testing.assert_close(average, averaged(y), **REL)


@torch.no_grad()
def test_upsample_and_pool():
    x, weight, bias = torch.randn(2, 5, 3, 4), torch.randn(5, 3, 2, 2), torch.randn(3)
    y, average = upsample([x[:, :2], x[:, 2:]], [weight, bias], Upsample((2, 3), 3, bias=True, average=True))
    torch.testing.assert_close(y, F.conv_transpose2d(x, weight, bias, 2))
    torch.testing.assert_close(average, y.mean((2, 3)))
    z, _ = max_pool(x, MaxPool(5, (3, 3), (2, 2), (1, 1, 1, 1)))
    torch.testing.assert_close(z, F.max_pool2d(x, 3, 2, 1))


def test_forms_are_keys_and_refuse_nonsense():
    stage = (Stencil(0, 4, (3, 5), (2, 1), (1, 2), (1, 1, 4, 4), True, activation="gelu"),)
    assert len({Separable((1, 3), (stage,), 7, True, "silu") for _ in range(2)}) == 1
    with pytest.raises(BadInput, match="unknown activation 'swosh'"):
        Stencil(0, 1, activation="swosh")
    with pytest.raises(BadInput, match="among the 4 before it"):
        Separable((4,), ((Stencil(1, 4),),))
    with pytest.raises(BadInput, match="inputs of"):
        separable([torch.randn(1, 3, 2, 2)], [], Separable((4,), ((Stencil(0, 4, identity=True),),)))


@torch.no_grad()
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("groups", "left"), [(4, 4), (4, 2), (4, 1), (6, 3), (6, 2), (6, 1), (12, 4)])
@pytest.mark.parametrize("rest", [{}, {"stride": (2, 1), "padding": (2, 0, 1, 3)}, {"dilation": (1, 2)}])
def test_merged_groups_give_the_same_sums(groups, left, interleaved, rest):
    """Integers: no tolerance. With a 1×1 beside, one behind, and both biases."""
    c, o = 2 * groups, 3 * groups
    shared = dict(groups=groups, interleaved=interleaved, bias=True, residual="project" in rest, **rest)
    x = torch.randint(-3, 4, (2, c, 7, 9)).double()
    kernel, beside, bias = (torch.randint(-3, 4, s).double() for s in ((o, 2, 3, 3), (o, c, 1, 1), (o,)))
    behind = torch.randint(-3, 4, (5, o, 1, 1)).double()
    for form, weights in (
        (Grouped((5, c - 5), o, (3, 3), pointwise=True, **shared), [kernel, beside, bias]),
        (Grouped((c,), o, (3, 3), project=5, inner_activation="relu", **shared), [kernel, bias, behind]),
    ):
        given = [w.clone() for w in weights]
        maps = x.split(form.channels, 1)
        fewer, merged = merge_groups(form, weights, left)
        assert fewer.groups == left
        assert all(torch.equal(a, b) for a, b in zip(weights, given, strict=True))  # the given ones stay
        assert torch.equal(grouped(maps, merged, fewer)[0], grouped(maps, weights, form)[0])


def test_groups_are_merged_until_they_fill_a_vector():
    def left(c, o, groups, lanes):
        return fewer_groups(Grouped((c,), o, (3, 3), groups=groups), lanes)

    assert left(16, 16, 4, 16) == 1  # one group of 16 fills it
    assert left(64, 64, 8, 16) == 4
    assert left(64, 64, 4, 16) == 4  # they fill it as they are
    assert left(8, 64, 4, 16) == 1  # fewer cannot
    assert left(96, 96, 12, 16) == 6
    assert left(64, 64, 8, 4) == 8
