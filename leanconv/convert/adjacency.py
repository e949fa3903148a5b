"""Which layer feeds which normalisation, and nobody else: observed by running the model, not guessed from names."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from leanconv.running import Inputs, call, tensors, watched


@dataclass
class Output:
    """One tensor that a watched layer returned: its readers, and whether it outlives the run."""

    layer: nn.Module
    tensor: "weakref.ref[Tensor]"
    readers: list[object] = field(default_factory=list)
    returned: bool = False


@dataclass
class Watch:
    """What one run showed: the outputs of every layer, the calls of every module, the input of every normalisation.

    `path`: the operators that ran, one after another, each with the parameters and buffers that it read.
    """

    outputs: list[Output] = field(default_factory=list)
    calls: dict[nn.Module, int] = field(default_factory=dict)
    inputs: dict[nn.Module, Output | None] = field(default_factory=dict)
    live: dict[int, Output] = field(default_factory=dict)
    inside: list[tuple[nn.Module, Output | None]] = field(default_factory=list)
    path: list[Any] = field(default_factory=list)

    def output_of(self, tensor: Tensor) -> Output | None:
        """The record of this very tensor object, if a watched layer returned it and it still lives."""
        found = self.live.get(id(tensor))
        return found if found is not None and found.tensor() is tensor else None

    def why_not(self, norm: nn.Module) -> str | None:
        """Why the normalisation cannot be folded into the layer before it, or None if it can."""
        calls = self.calls.get(norm, 0)
        if calls != 1:
            return "never called" if calls == 0 else f"called {calls} times"
        source = self.inputs[norm]
        if source is None:
            return "does not follow a layer that can absorb it"
        if self.calls[source.layer] != 1:
            return f"the layer before it is called {self.calls[source.layer]} times"
        others = [reader for reader in source.readers if reader is not norm]
        if others:
            return f"the output before it is also read by {', '.join(sorted({str(o) for o in others}))}"
        return "the output before it is also returned or kept by the model" if source.returned else None


class _Readers(TorchDispatchMode):
    """Notes every aten operation that reads a watched output; what a normalisation runs on its input is its own."""

    def __init__(self, watch: Watch, model: nn.Module) -> None:
        super().__init__()
        self.watch = watch
        self.own = {id(t) for t in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = tensors((args, kwargs))
        self.watch.path.append((func, *[id(t) for t in read if id(t) in self.own]))
        for tensor in read:
            output = self.watch.output_of(tensor)
            if output is not None:
                inside, source = self.watch.inside[-1] if self.watch.inside else (None, None)
                output.readers.append(inside if source is output else str(func.overloadpacket).removeprefix("aten."))
        return func(*args, **(kwargs or {}))


def watch(model: nn.Module, inputs: Inputs, layers: list[nn.Module], norms: list[nn.Module]) -> Watch:
    """Run the model once, without a trace; record the layer that feeds each of `norms`, and its other readers."""
    seen = Watch()
    handles = [layer.register_forward_hook(_noting_output(seen)) for layer in layers]
    for norm in norms:
        handles.append(norm.register_forward_pre_hook(_entering(seen)))
        handles.append(norm.register_forward_hook(_leaving(seen), always_call=True))
    try:
        with watched(model), _Readers(seen, model):
            outputs = call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    if any(output.tensor() is not None for output in seen.outputs):
        gc.collect()  # a reference cycle is no reader
    for output in seen.outputs:
        output.returned = output.tensor() is not None
    del outputs  # held until here: whatever lives now is in the answer (an object or a closure too), or was kept
    return seen


def path_of(model: nn.Module, inputs: Inputs) -> list[Any]:
    """The operators that the model runs on `inputs`, with what they read of its own. Raises BadInput where it fails."""
    seen = Watch()
    with watched(model), _Readers(seen, model):
        call(model, inputs)
    return seen.path


def _noting_output(seen: Watch) -> Callable[..., None]:
    def hook(module: nn.Module, arguments: Any, output: Any) -> None:
        seen.calls[module] = seen.calls.get(module, 0) + 1
        if isinstance(output, Tensor):
            record = Output(module, weakref.ref(output))
            seen.outputs.append(record)
            seen.live[id(output)] = record

    return hook


def _entering(seen: Watch) -> Callable[..., None]:
    def hook(module: nn.Module, arguments: Any) -> None:
        seen.calls[module] = seen.calls.get(module, 0) + 1
        source = seen.output_of(arguments[0]) if arguments and isinstance(arguments[0], Tensor) else None
        seen.inputs[module] = source
        seen.inside.append((module, source))

    return hook


def _leaving(seen: Watch) -> Callable[..., None]:
    def hook(module: nn.Module, arguments: Any, output: Any) -> None:
        seen.inside.pop()

    return hook
