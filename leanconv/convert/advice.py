"""What to do where a plan changes nothing: run the network as it is in a faster engine, or take another operator."""

from collections.abc import Iterable

from leanconv.cost import dense_cost
from leanconv.registry import get, names
from leanconv.spec import ConvSpec

# From benchmarks/results/fused_engine.json: channels_last over fused. A test compares the two.
_NETWORK, _FASTER = "timm:mobilenetv3_small_100", 3.9
_KINDS = {"dense": "dense", "depthwise": "depthwise", "grouped": "grouped", "pointwise": "1x1"}


def advice(specs: Iterable[ConvSpec]) -> list[str]:
    """Lines for a plan that changes nothing.

    Args:
        specs: the layers that stay because the operator does not replace their kind or their sizes.
    """
    lines = [
        f"nothing changes. `optimize` alone makes a network faster: {_NETWORK} runs {_FASTER} times as fast as in "
        "PyTorch's channels_last (one thread of an AMD EPYC)"
    ]
    by_kind: dict[str, list[ConvSpec]] = {}
    for spec in dict.fromkeys(specs):
        by_kind.setdefault(spec.kind, []).append(spec)
    for kind, found in by_kind.items():
        others = [name for name in names() if name != "conv" and any(_stands_for(name, spec) for spec in found)]
        if others:
            lines.append(f"operators that make some of its {_KINDS[kind]} convolutions leaner: {', '.join(others)}")
    return lines


def _stands_for(name: str, spec: ConvSpec) -> bool:
    """Whether the operator, with its default options, replaces that layer by its paper's rule and has fewer MACs."""
    operator = get(name)
    if spec.kind not in operator.replaces or operator.why_keep(spec) or operator.why_not(spec):
        return False
    return bool(operator.cost(spec).macs < dense_cost(spec).macs)
