"""OpenVINO and ONNX Runtime in int8, calibrated on the workbench's data."""

import math
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from leanconv.deploy.calls import as_numpy
from leanconv.deploy.int8 import Calibration, nncf_openvino, qdq_onnx
from leanconv.deploy.openvino import OpenVino, openvino_has_bfloat16
from leanconv.deploy.program import input_order, save_onnx, to_openvino
from leanconv.deploy.runtimes import OnnxRuntime
from leanconv.engine.candidate import ModelForm, missing
from leanconv.engine.workbench import Workbench
from leanconv.files import draft
from leanconv.kernels import cpuinfo
from leanconv.measure import interleave
from leanconv.measure.hardware.number_types import HALF

# Seconds in which two forms of one engine are compared.
COMPARE_S = 0.5


def why_not(bench: Workbench, *libraries: str) -> str | None:
    """Why a peer has no int8 form of this model, or None."""
    if bench.calibration is None:
        return "int8 needs calibration data"
    return missing(*libraries)


def seconds(bench: Workbench) -> float:
    """What int8 takes beside the conversion: reading ranges, quantising, and the loss on the data.

    A U-Net of 159 layers takes 10 s on one core with 8 pictures of 256 px.
    """
    calls = 0 if bench.calibration is None else len(bench.calibration.tensors)
    return 2.0 + 0.03 * bench.layers + 2.5 * calls * bench.call_s


def openvino_int8(bench: Workbench) -> ModelForm:
    """The first of NNCF's presets whose loss is allowed, else the one with the least loss.

    What stays in float computes in float32 or bfloat16, whichever is faster. A U-Net with SPLConv gained a tenth by
    bfloat16 on a Zen 4 core, and a MobileNetV3-Small lost as much.
    """
    program, calibration = bench.program, _calibration(bench)
    model, order = to_openvino(program), input_order(program)
    names = [next(name for name in order if name in port.get_names()) for port in model.inputs]
    feeds = [{name: each[name] for name in names} for each in _feeds(calibration, order)]
    shapes = [tensor.shape for tensor in bench.tensors]

    def compiled(quantised: Any, precision: str) -> ModelForm:
        runtime = OpenVino(quantised.clone(), threads=bench.threads, precision=precision, order=order, shapes=shapes)
        return bench.from_flat(runtime, alone=True)

    best, lost = None, math.inf
    for preset in nncf_openvino.PRESETS:
        quantised = nncf_openvino.to_int8(model, feeds, preset, weight_bits=_weight_bits())
        form = compiled(quantised, "f32")
        loss = calibration.loss(form)
        if best is None or loss < lost:
            best, lost = form, loss
        if calibration.accepts(lost):
            if openvino_has_bfloat16():
                return _faster(bench, form, compiled(quantised, "bf16"))
            return form
    assert best is not None
    return best


def onnxruntime_int8(bench: Workbench) -> ModelForm:
    program, calibration = bench.program, _calibration(bench)
    inputs = [f"input{i}" for i in range(len(input_order(program)))]
    outputs = [f"output{i}" for i in range(len(program.graph_signature.user_outputs))]
    with draft(Path(tempfile.gettempdir()), "leanconv-onnx-") as folder:
        exact, quantised = folder / "model.onnx", folder / "int8.onnx"
        save_onnx(program, exact, inputs=inputs, outputs=outputs)
        qdq_onnx.to_int8(exact, quantised, list(_feeds(calibration, inputs)), weight_bits=_weight_bits())
        return bench.from_flat(OnnxRuntime(quantised, threads=bench.threads), alone=True)


def _weight_bits() -> int:
    return 8 if has_vnni(cpuinfo()[1]) else 7


def has_vnni(features: Collection[str]) -> bool:
    """Whether a processor with these features adds products of 8 bits without overflow. Those of Arm all do."""
    return "sse2" not in features or bool({"avx512_vnni", "avx_vnni", "amx_int8"} & set(features))


def _faster(bench: Workbench, form: ModelForm, other: ModelForm) -> ModelForm:
    """`other` if its median is below the form's, and its loss is allowed."""
    args, kwargs = bench.call()
    calls = {"form": lambda: form(*args, **kwargs), "other": lambda: other(*args, **kwargs)}
    times = interleave(calls, budget_s=COMPARE_S, min_rounds=3, clock=bench.clock)
    if times["other"].median_ms >= times["form"].median_ms or not _calibration(bench).accepts(
        _calibration(bench).loss(other)
    ):
        return form
    return other


def _calibration(bench: Workbench) -> Calibration:
    assert bench.calibration is not None
    return bench.calibration


def _feeds(calibration: Calibration, names: list[str]) -> Iterator[dict[str, Any]]:
    """The calls as arrays by name. Captured programs of half-precision models take float32."""
    for tensors in calibration.tensors:
        wide = [t.float() if t.dtype in HALF else t for t in tensors]
        yield dict(zip(names, map(as_numpy, wide), strict=True))
