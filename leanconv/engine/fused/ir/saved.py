"""A graph as text and tensors, without pickle: nothing but the kinds of nodes and aten operators is read back."""

import operator
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from leanconv.engine.fused.ir.graph import Graph, Node, Op
from leanconv.engine.fused.ir.kinds.block import Block
from leanconv.engine.fused.ir.kinds.call import Call, Ref
from leanconv.engine.fused.ir.kinds.data_movement import Cat, Pad, Shuffle, Slice
from leanconv.engine.fused.ir.kinds.elementwise import Activation, Add, Affine, Cast, Scale
from leanconv.engine.fused.ir.kinds.gated_sum import GatedSum
from leanconv.engine.fused.ir.kinds.integer import Dequantize, Integer, Quantize
from leanconv.engine.fused.ir.kinds.linear import Linear
from leanconv.engine.fused.ir.kinds.max_pool import MaxPool
from leanconv.engine.fused.ir.kinds.reductions import Average, Sum
from leanconv.engine.fused.ir.kinds.upsample import Upsample
from leanconv.engine.fused.ir.kinds.values import AverageOf, Constant, Input, Length, Size
from leanconv.engine.fused.ir.stages import Branch, Branches, Stage
from leanconv.errors import BadInput
from leanconv.ops import forms, gated_sum, grouped, pool, separable, upsample
from leanconv.ops.quantized import Quantization, Quantized

_IR = (
    Activation, Add, Affine, Average, AverageOf, Block, Branch, Branches, Call, Cast, Cat, Constant, Dequantize,
    GatedSum, Input, Integer, Length, Linear, MaxPool, Pad, Quantize, Ref, Scale, Shuffle, Size, Slice, Stage, Sum,
    Upsample,
)  # fmt: skip
_FORMS = (
    Quantization, Quantized, forms.Stencil, gated_sum.GatedSum, grouped.Grouped, pool.MaxPool, separable.Separable,
    upsample.Upsample,
)  # fmt: skip
_NAMES: dict[type, str] = {kind: kind.__name__ for kind in _IR} | {kind: f"ops.{kind.__name__}" for kind in _FORMS}
_KINDS: dict[str, Any] = {name: kind for kind, name in _NAMES.items()}
_ARITHMETIC = {
    name: getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "truediv", "getitem")
}
_DTYPES = {str(kind).removeprefix("torch."): kind for kind in (torch.float32, torch.float64, torch.bfloat16,
    torch.float16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)}  # fmt: skip


class NotStorable(Exception):
    """The graph has a value that cannot be written as text and tensors."""


def to_data(graph: Graph) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The graph for JSON, and its tensors by name. Raises NotStorable for an operator that is no aten operator."""
    place = {node: i for i, node in enumerate(dict.fromkeys((*graph.inputs, *graph.nodes)))}
    tensors: dict[str, Tensor] = {}
    nodes = [
        {
            "op": _encoded(node.op, tensors),
            "inputs": [place[x] for x in node.inputs],
            "shape": list(node.shape),
            "dtype": _dtype_name(node.dtype),
            "name": node.name,
        }
        for node in place
    ]
    data = {
        "nodes": nodes,
        "inputs": [place[node] for node in graph.inputs],
        "order": [place[node] for node in graph.nodes],
        "outputs": [place[node] for node in graph.outputs],
    }
    return data, tensors


def from_data(data: Any, tensors: Mapping[str, Tensor]) -> Graph:
    """The graph that `to_data` gave. Raises BadInput for anything else."""
    try:
        return _graph(data, tensors)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise BadInput(f"no graph of this version: {type(error).__name__}: {error}") from error


def _graph(data: Any, tensors: Mapping[str, Tensor]) -> Graph:
    nodes: list[Node] = []
    for each in data["nodes"]:
        op = _decoded(each["op"], tensors)
        if not isinstance(op, Op):
            raise ValueError(f"{type(op).__name__} is no node")
        inputs = [nodes[_place(i, len(nodes))] for i in each["inputs"]]
        shape = tuple(map(int, each["shape"]))
        nodes.append(Node(op, inputs, shape, _DTYPES[each["dtype"]], str(each["name"])))
    for node in nodes:
        if why := node.op.verify(node):
            raise ValueError(f"{node.name}: {why}")
    order, inputs, outputs = (
        [nodes[_place(i, len(nodes))] for i in data[key]] for key in ("order", "inputs", "outputs")
    )
    return Graph(order, inputs, outputs)


def _place(index: Any, count: int) -> int:
    if type(index) is not int or not 0 <= index < count:
        raise IndexError(f"node {index!r} of {count}")
    return index


def _encoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        same = next((name for name, held in tensors.items() if held is value), None)
        if same is None:
            tensors[same := str(len(tensors))] = value
        return {"tensor": same}
    if type(value) in _NAMES:
        names = [each.name for each in fields(value)] if is_dataclass(value) else value._fields
        return {_NAMES[type(value)]: {name: _encoded(getattr(value, name), tensors) for name in names}}
    if isinstance(value, list | tuple):
        return {"list" if isinstance(value, list) else "tuple": [_encoded(each, tensors) for each in value]}
    if isinstance(value, dict):
        return {"dict": {str(key): _encoded(each, tensors) for key, each in value.items()}}
    if isinstance(value, torch.dtype):
        return {"dtype": _dtype_name(value)}
    return _encoded_function(value)


def _encoded_function(value: Any) -> dict[str, str]:
    if isinstance(value, torch._ops.OpOverload) and value.namespace == "aten":
        return {"aten": f"{value._schema.name.removeprefix('aten::')}.{value._overloadname}"}
    for name, function in _ARITHMETIC.items():
        if value is function:
            return {"operator": name}
    raise NotStorable(f"{value!r:.100}")


def _dtype_name(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise NotStorable(name)
    return name


def _decoded(data: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(data, dict):
        if data is None or isinstance(data, bool | int | float | str):
            return data
        raise TypeError(f"{type(data).__name__} stands for no value")
    ((kind, value),) = data.items()
    match kind:
        case "tensor":
            return tensors[value]
        case "tuple":
            return tuple(_decoded(each, tensors) for each in value)
        case "list":
            return [_decoded(each, tensors) for each in value]
        case "dict":
            return {key: _decoded(each, tensors) for key, each in value.items()}
        case "dtype":
            return _DTYPES[value]
        case "operator":
            return _ARITHMETIC[value]
        case "aten":
            name, _, overload = value.partition(".")
            found = getattr(getattr(torch.ops.aten, name), overload)
            if not isinstance(found, torch._ops.OpOverload) or found._schema.is_mutable or name == "from_file":
                raise ValueError(f"{value} is no operator of a graph")
            return found
    return _KINDS[kind](**{name: _decoded(each, tensors) for name, each in value.items()})
