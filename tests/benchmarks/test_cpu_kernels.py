"""The kernels' table: where an operator stands, and rows that stay until they are measured again."""

import json

from benchmarks import cpu_kernels
from benchmarks.cpu_kernels import DENSE, DEPTHWISE, OPERATORS, mean_of, places


def test_operators_stand_where_they_may():
    assert [*places("splconv", [""])] == [*DENSE]
    assert [*places("xsepconv", [""])] == [*DEPTHWISE]
    assert places("inception_dw", ["96 56"])["InceptionNeXt 96 56"].groups == 96
    assert sum(len(places(operator, [""])) for operator in OPERATORS) == 7 * len(DENSE) + 2 * len(DEPTHWISE) + 1
    (example,) = places("depthwise_separable", ["Halide"], 3).values()
    assert (example.n, example.c, example.o, example.h, example.kernel) == (4, 32, 16, 112, (3, 3))
    assert {spec.n for spec in places("splconv", [""], 3).values()} == {3}


def test_rows_stay_until_they_are_measured_again(monkeypatch, tmp_path, capsys):
    out, done = tmp_path / "kernels.json", []

    def measured(operator, place, *_):
        done.append((operator, place))
        times = {"ours": 1.0, "OpenVINO": 2.0 + len(done)}
        return {
            "operator": operator,
            "layer": place,
            "ms": times,
            "speedup": times["OpenVINO"],
            "best_peer": "OpenVINO",
            "of_floor": 0.5,
            "bound_by": "compute",
        }

    monkeypatch.setattr(cpu_kernels, "measured", measured)
    monkeypatch.setattr(cpu_kernels, "keep_freed_memory", lambda: None)

    def run(commit, *words):
        monkeypatch.setattr(cpu_kernels, "commit", lambda: commit)
        monkeypatch.setattr("sys.argv", ["cpu_kernels", "--out", str(out), *words])
        cpu_kernels.main()
        return json.loads(out.read_text())["rows"]

    first = run("one", "--operators", "sic", "hetconv", "--layers", "U-Net b", "VGG 64")
    assert [(row["operator"], row["layer"]) for row in first] == [
        ("hetconv", "U-Net b 512→512 16"),
        ("hetconv", "VGG 64→64 32"),
        ("sic", "U-Net b 512→512 16"),
        ("sic", "VGG 64→64 32"),
    ]
    assert run("one", "--resume", "--operators", "sic", "--layers", "VGG 64") == first
    assert len(done) == 4
    second = run("two", "--resume", "--operators", "sic", "--layers", "VGG 64")
    assert second[:3] == first[:3]
    assert second[3]["commit"] == "two"
    assert second[3]["speedup"] == 7.0
    real = cpu_kernels.describe
    monkeypatch.setattr(cpu_kernels, "describe", lambda device: real(device) | {"name": "another"})
    assert len(run("two", "--operators", "sic", "--layers", "VGG 64")) == 1
    assert run("two", "--batch", "8", "--operators", "sic", "--layers", "VGG 64")[0]["speedup"] == 9.0


def test_means_are_geometric():
    rows = [{"speedup": speedup, "of_floor": share} for speedup, share in ((1.0, 0.5), (4.0, 0.9), (2.0, 0.7))]
    assert mean_of(rows) == "2.00x the best peer (worst 1.00x); median 70% of the floor"
