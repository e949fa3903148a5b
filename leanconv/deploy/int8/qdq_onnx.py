"""ONNX files in int8: ONNX Runtime's static quantisation, as pairs QuantizeLinear, DequantizeLinear (QDQ)."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leanconv.deploy.int8.still import still
from leanconv.deploy.program import onnx_module
from leanconv.extras import needs
from leanconv.files import draft

# What ONNX Runtime computes in int8 in convolutional networks, and what passes int8 maps on. Other operators stay in
# float32: each costs two conversions, which are worth it only between operators that multiply.
OPERATORS = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool",
    "Relu", "Clip", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Resize", "Split", "Slice", "Sigmoid", "LeakyRelu",
)  # fmt: skip


def to_int8(path: Path, target: Path, feeds: Sequence[Mapping[str, Any]], *, weight_bits: int) -> None:
    """Write an int8 copy of the ONNX file `path`: weights per channel, maps uint8, ranges from the least and largest.

    Args:
        feeds: an array for each input's name, one mapping for each calibration call.
        weight_bits: one of `WEIGHT_BITS`.
    Raises: MissingExtra without onnx or onnxruntime, and their own errors for a file that they cannot quantise.
    """
    onnx = onnx_module()
    with needs("onnxruntime", "export"), still():
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds = iter(feeds)

        def get_next(self) -> Any:
            return next(self.feeds, None)

    with draft(Path(tempfile.gettempdir()), "leanconv-qdq-") as folder, still():
        ready = folder / "ready.onnx"
        quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(ready),
            str(target),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(OPERATORS),
            per_channel=True,
            reduce_range=weight_bits == 7,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
    onnx.checker.check_model(str(target))
