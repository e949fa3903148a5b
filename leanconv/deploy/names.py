"""Names of inputs and outputs: one for each tensor, no two alike, and the same ones in the file as in the report."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import GetAttrKey, MappingKey, SequenceKey, tree_flatten_with_path

from leanconv.deploy.calls import Frame


def names_of(value: Any, single: str, *, prefix: str, taken: Iterable[str] = ()) -> list[str]:
    """Names for the tensors of a call or an answer: keys where it is a dict, `single` for one, numbers for several.

    Keys of nested dicts are joined: `{"out": {"a": ...}}` gives `out_a`. What is no letter, digit or underscore becomes
    an underscore; of names that are alike then, or that are `taken`, the later ones get a number.
    """
    tensors = Frame.split(value)[0]
    keys = _keys(value)
    if keys is None:
        keys = [single] if len(tensors) == 1 else [f"{prefix}{i}" for i in range(len(tensors))]
    clean = [re.sub(r"\W", "_", key) or f"{prefix}{i}" for i, key in enumerate(keys)]
    used, names = set(taken), [""] * len(clean)
    # A key that needs no cleaning keeps its name, wherever it stands.
    for i in sorted(range(len(clean)), key=lambda i: clean[i] != keys[i]):
        names[i] = _free(clean[i], used)
        used.add(names[i])
    return names


def _free(name: str, used: set[str]) -> str:
    return next(each for each in (name, *(f"{name}_{i}" for i in range(1, len(used) + 2))) if each not in used)


def _keys(value: Any) -> list[str] | None:
    """The path of each tensor in a dict or a named tuple; None where `value` is neither."""
    try:
        leaves = tree_flatten_with_path(value)[0]
    except ValueError:  # a class that is registered without the keys of its parts
        return None
    paths = [path for path, leaf in leaves if isinstance(leaf, Tensor)]
    if not all(path and isinstance(path[0], MappingKey | GetAttrKey) for path in paths):
        return None
    return ["_".join(_word(part) for part in path) for path in paths]


def _word(part: Any) -> str:
    return str(part.name if isinstance(part, GetAttrKey) else part.idx if isinstance(part, SequenceKey) else part.key)


def name_onnx(graph: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Name the inputs and outputs of an `onnx_ir.Graph`; a value inside that has one of these names gets another.

    In ONNX a value has one name: an output that is an input, a weight, or another output as well becomes a copy.
    """
    import onnx_ir

    taken = {*graph.inputs, *graph.initializers.values()}
    for i, value in enumerate(graph.outputs):
        if value in taken or value.producer() is None:
            node = onnx_ir.node("Identity", [value])
            node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
            graph.append(node)
            graph.outputs[i] = node.outputs[0]
        taken.add(graph.outputs[i])
    ports = dict(zip((*graph.inputs, *graph.outputs), (*inputs, *outputs), strict=True))
    graphs = [graph, *graph.subgraphs()]
    values = [v for each in graphs for v in (*each.inputs, *each.initializers.values())]
    values += [v for node in graph.all_nodes() for v in node.outputs]
    used = {value.name for value in values} | set(ports.values())
    # Ports, too: two of them may be about to change names with each other.
    for value in [value for value in values if value.name in set(ports.values())]:
        value.name = _free(value.name, used)
        used.add(value.name)
    for value, name in ports.items():
        value.name = name


def name_openvino(model: Any, inputs: Mapping[str, str], outputs: Sequence[str]) -> None:
    """Name the ports of an `openvino.Model`; `inputs` gives for the names that its inputs have those they get.

    Here a tensor may have several names, and whoever shares it shares them: an output that is an input, or another
    output as well, becomes a tensor of its own.
    """
    from openvino import opset8

    taken = {port.get_node().get_friendly_name() for port in model.inputs}
    for result in model.get_results():
        source = result.input_value(0)
        place = f"{source.get_node().get_friendly_name()}:{source.get_index()}"
        if source.get_node().get_friendly_name() in taken or place in taken:
            # A reshape to its own shape costs nothing: a compiled model leaves it out and keeps the names.
            same = opset8.reshape(source, opset8.shape_of(source), False)
            result.input(0).replace_source_output(same.output(0))
        taken.add(place)
    model.validate_nodes_and_infer_types()
    names = [next(new for old, new in inputs.items() if old in port.get_names()) for port in model.inputs]
    for node in model.get_ops():
        for port in node.outputs():
            tensor = port.get_tensor()
            tensor.set_names(tensor.get_names() - {*inputs.values(), *outputs})
    for port, name in zip((*model.inputs, *model.outputs), (*names, *outputs), strict=True):
        port.get_tensor().set_names({name})
