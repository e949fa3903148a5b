"""The kind of a dispatched operation: a contraction (`products.py`), a norm, an activation, a data movement.

- Contractions: `conv linear matmul attention`.
- Counted per element by some convention: `batch_norm instance_norm group_norm layer_norm relu hardswish adaptive_pool
  global_mean upsample_nearest upsample_bilinear grid_sample`.
- `view` (no kernel), `free` (known, and no convention counts it), `unknown`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leanconv.measure.counting.contraction import Contraction
from leanconv.measure.counting.products import Work, base_name


@dataclass(frozen=True)
class OpCall:
    """One aten operation as it ran.

    Attributes:
        name, kind: aten's name, and its kind (see above).
        api: the outermost `torch` function behind it ("" if unseen).
        owner: name of the innermost running module.
        inside: class names of all running modules, outermost first.
        macs: multiply-accumulates.
        read, written: elements of the first input and of the first output.
        bias: additions of a bias.
        affine, training: of a normalisation.
        dynamic_kernel: a convolution with a kernel computed from the input.
        bytes: read and written by this operation alone.
        launches: 1, or 0 for a view or an allocation.
        sizes: of its convolution or products; empty if unknown, and for other kinds.
    """

    name: str
    kind: str
    api: str
    owner: str
    inside: tuple[str, ...]
    macs: int = 0
    read: int = 0
    written: int = 0
    bias: int = 0
    affine: bool = False
    training: bool = False
    dynamic_kernel: bool = False
    bytes: int = 0
    launches: int = 1
    sizes: tuple[Contraction, ...] = ()


# Views that torch does not mark: in place, or read-only.
_VIEWS = {
    "as_strided", "t", "transpose", "swapaxes", "swapdims", "squeeze", "unsqueeze", "unsafe_split",
    "unsafe_split_with_sizes", "unsafe_chunk",
}  # fmt: skip
_ELEMENTWISE = {
    "relu": "relu", "hardswish": "hardswish", "native_group_norm": "group_norm", "native_layer_norm": "layer_norm",
    "_adaptive_avg_pool2d": "adaptive_pool", "_adaptive_avg_pool3d": "adaptive_pool",
    "upsample_nearest2d": "upsample_nearest", "upsample_bilinear2d": "upsample_bilinear",
    "grid_sampler_2d": "grid_sample", "grid_sampler_3d": "grid_sample",
}  # fmt: skip
# Known and counted by no convention: data movement, pooling, activations, reductions, comparisons.
_FREE = re.compile(
    r"(cat|stack|copy|clone|_to_copy|lift_fresh|fill|zero|detach|alias|contiguous|resize|set"
    r"|(max|avg|lp|fractional_max)_pool[123]d.*|adaptive_max_pool[123]d|_?(log_)?softmax|_safe_softmax|_fused_dropout"
    r"|upsample_.*|_upsample_.*|.*_pad([123]d|_nd)?|_pad_.*|index.*|_index_put_impl|_unsafe_index.*|gather|scatter.*"
    r"|select_scatter|slice_scatter|embedding|topk|sort|argsort|cumsum|cumprod|max|min|a(rg)?(max|min)|aminmax|sum|mean"
    r"|prod|var|std|var_mean|std_mean|norm|linalg_vector_norm|all|any|(native_)?dropout|bernoulli|rand.*|normal|uniform"
    r"|arange|linspace|eye|tril|triu|tril_indices|where|masked_.*|flip|roll|repeat.*|im2col|col2im|unfold.*|pixel_.*"
    r"|(native_)?channel_shuffle|hardsigmoid|hardtanh|silu|mish|gelu|selu|celu|elu|glu|(_)?prelu.*|leaky_relu|softplus"
    r"|log_sigmoid.*|_local_scalar_dense|is_.*|equal|nonzero.*|bucketize|unique.*|one_hot|diag_embed|diagonal_copy"
    r"|(_)?empty.*|zeros.*|ones.*|full.*|new_.*|_unsafe_view|_reshape_alias|_reshape_copy|.*_copy|_assert.*|sym_.*"
    r"|_thnn_fused_(lstm|gru)_cell|addr|item|bincount|count_nonzero|searchsorted|isin|_cast_.*|_weight_norm_interface|linalg_norm"
    r"|native_batch_norm.*|isnan|isinf|isfinite|cummax|cummin|median|kthvalue|mode|trace|histc|nan_to_num|logsumexp)_?"
)
_NO_KERNEL = re.compile(
    r"(_?empty.*|new_empty.*|lift_fresh.*|detach|alias|_reshape_alias|_unsafe_view|is_.*|sym_.*|_assert.*)_?"
)


def classify(func: Any, args: tuple[Any, ...], api: str, work: Work | None, weighted: bool) -> str:
    """The kind of an operation; `work`: its products, if any.

    `weighted`: one of its factors is a parameter, or depends on parameters alone.
    """
    name = base_name(func)
    if work is not None:
        return "linear" if work.kind == "matmul" and (api == "linear" or weighted) else work.kind
    if getattr(func, "is_view", False) or name in _VIEWS:
        return "view"
    if "batch_norm" in name:
        return "instance_norm" if api == "instance_norm" else "batch_norm"
    if name in _ELEMENTWISE:
        return _ELEMENTWISE[name]
    if name == "mean" and is_global_mean(args):
        return "adaptive_pool" if "adaptive_avg_pool" in api else "global_mean"
    if func.namespace not in ("aten", "prims"):
        return "unknown"
    tags = {torch.Tag.pointwise, torch.Tag.reduction, torch.Tag.view_copy}
    known = tags.intersection(func.tags) or _FREE.fullmatch(name) or not any(isinstance(a, Tensor) for a in flat(args))
    return "free" if known else "unknown"


def is_global_mean(args: tuple[Any, ...]) -> bool:
    """Whether it averages an `N C H W` (or `N C T H W`) over all spatial axes."""
    if len(args) < 2 or not isinstance(args[1], (tuple, list)) or args[0].dim() < 4:
        return False
    return {d % args[0].dim() for d in args[1]} == set(range(2, args[0].dim()))


def flat(args: Sequence[Any]) -> list[Any]:
    """The arguments with lists of tensors opened."""
    found: list[Any] = []
    for arg in args:
        found.extend(arg if isinstance(arg, (tuple, list)) else [arg])
    return found


def norm_facts(func: Any, kind: str, args: tuple[Any, ...]) -> tuple[bool, bool]:
    """(affine, training) of a normalisation."""
    place = {"batch_norm": 1, "instance_norm": 1, "group_norm": 1, "layer_norm": 2}[kind]
    affine = len(args) > place and isinstance(args[place], Tensor)
    training = kind == "batch_norm" and "no_training" not in func.name() and len(args) > 5 and bool(args[5])
    return affine, training


def launches(func: Any, kind: str) -> int:
    """The number of kernels of an operation in eager mode: one, or none for a view or an allocation."""
    return 0 if kind == "view" or _NO_KERNEL.fullmatch(base_name(func)) else 1


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes moved by reading or writing the whole tensor; at most its storage for a broadcast view."""
    whole = tensor.numel() * tensor.element_size()
    if tensor.layout is not torch.strided or 0 not in tensor.stride():
        return whole
    return min(whole, tensor.untyped_storage().nbytes())
