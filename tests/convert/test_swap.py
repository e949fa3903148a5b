"""Plan as a list and as a file, the file damaged in every way we could think of."""

import json

import pytest
import torch
from torch import nn

from leanconv.convert import Plan, Swap, plan
from leanconv.errors import BadInput


@pytest.fixture
def found():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(8, 8, 3, padding="same", dilation=3),
        nn.Conv2d(8, 6, 3),
        nn.Conv3d(1, 1, 1),
        nn.Flatten(),
        nn.LazyLinear(2),
    )[:3]
    return plan(model, torch.randn(1, 3, 12, 12), to="hetconv(part=4)")


def test_round_trip(found, tmp_path):
    path = found.save(tmp_path / "deep" / "plan.json")
    assert Plan.load(path) == found
    assert hash(Plan.load(path)) == hash(found)
    stored = json.loads(path.read_text())
    assert stored == json.loads(json.dumps(found.to_dict()))
    assert stored["total"]["before"]["macs"] == found.before.macs


def test_list_like(found):
    assert len(found) == 3
    assert isinstance(found[:2], Plan)
    assert found[1] in found
    assert Plan(s for s in found if s.to) == Plan(found.swapped)
    assert repr(found) == "Plan(1 swapped, 2 kept)"
    with pytest.raises(AttributeError):
        found[0].to = "conv"
    with pytest.raises(BadInput, match="'0' 2 times"):
        Plan([found[0], found[0]])


def _edit(**changes):
    def change(value):
        value["layers"][1].update(changes)

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_edit(name=3), "name and reason must be text"), (_edit(calls=-1), "a count"), (_edit(calls=True), "a count"),
        (_edit(to="hetconv(part=__import__('os'))"), "plain value"), (_edit(to=["hetconv"]), "not readable"),
        (_edit(to="hetconv(" + "(" * 500), "not readable"), (_edit(to="nothing"), "unknown operator"),
        (_edit(to=None, reason="because"), "unknown reason"), (_edit(extra=1), "exactly the keys"),
        (_edit(before={"macs": 1}), "a cost has exactly"), (_edit(after={**dict.fromkeys(
            ("macs", "executed_macs", "params", "norm_params", "bytes"), 1.5)}), "a cost has exactly"),
        (_edit(spec={"c": 1}), "exactly the fields"), (_edit(spec=[]), "exactly the fields"),
        (lambda v: v["layers"][1]["spec"].update(c=float("nan")), "whole numbers"),
        (lambda v: v["layers"][1]["spec"].update(c=0), "at least 1"),
        (lambda v: v["layers"][1]["spec"].update(kernel="3"), "layer 1"),
        (lambda v: v["layers"][1]["spec"].update(kernel=[[3, 3], 3]), "whole numbers"),
        (lambda v: v["layers"][1]["spec"].update(padding=[1, 2, 3]), "one number or two"),
        (lambda v: v.update(format="leanconv plan 2"), "not a plan of this version"),
        (lambda v: v.update(layers={}), "not a plan"), (lambda v: v["layers"].append(v["layers"][0]), "2 times"),
        (lambda v: v["layers"].append(None), "layer 3"),
    ],
)  # fmt: skip
def test_a_file_that_was_tampered_with(found, tmp_path, change, text):
    value = json.loads(json.dumps(found.to_dict()))
    change(value)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(value))
    with pytest.raises(BadInput, match=text):
        Plan.load(path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"format": ' + b"9" * 5000 + b"}"]
)
def test_a_file_that_is_no_plan(tmp_path, content):
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"plan\.json"):
        Plan.load(path)
    with pytest.raises(BadInput, match="cannot be read"):
        Plan.load(tmp_path / "none.json")


def test_a_swap_by_hand_needs_only_its_name():
    swap = Swap("layer1", "hetconv", None, None, "")
    assert str(swap) == "swap layer1: hetconv"
    assert "layer1" in str(Plan([swap]))
