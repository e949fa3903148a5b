"""OpenVINO models as callables on torch tensors."""

import functools
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leanconv.deploy.calls import as_numpy
from leanconv.deploy.failures import first_line
from leanconv.errors import BadInput
from leanconv.extras import needs

# A model remembers at most this many accepted input sizes.
_MOST_SIZES = 256
# Number types that OpenVINO and NumPy share.
_DTYPES = {
    "f32": torch.float32, "f64": torch.float64, "i64": torch.int64, "i32": torch.int32, "u8": torch.uint8,
    "boolean": torch.bool,
}  # fmt: skip
_VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Convert", "Transpose", "Split", "VariadicSplit", "Slice", "StridedSlice"}


@functools.cache
def openvino_core() -> Any:
    """Return the only `openvino.Core` of the process, which is never freed. Raises MissingExtra without openvino.

    A Core's CPU plugin gives the thread its own signal stack (2026.4, on x86). When freed, it restores the stack that
    it found. If two Cores are freed in the order of their creation, the thread keeps a stack that is already freed.
    The next signal in Python then kills the process: Ctrl-C, or the end of a data loader's worker.
    """
    with needs("openvino", "export"):
        import openvino
    return openvino.Core()


def openvino_has_bfloat16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this CPU. On others it computes in float32, whatever it is told."""
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVino:
    """An OpenVINO model (in memory or a file) on the CPU, tuned for the latency of one call.

    Args:
        model: `openvino.Model`, or the path of an `.xml` or `.onnx` file.
        threads: threads of one inference (default: `torch.get_num_threads()`).
        precision: "f32", or "bf16" if the CPU computes in it.
        order: names of the call's tensors in order. The model may lack inputs that it does not read.
        shapes: shapes of the call's tensors if they never change. Fixed shapes are faster, and answers are written
            directly into torch tensors. Without them, the model's own dynamic sizes remain.
    Attributes:
        strict: whether a call with any other size or type of a tensor raises.
    Raises: MissingExtra without openvino, and openvino's own errors for a model that it cannot compile.
    """

    def __init__(
        self,
        model: Any,
        *,
        threads: int | None = None,
        precision: str = "f32",
        order: Sequence[str] | None = None,
        shapes: Sequence[Sequence[int]] | None = None,
    ) -> None:
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
        }
        core = openvino_core()
        import openvino

        self._shared = openvino.Tensor
        model = str(model) if isinstance(model, Path) else model
        model = core.read_model(model) if isinstance(model, str) else model
        self._places = _places([port.get_names() for port in model.inputs], order)
        if shapes is not None:
            model.reshape({i: [int(size) for size in shapes[place]] for i, place in enumerate(self._places)})
        self._compiled = core.compile_model(model, "CPU", settings)
        self.inputs = [_name(port, i) for i, port in enumerate(self._compiled.inputs)]
        self.outputs = [_name(port, i) for i, port in enumerate(self._compiled.outputs)]
        self._new_answer = None if shapes is None else _new_answer(model)
        self._thread = threading.local()
        self._model = model if any(port.partial_shape.is_dynamic for port in model.inputs) else None
        self._taken, self._lock = set[Any](), threading.Lock()
        # A tensor that no input reads is not looked at.
        self.strict = shapes is not None and self._model is None and len(self._places) == len(shapes)

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """Return the outputs. Raises BadInput for sizes that the model does not take."""
        request = getattr(self._thread, "request", None)
        if request is None:  # a request serves one call at a time, so each thread needs its own
            request = self._thread.request = self._compiled.create_infer_request()
        if self._new_answer is not None:
            return self._into_new(request, tensors, *self._new_answer)
        fed = [as_numpy(tensors[place]) for place in self._places]
        self._check([array.shape for array in fed])
        try:  # copy the answers: the request's next call overwrites its output memory
            found = request.infer(fed, share_inputs=True, share_outputs=True)
            return [torch.from_numpy(found[port].copy()) for port in self._compiled.outputs]
        except BaseException:
            del self._thread.request  # its next answer could be wrong
            raise

    def by_name(self, feed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._check([tuple(feed[name].shape) for name in self.inputs])
        found = self._compiled.create_infer_request().infer({name: as_numpy(each) for name, each in feed.items()})
        return {name: torch.from_numpy(found[self._compiled.output(name)].copy()) for name in self.outputs}

    def _check(self, shapes: Sequence[Sequence[int]]) -> None:
        """Raises BadInput for sizes that a model with dynamic sizes does not take.

        OpenVINO checks fixed sizes itself. With dynamic sizes, 2026.4 may return a part of the image. On one thread,
        it may return the same answer again for the next image.
        """
        if self._model is None:
            return
        key = tuple(map(tuple, shapes))
        with self._lock:
            if key in self._taken:
                return
            try:
                self._model.clone().reshape({i: list(shape) for i, shape in enumerate(key)})
            except RuntimeError as error:
                sizes = ", ".join("x".join(map(str, shape)) for shape in key)
                raise BadInput(f"the OpenVINO model does not take inputs of {sizes}: {first_line(error)}") from error
            if len(self._taken) >= _MOST_SIZES:
                self._taken.clear()
            self._taken.add(key)

    def _into_new(self, request: Any, tensors: Sequence[Tensor], shape: list[int], dtype: torch.dtype) -> list[Tensor]:
        """Let the request read and write torch's memory. For a small layer, copies would take 70 of 190 µs."""
        fed = [as_numpy(tensors[place]) for place in self._places]  # keep them alive: OpenVINO holds bare addresses
        for i, array in enumerate(fed):
            request.set_input_tensor(i, self._shared(array, shared_memory=True))
        answer = torch.empty(shape, dtype=dtype)
        request.set_output_tensor(0, self._shared(answer.numpy(), shared_memory=True))
        request.infer()
        return [answer]


def _name(port: Any, index: int) -> str:
    return port.any_name if port.get_names() else str(index)


def _new_answer(model: Any) -> tuple[list[int], torch.dtype] | None:
    """Return shape and dtype of the model's answer if OpenVINO can write it into the caller's memory, else None.

    The answer must be the only one: several may share memory. Its shape and type must be fixed. The model must compute
    it: an input that is passed through, or a view of one, comes out wrong in the caller's memory (2026.4).
    """
    if len(model.outputs) != 1:
        return None
    port, node = model.outputs[0], model.outputs[0].node
    dtype = _DTYPES.get(port.element_type.get_type_name())
    while node.get_type_name() in {"Result", *_VIEWS}:
        node = node.input_value(0).get_node()
    if node.get_type_name() in ("Parameter", "Constant") or port.partial_shape.is_dynamic or dtype is None:
        return None
    return list(port.partial_shape.to_shape()), dtype


def _places(names: Sequence[set[str]], order: Sequence[str] | None) -> list[int]:
    """Return, for each input of a program, the index of its tensor in a call."""
    if order is None or len(names) == len(order):
        return list(range(len(names)))
    return [next(i for i, name in enumerate(order) if name in known) for known in names]
