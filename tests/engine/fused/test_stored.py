"""A stored program computes what the tuned one did; foreign and hostile files are refused."""

import json

import pytest
import torch
from torch import nn

from leanconv.engine.fused.candidate import FUSED
from leanconv.engine.fused.ir.graph import Graph, Node
from leanconv.engine.fused.ir.kinds.integer import Integer
from leanconv.engine.fused.ir.kinds.values import Input
from leanconv.engine.fused.ir.saved import from_data, to_data
from leanconv.engine.fused.stored import open_program
from leanconv.engine.workbench import Workbench
from leanconv.errors import BadInput
from leanconv.models import build
from leanconv.ops.forms import Stencil
from leanconv.ops.gated_sum import GatedSum
from leanconv.ops.grouped import Grouped
from leanconv.ops.separable import Separable
from leanconv.ops.upsample import Upsample
from tests.kernels.quantized_cases import quantized_form, weights_of


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


def _integer_graph(form, sizes, seed=0):
    """A graph of one integer node over inputs of these sizes, as data and tensors."""
    generator = torch.Generator().manual_seed(seed)
    quantized = quantized_form(form, generator)
    given = [Node(Input(i), [], size, torch.float32, f"x{i}") for i, size in enumerate(sizes)]
    n, _, h, w = sizes[0]
    size = (n, form.width, *form.size(h, w))
    node = Node(Integer(quantized, tuple(weights_of(form, generator))), given, size, torch.uint8, "y")
    return to_data(Graph([node], given, [node]))


INTEGERS = {
    "1x1": (Separable((8,), (), 16, residual=True), [(1, 8, 5, 6), (1, 16, 5, 6)]),
    "gate": (
        Separable((8,), ((Stencil(0, 8, (3, 3), padding=(1, 1, 1, 1)),),), 16, gate=True),
        [(1, 8, 5, 6), (1, 8, 1, 1)],
    ),
    "grouped": (Grouped((8,), 16, (3, 3), groups=2, pointwise=True, padding=(1, 1, 1, 1), project=4), [(1, 8, 5, 6)]),
    "upsample": (Upsample((8,), 16, 2, True), [(1, 8, 5, 6)]),
    "gated sum": (GatedSum((8,), 16, True, True), [(1, 16, 5, 6), (1, 16, 1, 1), (1, 8, 5, 6), (1, 8, 1, 1)]),
}


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_of_other_sizes_are_refused(name):
    """The kernels in C take sizes from the form: longer weights, or smaller maps, would lead them beyond the memory."""
    form, sizes = INTEGERS[name]
    data, tensors = _integer_graph(form, sizes) if name != "gated sum" else _integer_graph(form, sizes[2:] + sizes[:2])
    if name == "gated sum":
        data["nodes"][-1]["inputs"] = [2, 3, 0, 1]
    from_data(data, tensors)
    for key, held in tensors.items():
        for wrong in (torch.cat([held, held]), held[:-1], held.to(torch.int64)):
            with pytest.raises(BadInput, match="has the weights"):
                from_data(data, {**tensors, key: wrong})
    for index, node in enumerate(data["nodes"][:-1]):
        for axis, size in [(1, 3), (2, 2)]:
            shape = list(node["shape"])
            shape[axis] = size
            nodes = [*data["nodes"][:index], {**node, "shape": shape}, *data["nodes"][index + 1 :]]
            with pytest.raises(BadInput, match="no graph of this version"):
                from_data({**data, "nodes": nodes}, tensors)


def test_to_data_shares_tensors():
    from leanconv.engine.fused.ir.kinds.values import constant

    held = torch.rand(2, 3)
    nodes = [constant(held, "a"), constant(held, "b")]
    data, tensors = to_data(Graph(nodes, [], nodes))
    assert len(tensors) == 1
    back = from_data(json.loads(json.dumps(data)), tensors)
    assert [torch.equal(node.op.value, held) for node in back.nodes] == [True, True]
