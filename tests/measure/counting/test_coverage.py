"""What the counter must see however a model computes it, against hand counts and torch's own counter."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from leanconv.measure.counting.count import Uncounted, count

X = torch.randn(2, 8, 5, 6)


class Body(nn.Module):
    """A function of a weight and the input, as a module."""

    def __init__(self, function, *shape):
        super().__init__()
        self.function, self.w = function, nn.Parameter(torch.randn(*shape))

    def forward(self, x):
        return self.function(x, self.w)


# name: (function, weight's shape, multiply-accumulates by hand)
CASES = {
    "functional transposed": (lambda x, w: F.conv_transpose2d(x, w, stride=2), (8, 4, 3, 3), 2 * 30 * 8 * 4 * 9),
    "functional transposed, grouped": (
        lambda x, w: F.conv_transpose2d(x, w, stride=2, groups=4), (8, 3, 2, 2), 2 * 30 * 8 * 3 * 4
    ),
    "functional linear": (lambda x, w: F.linear(x, w), (7, 6), 2 * 8 * 5 * 6 * 7),
    "matmul": (lambda x, w: x @ w, (6, 7), 2 * 8 * 5 * 6 * 7),
    "batched matmul": (lambda x, w: x.flatten(1, 1) @ w, (2, 8, 6, 3), 2 * 8 * 5 * 6 * 3),
    "einsum of three": (lambda x, w: torch.einsum("nchw,oc,pw->nohp", x, w, w[:, :6]), (3, 8), None),
    "tensordot": (lambda x, w: torch.tensordot(x, w, dims=([1], [0])), (8, 3), 2 * 30 * 8 * 3),
    "unfold and matmul": (
        lambda x, w: (w @ F.unfold(x, 3, padding=1)).unflatten(2, (5, 6)), (4, 72), 2 * 30 * 72 * 4
    ),
    "conv1d": (lambda x, w: F.conv1d(x.flatten(2), w), (4, 8, 3), 2 * 28 * 4 * 8 * 3),
    "conv3d": (lambda x, w: F.conv3d(x[:, None], w), (4, 1, 3, 3, 3), 2 * 6 * 3 * 4 * 4 * 27),
    "a weight used twice": (lambda x, w: F.conv2d(F.conv2d(x, w), w), (8, 8, 1, 1), 2 * 2 * 30 * 64),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_is_counted_as_by_hand_and_by_torch(case):
    function, shape, macs = CASES[case]
    model = Body(function, *shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(X)
    ours = count(model, X)
    assert 2 * ours.flops == count(model, X, "torch").flops == counter.get_total_flops() > 0
    assert macs is None or ours.flops == macs
    assert not ours.uncounted


def test_a_shared_module_is_counted_each_time_and_has_its_parameters_once():
    shared = nn.Conv2d(8, 8, 3, padding=1)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Sequential(shared))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(X)
    ours = count(model, X)
    assert ours.flops == 3 * 2 * 30 * 64 * 9 == counter.get_total_flops() // 2
    assert ours.params == 64 * 9 + 8
    tied = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.Conv2d(8, 8, 1, bias=False))
    tied[1].weight = tied[0].weight
    assert (count(tied, X).flops, count(tied, X).params) == (2 * 2 * 30 * 64, 64)


@torch.library.custom_op("leanconv_test::product", mutates_args=())
def product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.einsum("nchw,oc->nohw", x, w)


product.register_fake(lambda x, w: x.new_empty(x.shape[0], w.shape[0], *x.shape[2:]))


def test_a_custom_operation_is_listed_until_it_says_its_formula():
    model = Body(lambda x, w: product(x, w), 4, 8)
    with pytest.warns(Uncounted, match="product ×1"):
        unknown = count(model, X)
    assert (unknown.flops, unknown.uncounted) == (0, {"product": 1})

    @register_flop_formula(torch.ops.leanconv_test.product)
    def formula(x_shape, w_shape, out_shape=None, **kwargs):
        return 2 * x_shape[0] * x_shape[2] * x_shape[3] * w_shape[0] * w_shape[1]

    known = count(model, X)
    assert (known.flops, known.uncounted) == (2 * 30 * 4 * 8, {})
