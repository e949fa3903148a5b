"""What one run shows of each layer: its turn, how often it is called, the norms after it, the block around it."""

from collections import Counter
from dataclasses import dataclass

from torch import Tensor, nn

from leanconv.convert.absorb import is_norm
from leanconv.convert.adjacency import watch
from leanconv.convert.tree import Site, walk
from leanconv.nn import Operator
from leanconv.running import Inputs, call, watched

_MOST = 4  # convolutions of a block that is refined as one: a bottleneck with its shortcut


@dataclass(frozen=True)
class Seen:
    """One layer in the run.

    Attributes:
        calls: of one forward; 0 where the data does not reach the layer.
        norms: the normalisations that read its output.
        only_norm: nothing else reads the output, so that a constant shift of it is lost on them.
        block: the module around it that is refined as one; None where there is none.
    """

    site: Site
    calls: int
    norms: tuple[nn.Module, ...]
    only_norm: bool
    block: nn.Module | None


def observed(model: nn.Module, inputs: Inputs, layers: list[Site]) -> list[Seen]:
    """The layers in the order in which they run first; those that do not run stand last."""
    norms = [site.module for site in walk(model) if is_norm(site.module) and _has_statistics(site.module)]
    seen = watch(model, inputs, [site.module for site in layers], norms)
    after: dict[nn.Module, list[nn.Module]] = {}
    for norm, source in seen.inputs.items():
        if source is not None:
            after.setdefault(source.layer, []).append(norm)
    turn: dict[int, int] = {}
    for place, output in enumerate(seen.outputs):
        turn.setdefault(id(output.layer), place)
    ordered = sorted(layers, key=lambda site: turn.get(id(site.module), len(seen.outputs)))
    around = _blocks(model, inputs, ordered)
    return [
        Seen(
            site,
            seen.calls.get(site.module, 0),
            tuple(after.get(site.module, ())),
            len(found := after.get(site.module, [])) == 1 and seen.why_not(found[0]) is None,
            around.get(id(site.module)),
        )
        for site in ordered
    ]


def _has_statistics(norm: nn.Module) -> bool:
    return isinstance(norm.running_mean, Tensor) and isinstance(norm.running_var, Tensor)


def _blocks(model: nn.Module, inputs: Inputs, layers: list[Site]) -> dict[int, nn.Module]:
    """id of a layer -> the module around it that returns one tensor, runs once and has few convolutions.

    The nearest with two or more; then as far out as no other convolution joins (the sum with a shortcut does).
    """
    above = {id(site.module): _above(model, site) for site in layers}
    calls, plain = Counter[int](), set[int]()
    handles = []
    for module in {id(m): m for found in above.values() for m in found}.values():

        def note(module: nn.Module, arguments: object, output: object) -> None:
            calls[id(module)] += 1
            if isinstance(output, Tensor) and output.is_floating_point():
                plain.add(id(module))

        handles.append(module.register_forward_hook(note))
    try:
        with watched(model):
            call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for key, modules in above.items():
        fit = [m for m in modules if calls[id(m)] == 1 and id(m) in plain]
        sizes = [_convolutions(m) for m in fit]
        best = next((size for size in sizes if size > 1), max(sizes, default=0))
        if best:
            found[key] = [m for m, size in zip(fit, sizes, strict=True) if size == best][-1]
    return found


def _above(model: nn.Module, site: Site) -> list[nn.Module]:
    """The modules that hold the layer, the nearest first, without the model itself; few convolutions in each."""
    if len(site.holders) != 1:
        return []
    parts, found = site.name.split("."), []
    for length in range(len(parts) - 1, 0, -1):
        module = model.get_submodule(".".join(parts[:length]))
        if _convolutions(module) > _MOST:
            break
        found.append(module)
    return found


def _convolutions(module: nn.Module) -> int:
    return sum(isinstance(s.module, nn.modules.conv._ConvNd | Operator) for s in walk(module))
