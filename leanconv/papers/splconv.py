"""The networks of the SPLConv paper's table 1: a base-32 U-Net, 3×320×480 in, 32 channels out.

The paper describes 512×512 images with binary masks, but its complexity columns do not fit that. The size, the 32
outputs and the blocks were inferred from the printed digits: they are sufficient, not proven. Two facts are certain
from the digits. The dilated depthwise kernel is a full 3×3, and the row "Depth-Wise-UNet" replaces the encoder only.
"""

from leanconv.papers.network import Network

# The whole first encoder level stays standard. The plain 1×1 of SPConv and SPLConv has a bias, as in SPConv's public
# code. One BatchNorm and ReLU follow each pair of replaced convolutions.
_TABLE = {"out_channels": 32, "keep": "first_block"}
_PAIRED = {**_TABLE, "conv_bias": True, "norm_per": "pair"}

NETWORKS: dict[str, Network] = {
    "unet32": Network("unet", {"out_channels": 32}),
    "unet32_dw_enc": Network("unet", {**_TABLE, "conv": "depthwise_separable", "part": "encoder"}),
    "unet32_spconv": Network("unet", {**_PAIRED, "conv": "spconv(alpha=0.5, inner_norms=1)"}),
    "unet32_spl_enc": Network("unet", {**_PAIRED, "conv": "splconv(alpha=0.5)", "part": "encoder"}),
    "unet32_spl_r50": Network("unet", {**_PAIRED, "conv": "splconv(alpha=0.5)"}),
    "unet32_spl_r75": Network("unet", {**_PAIRED, "conv": "splconv(alpha=0.75)"}),
    # Plain drop-ins of `leanconv:unet`: no bias, BatchNorm and ReLU after every convolution.
    "unet32_spconv_dropin": Network("unet", {**_TABLE, "conv": "spconv(alpha=0.5, inner_norms=1)"}),
    "unet32_spl_enc_dropin": Network("unet", {**_TABLE, "conv": "splconv(alpha=0.5)", "part": "encoder"}),
    "unet32_spl_r50_dropin": Network("unet", {**_TABLE, "conv": "splconv(alpha=0.5)"}),
    "unet32_spl_r75_dropin": Network("unet", {**_TABLE, "conv": "splconv(alpha=0.75)"}),
    # SPConv's public block: two inner BatchNorms, none outside.
    "unet32_spconv_official": Network("unet", {**_PAIRED, "norm_per": "inner", "conv": "spconv(alpha=0.5)"}),
}

# Name of an alternative reading, shown in brackets after the row -> its description.
READINGS = {
    "drop-in": "as `leanconv:unet` builds it: no bias, BatchNorm and ReLU after every convolution",
    "public block": "SPConv's published code: two BatchNorms inside the operator, none after it",
}
# Alternative readings of a row, printed below the table: model id -> {model id: name of the reading}.
ALTERNATIVES: dict[str, dict[str, str]] = {
    "unet32_spconv": {"unet32_spconv_dropin": "drop-in", "unet32_spconv_official": "public block"},
    "unet32_spl_enc": {"unet32_spl_enc_dropin": "drop-in"},
    "unet32_spl_r50": {"unet32_spl_r50_dropin": "drop-in"},
    "unet32_spl_r75": {"unet32_spl_r75_dropin": "drop-in"},
}
