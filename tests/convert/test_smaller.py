"""Certificates on smaller images: only where the model does the same there, and the same folds come of it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import leanconv as lc
from leanconv.convert import fold_
from leanconv.convert.adjacency import path_of
from leanconv.convert.smaller import smaller


class Pair(nn.Module):
    """A convolution and its BatchNorm; on images of 128 pixels and more also something that reads the weight."""

    def __init__(self, from_side: int = 10**6) -> None:
        super().__init__()
        self.conv, self.bn, self.from_side = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), from_side

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        if x.shape[-1] >= self.from_side:
            y = y + F.conv2d(x.flip(3), self.conv.weight, padding=1)
        return y


class Fixed(nn.Module):
    """A head that takes one size only."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.pair, self.head = Pair(), nn.Linear(4 * side * side, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pair(x).flatten(1))


def exact_sides(model: nn.Module, inputs: Tensor) -> tuple[lc.convert.FoldReport, set[int]]:
    """The report, and the sides of the images that convolutions met in float64."""
    seen: set[int] = set()

    def note(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if isinstance(module, nn.Conv2d) and arguments[0].dtype == torch.float64:
            seen.add(arguments[0].shape[-1])

    handle = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        return fold_(model.eval(), inputs), seen
    finally:
        handle.remove()


@pytest.mark.parametrize("side", [96, 193, 512])
def test_certified_on_smaller_images(side):
    model = Pair()
    report, sides = exact_sides(model, torch.randn(1, 3, side, side))
    assert len(report) == 1
    assert report.certificate is not None
    assert report.certificate < 1e-12
    assert sides == {64 + side % 32}


def test_another_path_on_large_images_is_certified_there():
    model = Pair(from_side=128)
    report, sides = exact_sides(model, torch.randn(1, 3, 160, 160))
    assert not len(report)
    assert sides == {160}


def test_a_head_of_one_size_is_certified_at_it():
    model = Fixed(96)
    report, sides = exact_sides(model, torch.randn(1, 3, 96, 96))
    assert len(report) == 1
    assert sides == {96}


def test_the_same_operators_on_other_weights_are_another_path():
    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small, self.large = Pair(), Pair()

        def forward(self, x: Tensor) -> Tensor:
            return self.large(x) if x.shape[-1] > 100 else self.small(x)

    report, sides = exact_sides(Either(), torch.randn(1, 3, 128, 128))
    assert [fold.layer for fold in report.done] == ["large.conv"]
    assert sides == {128}


def test_what_is_cut():
    model = Pair().eval()
    x = torch.arange(5 * 3 * 100 * 70.0).reshape(5, 3, 100, 70).contiguous(memory_format=torch.channels_last)
    made = smaller(model, x, path_of(model, x))
    assert isinstance(made, Tensor)
    assert made.shape == (2, 3, 68, 70)
    assert torch.equal(made, x[:2, :, 16:84])
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert smaller(model, made, path_of(model, made)) is None  # nothing left to cut


def test_images_of_several_sizes_stay():
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + F.interpolate(y, size=x.shape[2:])

    model, both = Two().eval(), (torch.randn(1, 3, 128, 128), torch.randn(1, 3, 64, 64))
    assert smaller(model, both, path_of(model, both)) is None
