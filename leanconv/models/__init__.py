"""The papers' networks, each built from any operator."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from leanconv.errors import BadInput, UnknownName
from leanconv.models.mnasnet import mnasnet_b1
from leanconv.models.mobilenet_v1 import MOBILENETS_V1
from leanconv.models.mobilenet_v2 import mobilenet_v2
from leanconv.models.mobilenet_v3 import MOBILENETS_V3
from leanconv.models.resnet import RESNETS
from leanconv.models.shufflenet_v2 import shufflenet_v2
from leanconv.models.unet import UNet
from leanconv.models.vgg import VGGS
from leanconv.registry import nearest

__all__ = ["UNet", "build", "names", "options_of"]

_MODELS: dict[str, Callable[..., nn.Module]] = {
    "unet": UNet,
    **RESNETS,
    **VGGS,
    **MOBILENETS_V1,
    "mobilenet_v2": mobilenet_v2,
    **MOBILENETS_V3,
    "mnasnet_b1": mnasnet_b1,
    "shufflenet_v2": shufflenet_v2,
}


def names() -> list[str]:
    """The networks that `build` and the reference `leanconv:NAME` know."""
    return list(_MODELS)


def options_of(name: str) -> dict[str, Any]:
    """A network's options and their defaults. Raises UnknownName for a network nobody registered."""
    if name not in _MODELS:
        raise UnknownName(f"unknown network {name!r}{nearest(name, names())}; known: {', '.join(names())}")
    return {p.name: p.default for p in inspect.signature(_MODELS[name]).parameters.values()}


def build(name: str, **options: Any) -> nn.Module:
    """The network `name` with fresh weights, in train mode: `build("unet", base=16, conv="splconv(alpha=0.5)")`.

    Raises: UnknownName for an unknown network or option; BadInput for a value out of range; UnsupportedConv where the
        operator does not fit a layer.
    """
    known = options_of(name)
    for option in options:
        if option not in known:
            raise UnknownName(
                f"{name} has no option {option!r}{nearest(option, list(known))}; it has: {', '.join(known)}"
            )
    try:
        return _MODELS[name](**options)
    except (RuntimeError, MemoryError, OverflowError) as error:  # sizes that no memory holds
        raise BadInput(f"{name}: cannot be built with {options}: {str(error).splitlines()[0]}") from error
