"""The SPLConv paper's table 1, counted on the real modules."""

import importlib
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import nn

from leanconv.errors import BadInput, UnknownName
from leanconv.measure.counting.count import count
from leanconv.papers import printed_rows, reproduce, reproducible, slugs, splconv
from leanconv.papers.network import Network
from leanconv.papers.reproduce import select
from leanconv.runs import load

# Params, Flops, MAdd of each network at 3x320x480, worked out by hand from the layers.
COMPUTED = {
    "UNet": (7_764_064, 27_312_537_600, 57_045_350_400),
    "Depth-Wise-UNet": (3_599_104, 19_824_998_400, 42_063_360_000),
    "SPConv-UNet": (3_265_504, 11_074_867_200, 24_500_889_600),
    "SPLConv-UNet(encoder)": (3_602_944, 19_848_038_400, 42_086_400_000),
    "SPLConv-UNet(r=0.5)": (1_528_864, 5_043_456_000, 12_403_507_200),
    "SPLConv-UNet(r=0.75)": (1_541_824, 5_198_976_000, 12_697_267_200),
}


@pytest.fixture(scope="module")
def found():
    return reproduce("splconv/table1")


def test_every_reproducible_row_agrees(found):
    entries = [e for e in found.rows if e.row != "SPLConv-UNet(encoder)"]
    assert len(entries) == 15
    for e in entries:
        assert e.ok, e
        assert e.error == e.ours / e.paper_value - 1
        assert abs(e.error) <= 0.0015
    assert not found.unexpected


@pytest.mark.parametrize("row", COMPUTED)
def test_the_counts_are_these_numbers(found, row):
    ours = {e.column: e.ours for e in found.rows if e.row == row}
    assert ours == dict(zip(("Params", "Flops", "MAdd"), COMPUTED[row], strict=True))


def test_the_row_that_contradicts_its_paper_says_so(found):
    entries = [e for e in found.rows if e.row == "SPLConv-UNet(encoder)"]
    assert [e.ok for e in entries] == [False] * 3
    assert all("contradicts the paper's own eq. 7" in e.reason for e in entries)
    assert "contradicts the paper's own eq. 7" in str(found)


def test_a_reading_in_brackets_is_explained(found):
    text = str(found)
    names = {name for others in splconv.ALTERNATIVES.values() for name in others.values()}
    for name in names:
        assert text.count(f"[{name}]: {splconv.READINGS[name]}.") == 1
    assert names == set(splconv.READINGS)


def test_its_contradiction_is_arithmetic():
    """Eq. 7 gives each replaced layer at least C·M weights: with the rest of the network more than the paper prints."""
    widths = [32, 64, 128, 256, 512]
    encoder = sum(c * m + m * m for c, m in pairwise(widths))
    dense = sum(9 * (c * m + m * m) for c, m in pairwise(widths))
    total = 7_764_064 - dense + encoder
    assert encoder == 522_240
    assert total > 1.07 * 3_330_000


def test_the_plain_drop_ins_are_within_half_a_percent(found):
    errors = [e.error for e in found.alternatives if "encoder" not in e.row]
    assert len(errors) == 12
    assert max(map(abs, errors)) < 0.004


def test_the_librarys_default_counts_like_the_papers_arrangement():
    """keep="ends" (the text) and keep="first_block" (the table) differ in place, not in number."""
    for conv in ("splconv", "splconv(alpha=0.75)", "spconv(inner_norms=1)"):
        totals = set()
        for keep in ("ends", "first_block"):
            for norm_per in ("conv", "pair"):
                options = {"conv": conv, "keep": keep, "norm_per": norm_per, "conv_bias": norm_per == "pair"}
                model = Network("unet", {"out_channels": 32, **options}).build("meta")
                totals.add(sum(p.numel() for p in model.parameters()))
        assert len(totals) == 1


@dataclass(frozen=True)
class Wider(Network):
    """The network with one convolution eight channels wider (and those beside it)."""

    def build(self, device="cpu"):
        model = super().build(device)
        level, up = model.encoder["level5"], model.decoder["level4"].up
        with torch.device(device):
            level.conv2 = nn.Conv2d(512, 520, 3, padding=1, bias=False)
            level.norm2 = nn.BatchNorm2d(520)
            model.decoder["level4"].up = nn.ConvTranspose2d(520, up.out_channels, 2, 2)
        return model.eval()


def test_a_layer_of_another_width_is_seen(monkeypatch):
    monkeypatch.setitem(splconv.NETWORKS, "unet32", Wider("unet", {"out_channels": 32}))
    found = reproduce("splconv/table1")
    params = next(e for e in found.rows if (e.row, e.column) == ("UNet", "Params"))
    assert params.ok is False
    assert params.error > 0.005
    assert "UNet Params" in found.unexpected
    assert "NOT REPRODUCED, though it should be: UNet Params" in str(found)


@pytest.mark.parametrize(
    "row", [row for row in printed_rows() if row.slug == "splconv/table1"], ids=lambda row: row.row
)
def test_another_width_agrees_with_no_figure(row):
    network = splconv.NETWORKS[row.model_id]
    wider = Network("unet", {**network.options, "base": 36}).build("meta")
    counts = count(wider, torch.empty(1, *row.input, device="meta"), row.convention)
    for column in row.values:
        assert not row.agrees(column, getattr(counts, column))


def test_the_references_name_the_same_networks(found):
    for model_id, network in splconv.NETWORKS.items():
        if model_id in ("unet32_spl_r50", "unet32_spconv"):
            text = found.networks[model_id]
            assert text == network.reference
            assert load(text).extra_repr() == network.build("meta").extra_repr()
    assert set(found.networks) == set(splconv.NETWORKS)


def test_the_json_is_the_designs(found):
    rows = found.to_dict()["rows"]
    keys = "paper table row column convention input paper_value ours error ok how reason"
    assert len(rows) == 18
    assert all(list(row) == keys.split() for row in rows)
    assert {(r["paper"], r["table"], r["convention"], r["input"], r["how"]) for r in rows} == {
        ("splconv", "table1", "torchstat", "3x320x480", "counted")
    }


def test_another_size_compares_what_does_not_depend_on_it():
    found = reproduce("splconv", size=(512, 512))
    flops = next(e for e in found.rows if e.column == "Flops")
    assert (flops.error, flops.ok, flops.input) == (None, None, "3x512x512")
    assert flops.ours == pytest.approx(46.6e9, rel=0.01)
    assert next(e for e in found.rows if e.column == "Params").ok is True
    assert not found.unexpected


def test_frame_rates_stand_beside_the_papers():
    told = []
    found = reproduce(
        "splconv/table1",
        counts=False,
        time=True,
        size=(16, 32),
        budget_s=0,
        min_rounds=1,
        clock="cpu",
        progress=lambda what, done: told.append((what, done)),
    )
    (rates,) = found.rates
    assert rates.input == (1, 3, 16, 32)
    assert rates.ratio("UNet") == 1
    assert [round(rates.paper_ratio(row), 2) for row in rates.rows] == [1, 0.96, 0.47, 0.64, 0.51, 0.51]
    for entry in found.to_dict()["rows"]:
        assert entry["column"] == "FPS"
        assert entry["ours"] == pytest.approx(1000 / rates.timings[entry["row"]].median_ms)
        assert (entry["error"], entry["ok"], entry["how"]) == (None, None, "measured")
    text = str(found)
    assert "RTX A5000" in text
    assert "1 rounds, the networks in turns, cpu time" in text
    assert told[0] == ("splconv/table1 16x32: building, warming up", 0.0)
    assert told[-1][1] == 1.0
    assert "1 thread, float32, contiguous, batch 1, 3x16x32" in text


@pytest.mark.parametrize(
    ("selection", "options", "error", "says"),
    [
        ("splconv/table9", {}, UnknownName, "did you mean 'splconv/table1'"),
        ("al", {}, UnknownName, "did you mean 'all'"),
        ("", {}, UnknownName, "unknown table ''"),
        ("splconv/table1", {"counts": False}, BadInput, "nothing to reproduce"),
        ("splconv/table1", {"size": (500, 512)}, BadInput, "multiples of 16, got 500x512"),
        ("splconv/table1", {"size": (0, 512)}, BadInput, "multiples of 16"),
        ("splconv/table1", {"time": True, "counts": False, "device": "meta"}, BadInput, "computes nothing"),
    ],
)
def test_what_cannot_be_reproduced_is_said(selection, options, error, says):
    with pytest.raises(error, match=says):
        reproduce(selection, **options)


def test_a_paper_whose_networks_are_not_built_is_said(monkeypatch):
    monkeypatch.setattr(importlib.import_module("leanconv.papers.reproduce"), "_PAPERS", {"splconv": splconv})
    with pytest.raises(BadInput, match=r"not built here yet .vgg16_cifar_P1, .*; can be reproduced: splconv/table1"):
        reproduce("hetconv/table1")
    assert select("all") == (["splconv/table1"], [slug for slug in slugs() if slug != "splconv/table1"])


def test_all_is_every_table_that_is_built_and_names_the_rest():
    built, left_out = select("all")
    assert built == reproducible()
    assert "splconv/table1" in built
    assert set(left_out) == set(slugs()) - set(built)
