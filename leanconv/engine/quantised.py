"""OpenVINO and ONNX Runtime in int8, calibrated on the workbench's data."""

import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from leanconv.deploy.calls import as_numpy
from leanconv.deploy.int8 import Calibration, nncf_openvino, qdq_onnx
from leanconv.deploy.openvino import OpenVino
from leanconv.deploy.program import input_order, save_onnx, to_openvino
from leanconv.deploy.runtimes import OnnxRuntime
from leanconv.engine.candidate import ModelForm, missing
from leanconv.engine.workbench import Workbench
from leanconv.files import draft
from leanconv.kernels import cpuinfo
from leanconv.measure.hardware.number_types import HALF


def why_not(bench: Workbench, *libraries: str) -> str | None:
    """Why a peer has no int8 form of this model, or None."""
    if bench.calibration is None:
        return "int8 needs calibration data"
    return missing(*libraries)


def seconds(bench: Workbench) -> float:
    """What int8 takes beside the conversion: reading ranges, quantising, and the loss on the data.

    A U-Net of 159 layers and 32 pictures of 256 px took about four calls a picture on one core.
    """
    calls = 0 if bench.calibration is None else len(bench.calibration.tensors)
    return 2.0 + 0.05 * bench.layers + 4 * calls * bench.call_s


def openvino_int8(bench: Workbench) -> ModelForm:
    """The first of NNCF's presets whose loss is allowed, else the one with the least loss."""
    program, calibration = bench.program, _calibration(bench)
    model, order = to_openvino(program), input_order(program)
    names = [next(name for name in order if name in port.get_names()) for port in model.inputs]
    feeds = [{name: each[name] for name in names} for each in _feeds(calibration, order)]

    def forms() -> Iterator[ModelForm]:
        for preset in nncf_openvino.PRESETS:
            runtime = OpenVino(
                nncf_openvino.to_int8(model, feeds, preset),
                threads=bench.threads,
                order=order,
                shapes=[tensor.shape for tensor in bench.tensors],
            )
            yield bench.from_flat(runtime, alone=True)

    return _least(calibration, forms())


def onnxruntime_int8(bench: Workbench) -> ModelForm:
    program, calibration = bench.program, _calibration(bench)
    inputs = [f"input{i}" for i in range(len(input_order(program)))]
    outputs = [f"output{i}" for i in range(len(program.graph_signature.user_outputs))]
    with draft(Path(tempfile.gettempdir()), "leanconv-onnx-") as folder:
        exact, quantised = folder / "model.onnx", folder / "int8.onnx"
        save_onnx(program, exact, inputs=inputs, outputs=outputs)
        qdq_onnx.to_int8(exact, quantised, list(_feeds(calibration, inputs)), narrow=not has_vnni(cpuinfo()[1]))
        return bench.from_flat(OnnxRuntime(quantised, threads=bench.threads), alone=True)


def has_vnni(features: Collection[str]) -> bool:
    """Whether a processor with these features adds products of 8 bits without overflow. Those of Arm all do."""
    return "sse2" not in features or bool({"avx512_vnni", "avx_vnni", "amx_int8"} & set(features))


def _least(calibration: Calibration, forms: Iterator[ModelForm]) -> ModelForm:
    found: list[tuple[float, ModelForm]] = []
    for form in forms:
        found.append((calibration.loss(form), form))
        if calibration.accepts(found[-1][0]):
            return form
    return min(found, key=lambda each: each[0])[1]


def _calibration(bench: Workbench) -> Calibration:
    assert bench.calibration is not None
    return bench.calibration


def _feeds(calibration: Calibration, names: list[str]) -> Iterator[dict[str, Any]]:
    """The calls as arrays by name. Captured programs of half-precision models take float32."""
    for tensors in calibration.tensors:
        wide = [t.float() if t.dtype in HALF else t for t in tensors]
        yield dict(zip(names, map(as_numpy, wide), strict=True))
