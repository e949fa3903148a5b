"""Networks that int8 suits, and one that it does not."""

import torch
from torch import nn


class Net(nn.Module):
    """Three layers. `spread`: one channel between `stem` and `mid` is as many times larger than the others.

    In float nothing changes: the next layer's weights are as much smaller. One range for the whole map then leaves the
    other channels without levels.
    """

    def __init__(self, spread=1.0):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
        self.mid = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(16, 4, 1)
        with torch.no_grad():
            self.stem[0].weight[3] *= spread
            self.stem[0].bias[3] *= spread
            self.mid[0].weight[:, 3] /= spread

    def forward(self, x):
        return self.head(self.mid(self.stem(x)))


def built(spread=1.0):
    torch.manual_seed(0)
    return Net(spread).eval()
