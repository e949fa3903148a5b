"""The published convolutions: one operator, one file, every one with `nn.Conv2d`'s arguments."""

from leanconv.nn.base import Operator, make
from leanconv.nn.conv import Conv2d
from leanconv.nn.separable import DepthwiseSeparableConv2d
from leanconv.registry import get, names, parse

__all__ = ["Conv2d", "DepthwiseSeparableConv2d", "Operator", "get", "make", "names", "parse"]
