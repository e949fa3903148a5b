"""OpenVINO models in int8: NNCF's post-training quantisation (openvinotoolkit/nncf)."""

from collections.abc import Mapping, Sequence
from typing import Any

from leanconv.deploy.int8.still import load_nncf, one_core, still

# Symmetric maps are quicker. Maps with an offset lose less where an activation has negative values (h-swish, SiLU).
PRESETS = ("performance", "mixed")


def to_int8(model: Any, feeds: Sequence[Mapping[str, Any]], preset: str = PRESETS[0], *, weight_bits: int) -> Any:
    """Return an int8 copy of an `openvino.Model`.

    Args:
        feeds: an array for each input's name, one mapping for each calibration call.
        preset: one of `PRESETS`.
        weight_bits: one of `WEIGHT_BITS`. With 8, those of the first layer alone have 7, as NNCF does it.
    Raises: MissingExtra without nncf, and its own errors for a model that it cannot quantise.
    """
    nncf = load_nncf()
    overflow = nncf.OverflowFix.ENABLE if weight_bits == 7 else nncf.OverflowFix.FIRST_LAYER
    with still(), one_core():
        return nncf.quantize(
            model.clone(),
            nncf.Dataset(list(feeds)),
            preset=nncf.QuantizationPreset(preset),
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(feeds),
            fast_bias_correction=True,
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=overflow),
        )
