"""The roofline floor of a network: its arithmetic agrees with the counter, its traffic with sums by hand."""

import pytest
import torch
from torch import nn

import leanconv as lc
from leanconv.engine.fused.roofline import floor_of
from leanconv.engine.workbench import Workbench
from leanconv.measure.counting.count import count
from leanconv.measure.hardware.roofline import Peaks

# One MAC (2 flops) and one byte a ns: arithmetic takes MACs / 10⁶ ms, traffic bytes / 10⁶ ms.
EQUAL = Peaks(2.0, 1.0, "made up")


def floor(model, x):
    return floor_of(Workbench(model.eval(), (x,), {}, 1), EQUAL)


@pytest.mark.parametrize(
    "reference",
    [
        "leanconv:unet?base=8&conv=splconv",
        "leanconv:vgg16_cifar?width=0.25",
        "leanconv:mobilenet_v3_small",
        "leanconv:vgg16_cifar?width=0.25&conv=hetconv(part=4)",
        "leanconv:resnet20_cifar?conv=fuseconv",
    ],
)
def test_arithmetic_is_the_counters(reference):
    model, x = lc.load(reference).eval(), torch.randn(2, 3, 32, 32)
    assert floor(model, x).macs == count(model, x).flops


@pytest.mark.parametrize(
    ("model", "numbers", "macs"),
    [
        (nn.Conv2d(8, 16, 3, padding=1), 8 * 120 + 16 * 120 + 16 * 8 * 9, 120 * 16 * 8 * 9),
        (nn.Conv2d(8, 16, 1, 2), 8 * 30 + 16 * 30 + 16 * 8, 30 * 16 * 8),  # a quarter of the pixels
        (nn.Conv2d(8, 16, 3, 2, 1), 8 * 120 + 16 * 30 + 16 * 8 * 9, 30 * 16 * 8 * 9),
        (nn.ConvTranspose2d(8, 4, 2, 2), 8 * 120 + 4 * 480 + 8 * 4 * 4, 120 * 8 * 4 * 4),
        (nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Conv2d(8, 4, 1)), 12 * 120 + 72 + 32, 120 * (72 + 32)),
    ],
    ids=["3x3", "1x1 stride 2", "3x3 stride 2", "transposed", "separable: nothing moves between"],
)
def test_traffic_is_inputs_weights_and_output_once(model, numbers, macs):
    found = floor(model, torch.randn(3, 8, 10, 12))
    images = 3 * (numbers - sum(p.numel() for p in model.parameters() if p.dim() > 1))
    assert found.moved == 4 * (images + sum(p.numel() for p in model.parameters() if p.dim() > 1))
    assert found.macs == 3 * macs
    assert found.ms == pytest.approx(max(found.macs, found.moved) / 1e6)


def test_a_network_is_the_sum_of_its_blocks_and_not_the_larger_of_the_sums():
    """A block bound by arithmetic and one bound by memory: neither hides behind the other."""
    heavy, light = nn.Conv2d(32, 32, 3, padding=1), nn.MaxPool2d(2)
    x = torch.randn(1, 32, 16, 16)
    both, first = floor(nn.Sequential(heavy, light), x), floor(heavy, x)
    pooled = 4 * (32 * 256 + 32 * 64)
    assert both.ms == pytest.approx(first.ms + pooled / 1e6)
    assert both.ms > max(both.macs, both.moved) / 1e6


def test_a_view_moves_nothing_and_an_operator_of_pytorch_counts():
    class Tail(nn.Module):
        def forward(self, x):
            return torch.fft.rfft(x.flatten(2)).abs()

    found = floor(Tail(), torch.randn(2, 3, 4, 4))
    assert found.macs == 0
    assert found.moved == 4 * (96 + 2 * 3 * 9) + 4 * 2 * (2 * 3 * 9)  # the map in, its spectrum out; that in, sizes out


def test_attention_is_arithmetic_too():
    class Attention(nn.Module):
        def forward(self, x):
            return nn.functional.scaled_dot_product_attention(x, x, x)

    assert floor(Attention(), torch.randn(2, 4, 49, 16)).macs == 614_656
