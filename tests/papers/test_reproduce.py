"""`reproduce all`: every row of every table, its summary and JSON; and that a changed layer is seen."""

import importlib
import sys
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from leanconv.errors import MissingExtra
from leanconv.measure.counting.count import count
from leanconv.papers import fuseconv, inception_dw, odconv, printed_rows, reproduce, sic, spconv
from leanconv.papers.network import Network
from leanconv.papers.printed import COLUMNS
from leanconv.runs import load

room = importlib.import_module("leanconv.papers.reproduce")

# Params and Flops of the rows, worked out independently of this code; FuSeConv's MobileNetV2 without the 1,088
# parameters of a layer that its authors' code makes and never calls.
COMPUTED = {
    "MobileNet V1 Baseline": (4_231_976, 588_911_104),
    "MobileNet V1 Full FuSe": (7_366_600, 1_122_608_128),
    "MobileNet V1 Half FuSe": (4_202_216, 573_456_896),
    "MobileNet V1 50% Full FuSe": (4_356_296, 764_828_160),
    "MobileNet V1 50% Half FuSe": (4_228_328, 578_474_496),
    "MobileNet V2 Baseline": (3_504_872, 314_130_496),
    "MobileNet V2 Full FuSe": (4_462_024 - 1_088, 429_942_976),
    "MobileNet V2 Half FuSe": (3_463_144 - 1_088, 300_319_552),
    "MobileNet V2 50% Full FuSe": (3_611_432, 360_869_440),
    "MobileNet V2 50% Half FuSe": (3_492_200, 305_550_400),
    "MnasNet B1 Baseline": (4_383_312, 325_329_152),
    "MnasNet B1 Full FuSe": (5_666_568, 440_595_968),
    "MnasNet B1 Half FuSe": (4_257_840, 304_179_968),
    "MnasNet B1 50% Full FuSe": (4_476_552, 361_540_544),
    "MnasNet B1 50% Half FuSe": (4_351_920, 312_120_320),
    "MobileNet V3 Small Baseline": (2_938_368, 66_858_208),
    "MobileNet V3 Small Full FuSe": (4_446_056, 83_963_520),
    "MobileNet V3 Small Half FuSe": (2_891_712, 61_100_512),
    "MobileNet V3 Small 50% Full FuSe": (3_188_096, 73_743_008),
    "MobileNet V3 Small 50% Half FuSe": (2_922_960, 63_527_776),
    "MobileNet V3 Large Baseline": (5_476_416, 238_247_712),
    "MobileNet V3 Large Full FuSe": (10_577_064, 322_393_152),
    "MobileNet V3 Large Half FuSe": (5_405_664, 224_747_232),
    "MobileNet V3 Large 50% Full FuSe": (5_573_704, 263_529_376),
    "MobileNet V3 Large 50% Half FuSe": (5_466_720, 230_279_136),
    "inceptionnext_tiny": (28_055_680, 4_188_634_272),
    "inceptionnext_small": (49_374_016, 8_355_682_080),
    "inceptionnext_base": (86_672_136, 14_841_072_000),
    "inceptionnext_base_384": (86_672_136, 43_602_524_160),
    "inceptionnext_atto": (4_156_520, 503_035_040),
    "ResNet18": (11_689_512, 1_814_073_344),
    "ResNet50": (25_557_032, 3_857_973_248),
    "ResNet101": (44_549_160, 7_570_194_432),
    "ResNet18 + ODConv (1x)": (11_943_944, 1_837_971_632),
    "ResNet18 + ODConv (4x)": (44_901_640, 1_914_871_152),
    "ResNet50 + ODConv (1x)": (28_635_112, 3_901_378_224),
    "ResNet50 + ODConv (4x)": (90_670_888, 4_046_120_240),
    "ResNet101 + ODConv (1x)": (50_818_769, 7_650_820_160),
    "ResNet101 + ODConv (2x)": (90_441_623, 7_769_675_840),
    "MobileNetV2 (1x)": (3_504_872, 300_774_272),
    "MobileNetV2 (1x) + ODConv (1x)": (4_940_185, 311_049_744),
    "MobileNetV2 (1x) + ODConv (4x)": (11_512_149, 326_377_088),
    "MobileNetV2 (0.75x)": (2_636_424, 209_069_792),
    "MobileNetV2 (0.75x) + ODConv (1x)": (3_507_113, 217_088_048),
    "MobileNetV2 (0.75x) + ODConv (4x)": (7_496_013, 226_389_288),
    "MobileNetV2 (0.5x)": (1_968_680, 97_131_840),
    "MobileNetV2 (0.5x) + ODConv (1x)": (2_425_537, 101_851_728),
    "MobileNetV2 (0.5x) + ODConv (4x)": (4_435_501, 106_536_304),
    "ResNet50-Baseline": (25_557_032, 4_143_248_896),
    "SPConv-ResNet50-alpha 0.5": (18_345_448, 2_973_922_304),
    "SPConv-ResNet50-alpha 0.25": (16_930_792, 2_742_711_296),
    "SPConv-ResNet50-alpha 0.125": (16_223_464, 2_627_105_792),
}
UNMET = {
    ("splconv", "SPLConv-UNet(encoder)", "Params"), ("splconv", "SPLConv-UNet(encoder)", "Flops"),
    ("splconv", "SPLConv-UNet(encoder)", "MAdd"), ("inception_dw", "inceptionnext_atto", "Flops"),
    ("odconv", "ResNet50 + ODConv (4x)", "Flops"), ("sic", "VGG-16", "MACs, times fewer"),
    ("sic", "ResNet-50", "MACs, times fewer"), ("sic", "ResNet-101", "MACs, times fewer"),
}  # fmt: skip


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def found(told):
    pytest.importorskip("timm")
    return reproduce("all", progress=lambda what, done: told.append((what, done)))


def test_every_printed_figure_has_an_entry(found):
    expected = {
        (row.slug, row.row, COLUMNS[c] + less)
        for row in printed_rows()
        for columns, less in ((row.values, ""), (row.reduced, " less %"))
        for c in columns
    }
    ratios = {("sic/ratios", name, "MACs, times fewer") for name in ("VGG-16", "ResNet-50", "ResNet-101")}
    assert {(f"{e.paper}/{e.table}", e.row, e.column) for e in found.rows} == expected | ratios
    assert len(found.rows) == len(expected) + len(ratios)
    assert not found.left_out


def test_what_the_tables_call_reproducible_is_met_and_the_rest_says_why(found):
    unmet = [e for e in found.rows if not e.ok]
    assert {(e.paper, e.row, e.column) for e in unmet} == UNMET
    assert all(len(e.reason) > 40 for e in unmet)
    assert not found.unexpected
    expected = {(row.slug, row.row) for row in printed_rows() if row.expected}
    assert all(e.ok for e in found.rows if (f"{e.paper}/{e.table}", e.row) in expected)


@pytest.mark.parametrize("row", COMPUTED)
def test_the_counts_are_these_numbers(found, row):
    ours = [e.ours for e in found.rows if e.row == row]
    assert ours == list(COMPUTED[row])
    assert {e.how for e in found.rows if e.row == row} == {"counted"}


def test_the_summary_counts_what_stands_in_the_tables(found):
    for standing in found.summary:
        entries = [e for e in found.rows if e.paper == standing.paper]
        assert standing.figures == len(entries) == standing.met + len(standing.not_met)
        assert standing.not_met == {f"{e.row} {e.column}": e.reason for e in entries if not e.ok}
    text = found.summary_table()
    assert text.splitlines()[-1].strip()
    assert text in str(found)
    (total,) = (line.split() for line in text.splitlines() if line.startswith("all "))
    assert total[1:] == ["18", "95", str(len(found.rows)), str(len(found.rows) - len(UNMET)), str(len(UNMET))]
    assert "the paper's network tables are lost" in " ".join(text.split())


def test_the_json_is_the_designs(found):
    data = found.to_dict()
    keys = "paper table row column convention input paper_value ours error ok how reason"
    assert all(list(row) == keys.split() for row in data["rows"])
    assert [s["paper"] for s in data["summary"]] == list(dict.fromkeys(row["paper"] for row in data["rows"]))
    for row in data["rows"]:
        assert row["how"] in ("counted", "formula")
        assert (row["how"] == "formula") == (row["convention"] == "het_eq5" or row["row"] == "VGG-16_PC_SE")
        assert row["ok"] is True or row["reason"]


def test_the_progress_names_what_is_counted(found, told):
    assert [done for _, done in told] == sorted(done for _, done in told)
    assert told[0] == ("hetconv/table1 VGG-16_P1", 0.0)
    assert told[-1] == ("counted", 1.0)
    assert len(told) == 96


def test_the_references_name_the_same_networks(found):
    for model_id in ("fuse_mbv3s_half50", "mbv2_0.5_K4", "spconv_resnet50_a0.25", "odconv_resnet18_K1", "vgg16_sic"):
        with torch.device("meta"):
            model = load(found.networks[model_id])
        paper = next(p for p in (fuseconv, odconv, spconv, sic) if model_id in p.NETWORKS)
        assert repr(model) == repr(paper.NETWORKS[model_id].build("meta").train())


def test_timms_own_inceptionnext_counts_like_the_one_with_our_mixer(found):
    with torch.device("meta"):
        theirs = load(found.networks["inceptionnext_atto"])
    x = torch.empty(1, 3, 224, 224, device="meta")
    counted = count(theirs.eval(), x, "macs_trainable")
    assert (counted.params, counted.flops) == COMPUTED["inceptionnext_atto"]
    ours = inception_dw.NETWORKS["inceptionnext_atto"].build("meta")
    mixers = [m for m in ours.modules() if isinstance(m, inception_dw.InceptionDWConv2d)]
    assert len(mixers) == 12
    assert {(m.band, m.ratio) for m in mixers} == {(9, 0.25)}


def test_sics_ratios_are_those_of_the_layers(found):
    """VGG-16 by hand: 13 layers at 224² to 14², three FC layers; a SIC layer multiplies 9C + CM for 9CM."""
    sizes = [(3, 64, 224), (64, 64, 224), (64, 128, 112), (128, 128, 112), (128, 256, 56), (256, 256, 56),
             (256, 256, 56), (256, 512, 28), (512, 512, 28), (512, 512, 28), *[(512, 512, 14)] * 3]  # fmt: skip
    head = 25088 * 4096 + 4096 * 4096 + 4096 * 1000
    dense = sum(9 * c * m * side**2 for c, m, side in sizes) + head
    c, m, side = sizes[0]
    lean = 9 * c * m * side**2 + sum((9 * c + c * m) * side**2 for c, m, side in sizes[1:]) + head
    entry = next(e for e in found.rows if e.row == "VGG-16")
    assert entry.ours == dense / lean
    assert (entry.paper_value, entry.ok, entry.how) == (42.0, False, "counted")
    assert [e.paper_value for e in found.rows if e.paper == "sic"] == [42.0, 4.5, 6.5]


# --- a changed layer is seen

CHANGED = [
    (fuseconv, "fuseconv/mobilenet-v1", "fuse_mbv1_half", {"keep": "stages.[01].*"}, "Flops"),
    (
        fuseconv,
        "fuseconv/mobilenet-v2",
        "fuse_mbv2_full50",
        {"keep": "stages.[014].*"},
        "Flops",
    ),
    (fuseconv, "fuseconv/mnasnet-b1", "fuse_mnas_base", {"act": "relu"}, "Flops"),
    (fuseconv, "fuseconv/mobilenet-v3-small", "fuse_mbv3s_full", {"se": 5}, "Params"),
    (fuseconv, "fuseconv/mobilenet-v3-large", "fuse_mbv3l_half50", {"keep": "stages.0.0.*"}, "Flops"),
    (odconv, "odconv/resnet", "odconv_resnet18_K4", {"keep": "layer4.1.conv2"}, "Params"),
    (odconv, "odconv/mobilenetv2", "mbv2_0.5_K1", {"keep": "last.conv"}, "Params"),
    (spconv, "spconv/imagenet", "spconv_resnet50_a0.5", {"keep": "layer3.0.conv2"}, "Params"),
    (inception_dw, "inception_dw/imagenet-1k", "inceptionnext_base_384", {"band": 41, "square": 25}, "Flops"),
]


@pytest.mark.parametrize(("paper", "slug", "model_id", "change", "column"), CHANGED, ids=[c[2] for c in CHANGED])
def test_a_changed_layer_is_seen(monkeypatch, paper, slug, model_id, change, column):
    (row,) = (r for r in printed_rows() if r.slug == slug and r.model_id == model_id)
    monkeypatch.setattr(room, "printed_rows", lambda: (row,))
    network = paper.NETWORKS[model_id]
    changed = type(network)(network.name, {**network.options, **change})
    monkeypatch.setitem(paper.NETWORKS, model_id, changed)
    found = reproduce(slug)
    assert f"{row.row} {column}" in found.unexpected
    assert "NOT REPRODUCED, though it should be" in str(found)


@dataclass(frozen=True)
class OneDense(Network):
    """VGG-16 of SIC layers with one of them standard again."""

    def build(self, device="cpu"):
        model = super().build(device)
        model.stage3.conv2 = nn.Conv2d(256, 256, 3, padding=1, device=device)
        return model


def test_a_changed_layer_is_seen_in_a_ratio(monkeypatch, found):
    before = next(e for e in found.rows if e.row == "VGG-16").ours
    monkeypatch.setattr(sic, "RATIOS", sic.RATIOS[:1])
    monkeypatch.setitem(sic.NETWORKS, "vgg16_sic", OneDense("vgg16", {"conv": "sic"}))
    (entry,) = reproduce("sic").rows
    assert entry.ours < 0.75 * before
    assert not reproduce("sic/ratios", size=(64, 64)).rows[0].error


# --- a library that is not there


def test_without_timm_its_table_is_left_out_of_all_and_an_error_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setattr(room, "_PAPERS", {"inception_dw": inception_dw})
    found = reproduce("all")
    assert found.rows == ()
    assert "leanconv[zoo]" in found.left_out["inception_dw/imagenet-1k"]
    assert "Left out: " in str(found)
    with pytest.raises(MissingExtra, match=r"leanconv\[zoo\]"):
        reproduce("inception_dw")
