"""What one dispatched operation is: a contraction and its multiply-accumulates, a norm, an activation, a move of bytes.

Kinds: `conv linear matmul attention` (contractions), `batch_norm instance_norm group_norm layer_norm relu hardswish
adaptive_pool global_mean upsample_nearest upsample_bilinear grid_sample` (what some convention counts by the element),
`view` (no kernel), `free` (known, and no convention counts it), `unknown`.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

if TYPE_CHECKING:
    from leanconv.measure.contraction import Contraction

CONTRACTIONS = ("conv", "linear", "matmul", "attention")


@dataclass(frozen=True)
class OpCall:
    """One aten operation as it ran.

    Attributes:
        name, kind: aten's name, and what it is (see above).
        api: the outermost `torch` function that the model called to get here ("" where that is not seen).
        owner: name of the innermost module that was running.
        inside: class names of all modules that were running, outermost first.
        macs: multiply-accumulates.
        read, written: elements of the first input and of the first output.
        bias: additions of a bias.
        affine, training: of a normalisation.
        made: a convolution whose kernel was computed from the input.
        bytes: read and written by this operation alone.
        launches: 1, or 0 for a view or an allocation.
        sizes: of the convolution or products that it computes; empty where they are not known, and for other kinds.
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
    made: bool = False
    bytes: int = 0
    launches: int = 1
    sizes: tuple["Contraction", ...] = ()


_CONVOLUTION = {"convolution", "_convolution", "convolution_overrideable"}
_PLAIN_CONVOLUTION = {
    "mkldnn_convolution", "cudnn_convolution", "miopen_convolution", "thnn_conv2d", "_slow_conv2d_forward",
    "slow_conv3d_forward", "_conv_depthwise2d", "conv_depthwise3d", "cudnn_convolution_relu",
}  # fmt: skip
# aten's name -> the positions of the two factors.
PRODUCTS = {
    "mm": (0, 1), "addmm": (1, 2), "bmm": (0, 1), "baddbmm": (1, 2), "addbmm": (1, 2), "mv": (0, 1), "addmv": (1, 2),
    "dot": (0, 1), "vdot": (0, 1),
}  # fmt: skip
# One layer of an LSTM (oneDNN), or a whole recurrent network (cuDNN, MIOpen), as one operation.
RECURRENT = ("mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn")
# Views that torch does not mark as such: in place, or of a tensor that nobody may write to.
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
# Known, and nothing that any convention here counts: data movement, pooling, activations, reductions, comparisons.
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
    r"|item|bincount|count_nonzero|searchsorted|isin|_cast_.*|_weight_norm_interface|linalg_norm"
    r"|native_batch_norm.*|isnan|isinf|isfinite|cummax|cummin|median|kthvalue|mode|trace|histc|nan_to_num|logsumexp)_?"
)
_NO_KERNEL = re.compile(
    r"(_?empty.*|new_empty.*|lift_fresh.*|detach|alias|_reshape_alias|_unsafe_view|is_.*|sym_.*|_assert.*)_?"
)


def classify(func: Any, args: tuple[Any, ...], out: Any, api: str, weighted: bool) -> tuple[str, int, int]:
    """(kind, MACs, bias additions) of an operation that was called with `args` and gave `out`.

    `weighted`: one of the tensors it multiplies is a parameter, or was computed from parameters alone.
    """
    name = base_name(func)
    if name in _CONVOLUTION or name in _PLAIN_CONVOLUTION:
        x, weight = args[0], args[1]
        result = out[0] if isinstance(out, (tuple, list)) else out
        transposed = bool(args[6]) if name in _CONVOLUTION else False
        macs = x.shape[0] * math.prod(weight.shape) * math.prod((x if transposed else result).shape[2:])
        biased = name != "cudnn_convolution" and len(args) > 2 and isinstance(args[2], Tensor)
        return "conv", macs, result.numel() if biased else 0
    if name in PRODUCTS:
        a, b = (args[place] for place in PRODUCTS[name])
        kind = "linear" if api == "linear" or weighted else "matmul"
        adds = out.numel() if name.startswith("add") else 0
        return kind, a.numel() * (b.shape[-1] if b.dim() > 1 else 1), adds
    if name in RECURRENT:
        return "linear", math.prod(args[0].shape[:-1]) * sum(w.numel() for w in recurrent_weights(name, args)), 0
    if getattr(func, "is_view", False) or name in _VIEWS:
        return "view", 0, 0
    if func.overloadpacket in flop_registry:  # attention in all its forms, and operations that said their formula
        flops = flop_registry[func.overloadpacket](*args, out_val=out)
        return ("attention" if "attention" in name else "matmul"), int(flops) // 2, 0
    return _without_macs(func, name, args, api), 0, 0


def recurrent_weights(name: str, args: tuple[Any, ...]) -> list[Tensor]:
    """The matrices that one of `RECURRENT` multiplies every step of every sequence by."""
    given = args[1:5] if name == "mkldnn_rnn_layer" else args[1]
    return [weight for weight in given if weight.dim() > 1]


def _without_macs(func: Any, name: str, args: tuple[Any, ...], api: str) -> str:
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


def base_name(func: Any) -> str:
    """`aten::relu_.default` -> "relu": the operation, in place or not."""
    name: str = func.overloadpacket.__name__
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def is_global_mean(args: tuple[Any, ...]) -> bool:
    """A mean over all spatial places of an `N C H W` (or `N C T H W`)."""
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
    """How many kernels an operation starts in eager mode: one, or none for a view or an allocation."""
    return 0 if kind == "view" or _NO_KERNEL.fullmatch(base_name(func)) else 1


def tensor_bytes(tensor: Tensor) -> int:
    """What reading or writing the whole tensor moves; a broadcast view moves no more than its storage."""
    whole = tensor.numel() * tensor.element_size()
    if tensor.layout is not torch.strided or 0 not in tensor.stride():
        return whole
    return min(whole, tensor.untyped_storage().nbytes())
