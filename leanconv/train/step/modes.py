"""The modes of a training step: what each changes in a model, and where it cannot run.

A mode is a set of words, and its name lists them: "channels_last compile". Without a word it is "eager", the model as
it is given. To add a mode that changes the model in place, add its word to `CHANGES`.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from leanconv.errors import BadInput, UnknownName
from leanconv.kernels import inductor
from leanconv.kernels.training import available as kernels_missing
from leanconv.kernels.training import use_training_kernels_
from leanconv.measure.state import bare
from leanconv.registry import nearest
from leanconv.running import tensors

BFLOAT16, COMPILE, EAGER, KERNELS, RECOMPUTE = "bfloat16", "compile", "eager", "kernels", "recompute"


class Handle(Protocol):
    """A change of a model that can be taken back."""

    def remove(self) -> None:
        """Put the model back; its parameters keep the numbers that they have now."""


@dataclass(frozen=True)
class Change:
    """A change of a model in place: `apply` makes it, `why_not` says why it would be of no use, or ""."""

    apply: Callable[[nn.Module], Handle]
    why_not: Callable[[nn.Module], str]


class ChannelsLast:
    """Parameters and buffers `A B H W` stored with the channels last: convolutions on most devices are faster then."""

    def __init__(self, model: nn.Module) -> None:
        self._before = [(tensor, tensor.data) for tensor in _maps(model)]
        for tensor, data in self._before:
            tensor.data = data.contiguous(memory_format=torch.channels_last)

    def remove(self) -> None:
        for tensor, data in self._before:
            data.copy_(tensor.data)
            tensor.data = data


def _maps(model: nn.Module) -> list[Tensor]:
    return [t for t in chain(model.parameters(), model.buffers()) if t.dim() == 4]


def _no_use(model: nn.Module) -> str:
    if not (maps := _maps(model)):
        return "the model has no parameters of four axes"
    given = all(t.is_contiguous(memory_format=torch.channels_last) for t in maps)
    return "the model is given so" if given else ""


def _no_kernels(model: nn.Module) -> str:
    if reason := why_not_kernels(next((p.device for p in model.parameters()), torch.device("cpu"))):
        return reason
    with use_training_kernels_(model) as found:
        return "" if found.layers else "no layer of the model has a kernel for training"


def _by_name_alone(model: nn.Module) -> str:
    return "it takes less memory than the kernels, and more time: name it if memory is short"


# Changes of a model in place, in the order of a mode's name.
CHANGES: dict[str, Change] = {
    "channels_last": Change(ChannelsLast, _no_use),
    RECOMPUTE: Change(functools.partial(use_training_kernels_, recompute=True), _by_name_alone),
    KERNELS: Change(use_training_kernels_, _no_kernels),
}


@dataclass(frozen=True)
class Mode:
    """A mode by its words, in the order of its name."""

    words: tuple[str, ...] = ()

    @classmethod
    def parse(cls, name: str) -> Self:
        """The mode of a name. Raises UnknownName."""
        words = [] if name == EAGER else name.split()
        for word in words:
            if word not in WORDS:
                known = [EAGER, *WORDS]
                raise UnknownName(f"unknown training mode {word!r}{nearest(word, known)}; known: {', '.join(known)}")
        if not words and name != EAGER:
            raise BadInput(f"a training mode has no name; say {EAGER}, or some of {', '.join(WORDS)}")
        return cls(tuple(word for word in WORDS if word in words))

    @property
    def name(self) -> str:
        return " ".join(self.words) or EAGER

    def __contains__(self, word: str) -> bool:
        return word in self.words

    def plus(self, word: str) -> "Mode":
        return Mode(tuple(each for each in WORDS if each in self.words or each == word))


WORDS = (*CHANGES, BFLOAT16, COMPILE)


def uncompiled(model: nn.Module, *, bfloat16: bool) -> list[Mode]:
    """Every sensible combination without torch.compile, the simplest first."""
    useful = [word for word, change in CHANGES.items() if not change.why_not(bare(model))]
    sets = [Mode(words) for count in range(len(useful) + 1) for words in combinations(useful, count)]
    return sets + [mode.plus(BFLOAT16) for mode in sets if bfloat16]


class Forward:
    """A model's forward pass in a mode, with the model's call signature. Floating-point results are float32 if autocast
    made them bfloat16.

    Args:
        model: the user's model, which may be wrapped for several processes.
        mode: what to run.
        like: arguments whose sizes a compiled program is for; it runs other sizes uncompiled, since a program for
            each takes a minute. None: the sizes of the first call.
    """

    def __init__(self, model: nn.Module, mode: Mode, like: Any = None) -> None:
        self.model, self.mode = model, mode
        self._device = next((p.device.type for p in model.parameters()), "cpu")
        self._sizes = None if like is None else _sizes(like)
        self._compiled: Callable[..., Any] | None = None
        if COMPILE in mode:
            # Dropout draws the numbers that it draws uncompiled, unless memory formats differ. One size: see above.
            options: Any = {"fallback_random": True}
            self._compiled = torch.compile(inductor.own_code(model), dynamic=False, options=options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if "channels_last" in self.mode:
            args, kwargs = tree_map_only(Tensor, _channels_last, (args, kwargs))
        run: Callable[..., Any] = self.model
        if self._compiled is not None:
            self._sizes = self._sizes or _sizes((args, kwargs))
            run = self._compiled if _sizes((args, kwargs)) == self._sizes else self.model
        if BFLOAT16 not in self.mode:
            return run(*args, **kwargs)
        with torch.autocast(self._device, torch.bfloat16):
            outputs = run(*args, **kwargs)
        return tree_map_only(Tensor, lambda t: t.float() if t.dtype == torch.bfloat16 else t, outputs)

    def in_float32(self) -> Self:
        """The same without bfloat16, nor compiled."""
        found = copy.copy(self)
        found.mode = Mode(tuple(word for word in self.mode.words if word not in (BFLOAT16, COMPILE)))
        found._compiled = None
        return found

    @contextmanager
    def changes(self) -> Iterator[None]:
        """The mode's changes of the model, taken back at the end."""
        handles = self.change_()
        try:
            yield
        finally:
            for handle in reversed(handles):
                handle.remove()

    def change_(self) -> list[Handle]:
        """Make the mode's changes of the model."""
        return [CHANGES[word].apply(bare(self.model)) for word in self.mode.words if word in CHANGES]


def why_not_compile(device: torch.device) -> str:
    """Why torch.compile cannot run on a device, or ""."""
    return inductor.why_not(device)


def why_not_kernels(device: torch.device) -> str:
    """Why the kernels for training cannot run on a device, or ""."""
    return (kernels_missing() or "") if device.type == "cpu" else f"the kernels are for a CPU, not for {device.type}"


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _sizes(call: Any) -> tuple[Any, ...]:
    return tuple((tensor.shape, tensor.dtype) for tensor in tensors(call))


def dropout_off(model: nn.Module) -> AbstractContextManager[None]:
    """Layers of dropout pass everything through: their numbers follow the layout of the map, and differ with it."""
    return _off([m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.training])


@contextmanager
def _off(layers: list[nn.Module]) -> Iterator[None]:
    for layer in layers:
        layer.training = False
    try:
        yield
    finally:
        for layer in layers:
            layer.training = True
