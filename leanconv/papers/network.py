"""Network: one of the papers' networks, by the options that build it."""

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
        """The real modules, in eval mode; on "meta" without weights, which is all that counting needs."""
        with torch.device(device):
            return models.build(self.name, **self.options).eval()

    @property
    def reference(self) -> str:
        """The same as a model reference, for `leanconv profile` and the others."""
        options = "&".join(f"{key}={value}" for key, value in self.options.items())
        return f"leanconv:{self.name}" + (f"?{options}" if options else "")
