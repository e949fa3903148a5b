"""The networks of InceptionNeXt's results: timm's networks with our InceptionDW convolution as token mixer."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from leanconv.extras import needs
from leanconv.nn import InceptionDWConv2d
from leanconv.papers.network import Network


@dataclass(frozen=True)
class InceptionNeXt(Network):
    """timm's InceptionNeXt of that size with our operator's `options`. `reference` is timm's, with equal counts.

    Raises: MissingExtra without timm.
    """

    def build(self, device: str | torch.device = "cpu") -> nn.Module:
        with needs("timm", "zoo"):
            import timm
        with torch.device(device):
            model = timm.create_model(f"inception_next_{self.name}", token_mixers=partial(mixer, **self.options))
        return model.eval()  # type: ignore[no-any-return]

    @property
    def reference(self) -> str:
        return f"timm:inception_next_{self.name}"


def mixer(channels: int, dilation: int = 1, device: Any = None, dtype: Any = None, **options: Any) -> InceptionDWConv2d:
    """Build a token mixer with timm's signature: stride 1, padded, with biases, dilation 1 only."""
    side = options.get("band", 11)
    return InceptionDWConv2d(
        channels, channels, side, 1, side // 2, dilation, channels, device=device, dtype=dtype, **options
    )


NETWORKS: dict[str, Network] = {
    "inceptionnext_tiny": InceptionNeXt("tiny"),
    "inceptionnext_small": InceptionNeXt("small"),
    "inceptionnext_base": InceptionNeXt("base"),
    "inceptionnext_base_384": InceptionNeXt("base"),
    "inceptionnext_atto": InceptionNeXt("atto", {"band": 9, "ratio": 0.25}),
}
READINGS: dict[str, str] = {}
ALTERNATIVES: dict[str, dict[str, str]] = {}
REASONS: dict[tuple[str, str, str], str] = {
    ("inceptionnext_atto", "flops", "macs_trainable"): "the printed figure has two digits and is 1.4 % above the "
    "multiply-accumulates of the authors' network; the parameters agree"
}
