"""Which parts of a student and its teacher belong together: the blocks around swapped layers, or layers by name."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from leanconv.errors import BadInput, UnknownName
from leanconv.nn import Operator
from leanconv.registry import nearest

Features = str | Sequence[str] | Mapping[str, str]

# A module with more convolutions than these is a whole network or a stage of one, and no block.
MOST_CONVOLUTIONS = 8


def swapped_layers(student: nn.Module, teacher: nn.Module) -> list[str]:
    """Names of the layers that are a convolution in both models, and not the same one: what a swap has changed."""
    theirs, found = dict(teacher.named_modules()), []
    for name, layer in student.named_modules():
        other = theirs.get(name)
        if other is None or not (_is_layer(layer) and _is_layer(other)) or _ends(layer) != _ends(other):
            continue
        if type(layer) is not type(other) or _shapes(layer) != _shapes(other):
            found.append(name)
    return [name for name in found if not any(name.startswith(f"{each}.") for each in found)]


def swapped_blocks(student: nn.Module, teacher: nn.Module) -> list[str]:
    """Names of the blocks around the swapped layers, in the order of the student's modules.

    A block is the module that holds the layer: with its norm, its activation and what is added to it. Where that one
    is the network, or holds more than MOST_CONVOLUTIONS of the teacher's convolutions, the block is the layer.
    """
    theirs, found = dict(teacher.named_modules()), set()
    for layer in swapped_layers(student, teacher):
        parent = layer.rpartition(".")[0]
        found.add(parent if _is_block(parent, theirs.get(parent)) else layer)
    return [name for name, _ in student.named_modules() if name in found and not _inside(name, found)]


def paired(student: nn.Module, teacher: nn.Module, features: Features) -> dict[str, str]:
    """The student's layers whose outputs are compared, and the teacher's for each.

    Args:
        features: "auto" for the blocks around swapped layers, names that both models have, or a mapping.
    Raises: UnknownName for a layer that a model does not have; BadInput for another word.
    """
    if isinstance(features, str):
        if features != "auto":
            raise BadInput(f'features={features!r}: "auto", a list of layer names, or a dict student -> teacher')
        return {name: name for name in swapped_blocks(student, teacher)}
    pairs = dict(features) if isinstance(features, Mapping) else {name: name for name in features}
    for whose, model, names in (("student", student, pairs), ("teacher", teacher, pairs.values())):
        known = [name for name, _ in model.named_modules() if name]
        for name in names:
            if name not in known:
                raise UnknownName(f"features: the {whose} has no layer {name!r}{nearest(str(name), known)}")
    return pairs


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | Operator)


def _ends(layer: nn.Module) -> tuple[Any, ...]:
    """What a layer must share with the one that it stands for."""
    return tuple(getattr(layer, key, None) for key in ("in_channels", "out_channels", "stride"))


def _shapes(module: nn.Module) -> dict[str, Any]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _is_block(name: str, module: nn.Module | None) -> bool:
    if not name or module is None or isinstance(module, nn.ModuleList | nn.ModuleDict):  # these two are never called
        return False
    return sum(isinstance(each, nn.Conv2d) for each in module.modules()) <= MOST_CONVOLUTIONS


def _inside(name: str, others: set[str]) -> bool:
    return any(name.startswith(f"{other}.") for other in others)
