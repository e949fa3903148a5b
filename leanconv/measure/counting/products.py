"""The products of each aten operation: our own rule for each, so that counts do not depend on torch's version.

A rule reads the arguments by their names in the operation's schema. An operation without a rule is listed as
uncounted, never taken for zero. So is one with sizes that a rule cannot know (sparse factors, lengths of nested
tensors). Attention counts all pairs, masked or not.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from leanconv.measure.counting.contraction import Contraction, product

Given = Mapping[str, Any]
Sizes = Iterable[Contraction]


@dataclass(frozen=True)
class Work:
    """The products of one operation.

    Attributes:
        kind: one of `CONTRACTIONS`.
        macs: multiply-accumulates.
        sizes: of its convolution or products; empty if unknown.
        factors: its factors; those that are parameters are weights.
        bias: additions of a bias.
    """

    kind: str
    macs: int
    sizes: tuple[Contraction, ...] = ()
    factors: tuple[Tensor, ...] = ()
    bias: int = 0


CONTRACTIONS = ("conv", "linear", "matmul", "attention")
# One layer of an LSTM (oneDNN), or a whole recurrent network (cuDNN, MIOpen, Metal), as one operation.
RECURRENT = ("mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn", "_lstm_mps")
_CONVOLUTIONS = {
    "convolution", "_convolution", "convolution_overrideable", "mkldnn_convolution", "cudnn_convolution",
    "cudnn_convolution_relu", "cudnn_convolution_add_relu", "cudnn_convolution_transpose", "miopen_convolution",
    "miopen_convolution_relu", "miopen_convolution_add_relu", "miopen_convolution_transpose",
    "miopen_depthwise_convolution", "thnn_conv2d", "_slow_conv2d_forward", "slow_conv3d_forward", "_conv_depthwise2d",
    "conv_depthwise3d", "slow_conv_dilated2d", "slow_conv_dilated3d", "slow_conv_transpose2d", "slow_conv_transpose3d",
    "_nnpack_spatial_convolution", "_mps_convolution", "_mps_convolution_transpose",
}  # fmt: skip
_EACH_CHANNEL = ("_conv_depthwise2d", "conv_depthwise3d")  # as many groups as channels, without an argument for it
# Name -> its two factors.
_PRODUCTS = {
    "mm": ("self", "mat2"), "bmm": ("self", "mat2"), "addmm": ("mat1", "mat2"), "_addmm_activation": ("mat1", "mat2"),
    "baddbmm": ("batch1", "batch2"), "addbmm": ("batch1", "batch2"), "mv": ("self", "vec"), "addmv": ("mat", "vec"),
    "dot": ("self", "tensor"), "vdot": ("self", "other"), "_int_mm": ("self", "mat2"), "_scaled_mm": ("self", "mat2"),
    "_scaled_mm_v2": ("self", "mat2"), "_grouped_mm": ("self", "mat2"), "_scaled_grouped_mm": ("self", "mat2"),
    "_scaled_grouped_mm_v2": ("self", "mat2"),
}  # fmt: skip
# Name -> the rows and the matrix; only the result shows the matrix's storage order.
_LAYERS = {
    "linear": ("input", "weight"), "mkldnn_linear": ("self", "weight"), "_mixed_dtypes_linear": ("input", "weight"),
    "_weight_int4pack_mm": ("self", "mat2"), "_weight_int4pack_mm_for_cpu": ("self", "mat2"),
    "_weight_int8pack_mm": ("self", "mat2"), "_dyn_quant_matmul_4bit": ("inp", "packed_weights"),
}  # fmt: skip
_HEADS_FIRST = {  # `N heads L E`
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable", "_scaled_dot_product_attention_math",
    "_scaled_dot_product_attention_math_for_mps", "scaled_dot_product_attention", "flex_attention",
    "_triton_scaled_dot_attention",
}  # fmt: skip
_HEADS_AFTER = {  # `N L heads E`; or packed sequences, `L heads E`, whose cumulated lengths separate the samples
    "_flash_attention_forward",
    "_flash_attention_forward_no_dropout_inplace",
    "_efficient_attention_forward",
    "_cudnn_attention_forward",
}
_MULTI_HEAD = {"_native_multi_head_attention", "_triton_multi_head_attention"}


def work_of(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> Work | None:
    """The products of an operation with these arguments and this output; None without a rule for it."""
    name, given = base_name(func), named(func, args, kwargs)
    if getattr(func, "namespace", "") not in ("aten", "higher_order"):
        return _by_registered_formula(func, args, kwargs, out)
    rule = _RULES.get(name)
    found = None if rule is None or _is_sparse(given) else rule[1](name, given, out)
    if rule is None or found is None:
        return None
    sizes, factors = found
    sizes = tuple(sizes)
    return Work(rule[0], sum(one.macs for one in sizes), sizes, tuple(factors), _bias(name, given, out))


def base_name(func: Any) -> str:
    """`aten::relu_.default` -> "relu": the operation, in place or not."""
    name: str = getattr(func, "overloadpacket", func).__name__
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def named(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by their names, with their defaults."""
    schema = getattr(func, "_schema", None)
    if schema is None:  # a higher-order operator; the rules need its first three arguments
        return dict(zip(("query", "key", "value"), args, strict=False)) | dict(kwargs)
    known = {one.name: one.default_value for one in schema.arguments if one.has_default_value()}
    return known | dict(zip((one.name for one in schema.arguments), args, strict=False)) | dict(kwargs)


def _by_registered_formula(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> Work | None:
    """A custom operation, by the formula that it registered with torch's counter."""
    formula = flop_registry.get(getattr(func, "overloadpacket", func))
    if formula is None:
        return None
    kind = "attention" if "attention" in base_name(func) else "matmul"
    return Work(kind, int(formula(*args, **kwargs, out_val=out)) // 2)


def _is_sparse(given: Given) -> bool:
    layouts = {value.layout for value in given.values() if isinstance(value, Tensor)}
    return bool(layouts - {torch.strided, torch._mkldnn})  # type: ignore[attr-defined]


def _bias(name: str, given: Given, out: Any) -> int:
    added = isinstance(given.get("bias"), Tensor) or name.removeprefix("_").startswith("add")
    return first(out).numel() if added and isinstance(first(out), Tensor) else 0


def first(out: Any) -> Any:
    """An operation's (first) result."""
    return out[0] if isinstance(out, (tuple, list)) else out


Found = tuple[Sizes, Iterable[Tensor]]


def _convolution(name: str, given: Given, out: Any) -> Found:
    """A 1-D one lies along the width."""
    x, weight = given["input" if "input" in given else "self"], given["weight"]
    axes, transposed = weight.dim() - 2, "transpose" in name or bool(given.get("transposed", False))
    groups = x.shape[1] if name in _EACH_CHANNEL else int(given.get("groups", 1))
    stride, padding = (_each(given.get(key, by), axes) for key, by in (("stride", 1), ("padding", 0)))
    sizes = list(x.shape[2:])
    padded = sizes if transposed else [size + 2 * pad for size, pad in zip(sizes, padding, strict=True)]
    o = weight.shape[1] * groups if transposed else weight.shape[0]
    flat = [1] if axes == 1 else []
    kernel, strides, place, result = (
        tuple(int(size) for size in [*flat, *each]) for each in (weight.shape[2:], stride, padded, first(out).shape[2:])
    )
    made = Contraction(x.shape[0], x.shape[1], o, groups, kernel, strides, place, result, transposed)
    return [made], [weight]


def _each(value: Any, axes: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values


def _time_first(name: str, given: Given, out: Any) -> Found:
    """`T N C` by weights `K C O`."""
    (steps, n, c), (taps, _, o) = given["self"].shape, given["weight"].shape
    padded = steps + 2 * int(given["pad"])
    return [Contraction(n, c, o, 1, (1, taps), (1, 1), (1, padded), (1, out.shape[0]))], [given["weight"]]


def _product(name: str, given: Given, out: Any) -> Found:
    a, b = (given[key] for key in _PRODUCTS[name])
    packed = 2 if "x2" in str(a.dtype) else 1  # numbers that an element holds
    rows, length = (a.shape[-2] if a.dim() > 1 else 1), a.shape[-1] * packed
    pairs = math.prod(a.shape[:-2]) if a.dim() == b.dim() else 1  # of a grouped one the groups share rows or columns
    return [product(pairs, rows, length, b.shape[-1] if b.dim() > 1 else 1)], [a, b]


def _products(name: str, given: Given, out: Any) -> Found:
    pairs = list(zip(given["self"], given["mat2"], strict=True))
    return [product(1, a.shape[0], a.shape[1], b.shape[-1]) for a, b in pairs], [one for pair in pairs for one in pair]


def _layer(name: str, given: Given, out: Any) -> Found:
    x, weight = (given[key] for key in _LAYERS[name])
    columns = out.shape[-1] if out.dim() == x.dim() else 1
    return [product(1, math.prod(x.shape[:-1]), x.shape[-1], columns)], [weight]


def _recurrent(name: str, given: Given, out: Any) -> Found | None:
    """All steps' inputs at once, then the states step by step; a projection of the state belongs to the next step."""
    listed = given.get("weight", given.get("params"))
    if listed is None:
        listed = [given[f"weight{index}"] for index in range(4)]
    matrices, x = [each for each in listed if each.dim() > 1], given["input"]
    steps = list(given.get("batch_sizes") or [])
    if x.dim() == 3:
        batch_first = bool(given.get("batch_first")) and name != "mkldnn_rnn_layer"  # that one gets `T N C`
        steps = [x.shape[0 if batch_first else 1]] * x.shape[1 if batch_first else 0]
    if not matrices or sum(steps) != math.prod(x.shape[:-1]):
        return None
    each = 3 if given.get("proj_size") else 2  # of a layer and direction: by the input, by the state
    sizes = []
    for index, matrix in enumerate(matrices):
        columns, length = matrix.shape
        rows = {sum(steps): 1} if index % each == 0 else Counter(steps)
        sizes += [product(times, batch, length, columns) for batch, times in rows.items()]
    return sizes, matrices


def _attention(heads: int, asked: int, width: int, known: int, made: int) -> list[Contraction]:
    return [product(heads, asked, width, known), product(heads, asked, known, made)]


def _heads_first(name: str, given: Given, out: Any) -> Found:
    query, key, value = (given[word if word in given else word[0]] for word in ("query", "key", "value"))
    heads, (asked, width) = math.prod(query.shape[:-2]), query.shape[-2:]
    return _attention(heads, asked, width, key.shape[-2], value.shape[-1]), []


def _heads_after(name: str, given: Given, out: Any) -> Found | None:
    query, key, value = (given[word] for word in ("query", "key", "value"))
    ends = [given.get(f"{stem}_{side}") for side in ("q", "k") for stem in ("cum_seq", "cu_seqlens")]
    cumulated = [each for each in ends if each is not None]
    if any(given.get(word) is not None for word in ("seqused_k", "seqlen_k", "block_table")):
        return None  # how much of the keys is used stands in a tensor
    if not cumulated and name == "_cudnn_attention_forward":
        return _heads_first(name, given, out)
    heads, width, made = query.shape[-2], query.shape[-1], value.shape[-1]
    if not cumulated:
        return _attention(query.shape[0] * heads, query.shape[1], width, key.shape[1], made), []
    lengths = [_lengths(each) for each in (cumulated[0], cumulated[-1])]
    if lengths[0] is None or lengths[1] is None:
        return None
    pairs = zip(*lengths, strict=True)
    return [one for asked, known in pairs for one in _attention(heads, asked, width, known, made)], []


def _lengths(ends: Tensor) -> list[int] | None:
    """The lengths of samples that lie in a row, from where each ends; None on tensors without numbers."""
    try:
        return [int(stop - start) for start, stop in pairwise(ends.tolist())]
    except Exception:  # of a fake tensor, or one on `meta`
        return None


def _multi_head(name: str, given: Given, out: Any) -> Found:
    """Projections into heads, attention, and the projection out of them."""
    query, key = given["query"], given["key"]
    (n, asked, width), known, heads = query.shape, key.shape[1], int(given["num_head"])
    sizes = [product(1, n * asked, width, width), product(1, n * known, width, 2 * width)]
    sizes += _attention(n * heads, asked, width // heads, known, width // heads)
    return [*sizes, product(1, n * asked, width, width)], [given["qkv_weight"], given["proj_weight"]]


def _encoder_layer(name: str, given: Given, out: Any) -> Found | None:
    """Attention of a map with itself, then two layers."""
    source, hidden = given["src"], given["ffn_weight_1"].shape[0]
    if source.dim() != 3:
        return None
    n, length, width = source.shape
    own = {"query": source, "key": source, "num_head": given["num_heads"]}
    sizes, factors = _multi_head(name, {**given, **own}, out)
    layers = [product(1, n * length, width, hidden), product(1, n * length, hidden, width)]
    return [*sizes, *layers], [*factors, given["ffn_weight_1"], given["ffn_weight_2"]]


Rule = Callable[[str, Given, Any], Found | None]
_RULES: dict[str, tuple[str, Rule]] = {
    **dict.fromkeys(_CONVOLUTIONS, ("conv", _convolution)),
    "conv_tbc": ("conv", _time_first),
    **dict.fromkeys(_PRODUCTS, ("matmul", _product)),
    "_foreach_mm": ("matmul", _products),
    **dict.fromkeys(_LAYERS, ("linear", _layer)),
    **dict.fromkeys(RECURRENT, ("linear", _recurrent)),
    **dict.fromkeys(_HEADS_FIRST, ("attention", _heads_first)),
    **dict.fromkeys(_HEADS_AFTER, ("attention", _heads_after)),
    **dict.fromkeys(_MULTI_HEAD, ("attention", _multi_head)),
    "_transformer_encoder_layer_fwd": ("attention", _encoder_layer),
}


class MacCounter(TorchDispatchMode):
    """Counts what runs inside, by the same rules: `with MacCounter() as counter: ...; counter.macs`."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if (work := work_of(func, args, kwargs, out)) is not None:
            self.macs += work.macs
        return out
