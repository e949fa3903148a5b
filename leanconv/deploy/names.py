"""Names of inputs and outputs: unique for each tensor, and the same in the file and in the report."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import GetAttrKey, MappingKey, SequenceKey, tree_flatten_with_path

from leanconv.deploy.calls import Frame


def names_of(value: Any, single: str, *, prefix: str, taken: Iterable[str] = ()) -> list[str]:
    """Return names for the tensors of a call or answer: keys of a dict, `single` for one tensor, else numbers.

    Keys of nested dicts are joined: `{"out": {"a": ...}}` becomes `out_a`. Other characters than letters, digits and
    underscores become underscores. A name that is `taken` or already used gets a number.
    """
    tensors = Frame.split(value)[0]
    keys = _keys(value)
    if keys is None:
        keys = [single] if len(tensors) == 1 else [f"{prefix}{i}" for i in range(len(tensors))]
    clean = [re.sub(r"\W", "_", key) or f"{prefix}{i}" for i, key in enumerate(keys)]
    used, names = set(taken), [""] * len(clean)
    # Name the clean keys first: they keep their names, whatever their position.
    for i in sorted(range(len(clean)), key=lambda i: clean[i] != keys[i]):
        names[i] = _free(clean[i], used)
        used.add(names[i])
    return names


def _free(name: str, used: set[str]) -> str:
    return next(each for each in (name, *(f"{name}_{i}" for i in range(1, len(used) + 2))) if each not in used)


def _keys(value: Any) -> list[str] | None:
    """Return the path of each tensor in a dict or a named tuple. None if `value` is neither."""
    try:
        leaves = tree_flatten_with_path(value)[0]
    except ValueError:  # a class registered without keys for its parts
        return None
    paths = [path for path, leaf in leaves if isinstance(leaf, Tensor)]
    if not all(path and isinstance(path[0], MappingKey | GetAttrKey) for path in paths):
        return None
    return ["_".join(_word(part) for part in path) for path in paths]


def _word(part: Any) -> str:
    return str(part.name if isinstance(part, GetAttrKey) else part.idx if isinstance(part, SequenceKey) else part.key)


def name_onnx(graph: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Name the inputs and outputs of an `onnx_ir.Graph`. An inner value with one of these names is renamed.

    An ONNX value has one name. An output that is also an input, a weight or another output becomes a copy.
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
    # Rename the ports too: two of them may swap names.
    for value in [value for value in values if value.name in set(ports.values())]:
        value.name = _free(value.name, used)
        used.add(value.name)
    for value, name in ports.items():
        value.name = name


def name_openvino(model: Any, inputs: Mapping[str, str], outputs: Sequence[str]) -> None:
    """Name the ports of an `openvino.Model`. `inputs` maps the current names of its inputs to the new ones.

    An OpenVINO tensor may have several names, and all ports that share the tensor share them. An output that is also
    an input or another output becomes a separate tensor.
    """
    from openvino import opset8

    taken = {port.get_node().get_friendly_name() for port in model.inputs}
    for result in model.get_results():
        source = result.input_value(0)
        place = f"{source.get_node().get_friendly_name()}:{source.get_index()}"
        if source.get_node().get_friendly_name() in taken or place in taken:
            # A reshape to the same shape is free: the compiler removes it and keeps the names.
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
