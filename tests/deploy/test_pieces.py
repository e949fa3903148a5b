"""Pieces: an image of any size through a model of one size."""

import pytest
import torch
from torch import nn

from leanconv.deploy.pieces import Pieces


class Fixed(nn.Module):
    """Refuses any other size than the one a file was fixed to."""

    def __init__(self, *shape):
        super().__init__()
        self.shape = shape

    def forward(self, x):
        assert tuple(x.shape[-2:]) == self.shape[-2:]
        assert len(self.shape) == 2 or len(x) == self.shape[0]
        return torch.cat([x * 2, x[:, :1]], 1)


@pytest.mark.parametrize("size", [(8, 12), (16, 24), (5, 7), (9, 25), (1, 1)])
@pytest.mark.parametrize("batch", [None, 4])
def test_every_pixel_comes_back_in_its_place(size, batch):
    x = torch.randn(3, 2, *size)
    model = Fixed(batch, 8, 12) if batch else Fixed(8, 12)
    y = Pieces(model, 8, 12, batch)(x)
    torch.testing.assert_close(y, torch.cat([x * 2, x[:, :1]], 1))
