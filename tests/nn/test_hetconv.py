"""HetConv against the paper's words taken literally: a mask on a dense kernel, filter by filter."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanconv.nn import HetConv2d
from leanconv.nn.hetconv import owners


def literal_mask(o, c, k, part):
    mask = torch.zeros(o, c, k, k, dtype=torch.double)
    for n, i in itertools.product(range(o), range(c)):
        mask[n, i, k // 2, k // 2] = 1
        if (i - n) % part == 0:
            mask[n, i] = 1
    return mask


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("c", "o", "part"), [(8, 12, 4), (8, 8, 8), (6, 9, 3), (4, 6, 1), (6, 4, 2)])
def test_equals_the_masked_dense_convolution(c, o, part, k, stride):
    dense = nn.Conv2d(c, o, k, stride, k // 2, dtype=torch.double)
    layer = HetConv2d(c, o, k, stride, k // 2, part=part, dtype=torch.double)
    layer.load_state_dict(dense.state_dict())
    x = torch.randn(2, c, 9, 10, dtype=torch.double)
    expected = F.conv2d(x, dense.weight * literal_mask(o, c, k, part), dense.bias, stride, k // 2)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("c", "o", "part"), [(7, 5, 3), (5, 7, 4), (3, 3, 2)])
def test_ragged_equals_the_masked_dense_convolution(c, o, part):
    dense = nn.Conv2d(c, o, 3, padding=2, dilation=2, dtype=torch.double)
    layer = HetConv2d(c, o, 3, padding=2, dilation=2, part=part, ragged=True, dtype=torch.double)
    layer.load_state_dict(dense.state_dict())
    x = torch.randn(2, c, 9, 10, dtype=torch.double)
    expected = F.conv2d(x, dense.weight * literal_mask(o, c, 3, part), dense.bias, 1, 2, 2)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-13)


def test_ragged_counts_kernels_as_the_specification_does():
    owned = owners(5, 7, 3, "shifted").sum(1)
    assert owned.tolist() == [3, 2, 2, 3, 2]  # M = 7, P = 3


def test_ragged_where_the_part_divides_is_the_grouped_form():
    a, b = HetConv2d(8, 8, 3, part=4), HetConv2d(8, 8, 3, part=4, ragged=True)
    b.load_state_dict(a.state_dict())
    x = torch.randn(1, 8, 7, 7)
    torch.testing.assert_close(a(x), b(x), rtol=0, atol=0)


def test_blocked_is_shifted_up_to_fixed_permutations():
    c, o, part = 8, 12, 4
    blocked = HetConv2d(c, o, 3, padding=1, bias=False, part=part, arrangement="blocked", dtype=torch.double)
    shifted = HetConv2d(c, o, 3, padding=1, bias=False, part=part, dtype=torch.double)
    inputs = torch.tensor([i for r in range(part) for i in range(r, c, part)])  # sorted by residue
    outputs = torch.tensor([i for r in range(part) for i in range(r, o, part)])
    weight = torch.zeros(o, c, 3, 3, dtype=torch.double)
    weight[outputs[:, None], inputs[None]] = blocked.dense_weight().detach()
    shifted.load_dense_(weight)
    x = torch.randn(2, c, 6, 5, dtype=torch.double)
    torch.testing.assert_close(shifted(x)[:, outputs], blocked(x[:, inputs]))


@pytest.mark.parametrize("stride", [1, 2])
def test_reparametrised_group_plus_pointwise_merges_exactly(stride):
    """F3: train a group convolution beside a full 1×1, deploy their sum as one blocked HetConv."""
    spatial = nn.Conv2d(8, 12, 3, stride, 1, groups=4, dtype=torch.double)
    pointwise = nn.Conv2d(8, 12, 1, stride, dtype=torch.double)
    layer = HetConv2d(8, 12, 3, stride, 1, part=4, arrangement="blocked", dtype=torch.double)
    layer.load_sum_(spatial, pointwise)
    x = torch.randn(2, 8, 9, 8, dtype=torch.double)
    torch.testing.assert_close(layer(x), spatial(x) + pointwise(x))


def test_without_off_centre_taps_it_is_a_pointwise_convolution():
    layer = HetConv2d(8, 8, 3, padding=1, part=4, bias=False, dtype=torch.double)
    weight = torch.zeros(8, 8, 3, 3, dtype=torch.double)
    weight[..., 1, 1] = torch.randn(8, 8)
    layer.load_dense_(weight)
    x = torch.randn(1, 8, 5, 5, dtype=torch.double)
    torch.testing.assert_close(layer(x), F.conv2d(x, weight[..., 1:2, 1:2]))


def test_projection_is_the_nearest_hetconv():
    dense = nn.Conv2d(8, 8, 3, padding=1)
    layer = HetConv2d.from_conv(dense, part=4)
    assert layer.project_(dense)
    torch.testing.assert_close(layer.dense_weight(), dense.weight * literal_mask(8, 8, 3, 4).float(), rtol=0, atol=0)
    torch.testing.assert_close(layer.bias, dense.bias, rtol=0, atol=0)


def test_initial_response_keeps_the_variance():
    torch.manual_seed(0)
    layer = HetConv2d(64, 64, 3, padding=1, part=4, bias=False)
    x = torch.randn(8, 64, 16, 16).relu()
    assert 0.7 < layer(x)[..., 1:-1, 1:-1].var() / (2 * x.square().mean()) < 1.4


def test_state_dict_keys_are_api():
    assert list(HetConv2d(8, 8, 3).state_dict()) == ["spatial", "pointwise", "bias"]
    assert list(HetConv2d(8, 8, 3, bias=False, part=1).state_dict()) == ["spatial"]
    assert list(HetConv2d(7, 5, 3, part=3, ragged=True).state_dict()) == ["spatial", "pointwise", "bias"]


def test_a_dense_weight_of_another_size_is_refused():
    with pytest.raises(RuntimeError, match="spatial"):
        HetConv2d(8, 8, 3).load_state_dict(nn.Conv2d(8, 8, 5).state_dict())


@pytest.mark.parametrize("arrangement", ["shifted", "blocked"])
def test_an_exported_file_holds_the_numbers_and_no_indices(arrangement, tmp_path):
    """Exactly the layer, and hardly larger than the same two convolutions, whose 1×1 is full."""
    pytest.importorskip("onnxruntime", reason="needs the export extra: onnxruntime")
    from leanconv.deploy import export

    layer = HetConv2d(48, 96, 3, padding=1, part=3, arrangement=arrangement).eval()
    export(layer, torch.randn(2, 48, 6, 5), tmp_path / "layer.onnx")
    numbers = layer.spatial.numel() + 96 * 48 + 96
    assert (tmp_path / "layer.onnx").stat().st_size < 4 * numbers + 20_000
    program = torch.export.export(layer, (torch.randn(2, 48, 6, 5),)).module()
    x = torch.randn(2, 48, 6, 5)
    assert torch.equal(program(x), layer(x))
