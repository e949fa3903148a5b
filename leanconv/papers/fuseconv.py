"""The networks of FuSeConv's results: five MobileNets, each dense, full, half, and with half of its blocks replaced.

The figures are those of the authors' repository. The counting convention `fuse` was inferred from their digits and
meets all 25 rows. The 50 % variants replace the same blocks as the authors' code. In its full and half variants of
MobileNetV2, the first block contains an unused 1×1 with BatchNorm (1,088 parameters). Ours does not.
"""

from typing import Any

from leanconv.papers.network import Network

_FORMS = {"base": "conv", "full": "fuseconv(variant='full')", "half": "fuseconv(variant='half')"}
# The authors' MobileNetV3 has a last width of 1280 and an expanding 1×1 in every block. Its squeeze-excites have
# exactly a quarter of the channels and no biases.
_V3: dict[str, Any] = {"last": 1280, "se_multiple": 1, "se_bias": False, "expand_always": True}
# Model id -> network, options, and the layers that the 50 % variants keep.
_FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "mbv1": ("mobilenet_v1", {}, "stages.[34].*"),
    "mbv2": ("mobilenet_v2", {}, "stages.0.* stages.[456].*"),
    "mnas": ("mnasnet_b1", {"act": "relu6"}, "stages.0.* stages.[456].*"),
    "mbv3s": ("mobilenet_v3_small", _V3, "stages.0.[01389].* stages.0.10.*"),
    "mbv3l": ("mobilenet_v3_large", _V3, "stages.0.0.* stages.0.[89].* stages.0.1?.*"),
}


def _networks() -> dict[str, Network]:
    found = {}
    for family, (name, options, keep) in _FAMILIES.items():
        for form, conv in _FORMS.items():
            more = {} if form == "base" else {"conv": conv}
            found[f"fuse_{family}_{form}"] = Network(name, {**options, **more})
            if more:
                found[f"fuse_{family}_{form}50"] = Network(name, {**options, **more, "keep": keep})
    return found


NETWORKS: dict[str, Network] = _networks()
READINGS: dict[str, str] = {}
ALTERNATIVES: dict[str, dict[str, str]] = {}
