"""Replaced: builds a network's convolutions, those that an operator string replaces and those that stay standard.

Every builder but the U-Net's goes through here, so that all of them read `conv` and `keep` alike:

* a layer of a kind (dense, depthwise, 1×1) that the operator does not replace stays standard, as in `plan`;
* so does a size outside the paper's own rule (XSepConv below 5×5);
* a layer of the right kind that the operator cannot stand for is an error that names it; `keep` leaves it standard;
* in the operator string `{c}` and `{o}` are the layer's input and output channels: `hetconv(part={c})`;
* operators with a layer index (XSepConv) are numbered in the order in which the layers are built.
"""

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.errors import BadInput, UnsupportedConv
from leanconv.nn.base import kaiming_fan_out_
from leanconv.ops.fx import leaf_function
from leanconv.registry import get, nearest, options_of, parse
from leanconv.spec import ConvSpec

_WIDEST = 2**16  # channels; wider is a slip of the pen


class Replaced:
    """The layers of one network under construction.

    Args:
        network: its name, for messages.
        conv: operator string; "conv" is the standard network, plain `nn.Conv2d` everywhere.
        keep: glob over layer names, several parted by spaces or commas; these stay standard.
    Raises: UnknownName, BadInput for a string that names no operator.
    """

    def __init__(self, network: str, conv: str, keep: str = "") -> None:
        for option, text in {"conv": conv, "keep": keep}.items():
            if not isinstance(text, str):
                raise BadInput(f"{network}: {option}={text!r}: a text, like {_LIKE[option]}")
        self.network, self.conv, self.keep = network, conv, keep.replace(",", " ").split()
        name, self.options = parse(_filled(conv, 1, 1))
        self.operator, self.is_standard = get(name), name == "conv"
        self.names: list[str] = []
        self.replaced: list[str] = []
        self.reasons: dict[str, None] = {}

    def layer(
        self,
        name: str,
        c: int,
        o: int,
        kernel: int,
        stride: int = 1,
        *,
        groups: int = 1,
        bias: bool = False,
        options: dict[str, Any] | None = None,
    ) -> nn.Module:
        """The layer `name` with padding (k - 1)/2: the operator where it replaces that layer, else `standard`.

        `options`: what the operator gets beside those of the string.
        Raises: UnsupportedConv (naming the layer) where the operator is meant to replace it and cannot.
        """
        return self._layer(name, ConvSpec.of(c, o, kernel, stride, kernel // 2, 1, groups, bias), **(options or {}))

    def _layer(self, name: str, spec: ConvSpec, out: int | None = None, **more: Any) -> nn.Module:
        """`out`: the operator's output channels where they are not the standard layer's; `more`: options for it."""
        self.names.append(name)
        if self.is_standard or self._is_kept(name, spec):
            return standard(spec.c, spec.o, spec.kernel[0], spec.stride[0], groups=spec.groups, bias=spec.bias)
        word, options = parse(_filled(self.conv, spec.c, spec.o))
        if "layer_index" in options_of(self.operator) and "layer_index" not in options:
            options["layer_index"] = len(self.replaced)
        self.replaced.append(name)
        try:
            layer: nn.Module = get(word)(**{**spec.arguments(), "out_channels": out or spec.o}, **{**more, **options})
        except UnsupportedConv as error:
            raise UnsupportedConv(f"{self.network}, {name} ({spec}): {error}; or say keep='{name}'") from error
        except TypeError as error:  # part="4" and the like: only the operator knows its options' types
            raise BadInput(f"{self.network}: conv={self.conv!r}: {error}") from error
        return layer

    def _is_kept(self, name: str, spec: ConvSpec) -> bool:
        if any(fnmatchcase(name, pattern) for pattern in self.keep):
            return True
        if spec.kind not in self.operator.replaces:
            self.reasons[f"it replaces {', '.join(sorted(self.operator.replaces))} layers"] = None
            return True
        if reason := self.operator.why_keep(spec):
            self.reasons[reason] = None
        return bool(reason)

    def finish(self) -> None:
        """Say what was asked for in vain.

        Raises: BadInput for a `keep` that names no layer, UnsupportedConv for an operator that replaced none.
        """
        for pattern in self.keep:
            if not any(fnmatchcase(name, pattern) for name in self.names):
                raise BadInput(
                    f"{self.network}: keep={pattern!r} matches no replaced layer{nearest(pattern, self.names)}; "
                    f"they are {', '.join(self.names[:3])}, ... {self.names[-1]}"
                )
        if not self.is_standard and not self.replaced and self.reasons:
            raise UnsupportedConv(
                f"{self.network}: {self.operator.name} replaces none of its layers: {'; '.join(self.reasons)}"
            )


_LIKE = {"conv": "hetconv(part=4)", "keep": "layer2.*"}


def _filled(conv: str, c: int, o: int) -> str:
    return conv.replace("{c}", str(c)).replace("{o}", str(o))


def standard(c: int, o: int, kernel: int, stride: int = 1, *, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    """A plain `nn.Conv2d` with padding (k - 1)/2 and Kaiming-normal weights (fan-out)."""
    plain = nn.Conv2d(c, o, kernel, stride, kernel // 2, groups=groups, bias=bias)
    kaiming_fan_out_(plain)
    return plain


def scaled(network: str, channels: int, width: float) -> int:
    """`channels · width` as a multiple of 4, at least 4: so that the operators that group the channels still fit."""
    if not isinstance(width, (int, float)) or isinstance(width, bool) or not 0 < channels * width <= _WIDEST:
        raise BadInput(f"{network}: width={width!r}: a factor above 0, such as 0.5, up to {_WIDEST} channels")
    return max(4, 4 * round(channels * width / 4))


def check_options(network: str, *, whole: dict[str, Any], flags: dict[str, Any] | None = None) -> None:
    """Raises BadInput unless every `whole` is a whole number of at least 1 and every flag is True or False."""
    for name, value in whole.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _WIDEST:
            raise BadInput(f"{network}: {name}={value!r}: a whole number from 1 to {_WIDEST}")
    for name, value in (flags or {}).items():
        if not isinstance(value, bool):
            raise BadInput(f"{network}: {name}={value!r}: True or False")


def one_of(network: str, name: str, value: Any, known: list[str]) -> None:
    """Raises BadInput unless `value` is one of the known words."""
    if value not in known:
        raise BadInput(f"{network}: {name}={value!r}{nearest(str(value), known)}: one of {', '.join(known)}")


@leaf_function
def checked_image(network: str, x: Tensor, channels: int, *, least: int = 1) -> Tensor:
    """`x`, if it is `N C H W`, C = `channels`, and (eager) H, W >= `least`. Raises BadInput."""
    if x.dim() != 4 or x.shape[1] != channels:
        raise BadInput(f"{network} takes N C H W with C={channels}, got {tuple(x.shape)}")
    # A trace or a compiled graph would keep the comparison as a constant or as a guard.
    if least > 1 and not torch.jit.is_tracing() and not torch.compiler.is_compiling() and min(x.shape[2:]) < least:
        raise BadInput(f"{network} takes images of {least}x{least} and larger, got {x.shape[2]}x{x.shape[3]}")
    return x
