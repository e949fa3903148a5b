"""LHC against its definition written out tap by tap, and its straight-through gradients against their formulas."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanconv.errors import UnsupportedConv
from leanconv.nn import LHConv2d
from leanconv.nn.lhconv import SHAPES

SIZES = [(8, 12, 4, 6), (7, 5, 3, 2), (4, 4, 32, 16), (6, 4, 1, 1)]  # C, O, tile_in, tile_out


def hard(c, o, tile_in, tile_out, **options):
    layer = LHConv2d(c, o, 3, padding=1, tile_in=tile_in, tile_out=tile_out, dtype=torch.double, **options)
    with torch.no_grad():
        layer.scores.normal_(0, 1.2)  # some beyond 1
    return layer


def shape(k):
    return torch.tensor([[int(tap) for tap in row] for row in SHAPES[k].split()]).double()


def literal_mask(layer):
    mask = torch.zeros(layer.weight.shape, dtype=torch.double)
    for o, c in itertools.product(range(layer.out_channels), range(layer.in_channels)):
        scores = layer.scores[..., c // layer.tile_in, o // layer.tile_out].tolist()
        if layer.shapes == "rigid":
            mask[o, c] = shape(scores.index(max(scores)))
            continue
        for r, s in itertools.product(range(3), range(3)):
            mask[o, c, r, s] = float(scores[r][s] > 0)
    return mask


@pytest.mark.parametrize("shapes", ["free", "rigid"])
@pytest.mark.parametrize("sizes", SIZES)
def test_definition(sizes, shapes):
    layer = hard(*sizes, shapes=shapes)
    x, mask = torch.randn(2, sizes[0], 5, 6, dtype=torch.double), literal_mask(layer)
    expected = F.conv2d(x, layer.weight * mask, layer.bias, padding=1)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.eval()(x), expected)
    folded = layer.fold()
    assert type(folded) is nn.Conv2d
    assert list(folded.state_dict()) == ["weight", "bias"]
    torch.testing.assert_close(folded(x), expected)
    assert int((folded.weight != 0).sum()) == int(mask.sum())


@pytest.mark.parametrize("shapes", ["free", "rigid"])
@pytest.mark.parametrize("sizes", SIZES)
def test_gradients_are_straight_through(sizes, shapes):
    layer, x = hard(*sizes, shapes=shapes), torch.randn(2, sizes[0], 5, 6, dtype=torch.double)
    along = torch.randn(2, sizes[1], 5, 6, dtype=torch.double)
    (layer(x) * along).sum().backward()
    mask = literal_mask(layer)
    kernel = (layer.weight.detach() * mask).requires_grad_()
    (F.conv2d(x, kernel, padding=1) * along).sum().backward()
    torch.testing.assert_close(layer.weight.grad, kernel.grad * mask)
    d_mask = kernel.grad * layer.weight.detach()  # dM = dW' · w
    e = layer.scores.detach()
    expected = torch.zeros_like(e)
    for o, c in itertools.product(range(sizes[1]), range(sizes[0])):
        tile = (..., c // sizes[2], o // sizes[3])
        if shapes == "free":
            expected[tile] += d_mask[o, c]
        else:
            expected[tile] += torch.stack([(shape(k) * d_mask[o, c]).sum() for k in range(15)])
    near = (e if shapes == "free" else e - e.mean(0)).abs() < 1
    assert 0 < near.double().mean() < 1
    expected = torch.where(near, expected, 0.1 * expected)
    torch.testing.assert_close(layer.scores.grad, expected, rtol=1e-11, atol=1e-11)  # a tenth of float64, not float32


def test_zero_is_off_and_one_is_far():
    layer = LHConv2d(1, 1, (1, 4), bias=False, tile_in=1, tile_out=1)
    with torch.no_grad():
        layer.scores.copy_(torch.tensor([0.0, 1.0, -1.0, 0.999]).view(1, 4, 1, 1))
        layer.weight.fill_(1)
    assert layer.mask().flatten().tolist() == [0, 1, 0, 1]
    layer(torch.ones(1, 1, 1, 4)).sum().backward()
    torch.testing.assert_close(layer.scores.grad.flatten(), torch.tensor([1, 0.1, 0.1, 1]))


def test_ties_choose_the_first_shape_only():
    layer = LHConv2d(2, 2, 3, shapes="rigid")
    with torch.no_grad():
        layer.scores.fill_(-1)
        layer.scores[[3, 14]] = 0.5
    torch.testing.assert_close(layer.mask(), shape(3).float().expand(2, 2, 3, 3))


def test_the_fifteen_shapes():
    """Live taps, and each family's members are each other's turns by 90 degrees, counter-clockwise."""
    assert [int(shape(k).sum()) for k in range(15)] == [0, 1, 3, 3, 3, 3, 4, 4, 4, 4, 6, 6, 6, 6, 9]
    for before, after in [(2, 4), (3, 5), (6, 7), (7, 8), (8, 9), (10, 11), (11, 12), (12, 13)]:
        torch.testing.assert_close(torch.rot90(shape(before)), shape(after))
    assert SHAPES[2].split()[1] == "111"  # horizontal
    assert SHAPES[3].split()[0] == "001"  # anti-diagonal
    assert SHAPES[6].split()[0] == "011"  # upper right
    assert SHAPES[10].split()[0] == "111"  # top


def test_filters_that_are_not_enabled_are_dense_while_training():
    layer, x = hard(8, 12, 4, 6), torch.randn(1, 8, 5, 5, dtype=torch.double)
    layer.enabled[6:] = False
    mask = literal_mask(layer)
    mask[6:] = 1
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight * mask, layer.bias, padding=1))
    layer(x).sum().backward()
    assert layer.scores.grad[..., 0].abs().max() > 0
    assert layer.scores.grad[..., 1].abs().max() == 0
    layer.eval()
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight * literal_mask(layer), layer.bias, padding=1))
    torch.testing.assert_close(layer.fold()(x), layer(x))
    assert "enabled" not in layer.state_dict()


@pytest.mark.parametrize("shapes", ["free", "rigid"])
@pytest.mark.parametrize("dtype", [torch.double, torch.bfloat16])
def test_all_taps_live_is_the_dense_layer(shapes, dtype):
    dense = nn.Conv2d(6, 8, 3, 2, 1, dtype=torch.double)
    layer = LHConv2d(6, 8, 3, 2, 1, shapes=shapes, tile_in=2, tile_out=3, dtype=torch.double)
    with torch.no_grad():
        layer.scores[..., 0] = 0  # ties and zeros
    assert not layer.mask().all()
    layer.to(dtype).load_state_dict(dense.to(dtype).state_dict())
    assert layer.mask().all()
    x = torch.randn(2, 6, 7, 8, dtype=dtype)
    torch.testing.assert_close(layer(x), dense(x))
    other = LHConv2d.from_conv(dense, shapes=shapes)
    assert other.project_(dense)
    torch.testing.assert_close(other(x), dense(x))


def test_about_half_the_taps_start_live():
    assert 0.4 < LHConv2d(64, 64, 3, tile_in=2, tile_out=2).mask().mean() < 0.6


@pytest.mark.parametrize(("size", "pads"), [((8, 8), (0, 1, 0, 1)), ((7, 8), (0, 1, 1, 1)), ((9, 7), (1, 1, 1, 1))])
def test_tf_same_puts_the_larger_half_behind(size, pads):
    layer = LHConv2d(4, 6, 3, 2, 1, tf_same=True).eval()
    x = torch.randn(2, 4, *size)
    expected = F.conv2d(F.pad(x, pads), layer.weight * layer.mask(), layer.bias, 2)
    torch.testing.assert_close(layer(x), expected)
    assert expected.shape[2:] == ((size[0] + 1) // 2, (size[1] + 1) // 2)
    folded = layer.fold()
    torch.testing.assert_close(folded(x), expected)
    assert list(folded.state_dict()) == ["weight", "bias"]
    assert isinstance(folded, nn.Conv2d)
    assert layer.dense_weight() is None


@pytest.mark.parametrize("stride", [1, 2])
def test_tf_same_takes_a_sample_without_its_batch_when_it_is_folded_too(stride):
    layer, x = LHConv2d(4, 6, 3, stride, 1, tf_same=True).eval(), torch.randn(4, 8, 9)
    for each in (layer, layer.fold()):
        torch.testing.assert_close(each(x), each(x[None])[0])


def test_compiled_training_records_the_output_area():
    layer, x = LHConv2d(4, 6, 3), torch.randn(2, 4, 7, 8)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    compiled(x).sum().backward()
    assert layer.output_area == 5 * 6
    compiled(torch.randn(2, 4, 9, 8))
    assert layer.output_area == 7 * 6
    ours = layer.scores.grad.clone()
    layer.scores.grad = None
    layer(x).sum().backward()
    torch.testing.assert_close(layer.scores.grad, ours)


def test_refusals():
    for options, words in (
        ({"shapes": "rigid", "kernel_size": 5}, "shapes='free'"),
        ({"shapes": "soft"}, "shapes='soft'"),
        ({"tile_in": 0}, "tile_in=0"),
        ({"density": 1.5}, "density=1.5"),
        ({"tf_same": True}, "tf_same=True: padding="),
        ({"groups": 2}, "groups=2"),
    ):
        with pytest.raises(UnsupportedConv, match=words):
            LHConv2d(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3, **options})
