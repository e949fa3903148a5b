"""The interval that 256 levels cover: no outlier destroys it, and no peak that counts is cut off."""

import math

import pytest
import torch

from leanconv.engine.fused.quantization.ranges import LEVELS, Observed, of_range
from leanconv.ops.integer_reference import dequantized, quantized


def seen(*batches):
    made = Observed()
    for batch in batches:
        made.see(batch)
    return made


def images(count=16, c=4, size=12, seed=0):
    return torch.rand(count, c, size, size, generator=torch.Generator().manual_seed(seed))


def test_even_numbers_are_covered_whole():
    low, high = seen(images()).interval()
    assert low == 0
    assert 0.94 <= high <= 1


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("times", [30, 1e3, 1e6])
@pytest.mark.parametrize("shift", [0, 0.5])
def test_one_bright_image_among_many(sign, times, shift):
    x = (images() - shift) * sign
    x[5] *= times
    low, high = seen(x).interval()
    assert max(-low, high) <= 2


@pytest.mark.parametrize("value", [1e2, -1e5, 1e30])
def test_one_number_of_one_image(value):
    x = images() - 0.5
    x[3, 1, 2, 2] = value
    low, high = seen(x).interval()
    assert max(-low, high) <= 1
    assert min(-low, high) >= 0.3


def test_peaks_that_every_image_has_are_kept():
    x = 0.1 * images(size=32)
    x[:, 2, 7, 9] = 10.0
    _, high = seen(x).interval()
    assert high >= 8


def test_batches_and_images_are_alike():
    x = images()
    assert seen(x).interval() == seen(*x.split(1)).interval() == seen(*x.split(5)).interval()


@pytest.mark.parametrize("draw", ["normal", "laplace", "even"])
def test_the_error_is_no_larger_than_with_the_whole_range(draw):
    torch.manual_seed(0)
    x = torch.randn(8, 4, 40, 40)
    x = {"normal": x, "laplace": x * x.abs(), "even": images(8, 4, 40)}[draw]
    best, whole = seen(x).quantization(), of_range(float(x.min()), float(x.max()))
    error, most = ((dequantized(quantized(x, by), by) - x).square().mean() for by in (best, whole))
    assert error <= 1.01 * most
    if draw == "laplace":
        assert error <= 0.95 * most


def test_whole_numbers_from_0_to_255_are_kept_exactly():
    x = torch.arange(256.0).repeat(4).reshape(1, 4, 16, 16)
    by = seen(x).quantization()
    assert (by.scale, by.zero_point) == (1.0, 0)
    assert torch.equal(dequantized(quantized(x, by), by), x)


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_a_constant_is_kept(value):
    x = torch.full((2, 3, 4, 4), value)
    by = seen(x).quantization()
    assert (dequantized(quantized(x, by), by) - x).abs().max() <= 0.03 * abs(value)


@pytest.mark.parametrize("interval", [(0, 0), (1, 2), (-2, -1), (-1, 1), (-1e-40, 1e-40), (-1e-20, 3e38)])
def test_zero_is_a_level(interval):
    by = of_range(*interval)
    assert 0 <= by.zero_point <= LEVELS
    assert dequantized(quantized(torch.zeros(1), by), by) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_an_error(value):
    x = images()
    x[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        seen(x)


def test_nothing_seen():
    assert seen().interval() == (0.0, 0.0)
    assert seen().quantization().scale == 1.0


def test_a_part_of_a_large_map_meets_all_channels():
    x = torch.zeros(1, 64, 96, 96)
    x[:, 37] = images(1, 1, 96)[:, 0]
    _, high = seen(x).interval()
    assert high >= 0.8
