"""The generated pages: equal to what the sources say now, whole, and without a figure that nobody measured."""

import argparse
import json
import re

import pytest

from benchmarks.operators import layer_rows
from docs.generate import ROOT, pages
from docs.generate.blocks import BLOCKS, filled
from docs.generate.guide import guide_page
from docs.generate.measured import RESULTS, Results, front, layer_ratios, lines_about, operator_of
from docs.generate.observed import observe, option_words, taken
from docs.generate.operators import operator_page, words
from leanconv.nn import get, names, parse
from leanconv.papers import slugs
from leanconv.registry import options_of
from leanconv.spec import ConvSpec


@pytest.fixture(scope="module")
def made():
    return pages()


def test_committed_pages_are_what_the_sources_say(made):
    stale = [name for name, text in made.items() if (ROOT / name).read_text(encoding="utf-8") != text]
    assert not stale, f"run `make docs`: {', '.join(stale)}"


def test_every_operator_has_its_page_and_words_and_no_page_is_left_over(made):
    assert set(words()) == set(names())
    assert {path.name for path in (ROOT / "operators").iterdir()} == {f"{name}.md" for name in names()}
    for name in names():
        assert f"](operators/{name}.md)" in made["README.md"]


@pytest.mark.parametrize("name", names())
def test_words_name_things_that_exist(name):
    own = words()[name]
    assert {"title", "idea", "when", "avoid", "variants", "tables", "claims"} <= set(own)
    for text in (own.get("example", name), *own["variants"]):
        assert parse(text)[0] == name
    assert set(own["tables"]) <= set(slugs())
    assert set(option_words(name)) == set(options_of(get(name))), "an option without a word on its page"


def test_pages_show_the_specifications_worked_figures(made):
    """Section 17.1 of the operators' specification, worked out by hand there."""
    for name, macs in {
        "hetconv": "77,070,336",
        "spconv": "83,492,864",
        "sic": "42,147,840",
        "xsepconv": "3,612,672",
    }.items():
        assert macs in made[f"operators/{name}.md"]
    assert "| VGG-16_P4 | 3×32×32 | 5.17M | 105.98M |" in made["operators/hetconv.md"]
    assert "44.15 %" in made["operators/hetconv.md"]


def test_what_is_observed_is_what_the_specification_says_of_folds():
    """Section 17.2: what deploys as what."""
    plain = {name for name in names() if observe(name).short == "a plain convolution"}
    assert plain == {"conv", "doconv", "gmconv", "lhconv"}
    assert observe("spconv").short == "a leaner form"
    exact = {name for name in names() if observe(name).weights == "exactly"}
    assert {"conv", "doconv", "lhconv"} <= exact
    assert "hetconv" not in exact
    assert "BatchNorm that follows it in your network stays" in observe("splconv").norm  # a gate stands last


def test_refusals_are_shown_in_the_operators_words():
    rows = dict(taken("hetconv"))
    assert rows["3×3"] == "yes"
    assert rows["3×3, 30 -> 50 channels"].startswith("part=4 does not divide")
    assert "3×3 depthwise" not in rows
    assert "outside the paper's rule" in dict(taken("xsepconv"))["3×3 depthwise"]


def test_every_results_file_is_read():
    results = Results.read()
    assert sum(len(group) for group in vars(results).values()) == len(list(RESULTS.glob("*.json")))


def test_measured_figures_are_the_files(made):
    """Looked up again with nothing of the generator's: the numbers of a page stand in the JSON."""
    rows = {row["model"]: row for row in json.loads((RESULTS / "segmentation_wafer.json").read_text())["rows"]}
    dice = f"{rows['SPLConv .5']['dice']['mean']:.3f}"
    assert f"SPLConv .5: Dice over all pixels {dice}" in made["operators/splconv.md"]
    section = made["results.md"].partition("## Segmentation: wafer, 12 epochs")[2]
    line = next(line for line in section.splitlines() if line.startswith("| SPLConv .5 |"))
    assert dice in line
    assert f"{rows['U-Net']['macs_128px'] / rows['SPLConv .5']['macs_128px']:.2f}" in line


def test_without_files_no_section_and_no_figure():
    text = guide_page(Results())
    assert "## In short" not in text
    assert "Segmentation" not in text
    assert not re.search(r"\d\.\d", text)
    assert "`splconv`" in text.partition("What is not measured yet")[2]
    assert "Nothing yet" in operator_page("splconv", Results())


def test_the_operators_benchmark_gets_its_section():
    """With rows that the benchmark itself makes, on a layer small enough to time here."""
    spec = ConvSpec.of(8, 8, 3, 1, 1, bias=False, h=12, w=12)
    asked = argparse.Namespace(
        operators=["conv", "drconv", "hetconv(part=2)"], batch=2, budget=0.01, rounds=2, threads=1
    )
    content = {
        "command": "python -m benchmarks.operators", "device": {"device": "cpu", "name": "here", "threads": 1},
        "clock": "cpu", "layers": layer_rows("tiny", spec, asked), "networks": [],
    }  # fmt: skip
    ratios = layer_ratios(content, "inference")
    assert set(ratios) == {"drconv", "hetconv(part=2)"}
    results = Results(layers={"operators_cpu": content})
    text = BLOCKS["layers"](results)
    assert f"| `drconv` | {ratios['drconv']['tiny']:.2f} |" in text
    assert ("Losses" in text) == any(own["tiny"] < 1 for own in ratios.values())
    assert "layer** of `conv`" not in guide_page(results)
    assert "`hetconv(part=2)`, inference" in operator_page("hetconv", results)


def test_losses_and_wins_of_a_classification_stand_side_by_side():
    def row(operator, top1, macs):
        score = {"mean": top1, "stdev": None, "values": [top1]}
        return {"operator": operator, "seeds": 1, "params": macs // 10, "macs": macs, "top1": score, "top5": score}

    rates = {"batch": 1, "images_per_s": {"conv": 100.0, "hetconv(part=4)": 80.0}}
    content = {
        "command": "python -m benchmarks.classification DIR", "split": "test", "epochs": 3,
        "machine": {"device": "cpu", "name": "here", "threads": 1},
        "rows": [row("conv", 0.8, 900), row("hetconv(part=4)", 0.7, 300), row("sic", 0.6, 400)],
        "speed": {"clock": "cpu", "layout": "channels_last", "forward": rates, "train": rates},
    }  # fmt: skip
    results = Results(classification={"classification_cifar10": content})
    text = guide_page(results)
    assert "none of 2 reaches the dense network's top-1 of 0.800" in text
    assert "The best for their MACs: `hetconv(part=4)` 0.700 at 33 % of the MACs." in text
    text = BLOCKS["classification"](results)
    assert "| `hetconv(part=4)` | 80 | 0.80 | 80 | 0.80 |" in text  # fewer MACs and slower: it stands there


def test_the_kernels_benchmark_gets_its_section():
    rows = [
        {
            "operator": "sic",
            "layer": layer,
            "speedup": gain,
            "best_peer": "OpenVINO",
            "ms": {"ours": 1.0, "OpenVINO": gain, "channels_last": 9.0},
        }
        for layer, gain in {"a": 2.0, "b": 0.5, "c": 8.0}.items()
    ]
    content = {
        "command": "python -m benchmarks.cpu_kernels",
        "machine": {"device": "cpu", "name": "here"},
        "rows": rows,
    }
    results = Results(kernels={"cpu_kernels": content})
    text = BLOCKS["kernels"](results)
    assert "| `sic` | 3 | 2.00 | 8.00 (c) | 0.50 (b) | 1 | - | - |" in text
    assert "Geometric mean over all layers: 2.00. Peers: OpenVINO, channels_last." in text
    assert "###" not in text
    assert (
        "`sic`" in guide_page(results).partition("**Time against the dense layer**")[2].partition("\n")[0]
    )  # that is not measured
    line = "faster than the best other runtime on 2 of 3 layers, best 8.00x (c), worst 0.50x (b)"
    assert line in operator_page("sic", results)


def test_the_example_alone_gets_the_section_too():
    """A folder in which only the Halide example was measured had no section at all."""
    row = {
        "operator": "halide", "layer": "Halide's example", "speedup": 1.5, "best_peer": "OpenVINO", "macs": 1e9,
        "ms": {"ours": 10.0, "OpenVINO": 15.0},
    }  # fmt: skip
    content = {
        "command": "python -m benchmarks.cpu_kernels --example",
        "machine": {"device": "cpu", "name": "here"},
        "peaks": {"gflops": 400.0},
        "rows": [row],
    }
    text = BLOCKS["kernels"](Results(kernels={"cpu_kernels_example": content}))
    assert "`halide`: 50% of the peak flops of one thread, 1.50 times as fast as OpenVINO." in text
    assert "`cpu_kernels_example.json`" in text
    assert "geometric mean" not in text
    assert BLOCKS["kernels"](Results(kernels={})) == ""


def test_two_kinds_of_machines_stand_side_by_side_and_are_not_mixed():
    def measured(gain, **about):
        row = {"operator": "sic", "layer": "a", "speedup": gain, "best_peer": "X", "ms": {"ours": 1.0, "X": gain}}
        return {"command": "python -m x", "machine": {"name": "here", "isa": "AVX512"} | about, "rows": [row]}

    masked = measured(1.5, isa="AVX2", max_isa="avx2")
    text = BLOCKS["kernels"](Results(kernels={"first": measured(2.0), "second": masked}))
    assert text.count("## Single layers") == 1
    assert "| geometric mean | here (AVX512) | here (AVX2, the rest masked off) |" in text
    assert "| `sic` | 2.00 | 1.50 |" in text
    assert "| all layers | 2.00 | 1.50 |\n| layers measured | 1 | 1 |" in text
    first, second = text.split("### here (AVX512)")[1].split("### here (AVX2, the rest masked off)")
    assert "all layers: 2.00" in first
    assert "all layers: 1.50" in second
    assert "ONNX Runtime cannot be told" not in first
    assert "ONNX Runtime cannot be told" in second


def test_the_cost_models_choices_worst_first():
    def row(layer, share):
        choice = dict.fromkeys(("calibrated", "neutral", "before"), "direct 4,64,16")
        return {"layer": layer, "best": "direct", "choice": choice, "calibrated": share, "neutral": 0.5, "before": 1.0}

    content = {"command": "python -m x", "machine": {"name": "here"}, "rows": [row("a", 1.0), row("b", 0.9)]}
    text = BLOCKS["tiles"](Results(tiles={"cpu_tiles": content}))
    assert text.index("| b | direct | direct 4,64,16 | 0.90 | 0.50 | 1.00 |") < text.index("| a | direct |")
    assert "At least 97% of the best, of 2 layers: calibrated 1, neutral speeds 0, constants before 2." in text


def test_choices_name_every_loss_below_the_limit():
    def row(operator, place, ratio):
        return {
            "operator": operator, "place": place, "ratio": ratio, "low": ratio, "high": ratio, "chosen": "fused",
            "peer": "openvino", "commit": "abc",
        }  # fmt: skip

    rows = [row("network", "timm:x", 1.5), row("sic", "a", 0.9), row("sic", "b", 1.6), row("conv", "a", 1.0)]
    content = {"rows": rows, "machine": {"device": "cpu", "name": "here"}}
    text = BLOCKS["choices"](Results(choices={"choices": content}))
    assert "| `timm:x` | fused | openvino | 1.50 | 1.50 to 1.50 |" in text
    assert "| `sic` | 2 | 1.20 | 1.60 | 0.90 |" in text
    lost = "Below 0.97: `sic` at a 0.9000 (0.900 to 0.900). Beyond two standard errors: 1."
    assert f"3 layers, geometric mean 1.13. {lost}" in text


def test_the_default_budget_is_rendered_once_it_is_measured():
    assert "Not measured on this commit yet" in BLOCKS["budget"](Results())
    row = {
        "network": "timm:x", "dtype": "float32", "threads": 2, "seconds": 88.4, "chosen": "fused", "missed": "",
        "peer": "openvino", "ratio": 1.25, "low": 1.2, "high": 1.3, "ms": 10.0,
    }  # fmt: skip
    content = {"command": "python -m x", "machine": {"name": "here"}, "cold": True, "rows": [row]}
    text = BLOCKS["budget"](Results(budgets={"default_budget": content}))
    assert "| `timm:x` | float32, 2 | 88 | none | fused | 10 | 1.250 (openvino) |" in text
    assert "On here. A process a row, as a user calls it; no kernel was compiled before. 0 of 1 rows" in text
    assert "0 calls took longer than the budget of 90 s" in text


def test_the_way_from_photographs_to_masks_is_rendered(tmp_path):
    assert BLOCKS["photographs"](Results()) == ""
    times = {name: {"s": 12.34, "cpu_s": 5.67} for name in ("train", "eval", "predict", "export", "infer.py")}
    row = {
        "set": "steel", "load": 4.2, "recipe": "wafer", "steps": 9, "pictures": 20,
        "pictures_s": 1.0, "defects": 3, "dice": 0.25,
        "classes": ["pit", "scratch"], "pixels": 4000, "pixels_differ": 2, "times": times,
    }  # fmt: skip
    content = {"command": "python -m x", "machine": {"name": "here"}, "rows": [row]}
    (tmp_path / "photographs.json").write_text(json.dumps(content), encoding="utf-8")
    text = BLOCKS["photographs"](Results.read(tmp_path))
    assert f"| steel | 20 |{' 5.7 (12.3) |' * 5}" in text
    assert "| steel | `wafer` | 9 | 0.250 | 3 | pit, scratch | 2 of 4,000 |" in text
    assert "load up to 4.2" in text


def test_machines_of_two_kinds_stand_in_two_tables():
    def entry(name, ours):
        times = {"m, fused": {"median_ms": ours}, "m, openvino": {"median_ms": 2.0}}
        return {
            "model": "m", "size": 224, "batch": 1, "threads": 1, "clock": "wall", "command": "c", "times": times,
            "machine": {"name": name, "threads": 1},
        }  # fmt: skip

    text = BLOCKS["engines"](Results(engines={"fused_engine": [entry("A", 1.0), entry("B", 4.0)]}))
    first, second = text.split("each other engine, B")
    assert "each other engine, A" in first
    assert "2.00 (openvino)" in first
    assert "0.50 (openvino)" in second


def test_a_block_without_its_end_is_an_error():
    with pytest.raises(ValueError, match="has no <!-- /budget -->"):
        filled("<!-- budget -->\ntext\n", Results())


def test_front():
    assert front([(10, 0.9), (5, 0.8), (5, 0.7), (7, 0.8), (1, 0.1)]) == [True, True, False, False, True]
    assert front([(5, 0.8), (5, 0.8)]) == [True, True]


def test_operator_of():
    assert operator_of("leanconv:unet?base=8&conv=splconv(alpha=0.5, dilated=False)&part=encoder") == "splconv"
    assert operator_of("hetconv(part=4), optimised") == "hetconv"
    assert operator_of("conv, optimised") == "conv"
    assert operator_of("UNet of somebody") == ""


def test_starts_of_the_gate_are_rendered_with_their_spread():
    run = {"reference": "leanconv:x?conv=spconv", "operator": "spconv", "steps": 200}
    moved = {"start": {"a": 0.01, "b": 0.03}, "end": {"a": 0.1, "b": 0.3}}
    runs = [
        {**run, "start": "quiet", "loss": 1.5, "gate": moved}, {**run, "start": "quiet", "loss": 1.6},
        {**run, "start": "full", "loss": 2.2},
    ]  # fmt: skip
    lines = list(lines_about("spconv", Results(gates={"gate": {"runs": runs, "layers": []}})))
    assert lines == [
        "- `leanconv:x`, training loss after 200 steps: quiet start 1.55 (1.50 to 1.60), mean of 2 seeds; "
        "usual weights 2.20, one seed (`gate.json`)",
        "- `leanconv:x`, mean distance of the gates from one half, before and after 200 steps: "
        "quiet start 0.020 and 0.200 (`gate.json`)",
    ]
