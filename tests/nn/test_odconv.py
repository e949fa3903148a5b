"""ODConv against its definition, one sample and one kernel at a time in float64; its degenerate cases; its exports."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanconv.deploy.openvino import openvino_core
from leanconv.errors import UnsupportedConv
from leanconv.nn import ODConv2d, set_temperature

CASES = [
    {"in_channels": 6, "out_channels": 4, "kernel_size": 3, "stride": 2, "padding": 1},
    {
        "in_channels": 40,
        "out_channels": 8,
        "kernel_size": 3,
        "padding": 2,
        "dilation": 2,
        "groups": 4,
        "reduction": 0.5,
        "kernels": 3,
    },
    {"in_channels": 6, "out_channels": 6, "kernel_size": 5, "padding": 2, "groups": 6, "bias": False},
    {"in_channels": 6, "out_channels": 12, "kernel_size": 3, "padding": 1, "groups": 6},
    {"in_channels": 6, "out_channels": 4, "kernel_size": 1, "bias": False},
    {"in_channels": 6, "out_channels": 4, "kernel_size": 1, "kernels": 1, "stride": 2},
    {"in_channels": 6, "out_channels": 4, "kernel_size": 3, "kernels": 1, "padding": 1},
    {"in_channels": 6, "out_channels": 4, "kernel_size": 3, "norm": "layer"},
    {"in_channels": 6, "out_channels": 4, "kernel_size": 3, "norm": "none", "padding": "same"},
    {"in_channels": 1, "out_channels": 1, "kernel_size": 3},
]

HEADS = ("channel", "filter", "spatial", "kernel")


def hard(**arguments):
    layer = ODConv2d(**arguments, dtype=torch.double)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
        for module in layer.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return layer


def literal(layer, x, temperature):
    """The formula of the file's head, written with lists."""
    a, n = layer.attention, len(x)
    z = x.mean((2, 3)) @ a.fc.weight[:, :, 0, 0].T
    if isinstance(a.bn, nn.BatchNorm2d):
        mean, var = (a.bn.running_mean, a.bn.running_var)
        if layer.training:
            mean, var = z.mean(0), z.var(0, unbiased=False)
        z = (z - mean) / torch.sqrt(var + a.bn.eps) * a.bn.weight + a.bn.bias
    elif isinstance(a.bn, nn.GroupNorm):
        z = F.layer_norm(z, z.shape[1:], a.bn.weight, a.bn.bias, a.bn.eps)
    z = z.clamp(min=0)

    def head(module):
        return (z @ module.weight[:, :, 0, 0].T + module.bias) / temperature

    ac = torch.sigmoid(head(a.channel_fc))
    depthwise = layer.in_channels == layer.groups == layer.out_channels
    af = torch.ones(n, layer.out_channels).double() if depthwise else torch.sigmoid(head(a.filter_fc))
    k = layer.kernel_size[0]
    taps = torch.ones(n, k * k).double() if k == 1 else torch.sigmoid(head(a.spatial_fc))
    aw = torch.ones(n, 1).double() if layer.kernels == 1 else torch.softmax(head(a.kernel_fc), 1)
    samples = []
    for i in range(n):
        kernel = sum(aw[i, j] * taps[i].view(k, k) * layer.weight[j] for j in range(layer.kernels))
        y = F.conv2d(
            ac[i].view(1, -1, 1, 1) * x[i : i + 1],
            kernel,
            None,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
        )
        y = y * af[i].view(1, -1, 1, 1)
        samples.append(y if layer.bias is None else y + layer.bias.view(1, -1, 1, 1))
    return torch.cat(samples)


@pytest.mark.parametrize("arguments", CASES, ids=str)
def test_definition(arguments):
    layer, x = hard(**arguments), torch.randn(3, arguments["in_channels"], 7, 8, dtype=torch.double)
    for temperature in (30.0, 3.7):
        layer.train().temperature = temperature
        torch.testing.assert_close(copy.deepcopy(layer)(x), literal(layer, x, temperature))
    layer.eval()
    torch.testing.assert_close(layer(x), literal(layer, x, 1.0))  # whatever the attribute says


@pytest.mark.parametrize("arguments", CASES, ids=str)
def test_the_heads_that_the_paper_skips_do_not_exist(arguments):
    state = ODConv2d(**arguments).state_dict()
    c, o = arguments["in_channels"], arguments["out_channels"]
    assert ("attention.filter_fc.weight" in state) == (not c == o == arguments.get("groups", 1))
    assert ("attention.spatial_fc.weight" in state) == (arguments["kernel_size"] > 1)
    assert ("attention.kernel_fc.weight" in state) == (arguments.get("kernels", 4) > 1)
    assert state["attention.fc.weight"].shape[0] == max(math.floor(c * arguments.get("reduction", 1 / 16)), 16)


def test_state_keys_are_the_authors():
    assert list(ODConv2d(6, 4, 3, bias=False).state_dict()) == [
        "weight",
        "attention.fc.weight",
        *(f"attention.bn.{key}" for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
        *(f"attention.{head}_fc.{key}" for head in HEADS for key in ("weight", "bias")),
    ]
    assert ODConv2d(6, 4, 3).weight.shape == (4, 4, 6, 3, 3)


def test_endless_temperature_is_an_eighth_of_the_mean_kernel():
    layer, x = hard(in_channels=6, out_channels=4, kernel_size=3, bias=False), torch.randn(2, 6, 7, 8).double()
    layer.temperature = 1e12
    torch.testing.assert_close(layer(x), 0.125 * F.conv2d(x, layer.weight.mean(0)))


def test_saturated_gates_of_one_pointwise_kernel_are_a_pointwise_convolution():
    layer, x = hard(in_channels=6, out_channels=4, kernel_size=1, kernels=1).eval(), torch.randn(2, 6, 7, 8).double()
    with torch.no_grad():
        for head in (layer.attention.channel_fc, layer.attention.filter_fc):
            head.weight.zero_()
            head.bias.fill_(100)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight[0], layer.bias))


@pytest.mark.parametrize("arguments", [case for case in CASES if "reduction" not in case], ids=str)
def test_projection_is_the_dense_layer_at_every_temperature(arguments):
    options = {key: arguments[key] for key in ("kernels", "norm") if key in arguments}
    dense = nn.Conv2d(**{k: v for k, v in arguments.items() if k not in options}, dtype=torch.double)
    layer, x = ODConv2d.from_conv(dense, **options), torch.randn(3, dense.in_channels, 7, 8, dtype=torch.double)
    assert layer.project_(dense)
    torch.testing.assert_close(layer.train()(x), dense(x))
    torch.testing.assert_close(layer.eval()(x), dense(x))
    if layer.kernels > 1:  # equal kernels would get equal gradients, for ever
        assert (layer.weight[0] - layer.weight[1]).abs().max() > 0.01


def test_fold_takes_the_squeeze_norm_only():
    layer, x = hard(in_channels=6, out_channels=4, kernel_size=3).eval(), torch.randn(2, 6, 7, 8).double()
    folded = layer.fold()
    assert folded is not layer
    assert folded.fold() is folded
    assert "attention.fc.bias" in folded.state_dict()
    torch.testing.assert_close(folded(x), layer(x))
    assert ODConv2d(6, 4, 3, norm="layer").fold().attention.bn is not None


def test_attention_stays_float32_under_autocast():
    layer, x = ODConv2d(16, 8, 3, padding=1).eval(), torch.randn(4, 16, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        gates = layer.attention(x, 1.0)
    assert {g.dtype for g in gates} == {torch.float32}
    for ours, plain in zip(gates, layer.attention(x, 1.0)):
        torch.testing.assert_close(ours, plain, rtol=0, atol=0)


def test_temperature_is_no_state_and_needs_no_recompilation():
    model = nn.Sequential(ODConv2d(4, 4, 3), ODConv2d(4, 4, 3, temperature=5.0))
    assert not any("temperature" in key for key in model.state_dict())
    set_temperature(model, 7)
    assert [layer.temperature for layer in model] == [7.0, 7.0]
    assert [layer.options()["temperature"] for layer in model] == [30.0, 5.0]  # the start, whatever it is now
    torch._dynamo.reset()
    graphs, layer = [], ODConv2d(4, 4, 3)
    compiled = torch.compile(layer, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    x = torch.randn(2, 4, 5, 5)
    for step in range(12):
        layer.temperature = 30.0 - step
        torch.testing.assert_close(compiled(x), copy.deepcopy(layer)(x))
    assert len(graphs) <= 2


def test_one_sample_trains_without_batch_norm_and_raises_with_it():
    x = torch.randn(1, 4, 5, 5)
    assert ODConv2d(4, 4, 3, norm="layer")(x).shape == (1, 4, 3, 3)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        ODConv2d(4, 4, 3)(x)


def test_survives_channels_last_and_other_casts():
    layer = ODConv2d(4, 8, 3)
    before = layer.weight.detach().clone()
    layer.to(memory_format=torch.channels_last).double().float()
    torch.testing.assert_close(layer.weight.detach(), before, rtol=0, atol=0)
    assert isinstance(layer.weight, nn.Parameter)
    assert layer.to("meta").weight.shape == before.shape


@pytest.mark.parametrize("kernel", [1, 3])
def test_runs_in_openvino_with_any_batch(kernel):
    openvino = pytest.importorskip("openvino")
    layer = hard(in_channels=6, out_channels=4, kernel_size=kernel, padding=kernel // 2).float().eval()
    program = torch.export.export(
        layer, (torch.randn(2, 6, 9, 8),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
    )
    compiled = openvino_core().compile_model(
        openvino.convert_model(program), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    for n in (1, 3):
        x = torch.randn(n, 6, 9, 8)
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(compiled(x.numpy())[0]), layer(x), rtol=1e-4, atol=1e-4)


def test_refusals():
    for options, words in (
        ({"kernel_size": (1, 5)}, "not square"),
        ({"kernels": 0}, "kernels=0"),
        ({"reduction": -1}, "reduction=-1"),
        ({"temperature": 0}, "temperature=0"),
        ({"norm": "instance"}, "norm='instance'"),
    ):
        with pytest.raises(UnsupportedConv, match=words):
            ODConv2d(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3, **options})
