"""InceptionDW against the authors' forward written out, and against the one depthwise layer that it is."""

import pytest
import torch
import torch.nn.functional as F

from leanconv.errors import UnsupportedConv
from leanconv.nn import InceptionDWConv2d


def build(c=24, **options):
    return InceptionDWConv2d(c, c, 7, padding=3, groups=c, dtype=torch.double, **options)


@pytest.mark.parametrize("options", [{}, {"band": 9, "ratio": 0.25}, {"square": 5, "band": 3}])
@pytest.mark.parametrize("size", [(13, 12), (4, 3), (1, 1)])  # the bands may exceed the map
def test_equals_the_four_branches_and_one_depthwise_layer(options, size):
    layer = build(**options)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
    x, g = torch.randn(2, 24, *size, dtype=torch.double), int(24 * options.get("ratio", 0.125))
    q, b = options.get("square", 3), options.get("band", 11)
    identity, hw, w, h = torch.split(x, (24 - 3 * g, g, g, g), 1)
    expected = torch.cat(
        [
            identity,
            F.conv2d(hw, layer.dwconv_hw.weight, layer.dwconv_hw.bias, 1, q // 2, 1, g),
            F.conv2d(w, layer.dwconv_w.weight, layer.dwconv_w.bias, 1, (0, b // 2), 1, g),
            F.conv2d(h, layer.dwconv_h.weight, layer.dwconv_h.bias, 1, (b // 2, 0), 1, g),
        ],
        1,
    )
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(layer.as_depthwise()(x), expected)


def test_the_papers_counts():
    assert sum(p.numel() for p in InceptionDWConv2d(64, 64, 7, padding=3, groups=64).parameters()) == 272
    assert sum(p.numel() for p in InceptionDWConv2d(96, 96, 7, padding=3, groups=96).parameters()) == 408


def test_too_few_channels_are_refused():
    with pytest.raises(UnsupportedConv, match=r"ratio=0\.125 of 7 channels is 0 for each branch"):
        build(7)
    with pytest.raises(UnsupportedConv, match="a third, 8"):
        build(24, ratio=0.4)


def test_equals_timms():
    mixers = pytest.importorskip("timm.models.inception_next", reason="timm is not installed")
    theirs = mixers.InceptionDWConv2d(24).double()
    ours = build()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 24, 9, 8, dtype=torch.double)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


def test_state_dict_keys_are_api():
    branches = ("dwconv_hw", "dwconv_w", "dwconv_h")
    assert list(build().state_dict()) == [f"{b}.{p}" for b in branches for p in ("weight", "bias")]
