"""DRConv against its definition, one output position at a time in float64, and its gradients against their formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanconv.deploy.openvino import openvino_core
from leanconv.errors import BadInput, UnsupportedConv
from leanconv.nn import DRConv2d
from leanconv.nn.drconv import adaptive_average, choice, nearest


def hard(*arguments, **options):
    layer = DRConv2d(*arguments, dtype=torch.double, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


def literal_kernels(layer, x):
    """W(x), `N m O C R S`, as the two public codes write it."""
    n, c, o, m, taps = len(x), layer.in_channels, layer.out_channels, layer.regions, layer.kernel_size
    if layer.generator == "routing":
        share = 2.0 * torch.sigmoid(layer.routing_fc(x.flatten(2).mean(-1))) / layer.experts
        return F.linear(share.reshape(-1, layer.experts), layer.weight).reshape(n, m, o, c, *taps)
    first, last = layer.conv_kernel[1], layer.conv_kernel[3]
    kernels = torch.zeros(n, m, o * c, *taps, dtype=x.dtype)
    pooled = F.adaptive_avg_pool2d(x, taps)
    z = torch.sigmoid(F.conv2d(pooled, first.weight, first.bias))  # N m² R S
    weight, bias = last.weight.view(m, o * c, m), last.bias.view(m, o * c)
    for j in range(m):
        mixed = torch.einsum("ki,nirs->nkrs", weight[j], z[:, j * m : (j + 1) * m])
        kernels[:, j] = mixed + bias[j].view(-1, 1, 1)
    return kernels.view(n, m, o, c, *taps)


def literal(layer, x, logits):
    kernels, n, m = literal_kernels(layer, x), len(x), layer.regions
    answers = torch.stack(
        [
            torch.cat(
                [
                    F.conv2d(x[i : i + 1], kernels[i, j], None, layer.stride, layer.padding, layer.dilation)
                    for i in range(n)
                ]
            )
            for j in range(m)
        ]
    )  # m N O P Q
    p, q = answers.shape[3:]
    y = torch.zeros(n, layer.out_channels, p, q, dtype=x.dtype)
    for i in range(n):
        for u in range(p):
            for v in range(q):
                own = logits[i, :, u * logits.shape[2] // p, v * logits.shape[3] // q].tolist()
                y[i, :, u, v] = answers[own.index(max(own)), i, :, u, v]
    return y if layer.bias is None else y + layer.bias.view(-1, 1, 1)


CASES = [
    ((4, 6, 3, 1, 1), {"regions": 3, "experts": 2}),
    ((4, 6, 3, 2, 1), {"regions": 8, "generator": "adaptive"}),
    ((4, 6, 1), {}),
    ((4, 6, 1, 2), {"regions": 4, "generator": "adaptive", "bias": False}),
    ((4, 6, (3, 2), (1, 2), (2, 0), (2, 1)), {"regions": 5}),
    ((4, 6, (3, 2), (1, 2), (2, 0), (2, 1)), {"regions": 5, "generator": "adaptive"}),
]


@pytest.mark.parametrize(("arguments", "options"), CASES, ids=str)
@pytest.mark.parametrize("guide", ["conv", "pointwise", None])
def test_definition(arguments, options, guide):
    layer, x = hard(*arguments, guide=guide, **options), torch.randn(2, 4, 7, 8, dtype=torch.double)
    extra = []
    if guide == "conv":
        own = layer.conv_guide
        logits = F.conv2d(x, own.weight, own.bias, layer.stride, layer.padding, layer.dilation)
    elif guide == "pointwise":
        logits = torch.einsum("mc,nchw->nmhw", layer.conv_guide.weight[..., 0, 0], x)
    else:
        logits = torch.randn(2, layer.regions, 5, 3, dtype=torch.double)
        extra = [logits]
    assert logits.argmax(1).unique().numel() > 1
    expected = literal(layer, x, logits)
    torch.testing.assert_close(layer(x, *extra), expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, *extra), expected)
        torch.testing.assert_close(layer.region_kernels(x), literal_kernels(layer, x))


def test_hooks_of_the_generator_are_called():
    seen, conv = [], DRConv2d(4, 6, 3, generator="adaptive")
    conv.conv_kernel.register_forward_hook(lambda *_: seen.append(1))
    conv(torch.randn(1, 4, 5, 5))
    assert seen == [1]


@pytest.mark.parametrize("generator", ["routing", "adaptive"])
def test_gradients(generator):
    """Kernels and input through the chosen region, logits as if the output were the softmax's mixture."""
    layer = hard(4, 6, 3, 1, 1, regions=3, experts=2, generator=generator, guide=None)
    x, logits = torch.randn(2, 4, 5, 6).double().requires_grad_(), torch.randn(2, 3, 5, 6).double().requires_grad_()
    along = torch.randn(2, 6, 5, 6, dtype=torch.double)
    (layer(x, logits) * along).sum().backward()
    ours = {key: p.grad.clone() for key, p in layer.named_parameters()} | {"x": x.grad.clone()}
    layer.zero_grad()
    x.grad = None
    (literal(layer, x, logits.detach()) * along).sum().backward()  # hard selection, differentiated
    for key, value in ours.items():
        torch.testing.assert_close(value, x.grad if key == "x" else layer.get_parameter(key).grad, msg=key)
    kernels = literal_kernels(layer, x).detach()
    soft = torch.softmax(logits.detach(), 1)
    answers = [[F.conv2d(x[n].detach(), kernels[n, j], padding=1) for j in range(3)] for n in range(2)]
    d_soft = torch.stack([torch.stack([(along[n] * answer).sum(0) for answer in answers[n]]) for n in range(2)])
    expected = soft * (d_soft - (soft * d_soft).sum(1, keepdim=True))
    torch.testing.assert_close(logits.grad, expected)


def test_a_sample_and_its_logits_without_their_batch():
    layer = hard(4, 6, 3, 1, 1, regions=3, guide=None)
    x, logits = torch.randn(1, 4, 5, 6).double(), torch.randn(1, 3, 5, 6).double()
    torch.testing.assert_close(layer(x[0], logits[0]), layer(x, logits)[0])
    torch.testing.assert_close(layer(x[0], logits=logits[0]), layer(x, logits)[0])
    with pytest.raises(BadInput, match=r"got \(3, 5, 6\)"):
        layer(x, logits[0])


def test_equal_kernels_are_that_kernels_convolution_and_give_the_guide_no_gradient():
    layer, x = hard(4, 6, 3, 1, 1, regions=3), torch.randn(2, 4, 5, 6, dtype=torch.double)
    with torch.no_grad():
        layer.routing_fc.weight.zero_()
        layer.routing_fc.bias.zero_()
    mean = layer.weight.mean(1).view(6, 4, 3, 3)
    torch.testing.assert_close(layer(x), F.conv2d(x, mean, layer.bias, padding=1))
    (layer(x) * torch.randn(2, 6, 5, 6)).sum().backward()
    assert layer.conv_guide.weight.grad.abs().max() < 1e-12


@pytest.mark.parametrize("generator", ["routing", "adaptive"])
def test_one_region_is_a_dynamic_convolution(generator):
    layer, x = hard(4, 6, 3, 1, 1, regions=1, generator=generator), torch.randn(3, 4, 5, 6, dtype=torch.double)
    kernels = literal_kernels(layer, x)[:, 0]
    expected = torch.cat([F.conv2d(x[n : n + 1], kernels[n], layer.bias, padding=1) for n in range(3)])
    torch.testing.assert_close(layer(x), expected)


def test_choice_takes_the_first_of_equals_and_is_exactly_one_hot():
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]).view(2, 3, 1, 1).requires_grad_()
    for values in (choice(logits), choice(logits.detach()), choice(logits.bfloat16())):
        assert values.flatten(1).tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize(
    ("size", "wanted"), [((7, 8), (4, 4)), ((5, 3), (7, 8)), ((28, 28), (14, 14)), ((6, 6), (6, 6))]
)
def test_nearest_is_torchs(size, wanted):
    x = torch.randn(2, 3, *size)
    torch.testing.assert_close(nearest(x, wanted), F.interpolate(x, wanted), rtol=0, atol=0)


def test_projection_is_the_dense_layer():
    for kernel, generator in ((3, "routing"), (1, "routing"), (1, "adaptive")):
        dense = nn.Conv2d(4, 6, kernel, 2, dtype=torch.double)
        layer, x = DRConv2d.from_conv(dense, generator=generator), torch.randn(2, 4, 7, 8, dtype=torch.double)
        assert layer.project_(dense)
        torch.testing.assert_close(layer(x), dense(x))
        (layer(x) * torch.randn(1)).sum().backward()
        started = layer.routing_fc if generator == "routing" else layer.conv_kernel[3]
        assert started.weight.grad.abs().max() > 0  # it is no dead end
    assert not DRConv2d(4, 6, 3, generator="adaptive").project_(nn.Conv2d(4, 6, 3))


def test_state_keys_are_those_of_the_public_codes():
    routing = DRConv2d(4, 6, 3, regions=5, experts=2, guide=None).state_dict()
    assert {key: tuple(value.shape) for key, value in routing.items()} == {
        "weight": (6 * 4 * 9, 2),
        "routing_fc.weight": (10, 4),
        "routing_fc.bias": (10,),
        "bias": (6,),
    }
    adaptive = DRConv2d(4, 6, 3, regions=5, generator="adaptive").state_dict()
    assert {key: tuple(value.shape) for key, value in adaptive.items()} == {
        "conv_kernel.1.weight": (25, 4, 1, 1),
        "conv_kernel.1.bias": (25,),
        "conv_kernel.3.weight": (120, 5, 1, 1),
        "conv_kernel.3.bias": (120,),
        "conv_guide.weight": (5, 4, 3, 3),
        "conv_guide.bias": (5,),
        "bias": (6,),
    }


def test_a_fresh_layer_answers_about_as_loudly_as_a_plain_one():
    x, plain = torch.randn(2, 32, 12, 12), nn.Conv2d(32, 32, 3)
    for generator in ("routing", "adaptive"):
        ratio = DRConv2d(32, 32, 3, generator=generator)(x).std() / plain(x).std()
        assert 0.3 < ratio < 3


def test_the_guide_alone_learns_which_half_is_whose():
    """Two opposite filters, and a target that wants one on the left and the other on the right."""
    side = torch.linspace(-1, 1, 8).expand(4, 1, 8, 8)
    layer = DRConv2d(2, 1, 1, bias=False, regions=2, experts=2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1.0], [0.0, 0.0]]))
        layer.routing_fc.weight.zero_()
        layer.routing_fc.bias.copy_(torch.tensor([20.0, -20, -20, 20]))  # region j takes expert j
        layer.conv_guide.weight.mul_(0.01)
    optimizer = torch.optim.SGD(layer.conv_guide.parameters(), lr=0.5)
    for _ in range(60):
        x = torch.cat([torch.randn(4, 1, 8, 8), side], 1)
        loss = (layer(x) - x[:, :1] * side.sign()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("generator", ["routing", "adaptive"])
def test_runs_in_openvino_with_any_batch(generator):
    openvino = pytest.importorskip("openvino")
    layer = hard(6, 4, 3, 1, 1, regions=3, generator=generator).float().eval()
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


def test_logits_are_asked_for_where_they_are_needed_and_nowhere_else():
    x = torch.randn(1, 4, 5, 5)
    with pytest.raises(BadInput, match="logits `N 3 H W`"):
        DRConv2d(4, 6, 3, regions=3, guide=None)(x)
    with pytest.raises(BadInput, match=r"got \(1, 4, 5, 5\)"):
        DRConv2d(4, 6, 3, regions=3, guide=None)(x, x)
    with pytest.raises(BadInput, match="guide=None"):
        DRConv2d(4, 6, 3, regions=4)(x, x)
    for options, words in (
        ({"groups": 2}, "groups=2"),
        ({"regions": 0}, "regions=0"),
        ({"experts": 1.5}, "experts=1.5"),
        ({"generator": "mean"}, "generator='mean'"),
        ({"guide": "mean"}, "guide='mean'"),
    ):
        with pytest.raises(UnsupportedConv, match=words):
            DRConv2d(4, 6, 3, **options)


@pytest.mark.parametrize("size", [(5, 7), (3, 3), (2, 9), (16, 17)])
@pytest.mark.parametrize("parts", [(3, 3), (1, 1), (3, 5), (2, 4)])
def test_the_average_of_an_exported_program_is_torchs(size, parts):
    x = torch.randn(2, 4, *size, dtype=torch.double)
    torch.testing.assert_close(adaptive_average(x, parts), F.adaptive_avg_pool2d(x, parts))


@pytest.mark.parametrize("generator", ["routing", "adaptive"])
def test_an_exported_program_takes_any_size(generator):
    layer = DRConv2d(6, 5, 3, 2, 1, generator=generator, regions=3).eval()
    axes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(layer, (torch.randn(2, 6, 12, 10),), dynamic_shapes=(axes,)).module()
    for shape in ((1, 6, 12, 10), (3, 6, 7, 19)):
        x = torch.randn(shape)
        torch.testing.assert_close(program(x), layer(x), rtol=1e-4, atol=1e-5)
