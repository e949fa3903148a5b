"""Counting conventions: the "FLOPs" and "Params" of each paper or tool, one frozen rule table each.

A convention over *operations* has a rule per kind of operation (see `ops.py`); other kinds add nothing. torchstat
counts *modules* instead (`torchstat.py`). The papers' rules are inferred from their printed digits, the tools' rules
read from their sources: fvcore 0.1.5.post20221221 `jit_handles.py`, `flop_count.py`; torch.utils.flop_counter; thop
and ptflops: `tools.py`.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from leanconv.errors import UnknownName
from leanconv.measure.counting import tools, torchstat
from leanconv.measure.counting.ops import OpCall
from leanconv.measure.counting.products import RECURRENT
from leanconv.measure.counting.record import Recording
from leanconv.registry import nearest
from leanconv.spec import ConvSpec

OpRule = Callable[[OpCall], int]
OperatorRule = Callable[[ConvSpec, Mapping[str, Any]], int]


@dataclass(frozen=True)
class Convention:
    """One counting rule.

    Attributes:
        unit: of its figures, "MACs" or "flops".
        says: the rule in words.
        ops: kind of operation -> the count of one. Empty for a convention over modules.
        modules: class of module -> (Flops, MAdd) of one call; subclasses count like their parent.
        tool: a tool's sum over a whole forward, in place of both rules above (see `tools.py`).
        silent: module classes that the rule explicitly counts as zero.
        weights_only: count as parameters the weights of convolutions and FC layers only, not every trainable tensor.
        as_published: an operator counts its paper's multiplications, not our implementation's.
        operators: operator's name -> further counts of one call, from sizes and options.
    """

    name: str
    unit: str
    says: str
    ops: Mapping[str, OpRule]
    modules: tuple[tuple[type[nn.Module], torchstat.Rule], ...] = ()
    tool: Callable[[Recording], tools.ToolFigures] | None = None
    silent: tuple[type[nn.Module], ...] = ()
    weights_only: bool = False
    as_published: bool = True
    operators: Mapping[str, OperatorRule] = field(default_factory=dict)


def _macs(op: OpCall) -> int:
    return op.macs


def _with_bias(op: OpCall) -> int:
    return op.macs + op.bias


def _torch_rule(op: OpCall) -> int:
    return 0 if op.name in RECURRENT else 2 * op.macs


def _per_element(times: int) -> OpRule:
    return lambda op: times * op.read


def _per_output(times: int) -> OpRule:
    return lambda op: times * op.written


_SQUEEZE = re.compile(r"[Ss]queeze|[Aa]ttention|(^|_)se(_|$)|^SE|^Se(Module|Layer|Block)|^(ECA|Eca)|^ODConv")


def _is_squeeze(op: OpCall) -> bool:
    """Whether a squeeze-excite or attention block runs it, by the names of the two innermost classes."""
    return any(_SQUEEZE.search(name) for name in op.inside[-2:])


def _if_squeeze(times: int) -> OpRule:
    return lambda op: times * op.read if _is_squeeze(op) else 0


def _unless_squeeze(times: int) -> OpRule:
    return lambda op: 0 if _is_squeeze(op) else times * op.read


def _od_kernel(spec: ConvSpec, options: Mapping[str, Any]) -> int:
    """Building ODConv's kernel per sample: 2n per weight (n = 1: one), plus one if taps have an attention."""
    taps, n = math.prod(spec.kernel), int(options["kernels"])
    return spec.n * spec.o * (spec.c // spec.groups) * taps * ((2 * n if n > 1 else 1) + (taps > 1))


def _fvcore_norm(op: OpCall) -> int:
    if op.kind == "batch_norm" and not op.training:
        return op.read * (2 if op.affine else 1)
    return op.read * (5 if op.affine else 4)


def _fvcore_matmul(op: OpCall) -> int:
    return op.macs if op.name in ("mm", "addmm", "bmm") else 0


def _aten_matmul(op: OpCall) -> int:
    return op.macs + (op.bias if op.name == "addmm" else 0) if op.name in ("mm", "addmm", "bmm") else 0


_ALL = {"conv": _macs, "linear": _macs, "matmul": _macs, "attention": _macs}
_LAYERS = {"conv": _macs, "linear": _macs}

CONVENTIONS: dict[str, Convention] = {
    c.name: c
    for c in (
        Convention(
            "macs",
            "MACs",
            "multiply-accumulates of convolutions, FC layers, matrix products and attention; an operator counts its "
            "paper's multiplications; params = trainable",
            _ALL,
        ),
        Convention(
            "executed_macs",
            "MACs",
            "the same, but an operator counts what its realisation here runs; params = trainable",
            _ALL,
            as_published=False,
        ),
        Convention(
            "macs_weights",
            "MACs",
            "multiply-accumulates of conv and FC layers only; params = conv and FC weights only (no bias, no BN)",
            _LAYERS,
            weights_only=True,
        ),
        Convention(
            "macs_trainable",
            "MACs",
            "multiply-accumulates of conv, FC and SE layers only; params = all trainable tensors",
            _LAYERS,
        ),
        Convention(
            "thop_old",
            "flops",
            "conv/FC multiply-accumulates + bias adds of convs + 4 per BN element + 1 per ReLU element; "
            "params = trainable",
            {"conv": _with_bias, "linear": _macs, "batch_norm": _per_element(4), "relu": _per_element(1)},
        ),
        Convention(
            "thop",
            "MACs",
            "thop 0.1.1's: conv/FC multiply-accumulates, a transposed conv by its outputs (times stride²), 4 per "
            "norm element, average pools; no bias, no ReLU, no function; params = of the modules it knows",
            {},
            tool=tools.thop,
            as_published=False,
        ),
        Convention(
            "ptflops",
            "MACs",
            "ptflops 0.7.5's default (pytorch backend): conv/FC multiply-accumulates with bias, 2 per norm element, 1 "
            "per ReLU and pooling element, twice where the module calls its function; params = trainable",
            {},
            tool=tools.ptflops,
            as_published=False,
        ),
        Convention(
            "ptflops_aten",
            "MACs",
            "ptflops 0.7.5's aten backend: conv/FC/mm/bmm multiply-accumulates with bias, nothing else; attention 0; "
            "params = trainable",
            {"conv": _with_bias, "linear": _aten_matmul, "matmul": _aten_matmul},
            as_published=False,
        ),
        Convention(
            "fuse",
            "flops",
            "conv/FC/SE multiply-accumulates + 2 per BN element + 2 per ReLU or h-swish element (ReLU6 free) + 2 per "
            "element pooled by a squeeze-excite block, whose own ReLU is free; params = trainable",
            _LAYERS
            | {
                "batch_norm": _per_element(2),
                "relu": _unless_squeeze(2),
                "hardswish": _per_element(2),
                "global_mean": _if_squeeze(2),
                "adaptive_pool": _if_squeeze(2),
            },
        ),
        Convention(
            "od",
            "flops",
            "conv/FC/attention multiply-accumulates + one add per element of each attention pool + building an ODConv "
            "kernel (2n per weight, n = 1: 1; k > 1: one more); params = trainable",
            _LAYERS | {"global_mean": _if_squeeze(1), "adaptive_pool": _if_squeeze(1)},
            operators={"odconv": _od_kernel},
        ),
        Convention(
            "fvcore",
            "flops",
            "fvcore's: one per multiply-accumulate of conv/FC/mm/bmm, no bias; BN 2 per element, other norms 5, "
            "bilinear upsampling 4 per output, adaptive average pool 1 per input; attention 0; params = trainable",
            {
                "conv": _macs,
                "linear": _fvcore_matmul,
                "matmul": _fvcore_matmul,
                "batch_norm": _fvcore_norm,
                "instance_norm": _fvcore_norm,
                "group_norm": _fvcore_norm,
                "layer_norm": _fvcore_norm,
                "adaptive_pool": _per_element(1),
                "upsample_nearest": _per_output(1),
                "upsample_bilinear": _per_output(4),
                "grid_sample": _per_output(4),
            },
            as_published=False,
        ),
        Convention(
            "torch",
            "flops",
            "torch.utils.flop_counter's: two per multiply-accumulate, nothing else, no LSTM; params = trainable",
            dict.fromkeys(_ALL, _torch_rule),
            as_published=False,
        ),
        Convention(
            "torchstat",
            "flops",
            "torchstat 0.0.7's: per module, a module called twice counted once (its last call); conv with its bias, "
            "2 per BN element, 1 per ReLU element, max-pool its input elements, transposed conv 0 in Flops and "
            "2 per multiplication of an input pixel in MAdd; functional operations 0; params = trainable",
            {},
            modules=torchstat.MODULES,
            silent=torchstat.SILENT,
            as_published=False,
        ),
    )
}


def convention(name: str) -> Convention:
    """The convention of that name. Raises UnknownName (with the known names) for any other."""
    if name not in CONVENTIONS:
        raise UnknownName(
            f"unknown convention {name!r}{nearest(name, list(CONVENTIONS))}; known: {', '.join(CONVENTIONS)}"
        )
    return CONVENTIONS[name]
