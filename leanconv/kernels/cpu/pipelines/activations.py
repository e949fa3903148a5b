"""Activations and maximum in Halide, with PyTorch's NaNs and infinities."""

import math
from typing import Any

from leanconv.kernels.cpu.pipelines.frontend import halide


def activate(name: str, x: Any, *place: Any) -> Any:
    """The activation `name` of an expression at the variables `place`; NaN stays NaN, as in PyTorch.

    Halide's max and min drop NaN, and LLVM may assume that no sum is NaN. So comparisons are `strict_float`, and
    `_either` selects between bits; on x86 that is still one instruction. `x` becomes a Func, which is inlined: inside
    the strict comparison itself it would lose its fused multiply-adds.
    """
    if name == "none":
        return x
    hl, func = halide(), halide().Func("before")
    func[place] = x
    x = func[place]
    if name == "relu":
        return _at_least(x, 0.0)
    if name == "relu6":
        return _at_most(_at_least(x, 0.0), 6.0)
    if name == "silu":
        return x / (1.0 + _exp(-x))
    if name == "sigmoid":
        nothing = (hl.reinterpret(hl.Int(32), x) & 0x7FFFFFFF) > 0x7F800000
        return _either(nothing, x, 1.0 / (1.0 + _exp(-x)))
    if name in ("hardsigmoid", "hardswish"):
        func = hl.Func("shifted")
        func[place] = x + 3.0
        share = _at_most(_at_least(func[place], 0.0), 6.0) * hl.f32(1 / 6)
        return share if name == "hardsigmoid" else x * share
    if name == "gelu":
        return x * hl.max(_gauss(x) + 0.5, 0.0)  # max: exactly zero far below zero
    raise ValueError(f"no activation {name!r} in the kernels")


def _either(condition: Any, a: Any, b: Any) -> Any:
    """a if the condition holds, else b; either may be NaN."""
    hl = halide()
    bits = [hl.reinterpret(hl.Int(32), hl.f32(x) if isinstance(x, float) else x) for x in (a, b)]
    return hl.reinterpret(hl.Float(32), hl.select(condition, *bits))


def _at_least(x: Any, bound: float) -> Any:
    return _either(halide().strict_float(x < bound), bound, x)


def _at_most(x: Any, bound: float) -> Any:
    return _either(halide().strict_float(x > bound), bound, x)


# Minimax polynomial of 2^f for f from -0.5 to 0.5 (Lawson's iteration); relative error 2e-9.
POWERS = (1.0, 0.6931471824645996, 0.24022646248340607, 0.05550328642129898, 0.009618489071726799,
          0.0013399930903688073, 0.00015345821157097816)  # fmt: skip


def _exp(x: Any) -> Any:
    """e^x for a sum 1 + e^x: at least 2^-126, infinite from 2^128 on; an arbitrary number if x is NaN.

    Halide's exp returns arbitrary numbers for x beyond ±10⁹. With it, a depthwise 3×3 with SiLU takes 1.2 times as long
    (64 channels, 56×56, one Zen 4 core).
    """
    hl = halide()
    x = hl.clamp(x * hl.f32(1 / math.log(2)), -126.0, 128.0)  # 1.0 with 128 added to its exponent is infinity
    whole = hl.round(x)
    total = _polynomial(POWERS, x - whole)
    return hl.reinterpret(hl.Float(32), hl.reinterpret(hl.Int(32), total) + (hl.i32(whole) << 23))


# ½ erf(x/√2) as x·P(x²)/Q(x²) up to ±5.6; beyond, it is ½ in float32. Lawson's iteration minimised the error times
# 0.3 + x, to 8e-8. For x from -8 to 8, the error of GELU is at most 1e-6; that of PyTorch's is 1.1e-6.
GAUSS_END = 5.6
GAUSS_OVER = (0.398941636, 0.0400877595, 0.00478463387, 0.000215227672, 3.8019341e-06, -2.32061073e-08, 1.08748302e-10)
GAUSS_UNDER = (1.0, 0.267144114, 0.0315289013, 0.00208333903, 7.79748734e-05)


def _gauss(x: Any) -> Any:
    """½ erf(x/√2); an arbitrary number if x is NaN. Halide's erf takes twice as long."""
    hl = halide()
    x = hl.clamp(x, hl.f32(-GAUSS_END), hl.f32(GAUSS_END))
    square = x * x
    return x * _polynomial(GAUSS_OVER, square) / _polynomial(GAUSS_UNDER, square)


def _polynomial(factors: tuple[float, ...], x: Any) -> Any:
    """Σ factors[i]·xⁱ, by Horner's rule."""
    hl = halide()
    total: Any = hl.f32(factors[-1])
    for factor in reversed(factors[:-1]):
        total = total * x + hl.f32(factor)
    return total


def largest(values: list[Any]) -> Any:
    """The maximum of values that were loaded; NaN if one of them is NaN."""
    hl = halide()
    best, nothing = values[0], hl.strict_float(values[0] != values[0])
    for value in values[1:]:
        best, nothing = hl.max(best, value), nothing | hl.strict_float(value != value)
    return _either(nothing, math.nan, best)
