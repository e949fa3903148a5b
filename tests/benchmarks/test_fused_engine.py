"""The table of whole networks: who leaves the rounds, which ratio stands where, what is measured again."""

import argparse

import pytest
import torch

from benchmarks import results_of
from benchmarks.fused_engine import PICTURES, SETS, Row, built, rows_of, summary
from leanconv.measure.device import describe, label
from leanconv.nn import HetConv2d

LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")


def entry(row, times, **more):
    made = {"model": row.model, "against": row.against, "size": row.size, "batch": row.batch, "threads": row.threads}
    return made | {"clock": row.clock, "times": {name: {"median_ms": ms} for name, ms in times.items()}} | more


def test_summary_is_against_the_best_peer_and_the_dense_networks_best_engine():
    row = Row("lean", "dense", "256")
    times = {"lean, fused": 10.0, "lean, x": 15.0, "lean, y": 14.0, "dense, fused": 42.0, "dense, x": 41.0}
    two = Row("lean", "dense", "256", threads=2)
    halved = {name: ms / 1.9 for name, ms in times.items()}
    found = summary(
        [entry(row, times, floors={"lean": {"ms": 8.0, "compute_ms": 6.0}}), entry(two, halved)]
    ).splitlines()
    assert found[-2].split() == [
        "lean",
        "256",
        "1",
        "1",
        "float32",
        "10.00",
        "1.40",
        "y",
        "4.10",
        "x",
        "80%",
        "60%",
        "-",
        "wall",
    ]
    assert found[-1].split()[-4:] == ["-", "-", "1.90", "wall"]


def test_a_row_is_measured_again_only_where_it_is_the_same_call():
    row = Row("lean", "dense", "256")
    assert row.same(entry(row, {}) | {"size": 256})  # as the first results have it
    assert not row.same(entry(Row("lean", "dense", "256", batch=8), {}))
    assert not row.same(entry(Row("lean", "dense", "256", threads=2), {}))


def test_rows_of_two_machines_stand_beside_each_other():
    row, here = Row("lean", "dense", "256"), describe("cpu")
    assert row.same(entry(row, {}, machine=here | {"threads": 7}))
    assert not row.same(entry(row, {}, machine=here | {"name": "another"}))
    assert not row.same(entry(row, {}, machine=here | {"isa": "NEON"}))


@pytest.mark.parametrize(
    ("isa", "amx", "mask", "name"),
    [
        ("AVX512", False, "", "x.json"),
        ("AVX512", True, "", "x_amx.json"),
        ("AVX2", False, "", "x_avx2.json"),
        ("AVX512", False, "avx2", "x_avx2_masked.json"),
        ("AVX2", False, "avx2", "x_avx2_masked.json"),
    ],
    ids=["all", "tiles", "a CPU with AVX2 alone", "masked", "told what it is"],
)
def test_each_set_of_instructions_has_its_own_file(isa, amx, mask, name, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: isa)
    monkeypatch.setattr("leanconv.kernels.has_amx", lambda: amx)
    monkeypatch.setattr("leanconv.kernels.mask", lambda: mask)
    for limit in LIMITS:
        monkeypatch.delenv(limit, raising=False)
    assert results_of("x").name == name


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_of_the_peers_alone_is_a_mask_too(limit, monkeypatch):
    """PyTorch then calls a CPU with AVX-512 one with AVX2."""
    for each in LIMITS:
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(limit, "AVX2")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr("leanconv.kernels.mask", lambda: "")
    monkeypatch.setattr("leanconv.kernels.has_amx", lambda: False)
    assert results_of("x").name == "x_avx2_masked.json"


def test_sets_take_the_clock_and_the_threads_that_were_asked_for():
    given = argparse.Namespace(
        set=["issue"],
        models=["m"],
        against="",
        size="200x136",
        batch=2,
        threads=2,
        dtype="float32",
        clock="process",
    )
    rows = rows_of(given)
    assert {row.clock for row in rows} == {"process"}
    assert {row.threads for row in rows} == {2}
    assert rows[-1].input().shape == (2, 3, 200, 136)
    assert len({row for rows in SETS.values() for row in rows}) == sum(map(len, SETS.values()))


def test_a_model_may_be_swapped_by_its_reference():
    torch.manual_seed(0)
    model = built("leanconv:resnet20_cifar to hetconv(part=4)")
    assert sum(isinstance(module, HetConv2d) for module in model.modules()) == 18


@pytest.mark.parametrize("size", ["256", "200x136"])
def test_sizes(size):
    height, width = (int(each) for each in (size.split("x") * 2)[:2])
    assert Row("m", size=size).input().shape[2:] == (height, width)


def test_int8_is_calibrated_on_pictures_of_the_rows_size():
    assert Row("lean", size="200x136").type() == {}
    assert Row("lean", dtype="bfloat16").type() == {"dtype": torch.bfloat16}
    made = Row("lean", size="200x136", dtype="int8", batch=2).type()
    assert made["dtype"] is torch.int8
    assert made["data"].shape == (PICTURES, 3, 200, 136)
    assert {row.dtype for row in SETS["int8"]} == {"int8"}


@pytest.mark.parametrize(
    ("amx", "mask", "name"), [(False, "", "AVX512"), (True, "", "AVX512, AMX"), (True, "avx2", "AVX512")]
)
def test_a_machine_is_named_with_its_matrix_tiles(amx, mask, name, monkeypatch):
    """Tables of bfloat16 and int8 of a CPU with AMX are another machine's than those of one with AVX-512 alone."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr("leanconv.measure.device.has_amx", lambda: amx)
    monkeypatch.setattr("leanconv.measure.device.mask", lambda: mask)
    assert describe("cpu")["isa"] == name
    assert f"({name}{', kernels limited to avx2' * bool(mask)})" in label("cpu")
