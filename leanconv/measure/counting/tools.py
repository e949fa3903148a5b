"""The counts of ptflops (its `pytorch` backend) and thop: rules over module classes, in those tools' own walk.

Both look up a module's exact class, add its rule at every call, and sum over the tree of children. So a module that
stands in two places is counted in both (thop: squared, as it hooks it twice too). ptflops also counts calls of some
functions, even those that its counted modules make themselves: an `nn.ReLU` or a pooling counts twice.
Rules read from ptflops 0.7.5 `pytorch_ops.py`, `pytorch_engine.py` and thop 0.1.1 `profile.py`, `basic_hooks.py`,
`calc_func.py`. Not modelled: their recurrent layers and deformable convolutions, ptflops' `torch.addmm` and methods.
A method `a.add(b)` looks like the `a + b` that ptflops does not count. Its figure is per image, ours for the batch.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import nn

from leanconv.measure.counting.record import ModuleCall, Recording, child_names

Parts = dict[str, int]  # part -> count
Rule = Callable[[ModuleCall], Parts]


@dataclass
class ToolFigures:
    """(module name, part, count); (module name, parameters); leaf classes without a rule."""

    parts: list[tuple[str, str, int]] = field(default_factory=list)
    params: list[tuple[str, int]] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)


def _each(what: str, times: int = 1, *, output: bool = False) -> Rule:
    return lambda call: {what: times * math.prod(call.out_shape if output else call.in_shape)}


def _nothing(call: ModuleCall) -> Parts:
    return {}


def _taps(layer: nn.Module) -> int:
    """Multiplications of one output of a convolution."""
    return math.prod(layer.kernel_size) * layer.in_channels // layer.groups  # type: ignore[arg-type, operator, return-value]


def _conv(call: ModuleCall) -> Parts:
    parts = {"conv": _taps(call.module) * math.prod(call.out_shape)}
    return parts | ({"bias": math.prod(call.out_shape)} if call.module.bias is not None else {})


def _transposed(call: ModuleCall) -> Parts:
    layer = call.module
    places = math.prod(call.in_shape) // int(layer.in_channels)  # type: ignore[arg-type]
    parts: Parts = {"transposed conv": _taps(layer) * places * int(layer.out_channels)}  # type: ignore[arg-type]
    return parts | ({"bias": math.prod(call.out_shape)} if layer.bias is not None else {})


def _linear(call: ModuleCall) -> Parts:
    outputs = math.prod(call.out_shape)
    parts = {"FC": outputs * call.in_shape[-1]}
    return parts | ({"bias": outputs} if call.module.bias is not None else {})


def _ptflops_norm(call: ModuleCall) -> Parts:
    return {"norm": math.prod(call.in_shape) * (2 if getattr(call.module, "affine", False) else 1)}


def _self_attention(call: ModuleCall) -> Parts:
    """An `nn.MultiheadAttention` with as many keys and values as queries."""
    layer, (first, second, width) = call.module, call.in_shape
    assert isinstance(layer, nn.MultiheadAttention)
    batch, length = (first, second) if layer.batch_first else (second, first)
    projections = 3 * length * width * width + (3 * length * width if layer.in_proj_bias is not None else 0)
    heads = layer.num_heads * (2 * length * length * (width // layer.num_heads) + length * length)
    return {"attention": batch * (length * width + projections + heads + length * width * (width + 1))}


def _thop_conv(call: ModuleCall) -> Parts:
    what = "transposed conv" if "Transpose" in type(call.module).__name__ else "conv"
    return {what: math.prod(call.out_shape) * _taps(call.module)}


def _thop_norm(call: ModuleCall) -> Parts:
    affine = getattr(call.module, "affine", False) or getattr(call.module, "elementwise_affine", False)
    return {"norm": math.prod(call.in_shape) * (4 if affine else 2)}


def _thop_adaptive(call: ModuleCall) -> Parts:
    outputs = math.prod(call.out_shape)
    window = math.prod(i / o for i, o in zip(call.in_shape[2:], call.out_shape[2:], strict=True))
    return {"pooling": int((window + 1) * outputs)}


def _thop_softmax(call: ModuleCall) -> Parts:
    elements, dim = math.prod(call.in_shape), call.module.dim
    length = call.in_shape[dim if isinstance(dim, int) else -1]
    return {"activation": elements // length * (3 * length - 1)}


def _thop_upsample(call: ModuleCall) -> Parts:
    times = {"nearest": 1, "linear": 5, "bilinear": 11, "bicubic": 259}.get(str(call.module.mode), 0)
    return {"upsampling": times * math.prod(call.out_shape)}


def _rules(groups: dict[tuple[str, ...], Rule]) -> dict[type[nn.Module], Rule]:
    return {getattr(nn, name): rule for names, rule in groups.items() for name in names}


_SIDES = ("1d", "2d", "3d")
_CONVS, _TRANSPOSED = (tuple(kind + side for side in _SIDES) for kind in ("Conv", "ConvTranspose"))
_NORMS = tuple(kind + side for kind in ("BatchNorm", "InstanceNorm") for side in _SIDES)
_MAX, _AVG, _ADAPTIVE_MAX, _ADAPTIVE = (
    tuple(kind + side for side in _SIDES) for kind in ("MaxPool", "AvgPool", "AdaptiveMaxPool", "AdaptiveAvgPool")
)
PTFLOPS = _rules(
    {
        _CONVS: _conv,
        _TRANSPOSED: _transposed,
        ("Linear",): _linear,
        (*_NORMS, "GroupNorm", "LayerNorm"): _ptflops_norm,
        ("ReLU", "PReLU", "ELU", "LeakyReLU", "ReLU6", "GELU"): _each("activation", output=True),
        (*_MAX, *_AVG, *_ADAPTIVE_MAX, *_ADAPTIVE): _each("pooling"),
        ("Upsample",): _each("upsampling", output=True),
        ("MultiheadAttention",): _self_attention,
    }
)
THOP = _rules(
    {
        _CONVS: _thop_conv,
        _TRANSPOSED: _thop_conv,
        ("Linear",): lambda call: {"FC": _linear(call)["FC"]},
        (*_NORMS, "LayerNorm", "SyncBatchNorm"): _thop_norm,
        _AVG: _each("pooling", output=True),
        _ADAPTIVE: _thop_adaptive,
        ("Softmax",): _thop_softmax,
        ("PReLU",): _each("activation"),
        ("Upsample", "UpsamplingBilinear2d", "UpsamplingNearest2d"): _thop_upsample,
        ("ReLU", "ReLU6", "LeakyReLU", "Dropout", "ZeroPad2d", "PixelShuffle", *_MAX, *_ADAPTIVE_MAX): _nothing,
    }
)

# (room, function) -> what ptflops adds at a call: the elements that it reads or writes, or a product.
_FUNCTIONS: dict[tuple[str, str], tuple[str, str]] = {
    **{("torch.nn.functional", name): ("activation", "read") for name in ("relu", "elu", "relu6", "silu", "softmax")},
    **{
        ("torch.nn.functional", kind + side): ("pooling", "read")
        for kind in ("max_pool", "adaptive_avg_pool", "adaptive_max_pool") for side in _SIDES
    },
    **{("torch.nn.functional", name): ("upsampling", "written") for name in ("interpolate", "upsample")},
    **{("torch._C._nn", name): ("pooling", "read") for name in ("avg_pool2d", "avg_pool3d")},
    **{("torch", name): ("pooling", "read") for name in ("avg_pool1d", "adaptive_avg_pool1d")},
    ("torch._C._nn", "gelu"): ("activation", "read"), ("torch", "prelu"): ("activation", "read"),
    **{("torch", name): ("matrix product", "product") for name in ("matmul", "mm", "bmm")},
    **{("torch", name): ("torch.add and torch.mul", "written") for name in ("add", "mul")},
}  # fmt: skip


def _timm_attention(module: nn.Module) -> bool:
    kind = type(module)
    return (kind.__name__, kind.__module__) == ("Attention", "timm.layers.attention") or (
        kind.__name__ == "Attention" and kind.__module__ == "timm.models.vision_transformer"
    )


def _timm_rule(call: ModuleCall) -> Parts:
    """The rule of timm's `Attention`; the tool does not go on to the FC layers inside."""
    batch, length = call.in_shape[:2]
    heads, width = int(call.module.num_heads), int(call.module.head_dim)  # type: ignore[arg-type]
    each = 2 * length * length * width + length * length
    return {"attention": batch * (length * width * heads + heads * each)}


def ptflops(recording: Recording) -> ToolFigures:
    """The parts of ptflops 0.7.5's figure, `pytorch` backend (its default). Parameters: the trainable ones."""
    figures, calls = ToolFigures(), _calls(recording)
    names = {id(module): name for name, module in recording.model.named_modules()}

    def rule_of(module: nn.Module) -> Rule | None:
        return _timm_rule if _timm_attention(module) else PTFLOPS.get(type(module))

    def walk(module: nn.Module) -> None:
        rule = rule_of(module)
        if rule is None:
            for child in module.children():
                walk(child)
            return
        for call in calls.get(id(module), []):
            figures.parts += [(call.name, what, amount) for what, amount in rule(call).items()]

    walk(recording.model)
    modules = {name: recording.model.get_submodule(name) for name in names.values()}
    for call in recording.functions:
        if (call.room, call.name) in _FUNCTIONS:
            what, how = _FUNCTIONS[call.room, call.name]
            amount = {"read": call.read, "written": call.written, "product": call.read * call.columns}[how]
            own = call.owner in modules and rule_of(modules[call.owner]) is not None
            label = f"{what} again, as its function" if own else f"functional {what}"
            figures.parts.append((call.owner, label, amount))
    for name, parameter in recording.model.named_parameters():
        if parameter.requires_grad:
            figures.params.append((name.rpartition(".")[0], parameter.numel()))
    _list_unknown(recording, figures, lambda module: rule_of(module) is not None, ("matmul", "mm", "bmm"))
    return figures


def thop(recording: Recording) -> ToolFigures:
    """The parts of thop 0.1.1's figure. Parameters: of the modules with a rule that ran, once per place in the tree."""
    figures, calls = ToolFigures(), _calls(recording)
    visits = Counter(id(module) for module in _visits(recording.model))

    def add(module: nn.Module, *, params: bool) -> None:
        ran = calls.get(id(module), [])
        for call in ran:
            for what, amount in THOP[type(module)](call).items():
                figures.parts.append((call.name, what, amount * visits[id(module)]))
        if ran and params:
            figures.params.append((ran[0].name, sum(p.numel() for p in module.parameters())))

    def walk(module: nn.Module) -> None:
        for child in module.children():
            if type(child) in THOP:
                add(child, params=True)
            else:
                walk(child)

    if type(recording.model) in THOP:  # a single layer: thop prints its operations and no parameters
        add(recording.model, params=False)
    walk(recording.model)
    _list_unknown(recording, figures, lambda module: type(module) in THOP, ())
    return figures


def _calls(recording: Recording) -> dict[int, list[ModuleCall]]:
    found: dict[int, list[ModuleCall]] = {}
    for call in recording.calls:
        found.setdefault(id(call.module), []).append(call)
    return found


def _visits(module: nn.Module) -> Iterator[nn.Module]:
    """Every module once per place in the tree, as `nn.Module.apply` meets them."""
    yield module
    for child in module.children():
        yield from _visits(child)


def _list_unknown(
    recording: Recording, figures: ToolFigures, known: Callable[[nn.Module], bool], functions: tuple[str, ...]
) -> None:
    """Leaves without a rule that computed something but move data, and products that a container computes itself."""
    modules = dict(recording.model.named_modules())
    counted = {name for name, module in modules.items() if known(module)}
    busy = {op.owner for op in recording.ops if op.macs or op.kind not in ("view", "free")}
    for call in recording.calls:
        if not child_names(call.module) and call.name not in counted and call.name in busy:
            figures.unknown[type(call.module).__name__] += 1
    for op in recording.ops:
        parts = op.owner.split(".")
        around = {"", *(".".join(parts[: end + 1]) for end in range(len(parts)))}
        if op.macs and child_names(modules[op.owner]) and not around & counted and op.api not in functions:
            figures.unknown[f"functional {op.api or op.name}"] += 1
