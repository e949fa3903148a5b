"""Layer R of the specification (64 -> 128, 3×3, 56×56, no bias): the figures worked out by hand there, section 17.1."""

import pytest

from leanconv.nn import get, parse
from leanconv.spec import ConvSpec

R = ConvSpec.of(64, 128, 3, 1, 1, bias=False, h=56, w=56)

FIGURES = [
    ("conv", 73_728, 231_211_008),
    ("depthwise_separable", 8_768, 27_496_448),
    ("group_pointwise(part=4)", 17_408, 54_591_488),
    ("spconv", 26_624, 83_492_864),
    ("splconv", 8_768, 27_496_448),
    ("splconv(dilated_kernel_size=2)", 8_608, 26_994_688),
    ("hetconv(part=4)", 24_576, 77_070_336),
    ("doconv", 78_912, 231_211_008),
    ("gmconv", 73_729, 231_211_008),
    ("lhconv(tile_in=8, tile_out=8)", 74_880, 23_121_728),
    ("fuseconv", 8_384, 26_292_224),
    ("fuseconv(variant='full')", 16_768, 52_584_448),
    ("drconv(guide=None)", 593_984, 231_211_008 + 4_718_592),
    ("drconv(guide=None, generator='adaptive')", 593_984, 231_211_008 + 4_755_456),
    ("drconv(guide='pointwise')", 593_984 + 512, 231_211_008 + 4_718_592 + 512 * 3136),
    ("drconv", 593_984 + 4_616, 231_211_008 + 4_718_592 + 4_608 * 3136),
    ("psconv", 73_728, 231_211_008),
    ("sic", 8_768, 27_496_448),
    ("sic(units=2)", 13_440, 42_147_840),
    ("spatial_bottleneck", 8_960, 7_024_640),
    ("topological", 2_624, 8_228_864),
]


@pytest.mark.parametrize(("text", "params", "macs"), FIGURES)
def test_figures(text, params, macs):
    name, options = parse(text)
    cost = get(name).cost(R, **options)
    assert (cost.params, cost.macs) == (params, macs)


def test_executed_and_norm_figures():
    assert get("doconv").cost(R).executed_macs == 231_211_008 + 663_552
    assert get("hetconv").cost(R, part=4).executed_macs == 83_492_864
    assert get("splconv").cost(R).params + get("splconv").cost(R).norm_params == 9_024
    biased = ConvSpec.of(64, 128, 3, 1, 1, bias=True, h=56, w=56)
    for kernels, params, macs in ((1, 78_201, 231_215_248), (4, 299_453, 231_215_312)):  # the BatchNorm's are in there
        odconv = get("odconv").cost(R, kernels=kernels)
        assert (odconv.params + odconv.norm_params, odconv.macs) == (params, macs)
    spconv = get("spconv").cost(biased)
    assert spconv.params + spconv.norm_params == 27_264


@pytest.mark.parametrize(("alpha", "reduction"), [(1 / 2, 2.77), (1 / 4, 4.24), (1 / 8, 5.76)])
def test_spconv_reductions_of_the_paper(alpha, reduction):
    assert round(231_211_008 / get("spconv").cost(R, alpha=alpha).macs, 2) == reduction
