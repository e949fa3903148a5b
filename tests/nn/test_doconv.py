"""DO-Conv against its definition written out tap by tap, and against feature composition on unfolded patches."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanconv.errors import UnsupportedConv
from leanconv.nn import DOConv2d


def hard(*arguments, **options):
    layer = DOConv2d(*arguments, dtype=torch.double, **options)
    with torch.no_grad():
        layer.D.normal_()
    return layer


def literal(layer, pairing):
    """Σ_s (D + I)[c', t, s] · W[o,c,s], one scalar at a time; `pairing(o, c)` is the input channel c'."""
    o, c, columns = layer.W.shape
    taps = layer.D.shape[1]
    weight = torch.zeros(o, c, taps, dtype=torch.double)
    for i, j, t, s in itertools.product(range(o), range(c), range(taps), range(columns)):
        identity = float(s % taps == t and s < columns // taps * taps)
        weight[i, j, t] += (layer.D[pairing(i, j), t, s] + identity) * layer.W[i, j, s]
    return weight.view(o, c, *layer.kernel_size)


GROUPED = [(6, 4, 1), (4, 8, 2), (4, 4, 4), (4, 12, 4), (6, 6, 3)]


@pytest.mark.parametrize(("c", "o", "groups"), GROUPED)
@pytest.mark.parametrize("multiplier", [None, 11, 20])
def test_composes_with_the_true_input_channel(c, o, groups, multiplier):
    layer = hard(c, o, 3, groups=groups, multiplier=multiplier)
    expected = literal(layer, lambda i, j: i // (o // groups) * (c // groups) + j)
    torch.testing.assert_close(layer.dense_weight(), expected)


@pytest.mark.parametrize(("c", "o", "groups"), GROUPED)
def test_compat_is_the_authors_reshape(c, o, groups):
    layer = hard(c, o, 3, groups=groups, compat="reference")
    reshaped = layer.W.reshape(o // groups, c, -1)
    expected = torch.einsum("ims,ois->oim", layer.D + layer._identity, reshaped).reshape(o, c // groups, 3, 3)
    torch.testing.assert_close(layer.dense_weight(), expected)
    torch.testing.assert_close(expected, literal(layer, lambda i, j: i % groups * (c // groups) + j))
    same = hard(c, o, 3, groups=groups)
    same.load_state_dict(layer.state_dict())
    # The two pairings agree where there is one group, or one filter per group.
    assert torch.allclose(same.dense_weight(), expected) == (groups in (1, o))


def test_equals_feature_composition():
    layer = hard(4, 6, (3, 2), stride=2, padding=1, multiplier=8)
    x = torch.randn(2, 4, 7, 8, dtype=torch.double)
    patches = F.unfold(x, (3, 2), padding=1, stride=2).unflatten(1, (4, 6))  # N C R·S P·Q
    features = torch.einsum("cts,nctl->ncsl", layer.D + layer._identity, patches)
    expected = torch.einsum("ocs,ncsl->nol", layer.W, features) + layer.bias[:, None]
    torch.testing.assert_close(layer(x).flatten(2), expected)


@pytest.mark.parametrize("multiplier", [None, 18, 20])
@pytest.mark.parametrize("groups", [1, 2])
def test_loads_a_dense_layer_and_is_that_layer(multiplier, groups):
    dense = nn.Conv2d(4, 6, 3, 2, 1, groups=groups, padding_mode="reflect", dtype=torch.double)
    layer = hard(4, 6, 3, 2, 1, groups=groups, padding_mode="reflect", multiplier=multiplier)
    layer.load_state_dict(dense.state_dict())
    x = torch.randn(2, 4, 7, 8, dtype=torch.double)
    torch.testing.assert_close(layer(x), dense(x))
    other = DOConv2d.from_conv(dense, multiplier=multiplier)
    assert other.project_(dense)
    torch.testing.assert_close(other(x), dense(x))


def test_at_the_start_it_is_its_own_w():
    layer = DOConv2d(4, 6, 3)
    torch.testing.assert_close(layer.dense_weight(), layer.W.view(6, 4, 3, 3), rtol=0, atol=0)


@pytest.mark.parametrize("multiplier", [9, 13, 18])
def test_the_start_is_as_large_as_the_plain_layers(multiplier):
    plain, ours = nn.Conv2d(64, 64, 3).weight.std(), DOConv2d(64, 64, 3, multiplier=multiplier).dense_weight().std()
    assert 0.97 < ours / plain < 1.03


def test_folds_to_conv2d_with_its_keys():
    layer = hard(4, 6, 3, padding=1)
    folded = layer.fold()
    assert type(folded) is nn.Conv2d
    assert list(folded.state_dict()) == ["weight", "bias"]
    x = torch.randn(1, 4, 5, 5, dtype=torch.double)
    torch.testing.assert_close(folded(x), layer(x), rtol=0, atol=0)


def test_a_pointwise_layer_has_nothing_to_compose():
    layer = DOConv2d(4, 6, 1, multiplier=9)
    assert list(layer.state_dict()) == ["W", "bias"]
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.W[..., None], layer.bias))


@pytest.mark.parametrize("constant", ["D_diag", "d_diag"])
def test_loads_the_authors_keys(constant):
    """`do_conv_pytorch.py` and `do_conv_pytorch_1_10.py` name the constant that they store differently."""
    source = hard(4, 6, 3)
    state = {**source.state_dict(), constant: source._identity.repeat(4, 1, 1)}
    layer = hard(4, 6, 3)
    layer.load_state_dict(state)
    torch.testing.assert_close(layer.dense_weight(), source.dense_weight(), rtol=0, atol=0)
    assert list(layer.state_dict()) == ["W", "D", "bias"]


def test_too_few_columns_are_refused():
    with pytest.raises(UnsupportedConv, match="multiplier=8 must be at least the kernel's 9 taps"):
        DOConv2d(4, 4, 3, multiplier=8)
