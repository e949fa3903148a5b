"""Network: one of the papers' networks, defined by its name and options."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from leanconv import models


@dataclass(frozen=True)
class Network:
    """A network of `leanconv.models` and its options."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, device: str | torch.device = "cpu") -> nn.Module:
        """Build the real modules in eval mode. Counting needs no weights, so it builds them on "meta"."""
        with torch.device(device):
            return models.build(self.name, **self.options).eval()

    @property
    def reference(self) -> str:
        """The model reference of the network, for example for `leanconv profile`."""
        options = "&".join(f"{key}={value}" for key, value in self.options.items())
        return f"leanconv:{self.name}" + (f"?{options}" if options else "")
