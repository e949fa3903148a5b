"""The CPU's kernels behind the operators of `ops`: `torch.library` sends its float32 and bfloat16 tensors here."""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from leanconv.kernels.cpu import BINDERS, bind, global_average
from leanconv.kernels.cpu.bound.base import DTYPES, Bound
from leanconv.kernels.cpu.runtime.transpose import ensure_nhwc
from leanconv.ops import gated_sum, grouped, pool, separable, upsample
from leanconv.ops.forms import Form, averaged

_KEPT = 256
_bound: "OrderedDict[tuple[Any, ...], tuple[tuple[weakref.ref[Tensor], ...], Bound]]" = OrderedDict()
_lock = threading.Lock()


def bound_for(form: Form, weights: Sequence[Tensor]) -> Bound:
    """The bound primitive of these very weights, packed anew if one of them was changed in place.

    Of tensors that were made in inference mode nothing tells whether they were: those are packed in every call.
    """
    if any(w.is_inference() for w in weights):
        return bind(form, weights)
    key = (form, *[(id(w), w._version) for w in weights])
    with _lock:
        found = _bound.get(key)
        # An id may have passed on to another tensor: the weak references say whose it is.
        if found is not None and all(r() is w for r, w in zip(found[0], weights, strict=True)):
            _bound.move_to_end(key)
            return found[1]
    made = bind(form, weights)
    with _lock:
        for old in [k for k, (owners, _) in _bound.items() if any(r() is None for r in owners)]:
            del _bound[old]
        _bound[key] = tuple(weakref.ref(w) for w in weights), made
        while len(_bound) > _KEPT:
            _bound.popitem(last=False)
    return made


def takes(form: Form, maps: Sequence[Tensor | None], *others: Tensor | None) -> bool:
    """Whether a kernel exists for this form and these tensors: maps of float32 or bfloat16, all the same, and weights
    and vectors of these; the reference does the rest.
    """
    kinds = {x.dtype for x in maps if x is not None}
    allowed = {torch.float32, *kinds}
    fits = len(kinds) == 1 and kinds <= set(DTYPES) and all(x is None or x.dtype in allowed for x in others)
    return type(form) in BINDERS and fits


def _fresh(results: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Autograd writes into what an operator gives back: an average of no numbers, which a step has once for all calls,
    would keep the last call's graph, and ask for gradients in the next call's.
    """
    y, means = results
    return y, means if means.dim() > 1 else torch.empty(0, dtype=torch.float32)


def _separable(inputs, weights, form, residual, gate):  # type: ignore[no-untyped-def]
    made = separable.Separable.read(form)
    if not takes(made, [*inputs, residual], *weights, gate):
        return separable.reference(inputs, weights, made, residual, gate)
    return _fresh(bound_for(made, weights)(inputs, residual, gate))


def _grouped(inputs, weights, form, residual):  # type: ignore[no-untyped-def]
    made = grouped.Grouped.read(form)
    if not takes(made, [*inputs, residual], *weights):
        return grouped.reference(inputs, weights, made, residual)
    return _fresh(bound_for(made, weights)(inputs, residual))


def _gated_pointwise(a, inputs, weights, form, a_average, averages):  # type: ignore[no-untyped-def]
    made = gated_sum.GatedSum.read(form)
    if not takes(made, [a, *inputs], *weights, a_average, *averages):
        return gated_sum.reference(a, inputs, weights, made, a_average, averages or None)
    return _fresh(bound_for(made, weights)(a, inputs, a_average, averages or None))


def _upsample(inputs, weights, form):  # type: ignore[no-untyped-def]
    made = upsample.Upsample.read(form)
    if not takes(made, inputs, *weights):
        return upsample.reference(inputs, weights, made)
    return _fresh(bound_for(made, weights)(inputs))


def _max_pool(x, form):  # type: ignore[no-untyped-def]
    made = pool.MaxPool.read(form)
    return _fresh(bound_for(made, [])(x)) if takes(made, [x]) else pool.reference(x, made)


def _global_average(x):  # type: ignore[no-untyped-def]
    return global_average(ensure_nhwc(x)) if x.dtype in DTYPES else averaged(x)


def register() -> None:
    """Put the kernels behind the operators, for the CPU. Called once, by `leanconv.kernels.load`."""
    separable.separable_op.register_kernel("cpu")(_separable)
    grouped.grouped_op.register_kernel("cpu")(_grouped)
    gated_sum.gated_pointwise_op.register_kernel("cpu")(_gated_pointwise)
    upsample.upsample_op.register_kernel("cpu")(_upsample)
    pool.max_pool_op.register_kernel("cpu")(_max_pool)
    pool.global_average.register_kernel("cpu")(_global_average)
