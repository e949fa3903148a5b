"""The one contract: every operator × every spec that it accepts, whatever the paper; the other pairs are refusals."""

import copy
import io
import math
import pickle
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from leanconv.errors import UnsupportedConv
from leanconv.nn import get, make, names, parse
from leanconv.ops.fold import pad_taps
from leanconv.registry import options_of, unparse
from leanconv.spec import ConvSpec

# torch's word on its own copy of the input, for operators that pass "same" on to nn.Conv2d
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")

SPECS = {
    "plain": ConvSpec.of(8, 12, 3, 1, 1, n=2, h=15, w=17),
    "nobias": ConvSpec.of(8, 12, 3, 1, 1, bias=False, n=2, h=8, w=6),
    "stride2": ConvSpec.of(8, 12, 3, 2, 1, n=2, h=15, w=17),
    "stride2_even": ConvSpec.of(8, 8, 3, 2, 1, n=1, h=16, w=12),
    "stride12": ConvSpec.of(8, 8, 3, (1, 2), 1, n=2, h=9, w=10),
    "k5": ConvSpec.of(12, 8, 5, 1, 2, n=2, h=11, w=9),
    "k1x5": ConvSpec.of(8, 8, (1, 5), 1, (0, 2), n=2, h=7, w=9),
    "dilated": ConvSpec.of(8, 12, 3, 1, 2, 2, n=2, h=15, w=13),
    "unpadded": ConvSpec.of(8, 12, 3, 1, 0, n=2, h=9, w=9),
    "overpadded": ConvSpec.of(8, 12, 3, 2, 3, n=2, h=7, w=9),
    "same": ConvSpec.of(8, 12, 3, 1, "same", n=2, h=7, w=9),
    "k4": ConvSpec.of(8, 12, 4, 2, 1, n=2, h=16, w=14),
    "reflect": ConvSpec.of(8, 12, 3, 1, 1, padding_mode="reflect", n=2, h=9, w=8),
    "circular": ConvSpec.of(8, 12, 3, 2, 1, padding_mode="circular", n=2, h=9, w=8),
    "tiny_map": ConvSpec.of(8, 8, 3, 1, 1, n=3, h=1, w=2),
    "odd_channels": ConvSpec.of(7, 5, 3, 1, 1, n=2, h=9, w=8),
    "k1": ConvSpec.of(8, 12, 1, n=2, h=9, w=8),
    "grouped": ConvSpec.of(8, 12, 3, 1, 1, groups=2, n=2, h=9, w=8),
    "depthwise": ConvSpec.of(8, 8, 5, 1, 2, groups=8, n=2, h=9, w=11),
    "depthwise_stride2": ConvSpec.of(10, 10, 7, 2, 3, groups=10, n=2, h=12, w=15),
    "batch0": ConvSpec.of(8, 12, 3, 1, 1, n=0, h=9, w=8),
    "batch1": ConvSpec.of(8, 12, 3, 1, 1, n=1, h=9, w=8),
}

# Every option of every operator stands in one of its rows.
OPERATORS = [
    "conv",
    "depthwise_separable",
    "depthwise_separable(block=True)",
    "depthwise_separable(multiplier=2)",
    "group_pointwise",
    "group_pointwise(part=2, block=True)",
    "spconv",
    "spconv(alpha=0.25, rep_groups=1, inner_norms=1)",
    "splconv",
    "splconv(alpha=0.75, rate=3, dilated_kernel_size=2)",
    "splconv(depthwise=False)",
    "splconv(dilated=False)",
    "splconv(depthwise=False, dilated=False)",
    "hetconv",
    "hetconv(part=1)",
    "hetconv(part=2, arrangement='blocked')",
    "hetconv(part=3, ragged=True)",
    "doconv",
    "doconv(multiplier=27, compat='reference')",
    "gmconv",
    "gmconv(mode='dynamic', sigma=2.0)",
    "gmconv(mode='dynamic', granularity='in')",
    "lhconv",
    "lhconv(tile_in=3, tile_out=5, density=0.3, tf_same=True)",
    "lhconv(shapes='rigid', tile_in=2, tile_out=3, density=-1)",
    "odconv",
    "odconv(kernels=1, norm='layer')",
    "odconv(kernels=2, reduction=2.5, temperature=3.0, norm='none')",
    "fuseconv",
    "fuseconv(act='relu6')",
    "fuseconv(variant='full')",
    "drconv",
    "drconv(regions=3, guide='pointwise', experts=2)",
    "drconv(regions=3, generator='adaptive')",
    "psconv",
    "psconv(parts=2, base_dilation=3, layout='interleaved')",
    "sic",
    "sic(units=2, residual=False, norm_between=False)",
    "sic(units=3, act_between=False, block=True)",
    "inception_dw",
    "inception_dw(square=5, band=3, ratio=0.3)",
    "spatial_bottleneck",
    "spatial_bottleneck(ratio=4, overlap=True, residual=True)",
    "xsepconv",
    "xsepconv(pad_policy='channel', linear=True)",
    "xsepconv(pad_policy='single', norm_between=False, act='hardswish')",
    "xsepconv(layer_index=3, act_between=False, block=True)",
    "topological",
    "topological(in_dims=(4, 2), out_dims=(3, 4), window=(2, 1))",
]

# Parameters whose gradient is straight-through, so not the derivative: their own tests compare it with its formula.
STRAIGHT_THROUGH = ("scores", "conv_guide.")


def refusal(text, spec):
    """Why a row's operator cannot stand for a spec; None where it can."""
    name, options = parse(text)
    return get(name).why_not(spec, **options)


def is_linear(text, spec):
    return make(text, **spec.arguments()).dense_weight() is not None


def as_case(text, key):
    return pytest.param((text, SPECS[key]), id=f"{text}-{key}")


REASONS = {(text, key): refusal(text, spec) for text in OPERATORS for key, spec in SPECS.items()}
ACCEPTED = [pair for pair, reason in REASONS.items() if reason is None]
REFUSED = [pair for pair, reason in REASONS.items() if reason is not None]
LINEAR = [(text, key) for text, key in ACCEPTED if is_linear(text, SPECS[key])]


def built(text, spec, **factory):
    """The operator of a row on a spec, with BatchNorm made hard: random statistics and affine."""
    layer = make(text, **spec.arguments(), **factory)
    randomise_norms(layer)
    return layer


@torch.no_grad()
def randomise_norms(module):
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
            norm.weight.normal_().add_(0.2)
            norm.bias.normal_()


@torch.no_grad()
def randomise_biases(module):
    for each in module.modules():
        if getattr(each, "bias", None) is not None:
            each.bias.normal_()


def fitting(text, *wanted):
    """The first of some specs that the operator of a row accepts; the last one tried is depthwise, of the same stride.

    None if the operator refuses them all.
    """
    first = wanted[0]
    depthwise = ConvSpec.of(16, 16, 7, first.stride, 3, groups=16, n=2, h=first.h, w=first.w)
    return next((spec for spec in (*wanted, depthwise) if refusal(text, spec) is None), None)


@pytest.fixture(params=[as_case(text, key) for text, key in ACCEPTED])
def case(request):
    """An operator of the table and a spec that it accepts."""
    return request.param


def test_the_table_is_whole():
    """Every registered operator is in the table, and every option of each differs from its default in some row."""
    assert {parse(text)[0] for text in OPERATORS} == set(names())
    for name in names():
        rows = [parse(text)[1] for text in OPERATORS if parse(text)[0] == name]
        for option, default in options_of(get(name)).items():
            assert any(row.get(option, default) != default for row in rows), f"{name}: {option} is never varied"


def test_every_row_and_every_spec_is_accepted_somewhere():
    """A row that refuses everything would pass the contract unseen."""
    assert {text for text, _ in ACCEPTED} == set(OPERATORS)
    assert {key for _, key in ACCEPTED} == set(SPECS)


def test_shape_and_cost_are_what_runs(case):
    text, spec = case
    name, options = parse(text)
    layer = built(text, spec).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        y = layer(spec.input())
    assert y.shape == spec.conv()(spec.input()).shape == (spec.n, spec.o, spec.p, spec.q)
    cost = get(name).cost(spec, **options)
    assert counter.get_total_flops() == 2 * cost.executed_macs
    assert sum(p.numel() for p in layer.parameters()) == cost.params + cost.norm_params
    assert cost.macs <= cost.executed_macs or name == "drconv"  # which never makes the kernels that the paper counts
    elements = spec.n * spec.c * spec.h * spec.w + y.numel() + sum(p.numel() for p in layer.parameters())
    assert cost.bytes == 4 * elements


@pytest.mark.parametrize("case", [as_case(text, key) for text, key in LINEAR])
def test_linear_operators_equal_their_dense_weight(case):
    text, spec = case
    layer = built(text, spec, dtype=torch.double)
    randomise_biases(layer)
    dense = dense_twin(spec, layer.dense_weight())
    if dense.bias is not None:
        with torch.no_grad():  # a linear layer's answer to zeros is its bias, wherever that is stored
            dense.bias.copy_(layer(torch.zeros(1, spec.c, spec.h, spec.w, dtype=torch.double))[0, :, 0, 0])
    x = spec.input(dtype=torch.double)
    torch.testing.assert_close(layer(x), dense(x))


def dense_twin(spec, weight):
    """The plain layer with that kernel; one larger than the spec's (dilated parts, long bands) has the same centre."""
    side = (weight.shape[-2], weight.shape[-1])
    if side != spec.kernel:
        grown = tuple((a - d * (k - 1) - 1) // 2 for a, k, d in zip(side, spec.kernel, spec.dilation))
        padding = tuple(p + g for p, g in zip(spec.padding, grown))
        spec = replace(spec, kernel=side, padding=padding, dilation=(1, 1))
    dense = spec.conv(dtype=torch.double)
    dense.weight.data.copy_(weight)
    return dense


def test_fold_changes_no_output_and_costs_no_more(case):
    text, spec = case
    layer = built(text, spec, dtype=torch.double).eval()
    x, before = spec.input(dtype=torch.double), {k: v.clone() for k, v in layer.state_dict().items()}
    folded = layer.fold()
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            expected = layer(x)
        with FlopCounterMode(display=False) as folded_counter:
            result = folded(x)
    torch.testing.assert_close(result, expected)
    assert folded_counter.get_total_flops() <= counter.get_total_flops()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    for key, value in layer.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_scaling_the_output_is_exact_where_it_is_done(case):
    text, spec = case
    layer = built(text, spec, dtype=torch.double).eval()
    x, scale, shift = spec.input(dtype=torch.double), torch.randn(spec.o).double(), torch.randn(spec.o).double()
    with torch.no_grad():
        expected = layer(x) * scale[:, None, None] + shift[:, None, None]
        if layer.scale_output_(scale, shift):
            torch.testing.assert_close(layer(x), expected)
        else:
            torch.testing.assert_close(layer(x) * scale[:, None, None] + shift[:, None, None], expected)


def test_gradients_are_finite_and_reach_every_parameter(case):
    text, spec = case
    layer = built(text, spec).train()
    if spec.n == 1 and parse(text)[0] == "odconv":
        layer.eval()  # its BatchNorm sees one value a sample
    if spec.n == 0 and any(isinstance(m, nn.BatchNorm2d) for m in layer.modules()):
        layer.eval()  # BatchNorm has no statistics of an empty batch
    x = spec.input().requires_grad_()
    (layer(x) * torch.randn(spec.n, spec.o, spec.p, spec.q)).sum().backward()
    assert x.grad.isfinite().all()
    for key, parameter in layer.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


def test_channels_last_and_strided_inputs_give_the_same(case):
    text, spec = case
    layer = built(text, spec, dtype=torch.double).eval()
    x = spec.input(dtype=torch.double)
    with torch.no_grad():
        expected = layer(x)
        result = layer.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(result, expected)
        wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), math.nan, dtype=x.dtype)
        wide[..., ::2] = x
        torch.testing.assert_close(layer(wide[..., ::2]), expected)
    if spec.n > 1 and spec.kernel != (1, 1) and min(spec.h, spec.w, spec.p, spec.q) > 1:
        assert result.is_contiguous(memory_format=torch.channels_last)


def square(text):
    """A row's operator in eval mode on maps with as many rows as channels: mixing the two up would not be noticed."""
    sizes = [(8, 8, 3, 1), (12, 12, 3, 1), (8, 12, 3, 1), (16, 16, 7, 16)]
    wanted = [ConvSpec.of(c, o, k, 1, k // 2, groups=g, n=2, h=c, w=9) for c, o, k, g in sizes]
    spec = next(spec for spec in wanted if refusal(text, spec) is None)
    return built(text, spec).eval(), spec


@pytest.mark.parametrize("text", OPERATORS)
def test_a_sample_without_its_batch_gives_what_it_gives_in_one(text):
    """As nn.Conv2d takes `C H W`; of its rows nobody may take channels."""
    layer, spec = square(text)
    x = spec.input()
    with torch.no_grad():
        for each in (layer, layer.fold()):
            torch.testing.assert_close(each(x[0]), each(x)[0])


@pytest.mark.parametrize("text", OPERATORS)
def test_inputs_of_other_sizes_are_refused_in_words(text):
    layer, spec = square(text)
    with pytest.raises((RuntimeError, ValueError), match=r"to have \d+ channels|layer takes \d+") as error:
        layer(torch.randn(2, spec.c + 1, spec.h, spec.w))
    assert str(spec.c + 1) in str(error.value)
    for shape in ((spec.c, spec.h), (1, 2, spec.c, spec.h, spec.w)):
        with pytest.raises((RuntimeError, ValueError), match=r"C H W|3D \(unbatched\) or 4D \(batched\)"):
            layer(torch.randn(shape))


@pytest.mark.parametrize("text", [*OPERATORS, "hetconv(part=4)"])
def test_a_trace_of_a_layer_warns_of_nothing(text, recwarn):
    """As nn.Conv2d's: what is looked at before a layer computes asks nothing of sizes, which a trace takes for data."""
    layer, spec = square(text)
    traced = torch.jit.trace(layer, spec.input())
    assert not [w for w in recwarn if issubclass(w.category, torch.jit.TracerWarning) and "torch/nn" not in w.filename]
    x = torch.randn(3, spec.c, 11, 6)
    torch.testing.assert_close(traced(x), layer(x))


TRACED = ["stride2", "unpadded", "overpadded", "same", "reflect", "depthwise", "k1"]


@pytest.mark.parametrize(("text", "key"), [(text, key) for text, key in ACCEPTED if key in TRACED])
def test_torch_fx_traces_through_it(text, key):
    """As a part of a model and folded; the graph answers as the layer does, at sizes and batches it has not seen."""
    layer, x = built(text, SPECS[key]).eval(), torch.randn(3, SPECS[key].c, 13, 16)
    for each in (layer, layer.fold()):
        graph = torch.fx.symbolic_trace(nn.Sequential(each))
        with torch.no_grad():
            torch.testing.assert_close(graph(x), each(x))


@pytest.mark.parametrize("text", OPERATORS)
def test_a_graph_of_torch_fx_is_the_layer(text):
    """Traced as the whole model: in training, in bfloat16, under autocast, for a sample alone, copied, traced again."""
    layer, spec = square(text)
    graph, x = torch.fx.symbolic_trace(layer), spec.input()
    with torch.no_grad():
        for each in (graph, copy.deepcopy(graph), pickle.loads(pickle.dumps(graph)), torch.fx.symbolic_trace(graph)):
            torch.testing.assert_close(each(x), layer(x))
        torch.testing.assert_close(graph(x[0]), layer(x[0]))
        torch.testing.assert_close(_autocast(graph, x), _autocast(layer, x))
        last = x.to(memory_format=torch.channels_last)
        assert graph(last).stride() == layer(last).stride()
        half = copy.deepcopy(layer).bfloat16()
        torch.testing.assert_close(torch.fx.symbolic_trace(half)(x.bfloat16()), half(x.bfloat16()))
    with pytest.raises((RuntimeError, ValueError), match=r"to have \d+ channels|layer takes \d+"):
        graph(torch.randn(2, spec.c + 1, spec.h, spec.w))
    ours, theirs = copy.deepcopy(layer).train(), copy.deepcopy(layer).train()
    graph = torch.fx.symbolic_trace(theirs)
    pickle.dumps(theirs)  # no symbol stays behind in the layer
    for each in (ours, graph):
        each(x).square().sum().backward()
    for (key, mine), other in zip(ours.named_parameters(), theirs.parameters()):
        torch.testing.assert_close(other.grad, mine.grad, msg=key)


@pytest.mark.parametrize("text", [*names(), "drconv(regions=2, generator='adaptive')", "gmconv(mode='dynamic')"])
def test_an_exported_program_leaves_every_size_open(text):
    layer, spec = square(text)
    dims = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(layer, (spec.input(),), dynamic_shapes=(dims,)).module()
    for size in ((1, 11, 13), (3, 16, 10)):
        x = torch.randn(size[0], spec.c, *size[1:])
        with torch.no_grad():
            torch.testing.assert_close(program(x), layer(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("last", [False, True], ids=["plain", "channels_last"])
@pytest.mark.parametrize("text", OPERATORS)
def test_vmap_and_gradients_of_each_sample(text, last):
    layer, spec = square(text)
    x = torch.randn(6, spec.c, 9, 7)
    x = x.to(memory_format=torch.channels_last if last else torch.contiguous_format).unflatten(0, (3, 2))
    weights = {key: value.detach() for key, value in layer.named_parameters()}

    def loss(weights, x):
        return torch.func.functional_call(layer, weights, (x,)).square().mean()

    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(layer)(x), torch.stack([layer(each) for each in x]))
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x)
    for i, sample in enumerate(x):
        for key, expected in torch.func.grad(loss)(weights, sample).items():
            torch.testing.assert_close(each[key][i], expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_near_float64(case):
    text, spec = case
    layer = built(text, spec).eval()
    x = spec.input().bfloat16()
    with torch.no_grad():
        rounded = copy.deepcopy(layer).bfloat16()
        for result, reference in ((rounded(x), rounded), (_autocast(layer, x), layer)):
            assert result.dtype == torch.bfloat16
            if spec.n == 0:
                continue
            exact = copy.deepcopy(reference).double()(x.double())
            # 8 bits of mantissa through at most five roundings in a row, against the range of the output.
            assert (result.double() - exact).abs().max() <= 0.06 * exact.abs().max()


def _autocast(layer, x):
    with torch.autocast("cpu", torch.bfloat16):
        return layer(x.float())


def test_survives_state_dict_pickle_and_deepcopy(case):
    text, spec = case
    layer, x = built(text, spec).eval(), spec.input()
    other = built(text, spec).eval()
    other.load_state_dict(layer.state_dict())
    with io.BytesIO() as file:
        pickle.dump(layer, file)
        file.seek(0)
        copies = [other, copy.deepcopy(layer), pickle.load(file)]
    with torch.no_grad():
        for each in copies:
            torch.testing.assert_close(each(x), layer(x), rtol=0, atol=0)
    assert make(unparse(layer.name, layer.options()), **spec.arguments()).options() == layer.options()


def test_from_conv_keeps_the_sizes(case):
    text, spec = case
    name, options = parse(text)
    conv = spec.conv(dtype=torch.double).eval()
    layer = get(name).from_conv(conv, **options)
    for attribute in ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups", "padding_mode"):
        assert getattr(layer, attribute) == getattr(conv, attribute), attribute
    assert not layer.training
    assert {p.dtype for p in layer.parameters()} == {torch.double}
    assert layer(spec.input(dtype=torch.double)).shape == conv(spec.input(dtype=torch.double)).shape
    with torch.no_grad():
        if layer.project_(conv):
            fresh = get(name).from_conv(conv, **options)
            assert distance(layer, conv) < distance(fresh, conv) + 1e-12
            if spec.n and name not in ("splconv", "inception_dw"):  # a ReLU at its bend; channels without a bias
                zero = torch.zeros(1, spec.c, spec.h, spec.w, dtype=torch.double)
                torch.testing.assert_close(layer(zero), conv(zero))


def distance(layer, conv):
    """Between the two kernels, or between the two outputs where the operator is no kernel."""
    weight = layer.dense_weight()
    if weight is not None and layer.name != "inception_dw":  # whose taps do not follow from the layer's
        return (weight - pad_taps(conv.weight, weight.shape[-2:])).norm()
    x = ConvSpec.from_conv(conv, (4, conv.in_channels, 15, 13)).input(dtype=torch.double)
    return (layer(x) - conv(x)).norm()


class Together(torch.nn.Module):
    """Several layers in one program: a capture takes its time, whatever it captures."""

    def __init__(self, layers):
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, *maps):
        return tuple(layer(x) for layer, x in zip(self.layers, maps))


# Specs that differ from another one by sizes alone: what is captured is the same.
OTHER_SIZES = ("stride2_even", "stride12", "k1x5", "k4", "overpadded", "tiny_map", "odd_channels", "batch1")


# An operator -> the specs that are captured in one program.
CAPTURED = {text: [key for each, key in ACCEPTED if each == text and key not in OTHER_SIZES] for text in OPERATORS}


@pytest.mark.slow
@pytest.mark.parametrize("text", [text for text, keys in CAPTURED.items() if keys])
def test_compiles_without_graph_break(text):
    specs = [SPECS[key] for key in CAPTURED[text]]
    own = [spec for spec in specs if spec in (SPECS["plain"], SPECS["depthwise"])]  # enough for the backend's own rules
    for backend, listed in (("aot_eager", own), ("eager", [spec for spec in specs if spec not in own])):
        layers, maps = Together(built(text, spec) for spec in listed).eval(), [spec.input() for spec in listed]
        torch._dynamo.reset()
        compiled = torch.compile(layers, fullgraph=True, backend=backend, dynamic=False)
        with torch.no_grad():
            for seen, y in zip(compiled(*maps), layers(*maps), strict=True):
                torch.testing.assert_close(seen, y)


@pytest.mark.parametrize("text", OPERATORS)
def test_gradcheck(text):
    spec = fitting(text, *(ConvSpec.of(c, o, 3, 1, 1, n=2, h=4, w=3) for c, o in ((4, 6), (8, 8), (8, 12))))
    layer = built(text, spec, dtype=torch.double).train()
    layer.requires_grad_(True)
    for key, parameter in layer.named_parameters():
        if key.startswith(STRAIGHT_THROUGH):
            parameter.requires_grad_(False)
            if "guide" in key:  # the input's way through the guide is of that kind too
                parameter.data.zero_()
    names_, values = zip(*[(k, p) for k, p in layer.named_parameters() if p.requires_grad])
    x = spec.input(dtype=torch.double).requires_grad_()

    def run(x, *parameters):
        state = {k: v.clone() for k, v in layer.named_buffers()}
        return torch.func.functional_call(layer, {**dict(zip(names_, parameters)), **state}, x)

    assert torch.autograd.gradcheck(run, (x, *values), atol=1e-5, fast_mode=True)


@pytest.mark.slow
@pytest.mark.parametrize("text", [f"{name}" for name in names()])
def test_inductor(text):
    key = "stride2" if "stride" in get(parse(text)[0]).accepts else "plain"
    spec = fitting(text, SPECS[key])
    layer, x = built(text, spec).eval(), spec.input()
    torch._dynamo.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), layer(x), rtol=1e-4, atol=1e-4)


def exported(text, key):
    return fitting(text, SPECS[key], ConvSpec.of(12, 12, 3, SPECS[key].stride, 1, n=2, h=15, w=17))


EXPORTED = {
    name: [(text, "plain") for text in OPERATORS if parse(text)[0] == name and exported(text, "plain")]
    + ([(name, "stride2")] if exported(name, "stride2") else [])
    for name in names()
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, cases in EXPORTED.items() if cases])
def test_onnx_export_with_dynamic_batch(name, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    specs = [(text, exported(text, key)) for text, key in EXPORTED[name]]
    layers, path = Together(built(text, spec) for text, spec in specs).eval(), str(tmp_path / "layers.onnx")
    torch.onnx.export(
        layers,
        tuple(spec.input() for _, spec in specs),
        path,
        dynamo=True,
        dynamic_shapes=(tuple({0: f"batch{i}"} for i in range(len(specs))),),
        input_names=[f"x{i}" for i in range(len(specs))],
        verbose=False,
    )
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for n in (1, 3):
        maps = [torch.randn(n, spec.c, spec.h, spec.w) for _, spec in specs]
        found = session.run(None, {f"x{i}": x.numpy() for i, x in enumerate(maps)})
        with torch.no_grad():
            for seen, y in zip(found, layers(*maps), strict=True):
                torch.testing.assert_close(torch.from_numpy(seen), y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("text", "key"), REFUSED)
def test_refusals_are_readable(text, key):
    """A refused pair raises at construction, in why_not's sentence, which names one of the values that it was given."""
    name, options = parse(text)
    reason = refusal(text, SPECS[key])
    with pytest.raises(UnsupportedConv) as error:
        make(text, **SPECS[key].arguments())
    assert str(error.value) == f"{name}: {reason}"
    assert len(reason.split()) >= 3, "no sentence"
    given = SPECS[key].arguments() | options_of(get(name)) | options
    assert any(f"{field}={shown}" in reason for field, value in given.items() for shown in (value, repr(value)))


@pytest.mark.parametrize("name", names())
def test_option_values_of_any_kind_are_taken_or_refused_in_words(name):
    """Whatever a user types for an option, no TypeError from the middle of a constructor."""
    wanted = (ConvSpec.of(16, 16, 3, 1, 1), ConvSpec.of(16, 16, 7, 1, 3, groups=16))
    spec = next(spec for spec in wanted if not get(name).why_not(spec))
    values = [None, "x", -1, 0, 1.5, math.nan, math.inf, True, (1, 2), (), [], {}, 1j]
    for option in options_of(get(name)):
        for value in values:
            try:
                get(name)(**spec.arguments(), device="meta", **{option: value})
                said = None
            except UnsupportedConv as error:
                said = str(error)
            assert said is None or f"{option}=" in said


@pytest.mark.parametrize("name", names())
def test_signature_is_conv2ds(name):
    import inspect

    ours = list(inspect.signature(get(name).__init__).parameters.values())[1:]
    theirs = list(inspect.signature(nn.Conv2d.__init__).parameters.values())[1:]
    for mine, conv in zip(ours, theirs):
        assert (mine.name, mine.default) == (conv.name, conv.default)
    assert all(p.kind is p.KEYWORD_ONLY for p in ours[len(theirs) :])
    assert not {p.name for p in ours[len(theirs) :]} & {p.name for p in theirs}
    assert get(name).paper
    assert get(name).__doc__


@pytest.mark.parametrize("text", OPERATORS)
def test_meta_device_builds_without_memory(text):
    spec = fitting(text, ConvSpec.of(12, 12, 3, 1, 1, n=2, h=8, w=8), ConvSpec.of(8, 12, 3, 1, 1, n=2, h=8, w=8))
    layer = make(text, **spec.arguments(), device="meta")
    assert layer(spec.input(device="meta")).shape == (2, spec.o, 8, 8)
    # Large models are built so: sizes first, then memory with whatever stands in it, then a checkpoint.
    real = make(text, **spec.arguments()).eval()
    with torch.device("meta"):
        later = make(text, **spec.arguments()).eval()
    later.to_empty(device="cpu").load_state_dict(real.state_dict())
    x = spec.input()
    assert torch.equal(later(x), real(x))


@pytest.mark.parametrize("text", OPERATORS)
def test_an_input_of_other_channels_is_an_error(text):
    wide = ConvSpec.of(12, 12, 3, 1, 1, n=2, h=8, w=8), ConvSpec.of(12, 12, 1, n=2, h=8, w=8)
    for spec in wide if refusal(text, wide[1]) is None else (fitting(text, *wide[:1], SPECS["plain"]),):
        layer = make(text, **spec.arguments()).eval()
        for c in (spec.c - 1, spec.c + 1, 2 * spec.c):
            with pytest.raises((RuntimeError, ValueError)):
                layer(torch.randn(2, c, 8, 8))


def test_conv_is_conv2d():
    spec = SPECS["plain"]
    layer, x = make("conv", **spec.arguments()), spec.input()
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1), rtol=0, atol=0)
    assert type(layer.fold()) is nn.Conv2d
