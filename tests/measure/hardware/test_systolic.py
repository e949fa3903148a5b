"""Cycles against an array simulated register by register, the published speed-ups, and bounds that must hold."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanconv.errors import BadInput
from leanconv.measure import Array, compare_array, profile_array
from leanconv.models import build

X = torch.randn(1, 3, 224, 224)
FUSE = Array(64, 64, broadcast_rows=True)


def simulate(a, b, rows, columns):
    """(product, cycles) of `a @ b` on a rows-by-columns array, clock by clock.

    Every element of the array has a register for what comes from the left and one for what comes from above. A clock
    multiplies what the registers hold, hands it on, and takes the next, skewed by one clock a row and a column. A fold
    ends when each of its elements has added up its whole sum.
    """
    result, clocks = np.zeros((a.shape[0], b.shape[1])), 0
    for top, left in itertools.product(range(0, a.shape[0], rows), range(0, b.shape[1], columns)):
        part, filters = a[top : top + rows], b[:, left : left + columns]
        (r, length), c = part.shape, filters.shape[1]
        from_left, from_above = np.full((r, c), np.nan), np.full((r, c), np.nan)
        sums, added, clock = np.zeros((r, c)), np.zeros((r, c), int), 0
        while (added < length).any():
            busy = ~np.isnan(from_left) & ~np.isnan(from_above)
            sums[busy] += from_left[busy] * from_above[busy]
            added += busy
            from_left, from_above = np.roll(from_left, 1, 1), np.roll(from_above, 1, 0)
            for i in range(r):
                from_left[i, 0] = part[i, clock - i] if 0 <= clock - i < length else np.nan
            for j in range(c):
                from_above[0, j] = filters[clock - j, j] if 0 <= clock - j < length else np.nan
            clock += 1
        result[top : top + rows, left : left + columns] = sums
        clocks += clock
    return result, clocks


CONVS = {
    "dense": (nn.Conv2d(3, 5, 3, padding=1, bias=False), (1, 3, 4, 5)),
    "strided batch": (nn.Conv2d(2, 7, 3, stride=2, bias=False), (2, 2, 7, 5)),
    "pointwise": (nn.Conv2d(4, 9, 1, bias=False), (1, 4, 3, 3)),
    "dilated": (nn.Conv2d(2, 3, 3, dilation=2, padding=2, bias=False), (1, 2, 5, 4)),
    "depthwise": (nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), (1, 4, 4, 3)),
    "multiplier": (nn.Conv2d(2, 6, 3, padding=1, groups=2, bias=False), (1, 2, 4, 3)),
    "grouped": (nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False), (1, 4, 3, 3)),
}


@pytest.mark.parametrize("case", CONVS)
@pytest.mark.parametrize("size", [(3, 4), (8, 2), (16, 16)])
def test_a_layer_takes_the_cycles_of_the_simulated_array(case, size):
    layer, shape = CONVS[case]
    x, g, total, outputs = torch.randn(shape), layer.groups, 0, []
    for part, weight in zip(x.chunk(g, 1), layer.weight.chunk(g), strict=True):
        taken = F.unfold(part, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # N T L
        places = taken.transpose(1, 2).flatten(0, 1).numpy()
        out, clocks = simulate(places, weight.detach().flatten(1).T.numpy(), *size)
        outputs.append(torch.from_numpy(out))
        total += clocks
    expected = layer(x).permute(0, 2, 3, 1).flatten(0, 2).double()
    torch.testing.assert_close(torch.cat(outputs, 1), expected, atol=1e-5, rtol=1e-5)
    found = profile_array(layer, x, Array(*size))
    assert found.cycles == total
    assert found.layers[0].kind == case if case in ("dense", "pointwise", "depthwise", "grouped") else True


def test_products_and_attention():
    class Products(nn.Module):
        def forward(self, a, b, q):
            return a @ b, F.scaled_dot_product_attention(q, q, q)

    a, b, q = torch.randn(3, 5, 7), torch.randn(3, 7, 4), torch.randn(1, 2, 6, 8)
    each = simulate(a[0].numpy(), b[0].numpy(), 3, 3)[1]
    heads = simulate(q[0, 0].numpy(), q[0, 0].numpy().T, 3, 3)[1] + simulate(np.ones((6, 6)), np.ones((6, 8)), 3, 3)[1]
    found = profile_array(Products(), (a, b, q), Array(3, 3))
    assert found.cycles == 3 * each + 2 * heads
    assert found.macs == 3 * 5 * 7 * 4 + 2 * 2 * 6 * 6 * 8
    linear = nn.Linear(7, 5)
    assert (
        profile_array(linear, torch.randn(4, 7), Array(3, 3)).cycles
        == simulate(np.ones((4, 7)), np.ones((7, 5)), 3, 3)[1]
    )


def test_the_worked_layer():
    x = torch.randn(1, 512, 14, 14)
    depthwise, pointwise = nn.Conv2d(512, 512, 3, padding=1, groups=512), nn.Conv2d(512, 512, 1)
    assert profile_array(depthwise, x, Array(64, 64)).cycles == 512 * 232 == 118_784
    assert profile_array(pointwise, x, Array(64, 64)).cycles == 19_968
    row = nn.Conv2d(256, 256, (1, 3), padding=(0, 1), groups=256)
    column = nn.Conv2d(256, 256, (3, 1), padding=(1, 0), groups=256)
    for line in (row, column):
        assert profile_array(line, x[:, :256], FUSE).cycles == 3_752
        assert profile_array(line, x[:, :256], Array(64, 64)).cycles > 10 * 3_752


def test_lines_of_a_broadcasting_array_one_after_the_other():
    layer, x = nn.Conv2d(6, 6, (1, 5), padding=(0, 2), groups=6), torch.randn(2, 6, 9, 21)
    clocks = 0
    for _ in range(0, 2 * 6 * 9, 4):  # four lines a pass
        for _ in range(0, 21 + 4, 8):  # eight places of a line at once
            clocks += 8 + 5
    assert profile_array(layer, x, Array(4, 8, broadcast_rows=True)).cycles == clocks
    strided = nn.Conv2d(6, 6, (1, 5), padding=(0, 2), groups=6, stride=2)
    assert profile_array(strided, x, Array(4, 8, broadcast_rows=True)).cycles == -(-clocks // 2)
    skipping = profile_array(strided, x, Array(4, 8, broadcast_rows=True, skip_lines=True)).cycles
    assert skipping == -(-(2 * 6 * 5 // 4) * 4 * 13 // 2)


# Cycles of the specification (64x64, 224), and the speed-ups that the paper prints.
NETWORKS = {
    "mobilenet_v1": (2_521_760, {"half": (375_032, 6.76), "full": (621_072, 4.1)}),
    "mobilenet_v2": (2_961_936, {"half": (411_682, 7.23), "full": (576_542, 5.1)}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_published_speed_ups(name):
    base, forms = NETWORKS[name]
    models = {"base": build(name)} | {form: build(name, conv=f"fuseconv(variant='{form}')") for form in forms}
    found = compare_array(models, X, FUSE)
    assert found["base"].cycles == base
    for form, (cycles, published) in forms.items():
        assert found[form].cycles == cycles
        assert found.speedup(form) == pytest.approx(published, rel=0.01)
    assert found.fastest == "half"
    assert found["base"].by_kind()["depthwise"]["cycles"] > 0.85 * base


def test_utilisation_is_at_most_one_and_larger_arrays_take_no_more_cycles():
    model, x = build("mobilenet_v1", conv="fuseconv", width=0.25), torch.randn(2, 3, 64, 48)
    for broadcast in (False, True):
        before = None
        for side in (1, 5, 16, 200):
            found = profile_array(model, x, Array(side, side, broadcast_rows=broadcast))
            assert all(0 < layer.utilisation <= 1 for layer in found.layers)
            assert 0 < found.utilisation <= 1
            assert sum(layer.share for layer in found.layers) == pytest.approx(1)
            if before is not None and not broadcast:
                for small, large in zip(before.layers, found.layers, strict=True):
                    assert large.cycles <= small.cycles
            before = found


def test_depthwise_layers_keep_one_column_busy():
    found = profile_array(build("mobilenet_v1"), X, Array(64, 64))
    kinds = found.by_kind()
    assert kinds["depthwise"]["utilisation"] < 1 / 64
    assert kinds["pointwise"]["utilisation"] > 20 * kinds["depthwise"]["utilisation"]
    assert all("x1 busy" in layer.mapping for layer in found.layers if layer.kind == "depthwise")
    assert found.slowest(3) == tuple(sorted(found.layers, key=lambda one: -one.cycles)[:3])


def test_drain_adds_a_cycle_a_row_of_every_fold():
    layer, x = nn.Conv2d(4, 10, 1), torch.randn(1, 4, 5, 5)
    plain, drained = (profile_array(layer, x, Array(8, 4, drain=drain)).cycles for drain in (False, True))
    assert drained - plain == 25 * 3  # 25 places, three columns of folds


def test_a_transposed_convolution_is_its_product():
    layer, x = nn.ConvTranspose2d(4, 3, 2, 2), torch.randn(1, 4, 5, 6)
    assert profile_array(layer, x, Array(7, 5)).cycles == simulate(np.ones((30, 4)), np.ones((4, 12)), 7, 5)[1]


def test_what_has_no_known_sizes_is_listed():
    from leanconv.measure.counting.ops import OpCall
    from leanconv.measure.hardware import layer_sizes

    recorded = layer_sizes.record(nn.Conv2d(3, 4, 1), torch.randn(1, 3, 4, 4))
    recorded.ops.append(OpCall("odd_product", "matmul", "", "", (), macs=1000))
    recorded.ops.append(OpCall("mystery", "unknown", "", "", ()))
    hardware_record, layer_sizes.record = layer_sizes.record, lambda *_: recorded
    try:
        found = profile_array(nn.Conv2d(3, 4, 1), torch.randn(1, 3, 4, 4), Array(4, 4))
    finally:
        layer_sizes.record = hardware_record
    assert found.unmapped == {"odd_product": 1000, "mystery": 0}
    assert "not in the cycles: odd_product (1k MACs), mystery (unknown MACs)" in str(found)


def test_a_network_without_convolutions_is_an_empty_table():
    found = profile_array(nn.ReLU(), torch.randn(1, 3), Array(4, 4))
    assert (found.cycles, found.utilisation, found.layers) == (0, 0.0, ())
    assert "total" in str(found)
    assert compare_array({"a": nn.ReLU(), "b": nn.Linear(3, 2)}, torch.randn(1, 3), Array(4, 4)).fastest == "a"


@pytest.mark.parametrize("text", ["0x4", "4x0", "abc", "64", "64x", "-3x4", "64x64x2", "", "9999999999x1"])
def test_bad_sizes(text):
    with pytest.raises(BadInput, match="64x64"):
        Array.parse(text)


def test_sizes_are_read():
    assert Array.parse(" 32X16 ") == Array(32, 16)
    assert str(Array.parse("8x4", drain=True)) == "8x4 systolic array, output-stationary, drain"
    with pytest.raises(BadInput, match="nothing to compare"):
        compare_array({}, X, FUSE)
    with pytest.raises(BadInput, match="no network 'c'"):
        compare_array({"a": nn.Linear(3, 2)}, torch.randn(1, 3), FUSE)["c"]
