"""The published convolutions: one operator, one file, every one with `nn.Conv2d`'s arguments."""

from leanconv.nn.base import Operator, make
from leanconv.nn.conv import Conv2d
from leanconv.nn.doconv import DOConv2d
from leanconv.nn.drconv import DRConv2d
from leanconv.nn.fuseconv import FuSeConv2d
from leanconv.nn.gmconv import GMConv2d
from leanconv.nn.grouped import GroupPointwiseConv2d
from leanconv.nn.hetconv import HetConv2d
from leanconv.nn.inception_dw import InceptionDWConv2d
from leanconv.nn.lhconv import LHConv2d
from leanconv.nn.odconv import ODConv2d, set_temperature
from leanconv.nn.psconv import PSConv2d
from leanconv.nn.quiet_gates import quiet_gates_
from leanconv.nn.schedule import Schedule
from leanconv.nn.separable import DepthwiseSeparableConv2d
from leanconv.nn.sic import SICConv2d
from leanconv.nn.spatial_bottleneck import SpatialBottleneckConv2d
from leanconv.nn.spconv import SPConv2d
from leanconv.nn.splconv import SPLConv2d
from leanconv.nn.squeeze_excite import SqueezeExcite
from leanconv.nn.topological import TopologicalConv2d
from leanconv.nn.xsepconv import XSepConv2d
from leanconv.registry import get, names, parse

__all__ = [
    "Conv2d", "DOConv2d", "DRConv2d", "DepthwiseSeparableConv2d", "FuSeConv2d", "GMConv2d", "GroupPointwiseConv2d",
    "HetConv2d", "InceptionDWConv2d", "LHConv2d", "ODConv2d", "Operator", "PSConv2d", "SICConv2d", "SPConv2d",
    "SPLConv2d", "Schedule", "SpatialBottleneckConv2d", "SqueezeExcite", "TopologicalConv2d", "XSepConv2d", "get",
    "make", "names", "parse", "quiet_gates_", "set_temperature",
]  # fmt: skip
