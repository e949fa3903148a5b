"""ptflops, thop, fvcore and torchstat: our rules against what the tools themselves printed.

The figures were printed by ptflops 0.7.5 (both backends), thop 0.1.1.post2209072238, fvcore 0.1.5.post20221221 and
torchstat 0.0.7, with torch 2.15, torchvision 0.29.2, timm 1.0.31 and segmentation-models-pytorch 0.6.0. torchstat's
are the sums of its own per-layer table: its report needs a pandas that is no longer made.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanconv.measure import compare_conventions
from leanconv.measure.counting.count import count, count_recorded
from leanconv.measure.counting.record import record
from leanconv.models import build

# (params, counts) by each tool; torchstat's third figure is its MAdd.
PRINTED = {
    ("torchvision", "resnet18", 224): {
        "ptflops": (11_689_512, 1_825_313_768), "ptflops_aten": (11_689_512, 1_814_074_344),
        "thop": (11_689_512, 1_824_033_792), "fvcore": (11_689_512, 1_819_065_856),
        "torchstat": (11_689_512, 1_821_399_040, 3_638_757_912),
    },
    ("smp", "resnet18", 128): {
        "ptflops": (14_328_209, 1_358_266_368), "ptflops_aten": (14_328_209, 1_349_533_696),
        "thop": (14_328_209, 1_356_824_576), "fvcore": (14_328_209, 1_354_186_752),
        "torchstat": (14_328_209, 1_354_973_184, 2_706_563_072),
    },
    ("torchvision", "mobilenet_v2", 224): {
        "ptflops": (3_504_872, 320_300_008), "ptflops_aten": (3_504_872, 300_775_272),
        "thop": (3_504_872, 327_486_720), "fvcore": (3_504_872, 314_193_216),
        "torchstat": (3_504_872, 320_236_288, 627_687_672),
    },
    ("timm", "vit_tiny_patch16_224", 224): {
        "ptflops": (5_717_416, 912_887_404), "ptflops_aten": (5_717_416, 1_078_974_952),
        "thop": (5_669_800, 1_074_851_328), "fvcore": (5_717_416, 1_079_579_328),
    },
    ("timm", "mobilenetv3_small_100", 224): {
        "ptflops": (2_542_856, 56_488_744), "ptflops_aten": (2_542_856, 56_515_312),
        "thop": (1_505_744, 55_515_200), "fvcore": (2_542_856, 59_364_160),
    },
    ("torchvision", "efficientnet_b0", 224): {
        "ptflops": (5_288_548, 410_196_896), "ptflops_aten": (5_288_548, 385_825_092),
        "thop": (5_288_548, 415_145_024), "fvcore": (5_288_548, 401_659_392),
    },
}  # fmt: skip


def network(room, name):
    if room == "torchvision":
        return getattr(pytest.importorskip("torchvision").models, name)()
    if room == "timm":
        return pytest.importorskip("timm").create_model(name)
    return pytest.importorskip("segmentation_models_pytorch").Unet(name, encoder_weights=None)


@pytest.mark.filterwarnings("ignore::leanconv.measure.counting.count.Uncounted")
@pytest.mark.parametrize("which", PRINTED, ids=lambda which: which[1])
def test_conventions_are_what_the_tools_printed(which):
    room, name, size = which
    recorded = record(network(room, name), torch.randn(1, 3, size, size))
    for tool, printed in PRINTED[which].items():
        ours = count_recorded(recorded, tool)
        assert (ours.params, ours.flops, *([ours.madd] if len(printed) > 2 else [])) == printed, tool
        assert sum(layer.flops for layer in ours.layers) == ours.flops


@pytest.mark.filterwarnings("ignore::leanconv.measure.counting.count.Uncounted")
def test_our_unet():
    printed = {
        "ptflops": 73_598_976,
        "ptflops_aten": 71_915_520,
        "thop": 82_747_392,
        "fvcore": 72_560_640,
        "torchstat": 69_894_144,
    }
    recorded = record(build("unet", out_channels=2, base=8), torch.randn(1, 3, 64, 96))
    for tool, flops in printed.items():
        ours = count_recorded(recorded, tool)
        assert (ours.params, ours.flops) == (486_562, flops), tool


class Shared(nn.Module):
    """One convolution in two places of the tree, a transposed one, and functions of every sort."""

    def __init__(self):
        super().__init__()
        conv = nn.Conv2d(4, 4, 3, padding=1)
        self.a, self.b = nn.Sequential(conv, nn.ReLU()), nn.Sequential(conv, nn.AvgPool2d(2))
        self.t, self.u = nn.ConvTranspose2d(4, 4, 2, 2), nn.Upsample(scale_factor=2, mode="bilinear")

    def forward(self, x):
        y = torch.mul(self.t(self.b(self.a(x))), 2.0) + torch.matmul(x, x)
        return y, self.u(x).softmax(1), F.relu(x), F.interpolate(x, scale_factor=2)


@pytest.mark.filterwarnings("ignore::leanconv.measure.counting.count.Uncounted")
def test_shared_modules_functions_and_single_layers_as_printed():
    x = torch.randn(1, 4, 8, 8)
    shared = {"ptflops": (216, 45_824), "ptflops_aten": (216, 22_272), "thop": (364, 89_152)}
    for tool, printed in shared.items():
        ours = count(Shared(), x, tool)
        assert (ours.params, ours.flops) == printed, tool
    single = {"ptflops": (112, 4_032), "ptflops_aten": (112, 4_032), "thop": (0, 3_888)}
    for tool, printed in single.items():
        ours = count(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8), tool)
        assert (ours.params, ours.flops) == printed, tool
    rows = nn.Sequential(nn.Linear(4, 5), nn.Softmax(1), nn.AdaptiveAvgPool1d(2))
    thop = count(rows, torch.randn(1, 4), "thop")
    assert (thop.params, thop.flops) == (25, 38)


def test_what_a_tool_does_not_see_is_listed():
    functional = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Hardswish())
    for tool in ("ptflops", "thop"):
        with pytest.warns(UserWarning, match="Hardswish"):
            assert count(functional, torch.randn(1, 3, 4, 4), tool).uncounted == {"Hardswish": 1}
    with pytest.warns(UserWarning, match="functional matmul"):
        assert count(Shared(), torch.randn(1, 4, 8, 8), "thop").uncounted["functional matmul"] == 1


def test_the_differences_add_up_and_are_named():
    model, x = build("unet", base=8, conv="hetconv(part=4)"), torch.randn(1, 3, 64, 96)
    found = compare_conventions(model, x)
    base = found["macs"]
    for row in found.rows:
        assert sum(row.parts.values()) == row.counts.flops
        assert sum(row.differs.values()) == row.counts.flops - base.counts.flops
        assert row.params_differ == row.counts.params - base.counts.params
        assert row.why
    thop, stat = found["thop"].differs["transposed conv"], found["torchstat"].differs["transposed conv"]
    # Every input place times the four taps of 2x2: 8·2^k channels become half as many, k levels down.
    turned = sum(64 * 96 // 4**k * (8 * 2**k) * (4 * 2**k) * 4 for k in (1, 2, 3, 4))
    assert base.parts["transposed conv"] == turned
    assert (thop, stat) == (3 * turned, -turned)
    assert "sees no HetConv2d" in found["ptflops"].why
    assert "two for every multiply-accumulate" in found["torch"].why
    assert found.to_dict()["conventions"][0]["name"] == "macs"
    for row in found.rows:
        assert f"{row.counts.flops:,}" in str(found)


def test_resnet18_part_by_part():
    """Elements by hand: 2,483,712 into norms, 2,308,096 into ReLUs, 802,816 into the max-pool, 25,088 into the mean."""
    pytest.importorskip("torchvision")
    found = compare_conventions(network("torchvision", "resnet18"), torch.randn(1, 3, 224, 224))
    assert found["ptflops"].differs == {
        "norm": 2 * 2_483_712,
        "activation": 2_308_096,
        "activation again, as its function": 2_308_096,
        "pooling": 802_816 + 25_088,
        "pooling again, as its function": 802_816 + 25_088,
        "bias": 1000,
    }
    assert found["thop"].differs == {"norm": 4 * 2_483_712, "pooling": 50 * 512}
    assert found["fvcore"].differs == {"norm": 2 * 2_483_712, "pooling": 25_088}
    once = 2 * (200_704 + 100_352 + 50_176 + 25_088)  # a block's ReLU runs twice; torchstat keeps its last call
    assert found["torchstat"].differs == {"norm": 2 * 2_483_712, "activation": 2_308_096 - once, "pooling": 802_816}
    assert found["ptflops_aten"].differs == {"bias": 1000}
    assert found["macs_weights"].differs == {}
    assert found["torch"].ratio == 2
