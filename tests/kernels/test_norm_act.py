"""Norms and activations of users' modules in one kernel: where they are found, what they compute, and who sees it."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanconv.kernels import norm_act
from leanconv.kernels.training import available, use_training_kernels_
from leanconv.models import build
from tests.kernels.training_cases import assert_same_loss_curve

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))
NHWC = torch.channels_last


@pytest.fixture(autouse=True)
def _small_maps(monkeypatch):
    monkeypatch.setattr(norm_act, "_LEAST", 1)


@pytest.fixture
def runs(monkeypatch):
    """The activations of the kernel's calls, with "+" where a residual is added."""
    found, inner = [], norm_act._in_kernel

    def listed(norm, x, plus, act):
        found.append(act + "+" * (plus is not None))
        return inner(norm, x, plus, act)

    monkeypatch.setattr(norm_act, "_in_kernel", listed)
    return found


class Block(nn.Module):
    """As torchvision has it."""

    def __init__(self, c=8, down=False, add="in place"):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)
        self.conv2, self.bn2 = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c)) if down else None

    def forward(self, x: "torch.Tensor", *, scale: float = 1.0) -> "torch.Tensor":
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)

        out = self.conv2(out)
        out = self.bn2(out)

        if self.downsample is not None:
            identity = self.downsample(x)

        out += identity
        out = self.relu(out)
        return out * scale


class Functional(Block):
    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return torch.relu(x + self.bn2(self.conv2(y)))


class Loops(Block):
    def forward(self, x):
        for _ in range(2):
            if x.shape[0] > 1:
                x = self.relu(self.bn1(self.conv1(x)))
        return x


class Parent(Block):
    def forward(self, x):
        return F.relu6(self.bn2(super().forward(x)))


class WritesAfterRelu6(Block):
    """PyTorch's ReLU6 keeps its input alone: what it gave may be written into."""

    def forward(self, x):
        y = F.relu6(self.bn1(self.conv1(x)) + x)
        y += 1
        return y


class ReadsTwice(Block):
    """The norm's result is read once more: nothing may be put together."""

    def forward(self, x):
        y = self.bn1(self.conv1(x))
        z = self.relu(y + 1.0)
        w = self.bn2(z)
        out = F.relu(w)
        return out + w


class Returns(Block):
    def forward(self, x):
        out = self.bn1(x)
        if x.shape[0] > 100:
            return out
        out = self.relu(out)
        return out


class Statement(Block):
    """What stands between could change how the norm is computed."""

    def forward(self, x):
        out = self.bn1(x)
        torch.manual_seed(0)
        out = self.relu(out)
        return out


class BothPending(Block):
    """The sum reads the other norm's result, which waits for an activation too."""

    def forward(self, x):
        identity = self.bn2(x)
        out = self.bn1(self.conv1(x))
        out += identity
        out = self.conv2(out)
        identity = self.relu(identity)
        return out + identity


class WritesResidual(Block):
    """An activation in place, after the addition and before its own activation."""

    def forward(self, x):
        identity = self.conv2(x)
        out = self.bn1(self.conv1(x))
        out += identity
        identity = F.relu_(identity)
        out = self.relu(out)
        return out + identity


class Siamese(Block):
    """The running statistics move by `a` first."""

    def forward(self, x):
        a = self.bn1(self.conv1(x))
        b = self.bn1(self.conv2(x))
        a = self.relu(a)
        b = self.relu(b)
        return a + b


class SumOfOne(Block):
    def forward(self, x):
        return F.relu(self.bn1(self.conv1(x)) + self.bn1(self.conv2(x)))


class TwoNames(Block):
    def __init__(self):
        super().__init__()
        self.bn2 = self.bn1

    def forward(self, x):
        out = self.bn1(self.conv1(x))
        other = self.bn2(self.conv2(x))
        return F.relu(out) + other


class Repeats(Block):
    def forward(self, x):
        out = self.bn1(self.conv1(x))
        return sum([F.relu(out) for _ in range(3)])


class Sometimes(Block):
    """The norm is computed, its activation is not."""

    def forward(self, x):
        out = self.bn1(self.conv1(x))
        return F.relu(out) if x.shape[0] > 100 else x


class Inner(Block):
    def forward(self, x):
        out = x

        def mean():
            return out.mean()

        out = self.bn1(self.conv1(x))
        scale = mean() + 2
        out = F.relu(out)
        return out * scale


class Tries(Block):
    def forward(self, x):
        out = x
        try:
            out = self.bn1(self.conv1(x))
            return F.relu(out)
        finally:
            with torch.no_grad():
                self.bn2.running_mean += out.mean()


class WritesInput(Block):
    """PyTorch has no gradient of it; a frozen part of a model runs it."""

    def forward(self, x):
        x = self.conv1(x)
        out = self.bn1(x)
        x += 1
        out = F.relu(out)
        return F.relu(self.bn2(x) + F.relu_(x)) + out


class ReadsInput(Block):
    """The norm's input and the residual are one tensor, that nothing writes into."""

    def forward(self, x):
        out = self.bn1(x)
        y = x * 2
        out = F.relu(out + x)
        return F.relu(self.bn2(y) + y) + out


MODELS = {
    "sequence": (lambda: nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.BatchNorm2d(8)), ["silu"]),
    "block": (lambda: Block(), ["relu", "relu+"]),
    "block with a convolution beside it": (lambda: Block(down=True), ["relu", "relu+"]),
    "functional": (lambda: Functional(), ["relu", "relu+"]),
    "loop": (lambda: Loops(), ["relu", "relu"]),
    "parent": (lambda: Parent(), ["relu6"]),
    "writes after relu6": (lambda: WritesAfterRelu6(), []),
    "reads twice": (lambda: ReadsTwice(), []),
    "returns": (lambda: Returns(), []),
    "statement": (lambda: Statement(), []),
    "both pending": (lambda: BothPending(), []),
    "writes residual": (lambda: WritesResidual(), []),
    "siamese": (lambda: Siamese(), ["relu"]),
    "sum of one norm": (lambda: SumOfOne(), ["relu+"]),
    "two names": (lambda: TwoNames(), []),
    "repeats": (lambda: Repeats(), []),
    "sometimes": (lambda: Sometimes(), []),
    "inner function": (lambda: Inner(), []),
    "tries": (lambda: Tries(), []),
    "reads input": (lambda: ReadsInput(), ["relu+", "relu+"]),
    "hardswish": (lambda: nn.Sequential(nn.BatchNorm2d(8), nn.Hardswish(), nn.BatchNorm2d(8, affine=False), nn.ReLU6()),
                  ["hardswish", "relu6"]),
    "unknown activation": (lambda: nn.Sequential(nn.BatchNorm2d(8), nn.GELU(), nn.BatchNorm2d(8), nn.ReLU6()),
                           ["relu6"]),
}  # fmt: skip


def made(kind):
    torch.manual_seed(0)
    model = MODELS[kind][0]().train()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.affine:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    return model


def image(dtype=torch.float32):
    torch.manual_seed(1)
    return (1 + torch.randn(3, 8, 9, 11)).to(dtype).contiguous(memory_format=NHWC)


def step(model, x, autocast=False):
    """Result, gradients, and buffers."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = model(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    found = torch.autograd.grad((y * weights).sum(), [x, *model.parameters()], allow_unused=True)
    return [each.detach().clone() for each in (y, *found, *model.buffers()) if each is not None]


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("kind", MODELS)
def test_results_gradients_and_statistics_are_those_of_float64(kind, momentum, runs):
    model, x = made(kind), image()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = momentum
    plain, exact = copy.deepcopy(model), copy.deepcopy(model).double()
    with use_training_kernels_(model):
        for _ in range(2):
            found, eager, right = step(model, x), step(plain, x), step(exact, x.double())
            for a, b, c in zip(found, eager, right, strict=True):
                assert a.dtype == b.dtype
                allowed = 4 * float((b - c).abs().max()) + 1e-5 * max(1.0, float(c.abs().max()))
                assert float((a - c).abs().max()) <= allowed
    assert runs == MODELS[kind][1] * 2
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_arguments_and_defaults_stay():
    model, x = Block().train(), image()
    with use_training_kernels_(model):
        torch.testing.assert_close(model(x, scale=2.0), 2 * model(x))


def test_which_norms_are_told():
    with use_training_kernels_(nn.Sequential(made("block"), *made("sequence"))) as kernels:
        assert kernels.layers == ["2", "0.bn1", "0.bn2"]
        assert str(kernels) == "3 layers train on kernels: 3 BatchNorm2d"


@pytest.mark.parametrize(
    "change", ["eval", "frozen", "no statistics", "float64", "planes", "no gradient", "sync", "own"]
)
def test_other_norms_and_maps_are_pytorch_s(change, runs):
    model, x = made("block"), image()
    model(x)
    if change == "eval":
        model.eval()
    elif change == "frozen":
        for norm in (model.bn1, model.bn2):
            norm.eval()
    elif change == "no statistics":
        for norm in (model.bn1, model.bn2):
            norm.eval()
            norm.running_mean = norm.running_var = None
    elif change == "float64":
        model, x = model.double(), x.double()
    elif change == "planes":
        x = x.contiguous()
    elif change == "sync":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    elif change == "own":
        model.bn1.forward = lambda x: x + 1
    plain = copy.deepcopy(model)
    with use_training_kernels_(model), torch.set_grad_enabled(change != "no gradient"):
        runs.clear()
        if change == "sync":
            assert not any("forward" in module.__dict__ for module in model.modules())
            return
        found, expected = model(x), plain(x)
    torch.testing.assert_close(found, expected)
    assert runs == {"no gradient": ["relu", "relu+"], "own": ["relu+"]}.get(change, [])
    for a, b in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_without_running_statistics(runs):
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU())
    expected = model(image())
    with use_training_kernels_(model):
        torch.testing.assert_close(model(image()), expected)
    assert runs == ["relu"]


@pytest.mark.parametrize("of", ["bn1", "relu"])
@pytest.mark.parametrize("before", [True, False])
def test_a_hook_sees_what_its_module_makes(of, before, runs):
    model, x, seen = made("block"), image(), []
    expected = step(copy.deepcopy(model), x)

    def look(module, inputs, output):
        seen.append(output.detach().clone())

    if before:
        hook = getattr(model, of).register_forward_hook(look)
    with use_training_kernels_(model):
        if not before:
            hook = getattr(model, of).register_forward_hook(look)
        watched = step(model, x)
        assert runs == (["relu+"] if of == "bn1" else [])
        hook.remove()
    for a, b in zip(watched, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert (seen[0] < 0).any() == (of == "bn1")


def test_hooks_of_all_modules_see_them_all():
    model, seen = made("sequence"), []
    hook = nn.modules.module.register_module_forward_hook(lambda module, *call: seen.append(type(module).__name__))
    try:
        with use_training_kernels_(model):
            model(image())
    finally:
        hook.remove()
    assert seen == ["Conv2d", "BatchNorm2d", "SiLU", "BatchNorm2d", "Sequential"]


def test_a_shared_norm_moves_its_statistics_in_each_place():
    class Shared(Block):
        def forward(self, x):
            return self.relu(self.bn1(self.relu(self.bn1(x))))

    model, x = Shared().train(), image()
    plain = copy.deepcopy(model)
    with use_training_kernels_(model):
        found, expected = step(model, x), step(plain, x)
    assert int(model.bn1.num_batches_tracked) == 2
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_a_copy_trains_itself_and_a_pickle_needs_nothing():
    model, x = nn.Sequential(made("block"), *made("sequence")), image()
    with use_training_kernels_(model):
        other = copy.deepcopy(model)
        other(x)
        assert int(other[0].bn1.num_batches_tracked) == 1
        assert int(model[0].bn1.num_batches_tracked) == 0
        file = io.BytesIO()
        torch.save(model, file)
        loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
        torch.testing.assert_close(loaded(x), model(x))


def test_a_gradient_of_a_gradient():
    model, x = made("functional"), image()
    model.conv1 = model.conv2 = nn.Identity()

    def penalty(model):
        inner = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(inner).square().sum(), inner, create_graph=True)
        return torch.autograd.grad(slope.square().mean(), [inner, *model.bn1.parameters()])

    expected = penalty(model)
    with use_training_kernels_(model):
        found = penalty(model)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_autocast_keeps_types_and_is_as_near_to_float32(runs):
    model, x = made("block"), image()
    exact, eager = step(copy.deepcopy(model), x), step(copy.deepcopy(model), x, autocast=True)
    with use_training_kernels_(model):
        found = step(model, x, autocast=True)
    assert runs == ["relu"]  # the residual is float32, the map is not
    for a, b, c in zip(found, eager, exact, strict=True):
        assert a.dtype == b.dtype
        assert (a.float() - c).norm() <= 2 * (b.float() - c).norm() + 0.1 * c.float().norm()


def test_a_source_that_is_not_what_runs_is_left_alone():
    class Other(Block):
        pass

    plain, name = Block.forward, "scale"
    Other.forward = lambda self, x: self.relu(self.bn1(x)) * len(name)
    assert use_training_kernels_(Other()).layers == []
    Other.forward = torch.no_grad()(plain)
    assert use_training_kernels_(Other()).layers == []


@pytest.mark.parametrize("training", [True, False])
def test_an_input_that_changes_after_its_norm(training):
    model, x = WritesInput().train(training), image()
    plain = copy.deepcopy(model)
    with use_training_kernels_(model), torch.no_grad():
        torch.testing.assert_close(model(x), plain(x), atol=1e-4, rtol=1e-4)
    for a, b in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_no_property_runs():
    class Fitted(Block):
        @property
        def scale(self):
            raise RuntimeError("fit it first")

        def forward(self, x):
            return self.relu(self.bn1(x if self.training else self.scale(x)))

    assert use_training_kernels_(Fitted()).layers == ["bn1"]


def test_a_forward_that_somebody_set_since_stays():
    model, x = made("block"), image()
    with use_training_kernels_(model):
        inner = model.forward
        model.forward = lambda x: inner(x) + 100
    assert float(model(x).detach().min()) >= 100


def test_a_model_that_was_pickled_with_kernels_can_have_them():
    model, file = made("block"), io.BytesIO()
    with use_training_kernels_(model):
        torch.save(model, file)
    loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert use_training_kernels_(loaded).layers == ["bn1", "bn2"]


@pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning")  # PyTorch's own, of its batch_norm
def test_gradients_in_forward_mode_are_pytorch_s(runs):
    model, x = made("functional"), image()
    model.conv1 = model.conv2 = nn.Identity()

    def slope():
        with torch.autograd.forward_ad.dual_level():
            y = model(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
            return torch.autograd.forward_ad.unpack_dual(y).tangent.clone()

    expected = slope()
    with use_training_kernels_(model):
        torch.testing.assert_close(slope(), expected)
    assert runs == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sequence", "block", "functional"])
def test_compiles_as_one_graph(kind):
    model, x = made(kind), image()
    with use_training_kernels_(model):
        other = copy.deepcopy(model)
        eager = step(model, x)
        found = step(torch.compile(other, fullgraph=True, backend="aot_eager"), x)
    for a, b in zip(eager, found, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


@pytest.mark.slow
def test_training_has_the_same_loss_curve():
    torch.manual_seed(0)
    x, target = torch.randn(8, 3, 32, 32).contiguous(memory_format=NHWC), torch.randint(10, (8,))

    def made():
        return build("resnet20_cifar", width=0.5).to(memory_format=NHWC)

    assert_same_loss_curve(made, x, target, lr=0.02, steps=6, used=lambda handle: handle.kinds["BatchNorm2d"] == 19)
