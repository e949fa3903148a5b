"""bfloat16 in Halide: stored as 16 bits, widened to float32, rounded back, and multiplied in pairs (AVX512-BF16)."""

from typing import Any

from leanconv.kernels.cpu.pipelines.frontend import halide

Place = tuple[Any, ...]


class Bfloat16Map:
    """A map or scratch of bfloat16 bits that is read as float32."""

    def __init__(self, bits: Any) -> None:
        self.bits = bits

    def __getitem__(self, place: Any) -> Any:
        hl = halide()
        return hl.reinterpret(hl.Float(32), hl.cast(hl.UInt(32), self.bits[place]) << 16)


def pair_product(weights: Bfloat16Map, weight: Place, source: Bfloat16Map, place: Place) -> Any:
    """The product weights[weight] * source[place] that becomes `vdpbf16ps` in a sum over a vectorized loop of two.

    Halide emits the instruction only for numbers of its own type BFloat(16) that are cast to float32. It does not
    recognise the shift in `Bfloat16Map.__getitem__`, which gives the same number.
    """
    hl = halide()
    factors = (hl.reinterpret(hl.BFloat(16), bits) for bits in (weights.bits[weight], source.bits[place]))
    first, second = (hl.cast(hl.Float(32), factor) for factor in factors)
    return first * second


def round_to_bfloat16(value: Any) -> Any:
    """The bits of the nearest bfloat16 of a float32; ties go to even. See `quiet_nan` for NaNs from outside."""
    hl = halide()
    bits = hl.reinterpret(hl.UInt(32), value)
    return hl.cast(hl.UInt(16), (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)


def truncate_to_bfloat16(value: Any) -> Any:
    """The upper 16 bits of a float32: exact if it holds a bfloat16."""
    hl = halide()
    return hl.cast(hl.UInt(16), hl.reinterpret(hl.UInt(32), value) >> 16)


def quiet_nan(value: Any) -> Any:
    """Replace every NaN by the canonical one: rounding a NaN with all bits set would overflow to -0."""
    hl = halide()
    bits = hl.reinterpret(hl.UInt(32), value)
    return hl.reinterpret(hl.Float(32), hl.select((bits << 1) > (0xFF << 24), hl.u32(0x7FC00000), bits))
