"""Names of inputs and outputs: what is reported stands in the file, each name once, and leads to its own tensor."""

from collections import namedtuple
from importlib import import_module

import pytest
import torch
from torch import nn

from leanconv.deploy import export
from leanconv.deploy.names import names_of
from leanconv.errors import BadInput, ExportMismatch

onnx = pytest.importorskip("onnx", reason="needs the export extra: onnx")
ort = pytest.importorskip("onnxruntime", reason="needs the export extra: onnxruntime")
openvino = pytest.importorskip("openvino", reason="needs the export extra: openvino")

T = torch.zeros(1)
Pair = namedtuple("Pair", "boxes scores")


class Answers(nn.Module):
    """A small network whose answer is made by a function."""

    def __init__(self, answer):
        super().__init__()
        self.conv, self.answer = nn.Conv2d(3, 4, 3, padding=1), answer
        self.register_buffer("anchors", torch.arange(4.0))

    def forward(self, x, other=None):
        return self.answer(self, torch.relu(self.conv(x)), x if other is None else other)


ANSWERS = {
    "of the graph's own nodes": lambda m, y, x: {"conv2d": y, "relu": y + 1, "mean": (y + 2).mean((2, 3))},
    "of a weight": lambda m, y, x: {"model.conv.weight": y, "model_conv_weight": y + 1, "val_0": y + 2},
    "of an input": lambda m, y, x: {"x": y, "input": y + 1},
    "of each other": lambda m, y, x: {"a.b": y, "a_b": y + 1, "a b": y + 2, "": y + 3, "?": y + 4, 0: y + 5},
    "one tensor twice": lambda m, y, x: {"a": y, "b": y, "c": y.contiguous(), "d": y.detach()},
    "the input": lambda m, y, x: (x, y, x),
    "the input alone": lambda m, y, x: x,
    "a constant": lambda m, y, x: {"y": y, "anchors": m.anchors, "again": m.anchors, "weight": m.conv.weight},
    "nested": lambda m, y, x: {"out": {"a": y, "b": [y + 1, y + 2]}, "out_a": y + 3, "n": 3},
    "python's own words": lambda m, y, x: {"class": y, "größe": y + 1, "a,b": y + 2},
}


def in_the_file(path):
    """Names and answers as somebody else's program sees them: {input: shape}, and a function of named arrays."""
    if path.suffix == ".onnx":
        onnx.checker.check_model(str(path), full_check=True)
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_outputs()]
        return [i.name for i in session.get_inputs()], lambda feed: dict(zip(names, session.run(names, feed)))
    core = openvino.Core()
    model = core.read_model(str(path))
    assert all(len(port.get_names()) == 1 for port in (*model.inputs, *model.outputs))
    ops = [op for op in model.get_ops() if op.get_type_name() != "Result"]  # which shares its tensor's names
    inside = [name for op in ops for port in op.outputs() for name in port.get_names()]
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [port.any_name for port in model.outputs]
    assert all(inside.count(name) == 1 for name in names)

    def run(feed):
        found = compiled(feed)
        return {name: found[compiled.output(name)] for name in names}

    return [port.any_name for port in model.inputs], run


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.parametrize("case", ANSWERS)
def test_every_output_is_found_by_its_reported_name(case, suffix, tmp_path):
    model, x = Answers(ANSWERS[case]).eval(), torch.randn(2, 3, 5, 4)
    made = export(model, {"x": x} if case == "of an input" else x, tmp_path / f"m{suffix}")
    assert len({*made.inputs, *made.outputs}) == len(made.inputs) + len(made.outputs)
    inputs, run = in_the_file(made.path)
    assert inputs == list(made.inputs)
    found = run({made.inputs[0]: x.numpy()})
    assert list(found) == list(made.outputs)
    for have, want in zip(found.values(), torch.utils._pytree.tree_leaves(model(x))):
        torch.testing.assert_close(torch.from_numpy(have), want.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_every_input_is_fed_by_its_reported_name(suffix, tmp_path):
    """Keyword arguments in another order than the model's, one with the name of an output, one that is not read."""

    class Two(Answers):
        def forward(self, relu, output, mask, größe):
            return {"relu": self.conv(relu), "output": self.conv(output) * größe}

    given = {name: torch.randn(2, 3, 4, 4) for name in ("output", "mask", "relu")} | {"größe": torch.rand(2, 1, 1, 1)}
    model = Two(None).eval()
    made = export(model, given, tmp_path / f"m{suffix}")
    assert made.inputs == tuple(given)
    inputs, run = in_the_file(made.path)
    assert inputs == list(made.inputs)
    found = run({name: tensor.numpy() for name, tensor in given.items()})
    assert list(found) == list(made.outputs) == ["relu_1", "output_1"]
    for name, want in zip(made.outputs, model(**given).values()):
        torch.testing.assert_close(torch.from_numpy(found[name]), want.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.parametrize("fault", ["other names", "exchanged"])
def test_the_gate_looks_by_name(suffix, fault, tmp_path, monkeypatch):
    """By place all is well: the names alone are other ones than reported, or lead to each other's tensors."""
    program, runtimes = import_module("leanconv.deploy.program"), import_module("leanconv.deploy.runtimes")
    kind = "onnx" if suffix == ".onnx" else "openvino"
    if fault == "other names":
        name = getattr(program, f"name_{kind}")
        monkeypatch.setattr(program, f"name_{kind}", lambda m, i, outputs: name(m, i, [f"{o}_" for o in outputs]))
    else:
        cls = runtimes.OnnxRuntime if suffix == ".onnx" else runtimes.OpenVino
        by_name = cls.by_name
        monkeypatch.setattr(cls, "by_name", lambda self, feed: dict(zip("ab", reversed(by_name(self, feed).values()))))
    with pytest.raises(ExportMismatch, match="name"):
        export(Answers(lambda m, y, x: {"a": y, "b": y + 1}), torch.randn(1, 3, 4, 4), tmp_path / f"m{suffix}")
    assert not list(tmp_path.iterdir())


def test_a_program_of_torch_reports_the_names_of_its_graph(tmp_path):
    made = export(Answers(lambda m, y, x: {"a": y}), torch.randn(1, 3, 4, 4), tmp_path / "m.pt2")
    program = torch.export.load(str(made.path)).graph_signature
    assert made.inputs == program.user_inputs
    assert made.outputs == program.user_outputs
    with pytest.raises(BadInput, match="cannot give the text 'hi'"):
        export(Answers(lambda m, y, x: {"a": y, "b": "hi"}), torch.randn(1, 3, 4, 4), tmp_path / "n.pt2")


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (T, ["single"]),
        ([T], ["single"]),
        ((T, 1, T), ["p0", "p1"]),
        ({"a": T, "n": 1}, ["a"]),
        ({"a": T, "b": {"c": T, 3: [T]}}, ["a", "b_c", "b_3_0"]),
        (Pair(T, T), ["boxes", "scores"]),
        ((T, {"a": T}), ["p0", "p1"]),
        ({"a-1": T, "a_1": T, "a 1": T, "a_1_1": T}, ["a_1_2", "a_1", "a_1_3", "a_1_1"]),
        ({"taken": T, "\udcff": T, "": T}, ["taken_1", "_", "p2"]),
        ({"": T, "p0": T}, ["p0_1", "p0"]),
    ],
)
def test_names(value, names):
    assert names_of(value, "single", prefix="p", taken=["taken"]) == names
