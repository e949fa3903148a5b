"""Exported programs as callables on torch tensors: ONNX Runtime, OpenVINO, torch.export.

A runtime takes the program's tensors one after another and gives a list; inputs are handed over without a copy where
they are contiguous on the CPU. All of them may be called from many threads at once.
"""

import functools
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.deploy.calls import Frame
from leanconv.deploy.program import quiet
from leanconv.errors import BadInput, LeanconvError
from leanconv.extras import needs


class OnnxRuntime:
    """An ONNX file in ONNX Runtime on the CPU, with every graph optimisation, on `threads` threads.

    Raises: MissingExtra without onnxruntime; what onnxruntime raises for a file it cannot read.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        with needs("onnxruntime", "export"):
            import onnxruntime
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # its warnings are about its own choices, not about ours
        # Workers may spin inside a call, where it is fastest, but not after it: they would take the caller's cores.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = [each.name for each in self._session.get_inputs()]
        self.outputs = [each.name for each in self._session.get_outputs()]

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        if len(tensors) == 1 == len(self.inputs):
            feed = {self.inputs[0]: as_numpy(tensors[0])}
        else:
            feed = dict(zip(self.inputs, map(as_numpy, tensors), strict=True))
        return [torch.from_numpy(each) for each in self._session.run(self.outputs, feed)]

    def by_name(self, feed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = self._session.run(self.outputs, {name: as_numpy(tensor) for name, tensor in feed.items()})
        return dict(zip(self.outputs, map(torch.from_numpy, found), strict=True))


@functools.cache
def openvino_core() -> Any:
    """The one `openvino.Core` of the process, never freed. Raises MissingExtra without openvino.

    A Core's CPU plugin gives the thread a signal stack of its own, and takes back the one it found when it is freed
    (2026.4, on x86): of two Cores freed in the order they were made, the freed stack of the first stays, and the next
    signal that Python handles, Ctrl-C or the end of a data loader's worker, kills the process.
    """
    with needs("openvino", "export"):
        import openvino
    return openvino.Core()


class OpenVino:
    """An OpenVINO model (in memory, or a file) on the CPU, tuned for the latency of one call.

    Args:
        model: `openvino.Model`, or the path of an `.xml` or `.onnx` file.
        threads: of one inference; default `torch.get_num_threads()`.
        precision: "f32", or "bf16" where the CPU computes in it.
        order: names of the tensors of a call, in order; inputs that the model does not read may be missing in it.
        shapes: of the tensors of a call, where they are always the same: then it is faster, and writes its answers
            into tensors of the caller's. Otherwise sizes are as open as the model has them.
    Raises: MissingExtra without openvino; what openvino raises for a model it cannot compile.
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
        self._made = None if shapes is None else _own_answer(model)
        self._thread = threading.local()
        self._model = model if any(port.partial_shape.is_dynamic for port in model.inputs) else None
        self._taken, self._lock = set[Any](), threading.Lock()

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """The outputs. Raises BadInput for sizes that the model does not take."""
        request = getattr(self._thread, "request", None)
        if request is None:  # a request belongs to one call at a time, so each thread has its own
            request = self._thread.request = self._compiled.create_infer_request()
        if self._made is not None:
            return self._into_new(request, tensors, *self._made)
        fed = [as_numpy(tensors[place]) for place in self._places]
        self._check([array.shape for array in fed])
        try:  # the request's output memory is written again by its next call: it is copied out
            found = request.infer(fed, share_inputs=True, share_outputs=True)
            return [torch.from_numpy(found[port].copy()) for port in self._compiled.outputs]
        except BaseException:
            del self._thread.request  # what it would answer next is not known
            raise

    def by_name(self, feed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._check([tuple(feed[name].shape) for name in self.inputs])
        found = self._compiled.create_infer_request().infer({name: as_numpy(each) for name, each in feed.items()})
        return {name: torch.from_numpy(found[self._compiled.output(name)].copy()) for name in self.outputs}

    def _check(self, shapes: Sequence[Sequence[int]]) -> None:
        """Raises BadInput for sizes that do not go through a model with open ones.

        OpenVINO sees that by itself where sizes are fixed. With open ones 2026.4 may answer with a part of the image,
        and on one thread give that answer again to the next image.
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
        """The request reads and writes torch's own memory: of 190 µs of a small layer, 70 are copies else."""
        fed = [as_numpy(tensors[place]) for place in self._places]  # alive until the end: OpenVINO has an address alone
        for i, array in enumerate(fed):
            request.set_input_tensor(i, self._shared(array, shared_memory=True))
        answer = torch.empty(shape, dtype=dtype)
        request.set_output_tensor(0, self._shared(answer.numpy(), shared_memory=True))
        request.infer()
        return [answer]


class TorchProgram:
    """A `.pt2` file (torch.export) run by PyTorch itself; called with the model's own arguments."""

    inputs: list[str]
    outputs: list[str]

    def __init__(self, path: str | Path) -> None:
        with quiet():
            program = torch.export.load(str(path))
        self._module = program.module()
        self.inputs = list(program.graph_signature.user_inputs)
        self.outputs = [str(name) for name in program.graph_signature.user_outputs]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._module(*args, **kwargs)


class Runtime(nn.Module):
    """An exported file that is called like the model it came from; inference only, no weights of its own.

    `like`: the model, whose attributes (`size_multiple`, say) callers may ask for.
    """

    def __init__(
        self,
        run: Any,
        *,
        outputs: Frame | None = None,
        dtypes: Sequence[torch.dtype] = (),
        like: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.run, self.frame, self.dtypes = run, outputs, tuple(dtypes)
        self.flat = not isinstance(run, TorchProgram)
        # Callers ask the first parameter for a model's device and dtype.
        self.device_tag = nn.Parameter(torch.empty(0), requires_grad=False)
        self.__dict__["like"] = like
        self.eval()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if (like := self.__dict__.get("like")) is None:
                raise
            return getattr(like, name)

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.flat:
            return self.run(*args, **kwargs)
        found = self.run(*Frame.split((args, kwargs))[0])
        return self.joined(found)

    def joined(self, found: Sequence[Tensor]) -> Any:
        """The program's tensors as the model gives them."""
        if self.dtypes:
            found = [tensor.to(dtype) for tensor, dtype in zip(found, self.dtypes, strict=True)]
        if self.frame is not None:
            return self.frame.join(found)
        return found[0] if len(found) == 1 else tuple(found)


def open_file(path: str | Path, *, threads: int | None = None) -> Runtime:
    """An exported file (`.onnx`, `.xml`, `.pt2`) as a callable. Raises BadInput for any other, or an unreadable one."""
    path = Path(path)
    if path.suffix not in RUNTIMES:
        raise BadInput(f"{path}: {path.suffix or 'no suffix'} cannot be run here; one of {', '.join(RUNTIMES)}")
    if not path.is_file():
        raise BadInput(f"{path}: there is no such file")
    try:
        return Runtime(RUNTIMES[path.suffix](path, threads))
    except (ImportError, BadInput):
        raise
    except Exception as error:
        raise BadInput(f"{path}: cannot be opened: {first_line(error)}") from error


RUNTIMES: dict[str, Any] = {
    ".onnx": lambda path, threads: OnnxRuntime(path, threads=threads),
    ".xml": lambda path, threads: OpenVino(path, threads=threads),
    ".pt2": lambda path, threads: TorchProgram(path),
}


def as_numpy(tensor: Tensor) -> Any:
    """The tensor's memory as an array; copied only where it is not contiguous on the CPU."""
    if tensor.is_cpu and not tensor.requires_grad and tensor.is_contiguous():
        return tensor.numpy()  # the three steps below take 2 µs to find out that there is nothing to do
    return tensor.detach().cpu().contiguous().numpy()


def first_line(error: BaseException) -> str:
    """`RuntimeError: what happened`, one line of at most 200 characters; an error of ours is a line of its own."""
    if isinstance(error, LeanconvError):
        return str(error)
    lines = [line.strip(" -") for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()]
    told = [line for line in lines if not _OPENING.match(line)] or lines or [""]
    return f"{type(error).__name__}: {told[0]}"[:200]


def reason(error: BaseException) -> str:
    """The first line of the error at the bottom of the chain: converters wrap the reason in pages of advice."""
    while error.__cause__ is not None and not isinstance(error, LeanconvError):
        error = error.__cause__
    return first_line(error)


def _name(port: Any, index: int) -> str:
    return port.any_name if port.get_names() else str(index)


# Sizes of inputs that are known to go through an OpenVINO model, at most.
_MOST_SIZES = 256
# OpenVINO opens with the places in its own source: the reason stands below.
_OPENING = re.compile(r"Exception from |Check '.*' failed at |FrontEnd API failed with |Model wasn't fully |Summary:")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

# What both OpenVINO and NumPy have.
_DTYPES = {
    "f32": torch.float32, "f64": torch.float64, "i64": torch.int64, "i32": torch.int32, "u8": torch.uint8,
    "boolean": torch.bool,
}  # fmt: skip
_VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Convert", "Transpose", "Split", "VariadicSplit", "Slice", "StridedSlice"}


def _own_answer(model: Any) -> tuple[list[int], torch.dtype] | None:
    """Shape and dtype of an OpenVINO model's answer, where it may be written into any memory: its size and type are
    known, and it is one that the model computes. (An input that is handed out, or a view of it, is wrong in memory of
    the caller's, 2026.4; several answers may share theirs.)
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
    """For each input of a program the place of its tensor in a call."""
    if order is None or len(names) == len(order):
        return list(range(len(names)))
    return [next(i for i, name in enumerate(order) if name in known) for known in names]
