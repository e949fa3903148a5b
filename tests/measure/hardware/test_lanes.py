"""Cycles on multiplier lanes against a loop that hands out work lane by lane, and the abstract's tap arithmetic."""

import itertools

import pytest
import torch
from torch import nn

from leanconv.errors import BadInput
from leanconv.measure import Lanes, profile_lanes
from leanconv.measure.hardware.lanes import tap_utilisation
from leanconv.models import build


def count_by_hand(layer, shape, channels, pixels, k0):
    """One cycle for every (image, block of output channels, block of pixels, input channel, block of taps)."""
    p, q = layer(torch.zeros(shape)).shape[-2:]
    pixel_lanes, cycles = pixels // k0**2, 0
    r, s = layer.kernel_size
    blocks = itertools.product(
        range(shape[0]),
        range(0, layer.out_channels, channels),
        range(0, p * q, pixel_lanes),
        range(layer.in_channels // layer.groups),
        range(0, r, k0),
        range(0, s, k0),
    )
    for _ in blocks:
        cycles += 1
    return cycles


LAYERS = {
    "dense 3x3": nn.Conv2d(3, 10, 3, padding=1),
    "dense 5x5, stride 2": nn.Conv2d(3, 6, 5, stride=2),
    "pointwise": nn.Conv2d(4, 9, 1),
    "depthwise 3x3": nn.Conv2d(6, 6, 3, padding=1, groups=6),
    "depthwise 7x7": nn.Conv2d(6, 6, 7, padding=3, groups=6),
    "row": nn.Conv2d(6, 6, (1, 5), padding=(0, 2), groups=6),
    "grouped": nn.Conv2d(6, 4, 3, groups=2),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("size", [(4, 9, 3), (3, 8, 2), (16, 36, 3), (1, 1, 1)])
def test_cycles_are_the_blocks_handed_out(name, size):
    layer, (channels, pixels, k0) = LAYERS[name], size
    shape = (2, layer.in_channels, 8, 9)
    found = profile_lanes(layer, torch.zeros(shape), Lanes(channels, pixels, k0))
    assert found.cycles == count_by_hand(layer, shape, channels, pixels, 1)
    assert found.intra_cycles == count_by_hand(layer, shape, channels, pixels, k0)
    (row,) = found.layers
    assert 0 < row.utilisation <= 1
    assert 0 < row.intra_utilisation <= 1


def test_tap_utilisation():
    assert [tap_utilisation(k, 3) for k in (1, 3, 5, 7)] == pytest.approx([1 / 9, 1, 25 / 36, 49 / 81])
    # On lanes that everything divides, the whole utilisation is the taps'.
    for k in (1, 3, 5, 7):
        layer = nn.Conv2d(8, 8, k, padding=k // 2, groups=8)
        (row,) = profile_lanes(layer, torch.zeros(1, 8, 6, 6), Lanes(8, 36, 3)).layers
        assert row.utilisation == 1
        assert row.intra_utilisation == pytest.approx(tap_utilisation(k, 3))


def test_larger_kernels_are_the_network_with_those_kernels():
    def network(kernel):
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, kernel, padding=kernel // 2, groups=8), nn.Conv2d(8, 5, 1)
        )

    x, lanes = torch.zeros(1, 3, 13, 11), Lanes(4, 18, 3)
    cases = {case.kernels: case for case in profile_lanes(network(3), x, lanes).enlarged}
    assert list(cases) == ["as they are", *(f"depthwise {k}x{k}" for k in (3, 5, 7, 9))]
    for k in (5, 7, 9):
        real = profile_lanes(network(k), x, lanes)
        case = cases[f"depthwise {k}x{k}"]
        assert (case.cycles, case.intra_cycles) == (real.cycles, real.intra_cycles)
        assert case.macs == real.enlarged[0].macs
    assert cases["depthwise 3x3"].cycles == cases["as they are"].cycles


def test_a_network_without_depthwise_layers_enlarges_its_dense_ones():
    found = profile_lanes(build("unet", base=4, levels=2), torch.zeros(1, 3, 32, 32), Lanes(8, 9, 3))
    assert {case.kernels.split()[0] for case in found.enlarged[1:]} == {"dense"}
    text, data = str(found), found.to_dict()
    assert f"{found.cycles:,}" in text
    assert data["total"]["cycles"] == sum(layer["cycles"] for layer in data["layers"])
    assert data["slowest"][0] == max(data["layers"], key=lambda one: one["cycles"])["name"]


def test_bad_sizes():
    for text in ("0x4", "abc", "16", "4x-1"):
        with pytest.raises(BadInput):
            Lanes.parse(text)
    with pytest.raises(BadInput, match="multiple of 9, such as 36"):
        Lanes.parse("16x32", intra=3)
    assert Lanes.parse("16x36", intra=3).multipliers == 16 * 36
