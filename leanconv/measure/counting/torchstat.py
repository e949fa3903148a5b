"""torchstat's rules: (Flops, MAdd) of one call of each module class that it knows.

Read from torchstat 0.0.7, `compute_flops.py` and `compute_madd.py`.
"""

import math
from collections.abc import Callable

from torch import nn

from leanconv.measure.counting.record import ModuleCall

Rule = Callable[[ModuleCall], tuple[int, int]]


def _conv(call: ModuleCall) -> tuple[int, int]:
    layer = call.module
    assert isinstance(layer, (nn.Conv2d, nn.Conv3d))
    taps, outputs = math.prod(layer.kernel_size) * (layer.in_channels // layer.groups), math.prod(call.out_shape)
    bias = layer.bias is not None
    return (taps + bias) * outputs, (2 * taps - 1 + bias) * outputs


def _transposed_conv(call: ModuleCall) -> tuple[int, int]:
    layer = call.module
    assert isinstance(layer, (nn.ConvTranspose2d, nn.ConvTranspose3d))
    taps = math.prod(layer.kernel_size) * (layer.in_channels // layer.groups)
    places = math.prod(call.in_shape) // max(1, layer.in_channels)
    return 0, (2 * taps - 1 + (layer.bias is not None)) * places * layer.out_channels


def _batch_norm(call: ModuleCall) -> tuple[int, int]:
    elements = math.prod(call.in_shape)
    return elements * (2 if getattr(call.module, "affine", True) else 1), 4 * elements


def _relu(call: ModuleCall) -> tuple[int, int]:
    return math.prod(call.in_shape), math.prod(call.in_shape)


def _activation(call: ModuleCall) -> tuple[int, int]:  # torchstat's MAdd knows ReLU and ReLU6 only
    return math.prod(call.in_shape), 0


def _window(layer: nn.Module, dims: int) -> int:
    size = layer.kernel_size
    assert isinstance(size, (int, tuple))
    return size**dims if isinstance(size, int) else math.prod(size)


def _max_pool(call: ModuleCall) -> tuple[int, int]:
    taps = _window(call.module, len(call.in_shape) - 2)
    return math.prod(call.in_shape), (taps - 1) * math.prod(call.out_shape)


def _avg_pool(call: ModuleCall) -> tuple[int, int]:
    taps = _window(call.module, len(call.in_shape) - 2)
    return math.prod(call.in_shape), taps * math.prod(call.out_shape)


def _upsample(call: ModuleCall) -> tuple[int, int]:
    return math.prod(call.out_shape), 0


def _linear(call: ModuleCall) -> tuple[int, int]:
    layer = call.module
    assert isinstance(layer, nn.Linear)
    return math.prod(call.in_shape) * layer.out_features, (2 * layer.in_features - 1) * math.prod(call.out_shape)


MODULES: tuple[tuple[type[nn.Module], Rule], ...] = (
    (nn.Conv2d, _conv), (nn.Conv3d, _conv), (nn.ConvTranspose2d, _transposed_conv),
    (nn.ConvTranspose3d, _transposed_conv), (nn.BatchNorm2d, _batch_norm), (nn.BatchNorm3d, _batch_norm),
    (nn.ReLU, _relu), (nn.ReLU6, _relu), (nn.PReLU, _activation), (nn.ELU, _activation), (nn.LeakyReLU, _activation),
    (nn.MaxPool2d, _max_pool), (nn.MaxPool3d, _max_pool), (nn.AvgPool2d, _avg_pool), (nn.AvgPool3d, _avg_pool),
    (nn.Upsample, _upsample), (nn.Linear, _linear),
)  # fmt: skip
SILENT: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout2d, nn.Sigmoid, nn.Softmax, nn.Softmax2d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
)  # fmt: skip
