"""Cycles of a network on an accelerator of multiplier lanes, with and without parallelism inside the kernel.

Lo output channels times Lp output pixels are computed at once. Without intra-kernel parallelism each cycle serves one
tap of one input channel; with k0×k0 taps a cycle the same multipliers serve Lp / k0² pixels:

    one tap a cycle:  N · ⌈O / Lo⌉ · ⌈P·Q / Lp⌉ · (C / G) · R·S
    k0×k0 a cycle:    N · ⌈O / Lo⌉ · ⌈P·Q·k0² / Lp⌉ · (C / G) · ⌈R / k0⌉·⌈S / k0⌉

A depthwise convolution (G = C) fills the lanes with its channels. A k×k kernel uses the share k² / (k0²·⌈k / k0⌉²) of
the k0² multipliers: with k0 = 3 a 1×1 one ninth, 3×3 all, 5×5 25/36, 7×7 49/81.
After: Chen, Tao, Wang, Wen, Osa, Kato 2021, arXiv:2104.14125. Only its abstract was at hand. The comparison of the two
schemes is the paper's; this model of it is ours. It does not reproduce the absolute figures of the paper's tables.
"""

import math
import re
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from torch import nn

from leanconv.errors import BadInput
from leanconv.measure.counting.contraction import Contraction
from leanconv.measure.hardware.layer_sizes import LayerSizes, layer_sizes, slowest, unmapped_notes
from leanconv.table import si, table

KERNELS = (3, 5, 7, 9)


@dataclass(frozen=True)
class Lanes:
    """`channels` by `pixels` multipliers; with `intra` = k0 above 1, k0×k0 taps of a kernel share them."""

    channels: int
    pixels: int
    intra: int = 1

    def __post_init__(self) -> None:
        if min(self.channels, self.pixels, self.intra) < 1:
            raise BadInput(f"lanes of {self.channels}x{self.pixels}, intra-kernel {self.intra}: each is at least 1")
        taps = self.intra**2
        if self.pixels % taps:
            raise BadInput(
                f"{self.pixels} pixel lanes cannot hold {self.intra}x{self.intra} taps a pixel; "
                f"take a multiple of {taps}, such as {taps * max(1, round(self.pixels / taps))}"
            )

    @classmethod
    def parse(cls, text: str, intra: int = 1) -> Self:
        """From `"16x36"`. Raises BadInput for anything else, and for lanes that `intra` does not divide."""
        sides = re.fullmatch(r"\s*(\d{1,9})\s*[xX×]\s*(\d{1,9})\s*", text)
        if sides is None:
            raise BadInput(f"lanes {text!r}: write CHANNELSxPIXELS, such as 16x36")
        return cls(int(sides[1]), int(sides[2]), intra)

    @property
    def multipliers(self) -> int:
        return self.channels * self.pixels


def lane_cycles(lanes: Lanes, sizes: Contraction) -> int:
    """Cycles of one convolution or matrix product."""
    k0 = lanes.intra
    steps = math.prod(sizes.kernel[:-2]) * math.prod(-(-taps // k0) for taps in sizes.kernel[-2:])
    pixels = -(-sizes.places // (lanes.pixels // k0**2))
    filters = sizes.o
    if sizes.transposed:  # each input place times each tap: the taps are output channels of their own
        filters, steps = sizes.o * sizes.taps, 1
    return sizes.n * -(-filters // lanes.channels) * pixels * (sizes.c // sizes.groups) * steps


def tap_utilisation(kernel: int, intra: int) -> float:
    """The share of k0×k0 tap multipliers that a k×k kernel uses."""
    return (kernel / (intra * -(-kernel // intra))) ** 2


@dataclass(frozen=True)
class LaneLayer:
    """One row: a layer's cycles with one tap a cycle, and with k0×k0. Utilisations are MACs over cycles · lanes."""

    name: str
    type: str
    kind: str
    kernel: str
    macs: int
    cycles: int
    intra_cycles: int
    utilisation: float
    intra_utilisation: float


@dataclass(frozen=True)
class WhatIf:
    """The whole network with its spatial kernels of another size (the output sizes stay)."""

    kernels: str
    macs: int
    cycles: int
    intra_cycles: int


@dataclass(frozen=True)
class LaneProfile:
    """A network on the lanes. `enlarged`: as it is, and with its depthwise kernels (dense ones where it has none)
    5×5, 7×7, 9×9; `unmapped`: operations without known sizes, which are in no total."""

    lanes: Lanes
    layers: tuple[LaneLayer, ...]
    enlarged: tuple[WhatIf, ...]
    shape: tuple[int, ...]
    unmapped: dict[str, int]

    @property
    def cycles(self) -> int:
        return self.enlarged[0].cycles

    @property
    def intra_cycles(self) -> int:
        return self.enlarged[0].intra_cycles

    def to_dict(self) -> dict[str, Any]:
        total = {"macs": self.enlarged[0].macs, "cycles": self.cycles, "intra_cycles": self.intra_cycles}
        return {
            "lanes": asdict(self.lanes),
            "shape": list(self.shape),
            "layers": [asdict(one) for one in self.layers],
            "enlarged": [asdict(one) for one in self.enlarged],
            "total": total,
            "unmapped": self.unmapped,
            "slowest": [one.name for one in slowest(self.layers, 5)],
        }

    def __str__(self) -> str:
        k0, lanes = self.lanes.intra, self.lanes.multipliers
        schemes = ["1 tap: cycles", "busy", f"{k0}x{k0} taps: cycles", "busy", "fewer cycles"]
        rows = [
            [
                one.name,
                one.type,
                one.kind,
                one.kernel,
                si(one.macs),
                *self._cells(one.macs, one.cycles, one.intra_cycles),
            ]
            for one in self.layers
        ]
        whole = self.enlarged[0]
        rows.append(["total", "", "", "", si(whole.macs), *self._cells(whole.macs, whole.cycles, whole.intra_cycles)])
        title = (
            f"{lanes} multipliers: {self.lanes.channels} output channels x {self.lanes.pixels} pixels, "
            f"input {'x'.join(map(str, self.shape))}"
        )
        head = ["layer", "type", "kind", "kernel", "MACs", *schemes]
        by_layer = table(head, rows, title=title, note=unmapped_notes(self.unmapped))
        others = [[w.kernels, si(w.macs), *self._cells(w.macs, w.cycles, w.intra_cycles)] for w in self.enlarged]
        better = sum(min(one.cycles, one.intra_cycles) for one in self.layers)
        note = [
            f"fewer cycles: {k0}x{k0} taps a cycle against one tap a cycle, with the same multipliers",
            f"as they are, each layer in the scheme that suits it: {better:,} cycles",
        ]
        return f"{by_layer}\n\n{table(['kernels', 'MACs', *schemes], others, note=note)}"

    def _cells(self, macs: int, plain: int, intra: int) -> list[str]:
        lanes = self.lanes.multipliers
        return [
            f"{plain:,}",
            f"{macs / (max(1, plain) * lanes):.1%}",
            f"{intra:,}",
            f"{macs / (max(1, intra) * lanes):.1%}",
            f"{plain / max(1, intra):.2f}x",
        ]


def profile_lanes(model: nn.Module, inputs: Any, lanes: Lanes) -> LaneProfile:
    """Every layer of `model` on `inputs` with one tap a cycle and with `lanes.intra`² taps a cycle.

    The model does not compute and is left as it was.
    """
    sizes, plain = layer_sizes(model, inputs), replace(lanes, intra=1)
    layers = tuple(_layer(plain, lanes, layer) for layer in sizes.layers)
    every = [one for layer in sizes.layers for one in layer.sizes]
    spatial = [one for one in every if one.is_depthwise and not one.transposed]
    kind = "depthwise" if spatial else "dense"
    spatial = spatial or [one for one in every if one.taps > 1 and not one.transposed]
    cases = [("as they are", every)]
    if spatial:
        cases += [(f"{kind} {k}x{k}", [_enlarged(one, k) if one in spatial else one for one in every]) for k in KERNELS]
    enlarged = tuple(
        WhatIf(
            words,
            sum(one.macs for one in case),
            sum(lane_cycles(plain, one) for one in case),
            sum(lane_cycles(lanes, one) for one in case),
        )
        for words, case in cases
    )
    return LaneProfile(lanes, layers, enlarged, sizes.shape, sizes.unmapped)


def _enlarged(sizes: Contraction, kernel: int) -> Contraction:
    """A kernel of that size on each axis that has more than one tap."""
    return replace(sizes, kernel=tuple(kernel if taps > 1 else 1 for taps in sizes.kernel))


def _layer(plain: Lanes, lanes: Lanes, layer: LayerSizes) -> LaneLayer:
    took = sum(lane_cycles(plain, one) for one in layer.sizes)
    intra = sum(lane_cycles(lanes, one) for one in layer.sizes)
    kernels = dict.fromkeys("x".join(map(str, one.kernel)) for one in layer.sizes)
    return LaneLayer(
        layer.name,
        layer.type,
        layer.kind,
        " + ".join(kernels),
        layer.macs,
        took,
        intra,
        layer.macs / (took * lanes.multipliers),
        layer.macs / (intra * lanes.multipliers),
    )
