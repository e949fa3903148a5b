"""ONNX Runtime and OpenVINO as engines on the CPU, with fixed input sizes."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.export import ExportedProgram

from leanconv.deploy.openvino import OpenVino, openvino_has_bfloat16
from leanconv.deploy.program import input_order, save_onnx, to_openvino
from leanconv.deploy.runtimes import OnnxRuntime
from leanconv.engine import int8
from leanconv.engine.candidate import Candidate, ModelForm, missing
from leanconv.engine.workbench import Workbench
from leanconv.extras import needs
from leanconv.files import draft

# The files of a stored form.
_ONNX, _OPENVINO = "model.onnx", "model.xml"


def _seconds(bench: Workbench) -> float:
    # Converting a U-Net of 160 layers takes 3 s on one core.
    return bench.capture_s + 1.0 + 0.02 * bench.layers + 3 * bench.call_s


def _openvino_seconds(bench: Workbench) -> float:
    is_converted = not bench.capture_s and bench.program in _CONVERTED
    return 0.5 + 0.005 * bench.layers + 3 * bench.call_s if is_converted else _seconds(bench)


def _onnxruntime_why_not(bench: Workbench, dtype: torch.dtype | None) -> str | None:
    if reason := missing("onnx", "onnxscript", "onnxruntime"):
        return reason
    if bench.device.type != "cpu":
        return f"used on the CPU only; the model is on {bench.device}"
    if dtype is torch.int8:
        return int8.why_not(bench)
    if dtype not in (None, torch.float32):
        return f"it has no {str(dtype).removeprefix('torch.')} convolution on the CPU"
    return None


def _onnxruntime(bench: Workbench, dtype: torch.dtype | None) -> ModelForm:
    if dtype is torch.int8:
        return int8.onnxruntime_int8(bench)
    program = bench.program
    inputs = [f"input{i}" for i in range(len(input_order(program)))]
    outputs = [f"output{i}" for i in range(len(program.graph_signature.user_outputs))]
    with draft(Path(tempfile.gettempdir()), "leanconv-onnx-") as folder:
        path = folder / "model.onnx"
        save_onnx(program, path, inputs=inputs, outputs=outputs)
        form = bench.from_flat(OnnxRuntime(path, threads=bench.threads), alone=True)
    if bench.plain and not bench.half:

        def store(into: Path) -> None:
            save_onnx(program, into / _ONNX, inputs=inputs, outputs=outputs)

        form.store = store  # type: ignore[attr-defined]
    return form


def _open_onnxruntime(folder: Path, shape: torch.Size) -> ModelForm:
    return _alone(OnnxRuntime(folder / _ONNX))


def _openvino_why_not(bench: Workbench, dtype: torch.dtype | None) -> str | None:
    if reason := missing("openvino"):
        return reason
    if bench.device.type != "cpu":
        return f"used on the CPU only; the model is on {bench.device}"
    if dtype is torch.int8:
        return int8.why_not(bench, "nncf")
    if dtype not in (None, torch.float32, torch.bfloat16):
        return f"it has no {str(dtype).removeprefix('torch.')} inference on the CPU"
    if dtype is torch.bfloat16 and not bench.half and not openvino_has_bfloat16():
        return "it computes bfloat16 in float32 on this CPU, as the row without it"
    return None


_CONVERTED: WeakKeyDictionary[ExportedProgram, Any] = WeakKeyDictionary()


def openvino_model(program: ExportedProgram) -> Any:
    """The program as an `openvino.Model`. Cached: it takes seconds, and each number type asks for it."""
    if program not in _CONVERTED:
        _CONVERTED[program] = to_openvino(program)
    return _CONVERTED[program]


def _openvino(bench: Workbench, dtype: torch.dtype | None) -> ModelForm:
    if dtype is torch.int8:
        return int8.openvino_int8(bench)
    precision = "bf16" if (dtype or bench.dtype) is torch.bfloat16 else "f32"
    program = bench.program
    model = openvino_model(program)
    runtime = OpenVino(
        model,
        threads=bench.threads,
        precision=precision,
        order=input_order(program),
        shapes=[tensor.shape for tensor in bench.tensors],
    )
    form = bench.from_flat(runtime, alone=True)
    if bench.plain and precision == "f32" and not bench.half:

        def store(into: Path) -> None:
            with needs("openvino", "export"):
                import openvino

            openvino.save_model(model, str(into / _OPENVINO), compress_to_fp16=False)

        form.store = store  # type: ignore[attr-defined]
    return form


def _open_openvino(folder: Path, shape: torch.Size) -> ModelForm:
    return _alone(OpenVino(folder / _OPENVINO, shapes=[shape]))


def _alone(runtime: Callable[..., list[Tensor]]) -> ModelForm:
    return lambda x: runtime(x)[0]


ONNXRUNTIME = Candidate(
    "onnxruntime", _onnxruntime_why_not, _seconds, _onnxruntime, opens=_open_onnxruntime, int8_s=int8.seconds
)
OPENVINO = Candidate(
    "openvino", _openvino_why_not, _openvino_seconds, _openvino, widens=True, opens=_open_openvino, int8_s=int8.seconds
)
