"""The convolutions of a model, the modules that hold them, and the reasons not to replace one."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from leanconv.convert import reasons
from leanconv.nn import Conv2d, Operator

_EXACT = (nn.Conv2d, Conv2d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# Hooks that may move to the new layer: the dictionaries themselves move, so the user's handles still remove them.
_MOVABLE_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook",
)  # fmt: skip
_FIXED_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


@dataclass
class Site:
    """One module object: its first name, and every (parent, key) that holds it. `obstacle`: why it cannot go."""

    name: str
    module: nn.Module
    holders: list[tuple[nn.Module, str]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    obstacle: str | None = None

    def replace(self, new: nn.Module) -> None:
        """Put `new` wherever the module stood; the order of the parents' children stays."""
        for parent, key in self.holders:
            parent._modules[key] = new


def is_operator(module: nn.Module) -> bool:
    """A leanconv operator other than the plain convolution: a leaf, its inside is not looked at."""
    return isinstance(module, Operator) and type(module) is not Conv2d


def is_leaf(module: nn.Module) -> bool:
    """Operators, convolutions and TorchScript modules: what stands inside belongs to them."""
    return isinstance(module, Operator | nn.modules.conv._ConvNd | torch.jit.ScriptModule)


def walk(model: nn.Module) -> Iterator[Site]:
    """Every module object once, in the model's order, without the inside of leaves; holders are complete at the end."""
    sites: dict[int, Site] = {}

    def visit(module: nn.Module, name: str) -> None:
        sites[id(module)] = Site(name, module, names=[name])
        if is_leaf(module):
            return
        for key, child in module._modules.items():
            if child is None:
                continue
            inner = f"{name}.{key}" if name else key
            if id(child) not in sites:
                visit(child, inner)
            else:
                sites[id(child)].names.append(inner)
            sites[id(child)].holders.append((module, key))

    visit(model, "")
    yield from sites.values()


def convolutions(model: nn.Module) -> list[Site]:
    """Every convolution of the model with its obstacle, operators included, each module object once."""
    found: list[Site] = []
    sites, tied = list(walk(model)), tied_parameters(model)
    outside = dict(_held_outside(sites))
    for site in sites:
        if isinstance(site.module, torch.jit.ScriptModule):
            found.extend(_scripted(site))
        elif isinstance(site.module, Operator | nn.modules.conv._ConvNd):
            site.obstacle = obstacle(site, tied, set(outside))
            found.append(site)
    known = {id(site.module) for site in sites}
    for key, (name, module) in outside.items():
        if key not in known:
            found.append(Site(name, module, names=[name], obstacle=reasons.OUTSIDE))
    return found


def obstacle(site: Site, tied: set[int], outside: set[int]) -> str | None:
    """Why this module object cannot be replaced by whatever operator, or None."""
    module = site.module
    if is_operator(module):
        return reasons.OPERATOR
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return reasons.LAZY
    if isinstance(module, _TRANSPOSED):
        return reasons.TRANSPOSED
    if not isinstance(module, nn.Conv2d):
        return reasons.NOT_2D
    if has_computed_weight(module):
        return reasons.PARAMETRIZED
    if type(module) not in _EXACT:
        return reasons.SUBCLASS
    if any(id(p) in tied for p in module.parameters()):
        return reasons.TIED
    if any(getattr(module, each, None) for each in _FIXED_HOOKS) or "forward" in vars(module):
        return reasons.HOOKS
    if id(module) in outside or any(key == "_orig_mod" for _, key in site.holders):
        return reasons.OUTSIDE  # torch.compile of the layer itself keeps calling the module that it was given
    return None if site.holders else reasons.ROOT


def has_computed_weight(module: nn.Module) -> bool:
    """The weight is not a parameter of its own: parametrized, weight norm, spectral norm, pruned."""
    return parametrize.is_parametrized(module) or "weight" not in module._parameters


def has_hooks(module: nn.Module) -> bool:
    """Any hook of the user's, or a forward replaced on the object."""
    return any(getattr(module, each, None) for each in (*_MOVABLE_HOOKS, *_FIXED_HOOKS)) or "forward" in vars(module)


def move_hooks(old: nn.Module, new: nn.Module) -> None:
    """Let `new` run the hooks of `old`; both share them, so that a handle removes a hook from either."""
    for each in _MOVABLE_HOOKS:
        if hasattr(old, each):
            setattr(new, each, getattr(old, each))


def tied_parameters(model: nn.Module) -> set[int]:
    """The ids of the parameters that more than one module (or one module twice) holds."""
    held = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    return {key for key, times in held.items() if times > 1}


def _scripted(site: Site) -> Iterator[Site]:
    for name, module in site.module.named_modules():
        if "Conv" in getattr(module, "original_name", "") and not list(module.children()):
            inner = ".".join(part for part in (site.name, name) if part)
            yield Site(inner, module, names=[inner], obstacle=reasons.SCRIPTED)


def _held_outside(sites: list[Site]) -> Iterator[tuple[int, tuple[str, nn.Module]]]:
    """The convolutions that a module's plain attributes, lists or dicts hold: id -> (where, module)."""
    for site in sites:
        if is_leaf(site.module):
            continue
        for key, value in vars(site.module).items():
            if key in ("_modules", "_parameters", "_buffers") or key.endswith("_hooks"):
                continue
            start = f"{site.name}.{key}" if site.name else key
            for name, module in _modules_in(value, start, 3):
                yield id(module), (name, module)


def _modules_in(value: Any, name: str, depth: int) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(value, nn.modules.conv._ConvNd):
        yield name, value
    elif depth and isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _modules_in(item, f"{name}[{index}]", depth - 1)
    elif depth and isinstance(value, dict):
        for key, item in value.items():
            yield from _modules_in(item, f"{name}[{key!r}]", depth - 1)
