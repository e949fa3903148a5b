"""Optimized: a model that runs in the fastest form that `optimize` found. Inference only."""

import threading
from collections.abc import Hashable
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks as _HOOKS
from torch.nn.modules.module import _global_forward_pre_hooks as _PRE_HOOKS

from leanconv.deploy.int8 import Calibration
from leanconv.deploy.verify import InFloat64, Reference
from leanconv.engine.candidate import ModelForm
from leanconv.engine.choices import Choices
from leanconv.engine.weights import Weights
from leanconv.errors import BadInput
from leanconv.running import Inputs, as_call

# Resolve these attributes once: the look-ups would be a visible part of a small layer's call.
_grad, _autocast = torch.is_grad_enabled, torch._C._is_any_autocast_enabled
_set_grad, _transforms = torch._C._set_grad_enabled, torch._C._are_functorch_transforms_active
_tracing = torch._C._is_tracing
# Number of call shapes that stay prepared. The oldest is dropped first.
MOST_SHAPES = 16
# Number of other call shapes that are verified against the given model. Further shapes run the given model.
MOST_CHECKED = 64


# Tensor types that the forms accept. A subclass could mean anything.
PLAIN = (Tensor, nn.Parameter)


class _Unusual(Exception):
    """The forms do not accept a tensor among the arguments, so the given model runs."""


class Optimized(nn.Module):
    """The result of `optimize`: same call signature and same results as the model, without gradients.

    Calls with the measured shapes run the chosen form. The given model answers the first call with other shapes or
    constants. That call also verifies a form: the chosen one if it takes any shape, otherwise the folded model. If
    the form agrees, later calls with those shapes run it. `specialise_(inputs)` prepares the chosen form for another
    shape. Several threads may call the module. The forms keep the weights that `optimize` saw. If the given model's
    weights changed since, a call that needs this model raises BadInput.

    Attributes:
        choices: the table of everything that was tried, with the reason for this form.
        original: the given model. Train and export that one.
        engine: the chosen form's name.
    """

    optimized_by_leanconv = True

    def __init__(
        self,
        original: nn.Module,
        choices: Choices,
        call: tuple[Any, Any],
        form: ModelForm,
        *,
        any_shape: bool,
        dtype: torch.dtype | None,
        fallback: ModelForm,
        again: Any,
        weights: Weights,
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__()

        def own(*args: Any, **kwargs: Any) -> Any:
            weights.check()
            return original(*args, **kwargs)

        form = own if form is original else form
        fallback = own if fallback is original else fallback
        held: dict[str, Any] = {
            "original": original, "choices": choices, "_fallback": fallback, "_again": again,
            "_any": (_kind(*call), (form, dtype)) if any_shape else (None, (fallback, None)),
            "_forms": {_key(*call): form}, "_checked": {}, "_lock": threading.Lock(), "_own": own,
            "_weights": weights, "_calibration": calibration,
        }  # fmt: skip
        self.__dict__.update(held)  # not as submodules: `modules()` must yield this one alone
        self.__dict__["training"] = False
        x = call[0][0] if len(call[0]) == 1 and not call[1] and type(call[0][0]) is Tensor else None
        hooks = self._forward_hooks, self._forward_pre_hooks  # PyTorch changes these dicts in place
        short = ((), None, form) if x is None or not x.is_cpu else (x.shape, x.dtype, form)
        alone = getattr(form, "alone", False)
        self.__dict__["_short"] = (*short, alone, original, *hooks)
        strict = alone and short[2] is form and short[1] is not None and getattr(form, "strict", False)
        self.__dict__["_strict"] = (form, original, *hooks) if strict else None

    @property
    def engine(self) -> str:
        return self.choices.winner.label

    @property
    def form(self) -> ModelForm:
        """The chosen form at the measured shapes, without checks of its arguments."""
        return next(iter(self._forms.values()))  # type: ignore[no-any-return]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Fast path: run the form directly if the shape matches and no hook or functorch transform is active.

        Every other call takes `nn.Module.__call__`. That adds 3 µs, as long as a small layer runs; the fast path adds
        half. After a form has emptied the caches, each PyTorch function costs half a microsecond. So the fast path
        calls as few of them as possible. Under tracing, sizes are tensors, hence the test for `int`.
        `alone`: a form in which PyTorch computes nothing. It ignores autocast and gradients, and it cannot read a
        transform's tensors. `strict`: one that also refuses other sizes and types by itself. Nothing asks for them
        before its calls, until the first that it refuses: of 57 and 68 µs in ONNX Runtime and OpenVINO that saves .5
        and 1.4 µs.
        """
        if len(args) == 1 and not kwargs and type(x := args[0]) is Tensor:
            if (strict := self.__dict__["_strict"]) is not None:
                form, original, hooks, before = strict
                if x.is_cpu and not (
                    _tracing() or _transforms() or original.training or hooks or before or _HOOKS or _PRE_HOOKS
                ):
                    try:
                        return form(x)
                    except Exception:  # what is wrong with more than the size or the type is so below too
                        self.__dict__["_strict"] = None
            shape, dtype, form, alone, original, hooks, before = self.__dict__["_short"]
            if (
                (size := x.shape)
                and type(size[0]) is int
                and size == shape
                and x.dtype is dtype
                and x.is_cpu
                and not (x.is_neg() or _transforms() or original.training or hooks or before or _HOOKS or _PRE_HOOKS)
            ):
                if alone:
                    return form(x)
                if not _autocast():
                    if not _grad():
                        return form(x)
                    _set_grad(False)  # like `torch.no_grad()`, but without the cost of an object
                    try:
                        return form(x)
                    finally:
                        _set_grad(True)
        return super().__call__(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_exporting() or torch.jit.is_tracing() or isinstance(args, torch.fx.Proxy):
            raise BadInput("an optimised model cannot be exported or traced; export model.original")
        if _transforms():
            raise BadInput("an optimised model takes no part in torch.func's transforms; use model.original")
        if self.original.training:
            raise BadInput("the model under this optimised one was put in training mode; call .original.eval()")
        try:
            key = _key(args, kwargs)
        except _Unusual:
            with torch.no_grad():
                return self._own(*args, **kwargs)
        with torch.no_grad():
            device = _device_type(args)
            if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                with torch.autocast(device, enabled=False):  # the forms were measured in the model's own dtype
                    return self._run(key, args, kwargs)
            return self._run(key, args, kwargs)

    def _run(self, key: Hashable, args: Any, kwargs: Any) -> Any:
        form = self._forms.get(key)
        if form is None:
            form = self._checked.get(key)
        return self._first(key, args, kwargs) if form is None else form(*args, **kwargs)

    def _first(self, key: Hashable, args: Any, kwargs: Any) -> Any:
        """Answer a new shape with the given model, and decide which form runs its later calls.

        A model may take another path at other sizes. On that path, two layers that were folded into one may not
        follow each other. The measured shapes cannot rule that out.
        """
        self._weights.check(thoroughly=True)
        answer = self.original(*args, **kwargs)
        kind, (form, dtype) = self._any
        if kind is None or kind != _kind(args, kwargs):
            form, dtype = self._fallback, None
        if form is self._own or len(self._checked) >= MOST_CHECKED:
            return answer
        try:
            given = form(*args, **kwargs)
            if dtype is torch.int8:
                right = self._calibration.agrees(self.form, answer, given)
            else:
                right = Reference(InFloat64(self.original), args, kwargs, answer).error(given, dtype).passes
        except Exception:  # the given model runs this call, the form does not
            right = False
        with self._lock:
            self.__dict__["_checked"] = {**self._checked, key: form if right else self._own}
        return answer

    def specialise_(self, inputs: Inputs) -> Choices:
        """Prepare the chosen engine for the shapes of `inputs` too. It is verified and measured like the first time.

        The engine "fused" runs other shapes without this call too, mostly on the kernels of the measured shapes.
        After this call it uses the kernels that are best for the new shapes.

        Returns: the table. If the engine is not faster for these shapes, the given model keeps running them.
        """
        self._weights.check(thoroughly=True)
        special = self._again(inputs)
        key = _key(*as_call(inputs))
        with self._lock:
            forms = dict(self._forms)
            forms[key] = next(iter(special._forms.values()))
            while len(forms) > MOST_SHAPES:
                del forms[next(iter(forms))]
            self.__dict__["_forms"] = forms  # replace the dict at once: another thread sees the old or the new one
        return special.choices

    def __getattr__(self, name: str) -> Any:
        """Attributes of the model, for example `multiple` or `num_classes`."""
        if name.startswith("_"):
            return super().__getattr__(name)
        return getattr(self.__dict__["original"], name)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        """The original's parameters: use them to count or to ask for device and dtype. Changes have no effect here."""
        return self.original.named_parameters(*args, **kwargs)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Any:
        return self.original.named_buffers(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        if mode:
            raise BadInput("an optimised model is for inference only; train model.original, then optimize it again")
        return self

    def to(self, *args: Any, **kwargs: Any) -> Self:
        device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
        first = next(iter(self.parameters()), None)
        moved = first is not None and device is not None and torch.empty(0, device=device).device != first.device
        if moved or layout is not None or (dtype is not None and first is not None and dtype != first.dtype):
            self._fixed("moved or converted")
        return self

    def _apply(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._fixed("moved or converted")

    def state_dict(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._fixed("saved")

    def load_state_dict(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._fixed("loaded into")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        self._fixed("pickled or copied")

    def _fixed(self, what: str) -> NoReturn:
        raise BadInput(
            f"an optimised model belongs to this process and device and cannot be {what};"
            " use model.original, and optimize it where it runs"
        )

    def __repr__(self) -> str:
        return f"Optimized({self.engine}, {type(self.original).__name__})"


def _key(args: Any, kwargs: Any) -> Hashable:
    """The key of a prepared form: structure, shapes, dtypes, devices and the values of all other arguments."""
    return _signature(args, kwargs, _sizes)


def _sizes(tensor: Tensor) -> Hashable:
    """Return shape, dtype and device. Raises _Unusual for tensors that are not plain and dense."""
    if type(tensor) not in PLAIN or tensor.is_neg() or tensor.layout is not torch.strided:
        raise _Unusual
    return tensor.shape, tensor.dtype, tensor.device


def _kind(args: Any, kwargs: Any) -> Hashable:
    """Like `_key`, without the lengths of the axes."""
    return _signature(args, kwargs, lambda t: (t.dim(), t.dtype, t.device))


def _signature(args: Any, kwargs: Any, of: Any) -> Hashable:
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
        return of(args[0])
    return _part(args, of), _part(kwargs, of)


def _part(value: Any, of: Any) -> Hashable:
    if isinstance(value, Tensor):
        return of(value)
    if isinstance(value, list | tuple):
        return type(value), tuple(_part(each, of) for each in value)
    if isinstance(value, dict):
        return dict, tuple((key, _part(each, of)) for key, each in value.items())
    try:
        hash(value)
    except TypeError:
        return object()  # equal to no other key, so the call runs the fallback
    return type(value), value


def _device_type(args: Any) -> str:
    return args[0].device.type if args and isinstance(args[0], Tensor) else "cpu"
