"""Run images of any size in tiles through a model of fixed size, to verify files with fixed sizes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Pieces(nn.Module):
    """Run `N C H W -> N O H W` with a model of fixed `height`×`width` (and `batch`, if given).

    Reflection pads the image to whole tiles, or replication if the image is too small. Tiles do not overlap.
    """

    def __init__(self, model: nn.Module, height: int, width: int, batch: int | None = None) -> None:
        super().__init__()
        self.model, self.height, self.width, self.batch = model, height, width, batch
        self.size_multiple = 1  # callers need no padding
        self.train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        down, right = -h % self.height, -w % self.width
        mode = "reflect" if down < h and right < w else "replicate"
        x = F.pad(x, (0, right, 0, down), mode=mode) if down or right else x
        rows, columns = x.shape[2] // self.height, x.shape[3] // self.width
        x = x.unflatten(3, (columns, self.width)).unflatten(2, (rows, self.height))  # N C H W -> N C rows P columns Q
        pieces = x.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)  # N C rows P columns Q -> (N rows columns) C P Q
        y = self._run(pieces)
        y = y.unflatten(0, (n, rows, columns))  # (N rows columns) O P Q -> N rows columns O P Q
        y = y.permute(0, 3, 1, 4, 2, 5)  # N rows columns O P Q -> N O rows P columns Q
        return y.flatten(4, 5).flatten(2, 3)[..., :h, :w]

    def _run(self, pieces: Tensor) -> Tensor:
        if self.batch is None:
            return self.model(pieces)
        spare = -len(pieces) % self.batch
        padded = torch.cat([pieces, pieces[-1:].expand(spare, -1, -1, -1)])
        return torch.cat([self.model(group.contiguous()) for group in padded.split(self.batch)])[: len(pieces)]


class Filled(nn.Module):
    """Run `N ... -> N ...` with a model that takes exactly `batch` images. The last image fills incomplete batches."""

    def __init__(self, model: nn.Module, batch: int) -> None:
        super().__init__()
        self.model, self.batch = model, batch
        self.train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        spare = -len(x) % self.batch
        padded = torch.cat([x, x[-1:].expand(spare, *x.shape[1:])])
        return torch.cat([self.model(group.contiguous()) for group in padded.split(self.batch)])[: len(x)]
