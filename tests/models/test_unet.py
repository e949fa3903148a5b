"""The U-Net: its printed size, which layers are replaced, what it computes, what it refuses."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanconv import registry
from leanconv.errors import BadInput, LeanconvError, UnknownName, UnsupportedConv
from leanconv.models import build, names, options_of
from leanconv.nn import SPLConv2d


def replaced(**options) -> set[str]:
    model = build("unet", base=4, conv="splconv", **options)
    return {name for name, m in model.named_modules() if isinstance(m, SPLConv2d)}


def both(room: str, *levels: int) -> set[str]:
    return {f"{room}.level{level}.conv{i}" for level in levels for i in (1, 2)}


@pytest.mark.parametrize(
    ("part", "keep", "expected"),
    [
        ("all", "ends", both("encoder", 1, 2, 3, 4, 5) | both("decoder", 1, 2, 3, 4)),
        ("all", "first_block", both("encoder", 2, 3, 4, 5) | both("decoder", 1, 2, 3, 4)),
        ("encoder", "ends", both("encoder", 1, 2, 3, 4, 5)),
        ("encoder", "first_block", both("encoder", 2, 3, 4, 5)),
        ("decoder", "ends", both("decoder", 1, 2, 3, 4)),
        ("decoder", "first_block", both("decoder", 1, 2, 3, 4)),
    ],
)
def test_the_replaced_layers_are_the_named_ones(part, keep, expected):
    if keep == "ends":
        expected = expected - {"encoder.level1.conv1", "decoder.level1.conv2"}
    assert replaced(part=part, keep=keep) == expected


def test_the_dense_network_has_the_known_size_and_only_plain_layers():
    model = build("unet")
    assert sum(p.numel() for p in model.parameters()) == 7_763_041
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 19
    assert all(type(m) is nn.Conv2d for m in convs)


def functional_unet(state, x, levels):
    """The same network from its tensors alone, in eval mode."""

    def pair(x, at):
        for i in "12":
            x = F.conv2d(x, state[f"{at}.conv{i}.weight"], padding=1)
            mean, var, gamma, beta = (
                state[f"{at}.norm{i}.{k}"].view(1, -1, 1, 1) for k in ("running_mean", "running_var", "weight", "bias")
            )
            x = ((x - mean) / (var + 1e-5).sqrt() * gamma + beta).clamp(min=0)
        return x

    skips = []
    for level in range(1, levels + 2):
        x = pair(x if level == 1 else F.max_pool2d(x, 2), f"encoder.level{level}")
        skips.append(x)
    for level in range(levels, 0, -1):
        at = f"decoder.level{level}"
        up = F.conv_transpose2d(x, state[f"{at}.up.weight"], state[f"{at}.up.bias"], stride=2)
        x = pair(torch.cat([up, skips[level - 1]], 1), at)
    return F.conv2d(x, state["head.weight"], state["head.bias"])


@pytest.mark.parametrize("levels", [1, 3])
def test_it_computes_the_u_net(levels):
    model = build("unet", in_channels=2, out_channels=5, base=3, levels=levels).double().eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(2, 2, 16, 24, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), functional_unet(model.state_dict(), x, levels))


@pytest.mark.parametrize("conv", [name for name in registry.names() if "dense" in registry.get(name).replaces])
def test_every_operator_builds_trains_and_keeps_the_shape(conv):
    model = build("unet", base=8, levels=2, conv=conv)
    y = model(torch.randn(2, 3, 16, 20))
    assert y.shape == (2, 1, 16, 20)
    y.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def norms(model) -> int:
    """BatchNorms of the network itself; those inside an operator are called `norm`."""
    return sum(name.endswith(("norm1", "norm2")) for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d))


def test_norm_per_says_where_the_outer_norms_stand():
    options = {"base": 4, "conv": "splconv"}
    assert norms(build("unet", **options)) == 18
    assert norms(build("unet", **options, norm_per="pair", keep="first_block")) == 10
    assert norms(build("unet", **options, norm_per="pair", keep="ends")) == 10
    assert norms(build("unet", **options, norm_per="inner", keep="first_block")) == 2
    assert norms(build("unet", **options, norm_per="pair", part="encoder")) == 9 + 9 - 4


def test_conv_bias_is_one_output_bias_per_replaced_convolution():
    plain, biased = (build("unet", base=4, conv="splconv", conv_bias=b) for b in (False, True))
    more = sum(p.numel() for p in biased.parameters()) - sum(p.numel() for p in plain.parameters())
    widths = [4, 8, 16, 32, 64]
    assert more == 4 + 2 * sum(widths[1:]) + 2 * sum(widths[1:4]) + 4


def test_the_state_dict_keys_are_kept():
    keys = set(build("unet", base=4, levels=1, conv="splconv").state_dict())
    assert {
        "encoder.level1.conv1.weight",
        "encoder.level1.conv2.stencil1.weight",
        "encoder.level2.conv1.plain.weight",
        "encoder.level2.norm1.running_mean",
        "decoder.level1.up.bias",
        "decoder.level1.conv2.weight",
        "head.bias",
    } <= keys
    assert all(key.split(".")[0] in ("encoder", "decoder", "head") for key in keys)


@pytest.mark.slow
def test_copies_pickles_compiles_and_keeps_channels_last():
    model = build("unet", base=4, levels=2, conv="splconv").eval()
    x = torch.randn(1, 3, 8, 12)
    with torch.no_grad():
        y = model(x)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(twin(x), y)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), y)
        last = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 20, 32), (1, 3, 32, 17), (1, 1, 32, 32), (3, 32, 32)])
def test_an_image_of_a_wrong_size_is_refused_with_the_right_one(shape):
    with pytest.raises(BadInput, match=r"multiples of 16, got .*; pad to 32x32|N C H W with C=3"):
        build("unet", base=2)(torch.zeros(shape))


def test_an_empty_batch_passes_in_eval_mode():
    assert build("unet", base=2, levels=1).eval()(torch.zeros(0, 3, 4, 4)).shape == (0, 1, 4, 4)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"bass": 32}, UnknownName, "did you mean 'base'"),
        ({"base": 0}, BadInput, "base=0"),
        ({"base": "32"}, BadInput, "base='32'"),
        ({"base": 8.0}, BadInput, "base=8.0"),
        ({"base": True}, BadInput, "base=True"),
        ({"base": None}, BadInput, "base=None"),
        ({"levels": 0}, BadInput, "levels=0"),
        ({"levels": 60}, BadInput, "at most 65536"),
        ({"levels": 10**9}, BadInput, "at most 65536"),
        ({"out_channels": 10**12}, BadInput, "out_channels=1000000000000: at most 65536"),
        ({"in_channels": -3}, BadInput, "in_channels=-3"),
        ({"part": "encodr"}, BadInput, "did you mean 'encoder'"),
        ({"part": ["all"]}, BadInput, "part="),
        ({"keep": 1}, BadInput, "keep=1"),
        ({"norm_per": "none"}, BadInput, "norm_per"),
        ({"conv_bias": "no"}, BadInput, "conv_bias"),
        ({"conv": 3}, BadInput, "operator string"),
        ({"conv": "splcon"}, UnknownName, "did you mean 'splconv'"),
        ({"conv": "splconv(alhpa=0.5)"}, UnknownName, "did you mean 'alpha'"),
        ({"conv": "__import__('os').system('true')"}, LeanconvError, "not readable"),
        ({"conv": "splconv", "base": 1}, UnsupportedConv, r"encoder.level1.conv2 \(1->1\).*alpha"),
        ({"conv": "splconv(alpha=7)"}, UnsupportedConv, "encoder.level1.conv2.*alpha=7"),
        ({"base": 10**8}, BadInput, "at most 65536"),
        ({"base": 10**30}, BadInput, "at most 65536"),
    ],
)
def test_an_option_that_cannot_be_is_named(options, error, says):
    with pytest.raises(error, match=says):
        build("unet", **options)


def test_an_unknown_network_lists_the_known():
    with pytest.raises(UnknownName, match=r"did you mean 'unet'\?\); known: unet"):
        build("u-net")
    assert "unet" in names()
    assert options_of("unet")["base"] == 32
