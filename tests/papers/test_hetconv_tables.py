"""The HetConv paper's tables 1 to 7: every row, the formula against ten lines of own arithmetic, a changed layer."""

import importlib

import pytest

from leanconv.errors import BadInput
from leanconv.papers import hetconv, printed_rows, reproduce
from leanconv.papers.network import Network
from leanconv.runs import load

VGG = [(3, 64, 32), (64, 64, 32), (64, 128, 16), (128, 128, 16), (128, 256, 8), (256, 256, 8), (256, 256, 8),
       (256, 512, 4), (512, 512, 4), (512, 512, 4), (512, 512, 2), (512, 512, 2), (512, 512, 2)]  # fmt: skip
PARTS = {**{f"P{p}": p for p in (1, 2, 4, 8, 16, 32, 64)}, "PC": None}


@pytest.fixture(scope="module")
def found():
    return reproduce("hetconv")


def figure(entries, row, column):
    (one,) = (e for e in entries if (e.table, e.row, e.column) == (*row, column))
    return one


def test_every_row_agrees(found):
    assert not found.unexpected
    assert [e for e in found.rows if not e.ok] == []
    rows = [row for row in printed_rows() if row.slug.startswith("hetconv/") and row.slug.split("/")[1] != "table4"]
    assert (
        len([e for e in found.rows if e.table != "table4"]) == sum(len(r.values) + len(r.reduced) for r in rows) == 80
    )
    assert all(row.expected for row in rows)
    by_formula = {e.table for e in found.rows if e.how == "formula"}
    assert by_formula == {"table1", "table2", "table3", "table6"}
    assert {e.table for e in found.rows if e.how == "counted"} == {"table4", "table5", "table7"}


def test_what_is_off_by_more_than_half_a_percent_says_how_it_still_agrees(found):
    wide = [e for e in found.rows if abs(e.error) > 0.005]
    assert [(e.row, e.column, e.reason) for e in wide] == [
        ("ResNet-34_P1", "Flops", "Flops prints as the paper's 3.6G")
    ]


@pytest.mark.parametrize("word", PARTS)
@pytest.mark.parametrize("se", [False, True])
def test_the_formula_is_this_arithmetic(found, word, se):
    """Replaced layers as dense ones times 1/P + (1 - 1/P)/9; the first and the FC layers as they are."""
    params, flops = 0.0, 512 * 512 + 512 * 10
    for i, (c, o, side) in enumerate(VGG):
        p = 1 if i == 0 else PARTS[word] or o
        ratio = 1 / p + (1 - 1 / p) / 9
        params += ratio * (9 * c * o + o + 4 * o)
        flops += ratio * side * side * (9 * c * o + o)
    params += 512 * 512 + 512 + 4 * 512 + 512 * 10 + 10
    if se:
        squares = sum(o * o for _, o, _ in VGG)
        params, flops = params + squares / 8, flops + squares / 4
    row = f"VGG-16_{word}" + "_SE" * se
    assert figure(found.rows, ("table1", row), "Flops").ours == pytest.approx(flops, abs=1)
    if (word, se) == ("PC", True):  # its parameters fit without biases and BatchNorm only
        params = sum(9 * c * o * (1 if i == 0 else 1 / o + (1 - 1 / o) / 9) for i, (c, o, _) in enumerate(VGG))
        params += squares / 8 + 512 * 522
    assert figure(found.rows, ("table1", row), "Params").ours == pytest.approx(params, abs=1)


@pytest.mark.parametrize("word", PARTS)
@pytest.mark.parametrize("se", [False, True])
def test_the_real_layers_are_counted_beside_it(found, word, se):
    """One weight for each of O·C·(9/P + 1 - 1/P), used once a pixel; squeeze-excite whole in both columns."""
    params = flops = 512 * 512 + 512 * 10
    for i, (c, o, side) in enumerate(VGG):
        p = 1 if i == 0 else PARTS[word] or c
        weights = o * c * 9 // p + o * c * (p - 1) // p
        params, flops = params + weights, flops + side * side * weights
    if se:
        more = sum(2 * o * (o // 8) for _, o, _ in VGG)
        params, flops = params + more, flops + more
    row = f"VGG-16_{word}" + "_SE" * se + " [real layers]"
    entries = [figure(found.alternatives, ("table1", row), column) for column in ("Params", "Flops")]
    assert [e.ours for e in entries] == [params, flops]
    assert {(e.how, e.convention) for e in entries} == {("counted", "macs_weights")}
    assert entries[1].ok
    assert entries[0].ok is not se
    if se:
        assert "half of a reduction-8 squeeze-excite" in entries[0].reason


def test_the_counts_are_these_numbers(found):
    for table, row, column, ours in (
        ("table1", "VGG-16_P1", "Params", 15_001_418),
        ("table1", "VGG-16_P1", "Flops", 313_740_288),
        ("table1", "VGG-16_P4", "Params", 5_181_727),
        ("table1", "VGG-16_P4", "Flops", 105_981_611),
        ("table1", "VGG-16_GWC4_PWC", "Params", 5_429_194),
        ("table1", "VGG-16_GWC4_PWC", "Flops", 107_666_432),
        ("table1", "VGG-16_DWC_PWC", "Params", 1_978_954),
        ("table1", "VGG-16_DWC_PWC", "Flops", 38_528_000),
        ("table4", "MobileNet", "Flops", 46_354_432),
        ("table4", "MobileNet_P32", "Flops", 55_945_216),
        ("table4", "MobileNet_P32_SE", "Flops", 56_904_704),
        ("table3", "ResNet-56_P1", "Flops", 126_018_176),
        ("table6", "ResNet-34_P1", "Flops", 3_648_056_320),
        ("table6", "ResNet-34_P4", "Flops", 1_295_571_285),
        ("table6", "ResNet-34_P4_SE", "Flops", 1_295_885_653),
        ("table7", "ResNet-50_P1", "Flops", 4_089_184_256),
        ("table7", "ResNet-50_P4", "Flops", 2_856_058_880),
    ):
        assert figure(found.rows, (table, row), column).ours == ours


def test_percentages_are_against_the_dense_network(found):
    entry = figure(found.rows, ("table5", "VGG-16_P4 (ImageNet)"), "Flops less %")
    dense = 15_470_264_320  # 13 convolutions and three FC layers, in multiply-accumulates
    assert entry.ours == pytest.approx(100 * (1 - 5_296_979_968 / dense), abs=1e-9)
    assert (entry.paper_value, entry.how, entry.convention) == (65.8, "counted", "macs_weights")
    assert entry.error == (entry.ours - 65.8) / 100
    # Of an _SE row the paper sets the parameters against P1 with squeeze-excite, the FLOPs against P1 without.
    less = figure(found.rows, ("table1", "VGG-16_P2_SE"), "Params less %")
    assert less.ours == pytest.approx(100 * (1 - 8_681_262 / 15_227_722), abs=1e-4)


@pytest.mark.parametrize(
    ("slug", "model_id", "change", "says"),
    [
        ("hetconv/table1", "vgg16_cifar_P8", {"keep": "stage5.conv1"}, "VGG-16_P8 Params"),
        ("hetconv/table2", "vgg16_cifar_P32", {"keep": "stage1.*"}, "VGG-16_P32 Flops less %"),
        ("hetconv/table3", "resnet56_cifar_P4", {"keep": "layer1.[01].*"}, "ResNet-56_P4 Flops less %"),
        ("hetconv/table4", "mobilenet_cifar_P32", {"keep": "stages.4.1.*"}, "MobileNet_P32 Flops"),
        ("hetconv/table5", "vgg16_imagenet_P4", {"keep": "stage3.conv2"}, "VGG-16_P4 (ImageNet) Flops less %"),
        ("hetconv/table6", "resnet34_imagenet_P1", {"shortcut": "projection", "width": 1.1}, "ResNet-34_P1 Flops"),
        ("hetconv/table7", "resnet50_imagenet_P1", {"stride_on": "1x1"}, "ResNet-50_P1 Flops"),
    ],
)
def test_a_changed_layer_is_seen(monkeypatch, slug, model_id, change, says):
    module = importlib.import_module("leanconv.papers.reproduce")
    if slug == "hetconv/table1":  # eighteen rows: those that matter are enough
        rows = tuple(r for r in printed_rows() if r.slug != slug or r.row in ("VGG-16_P1", "VGG-16_P8"))
        monkeypatch.setattr(module, "printed_rows", lambda: rows)
    network = hetconv.NETWORKS[model_id]
    monkeypatch.setitem(hetconv.NETWORKS, model_id, Network(network.name, {**network.options, **change}))
    changed = reproduce(slug)
    assert says in changed.unexpected
    assert f"NOT REPRODUCED, though it should be: {changed.unexpected[0]}" in str(changed)


def test_the_text_tells_formula_from_count(found):
    text = str(found)
    assert "By a formula, of no layer that can be built: het_eq5" in text
    assert text.count("[real layers]: the network as built, counted") == 4
    assert text.count("the paper's parameters have half of a reduction-8") == 1


def test_the_json_is_the_designs(found):
    rows = found.to_dict()["rows"]
    keys = "paper table row column convention input paper_value ours error ok how reason"
    assert all(list(row) == keys.split() for row in rows)
    less = next(r for r in rows if r["column"] == "Flops less %")
    assert (less["paper_value"], round(less["ours"], 2), less["how"]) == (44.15, 44.15, "formula")
    pc = next(r for r in rows if (r["row"], r["column"]) == ("VGG-16_PC_SE", "Params"))
    assert (pc["convention"], pc["how"]) == ("macs_weights", "formula")


def test_the_references_name_the_same_networks(found):
    for model_id in ("vgg16_cifar_PC_SE", "resnet56_cifar_P4_SE"):
        text, network = found.networks[model_id], hetconv.NETWORKS[model_id]
        assert text == network.reference
        assert load(text).extra_repr() == network.build("meta").extra_repr()


def test_another_size_is_counted_or_refused_by_the_network():
    entries = reproduce("hetconv/table7", size=(64, 64)).rows
    assert {e.ok for e in entries} == {None}
    assert entries[0].ours < 4_089_184_256 / 12
    with pytest.raises(BadInput, match="vgg16_cifar takes images of 32x32 and larger, got 16x16"):
        reproduce("hetconv/table2", size=(16, 16))
