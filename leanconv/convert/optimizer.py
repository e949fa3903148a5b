"""Let an optimizer follow a swap: old parameters leave their groups, new ones enter the same group."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from leanconv.errors import BadInput


@dataclass
class Regrouped:
    """What the optimizer held before; `undo_` gives it back."""

    optimizer: Any
    groups: list[dict[str, Any]]
    state: dict[nn.Parameter, Any]
    added: list[nn.Parameter]

    def undo_(self) -> None:
        """The old parameters and their state return; what the optimizer learnt about the new ones goes."""
        # by place: load_state_dict makes new group dictionaries, and add_param_group only appends
        for group, lists in zip(self.optimizer.param_groups, self.groups, strict=False):
            group.update({key: list(value) for key, value in lists.items()})
        for parameter in self.added:
            self.optimizer.state.pop(parameter, None)
        self.optimizer.state.update(self.state)


def regroup_(optimizer: Any, swaps: Iterable[tuple[str, nn.Module, nn.Module]]) -> Regrouped:
    """Replace each old layer's parameters by those of its new one, at the same place of the same group.

    The new layer's one-dimensional parameters (biases, normalisation) replace the old bias, if that stood in a group of
    its own. All others replace the old weight. A group's hyper-parameters stay, and so does the state of every other
    parameter; the state of the removed ones is dropped. A layer whose weight is in no group adds nothing.

    Args:
        optimizer: anything with `param_groups` and `state`, as `torch.optim.Optimizer` has them.
        swaps: (name, old layer, new layer).
    """
    if not isinstance(getattr(optimizer, "param_groups", None), list) or not hasattr(optimizer, "state"):
        raise BadInput(f"optimizer={type(optimizer).__name__}: needs a torch.optim.Optimizer (param_groups and state)")
    before = Regrouped(optimizer, [_lists(group) for group in optimizer.param_groups], {}, [])
    where = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, old, new in swaps:
        held = [p for p in old.parameters() if id(p) in where]
        arriving = _arriving(name, old, new, where)
        before.added.extend(p for entries in arriving.values() for _, p in entries)
        for parameter in held:
            entries = arriving.pop(id(parameter), [])
            _exchange(where[id(parameter)], parameter, entries)
            if parameter in optimizer.state:
                before.state[parameter] = optimizer.state.pop(parameter)
    return before


def _lists(group: dict[str, Any]) -> dict[str, Any]:
    return {key: list(group[key]) for key in ("params", "param_names") if key in group}


def _arriving(
    name: str, old: nn.Module, new: nn.Module, where: dict[int, dict[str, Any]]
) -> dict[int, list[tuple[str, nn.Parameter]]]:
    """id of the old parameter -> the new (name, parameter) in its place; empty where the weight is in no group."""
    weight, bias = old._parameters["weight"], old._parameters.get("bias")
    if id(weight) not in where:
        return {}
    apart = bias is not None and id(bias) in where and where[id(bias)] is not where[id(weight)]
    arriving: dict[int, list[tuple[str, nn.Parameter]]] = {id(weight): [], id(bias): []}
    for key, parameter in new.named_parameters():
        place = bias if apart and parameter.ndim <= 1 else weight
        arriving[id(place)].append((f"{name}.{key}", parameter))
    return arriving


def _exchange(group: dict[str, Any], old: nn.Parameter, entries: list[tuple[str, nn.Parameter]]) -> None:
    place = next(i for i, p in enumerate(group["params"]) if p is old)
    group["params"][place : place + 1] = [parameter for _, parameter in entries]
    if "param_names" in group:
        group["param_names"][place : place + 1] = [name for name, _ in entries]
