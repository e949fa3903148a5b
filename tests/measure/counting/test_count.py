"""Counts against hand counts, torch's own counter, and figures that were worked out independently of this code."""

import time
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from leanconv.errors import BadInput, UnknownName
from leanconv.measure.counting.conventions import CONVENTIONS
from leanconv.measure.counting.count import Uncounted, count
from leanconv.measure.hardware.array_profile import profile_array
from leanconv.measure.hardware.systolic import Array, product_cycles
from leanconv.models import build
from leanconv.models.unet import unet
from leanconv.nn import get, names
from leanconv.spec import ConvSpec

X = torch.randn(2, 8, 10, 12)


class Body(nn.Module):
    """A function as a module, with whatever parts it is given."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


# --- hand-counted layers: (module, input shape, MACs, trainable parameters, weights alone)
HAND = {
    "conv": (nn.Conv2d(8, 16, 3, padding=1), (2, 8, 10, 12), 2 * 10 * 12 * 16 * 8 * 9, 16 * 8 * 9 + 16, 16 * 8 * 9),
    "strided": (nn.Conv2d(8, 16, 3, stride=2), (2, 8, 10, 12), 2 * 4 * 5 * 16 * 8 * 9, 16 * 8 * 9 + 16, 16 * 8 * 9),
    "grouped": (nn.Conv2d(8, 16, 3, groups=4, bias=False), (1, 8, 10, 12), 8 * 10 * 16 * 2 * 9, 16 * 2 * 9, 288),
    "unbatched": (nn.Conv2d(8, 4, 1), (8, 10, 12), 10 * 12 * 32, 36, 32),
    "transposed": (nn.ConvTranspose2d(8, 4, 2, 2), (2, 8, 5, 6), 2 * 5 * 6 * 8 * 4 * 4, 8 * 4 * 4 + 4, 128),
    "transposed grouped": (nn.ConvTranspose2d(8, 8, 3, 2, groups=8), (1, 8, 5, 6), 5 * 6 * 8 * 9, 80, 72),
    "conv1d": (nn.Conv1d(8, 4, 3), (2, 8, 10), 2 * 8 * 4 * 8 * 3, 100, 96),
    "conv3d": (nn.Conv3d(2, 4, 3), (1, 2, 5, 6, 7), 3 * 4 * 5 * 4 * 2 * 27, 4 * 2 * 27 + 4, 216),
    "linear": (nn.Linear(12, 5), (2, 8, 10, 12), 2 * 8 * 10 * 12 * 5, 65, 60),
    "linear no bias": (nn.Linear(12, 5, bias=False), (3, 12), 3 * 60, 60, 60),
    "norm": (nn.BatchNorm2d(8), (2, 8, 10, 12), 0, 16, 0),
    "functional conv": (Body(lambda m, x: F.conv2d(x, m.w), w=nn.Parameter(torch.randn(4, 8, 3, 3))), (1, 8, 10, 12),
                        8 * 10 * 4 * 8 * 9, 288, 288),
    "einsum": (Body(lambda m, x: torch.einsum("nchw,oc->nohw", x, m.w), w=nn.Parameter(torch.randn(6, 8))),
               (2, 8, 3, 4), 2 * 3 * 4 * 48, 48, 48),
    "masked weight": (Body(lambda m, x: F.conv2d(x, m.w * torch.ones(4, 8, 1, 1)),
                           w=nn.Parameter(torch.randn(4, 8, 3, 3))), (1, 8, 10, 12), 8 * 10 * 4 * 8 * 9, 288, 288),
}  # fmt: skip


@pytest.mark.parametrize("case", HAND)
def test_hand_counted_layers(case):
    module, shape, macs, trainable, weights = HAND[case]
    x = torch.randn(shape)
    ours = count(module, x)
    assert (ours.flops, ours.params, ours.unit) == (macs, trainable, "MACs")
    plain = count(module, x, "macs_weights")
    assert (plain.flops, plain.params) == (macs, weights)
    assert count(module, x, "torch").flops == 2 * macs


def test_matrix_products_of_activations_are_macs_but_no_layers():
    product = Body(lambda m, a, b: a @ b)
    pair = (torch.randn(3, 4, 5), torch.randn(3, 5, 6))
    assert count(product, pair).flops == 3 * 4 * 5 * 6
    with pytest.warns(Uncounted, match="bmm ×1"):
        plain = count(product, pair, "macs_weights")
    assert plain.flops == 0
    assert plain.uncounted == {"bmm": 1}


def test_attention_is_counted():
    attention = nn.MultiheadAttention(16, 4, batch_first=True)
    x = torch.randn(2, 7, 16)
    projections, products = 2 * 7 * 16 * 16 * 4, 2 * 2 * 7 * 7 * 16
    assert count(attention, (x, x, x)).flops == projections + products
    assert count(Body(lambda m, q: F.scaled_dot_product_attention(q, q, q)), torch.randn(2, 4, 7, 8)).flops == (
        2 * 4 * 7 * 7 * 8 * 2
    )


def test_torchstat_layer_rules():
    elements = 2 * 8 * 10 * 12
    rules = {
        nn.Conv2d(8, 16, 3, padding=1): (2 * 120 * 16 * (72 + 1), 2 * 120 * 16 * (2 * 72 - 1 + 1)),
        nn.Conv2d(8, 16, 3, padding=1, bias=False, groups=2): (2 * 120 * 16 * 36, 2 * 120 * 16 * (2 * 36 - 1)),
        nn.ConvTranspose2d(8, 4, 2, 2): (0, 2 * 120 * 4 * (2 * 32)),
        nn.ConvTranspose2d(8, 4, 2, 2, bias=False): (0, 2 * 120 * 4 * (2 * 32 - 1)),
        nn.BatchNorm2d(8): (2 * elements, 4 * elements),
        nn.ReLU(): (elements, elements),
        nn.MaxPool2d(2): (elements, 3 * elements // 4),
        nn.Sigmoid(): (0, 0),
        nn.Softmax(1): (0, 0),
        nn.AdaptiveAvgPool2d(1): (0, 0),
        Body(lambda m, x: F.relu(torch.cat([x, x], 1)).mean((2, 3)).softmax(1)): None,
    }
    for module, figures in rules.items():
        if figures is not None:
            ours = count(module, X, "torchstat")
            assert (ours.flops, ours.madd) == figures, module
    linear = count(nn.Linear(12, 5), torch.randn(2, 12), "torchstat")
    assert (linear.flops, linear.madd) == (2 * 60, 2 * 5 * 23)


def test_torchstat_counts_a_module_called_twice_once_by_its_last_call():
    relu = nn.ReLU()
    twice = Body(lambda m, x: m.act(m.down(m.act(x))), act=relu, down=nn.Conv2d(8, 4, 1, bias=False))
    assert count(twice, X, "torchstat").flops == 2 * 120 * 4 * 8 + 2 * 4 * 120
    both = count(Body(lambda m, x: m.conv(m.conv(x)), conv=nn.Conv2d(8, 8, 1, bias=False)), X)
    assert both.flops == 2 * (2 * 120 * 64)
    assert both.params == 64
    assert next(layer for layer in both.layers if layer.name == "conv").calls == 2


def test_torchstat_lists_what_it_does_not_see():
    model = Body(lambda m, x: F.conv2d(m.act(x), m.w), w=nn.Parameter(torch.randn(4, 8, 1, 1)), act=nn.GELU())
    with pytest.warns(Uncounted, match="GELU"):
        ours = count(model, X, "torchstat")
    assert ours.flops == 0
    assert ours.uncounted == {"GELU": 1, "functional conv2d": 1}


def test_unet_under_torchstat_is_the_specified_figure_and_takes_no_arithmetic():
    model, x = unet(3, 32, base=32), torch.randn(1, 3, 320, 480)
    start = time.perf_counter()
    ours = count(model, x, "torchstat")
    assert time.perf_counter() - start < 2
    assert not ours.executed
    assert (ours.params, ours.flops, ours.madd) == (7_764_064, 27_312_537_600, 57_045_350_400)


# Figures of the specification's tables, each from a calculation that shares nothing with this code.
KNOWN = [
    ("torchvision", "resnet18", "od", 11_689_512, 1_814_073_344),
    ("torchvision", "resnet50", "thop_old", 25_557_032, 4_143_248_896),
    ("torchvision", "mobilenet_v2", "od", 3_504_872, 300_774_272),
    ("torchvision", "mobilenet_v2", "fuse", 3_504_872, 314_130_496),
    ("timm", "inception_next_tiny", "macs_trainable", 28_055_680, 4_188_634_272),
]


@pytest.mark.parametrize(("library", "name", "convention", "params", "flops"), KNOWN)
def test_known_networks(library, name, convention, params, flops):
    if library == "timm":
        model = pytest.importorskip("timm").create_model(name)
    else:
        model = getattr(pytest.importorskip("torchvision").models, name)()
    ours = count(model, torch.randn(1, 3, 224, 224), convention)
    assert (ours.params, ours.flops) == (params, flops)


@pytest.mark.parametrize(
    ("name", "macs"),
    [
        ("resnet18", 1_814_073_344), ("mobilenetv3_small_100", 56_510_400), ("convnext_atto", 547_332_480),
        ("vit_tiny_patch16_224", 1_253_683_200),
    ],
)  # fmt: skip
def test_zoo_agrees_with_torchs_counter(name, macs):
    """On `meta` torch takes everything apart into products that its counter knows in every version."""
    make = pytest.importorskip("timm").create_model
    with torch.device("meta"):
        twin, empty = make(name).eval(), torch.empty(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(empty)
    model = make(name).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = count(model, torch.randn(1, 3, 224, 224), "torch")
    assert ours.flops == counter.get_total_flops() == 2 * macs
    assert ours.params == sum(p.numel() for p in model.parameters())


def test_fvcore_rules():
    # fvcore 0.1.6: conv without bias, BN 2 per element, LayerNorm 5, adaptive average pool 1 per input, bilinear 4.
    model = nn.Sequential(
        nn.Conv2d(8, 4, 1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(4),
        nn.Linear(4, 3),
    )
    places = 2 * 120
    expected = places * 4 * 8 + 2 * places * 4 + 4 * (4 * places * 4) + 4 * places * 4 + 5 * 2 * 4 + 2 * 4 * 3
    assert count(model, X, "fvcore").flops == expected
    assert count(Body(lambda m, x: x.mean((2, 3))), X, "fvcore").flops == 0  # it sees the call, not the arithmetic


@pytest.mark.parametrize("name", names())
def test_every_operator_counts_as_its_cost_says(name):
    cls = get(name)
    for o, dilation in ((24, 1), (16, 2)):
        layer = nn.Conv2d(16, o, 3, padding=dilation, dilation=dilation)
        spec = ConvSpec.from_conv(layer, (2, 16, 9, 11))
        if "dense" not in cls.replaces or cls.why_not(spec):
            continue
        model, x, cost = nn.Sequential(cls.from_conv(layer)), spec.input(), cls.cost(spec)
        assert count(model, x).flops == cost.macs
        assert count(model, x, "executed_macs").flops == cost.executed_macs
        ours = count(model, x)
        assert ours.params == cost.params + cost.norm_params
        (row,) = [r for r in ours.layers if r.name == "0"]  # an operator is one row, whatever it is made of
        assert row.min_bytes == cost.bytes


def test_a_recipe_that_needs_real_numbers_runs_really_and_leaves_no_trace():
    def forward(m, x):
        m.norm.train()  # updates its running statistics, whatever mode it is asked to be in
        return m.norm(m.conv(x)) * (2 if x.sum().item() > 0 else 3) * torch.rand(())

    model = Body(forward, conv=nn.Conv2d(8, 4, 1), norm=nn.BatchNorm2d(4)).train()
    model.conv.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    ours = count(model, X)
    assert ours.executed
    assert ours.flops == 2 * 120 * 32
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == [True, False, True]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_cache_kept_by_the_forward_is_not_a_fake_tensor():
    def forward(m, x):
        m.cache = x + 1
        return m.cache

    model = Body(forward)
    count(model, X)
    assert not hasattr(model, "cache")  # the forward ran in a copy


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_by_hand_and_without_a_warning(kind):
    """A step multiplies the input and the state by the matrices of all gates; an LSTM's layer is one operation."""
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[kind]
    net, x = kind(5, 6, num_layers=2, bidirectional=True, batch_first=True), torch.randn(3, 7, 5)
    macs = 3 * 7 * 2 * gates * 6 * ((5 + 6) + (12 + 6))
    weights = sum(p.numel() for p in net.parameters() if p.dim() > 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert count(net, x).flops == macs
        assert (count(net, x, "macs_weights").flops, count(net, x, "macs_weights").params) == (macs, weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Uncounted)
        assert count(net, x, "torch").flops == (0 if kind is nn.LSTM else 2 * macs)  # by the rule: no LSTM
    array = Array(8, 8)
    products = [(21, 5 if layer == 0 else 12, gates * 6) for layer in (0, 1)]
    if kind is nn.LSTM:  # all steps' inputs are one product, each step's state another
        cycles = sum(product_cycles(array, *one) for one in products) + 2 * 7 * product_cycles(array, 3, 6, gates * 6)
        assert profile_array(net, x, array).cycles == 2 * cycles


def test_an_operation_nobody_knows_is_listed_and_warned_about():
    @torch.library.custom_op("leanconv_test::mystery", mutates_args=())
    def mystery(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    mystery.register_fake(lambda x: torch.empty_like(x))
    with pytest.warns(Uncounted, match="mystery ×1"):
        ours = count(Body(lambda m, x: mystery(x)), X)
    assert ours.uncounted == {"mystery": 1}
    assert "mystery" in str(ours)


def test_dict_outputs_unused_modules_zero_batch_and_wrappers():
    model = Body(lambda m, x: {"out": m.conv(x), "n": 3}, conv=nn.Conv2d(8, 4, 1), unused=nn.Linear(7, 7))
    ours = count(model, X)
    assert (ours.flops, ours.params) == (2 * 120 * 32, 36 + 56)
    assert next(r for r in ours.layers if r.name == "unused").calls == 0
    assert count(model, torch.randn(0, 8, 10, 12)).flops == 0
    assert count(nn.DataParallel(model), X).flops == ours.flops
    assert count(torch.compile(model), X).flops == ours.flops
    assert count(model, {"x": X}).flops == ours.flops
    assert count(model, [X]).flops == ours.flops


def test_inference_mode_inside_the_model_and_script_modules_are_seen():
    @torch.inference_mode()
    def forward(m, x):
        return m.fc(m.conv(x))

    model = Body(forward, conv=nn.Conv2d(8, 4, 1), fc=nn.Linear(12, 5))
    expected = 2 * 120 * 32 + 2 * 4 * 10 * 60
    assert count(model, X).flops == expected
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and people bring such models
        traced = torch.jit.trace(nn.Sequential(nn.Conv2d(8, 4, 1), nn.Linear(12, 5)), X)
    assert count(traced, X).flops == expected


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_what_cannot_be_watched_is_told():
    scripted = torch.jit.script(nn.Conv2d(8, 4, 1).eval())
    for model in (scripted, torch.jit.freeze(scripted)):
        with pytest.raises(BadInput, match=r"TorchScript.*give what it was made from"):
            count(model, X)
    with pytest.raises(BadInput, match="wait for their first input"):
        count(nn.Sequential(nn.LazyConv2d(4, 1)), X)


def test_number_types_and_layouts():
    model = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(inplace=True)).to(
        torch.bfloat16, memory_format=torch.channels_last
    )
    x = X.bfloat16().contiguous(memory_format=torch.channels_last)
    ours = count(model, x)
    assert ours.flops == 2 * 120 * 32
    assert ours.layers[0].min_bytes == 2 * (X.numel() + 36 + 2 * 4 * 120)


def test_a_broken_model_raises_its_own_error():
    with pytest.raises(RuntimeError, match="expected input"):
        count(nn.Conv2d(3, 4, 1), X)


def test_unknown_convention():
    with pytest.raises(UnknownName, match="did you mean 'torchstat'"):
        count(nn.ReLU(), X, "torchstats")


def test_every_convention_says_its_rule():
    assert set(CONVENTIONS) >= {
        "macs_weights",
        "macs_trainable",
        "torchstat",
        "thop_old",
        "fuse",
        "od",
        "fvcore",
        "torch",
    }
    for name, rule in CONVENTIONS.items():
        assert rule.name == name
        assert rule.unit in ("MACs", "flops")
        assert "params = " in rule.says


def test_an_operator_counts_as_a_layer_whatever_its_realisation_multiplies():
    """A 1×1 ODConv with four kernels runs as matrix products of computed tensors; its paper counts a convolution."""
    layer = get("odconv")(32, 48, 1, bias=False, kernels=4)
    x, macs = torch.randn(1, 32, 6, 7), 42 * 32 * 48 + 16 * (32 + 32 + 48 + 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert count(layer, x, "macs_trainable").flops == macs
        assert count(layer, x, "thop_old").flops == macs + (32 + 48 + 4) + 4 * 16 + 16  # heads' biases, norm, ReLU
        assert count(layer, x, "od").flops == macs + 32 * 42 + 2 * 4 * 32 * 48


@pytest.mark.parametrize(("kernels", "side", "times"), [(1, 1, 1), (1, 3, 2), (4, 1, 8), (2, 3, 5)])
def test_od_counts_the_building_of_a_kernel(kernels, side, times):
    layer = nn.Sequential(get("odconv")(32, 48, side, padding=side // 2, bias=False, kernels=kernels))
    x = torch.randn(2, 32, 6, 7)
    built = count(layer, x, "od").flops - count(layer, x, "macs_trainable").flops - 2 * 32 * 42
    assert built == 2 * times * side**2 * 32 * 48


def test_od_lists_the_dynamic_kernels_that_it_has_no_rule_for():
    made = Body(lambda m, x: F.conv2d(x, m.w * x.mean()), w=nn.Parameter(torch.randn(4, 8, 3, 3)))
    with pytest.warns(Uncounted, match="building of kernels ×1"):
        count(made, X, "od")


def test_a_kernel_written_in_place_through_a_view_is_no_weight():
    """Memory says what a kernel was computed from, not the tensor that names it: its parts are views of the same."""

    def part(m, x):
        kernel = m.w * 1.0
        kernel.flatten(1)[:, :8].mul_(x.mean())  # eight taps of every filter now depend on the input
        return F.conv2d(x, kernel)

    def other(m, x):
        kernel = m.w * 1.0
        kernel.clone().flatten(1)[:, :8].mul_(x.mean())  # a copy's taps: the kernel itself stays a weight
        return F.conv2d(x, kernel)

    weight = nn.Parameter(torch.randn(4, 8, 3, 3))
    with pytest.warns(Uncounted, match="building of kernels ×1"):
        assert count(Body(part, w=weight), X, "od").uncounted == {"building of kernels": 1}
    assert count(Body(part, w=weight), X, "macs_weights").params == 0
    assert not count(Body(other, w=weight), X, "od").uncounted
    assert count(Body(other, w=weight), X, "macs_weights").params == weight.numel()


def test_what_a_squeeze_excite_is_told_by():
    """The pool and the ReLU inside one, not what merely stands in a Sequential or a Separable block."""

    class SEModule(nn.Module):
        def forward(self, x):
            return x * F.relu(x.mean((2, 3), keepdim=True))

    class Separable(nn.Module):
        def forward(self, x):
            return x.mean((2, 3), keepdim=True) * F.relu(x)

    assert count(nn.Sequential(SEModule()), X, "fuse").flops == 2 * X.numel()
    assert count(nn.Sequential(Separable()), X, "fuse").flops == 2 * X.numel()
    assert count(nn.Sequential(SEModule()), X, "od").flops == X.numel()
    assert count(nn.Sequential(Separable(), nn.Sequential(nn.AdaptiveAvgPool2d(1))), X, "od").flops == 0


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["odconv(kernels=2)", "hetconv", "drconv"])
def test_a_network_without_weights_counts_like_the_real_one(operator):
    """On "meta" nothing is faked and nothing computed; every convention must see the same (bytes are the device's)."""
    networks = []
    for device in ("cpu", "meta"):
        with torch.device(device):
            networks.append(build("shufflenet_v2", conv=operator, se=4))
    for convention in ("macs", "macs_weights", "od", "torchstat", "fvcore"):
        found = []
        for network, device in zip(networks, ("cpu", "meta"), strict=True):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Uncounted)
                counts = count(network, torch.empty(2, 3, 64, 64, device=device), convention)
            rows = [(row.name, row.calls, row.params, row.flops, row.madd) for row in counts.layers]
            found.append((counts.params, counts.flops, counts.launches, counts.uncounted, rows))
        assert found[0] == found[1]
    assert networks[1].training
    assert not any(m._forward_hooks for m in networks[1].modules())
