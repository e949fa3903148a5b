"""ConvSpec says what nn.Conv2d does."""

import itertools

import pytest
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from leanconv.cost import dense_cost
from leanconv.errors import BadInput
from leanconv.spec import ConvSpec


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    list(itertools.product([1, 2, 3, (1, 5)], [1, 2, 3], [0, 1, (2, 0)], [1, 2])),
)
def test_sizes_are_conv2ds(kernel, stride, padding, dilation):
    spec = ConvSpec.of(2, 3, kernel, stride, padding, dilation, h=11, w=14)
    y = spec.conv()(spec.input())
    assert y.shape == (1, 3, spec.p, spec.q)
    assert ConvSpec.from_conv(spec.conv(), (1, 2, 11, 14)) == spec


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")  # torch's word on its own copy
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (4, 1), (3, 3), (2, 1), ((2, 3), 1)])
def test_same_padding(kernel, dilation):
    spec = ConvSpec.of(2, 3, kernel, 1, "same", dilation, h=9, w=7)
    assert (spec.p, spec.q) == (9, 7) == tuple(spec.conv()(spec.input()).shape[2:])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((2, 3, 3, 2, "same"), "needs stride=1"), ((2, 3, 0), "at least 1"), ((2, 3, 3, 1, -1), "at least 0"),
        ((4, 4, 3, 1, 1, 1, 3), "must divide"), ((2, 3, (1, 2, 3)), "one number or two"), ((0, 3, 3), "at least 1"),
        ((2, 3, 3, 1, "full"), "'same' or 'valid'"), ((2, 3, 3, 1, 1, 1, 1, True, "mirror"), "reflect"),
    ],
)  # fmt: skip
def test_bad_sizes_are_refused(arguments, words):
    with pytest.raises(BadInput, match=words):
        ConvSpec.of(*arguments)


def test_kinds():
    assert ConvSpec.of(4, 8, 3).kind == "dense"
    assert ConvSpec.of(4, 4, 3, groups=4).kind == "depthwise"
    assert ConvSpec.of(4, 8, 1).kind == "pointwise"
    assert ConvSpec.of(4, 8, 3, groups=2).kind == ConvSpec.of(4, 8, 3, groups=4).kind == "grouped"
    assert ConvSpec.of(1, 1, 3).kind == "dense"


def test_dense_cost_is_what_runs():
    spec = ConvSpec.of(4, 8, 3, 2, 1, groups=2, n=3, h=9, w=8)
    with FlopCounterMode(display=False) as counter:
        spec.conv()(spec.input())
    assert counter.get_total_flops() == 2 * dense_cost(spec).macs
    assert sum(p.numel() for p in spec.conv().parameters()) == dense_cost(spec).params


def test_unbatched_shape():
    assert ConvSpec.from_conv(nn.Conv2d(2, 3, 3), (2, 9, 8)).h == 9
