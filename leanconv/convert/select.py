"""Which layers to swap: predicates for `plan(..., where=)`, small enough to combine.

>>> plan(model, x, to="splconv", where=all_of(glob("layer3.*"), min_channels(64)))
"""

from collections.abc import Callable
from fnmatch import fnmatchcase

from leanconv.errors import BadInput
from leanconv.spec import ConvSpec

Where = Callable[[str, ConvSpec], bool]

_KINDS = ("dense", "depthwise", "pointwise", "grouped")


def glob(*patterns: str) -> Where:
    """Layers whose name matches one of the patterns: `glob("layer3.*", "*.conv2")`. `*` crosses dots."""
    return lambda name, spec: any(fnmatchcase(name, pattern) for pattern in patterns)


def kind(*kinds: str) -> Where:
    """Layers of these kinds: dense (k > 1), depthwise, pointwise (dense 1×1), grouped."""
    for each in kinds:
        if each not in _KINDS:
            raise BadInput(f"kind {each!r}: one of {', '.join(_KINDS)}")
    return lambda name, spec: spec.kind in kinds


def min_channels(channels: int) -> Where:
    """Layers with at least so many input and output channels: small ones save little."""
    return lambda name, spec: min(spec.c, spec.o) >= channels


def kernel(*sides: int) -> Where:
    """Layers with a square kernel of one of these sides."""
    return lambda name, spec: spec.kernel[0] == spec.kernel[1] and spec.kernel[0] in sides


def min_macs(macs: int) -> Where:
    """Layers with at least so many multiply-accumulates on the planned input."""
    return lambda name, spec: (
        spec.n * spec.p * spec.q * spec.o * (spec.c // spec.groups) * spec.kernel[0] * spec.kernel[1] >= macs
    )


def all_of(*where: Where) -> Where:
    """Layers that every one of the predicates takes."""
    return lambda name, spec: all(each(name, spec) for each in where)


def any_of(*where: Where) -> Where:
    """Layers that one of the predicates takes."""
    return lambda name, spec: any(each(name, spec) for each in where)


def excluding(where: Where) -> Where:
    """Layers that the predicate does not take."""
    return lambda name, spec: not where(name, spec)
