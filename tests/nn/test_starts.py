"""Starts from a dense kernel: optimal where it is said, never worse with second moments than without, learnable."""

import copy

import pytest
import torch
from torch import nn

from leanconv.errors import BadInput
from leanconv.nn import SICConv2d, get, parse
from leanconv.nn.starts import exact_weight, linear_norm_, nearest_slots, pooled_taps, restate_norm_

DENSE = (8, 12, 3, 1, 1)
DEPTHWISE = (8, 8, 5, 1, 2, 1, 8)
EXACT = [
    ("conv", DENSE), ("conv", (6, 9, (3, 1), 2, 1, 2, 3)), ("gmconv", DENSE), ("gmconv(mode='dynamic')", DENSE),
    ("doconv", (6, 9, 3, 2, 1, 1, 3)), ("lhconv", DENSE), ("lhconv(shapes='rigid')", DENSE), ("odconv", DENSE),
    ("odconv(kernels=1)", DEPTHWISE), ("drconv", DENSE), ("drconv(generator='adaptive')", (5, 7, 1)),
    ("hetconv(part=1)", DENSE), ("fuseconv", (4, 4, (1, 1), 1, 0, 1, 4)), ("group_pointwise(part=1)", (8, 6, 3, 2, 1)),
]  # fmt: skip
LINEAR = [
    ("hetconv(part=2)", DENSE), ("hetconv(part=4,arrangement='blocked')", (8, 8, 5, 2, 2)),
    ("hetconv(part=3,ragged=True)", (7, 5, 3, 1, 1, 2)), ("psconv(parts=2)", (8, 6, 3, 1, 1)),
    ("psconv(layout='interleaved')", (8, 4, 5, 2, 2)), ("psconv(parts=2,base_dilation=1)", (8, 8, 3, 1, 1, 1, 2)),
    ("topological", (12, 6, 1)), ("fuseconv", DEPTHWISE), ("fuseconv", (6, 6, (3, 5), 2, (2, 4), 2, 6)),
    ("inception_dw(ratio=0.25,band=3)", DEPTHWISE), ("inception_dw(ratio=0.25)", (8, 8, 4, 1, "same", 1, 8)),
]  # fmt: skip
BILINEAR = [
    ("depthwise_separable", DENSE), ("depthwise_separable(multiplier=2)", DENSE),
    ("depthwise_separable", (5, 3, (3, 5), 2, 0, 2)),
    ("group_pointwise(part=2)", (8, 6, 3, 2, 1)), ("group_pointwise(part=2)", (8, 3, 3)), ("sic", DENSE),
    ("sic", (6, 6, 3, 1, 1)), ("topological", (8, 12, 3, 2, 1)), ("fuseconv", DENSE),
    ("fuseconv(variant='full')", (5, 8, 3, 2, 1)),
]  # fmt: skip


def dense(arguments, bias=True):
    torch.manual_seed(0)
    sizes = (*arguments, *(1, 0, 1, 1)[len(arguments) - 3 :])
    return nn.Conv2d(*sizes, bias=bias, dtype=torch.double).eval()


def started(text, conv, gram=None):
    torch.manual_seed(1)
    name, options = parse(text)
    layer = get(name).from_conv(conv, **options)
    assert layer.project_(conv, gram)
    return layer


def moments(conv, rank=None):
    """Of inputs with correlations and a mean: `G D D`; singular where `rank` is below D."""
    d, dice = conv.weight[0].numel(), torch.Generator().manual_seed(2)
    x = torch.randn(conv.groups, d, rank or 2 * d, generator=dice, dtype=torch.double) + 0.7
    return x @ x.mT / x.shape[2]


def error(weight, conv, gram=None):
    """Σ_g tr((W_g - T_g) Γ_g (W_g - T_g)ᵀ); without a gram taps outside of the dense kernel count too."""
    smaller = [max(0, k - side) // 2 for k, side in zip(conv.kernel_size, weight.shape[2:])]
    weight = nn.functional.pad(weight, (smaller[1], smaller[1], smaller[0], smaller[0]))
    (r, s), (high, wide) = conv.kernel_size, weight.shape[2:]
    top, left = (high - 1) // 2 - (r - 1) // 2, (wide - 1) // 2 - (s - 1) // 2
    rest = weight[:, :, top : top + r, left : left + s] - conv.weight.detach()
    if gram is None:
        return rest.square().sum() + weight.square().sum() - weight[:, :, top : top + r, left : left + s].square().sum()
    rest = rest.flatten(1).unflatten(0, (conv.groups, -1))
    return ((rest @ gram) * rest).sum()


def value(weight, conv, gram=None):
    return float(error(weight.detach(), conv, gram))


def optimise_(layer, conv, gram):
    layer.requires_grad_(True)
    search = torch.optim.LBFGS(
        layer.parameters(), max_iter=400, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure():
        search.zero_grad()
        loss = error(layer.dense_weight(), conv, gram)
        loss.backward()
        return loss

    search.step(closure)
    return value(layer.dense_weight(), conv, gram)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("kind", ["white", "full", "singular"])
@pytest.mark.parametrize(("text", "arguments"), LINEAR)
def test_linear_families_start_at_their_optimum(text, arguments, kind):
    conv = dense(arguments)
    gram = {"white": None, "full": moments(conv), "singular": moments(conv, 3)}[kind]
    layer = started(text, conv, gram)
    ours, scale = value(layer.dense_weight(), conv, gram), value(0 * conv.weight, conv, gram)
    best = optimise_(copy.deepcopy(layer), conv, gram)
    fresh = get(layer.name).from_conv(conv, **layer.options())
    assert ours <= min(best, optimise_(fresh, conv, gram)) + 1e-6 * scale
    assert torch.equal(bias_of(layer), bias_of(conv)) or layer.name == "inception_dw"


def bias_of(layer):
    with torch.no_grad():
        return layer(torch.zeros(1, layer.in_channels, 15, 15, dtype=torch.double))


@pytest.mark.parametrize(("text", "arguments"), BILINEAR)
def test_bilinear_families(text, arguments):
    """White: the optimum among those that LBFGS finds; with a gram: near to it, and better than the white start."""
    conv = dense(arguments)
    white, gram = started(text, conv), moments(conv)
    names = [None, gram, moments(conv, 4)]
    for each in names:
        layer = started(text, conv, each)
        ours, scale = value(layer.dense_weight(), conv, each), value(0 * conv.weight, conv, each)
        assert ours <= value(white.dense_weight(), conv, each) * (1 + 1e-9) + 1e-12 * scale
        best = optimise_(copy.deepcopy(layer), conv, each)
        assert ours <= 1.02 * best + 1e-6 * scale
        if each is None and "full" not in text:
            fresh = get(layer.name).from_conv(conv, **layer.options())
            assert ours <= optimise_(fresh, conv, None) + 1e-6 * scale
    torch.testing.assert_close(bias_of(layer), bias_of(conv))


@pytest.mark.parametrize(("text", "arguments"), EXACT)
def test_exact_families_stay_exact(text, arguments):
    conv = dense(arguments)
    layer, x = started(text, conv, moments(conv)), torch.randn(2, arguments[0], 11, 12, dtype=torch.double)
    torch.testing.assert_close(layer(x), conv(x), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def halves(layer):
    """SPConv's linear part: half of each branch, as a dense kernel (stride 1)."""
    weight = torch.zeros(layer.out_channels, layer.in_channels, *layer.kernel_size, dtype=torch.double)
    c, width = layer.split[0], layer.split[0] // layer.rep_groups
    middle = layer.kernel_size[0] // 2
    for g, filters in enumerate(weight.chunk(layer.rep_groups)):
        filters[:, g * width : (g + 1) * width] = layer.spatial.weight.chunk(layer.rep_groups)[g]
    weight[:, :c, middle, middle] += layer.pointwise.weight[..., 0, 0]
    weight[:, c:, middle, middle] = layer.plain.weight[..., 0, 0]
    return weight / 2


@pytest.mark.parametrize("rank", [None, 9])
def test_spconv_is_the_nearest_at_gates_of_one_half(rank):
    conv = dense((8, 6, 3, 1, 1))
    gram, white = moments(conv, rank), halves(started("spconv", conv))
    weight = halves(started("spconv", conv, gram))
    assert error(weight, conv, gram) <= error(white, conv, gram)
    live = white != 0
    gradient = ((weight - conv.weight.detach()).flatten(1) @ gram[0]).view_as(weight)
    assert gradient[live].abs().max() < 1e-6
    torch.testing.assert_close(white[live], conv.weight.detach()[live])
    assert live.sum() == 6 * (2 * 9 + 6)


def test_spconv_answers_at_rest_like_its_linear_part():
    conv = dense((8, 6, 3, 1, 1))
    layer, x = started("spconv", conv), 1e-4 * torch.randn(2, 8, 9, 9, dtype=torch.double)
    linear = nn.functional.conv2d(x, halves(layer), conv.bias, padding=1)
    torch.testing.assert_close(
        layer(x) - conv.bias[:, None, None], linear - conv.bias[:, None, None], rtol=1e-3, atol=1e-7
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_spconv_behind_an_average_takes_its_share(stride):
    """A dense kernel that is an SPConv's linear part is found again, the pooled 1×1s of stride 2 included."""
    conv, pool = dense((8, 6, 3, stride, 1)), pooled_taps((3, 3), (stride, stride), (1, 1))
    with torch.no_grad():
        point = torch.randn(6, 8, 1, 1, dtype=torch.double) * pool.view(3, 3)
        owned = conv.weight.clone()
        conv.weight.copy_(point)
        conv.weight[:3, :2], conv.weight[3:, 2:4] = owned[:3, :2], owned[3:, 2:4]
    x = 1e-4 * torch.randn(2, 8, 10, 12, dtype=torch.double)
    for gram in (None, moments(conv)):
        layer = started("spconv", conv, gram)
        torch.testing.assert_close(
            layer(x) - bias_of(layer)[..., :1, :1], conv(x) - bias_of(conv)[..., :1, :1], rtol=2e-3, atol=1e-7
        )


@pytest.mark.parametrize("options", ["", "dilated_kernel_size=2", "depthwise=False", "depthwise=False,dilated=False"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_splconv_is_nearer_than_fresh_and_its_average_is_right(options, stride, bias):
    conv = dense((16, 12, 3, stride, 1), bias)
    x = torch.randn(64, 16, 12, 12, dtype=torch.double)
    layer = started(f"splconv({options})", conv)
    fresh = get("splconv").from_conv(conv, **layer.options())
    with torch.no_grad():
        expected = conv(x)
        assert (layer(x) - expected).norm() < 0.97 * expected.norm() < (fresh(x) - expected).norm()
        # Where the first branch's answers are normal, its mean is what the gates were set for.
        shift = (layer(x) - expected).mean((0, 2, 3))
        assert shift.abs().max() < 0.25


def test_splconv_keeps_a_positive_bias_linear():
    """A bias that is large against the deviation lifts the first branch off its bend: the layer is its linear part."""
    conv = dense((8, 6, 3, 1, 1))
    with torch.no_grad():
        conv.bias.fill_(0.5)
        conv.weight.mul_(0.05)
    layer, x = started("splconv", conv), torch.randn(4, 8, 12, 12, dtype=torch.double)
    basis = torch.zeros(8, 9, 9, dtype=torch.double)
    basis[:4], basis[4:, 0, 4] = torch.eye(9), 1
    v, u, _ = nearest_slots(exact_weight(conv), None, torch.arange(8), basis)
    best = torch.einsum("oc,ck,ckt->oct", v, u, basis).view(6, 8, 3, 3)
    linear = nn.functional.conv2d(x, best, conv.bias, padding=1)
    assert (layer(x) - linear).norm() < 0.1 * (linear - conv.bias[:, None, None]).norm()


def test_xsepconv_is_the_nearest_of_rank_one():
    conv = dense(DEPTHWISE)
    layer = started("xsepconv(linear=True)", conv)
    rest = (layer.rank_one_weight() - conv.weight).square().sum((1, 2, 3))
    torch.testing.assert_close(rest, torch.linalg.svdvals(conv.weight[:, 0])[:, 1:].square().sum(1))
    gram = moments(conv)
    weighted = started("xsepconv(linear=True)", conv, gram)
    assert error(weighted.rank_one_weight(), conv, gram) < error(layer.rank_one_weight(), conv, gram)
    x = torch.randn(2, 8, 11, 12, dtype=torch.double)
    expected = nn.functional.conv2d(x, layer.rank_one_weight(), conv.bias, padding=2, groups=8)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("options", ["", "act='relu6'", "act='hardswish'", "pad_policy='channel'", "layer_index=2"])
def test_xsepconv_with_activations_keeps_what_is_positive(options):
    """Of positive kernels of rank 1 and positive inputs nothing is cut."""
    conv = dense(DEPTHWISE)
    with torch.no_grad():
        row, column = torch.rand(8, 1, 1, 5).double(), torch.rand(8, 1, 5, 1).double()
        conv.weight.copy_(row * column)
    x = torch.rand(2, 8, 11, 12, dtype=torch.double)
    tolerance = 0.15 if "hardswish" in options else 1e-9
    layer = started(f"xsepconv({options})", conv)
    assert (layer(x) - conv(x)).norm() <= tolerance * (conv(x) - conv.bias[:, None, None]).norm()


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("overlap", [False, True])
def test_spatial_bottleneck_finds_one_again(overlap, residual):
    """Of kernels that repeat and average the nearest bottleneck answers nearer than any other start of ours."""
    conv = dense((6, 6, 3, 1, 1))
    layer = started(f"spatial_bottleneck(overlap={overlap},residual={residual})", conv)
    x = torch.randn(32, 6, 12, 12, dtype=torch.double)
    layer.requires_grad_(True)
    search = torch.optim.LBFGS(layer.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        search.zero_grad()
        loss = (layer(x) - conv(x)).square()[..., 4:-4, 4:-4].mean()  # away from the borders, which it does not know
        loss.backward()
        return loss

    before = float(closure().detach())
    search.step(closure)
    assert float(closure().detach()) > 0.9 * before  # what samples of this size allow


def test_spatial_bottleneck_of_ratio_one_is_the_1x1():
    conv = dense((6, 8, 1))
    layer, x = started("spatial_bottleneck(ratio=1)", conv), torch.randn(2, 6, 5, 7, dtype=torch.double)
    torch.testing.assert_close(layer(x), conv(x))


@pytest.mark.parametrize("act", ["None", "'relu'", "'relu6'", "'hardswish'"])
@pytest.mark.parametrize("bias", [True, False])
def test_fuseconv_keeps_activations_in_their_linear_range(act, bias):
    conv = dense((8, 6, 3, 1, 1), bias)
    plain, layer = started("fuseconv", conv), started(f"fuseconv(act={act})", conv)
    x = torch.randn(8, 8, 12, 12, dtype=torch.double)
    with torch.no_grad():
        rest = float((layer(x) - plain(x)).norm() / plain(x).norm())
    assert rest < (1e-9 if act == "None" else 0.15 if bias or act == "'hardswish'" else 0.85)
    torch.testing.assert_close(bias_of(layer), bias_of(conv))


def test_sic_of_several_units_is_one_on_inputs_that_are_not_negative():
    conv = dense((6, 9, 3, 1, 1))
    x = torch.rand(2, 6, 9, 9, dtype=torch.double)
    for options in ("", ",norm_between=False", ",act_between=False"):
        torch.testing.assert_close(started(f"sic(units=3{options})", conv)(x), started("sic", conv)(x))
    assert not SICConv2d.from_conv(conv, units=2, residual=False).project_(conv)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        *BILINEAR, ("spconv", (8, 6, 3, 1, 1)), ("splconv", DENSE), ("splconv(dilated_kernel_size=2)", DENSE),
        ("sic(units=2)", DENSE), ("xsepconv", DEPTHWISE), ("spatial_bottleneck", DENSE), ("psconv", (8, 8, 3, 1, 1)),
    ],
)  # fmt: skip
def test_every_number_can_learn_after_dead_channels(text, arguments):
    """Where the dense kernel has a channel of zeros, no factor is stuck between zeros."""
    conv = dense(arguments)
    with torch.no_grad():
        if conv.groups == 1:
            conv.weight[:, 1] = 0
        else:
            conv.weight[3] = 0
    layer = started(text, conv, moments(conv)).train().requires_grad_(True)
    x = torch.rand(8, arguments[0], 12, 12, dtype=torch.double)
    search = torch.optim.SGD(layer.parameters(), 1e-3)
    moved = [torch.zeros_like(p, dtype=torch.bool) for p in layer.parameters()]
    for _ in range(3):  # behind a zero factor a number moves a step later, in a chain of two units two
        search.zero_grad()
        (layer(x) - torch.randn_like(layer(x))).square().mean().backward()
        for seen, p in zip(moved, layer.parameters()):
            seen |= p.grad != 0
        search.step()
    assert all(bool(seen.all()) for seen in moved)


def test_inner_norms_agree_with_train_mode_on_white_inputs():
    x = torch.randn(64, 16, 16, 16, dtype=torch.double)
    for text, arguments in (
        ("spconv", (16, 12, 3, 1, 1)),
        ("splconv", (16, 12, 3, 1, 1)),
        ("fuseconv", (16, 12, 3, 1, 1)),
    ):
        layer = started(text, dense(arguments))
        with torch.no_grad():
            still = layer(x)
            assert (layer.train()(x) - still).norm() < 0.15 * still.norm(), text


def test_a_norm_can_be_restated():
    norm, x = nn.BatchNorm2d(4).double().eval(), torch.randn(8, 4, 5, 5).double() * 3 + 2
    linear_norm_(norm, torch.tensor([1.0, 2, 0, 4]).double(), 2.0, 0.5)
    torch.testing.assert_close(norm(x), 2 * x + 0.5)
    restate_norm_(norm, x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False))
    torch.testing.assert_close(norm(x), 2 * x + 0.5)
    torch.testing.assert_close(norm.train()(x), 2 * x + 0.5)


EVERY = [*EXACT, *LINEAR, *BILINEAR, ("spconv", (8, 6, 3, 2, 1)), ("splconv", DENSE), ("xsepconv", DEPTHWISE)]


@pytest.mark.parametrize(("text", "arguments"), EVERY)
def test_half_types_memory_formats_and_the_layer_itself(text, arguments):
    conv = dense(arguments)
    keys, exact = list(started(text, conv).state_dict()), started(text, conv, moments(conv))
    half = copy.deepcopy(conv).bfloat16().to(memory_format=torch.channels_last)
    before = copy.deepcopy(half.state_dict())
    layer = started(text, half, moments(conv).float())
    assert list(layer.state_dict()) == keys
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    assert all(torch.equal(a, b) for a, b in zip(before.values(), half.state_dict().values()))
    other = started(text, copy.deepcopy(conv).to(memory_format=torch.channels_last), moments(conv))
    for key, value in exact.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value)


@pytest.mark.parametrize(("text", "arguments"), EVERY[::3])
def test_bad_input(text, arguments):
    conv, (name, options) = dense(arguments), parse(text)
    layer = get(name).from_conv(conv, **options)
    before = copy.deepcopy(layer.state_dict())
    gram = moments(conv)
    with pytest.raises(BadInput, match=r"a gram of .* does not fit; this layer's is"):
        layer.project_(conv, gram[..., :-1])
    with pytest.raises(BadInput, match="gram has NaN or infinite numbers"):
        layer.project_(conv, gram * float("inf"))
    with pytest.raises(BadInput, match="stands for a kernel"):
        layer.project_(nn.Conv2d(3, 5, 9), None)
    with torch.no_grad():
        conv.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(BadInput, match="weight has NaN or infinite numbers"):
        layer.project_(conv)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), layer.state_dict().values()))
    with torch.device("meta"):
        nothing = dense(arguments)
    assert not get(name).from_conv(nothing, **options).project_(nothing)
