"""Exported programs as callables on torch tensors: ONNX Runtime, torch.export, and one module around any of them.

A runtime takes the program's tensors as positional arguments and returns a list. Contiguous CPU tensors are passed
without a copy. All runtimes may be called from several threads.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.deploy.calls import Frame, as_numpy
from leanconv.deploy.failures import first_line
from leanconv.deploy.openvino import OpenVino
from leanconv.deploy.program import quiet
from leanconv.errors import BadInput
from leanconv.extras import needs


class OnnxRuntime:
    """An ONNX file in ONNX Runtime on the CPU, with all graph optimisations, on `threads` threads.

    Attributes:
        strict: whether a call with any other size or type of a tensor raises.

    Raises: MissingExtra without onnxruntime, and onnxruntime's own errors for a file that it cannot read.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        with needs("onnxruntime", "export"):
            import onnxruntime
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # its warnings concern its own choices, not ours
        # Workers may spin inside a call, which is fastest. After a call they would occupy the caller's cores.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = [each.name for each in self._session.get_inputs()]
        self.outputs = [each.name for each in self._session.get_outputs()]
        self.strict = all(type(size) is int for each in self._session.get_inputs() for size in each.shape)

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        if len(tensors) == 1 == len(self.inputs):
            feed = {self.inputs[0]: as_numpy(tensors[0])}
        else:
            feed = dict(zip(self.inputs, map(as_numpy, tensors), strict=True))
        return [torch.from_numpy(each) for each in self._session.run(self.outputs, feed)]

    def by_name(self, feed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = self._session.run(self.outputs, {name: as_numpy(tensor) for name, tensor in feed.items()})
        return dict(zip(self.outputs, map(torch.from_numpy, found), strict=True))


class TorchProgram:
    """A `.pt2` file (torch.export) that PyTorch runs. It takes the model's own arguments."""

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
    """An exported file with the call signature of its model. Inference only, without parameters.

    `like`: the model. It provides all other attributes, for example `size_multiple`.
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
        # Callers read a model's device and dtype from its first parameter.
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
        """Return the program's tensors in the structure and dtypes of the model's answer."""
        if self.dtypes:
            found = [tensor.to(dtype) for tensor, dtype in zip(found, self.dtypes, strict=True)]
        if self.frame is not None:
            return self.frame.join(found)
        return found[0] if len(found) == 1 else tuple(found)


def open_file(path: str | Path, *, threads: int | None = None) -> Runtime:
    """Open an exported file (`.onnx`, `.xml`, `.pt2`) as a module. Raises BadInput for other or unreadable files."""
    path = Path(path)
    if path.suffix not in RUNTIMES:
        raise BadInput(f"{path}: {path.suffix or 'no suffix'} cannot be run here; one of {', '.join(RUNTIMES)}")
    if not path.is_file():
        raise BadInput(f"{path}: the file does not exist")
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
