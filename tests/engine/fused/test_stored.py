"""A stored program computes what the tuned one did; foreign and hostile files are refused."""

import json

import pytest
import torch
from torch import nn

from leanconv.engine.fused.candidate import FUSED
from leanconv.engine.fused.ir.saved import from_data, to_data
from leanconv.engine.fused.stored import open_program
from leanconv.engine.workbench import Workbench
from leanconv.errors import BadInput
from leanconv.models import build


class Mixed(nn.Module):
    """Operators without a node of their own stay calls, and sizes are computed from the input's."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x):
        y = self.conv(x).cumsum(3)
        return y.view(x.shape[0], 4, 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape[0], 8, *x.shape[2:]).erf()


MODELS = {
    "unet": lambda: build("unet", base=4, levels=2),
    "splconv": lambda: build("unet", base=4, levels=2, conv="splconv(alpha=0.5)"),
    "mixed": Mixed,
}


@pytest.fixture
def stored(tmp_path, request):
    torch.manual_seed(0)
    model = MODELS[getattr(request, "param", "unet")]().eval()
    x = torch.rand(1, 3, 32, 48)
    form = FUSED.prepare(Workbench(model, (x,), {}, torch.get_num_threads()), None)
    form.store(tmp_path)
    return model, x, form, tmp_path


@pytest.mark.parametrize("stored", MODELS, indirect=True)
def test_it_computes_the_same(stored):
    model, x, form, folder = stored
    again = open_program(folder, x.shape)
    with torch.no_grad():
        torch.testing.assert_close(again(x), form(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(again(x), model(x), rtol=1e-4, atol=1e-4)
        assert again(x).is_contiguous() == model(x).is_contiguous()
        other = torch.rand(2, 3, 64, 32)
        torch.testing.assert_close(again(other), model(other), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("nodes", []),
        ("order", [0, 10**6]),
        ("outputs", [-1]),
        ("outputs", [0, 0]),
        ("by", ["kernel"]),
        ("nodes", [{"op": {"Popen": {"args": "true"}}, "inputs": [], "shape": [1], "dtype": "float32", "name": "a"}]),
    ],
)
def test_other_files_are_refused(stored, key, value):
    _, x, _, folder = stored
    data = json.loads((folder / "graph.json").read_text())
    (folder / "graph.json").write_text(json.dumps({**data, key: value}))
    with pytest.raises(BadInput):
        open_program(folder, x.shape)
    (folder / "graph.safetensors").write_bytes(b"nothing")
    with pytest.raises(BadInput):
        open_program(folder, x.shape)


@pytest.mark.parametrize("name", ["from_file.default", "add_.Tensor", "__class__.x"])
def test_an_operator_that_reads_files_or_writes_its_inputs_is_refused(name):
    op = {"Call": {"target": {"aten": name}, "args": {"tuple": []}, "kwargs": {"dict": {}}}}
    node = {"op": op, "inputs": [], "shape": [1], "dtype": "float32", "name": "a"}
    with pytest.raises(BadInput):
        from_data({"nodes": [node], "inputs": [], "order": [0], "outputs": [0]}, {})


def test_to_data_shares_tensors():
    from leanconv.engine.fused.ir.graph import Graph
    from leanconv.engine.fused.ir.kinds.values import constant

    held = torch.rand(2, 3)
    nodes = [constant(held, "a"), constant(held, "b")]
    data, tensors = to_data(Graph(nodes, [], nodes))
    assert len(tensors) == 1
    back = from_data(json.loads(json.dumps(data)), tensors)
    assert [torch.equal(node.op.value, held) for node in back.nodes] == [True, True]
